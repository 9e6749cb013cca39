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
            assert_eq!(coded.checkpoint, ckpt);
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
