//! K27: a stored snapshot gives the same peak as the tool that wrote it. The snapshots and PyTorch's own statistics of the same moments are
//! made by `data/snapshot/make.py`.

use flate2::read::GzDecoder;
use serde_json::Value;
use std::io::Read;
use tonnage_explain::snapshot::diff::Diff;
use tonnage_explain::snapshot::history::{History, Level};
use tonnage_explain::snapshot::report::{Report, listed};
use tonnage_explain::snapshot::{
    Category, Limits, Snapshot, SnapshotError, json, pickle, profiler, replay,
};
use tonnage_sim::alloc::AllocatorConfig;

fn unpacked(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/data/snapshot/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut out = Vec::new();
    GzDecoder::new(std::fs::File::open(path).unwrap())
        .read_to_end(&mut out)
        .unwrap();
    out
}

fn snapshot(name: &str) -> Snapshot {
    pickle::read(&unpacked(name)[..], Limits::default()).unwrap()
}

fn statistics() -> Value {
    serde_json::from_str(include_str!("data/snapshot/plain.stats.json")).unwrap()
}

/// PyTorch's own: `torch.cuda.memory_stats()`.
fn level(stats: &Value, which: &str) -> Level {
    let of = |k: &str| stats[format!("{k}_bytes.all.{which}")].as_u64().unwrap();
    Level {
        allocated_bytes: of("allocated"),
        reserved_bytes: of("reserved"),
        requested_bytes: of("requested"),
    }
}

#[test]
fn k27_the_peak_is_pytorchs_own() {
    let stats = statistics();
    for (file, key) in [("plain-a.p4.pickle.gz", "a"), ("plain-b.p4.pickle.gz", "b")] {
        let s = snapshot(file);
        let r = Report::of(file, &s, 20);
        let d = &r.devices[0];
        assert!(d.complete && d.verified, "{file}");
        assert_eq!(d.peak, level(&stats[key], "peak"), "{file}");
        assert_eq!(d.end, level(&stats[key], "current"), "{file}");
        assert_eq!(d.at_peak.allocated_bytes, d.peak.allocated_bytes);
        // every byte of the peak has a category
        let sum: u64 = d.categories_at_peak.iter().map(|c| c.bytes).sum();
        assert_eq!(sum, d.peak.allocated_bytes);
        // and every stack's bytes are of one category
        for c in &d.categories_at_peak {
            let stacks = d.stacks_at_peak.iter().filter(|k| k.category == c.category);
            let (bytes, blocks) = stacks.fold((0, 0), |n, k| (n.0 + k.bytes, n.1 + k.blocks));
            assert_eq!((bytes, blocks), (c.bytes, c.blocks), "{file} {c:?}");
        }
        let f = &d.fragmentation;
        assert_eq!(
            f.free_bytes + f.allocated_bytes + f.pending_bytes,
            f.reserved_bytes
        );
        let inactive = stats[key]["inactive_split_bytes.all.current"]
            .as_u64()
            .unwrap();
        assert_eq!(f.free_bytes - f.releasable_bytes, inactive);
        let active = stats[key]["active_bytes.all.current"].as_u64().unwrap();
        assert_eq!(f.allocated_bytes + f.pending_bytes, active);
        let top = d
            .timeline
            .iter()
            .map(|t| (t.1, t.2))
            .fold((0, 0), |a, b| (a.0.max(b.0), a.1.max(b.1)));
        assert_eq!(top, (d.peak.allocated_bytes, d.peak.reserved_bytes));
    }
}

#[test]
fn k27_the_categories_are_the_tensors_own() {
    let s = snapshot("plain-b.p4.pickle.gz");
    let blocks = listed(&s, 0);
    let r = Report::of("b", &s, 20);
    let stats = statistics();
    for (key, category) in [
        ("parameters", Category::Parameters),
        ("optimizer_state", Category::OptimizerState),
        ("other", Category::Other),
    ] {
        let mut own = 0;
        for a in stats["addresses"][key].as_array().unwrap() {
            own += blocks
                .iter()
                .find(|b| Some(b.address) == a.as_u64())
                .unwrap()
                .size;
        }
        let ours = r.devices[0]
            .categories_at_end
            .iter()
            .find(|c| c.category == category)
            .unwrap()
            .bytes;
        // of the step's own code also its input and its loss are alive: small ones
        let slack = if key == "other" { 1 << 20 } else { 0 };
        assert!(
            own > 0 && ours >= own && ours - own <= slack,
            "{key}: {ours}, the tensors {own}"
        );
    }
}

#[test]
fn k27_protocols_and_json_say_the_same() {
    let of = |s: &Snapshot| serde_json::to_value(&Report::of("x", s, 50).devices).unwrap();
    let first = snapshot("plain-b.p4.pickle.gz");
    let expected = of(&first);
    for p in ["p2", "p3", "p5"] {
        let s = snapshot(&format!("plain-b.{p}.pickle.gz"));
        assert_eq!(of(&s), expected, "{p}");
        // stacks are shared by the memo
        assert_eq!(s.stacks.len(), first.stacks.len());
    }
    let s = json::read(&unpacked("plain-b.json.gz")[..], Limits::default()).unwrap();
    assert_eq!(of(&s), expected);
    assert_eq!(s.settings, first.settings);
    assert!(!s.settings.is_empty());
}

#[test]
fn k27_what_leaks_between_two_snapshots() {
    let (a, b) = (
        snapshot("plain-a.p4.pickle.gz"),
        snapshot("plain-b.p4.pickle.gz"),
    );
    let d = Diff::of(("a", "b"), &a, &b);
    let first = &d.candidates[0];
    assert!(first.likely);
    // three steps kept 3 MiB each
    assert_eq!(first.growth(), 9 << 20);
    assert_eq!((first.blocks_before, first.blocks_after), (2, 5));
    assert!(
        first.frames[0].contains("train.py") && first.frames[0].ends_with(" step"),
        "{:?}",
        first.frames
    );
    assert_eq!(d.allocated_after - d.allocated_before, 9 << 20);
    assert!(Diff::of(("b", "b"), &b, &b).candidates.is_empty());
}

#[test]
fn k27_the_requests_through_our_allocator() {
    let s = snapshot("plain-b.p4.pickle.gz");
    let stats = statistics();
    let same = replay::replay(&s, 0, "", &AllocatorConfig::default(), None);
    assert_eq!(same.peak, level(&stats["b"], "peak"));
    assert_eq!(same.end, level(&stats["b"], "current"));
    let conf = "expandable_segments:True";
    let other = replay::replay(&s, 0, conf, &AllocatorConfig::parse(conf).unwrap(), None);
    assert_eq!(other.peak.requested_bytes, same.peak.requested_bytes);
    assert!(other.peak.reserved_bytes >= other.peak.allocated_bytes);
    assert_ne!(other.peak.reserved_bytes, same.peak.reserved_bytes);
}

#[test]
fn k27_a_ring_that_lost_its_beginning() {
    // as if the ring had kept only the last part: what is alive is still what the snapshot lists
    let mut s = snapshot("plain-b.p4.pickle.gz");
    let whole = s.traces[0].clone();
    let full = History::of(&s, 0);
    let end = full.end;
    for cut in [whole.len() / 4, whole.len() / 2, whole.len() * 9 / 10] {
        s.traces[0] = whole.start + cut..whole.end;
        let h = History::of(&s, 0);
        assert!(!h.complete);
        assert_eq!(h.end.reserved_bytes, end.reserved_bytes, "{cut}");
        assert_eq!(h.end.allocated_bytes, end.allocated_bytes, "{cut}");
        assert!(h.verified, "{cut}");
    }
}

#[test]
fn k27_nothing_of_a_file_is_run() {
    // cos\nsystem(S'...'tR.
    let evil: [&[u8]; 4] = [
        b"cos\nsystem\n(U\x02ls\x85R.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R.",
        b"\x80\x02}q\x00(U\x08segmentsq\x01cbuiltins\neval\nU\x011\x85Ru.",
        b"\x80\x04c__main__\nX\n)\x81.",
    ];
    for e in evil {
        let r = pickle::read(e, Limits::default());
        assert!(matches!(r, Err(SnapshotError::Code(..))), "{r:?}");
    }
    // PyTorch's own C++ writer tags its types; the tag is known and nothing is called
    let tagged = b"\x80\x02ctorch.jit._pickle\nrestore_type_tag\n(}(X\x08\x00\x00\x00segments]X\x0d\x00\x00\x00device_traces]uX\x01\x00\x00\x00TtR.";
    assert!(pickle::read(&tagged[..], Limits::default()).is_ok());
}

#[test]
fn k27_broken_files_are_errors_and_limits_hold() {
    let good = unpacked("plain-a.p4.pickle.gz");
    for n in (0..good.len()).step_by(997) {
        assert!(pickle::read(&good[..n], Limits::default()).is_err());
    }
    let mut seed = 1u64;
    for _ in 0..300 {
        let mut bad = good.clone();
        for _ in 0..8 {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let i = (seed >> 33) as usize % bad.len();
            bad[i] = (seed >> 24) as u8;
        }
        if let Ok(s) = pickle::read(&bad[..], Limits::default()) {
            let _ = Report::of("x", &s, 5);
            let _ = Diff::of(("x", "x"), &s, &s);
            let _ = replay::replay(&s, 0, "", &AllocatorConfig::default(), None);
        }
    }
    let small = Limits {
        objects: 100,
        ..Limits::default()
    };
    assert!(matches!(
        pickle::read(&good[..], small),
        Err(SnapshotError::Limit(100, "objects"))
    ));
    // a text that claims to be larger than anything
    let huge = b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc";
    assert!(pickle::read(&huge[..], Limits::default()).is_err());
    assert!(matches!(
        pickle::read(&b"\x80\x04}."[..], Limits::default()),
        Err(SnapshotError::NotASnapshot(_))
    ));
}

#[test]
fn k27_memory_of_pytorchs_profiler() {
    let of = |n: &str| {
        let v: Value = serde_json::from_slice(&unpacked(n)).unwrap();
        profiler::read(n, &v).unwrap()
    };
    let (t, raw, chrome) = (
        of("timeline.json.gz"),
        of("timeline.raw.json.gz"),
        of("chrome.json.gz"),
    );
    // the sum of the profiler's own categories
    assert_eq!(
        (t.format, t.points, t.peak_bytes),
        ("memory_timeline", 266, 661532)
    );
    assert_eq!(t.at_peak.iter().map(|c| c.1).sum::<u64>(), t.peak_bytes);
    let json: Value = serde_json::from_slice(&unpacked("timeline.json.gz")).unwrap();
    let row = |r: &Value| {
        r.as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    let rows: Vec<Vec<u64>> = json[1].as_array().unwrap().iter().map(row).collect();
    let top = rows
        .iter()
        .rev()
        .max_by_key(|r| r.iter().sum::<u64>())
        .unwrap();
    let of_category = |n: &str| t.at_peak.iter().find(|c| c.0 == n).map_or(0, |c| c.1);
    for (i, name) in profiler::CATEGORIES.iter().enumerate() {
        assert_eq!(of_category(name), top[i + 1], "{name}");
    }
    assert_eq!(raw.format, "memory_timeline_raw");
    assert!(
        raw.peak_bytes >= t.peak_bytes,
        "{} {}",
        raw.peak_bytes,
        t.peak_bytes
    );
    assert_eq!(raw.end_bytes, t.end_bytes);
    assert_eq!(chrome.points, 228);
    assert!(chrome.peak_bytes > 0);
    assert!(profiler::read("x", &serde_json::json!({"a": 1})).is_err());
}
