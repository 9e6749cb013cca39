//! A recording of a small training loop (`crates/tonnage/tests/scripts/plain.py`, torch 2.11), and the project's recorded traces.

use flate2::read::GzDecoder;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use tonnage_core::footprint::Component;
use tonnage_core::verdict::Device;
use tonnage_sim::alloc::{AllocatorConfig, Capacity};
use tonnage_trace::diff::{Side, diff};
use tonnage_trace::scale::{ScaleError, scale};
use tonnage_trace::{Event, Trace, again, footprint, raw};

fn unpacked(path: &Path) -> String {
    let mut text = String::new();
    let file = std::fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    GzDecoder::new(file).read_to_string(&mut text).unwrap();
    text
}

fn recording() -> String {
    unpacked(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/plain.raw.gz"))
}

fn plain() -> Trace {
    raw::parse(&recording(), "/home/me").unwrap()
}

fn groundtruth(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../groundtruth")
        .join(name)
}

fn card(id: &str) -> Device {
    Device::of(tonnage_catalog::gpu(id).unwrap()).unwrap()
}

#[test]
fn events_give_the_frameworks_own_peaks() {
    let t = plain();
    assert_eq!(raw::figures(&t), t.header.peaks);
    assert_eq!(t.header.peaks.allocated, 135_411_200);
    assert_eq!(t.header.peaks.reserved, 186_646_528);
    assert_eq!(t.header.ended, "exit");
    // and our allocator agrees with every block
    let run = again::replay(&t, &AllocatorConfig::default(), None);
    assert_eq!(run.peak, t.header.peaks);
    assert_eq!(run.end, t.header.end);
    assert_eq!(run.blocks_differ, 0);
}

#[test]
fn blocks_are_what_they_are() {
    let t = plain();
    let f = footprint::footprint(&t, &card("a100-sxm4-80gb"));
    let sum: u64 = f
        .components
        .iter()
        .filter(|l| l.level == "allocated")
        .map(|l| l.bytes)
        .sum();
    assert_eq!(sum, f.peak.allocated.expected);
    assert_eq!(
        f.modules.iter().map(|m| m.bytes).sum::<u64>(),
        f.peak.allocated.expected
    );
    let all: u64 = f.components.iter().map(|l| l.bytes).sum();
    assert_eq!(all, f.peak.device.expected);
    // 3,131,856 fp32 parameters, and two moments of each with a step counter of 512 bytes on the host
    assert_eq!(
        f.component(Component::Parameters),
        t.header.model.param_bytes
    );
    // two moments of each; a block that was not cut to size is a little larger
    let states = f.component(Component::OptimizerState);
    let two = 2 * t.header.model.param_bytes;
    assert!((two..two + (1 << 20)).contains(&states), "{states}");
    assert_eq!(f.instant.phase, "backward");
    // logits: 8 x 128 x 2000 fp32
    let logits = f
        .tensors
        .iter()
        .find(|x| x.component == Component::LogitsAndLoss && x.bytes_each >= 8_192_000)
        .expect("the logits are among the tensors");
    assert!(
        logits.source.starts_with("plain.py:"),
        "{:?}",
        logits.source
    );
    // both threads' workspaces
    assert_eq!(
        f.component(Component::Workspaces),
        2 * (8_519_680 + (1 << 20)) - (1 << 20)
    );
    for p in ["load", "forward", "backward", "clip", "optimizer"] {
        assert!(f.phases.iter().any(|x| x.phase == p), "{p}");
    }
}

#[test]
fn a_trace_file_is_read_as_it_was_written() {
    let t = plain();
    let text = t.write();
    let u = Trace::parse(&text).unwrap();
    assert_eq!(u.events.len(), t.events.len());
    assert_eq!(u.header, t.header);
    assert_eq!(u.components, t.components);
    assert_eq!(u.names, t.names);
    assert_eq!(u.write(), text);
    let old = text.replacen("tonnage.trace/1", "tonnage.trace/9", 1);
    assert!(
        Trace::parse(&old)
            .unwrap_err()
            .to_string()
            .contains("tonnage.trace/9")
    );
    assert!(Trace::parse("").is_err());
    assert!(Trace::parse("{\"e\":\"f\",\"id\":3}\n").is_err());
    assert!(Trace::parse("{\"e\":\"a\",\"id\":99999999999,\"req\":1}\n").is_err());
}

#[test]
fn a_recording_that_breaks_off_is_read_up_to_there() {
    let text = recording();
    let half = &text[..text.len() / 2];
    let cut = &half[..half.len() - 3];
    let t = raw::parse(cut, "").unwrap();
    assert_eq!(t.header.ended, "partial");
    assert!(raw::figures(&t).allocated > 0);
    // a broken line in the middle is no end
    let bad = text.replacen("[\"a\",", "[\"a\"", 1);
    assert!(raw::parse(&bad, "").is_err());
    assert!(raw::parse("{\"schema\":\"other\"}\n", "").is_err());
}

#[test]
fn the_recorded_traces_replay_to_their_records() {
    let mut seen = 0;
    for line in std::fs::read_to_string(groundtruth("torch-trace-dev.jsonl"))
        .unwrap()
        .lines()
    {
        let r: serde_json::Value = serde_json::from_str(line).unwrap();
        let id = r["id"].as_str().unwrap();
        let path = groundtruth(&format!("traces/{id}.jsonl.gz"));
        if !path.exists() {
            continue;
        }
        seen += 1;
        let t = Trace::parse(&unpacked(&path)).unwrap();
        let run = again::replay(&t, &AllocatorConfig::default(), None);
        assert_eq!(run.blocks_differ, 0, "{id}");
        let figure = |k: &str| r["annotated"][k].as_u64().unwrap();
        assert_eq!(run.peak.allocated, figure("peak_allocated_bytes"), "{id}");
        assert_eq!(run.peak.reserved, figure("peak_reserved_bytes"), "{id}");
        assert_eq!(run.peak.requested, figure("peak_requested_bytes"), "{id}");
    }
    assert_eq!(seen, 11);
}

#[test]
fn a_smaller_card_refuses_where_it_is_full() {
    let t = plain();
    let room = |free| Capacity {
        total: 4 << 30,
        free,
    };
    let config = AllocatorConfig::default();
    let fits = again::replay(&t, &config, Some(room(186_646_528)));
    assert!(fits.failed.is_none() && fits.retries == 0);
    let less = again::replay(&t, &config, Some(room(120 << 20)));
    let (event, oom) = less.failed.expect("120 MiB are too few");
    assert!(matches!(t.events[event], Event::Alloc { .. }));
    assert!(less.peak.reserved <= 120 << 20 && oom.free < 20 << 20);
    // growing segments waste less
    let grown = AllocatorConfig {
        expandable_segments: true,
        ..config
    };
    let e = again::replay(&t, &grown, None);
    // blocks are cut to size there
    assert_eq!(e.peak.requested, t.header.peaks.requested);
    assert!(e.peak.allocated < 135_411_200 && e.peak.reserved < 186_646_528);
}

/// The recording with every request of the forward and backward pass `f` times as large.
fn grown(t: &Trace, f: u64) -> Trace {
    let mut u = t.clone();
    for e in &mut u.events {
        if let Event::Alloc {
            requested, place, ..
        } = e
            && ["forward", "backward"].contains(&t.places[*place as usize].phase.as_str())
        {
            *requested = *requested * f + 100;
        }
    }
    u
}

#[test]
fn scaling_continues_every_request() {
    let t = plain();
    let config = AllocatorConfig::default();
    let (one, two, three) = (grown(&t, 1), grown(&t, 2), grown(&t, 3));
    let truth = again::replay(&grown(&t, 7), &config, None).peak;
    let s = scale(&[(1, &one), (2, &two)], 7, &config).unwrap();
    assert_eq!(s.peak, truth, "a line is continued exactly");
    assert!(s.check.is_none() && s.parted.is_none());
    let s = scale(&[(3, &three), (1, &one), (2, &two)], 7, &config).unwrap();
    assert_eq!(s.peak, truth);
    let check = s.check.unwrap();
    assert_eq!((check.at, check.bent), (2, 0));
    assert_eq!(check.by_line, check.recorded);
    // what grows with the square is continued as a parabola, and the error of a line is said
    let (a, b, c) = (grown(&t, 1), grown(&t, 4), grown(&t, 9));
    let s = scale(&[(1, &a), (2, &b), (3, &c)], 4, &config).unwrap();
    assert_eq!(s.peak, again::replay(&grown(&t, 16), &config, None).peak);
    assert!(s.check.unwrap().bent > 0);
}

#[test]
fn scaling_says_where_recordings_part() {
    let t = plain();
    let config = AllocatorConfig::default();
    let mut other = grown(&t, 2);
    let last = other.events.len() - 1;
    other.events.truncate(last);
    let s = scale(&[(1, &t), (2, &other)], 4, &config).unwrap();
    assert!(s.trace.is_none());
    assert!(matches!(s.parted, Some(ScaleError::Different(1, 2, ..))));
    assert!(s.peak.allocated > 135_411_200);
    assert_eq!(
        scale(&[(1, &t)], 4, &config).unwrap_err(),
        ScaleError::Count(1)
    );
    assert_eq!(
        scale(&[(1, &t), (1, &t)], 4, &config).unwrap_err(),
        ScaleError::Same(1)
    );
}

/// The smallest recording went another way (a kernel with other temporaries): the two others are continued, and it checks them.
#[test]
fn scaling_leaves_out_a_recording_that_parts() {
    let t = plain();
    let config = AllocatorConfig::default();
    let mut first = grown(&t, 1);
    let last = first.events.len() - 1;
    first.events.truncate(last);
    let (two, three) = (grown(&t, 2), grown(&t, 3));
    let runs = [(1, &first), (2, &two), (3, &three)];
    let s = scale(&runs, 7, &config).unwrap();
    assert_eq!(
        s.peak,
        again::replay(&grown(&t, 7), &config, None).peak,
        "request by request"
    );
    assert!(s.trace.is_some());
    assert!(matches!(s.parted, Some(ScaleError::Different(1, 2, ..))));
    let check = s.check.unwrap();
    assert_eq!(check.at, 1);
    assert_eq!(
        check.recorded,
        again::replay(&first, &config, None).peak,
        "what the third really was"
    );
    // below the middle the two that are nearest part
    let s = scale(&runs, 1, &config).unwrap();
    assert!(s.trace.is_none() && s.parted.is_some());
}

#[test]
fn a_difference_is_found_where_it_is() {
    let t = plain();
    let device = card("a100-sxm4-80gb");
    let f = footprint::footprint(&t, &device);
    let (a, b) = (Side::of(&f), Side::of(&f));
    let same = diff(&a, &b);
    assert!(same.components.is_empty() && same.modules.is_empty());
    assert!(same.levels.iter().all(|r| r.difference == 0));
    // through JSON it is the same side
    let text = serde_json::to_string(&f).unwrap();
    let read = Side::read(&text).unwrap();
    assert_eq!(
        (&read.components, &read.modules),
        (&a.components, &a.modules)
    );
    let mut less = a.clone();
    *less.components.get_mut("gradients").unwrap() -= 512;
    let key = less
        .modules
        .keys()
        .find(|k| k.1 == "gradients")
        .unwrap()
        .clone();
    *less.modules.get_mut(&key).unwrap() -= 512;
    let d = diff(&less, &a);
    assert_eq!(d.components.len(), 1);
    assert_eq!(
        (d.components[0].what.as_str(), d.components[0].difference),
        ("gradients", -512)
    );
    assert_eq!(d.modules[0].what, key.0);
    assert!(Side::read("{\"schema\":\"tonnage.serving/1\"}").is_err());
}

#[test]
fn components_of_a_recorded_run_are_those_of_its_breakdown() {
    // the same words for the same blocks as the record of the run has
    let id = "pose-108-plain-fp32-adamw_foreach-b8-s150";
    let t = Trace::parse(&unpacked(&groundtruth(&format!("traces/{id}.jsonl.gz")))).unwrap();
    let f = footprint::footprint(&t, &card("a100-sxm4-80gb"));
    let text = std::fs::read_to_string(groundtruth("torch-trace-dev.jsonl")).unwrap();
    let record: serde_json::Value = text
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap())
        .find(|r| r["id"] == id)
        .unwrap();
    let mut wanted: BTreeMap<&str, u64> = BTreeMap::new();
    for (k, v) in record["annotated"]["breakdown_at_peak"]
        .as_object()
        .unwrap()
    {
        let name = tonnage_trace::trace::component_of(k).name();
        *wanted.entry(name).or_default() += v.as_u64().unwrap();
    }
    let got: BTreeMap<&str, u64> = f
        .components
        .iter()
        .filter(|l| l.level == "allocated")
        .map(|l| (l.component.name(), l.bytes))
        .collect();
    assert_eq!(got, wanted);
}
