//! Comparisons with recorded runs that several test programs share.
#![allow(dead_code)]

use serde_json::Value;
use std::io::Read;
use std::path::PathBuf;
use tonnage_core::validate::torch_run;
use tonnage_sim::EventKind;
use tonnage_sim::context::Accumulate;

fn groundtruth(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../groundtruth")
        .join(name)
}

pub fn records(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(groundtruth(file)).unwrap();
    text.lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

/// Number of an allocation with its bytes, or of a free.
type Entry = (bool, u64, u64);

/// Frees that follow each other leave the same allocator behind in any order.
fn settle(mut v: Vec<Entry>) -> Vec<Entry> {
    for run in v.chunk_by_mut(|a, b| a.0 && b.0) {
        run.sort_unstable();
    }
    v
}

/// Every event of a recorded trace (up to the end of the job), from a simulation of the record with these fields changed.
pub fn identical(file: &str, id: &str, trace: &str, changes: &[(&str, Value)]) {
    let mut record = records(file).into_iter().find(|r| r["id"] == id).unwrap();
    for (field, value) in changes {
        let slot = field
            .split('.')
            .fold(&mut record["config"], |d, part| &mut d[part]);
        *slot = value.clone();
    }
    let mut spec = torch_run::spec(&record).unwrap();
    // under inference mode composite operators run untraced, by the real in-place rule
    if spec.work == tonnage_core::spec::Work::Train {
        spec.accumulate = Accumulate::OutOfPlace;
    }
    let sim = tonnage_core::simulate(&spec).unwrap();
    let ours = settle(
        sim.timeline
            .events
            .iter()
            .map(|e| match e.kind() {
                EventKind::Alloc { id } => (false, u64::from(id), e.bytes),
                EventKind::Free { id } => (true, u64::from(id), 0),
                EventKind::EmptyCache => (false, u64::MAX, 0),
            })
            .collect(),
    );
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(groundtruth(trace)).unwrap())
        .read_to_string(&mut text)
        .unwrap();
    let theirs = settle(
        text.lines()
            .map(|l| serde_json::from_str::<Value>(l).unwrap())
            .filter(|t| t["ph"] != "end")
            .map(|t| {
                let n = t["id"].as_u64().unwrap();
                match t["e"].as_str().unwrap() {
                    "a" => (false, n, t["req"].as_u64().unwrap()),
                    "f" => (true, n, 0),
                    e => panic!("unexpected event {e}"),
                }
            })
            .collect(),
    );
    if let Some(k) = (0..ours.len().min(theirs.len())).find(|k| ours[*k] != theirs[*k]) {
        panic!("{id}: event {k} is {:?}, recorded {:?}", ours[k], theirs[k]);
    }
    assert_eq!(ours.len(), theirs.len(), "{id}: number of events");
}

/// Every figure of every record whose id starts so.
pub fn exact(file: &str, prefix: &str, count: usize) {
    let mut seen = 0;
    for r in records(file) {
        let id = r["id"].as_str().unwrap();
        if !id.starts_with(prefix) {
            continue;
        }
        seen += 1;
        for row in torch_run::rows(&r) {
            assert_eq!(row.unsupported, None, "{id} {}", row.metric);
            assert_eq!(
                row.error_pct, 0.0,
                "{id} {}: {} recorded, {} predicted",
                row.metric, row.measured, row.predicted
            );
        }
    }
    assert_eq!(seen, count, "records whose id starts with {prefix}");
}

/// [`identical`] for a record of ours and the trace of the same name.
pub fn own(id: &str) {
    identical(OWN, id, &format!("traces-own/{id}.jsonl.gz"), &[]);
}

pub const OWN: &str = "torch-trace-own.jsonl";
