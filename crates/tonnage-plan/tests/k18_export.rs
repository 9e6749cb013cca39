//! K18: paste-ready settings in the user's own format. The written file says the job, and estimates to the promised number.

use proptest::prelude::*;
use tonnage_core::Job;
use tonnage_core::footprint::{Options as EstimateOptions, estimate};
use tonnage_plan::export::{self, Exported, FORMATS, Format, Kind, Options, export, find, law};

fn job(settings: &[(&str, &str)]) -> Job {
    let mut j = Job::new("test", "flags");
    for (k, v) in settings {
        j.set_text(k, v).unwrap_or_else(|e| panic!("{k}={v}: {e}"));
    }
    j
}

fn peak(j: &Job) -> u64 {
    let options = EstimateOptions {
        expected_only: true,
        ..EstimateOptions::default()
    };
    match estimate(j, &options) {
        Ok(e) => e.footprint.peak.allocated.expected,
        Err(bad) => panic!("{}: {bad:?}", j.source),
    }
}

fn write(j: &Job, f: &Format) -> Exported {
    export(j, f, &Options::default()).unwrap_or_else(|bad| panic!("{}: {bad:#?}", f.name))
}

/// The file as somebody else would read it, by its content alone.
fn read_again(e: &Exported) -> Job {
    let f = &e.files[0];
    export::read(&f.name, &f.text).unwrap_or_else(|bad| panic!("{}\n{bad:#?}", f.text))
}

/// A job that a format can say whole.
fn own_words(name: &str) -> Vec<(&'static str, &'static str)> {
    let model = ("model.id", "meta-llama/Llama-3.2-1B");
    let lora = [
        model,
        ("name", "a job"),
        ("stack.transformers", "5.17.0"),
        ("train.loop", "trainer"),
        ("train.seq_len", "256"),
        ("train.micro_batch_size", "2"),
        ("train.gradient_accumulation_steps", "2"),
        ("train.optimizer", "adamw8bit"),
        ("train.precision", "bf16-mixed"),
        ("model.dtype", "bf16"),
        ("train.activation_checkpointing", "full"),
        ("train.checkpoint_reentrant", "false"),
        ("train.clip_grad_norm", "0.5"),
        ("lora.r", "8"),
        ("lora.alpha", "16"),
        ("lora.targets", "q_proj,v_proj"),
        ("lora.dropout", "0.1"),
        ("quant.format", "nf4"),
        ("quant.double", "true"),
        ("quant.compute", "bf16"),
        ("quant.kbit_preparation", "false"),
        ("train.loading", "device_map"),
        ("gpu", "rtx-4090"),
    ];
    let full = [
        model,
        ("train.loop", "trainer"),
        ("train.seq_len", "128"),
        ("train.micro_batch_size", "1"),
        ("train.precision", "bf16"),
        ("train.optimizer", "adamw_foreach"),
        ("train.loss", "fused"),
        ("train.attention", "sdpa"),
    ];
    match name {
        "hf" => full.to_vec(),
        "trl" => {
            let mut all = lora.to_vec();
            all.push(("lora.adapter_dtype", "base"));
            all
        }
        _ => lora.to_vec(),
    }
}

#[test]
fn k18_paste_ready_settings_round_trip_to_the_promised_number() {
    for f in FORMATS
        .iter()
        .filter(|f| f.kind == Kind::Job && f.read.is_some())
    {
        if ["torchtune", "torchtitan", "agi2"].contains(&f.name) {
            continue; // their jobs are not the Trainer's: below
        }
        let j = job(&own_words(f.name));
        let e = write(&j, f);
        assert_eq!(law::differences(&j, &e.job), [], "{}", f.name);
        assert!(e.notes.is_empty(), "{}: {:?}", f.name, e.notes);
        let again = read_again(&e);
        assert_eq!(law::differences(&j, &again), [], "{}", f.name);
        assert_eq!(peak(&again), peak(&j), "{}", f.name);
    }
}

#[test]
fn what_a_format_cannot_say_is_an_error_that_names_the_field() {
    for (format, key, value) in [
        ("hf", "lora.r", "8"),
        ("axolotl", "train.optimizer", "muon"),
        ("axolotl", "train.checkpoint_every", "2"),
        ("trl", "train.loss", "fused"),
        ("llamafactory", "train.loss", "cut"),
        ("llamafactory", "train.freeze_layers", "4"),
    ] {
        let mut j = job(&[
            ("model.id", "meta-llama/Llama-3.2-1B"),
            ("train.seq_len", "128"),
            ("train.activation_checkpointing", "full"),
        ]);
        if key == "lora.r" {
            j.set_text("lora.targets", "q_proj").unwrap();
        }
        j.set_text(key, value).unwrap();
        let bad = export(&j, find(format).unwrap(), &Options::default()).expect_err(format);
        assert!(
            bad.iter()
                .any(|d| d.code == "cannot-express" && d.message.contains(&format!("`{key}`"))),
            "{format}: {bad:?}"
        );
    }
}

#[test]
fn what_the_job_leaves_open_is_listed_where_the_tool_does_otherwise() {
    let j = job(&[
        ("model.id", "meta-llama/Llama-3.2-1B"),
        ("train.seq_len", "128"),
    ]);
    let e = write(&j, find("axolotl").unwrap());
    let said: Vec<_> = e.notes.iter().map(|d| d.message.as_str()).collect();
    assert!(said.iter().any(|m| m.contains("`train.loop`")), "{said:?}");
    // and what is written then is a job that says everything: a second export adds nothing
    let again = write(&e.job, find("axolotl").unwrap());
    assert_eq!(again.files, e.files);
    assert!(again.notes.is_empty(), "{:?}", again.notes);
}

fn choice(values: &[&'static str]) -> impl Strategy<Value = Option<&'static str>> + use<> {
    prop::option::of(prop::sample::select(values.to_vec()))
}

prop_compose! {
    fn jobs()(
        precision in choice(&["fp32", "bf16", "fp16", "bf16-mixed", "fp16-mixed"]),
        dtype in choice(&["fp32", "bf16", "fp16"]),
        optimizer in choice(&["adamw_foreach", "adamw_fused", "sgd", "adafactor", "paged_adamw8bit", "lion", "muon"]),
        checkpointing in choice(&["none", "full", "selective"]),
        reentrant in prop::option::of(any::<bool>()),
        loss in choice(&["library", "fused", "cut", "chunked"]),
        attention in choice(&["sdpa", "eager", "flash_attention_2"]),
        loop_ in choice(&["trainer", "plain"]),
        loading in choice(&["to", "device_map"]),
        clip in prop::option::of(0.0f64..4.0),
        batch in 1u64..64,
        accumulation in prop::option::of(1u64..64),
        seq in 1u64..5000,
        lora in prop::option::of((1u64..256, choice(&["all-linear", "q_proj,v_proj", "q_proj"]), prop::option::of(0.0f64..0.5), any::<bool>(), choice(&["base", "fp32"]))),
        quant in choice(&["nf4", "int8"]),
        double in prop::option::of(any::<bool>()),
        revision in choice(&["main", "v1: #x", "null", "0x1f", "yes"]),
        name in prop::option::of("[!-~][ -~]{0,20}"),
    ) -> Job {
        let mut j = job(&[("model.id", "meta-llama/Llama-3.2-1B")]);
        let mut set = |k: &str, v: Option<String>| if let Some(v) = v { j.set_text(k, &v).unwrap(); };
        let s = |o: Option<&str>| o.map(String::from);
        set("train.precision", s(precision));
        set("model.dtype", s(dtype));
        set("train.optimizer", s(optimizer));
        set("train.activation_checkpointing", s(checkpointing));
        if checkpointing == Some("full") { set("train.checkpoint_reentrant", reentrant.map(|b| b.to_string())); }
        set("train.loss", s(loss));
        set("train.attention", s(attention));
        set("train.loop", s(loop_));
        set("train.loading", s(loading));
        set("train.clip_grad_norm", clip.map(|c| c.to_string()));
        set("train.micro_batch_size", Some(batch.to_string()));
        set("train.gradient_accumulation_steps", accumulation.map(|n| n.to_string()));
        set("train.seq_len", Some(seq.to_string()));
        set("model.revision", s(revision));
        set("name", name);
        if let Some((r, targets, dropout, dora, dtype)) = lora {
            set("lora.r", Some(r.to_string()));
            set("lora.targets", Some(targets.unwrap_or("k_proj,o_proj").into()));
            set("lora.dropout", dropout.map(|d| d.to_string()));
            set("lora.dora", Some(dora.to_string()));
            set("lora.adapter_dtype", s(dtype));
            if let Some(q) = quant {
                set("quant.format", Some(q.into()));
                if q == "nf4" { set("quant.double", double.map(|b| b.to_string())); }
            }
        }
        j
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever the job: its file says it, or the export says which field it cannot say.
    #[test]
    fn every_export_says_the_job_or_names_the_field(j in jobs()) {
        for f in FORMATS.iter().filter(|f| f.kind == Kind::Job && f.read.is_some()) {
            match export(&j, f, &Options::default()) {
                Ok(e) => {
                    let back = if f.recognise.is_some() { read_again(&e) } else {
                        (f.read.unwrap())(&export::parse(&e.files[0].name, &e.files[0].text).unwrap()).unwrap()
                    };
                    prop_assert_eq!(law::differences(&e.job, &back), []);
                    for d in law::differences(&j, &back) {
                        prop_assert!(j.given(d.key).is_none(), "{}: {:?} is lost", f.name, d);
                    }
                    // said once more, nothing changes
                    let again = write(&back, f);
                    prop_assert_eq!(&again.files[0].text, &e.files[0].text);
                    prop_assert!(again.notes.is_empty(), "{}: {:?}", f.name, again.notes);
                }
                Err(bad) => {
                    prop_assert!(!bad.is_empty());
                    for d in bad {
                        prop_assert_eq!(d.code, "cannot-express", "{}: {}", f.name, d);
                        prop_assert!(d.message.contains('`'));
                    }
                }
            }
        }
    }

    /// Files that somebody broke are jobs or complaints, never a panic.
    #[test]
    fn broken_files_are_refused_in_words(
        j in jobs(),
        at in any::<prop::sample::Index>(),
        cut in any::<prop::sample::Index>(),
        junk in prop_oneof!["[ -~\\n]{0,6}", Just("\u{e9}".to_string()), Just("- [".to_string()), Just("&a *a".to_string()), Just("!!x ".to_string()), Just("99999999999999999999".to_string())],
    ) {
        for f in FORMATS.iter().filter(|f| f.read.is_some()) {
            let Ok(e) = export(&j, f, &Options::default()) else { continue };
            let t = &e.files[0].text;
            if t.is_empty() { continue }
            let (a, b) = (at.index(t.len()), cut.index(t.len()));
            let (a, b) = (a.min(b), a.max(b).min(a.min(b) + 9));
            if !t.is_char_boundary(a) || !t.is_char_boundary(b) { continue }
            let broken = format!("{}{}{}", &t[..a], junk, &t[b..]);
            if let Err(bad) = export::read(&e.files[0].name, &broken) {
                prop_assert!(!bad.is_empty());
                prop_assert!(bad.iter().all(|d| !d.message.is_empty() && d.code != "defect"), "{bad:?}");
            }
        }
    }
}

#[test]
fn aliases_that_multiply_are_refused() {
    let mut t = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        let refs = vec![format!("*a{}", i - 1); 9].join(", ");
        t.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
    }
    let bad = export::read("bomb.yaml", &t).unwrap_err();
    assert!(bad[0].message.contains("more than"), "{bad:?}");
    let deep = format!("a: {}1{}", "[".repeat(5000), "]".repeat(5000));
    assert!(export::read("deep.yaml", &deep).is_err());
}
