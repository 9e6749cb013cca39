//! The inputs from which fuzzing starts (fuzz/README.md): read, or refused with a line.

use std::path::Path;
use tonnage_sim::alloc::AllocatorConfig;
use tonnage_trace::{Trace, again, raw};

fn inputs(target: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let mut all: Vec<(String, String)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| {
            let e = e.unwrap();
            let name = e.file_name().to_string_lossy().into_owned();
            (name, std::fs::read_to_string(e.path()).unwrap())
        })
        .collect();
    all.sort();
    all
}

#[test]
fn trace_files() {
    let mut refused = Vec::new();
    for (name, text) in inputs("trace_file") {
        match Trace::parse(&text) {
            Ok(t) => {
                let _ = again::replay(&t, &AllocatorConfig::default(), None);
                assert_eq!(Trace::parse(&t.write()).unwrap().events, t.events, "{name}");
            }
            Err(e) => refused.push(format!("{name}: {e}")),
        }
    }
    assert_eq!(
        refused,
        ["large: line 1: 18446744073709551615 bytes: with those before more than any device has"]
    );
}

#[test]
fn recordings() {
    let mut ended = Vec::new();
    for (name, text) in inputs("recording") {
        let t = raw::parse(&text, "").unwrap();
        let _ = again::replay(&t, &AllocatorConfig::default(), None);
        ended.push(format!("{name} {}", t.header.ended));
    }
    assert_eq!(ended, ["broken partial", "resumed exit", "start exit"]);
}
