//! Acceptance: input (K1, K2, K12, K19).

mod common;
use common::*;
use serde_json::Value;
use tonnage_core::agi2_compat::{self, Input};
use tonnage_core::job::to_toml;
use tonnage_core::{Diagnostic, import};

#[test]
fn k1_every_seed_loads_unedited_with_the_exact_counts() {
    let counts = [
        ("gpt-configs/tiny.json", 21_169_152),
        ("gpt-configs/small.json", 49_422_720),
        ("gpt-configs/150M.json", 190_884_480),
        ("gpt-configs/200M.json", 244_710_272),
        ("gpt-configs/250M.json", 304_827_520),
        ("gpt-configs/150M_1024.json", 191_474_304),
        ("gpt-configs/200M_1024.json", 245_398_400),
        ("gpt-configs/250M_1024.json", 305_613_952),
        ("gpt-configs/350M_1024.json", 406_359_168),
        ("gpt-configs/500M_1024.json", 602_308_224),
        ("spoter.json", 1_319_434),
        ("deepseek-qlora.json", 1_777_088_000),
        ("agi2/lilwill.toml", 10_674_432),
    ];
    for (name, count) in counts {
        let f = expected(&job(name));
        assert_eq!(f.model.base_param_count, count, "{name}");
    }
    assert_eq!(
        expected(&job("deepseek-qlora.json")).model.trainable_count,
        36_929_536
    );
    let mut lilwill = job("agi2/lilwill.toml");
    lilwill
        .set_text("model.config.vocab_size", "50257")
        .unwrap();
    assert_eq!(expected(&lilwill).model.base_param_count, 29_946_240);
    for name in AGI2.iter().chain(&STATESET).chain(&GPT) {
        let j = job(name);
        assert!(j.contradictions().is_empty(), "{name}");
    }
    for name in STATESET {
        assert_eq!(
            expected(&job(name)).model.base_param_count,
            6_738_415_616,
            "{name}"
        );
    }
}

#[test]
fn k1_a_models_own_config_and_flags_are_a_job_too() {
    let text = tonnage_catalog::model_config("openai-community/gpt2").unwrap();
    let mut j = import::read("config.json", text).unwrap();
    j.set_text("seq-len", "128").unwrap();
    let by_flags = made(&[("model", "gpt2"), ("seq-len", "128")]);
    assert_eq!(expected(&j).peak, expected(&by_flags).peak);
}

#[test]
fn k1_a_job_written_out_is_the_same_job() {
    for name in [
        "deepseek-qlora.json",
        "gpt-configs/tiny.json",
        "agi2/lilwill-later.toml",
        "stateset/stateset-7b-grpo.json",
    ] {
        let j = job(name);
        let again = import::read("again.toml", &to_toml(&j))
            .unwrap_or_else(|bad| panic!("{name}: {}", shown(&bad)));
        assert_eq!(expected(&j).peak, expected(&again).peak, "{name}");
        assert_eq!(j.uncertain, again.uncertain, "{name}");
    }
}

fn bad(file: &str, text: &str) -> Vec<Diagnostic> {
    import::read(file, text).expect_err("it is wrong")
}

#[test]
fn k2_invalid_files_are_named_with_line_and_reason() {
    for (name, line) in [
        ("agi2/default-as-published-invalid.toml", 13),
        ("agi2/large_model-as-published-invalid.toml", 13),
    ] {
        let d = &read(name).expect_err("null is no TOML value")[0];
        let place = d.place.as_ref().expect("a place");
        assert_eq!((place.file.as_str(), place.line), (name, line));
        assert!(d.message.contains("`null` is not a TOML value"), "{d}");
        let o = tonnage(&["estimate", seed(name).to_str().unwrap()]);
        assert_eq!(o.status.code(), Some(3));
        assert!(
            stderr(&o).contains(&format!("{name}:{line}:")),
            "{}",
            stderr(&o)
        );
    }
}

#[test]
fn k2_unknown_misspelt_and_contradictory_keys_say_value_effect_and_remedy() {
    let text = "[model]\nid = \"gpt2\"\n[train]\nseq_len = 128\nmicro_batchsize = 8\nprecison = \"bf16\"\n";
    let all = bad("job.toml", text);
    assert_eq!(all.len(), 2, "{}", shown(&all));
    let said = all[0].to_string();
    assert!(
        said.contains("job.toml:5:1") && said.contains("micro_batchsize"),
        "{said}"
    );
    assert!(
        said.contains("8 is not read; `micro_batch_size` would be 1"),
        "{said}"
    );
    assert!(said.contains("did you mean `micro_batch_size`?"), "{said}");
    for (text, word) in [
        (
            "[train]\nbatch_size = 4\nmicro_batch_size = 8\n",
            "both given",
        ),
        ("[train]\nseq_len = \"long\"\n", "whole number"),
        ("[train]\nseq_len = -1\n", "at least 1"),
        ("[train]\nseq_len = 99999999999\n", "no job is that large"),
        (
            "[train]\nprecision = \"bf16_mixed\"\n",
            "did you mean `bf16-mixed`?",
        ),
        ("seq_len = 4\n", "belongs in the table [train]"),
        ("[trian]\nseq_len = 4\n", "did you mean `train`?"),
        ("[train]\nlora_r = 4\n", "has: "),
        ("model = 3\n", "is a table"),
        ("[uncertain]\nlosss = [\"fused\"]\n", "losss"),
    ] {
        let said = shown(&bad("job.toml", text));
        assert!(
            said.contains(word) && said.contains("job.toml:"),
            "{text}: {said}"
        );
    }
}

#[test]
fn k2_contradictions_are_refused_before_anything_is_simulated() {
    let base = [("model", "gpt2"), ("seq-len", "128")];
    let say = |more: &[(&str, &str)]| {
        let j = with(&made(&base), more);
        match tonnage_core::estimate(&j, &Default::default()) {
            Err(bad) => shown(&bad),
            Ok(_) => panic!("{more:?} has an answer"),
        }
    };
    assert!(
        say(&[("seq-len", "2048")])
            .contains("longer than the model's position table (n_positions = 1024)")
    );
    assert!(say(&[("quant", "nf4")]).contains("cannot be trained themselves"));
    assert!(say(&[("lora-targets", "c_attn")]).contains("no rank"));
    assert!(say(&[("lora-r", "8")]).contains("target modules"));
    assert!(say(&[("double-quant", "false")]).contains("nothing is quantised"));
    assert!(say(&[("alloc-conf", "expandable:True")]).contains("expandable_segments"));
    assert!(say(&[("model.config.n_head", "7")]).contains("n_head"));
    let nothing = made(&[("seq-len", "128")]);
    assert!(
        shown(
            &tonnage_core::estimate(&nothing, &Default::default())
                .err()
                .unwrap()
        )
        .contains("no model is named")
    );
}

#[test]
fn k2_widths_that_do_not_divide_are_refused_in_every_source() {
    let agi2 = "model_embd = 1024\nmodel_layer = 24\nmodel_head = 6\nmodel_positions = 512\nbatch_size = 4\nseq_len = 512\n";
    let said = shown(&bad("large.toml", agi2));
    assert!(
        said.contains("large.toml:3:14") && said.contains("1024 cannot be divided among 6 heads"),
        "{said}"
    );
    let gpt =
        r#"{"batch_size":1,"block_size":8,"vocab_size":9,"n_embd":1024,"n_head":6,"n_layer":2}"#;
    assert!(shown(&bad("g.json", gpt)).contains("1024 cannot be divided among 6 heads"));
}

#[test]
fn k2_a_length_ramp_is_understood_and_default_mismatches_are_said() {
    let j = job("agi2/lilwill-later.toml");
    assert_eq!(j.count("train.seq_len"), Some(511));
    // max(4, floor(64 * 512 * 1.125 / 512))
    assert_eq!(j.count("train.micro_batch_size"), Some(72));
    assert!(
        j.notes
            .iter()
            .any(|n| n.message.contains("ramps from 2 to 512") && n.place.is_some())
    );
    let j = import::read(
        "short.toml",
        "model_layer = 2\nbatch_size = 2\nseq_len = 64\n",
    )
    .unwrap();
    let said = shown(&j.notes);
    assert!(
        said.contains("`model_embd` is missing: AGI2's trainer takes 768, its estimator 384"),
        "{said}"
    );
    assert!(
        shown(&bad("x.toml", "model_embd = 64\nseq_len_start = 2\n")).contains("no `seq_len_end`")
    );
    assert!(
        shown(&bad("x.toml", "model_embd = 64\nseq_lenn = 2\n"))
            .contains("did you mean `seq_len`?")
    );
}

#[test]
fn k12_the_21_reference_results_are_equal() {
    let text = std::fs::read_to_string(seed("agi2-estimator.json")).unwrap();
    let v: Value = serde_json::from_str(&text).unwrap();
    let cases = v["reference_cases"].as_array().unwrap();
    assert_eq!(cases.len(), 21);
    for c in cases {
        let i = &c["input"];
        let n = |k: &str| i[k].as_u64().unwrap();
        let input = Input {
            model_positions: n("model_positions"),
            model_embd: n("model_embd"),
            model_layer: n("model_layer"),
            model_head: n("model_head"),
            batch_size: n("batch_size"),
            seq_len: n("seq_len"),
            vocab_size: n("vocab_size"),
            dtype_bytes: n("dtype_bytes"),
            include_activations: i["include_activations"].as_bool().unwrap(),
            include_optimizer: i["include_optimizer"].as_bool().unwrap(),
        };
        // argument and result names are the library call's own
        assert_eq!(serde_json::to_value(&input).unwrap(), *i);
        let ours = serde_json::to_value(agi2_compat::estimate(&input)).unwrap();
        let theirs = c["output"].as_object().unwrap();
        assert_eq!(ours.as_object().unwrap().len(), theirs.len());
        for (k, v) in theirs {
            assert_eq!(ours[k].as_f64(), v.as_f64(), "{} {k}", c["name"]);
        }
    }
}

#[test]
fn k12_the_compatibility_mode_is_labelled_and_reads_files_and_flags() {
    let o = tonnage(&[
        "estimate",
        seed("agi2/lilwill.toml").to_str().unwrap(),
        "--method",
        "agi2",
    ]);
    let t = stdout(&o);
    assert!(t.starts_with(agi2_compat::LABEL), "{t}");
    assert!(
        t.contains("total                0.54 GB") && t.contains("fp16 0.31 GB"),
        "{t}"
    );
    let o = tonnage(&[
        "estimate",
        "--method",
        "agi2",
        "--format",
        "json",
        "--model-embd",
        "1024",
        "--model-layer",
        "24",
        "--mixed-precision",
    ]);
    let v: Value = serde_json::from_slice(&o.stdout).unwrap();
    assert_eq!(v["output"]["total_estimated_gb"], 2.78);
    assert_eq!(v["method"], agi2_compat::LABEL);
}

#[test]
fn k19_agi2s_levels_with_their_boundaries() {
    let at = |gb| agi2_compat::level(gb).name;
    assert_eq!(at(3.67), "reasonable");
    assert_eq!(
        [at(3.99), at(4.0), at(8.0), at(8.01), at(12.0), at(12.01)],
        [
            "reasonable",
            "moderate",
            "moderate",
            "high",
            "high",
            "very high"
        ]
    );
    let file = seed("gpt-configs/tiny.json");
    let o = tonnage(&[
        "estimate",
        file.to_str().unwrap(),
        "--levels",
        "agi2",
        "--expected-only",
    ]);
    assert!(
        stdout(&o).contains("Advice by AGI2's levels (4, 8, 12 GB)"),
        "{}",
        stdout(&o)
    );
    // without the profile, levels are relative to the card that is asked about
    let o = tonnage(&[
        "estimate",
        file.to_str().unwrap(),
        "--gpu",
        "gtx-1650",
        "--expected-only",
    ]);
    assert!(stdout(&o).starts_with("GPT-Tiny fits on"), "{}", stdout(&o));
}
