//! Reading the recordings in `groundtruth/`.
#![allow(dead_code)]

use flate2::read::GzDecoder;
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use tonnage_sim::timeline::Event;

/// The project's `groundtruth/` folder.
pub fn groundtruth(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../groundtruth")
        .join(file)
}

/// Lines of a file, gzipped if its name says so, as JSON.
pub fn json_lines(file: &str) -> Vec<Value> {
    let path = groundtruth(file);
    let f = File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let read: Box<dyn BufRead> = if file.ends_with(".gz") {
        Box::new(BufReader::new(GzDecoder::new(f)))
    } else {
        Box::new(BufReader::new(f))
    };
    read.lines()
        .map(|l| serde_json::from_str(&l.unwrap()).unwrap())
        .collect()
}

/// A recorded job as events.
pub struct Trace {
    pub events: Vec<Event>,
    /// For every event: the block bytes of an allocation, else 0.
    pub blocks: Vec<u64>,
    /// Event index of each `empty_cache`, and the bytes of the segments that went back there, in order.
    pub released: Vec<(usize, Vec<u64>)>,
}

/// Reads `groundtruth/traces/<id>.jsonl.gz`. One `empty_cache` event stands for a run of `segment_released` lines.
pub fn trace(id: &str) -> Trace {
    let mut t = Trace {
        events: Vec::new(),
        blocks: Vec::new(),
        released: Vec::new(),
    };
    let mut bytes = Vec::new();
    let mut in_release = false;
    for line in json_lines(&format!("traces/{id}.jsonl.gz")) {
        let kind = line["e"].as_str().unwrap();
        if kind == "segment_released" {
            if !in_release {
                t.released.push((t.events.len(), Vec::new()));
                t.events.push(Event::empty_cache());
                t.blocks.push(0);
            }
            t.released
                .last_mut()
                .unwrap()
                .1
                .push(line["bytes"].as_u64().unwrap());
        } else {
            let id = line["id"].as_u64().unwrap() as u32;
            if kind == "a" {
                assert_eq!(id as usize, bytes.len());
                bytes.push(line["req"].as_u64().unwrap());
                t.events.push(Event::alloc(id, bytes[id as usize], 0));
                t.blocks.push(line["blk"].as_u64().unwrap());
            } else {
                t.events.push(Event::free(id, bytes[id as usize]));
                t.blocks.push(0);
            }
        }
        in_release = kind == "segment_released";
    }
    t
}
