//! The recorded jobs through the allocator: every block, every released segment, every peak.

mod common;

use common::{json_lines, trace};
use tonnage_sim::alloc::{AllocatorConfig, CachingAllocator, Peaks, replay};
use tonnage_sim::timeline::EventKind;

#[test]
fn every_trace_gives_its_blocks_and_peaks() {
    let mut seen = 0;
    for record in json_lines("torch-trace-dev.jsonl") {
        let id = record["id"].as_str().unwrap();
        if !common::groundtruth(&format!("traces/{id}.jsonl.gz")).exists() {
            continue;
        }
        seen += 1;
        let t = trace(id);
        let mut alloc = CachingAllocator::new(AllocatorConfig::default(), None);
        for (i, e) in t.events.iter().enumerate() {
            match e.kind() {
                EventKind::Alloc { id: n } => {
                    assert_eq!(
                        alloc.malloc(n, e.bytes).unwrap(),
                        t.blocks[i],
                        "{id}: event {i}, {} bytes",
                        e.bytes
                    );
                }
                EventKind::Free { id: n } => assert!(alloc.free(n).is_some(), "{id}: event {i}"),
                EventKind::EmptyCache => {
                    let mut before: Vec<u64> =
                        alloc.map().segments.iter().map(|s| s.bytes).collect();
                    alloc.empty_cache();
                    for s in alloc.map().segments {
                        let at = before.iter().position(|&b| b == s.bytes).unwrap();
                        before.remove(at);
                    }
                    let mut released = t.released.iter().find(|r| r.0 == i).unwrap().1.clone();
                    released.sort();
                    before.sort();
                    assert_eq!(before, released, "{id}: segments released at event {i}");
                }
            }
        }

        let whole = replay(
            &t.events,
            &[],
            &mut CachingAllocator::new(AllocatorConfig::default(), None),
        )
        .unwrap();
        let figure = |name: &str| record["annotated"][name].as_u64().unwrap();
        assert_eq!(
            whole.peaks,
            Peaks {
                allocated: figure("peak_allocated_bytes"),
                reserved: figure("peak_reserved_bytes"),
                requested: figure("peak_requested_bytes"),
            },
            "{id}"
        );
        assert_eq!(whole.end.allocated, alloc.stats().allocated.current);
    }
    assert_eq!(seen, 11);
}

#[test]
fn windows_add_up_to_the_whole() {
    let t = trace("pose-108-plain-fp32-adamw_foreach-b8-s150");
    let mut alloc = CachingAllocator::new(AllocatorConfig::default(), None);
    let whole = replay(&t.events, &[], &mut alloc).unwrap();
    let marks = [0, 500, 500, 4000, t.events.len()];
    alloc.reset();
    let parts = replay(&t.events, &marks, &mut alloc).unwrap();
    assert_eq!((parts.peaks, parts.end), (whole.peaks, whole.end));
    assert_eq!(parts.per_mark.len(), marks.len());
    assert_eq!(
        parts.per_mark.iter().map(|p| p.allocated).max(),
        Some(whole.peaks.allocated)
    );
    assert_eq!(
        parts.per_mark[1], parts.at_mark[1],
        "an empty window has the level at its mark"
    );
    assert_eq!(parts.at_mark[0], Peaks::default());
    assert_eq!(alloc.stats().allocated.peak, whole.peaks.allocated);
    // the window from 500 to 4000, by hand
    let mut by_hand = CachingAllocator::new(AllocatorConfig::default(), None);
    replay(&t.events[..500], &[], &mut by_hand).unwrap();
    by_hand.reset_peaks();
    for e in &t.events[500..4000] {
        match e.kind() {
            EventKind::Alloc { id } => drop(by_hand.malloc(id, e.bytes).unwrap()),
            EventKind::Free { id } => drop(by_hand.free(id)),
            EventKind::EmptyCache => by_hand.empty_cache(),
        }
    }
    assert_eq!(by_hand.stats().reserved.peak, parts.per_mark[2].reserved);
    assert_eq!(by_hand.stats().requested.peak, parts.per_mark[2].requested);
}
