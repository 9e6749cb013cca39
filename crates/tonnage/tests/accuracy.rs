//! README's tables of accuracy are what `tonnage validate` says. With TONNAGE_BLESS=1 they are rewritten instead of compared.

mod common;
use common::document::{root, same};
use common::{stderr, tonnage};
use serde_json::Value;
use std::collections::BTreeMap;

/// The rows of README's table: what `tonnage validate` says about the training rows of each file of recorded runs.
fn accuracy() -> String {
    let mut files: Vec<String> = std::fs::read_dir(root().join("groundtruth"))
        .unwrap()
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|n| n.starts_with("torch-trace") && n.ends_with(".jsonl"))
        .collect();
    files.sort();
    let mut t = String::from(
        "| recorded runs | training jobs | supported | every figure equal to the byte | largest error |\n| --- | --- | --- | --- | --- |\n",
    );
    for f in files {
        let path = format!("groundtruth/{f}");
        let o = tonnage(&["validate", &path, "--format", "json"]);
        let v: Value =
            serde_json::from_slice(&o.stdout).unwrap_or_else(|e| panic!("{f}: {e} {}", stderr(&o)));
        // of a job: is it supported, and its largest error
        let mut jobs: BTreeMap<&str, (bool, f64)> = BTreeMap::new();
        for r in v["rows"].as_array().unwrap() {
            if r["group"] != "train" || r["metric"] == "peak_phase" {
                continue;
            }
            let j = jobs.entry(r["id"].as_str().unwrap()).or_insert((true, 0.0));
            match r["unsupported"].is_null() {
                true => j.1 = j.1.max(r["error_pct"].as_f64().unwrap_or(f64::INFINITY)),
                false => j.0 = false,
            }
        }
        let supported: Vec<f64> = jobs.values().filter(|j| j.0).map(|j| j.1).collect();
        let exact = supported.iter().filter(|e| **e == 0.0).count();
        let worst = supported.iter().copied().fold(0.0, f64::max);
        let worst = if worst == 0.0 {
            "0 %".into()
        } else {
            format!("{worst:.3} %")
        };
        t += &format!(
            "| `{f}` | {} | {} | {exact} | {worst} |\n",
            jobs.len(),
            supported.len()
        );
    }
    t
}

/// What a line of the second table is about: file, words, and which of its rows belong to it (by group and metric).
type Line = (&'static str, &'static str, fn(&str, &str) -> bool);

const OTHERS: [Line; 9] = [
    (
        "llamacpp-dev",
        "llama.cpp: every buffer, total and refusal",
        |_, m| m != "pool_bytes_prefill",
    ),
    (
        "llamacpp-dev",
        "llama.cpp: the CUDA pool of a prefill",
        |_, m| m == "pool_bytes_prefill",
    ),
    ("vllm-dev", "vLLM: weights of a rank", |_, m| {
        m == "weights_bytes"
    }),
    (
        "vllm-dev",
        "vLLM: KV budget of a measured start-up",
        |_, m| m == "available_kv_bytes",
    ),
    (
        "vllm-dev",
        "vLLM: blocks, tokens, concurrency, refusals",
        |_, m| ["num_gpu_blocks", "kv_tokens", "max_concurrency", "refusal"].contains(&m),
    ),
    (
        "published-dev",
        "published training and fine-tuning, high confidence",
        |g, _| ["training/high", "finetune/high"].contains(&g),
    ),
    (
        "published-dev",
        "published inference and serving, high confidence",
        |g, _| ["inference/high", "serving/high"].contains(&g),
    ),
    (
        "published-dev",
        "published, middling and low confidence",
        |g, _| !g.ends_with("/high"),
    ),
    (
        "oom-messages-dev",
        "out-of-memory messages: every field",
        |_, _| true,
    ),
];

/// The second table: the median, 95th percentile (nearest rank) and largest error of the values that are supported.
fn others() -> String {
    let mut answers: BTreeMap<&str, Value> = BTreeMap::new();
    let mut t = String::from(
        "| recorded by the engines or published | values | supported | median error | 95 % below | largest |\n| --- | --- | --- | --- | --- | --- |\n",
    );
    for (file, about, of) in OTHERS {
        let v = answers.entry(file).or_insert_with(|| {
            let o = tonnage(&[
                "validate",
                &format!("groundtruth/{file}.jsonl"),
                "--format",
                "json",
            ]);
            serde_json::from_slice(&o.stdout)
                .unwrap_or_else(|e| panic!("{file}: {e} {}", stderr(&o)))
        });
        let rows = v["rows"].as_array().unwrap().iter();
        let mine: Vec<&Value> = rows
            .filter(|r| of(r["group"].as_str().unwrap(), r["metric"].as_str().unwrap()))
            .collect();
        assert!(!mine.is_empty(), "{file}: no row is about {about}");
        let supported = mine.iter().filter(|r| r["unsupported"].is_null());
        let mut errors: Vec<f64> = supported
            .map(|r| r["error_pct"].as_f64().unwrap_or(f64::INFINITY))
            .collect();
        errors.sort_by(f64::total_cmp);
        let at = |p: f64| match errors.len() {
            0 => "-".to_string(),
            n => percent(errors[((n as f64 * p).ceil() as usize).clamp(1, n) - 1]),
        };
        t += &format!(
            "| {about} | {} | {} | {} | {} | {} |\n",
            mine.len(),
            errors.len(),
            at(0.5),
            at(0.95),
            at(1.0)
        );
    }
    t
}

fn percent(e: f64) -> String {
    match e {
        0.0 => "0 %".into(),
        e if e < 0.01 => "< 0.01 %".into(),
        e if e < 10.0 => format!("{e:.2} %"),
        e => format!("{e:.0} %"),
    }
}

/// The third table: speeds, on rows that the fit of the efficiencies had not seen (a test of tonnage-plan holds the file against the fit).
fn speeds() -> String {
    let mut t = String::from(
        "| speed, published (rows left out of the fit) | values | median error | 95 % below |\n| --- | --- | --- | --- |\n",
    );
    for s in &tonnage_plan::time::Fitted::builtin().spreads {
        t += &format!(
            "| {} | {} | {} | {} |\n",
            s.task,
            s.rows,
            percent(s.median_pct),
            percent(s.p95_pct)
        );
    }
    t
}

#[test]
fn the_accuracy_table_is_what_validate_says() {
    let path = root().join("README.md");
    let old = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = old
        .split_once("<!-- accuracy -->\n")
        .expect("the table's beginning");
    let (_, after) = rest.split_once("<!-- end -->").expect("the table's end");
    let new = format!(
        "{before}<!-- accuracy -->\n{}\n{}\n{}<!-- end -->{after}",
        accuracy(),
        others(),
        speeds(),
    );
    same(&path, &old, &new);
}
