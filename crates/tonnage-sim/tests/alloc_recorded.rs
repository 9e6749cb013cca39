//! Recordings of the real allocator under its settings (`groundtruth/alloc/README.md`): every address, total and refusal.

mod common;

use common::json_lines;
use serde_json::Value;
use tonnage_sim::alloc::{
    AllocatorConfig, BlockState, CachingAllocator, Capacity, MessageContext, Pool,
};

fn allocator(r: &Value) -> CachingAllocator {
    let mut config = AllocatorConfig::parse(r["conf"].as_str().unwrap()).unwrap();
    if let Some(f) = r["fraction"].as_f64() {
        config.per_process_memory_fraction = f;
    }
    let total = r["total"].as_u64().unwrap();
    CachingAllocator::new(
        config,
        Some(Capacity {
            total,
            free: r["limit"].as_u64().unwrap_or(total),
        }),
    )
}

#[test]
fn every_recording_is_reproduced() {
    let recordings = json_lines("alloc/recorded.jsonl.gz");
    assert_eq!(recordings.len(), 22);
    let (mut refused, mut retried) = (0, 0);
    for r in &recordings {
        let case = r["case"].as_str().unwrap();
        let mut alloc = allocator(r);
        let mut base = None;
        let mut messages = r["ooms"].as_array().unwrap().iter();
        for (i, op) in r["ops"].as_array().unwrap().iter().enumerate() {
            let n = |k: usize| op[k].as_u64().unwrap();
            let totals = match op[0].as_str().unwrap() {
                "a" => {
                    let id = n(1) as u32;
                    match alloc.malloc(id, n(2)) {
                        Ok(_) => {
                            let at = alloc.block_of(id).unwrap().0;
                            let base = *base.get_or_insert(at);
                            assert_eq!(
                                Some(at.wrapping_sub(base) as i64),
                                op[3].as_i64(),
                                "{case}: address, operation {i}"
                            );
                        }
                        Err(oom) => {
                            assert!(op[3].is_null(), "{case}: operation {i} refused: {oom:?}");
                            let mut text = messages.next().unwrap().as_str().unwrap().to_owned();
                            let mut ours = oom.message(&MessageContext::default());
                            if r["limit"].is_null() {
                                // "free" is what the device reports, which knows more than the allocator here: leave it out
                                text = without_free(&text);
                                ours = without_free(&ours);
                            }
                            assert_eq!(ours, text, "{case}: operation {i}");
                            refused += 1;
                        }
                    }
                    4
                }
                "f" => {
                    assert!(alloc.free(n(1) as u32).is_some(), "{case}: operation {i}");
                    2
                }
                _ => {
                    alloc.empty_cache();
                    1
                }
            };
            let s = alloc.stats();
            assert_eq!(
                (s.allocated.current, s.reserved.current),
                (n(totals), n(totals + 1)),
                "{case}: totals after operation {i}"
            );
        }
        assert_eq!(messages.next(), None, "{case}");
        retried += alloc.stats().num_alloc_retries;
        check_stats(case, &alloc, &r["stats"]);
        check_map(case, &alloc, &r["segments"], base.unwrap());
    }
    assert!(
        refused >= 60 && retried >= 70,
        "{refused} refused, {retried} retried"
    );
}

fn without_free(text: &str) -> String {
    let (a, b) = text.split_once(" of which ").unwrap();
    format!("{a}{}", b.split_once(" is free").unwrap().1)
}

fn check_stats(case: &str, alloc: &CachingAllocator, recorded: &Value) {
    let n = |k: &str| recorded[k].as_u64().unwrap();
    let s = alloc.stats();
    for (name, ours) in [
        ("allocated_bytes.all", s.allocated),
        ("reserved_bytes.all", s.reserved),
        ("requested_bytes.all", s.requested),
        ("active_bytes.all", s.active()),
        ("segment.all", s.segments),
        ("oversize_allocations", s.oversize_allocations),
        ("oversize_segments", s.oversize_segments),
    ] {
        assert_eq!(
            ours.current,
            n(&format!("{name}.current")),
            "{case}: {name}.current"
        );
        assert_eq!(ours.peak, n(&format!("{name}.peak")), "{case}: {name}.peak");
    }
    assert_eq!(
        s.num_alloc_retries,
        n("num_alloc_retries"),
        "{case}: retries"
    );
    assert_eq!(s.num_ooms, n("num_ooms"), "{case}: ooms");
    assert_eq!(
        s.num_device_alloc,
        n("num_device_alloc"),
        "{case}: device allocations"
    );
    assert_eq!(
        s.num_device_free,
        n("num_device_free"),
        "{case}: device frees"
    );
    let f = alloc.fragmentation();
    assert_eq!(
        f.inactive_split,
        n("inactive_split_bytes.all.current"),
        "{case}: inactive split bytes"
    );
    assert_eq!(
        f.inactive_split_blocks,
        n("inactive_split.all.current"),
        "{case}: inactive split blocks"
    );
    assert_eq!(f.free + f.allocated, f.reserved, "{case}");
}

fn check_map(case: &str, alloc: &CachingAllocator, recorded: &Value, base: u64) {
    let ours: Vec<Value> = alloc
        .map()
        .segments
        .iter()
        .map(|s| {
            let blocks: Vec<Value> = s
                .blocks
                .iter()
                .map(|b| serde_json::json!([b.bytes, b.state != BlockState::Free, b.requested]))
                .collect();
            let pool = if s.pool == Pool::Small {
                "small"
            } else {
                "large"
            };
            serde_json::json!([
                s.address.wrapping_sub(base) as i64,
                s.bytes,
                pool,
                s.expandable,
                blocks
            ])
        })
        .collect();
    let recorded: Vec<Value> = recorded
        .as_array()
        .unwrap()
        .iter()
        .cloned()
        .map(|mut s| {
            // the snapshot keeps the last request's size in free blocks; ours are 0
            for b in s[4].as_array_mut().unwrap() {
                if b[1] == false {
                    b[2] = 0.into();
                }
            }
            s
        })
        .collect();
    assert_eq!(ours, recorded, "{case}: block map at the end");
}

#[test]
fn a_recording_of_one_setting_is_not_that_of_another() {
    // the recordings tell the settings apart: under default settings most of them are not reproduced
    let differ = json_lines("alloc/recorded.jsonl.gz")
        .iter()
        .filter(|r| !r["conf"].as_str().unwrap().is_empty())
        .filter(|r| {
            let mut plain = (*r).clone();
            plain["conf"] = "".into();
            let mut alloc = allocator(&plain);
            r["ops"].as_array().unwrap().iter().any(|op| {
                let n = |k: usize| op[k].as_u64().unwrap_or(0);
                let at = match op[0].as_str().unwrap() {
                    "a" => {
                        let _ = alloc.malloc(n(1) as u32, n(2));
                        4
                    }
                    "f" => {
                        alloc.free(n(1) as u32);
                        2
                    }
                    _ => {
                        alloc.empty_cache();
                        1
                    }
                };
                (
                    alloc.stats().allocated.current,
                    alloc.stats().reserved.current,
                ) != (n(at), n(at + 1))
            })
        })
        .count();
    assert_eq!(differ, 18);
}
