//! Real PyTorch on the null device. TONNAGE_TEST_PYTHON names a Python with a CUDA build of torch, transformers, peft, accelerate and
//! bitsandbytes (`.ci/run` makes one); without it these tests say so and end. What needs no torch is tested always.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
// makes cargo build the library that is preloaded
use tonnage_null as _;

const BIN: &str = env!("CARGO_BIN_EXE_tonnage");

fn here(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn script(name: &str) -> String {
    here("tests/scripts").join(name).display().to_string()
}

/// The Python to test with; where there is none, a loud line.
fn python(test: &str) -> Option<String> {
    let found = std::env::var("TONNAGE_TEST_PYTHON")
        .ok()
        .filter(|p| !p.is_empty());
    if found.is_none() {
        assert!(
            std::env::var_os("TONNAGE_TEST_TORCH_REQUIRED").is_none(),
            "TONNAGE_TEST_PYTHON is not set, and these tests are required"
        );
        eprintln!(
            "\n!!! {test} DID NOT RUN: set TONNAGE_TEST_PYTHON to a Python with a CUDA build of torch !!!\n"
        );
    }
    found
}

fn tonnage(args: &[&str]) -> Output {
    Command::new(BIN)
        .args(args)
        .env("OMP_NUM_THREADS", "1")
        .output()
        .expect("the program runs")
}

fn out(o: &Output) -> String {
    String::from_utf8_lossy(&o.stdout).into_owned()
}

fn err(o: &Output) -> String {
    String::from_utf8_lossy(&o.stderr).into_owned()
}

fn json(o: &Output) -> Value {
    serde_json::from_str(&out(o)).unwrap_or_else(|e| panic!("{e}: {}\n{}", out(o), err(o)))
}

fn records(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(here("../../groundtruth").join(file)).unwrap();
    text.lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

fn record(file: &str, id: &str) -> Value {
    records(file).into_iter().find(|r| r["id"] == id).unwrap()
}

/// Our allocator, given the trace, has every block and all peaks.
fn replays(trace: &Path) {
    let o = tonnage(&["replay", trace.to_str().unwrap(), "--format", "json"]);
    let v = json(&o);
    assert_eq!(v["peak"], v["recorded_peak"], "{}", trace.display());
    assert_eq!(v["blocks_that_differ"], 0, "{}", trace.display());
}

/// A job of the records, performed again on the null device: every figure is the record's.
fn measured(test: &str, file: &str, id: &str) {
    let Some(p) = python(test) else { return };
    let dir = tempfile::tempdir().unwrap();
    let (to, trace) = (dir.path().join("m.jsonl"), dir.path().join("t.jsonl.gz"));
    let from = here("../../groundtruth").join(file);
    let o = tonnage(&[
        "measure",
        "--null",
        from.to_str().unwrap(),
        "--id",
        id,
        "--python",
        &p,
        "--out",
        to.to_str().unwrap(),
        "--save",
        trace.to_str().unwrap(),
    ]);
    assert!(o.status.success(), "{id}: {}", err(&o));
    let text = std::fs::read_to_string(&to).unwrap();
    let got: Value = serde_json::from_str(text.trim()).unwrap();
    let want = record(file, id);
    for k in [
        "peak_allocated_bytes",
        "peak_reserved_bytes",
        "peak_requested_bytes",
        "load_peak_allocated_bytes",
        "param_count",
        "trainable_count",
        "param_bytes",
        "buffer_bytes",
        "peak_at",
    ] {
        assert_eq!(got[k], want[k], "{id}: {k}");
    }
    replays(&trace);
}

#[test]
fn trainer_full() {
    measured("trainer_full", "dry-run.jsonl", "llama-tiny-trainer-full");
}

#[test]
fn trainer_lora() {
    measured("trainer_lora", "dry-run.jsonl", "llama-tiny-trainer-lora");
}

#[test]
fn bitsandbytes_qlora() {
    measured(
        "bitsandbytes_qlora",
        "dry-run.jsonl",
        "llama-tiny-trainer-qlora",
    );
}

#[test]
fn a_recorded_gpt() {
    measured(
        "a_recorded_gpt",
        "torch-trace-dev.jsonl",
        "agi2-6x384-plain-fp32-adamw_foreach-b8-s512",
    );
}

#[test]
fn a_plain_loop() {
    let Some(p) = python("a_plain_loop") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("t.jsonl.gz");
    let o = tonnage(&[
        "dry-run",
        "--gpu",
        "a100-sxm4-80gb",
        "--format",
        "json",
        "--save",
        trace.to_str().unwrap(),
        "--",
        &p,
        &script("plain.py"),
        "--fail",
    ]);
    assert_eq!(
        o.status.code(),
        Some(7),
        "the script's own status: {}",
        err(&o)
    );
    let (f, want) = (json(&o), record("dry-run.jsonl", "plain"));
    assert_eq!(
        f["peak"]["allocated"]["expected"],
        want["peak_allocated_bytes"]
    );
    assert_eq!(
        f["peak"]["reserved"]["expected"],
        want["peak_reserved_bytes"]
    );
    let sum: u64 = f["components"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l["bytes"].as_u64().unwrap())
        .sum();
    assert_eq!(Some(sum), f["peak"]["device"]["expected"].as_u64());
    let lines = f["tensors"].as_array().unwrap().iter();
    assert!(
        lines
            .filter_map(|t| t["source"].as_str())
            .any(|s| s.contains("plain.py:")),
        "the user's own lines"
    );
    assert!(
        !f["notes"].to_string().contains("figures-differ"),
        "the events are torch's own figures"
    );
    replays(&trace);
}

#[test]
fn a_full_card() {
    let Some(p) = python("a_full_card") else {
        return;
    };
    let gpu = "rtx-3060-12gb";
    let o = tonnage(&["dry-run", "--gpu", gpu, "--", &p, &script("oom.py")]);
    assert_eq!(o.status.code(), Some(1));
    let (text, error) = (out(&o), err(&o));
    let card = tonnage_core::verdict::Device::of(tonnage_catalog::gpu(gpu).unwrap()).unwrap();
    let total = card.usable.expected;
    let (_, outside, _) = card.outside();
    let room = total - outside;
    let block = 256u64 << 20;
    let free = room - room / block * block;
    let size = tonnage_sim::alloc::format_size;
    let says = format!(
        "Tried to allocate 256.00 MiB. GPU 0 has a total capacity of {} of which {} is free.",
        size(total),
        size(free)
    );
    assert!(error.contains(&says), "{says}\n{error}");
    assert!(text.starts_with("oom.py does not fit on"), "{text}");
    assert!(text.contains("oom.py:6"), "the line that asked: {text}");
    let o = tonnage(&[
        "dry-run",
        "--gpu",
        gpu,
        "--verdict-exit",
        "--",
        &p,
        &script("oom.py"),
    ]);
    assert_eq!(o.status.code(), Some(1));
}

#[test]
fn two_ranks_of_a_sharded_job() {
    let Some(p) = python("two_ranks_of_a_sharded_job") else {
        return;
    };
    let o = tonnage(&[
        "dry-run",
        "--gpu",
        "a100-sxm4-80gb",
        "--gpu-count",
        "2",
        "--format",
        "json",
        "--",
        &p,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        &script("fsdp.py"),
    ]);
    assert!(o.status.success(), "{}", err(&o));
    let (v, want) = (json(&o), record("dry-run.jsonl", "fsdp-2"));
    let runs = v["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    for r in runs {
        let peak = &r["footprint"]["peak"];
        assert_eq!(peak["allocated"]["expected"], want["peak_allocated_bytes"]);
        assert_eq!(peak["reserved"]["expected"], want["peak_reserved_bytes"]);
    }
}

#[test]
fn one_rank_of_many() {
    let Some(p) = python("one_rank_of_many") else {
        return;
    };
    let o = tonnage(&[
        "dry-run",
        "--world",
        "64",
        "--rank",
        "5",
        "--format",
        "json",
        "--",
        &p,
        &script("fsdp.py"),
    ]);
    assert!(o.status.success(), "{}", err(&o));
    let f = json(&o);
    let two = record("dry-run.jsonl", "fsdp-2");
    let peak = f["peak"]["allocated"]["expected"].as_u64().unwrap();
    assert!(
        peak < two["peak_allocated_bytes"].as_u64().unwrap(),
        "{peak}"
    );
    assert!(f["job"].as_str().unwrap().contains("rank 5 of 64"));
}

#[test]
fn what_cannot_run_is_refused_in_a_sentence() {
    let o = tonnage(&["dry-run", "--", "vllm", "serve", "org/model"]);
    assert_eq!(o.status.code(), Some(4));
    assert!(err(&o).contains("tonnage estimate"), "{}", err(&o));
    let o = tonnage(&["dry-run", "--gpu", "no-such-card", "--", "python3", "x.py"]);
    assert_eq!(o.status.code(), Some(2));
    let o = tonnage(&["dry-run", "--set", "batch=2", "--", "python3", "x.py"]);
    assert_eq!(o.status.code(), Some(2));
    assert!(err(&o).contains("{batch}"), "{}", err(&o));
    let o = tonnage(&["dry-run", "--", "/no/such/command"]);
    assert_ne!(o.status.code(), Some(0));
    let o = tonnage(&["replay", "/no/such/trace"]);
    assert_eq!(o.status.code(), Some(3));
}

#[test]
fn the_script_of_a_job_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let keep = dir.path().join("job.py");
    let o = tonnage(&[
        "measure",
        "--model",
        "gpt2",
        "--seq-len",
        "128",
        "--lora-targets",
        "c_attn",
        "--lora-r",
        "8",
        "--keep",
        keep.to_str().unwrap(),
        "--no-run",
    ]);
    assert!(o.status.success(), "{}", err(&o));
    let text = std::fs::read_to_string(&keep).unwrap();
    assert!(
        text.contains("get_peft_model(") && text.contains("\"batch\": 1"),
        "{text}"
    );
    let o = tonnage(&[
        "measure",
        "--model",
        "gpt2",
        "--seq-len",
        "128",
        "--loss",
        "chunked",
        "--keep",
        keep.to_str().unwrap(),
        "--no-run",
    ]);
    assert_eq!(o.status.code(), Some(4), "{}", err(&o));
}
