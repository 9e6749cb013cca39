//! AGI2's TOML, for jobs of its own architecture; it is read by `tonnage_core::import` (crates/tonnage-core/src/import/agi2.rs), which
//! says what its trainer does. Its lengths count the shifted target: `seq_len` is one more than the tokens of the forward pass.

use super::{File, Options, Written};
use std::fmt::Write as _;
use tonnage_core::Job;
use tonnage_core::doc::{Diagnostic, Doc, Value};

pub(super) fn read(doc: &Doc) -> Result<Job, Vec<Diagnostic>> {
    tonnage_core::import::read_doc(doc)
}

pub(super) fn write(job: &Job, _: &Options) -> Result<Written, Vec<Diagnostic>> {
    let no = |key: &str, what: String| {
        vec![
            Diagnostic::error(
                "cannot-express",
                format!("`{key}` {what} cannot be said in a file for agi2"),
            )
            .help("only jobs of AGI2's own architecture can: --model-type agi2"),
        ]
    };
    let model = job.word("model.type");
    if model != "agi2" {
        return Err(no("model.type", format!("= {model}")));
    }
    let table = match job.given("model.config").map(|g| &g.value) {
        Some(Value::Table(t)) => t.as_slice(),
        _ => &[],
    };
    let field = |name: &str| {
        table
            .iter()
            .find(|(k, _)| k.name == name)
            .map(|(_, n)| &n.value)
    };
    let count = |name: &str| match field(name) {
        Some(Value::Int(i)) => Some(*i),
        _ => None,
    };
    let mut t = String::from("# Configuration for AGI2's trainer\n");
    if job.given("name").is_some() {
        let name = toml::Value::String(job.word("name"));
        let _ = writeln!(t, "model_name = {name}");
    }
    for (theirs, ours) in [
        ("model_embd", "n_embd"),
        ("model_layer", "n_layer"),
        ("model_head", "n_head"),
        ("model_positions", "n_positions"),
    ] {
        match count(ours) {
            Some(i) => {
                let _ = writeln!(t, "{theirs} = {i}");
            }
            None => return Err(no("model.config", format!("without `{ours}`"))),
        }
    }
    match field("dropout") {
        Some(Value::Float(f)) => {
            let _ = writeln!(t, "model_dropout = {f:?}");
        }
        Some(Value::Int(i)) => {
            let _ = writeln!(t, "model_dropout = {i}");
        }
        _ => {}
    }
    if let Some(Value::Text(a)) = field("activation") {
        let _ = writeln!(t, "model_activation = {}", toml::Value::String(a.clone()));
    }
    let _ = writeln!(
        t,
        "batch_size = {}",
        job.count("train.micro_batch_size").unwrap_or(1)
    );
    let seq = job.count("train.seq_len").unwrap_or(511).saturating_add(1);
    let _ = writeln!(t, "seq_len = {seq}");
    match count("vocab_size") {
        Some(50257) => t.push_str("tokenizer = \"tiktoken\"\n"),
        Some(70) if job.uncertain.is_empty() => t.push_str("tokenizer = \"char\"\n"),
        _ => {}
    }
    match job.word("train.precision").as_str() {
        "fp32" => t.push_str("use_amp = false\n"),
        "fp16-mixed" if job.given("train.precision").is_some() => t.push_str("use_amp = true\n"),
        _ => {}
    }
    Ok(Written {
        files: vec![File {
            name: "agi2.toml".into(),
            text: t,
            what: "the configuration".into(),
        }],
        command: None,
        ..Written::default()
    })
}
