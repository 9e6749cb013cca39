//! Recorded traces through the program: replay, diff, and the schemas of what they print. No torch is needed.

mod dry;
mod standin;

use dry::{here, json, record, tonnage};

const TRACE: &str = "traces/agi2-6x384-plain-fp32-adamw_foreach-b8-s512.jsonl.gz";

fn groundtruth(path: &str) -> String {
    here("../../groundtruth").join(path).display().to_string()
}

/// The job that the trace recorded, with another micro-batch.
fn job(dir: &std::path::Path, batch: u32) -> String {
    let path = dir.join("job.toml");
    let text = format!(
        "[model]\ntype = \"gpt2\"\nconfig = {{ n_layer = 6, n_embd = 384, n_head = 6, n_positions = 512 }}\n\n[train]\nmicro_batch_size = {batch}\nseq_len = 512\nprecision = \"fp32\"\noptimizer = \"adamw_foreach\"\n"
    );
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// Peaks of the trace: what its own events add up to, with segments as our allocator makes them.
fn recorded() -> (u64, u64) {
    let v = json(&tonnage(&[
        "replay",
        &groundtruth(TRACE),
        "--format",
        "json",
    ]));
    let n = |k: &str| v["peak"][k].as_u64().unwrap();
    (n("allocated"), n("reserved"))
}

/// Peaks of the same job without a trace being taken, which adds gradients in place (groundtruth/torch-trace-README.md).
fn peaks() -> (u64, u64) {
    let id = "agi2-6x384-plain-fp32-adamw_foreach-b8-s512";
    let r = record("torch-trace-dev.jsonl", id);
    let n = |k: &str| r[k].as_u64().unwrap();
    (n("peak_allocated_bytes"), n("peak_reserved_bytes"))
}

#[test]
fn diff_tells_levels_components_and_modules() {
    let dir = tempfile::tempdir().unwrap();
    let trace = groundtruth(TRACE);
    // one row less than was recorded
    let job = job(dir.path(), 7);
    let args = ["diff", &job, &trace, "--gpu", "a100-sxm4-80gb"];
    let o = tonnage(&[&args[..], &["--format", "json"]].concat());
    let v = json(&o);
    assert_eq!(o.status.code(), Some(1));
    standin::conforms("diff", &v);
    // a trace without segments: its blocks are played through our allocator
    let level = |k: &str| {
        let rows = v["levels"].as_array().unwrap();
        rows.iter().find(|r| r["what"] == k).unwrap().clone()
    };
    let (allocated, reserved) = recorded();
    assert_eq!(level("allocated")["recorded"], allocated);
    assert_eq!(level("reserved")["recorded"], reserved);
    for part in ["levels", "components", "modules"] {
        for r in v[part].as_array().unwrap() {
            let n = |k: &str| r[k].as_i64().unwrap();
            assert_eq!(n("difference"), n("predicted") - n("recorded"), "{r}");
        }
    }
    // parameters do not depend on the batch, so they are not listed; optimizer states only by blocks that are not split
    let rows = v["components"].as_array().unwrap();
    let listed = |k: &str| rows.iter().find(|r| r["what"] == k);
    assert!(listed("saved_activations").is_some() && listed("parameters").is_none());
    if let Some(r) = listed("optimizer_state") {
        assert!(r["difference"].as_i64().unwrap().abs() < 2 << 20, "{r}");
    }
    let modules = v["modules"].as_array().unwrap();
    assert!(
        modules
            .iter()
            .any(|r| r["what"].as_str().unwrap().contains("mlp")),
        "modules are named: {modules:?}"
    );
    let text = String::from_utf8(tonnage(&args).stdout).unwrap();
    for says in [
        "By component",
        "By module",
        "saved activations",
        "allocated",
    ] {
        assert!(text.contains(says), "{says}: {text}");
    }
    assert!(!text.contains("agree to the byte"));
}

#[test]
fn diff_predicts_the_recorded_job() {
    let dir = tempfile::tempdir().unwrap();
    let (job, trace) = (job(dir.path(), 8), groundtruth(TRACE));
    let o = tonnage(&[
        "diff",
        &job,
        &trace,
        "--gpu",
        "a100-sxm4-80gb",
        "--format",
        "json",
    ]);
    let v = json(&o);
    let (allocated, reserved) = peaks();
    let levels = v["levels"].as_array().unwrap();
    assert_eq!(levels[0]["predicted"], allocated, "{levels:?}");
    assert_eq!(levels[1]["predicted"], reserved, "{levels:?}");
    // only the gradients that a traced run adds out of place
    let part = levels[0]["difference"].as_i64().unwrap().unsigned_abs();
    assert!(part < allocated / 1000, "{part}");
}

#[test]
fn replay_prints_by_its_schema() {
    let trace = groundtruth(TRACE);
    let v = json(&tonnage(&["replay", &trace, "--format", "json"]));
    standin::conforms("replay", &v);
    assert_eq!(v["blocks_that_differ"], 0);
    let o = tonnage(&["replay", &trace, "--gpu", "gtx-1050-ti", "--format", "json"]);
    let v = json(&o);
    assert_eq!(v["fits"], o.status.success());
    standin::conforms("replay", &v);
    let o = tonnage(&[
        "replay",
        &trace,
        "--gpu",
        "gtx-1650",
        "--memory-fraction",
        "0.5",
        "--format",
        "json",
    ]);
    let v = json(&o);
    assert_eq!(o.status.code(), Some(1), "half of 4 GiB cannot hold it");
    standin::conforms("replay", &v);
    assert!(
        v["failed"]["message"]
            .as_str()
            .unwrap()
            .contains("Tried to allocate")
    );
}

#[test]
fn every_schema_is_json_that_names_itself() {
    for name in ["dry-run", "replay", "diff", "measure"] {
        let v = json(&tonnage(&["schema", name]));
        assert_eq!(v["$id"], format!("tonnage.{name}/1"));
        assert_eq!(v["properties"]["schema"]["const"], v["$id"]);
    }
}
