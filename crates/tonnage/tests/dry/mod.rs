//! The program on real PyTorch. TONNAGE_TEST_PYTHON names a Python with a CUDA build of torch; without it tests say so and end.
#![allow(dead_code)] // each test file uses its own part

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
// makes cargo build the library that is preloaded
use tonnage_null as _;

pub const BIN: &str = env!("CARGO_BIN_EXE_tonnage");

pub fn here(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

pub fn script(name: &str) -> String {
    here("tests/scripts").join(name).display().to_string()
}

/// The Python to test with; where there is none, a loud line.
pub fn python(test: &str) -> Option<String> {
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

pub fn tonnage(args: &[&str]) -> Output {
    Command::new(BIN)
        .args(args)
        .env("OMP_NUM_THREADS", "1")
        .output()
        .expect("the program runs")
}

pub fn out(o: &Output) -> String {
    String::from_utf8_lossy(&o.stdout).into_owned()
}

pub fn err(o: &Output) -> String {
    String::from_utf8_lossy(&o.stderr).into_owned()
}

pub fn json(o: &Output) -> Value {
    serde_json::from_str(&out(o)).unwrap_or_else(|e| panic!("{e}: {}\n{}", out(o), err(o)))
}

pub fn records(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(here("../../groundtruth").join(file)).unwrap();
    text.lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

pub fn record(file: &str, id: &str) -> Value {
    records(file).into_iter().find(|r| r["id"] == id).unwrap()
}

/// Our allocator, given the trace, has every block and all peaks.
pub fn replays(trace: &Path) {
    let o = tonnage(&["replay", trace.to_str().unwrap(), "--format", "json"]);
    let v = json(&o);
    assert_eq!(v["peak"], v["recorded_peak"], "{}", trace.display());
    assert_eq!(v["blocks_that_differ"], 0, "{}", trace.display());
}
