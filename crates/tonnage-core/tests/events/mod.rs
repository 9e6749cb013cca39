//! Comparisons with recorded runs that several test programs share.
#![allow(dead_code)]

use serde_json::Value;
use std::io::Read;
use std::path::PathBuf;
use tonnage_core::spec::Work;
use tonnage_core::validate::torch_run;
use tonnage_core::{Simulated, simulate};
use tonnage_sim::EventKind;
use tonnage_sim::context::Accumulate;

pub fn groundtruth(name: &str) -> PathBuf {
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

/// What an emptied cache gives back depends on the allocator.
#[derive(Clone, Copy, PartialEq)]
pub enum EmptyCache {
    /// Neither side may have one.
    Never,
    LeftOut,
}

/// The simulation against a recorded trace, up to the end of the job: kind, number and bytes of every event.
pub fn compare(sim: &Simulated, id: &str, trace: &str, empty: EmptyCache) {
    let ours = sim.timeline.events.iter().filter_map(|e| match e.kind() {
        EventKind::Alloc { id } => Some((false, u64::from(id), e.bytes)),
        EventKind::Free { id } => Some((true, u64::from(id), 0)),
        EventKind::EmptyCache if empty == EmptyCache::LeftOut => None,
        EventKind::EmptyCache => panic!("{id}: the cache is emptied"),
    });
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(groundtruth(trace)).unwrap())
        .read_to_string(&mut text)
        .unwrap();
    let theirs = text
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap())
        .filter(|t| t["ph"] != "end")
        .filter_map(|t| {
            let n = t["id"].as_u64();
            match t["e"].as_str() {
                Some("a") => Some((false, n.unwrap(), t["req"].as_u64().unwrap())),
                Some("f") => Some((true, n.unwrap(), 0)),
                _ if empty == EmptyCache::LeftOut => None,
                e => panic!("{id}: unexpected event {e:?}"),
            }
        });
    let (ours, theirs) = (settle(ours.collect()), settle(theirs.collect()));
    if let Some(k) = (0..ours.len().min(theirs.len())).find(|k| ours[*k] != theirs[*k]) {
        panic!("{id}: event {k} is {:?}, recorded {:?}", ours[k], theirs[k]);
    }
    assert_eq!(ours.len(), theirs.len(), "{id}: number of events");
}

/// Every event of a recorded trace, from a simulation of the record with these fields changed; `rule` in place of the record's own.
pub fn identical_by(
    file: &str,
    id: &str,
    trace: &str,
    rule: Option<Accumulate>,
    changes: &[(&str, Value)],
) {
    let mut record = records(file).into_iter().find(|r| r["id"] == id).unwrap();
    for (field, value) in changes {
        let slot = field
            .split('.')
            .fold(&mut record["config"], |d, part| &mut d[part]);
        *slot = value.clone();
    }
    let mut spec = torch_run::spec(&record).unwrap();
    if let Some(rule) = rule {
        spec.accumulate = rule;
    }
    compare(&simulate(&spec).unwrap(), id, trace, EmptyCache::Never);
}

/// [`identical_by`] for an observed run: gradients are added out of place.
pub fn identical(file: &str, id: &str, trace: &str, changes: &[(&str, Value)]) {
    let record = records(file).into_iter().find(|r| r["id"] == id).unwrap();
    // under inference mode composite operators run untraced, by the real in-place rule
    let trains = torch_run::spec(&record).unwrap().work == Work::Train;
    identical_by(
        file,
        id,
        trace,
        trains.then_some(Accumulate::OutOfPlace),
        changes,
    );
}

/// A record of ours that no observer disturbed and the trace of the same name.
pub fn unobserved(record: &Value) {
    let id = record["id"].as_str().unwrap();
    let sim = simulate(&torch_run::spec(record).unwrap()).unwrap();
    compare(&sim, id, &own_trace(id), EmptyCache::LeftOut);
}

/// Where the trace of a record of ours lies, if it has one.
pub fn own_trace(id: &str) -> String {
    format!("traces-own/{id}.jsonl.gz")
}

/// Every figure of these records.
pub fn exact_rows(records: &[Value]) {
    for r in records {
        let id = &r["id"];
        for row in torch_run::rows(r) {
            assert_eq!(row.unsupported, None, "{id} {}", row.metric);
            assert_eq!(
                row.error_pct, 0.0,
                "{id} {}: {} recorded, {} predicted",
                row.metric, row.measured, row.predicted
            );
        }
    }
}

/// Every figure of every record whose id starts so.
pub fn exact(file: &str, prefix: &str, count: usize) {
    let mut mine = records(file);
    mine.retain(|r| r["id"].as_str().is_some_and(|id| id.starts_with(prefix)));
    exact_rows(&mine);
    assert_eq!(mine.len(), count, "records whose id starts with {prefix}");
}

/// [`identical`] for a record of ours and the trace of the same name.
pub fn own(id: &str) {
    identical(OWN, id, &own_trace(id), &[]);
}

pub const OWN: &str = "torch-trace-own.jsonl";
