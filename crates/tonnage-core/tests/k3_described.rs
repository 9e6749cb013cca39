//! K3: models described in data run, and the described SPOTER and per-head GPT are the coded ones, event by event.

use serde_json::{Value, json};
use std::sync::Arc;
use tonnage_core::job::DescriptionFile;
use tonnage_core::validate::torch_run;
use tonnage_core::{Simulated, Spec, simulate};
use tonnage_model::describe::{self, is_verified};

fn file(path: &str) -> String {
    let full = format!("{}/../../{path}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&full).unwrap_or_else(|e| panic!("{full}: {e}"))
}

fn description(name: &str) -> DescriptionFile {
    let path = format!("examples/descriptions/{name}.toml");
    DescriptionFile::parse(&path, &file(&path)).unwrap_or_else(|d| panic!("{d}"))
}

/// A recorded job's settings, as `torch_run` reads them, with changes.
fn spec(family: &str, args: Value, changes: &Value) -> Spec {
    let mut config = json!({"kind": "train", "model": {"family": family, "args": args}, "gpu": "a100-sxm4-80gb",
        "precision": "fp32", "batch": 2, "seq": 24, "optim": "adamw_foreach"});
    for (k, v) in changes.as_object().unwrap() {
        config[k] = v.clone();
    }
    torch_run::spec(&json!({"config": config, "versions": {}})).unwrap()
}

fn described(spec: &Spec, config: Value, name: &str) -> Spec {
    Spec {
        model_type: "described".into(),
        description: Some(Arc::clone(&description(name).description)),
        config,
        ..spec.clone()
    }
}

fn run(s: &Spec) -> Simulated {
    simulate(s).unwrap_or_else(|e| panic!("{e}"))
}

/// Every event, its owner, its module's name, every mark and every figure are the same.
fn same(coded: &Spec, data: &Spec, what: &str) {
    let (a, b) = (run(coded), run(data));
    assert!(!a.timeline.events.is_empty());
    for (i, (x, y)) in a.timeline.events.iter().zip(&b.timeline.events).enumerate() {
        assert_eq!(x, y, "{what}: event {i}");
    }
    assert_eq!(a.timeline.events.len(), b.timeline.events.len(), "{what}");
    assert_eq!(a.timeline.marks, b.timeline.marks, "{what}");
    assert_eq!(a.timeline.tags, b.timeline.tags, "{what}");
    assert_eq!(a.modules, b.modules, "{what}");
    assert_eq!(a.param_count, b.param_count, "{what}");
    assert_eq!(a.param_bytes, b.param_bytes, "{what}");
    assert_eq!(a.buffer_bytes, b.buffer_bytes, "{what}");
    let (f, g) = (
        torch_run::figures(&a.timeline),
        torch_run::figures(&b.timeline),
    );
    assert_eq!(f.peak_allocated, g.peak_allocated, "{what}");
    assert_eq!(f.peak_reserved, g.peak_reserved, "{what}");
}

/// The settings in which the events are compared.
fn settings() -> Vec<Value> {
    vec![
        json!({}),
        json!({"accum": 2, "clip": 1.0}),
        json!({"precision": "amp_bf16", "gpu": "h100-sxm"}),
        json!({"precision": "amp_fp16", "batch": 1, "seq": 7}),
        json!({"optim": "sgd", "gpu": "t4"}),
    ]
}

#[test]
fn k3_spoter_in_data_is_the_coded_one_event_by_event() {
    let small = json!({"input_dim": 20, "d_model": 24, "n_heads": 3, "n_layers": 2, "d_ff": 40, "num_classes": 7, "max_seq_len": 24});
    for change in settings() {
        let coded = spec("spoter", small.clone(), &change);
        same(
            &coded,
            &described(&coded, small.clone(), "spoter"),
            &change.to_string(),
        );
    }
    let whole = json!({"input_dim": 108, "d_model": 108, "n_heads": 9, "n_layers": 8, "d_ff": 512, "num_classes": 60, "max_seq_len": 150,
        "dropout": 0.15, "label_smoothing": 0.0});
    let coded = spec(
        "spoter",
        whole.clone(),
        &json!({"batch": 8, "seq": 150, "accum": 2, "clip": 1.0}),
    );
    let data = described(&coded, whole, "spoter");
    same(&coded, &data, "production");
    assert_eq!(run(&data).param_count, 1_319_434);
}

#[test]
fn k3_the_per_head_gpt_with_its_mask_buffers_in_data_is_the_coded_one_event_by_event() {
    let small = json!({"vocab_size": 101, "block_size": 32, "n_embd": 24, "n_head": 3, "n_layer": 2, "dropout": 0.2});
    for mut change in settings() {
        for ckpt in [false, true] {
            change["ckpt"] = json!(ckpt);
            let coded = spec("gpt_per_head", small.clone(), &change);
            assert_eq!(coded.checkpoint.is_some(), ckpt);
            let data = described(&coded, small.clone(), "gpt_per_head");
            same(&coded, &data, &change.to_string());
        }
    }
    let mut biased = small.clone();
    biased["bias"] = json!(true);
    biased["dropout"] = json!(0.0);
    let coded = spec("gpt_per_head", biased.clone(), &json!({}));
    same(
        &coded,
        &described(&coded, biased, "gpt_per_head"),
        "biases, no dropout",
    );
}

#[test]
fn k3_every_gpt_seed_in_data_has_the_coded_bytes() {
    let folder = format!(
        "{}/../tonnage/tests/seeds/gpt-configs",
        env!("CARGO_MANIFEST_DIR")
    );
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let mut c: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        // all of the trunk and the buffers, few of the equal layers
        c["n_layer"] = json!(2);
        let length = c["block_size"].clone();
        let coded = spec(
            "gpt_per_head",
            c.clone(),
            &json!({"batch": 4, "seq": length, "steps": 2}),
        );
        same(
            &coded,
            &described(&coded, c, "gpt_per_head"),
            &path.display().to_string(),
        );
        seen += 1;
    }
    assert_eq!(seen, 10);
}

#[test]
fn k3_a_changed_description_is_not_verified() {
    for name in ["spoter", "gpt_per_head"] {
        let text = file(&format!("examples/descriptions/{name}.toml"));
        assert_eq!(text, file(&format!("catalog/architectures/{name}.toml")));
        assert!(description(name).verified);
        let renamed = text.replace(&format!("\"{name}\""), "\"mine\"");
        assert!(DescriptionFile::parse("x.toml", &renamed).unwrap().verified);
    }
    let text = file("examples/descriptions/spoter.toml");
    for (from, to) in [
        ("norm = \"post\"", "norm = \"pre\""),
        ("\"3 * d_model\"", "\"d_model * 3\""),
        ("padding_mask = true", "padding_mask = false"),
    ] {
        assert!(text.contains(from));
        let d = describe::Description::parse(&text.replace(from, to)).unwrap();
        assert!(!is_verified(&d), "{to}");
    }
}

#[test]
fn k3_fused_attention_and_tied_weights_in_data_are_the_coded_ones() {
    let config = json!({"vocab": 101, "block": 32, "layers": 2, "heads": 2, "dim": 32, "bias": true, "dropout": 0.1});
    let d = describe::find("nanogpt").unwrap();
    assert!(!is_verified(&d), "only what a recorded job verifies");
    for change in settings() {
        let coded = spec("nanogpt", config.clone(), &change);
        let data = Spec {
            description: Some(Arc::new(d.clone())),
            ..coded.clone()
        };
        same(&coded, &data, &change.to_string());
    }
}

fn peaks(s: &Spec) -> (u64, u64, u64) {
    let sim = run(s);
    let f = torch_run::figures(&sim.timeline);
    (sim.param_count, f.peak_allocated, f.peak_reserved)
}

/// What a description leaves out of the library's forward is stated in docs/descriptions.md; these are its sizes.
#[test]
fn k3_a_llama_like_decoder_in_data_is_close_to_the_coded_llama() {
    let config = json!({"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2});
    for (attention, slack) in [("sdpa", 2048), ("eager", 150_000)] {
        for precision in ["fp32", "bf16", "amp_bf16"] {
            for ckpt in [false, true] {
                let change =
                    json!({"precision": precision, "attn": attention, "ckpt": ckpt, "seq": 128});
                let coded = spec("llama", config.clone(), &change);
                let data = described(&coded, config.clone(), "llama_like");
                let (a, b) = (peaks(&coded), peaks(&data));
                println!("{change}: coded {a:?}, described {b:?}");
                assert_eq!(a.0, b.0);
                assert!(a.1.abs_diff(b.1) <= slack, "{change}: {a:?} {b:?}");
            }
        }
    }
    let mut tied = config.clone();
    tied["tie_word_embeddings"] = json!(true);
    let coded = spec("llama", tied.clone(), &json!({}));
    let data = described(&coded, tied, "llama_like");
    assert_eq!(run(&coded).param_count, run(&data).param_count);
}

#[test]
fn k3_a_bert_like_classifier_in_data_is_close_to_the_coded_bert() {
    let config = json!({"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4});
    for precision in ["fp32", "amp_fp16"] {
        for attention in ["sdpa", "eager"] {
            let change = json!({"precision": precision, "attn": attention, "seq": 64, "batch": 4});
            let coded = spec("bert", config.clone(), &change);
            let data = described(&coded, config.clone(), "bert_like");
            let (a, b) = (peaks(&coded), peaks(&data));
            println!("{change}: coded {a:?}, described {b:?}");
            assert_eq!(a.0, b.0);
            assert!(a.1.abs_diff(b.1) * 50 <= a.1, "{change}: {a:?} {b:?}");
        }
    }
}

/// Where, which field, and what would help.
#[test]
fn k3_mistakes_in_a_description_name_line_field_and_fix() {
    let good = file("examples/descriptions/spoter.toml");
    let config = json!({"input_dim": 20, "d_model": 24, "n_heads": 3, "n_layers": 2, "d_ff": 40, "num_classes": 7, "max_seq_len": 24});
    let fails = |from: &str, to: &str, config: &Value| {
        assert!(good.contains(from), "{from}");
        let text = good.replacen(from, to, 1);
        let d = match DescriptionFile::parse("model.toml", &text) {
            Err(d) => d,
            Ok(f) => f.explain(&describe::model(&f.description, config).err().expect(to)),
        };
        let p = d
            .place
            .clone()
            .unwrap_or_else(|| panic!("{to}: no place: {d}"));
        assert_eq!(p.file, "model.toml");
        assert!(d.help.is_some(), "{to}: {d}");
        (p.line, p.source.clone(), d.message.clone(), d.help.unwrap())
    };
    let line = |needle: &str| {
        good.lines()
            .position(|l| l.contains(needle))
            .expect("is there")
            + 1
    };
    for (from, to, at, words, fix) in [
        (
            "ffn_norm = \"norm2\"",
            "fnn_norm = \"norm2\"",
            "ffn_norm",
            "unknown field `fnn_norm`",
            "`ffn_norm`",
        ),
        (
            "activation = \"gelu\"\nup",
            "activation = \"gelo\"\nup",
            "activation = \"gelu\"",
            "unknown variant `gelo`",
            "`gelu`",
        ),
        (
            "up = \"linear1\"",
            "up = \"linear3\"",
            "up = \"linear1\"",
            "there is no module `encoder.layers.0.linear3`",
            "linear",
        ),
        (
            "up = \"linear1\"",
            "up = \"norm1\"",
            "up = \"linear1\"",
            "is a norm, not a linear",
            "docs/descriptions.md",
        ),
        (
            "linear = [\"d_model\", \"d_model / 2\"]",
            "linear = [\"d_ff\", \"d_model / 2\"]",
            "head.steps",
            "takes 40 numbers, 24 are needed here",
            "same expression",
        ),
        (
            "linear = [\"d_ff\", \"d_model\"]",
            "linear = [\"d_ff\", \"d_modle\"]",
            "linear = [\"d_ff\", \"d_model\"]",
            "`d_modle` is neither a field nor a derived name",
            "`required`",
        ),
        (
            "kind = \"encoder\"",
            "kind = \"decoder\"",
            "kind = \"torch_multihead\"",
            "no causal mask",
            "docs/descriptions.md",
        ),
        (
            "pool = \"first\"",
            "pool = \"none\"",
            "pool = \"first\"",
            "must be first, last or mean",
            "docs/descriptions.md",
        ),
        (
            "param = [1, 1, \"d_model\"]",
            "param = [1, 2, \"d_model\"]",
            "input.features",
            "must have the sizes [1, 1, 24]",
            "docs/descriptions.md",
        ),
    ] {
        let (l, source, message, help) = fails(from, to, &config);
        let wanted = match at {
            "head.steps" => line("pool = \"first\"") + 1,
            at => line(at),
        };
        assert_eq!(l, wanted, "{to}: {source}: {message}");
        assert!(message.contains(words), "{to}: {message}");
        assert!(help.contains(fix), "{to}: {help}");
    }
    for (field, value, words) in [
        ("n_heads", json!(5), "24 is not divisible by 5"),
        ("n_heads", json!(0), "impossible here"),
        ("d_model", json!(-24), "impossible here"),
        ("d_model", json!(2.5), "must be a whole number"),
        ("d_model", json!("24"), "must be a whole number"),
        ("d_ff", json!(4294967296u64), "impossible here"),
        ("n_layers", json!(0), "there is no module `encoder.layers`"),
        ("n_layers", json!(1_000_000_000), "impossible here"),
        ("dropout", json!(1.5), "not a probability"),
        ("num_classes", json!(null), "is missing"),
    ] {
        let mut c = config.clone();
        c[field] = value.clone();
        let f = DescriptionFile::parse("model.toml", &good).unwrap();
        let Err(e) = describe::model(&f.description, &c) else {
            panic!("{field} = {value} is accepted");
        };
        let d = f.explain(&e);
        assert!(d.message.contains(words), "{field} = {value}: {d}");
    }
    let data = described(&spec("spoter", json!({}), &json!({})), config, "spoter");
    for (batch, seq, words) in [
        (2, 25, "is too long: the position table `pos` has 25 rows"),
        (u64::from(u32::MAX), 24, "is impossible with this model"),
    ] {
        let s = Spec {
            batch,
            seq,
            ..data.clone()
        };
        let Err(e) = simulate(&s) else {
            panic!("{batch} x {seq} is accepted");
        };
        assert!(e.to_string().contains(words), "{e}");
    }
}

/// Every text of the examples in the place of every other, every line left out: an answer or one error, never a panic.
#[test]
fn k3_hostile_descriptions_end_in_an_answer_or_an_error() {
    let configs = [
        (
            "spoter",
            json!({"input_dim": 4, "d_model": 6, "n_heads": 3, "n_layers": 1, "d_ff": 8, "num_classes": 3, "max_seq_len": 4}),
        ),
        (
            "gpt_per_head",
            json!({"vocab_size": 11, "block_size": 4, "n_embd": 6, "n_head": 3, "n_layer": 1}),
        ),
        (
            "llama_like",
            json!({"vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 1}),
        ),
        (
            "bert_like",
            json!({"vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}),
        ),
    ];
    let (mut ran, mut refused) = (0, 0);
    for (name, config) in configs {
        let good = file(&format!("examples/descriptions/{name}.toml"));
        let base = spec(
            "spoter",
            json!({}),
            &json!({"batch": 1, "seq": 4, "steps": 1}),
        );
        let mut attempt = |text: &str| {
            let Ok(d) = describe::Description::parse(text) else {
                refused += 1;
                return;
            };
            let s = Spec {
                description: Some(Arc::new(d)),
                config: config.clone(),
                ..base.clone()
            };
            match simulate(&s) {
                Ok(_) => ran += 1,
                Err(_) => refused += 1,
            }
        };
        let lines: Vec<&str> = good.lines().collect();
        for skip in 0..lines.len() {
            let rest: Vec<&str> = (0..lines.len())
                .filter(|i| *i != skip)
                .map(|i| lines[i])
                .collect();
            attempt(&rest.join("\n"));
        }
        let parts: Vec<&str> = good.split('"').collect();
        let mut words: Vec<&str> = parts.iter().skip(1).step_by(2).copied().collect();
        words.extend([
            "0",
            "-1",
            "1 << 3",
            "'x'",
            "null",
            "4294967295",
            "",
            "config",
        ]);
        words.sort_unstable();
        words.dedup();
        for at in (1..parts.len()).step_by(2) {
            for w in words.iter().skip(at % 3).step_by(3) {
                let mut changed = parts.clone();
                changed[at] = w;
                attempt(&changed.join("\""));
            }
        }
    }
    println!("{ran} ran, {refused} were refused");
    assert!(ran > 100 && refused > 1000, "{ran} {refused}");
}
