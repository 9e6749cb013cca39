//! What no recorded run shows says so; what is said to be recorded has a record.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;
use tonnage_core::doc::Doc;
use tonnage_core::footprint::{Options, estimate};
use tonnage_core::job::read_job;
use tonnage_core::validate::torch_run::spec;
use tonnage_core::verified::{
    RECORDED_GENERATION, RECORDED_MODELS, RECORDED_OPTIMIZERS, unverified,
};
use tonnage_sim::optim::OptimizerKind;

fn records() -> Vec<Value> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../groundtruth");
    [
        "torch-trace-dev.jsonl",
        "torch-trace-tf457-dev.jsonl",
        "torch-trace-own.jsonl",
    ]
    .iter()
    .flat_map(|f| {
        let text = std::fs::read_to_string(root.join(f)).unwrap();
        let rows: Vec<Value> = text
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        rows
    })
    .collect()
}

#[test]
fn what_is_said_to_be_recorded_is() {
    let all = records();
    let of = |path: &str| -> BTreeSet<String> {
        all.iter()
            .filter_map(|r| r["config"].pointer(path)?.as_str().map(String::from))
            .collect()
    };
    let optimizers = of("/optim");
    for name in RECORDED_OPTIMIZERS {
        assert!(optimizers.contains(*name), "{name}");
        assert_eq!(OptimizerKind::parse(name).unwrap().name(), Some(*name));
    }
    let models = of("/model/family");
    for name in RECORDED_MODELS {
        assert!(models.contains(*name), "{name}");
    }
    for name in RECORDED_GENERATION {
        assert!(
            all.iter()
                .any(|r| r["config"]["kind"] == "generate"
                    && r["config"]["model"]["family"] == *name),
            "generation of {name}"
        );
    }
    for (path, names) in [
        ("/loss", &["liger", "chunked", "cut"][..]),
        ("/quant", &["nf4", "fp4", "int8"]),
        ("/zero_grad", &["before_backward"]),
        ("/mask", &["ones", "pad"]),
    ] {
        for name in names {
            assert!(of(path).contains(*name), "{path} {name}");
        }
    }
    let has = |path: &str, v: Value| all.iter().any(|r| r["config"].pointer(path) == Some(&v));
    assert!(has("/set_to_none", json!(false)));
    assert!(has("/peft/dora", json!(true)));
    assert!(has("/ckpt/reentrant", json!(true)));
    assert!(has("/ckpt/selective", json!(true)));
    assert!(has("/ckpt/every", json!(2)));
}

fn job(extra: Value) -> Vec<String> {
    let mut c = json!({"kind": "train", "gpu": "a100-sxm4-80gb", "precision": "bf16", "batch": 1, "seq": 64,
        "model": {"family": "llama", "args": {}}});
    for (k, v) in extra.as_object().unwrap() {
        c[k] = v.clone();
    }
    unverified(&spec(&json!({"id": "job", "config": c})).unwrap())
}

#[test]
fn what_no_record_shows_is_said() {
    assert_eq!(job(json!({})), Vec::<String>::new());
    let said = |extra: Value, what: &str| {
        let notes = job(extra);
        assert!(
            notes.len() == 1 && notes[0].starts_with("unverified: ") && notes[0].contains(what),
            "{notes:?}"
        );
    };
    said(json!({"attn": "flash_attention_2"}), "flash_attention_2");
    said(
        json!({"model": {"family": "litgpt", "args": {}}}),
        "`litgpt`",
    );
}

const JOB: &str = r#"
[model]
type = "llama"
[model.config]
hidden_size = 256
intermediate_size = 512
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
vocab_size = 2000
[train]
seq_len = 64
precision = "bf16"
"#;

#[test]
fn a_footprint_carries_it() {
    let notes = |more: &str| {
        let doc = Doc::parse("job.toml", &format!("{JOB}{more}")).unwrap();
        let e = estimate(&read_job(&doc).unwrap(), &Options::default()).unwrap();
        let json = serde_json::to_string(&e.footprint.notes).unwrap();
        json.matches("unverified: ").count()
    };
    assert_eq!(notes(""), 0);
    assert_eq!(notes("loss = \"unsloth\"\n"), 1);
    assert_eq!(
        notes("loss = \"unsloth\"\nattention = \"flash_attention_2\"\n"),
        2
    );
    assert_eq!(notes("loss = \"cut\"\noptimizer = \"lion\"\n"), 0);
}
