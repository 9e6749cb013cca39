//! Compares the simulator with recorded runs while working on an operator or an architecture.
//!
//! `trace_diff RECORDS.jsonl ID TRACE.jsonl.gz [plain] [key=value ...]` prints where the simulated events part from the trace;
//! `trace_diff RECORDS.jsonl FILTER` prints one line of figures for every record whose id contains FILTER.

use serde_json::Value;
use std::io::Read;
use tonnage_core::validate::torch_run;
use tonnage_sim::context::Accumulate;
use tonnage_sim::{EventKind, OpId};

fn main() {
    let a: Vec<String> = std::env::args().collect();
    let text = std::fs::read_to_string(&a[1]).expect("records");
    let records = text
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).expect("a record"));
    if a.len() == 3 {
        let (mut n, mut exact, mut ok) = (0, 0, 0);
        for r in records.filter(|r| r["id"].as_str().is_some_and(|i| i.contains(&a[2]))) {
            let rows = torch_run::rows(&r);
            let mut line = format!("{:75}", r["id"].as_str().unwrap_or(""));
            n += 1;
            if let Some(w) = rows.first().and_then(|x| x.unsupported.clone()) {
                println!("{line} UNSUPPORTED {w}");
                continue;
            }
            ok += 1;
            for x in &rows {
                if x.error_pct > 0.0 {
                    line += &match (x.measured.as_i64(), x.predicted.as_i64()) {
                        (Some(m), Some(p)) => {
                            format!(" {}{:+} ({:.3}%)", x.metric, p - m, x.error_pct)
                        }
                        _ => format!(" {} {} not {}", x.metric, x.predicted, x.measured),
                    };
                }
            }
            if rows.iter().all(|x| x.error_pct == 0.0) {
                exact += 1;
                line += " exact";
            }
            println!("{line}");
        }
        println!("{n} records, {ok} supported, {exact} exact in every metric");
        return;
    }
    let mut r = records
        .into_iter()
        .find(|r| r["id"] == a[2])
        .expect("no such id");
    let mut gz = flate2::read::GzDecoder::new(std::fs::File::open(&a[3]).expect("trace"));
    let mut s = String::new();
    gz.read_to_string(&mut s).expect("trace text");
    let mut plain = false;
    for kv in &a[4..] {
        match kv.split_once('=') {
            None => plain = true,
            Some((k, v)) => {
                let mut d = &mut r["config"];
                for part in k.trim_start_matches("config.").split('.') {
                    d = &mut d[part];
                }
                *d = serde_json::from_str(v).unwrap_or(Value::String(v.into()));
            }
        }
    }
    let mut spec = torch_run::spec(&r).expect("spec");
    // under inference mode composite operators run untraced, by the real in-place rule
    if !plain && spec.work == tonnage_core::spec::Work::Train {
        spec.accumulate = Accumulate::OutOfPlace;
    }
    let sim = tonnage_core::simulate(&spec).expect("simulation");
    let trace: Vec<Value> = s
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).expect("an event"))
        .filter(|t| t["ph"] != "end" && t["e"] != "segment_released")
        .collect();
    // what an emptied cache gives back is the allocator's affair, not an event of the simulation
    let events: Vec<_> = sim
        .timeline
        .events
        .iter()
        .filter(|e| e.kind() != EventKind::EmptyCache)
        .copied()
        .collect();
    let describe = |t: &Value| {
        if t["e"] == "a" {
            format!(
                "alloc {} {} B  {} {} {} {} {}",
                t["id"], t["req"], t["ph"], t["op"], t["mod"], t["nd"], t["cat"]
            )
        } else {
            format!("free {} {} {} {}", t["id"], t["ph"], t["op"], t["mod"])
        }
    };
    let ours = |i: usize| match events.get(i) {
        None => "end".to_string(),
        Some(e) => {
            let op = OpId((e.owner & 0xfff) as u16).name();
            let module = sim
                .modules
                .get((e.owner >> 12) as usize)
                .map_or("", |m| m.as_str());
            match e.kind() {
                EventKind::Alloc { id } => format!("alloc {id} {} B  {op} {module}", e.bytes),
                EventKind::Free { id } => format!("free {id} ({} B)", e.bytes),
                EventKind::EmptyCache => "empty_cache".into(),
            }
        }
    };
    let same = |i: usize| {
        let (Some(e), Some(t)) = (events.get(i), trace.get(i)) else {
            return false;
        };
        match e.kind() {
            EventKind::Alloc { id } => t["e"] == "a" && t["id"] == id && t["req"] == e.bytes,
            EventKind::Free { id } => t["e"] == "f" && t["id"] == id,
            EventKind::EmptyCache => t["e"] == "segment_released",
        }
    };
    println!(
        "{} simulated events, {} in the trace",
        events.len(),
        trace.len()
    );
    let n = events.len();
    // frees in a row leave the same allocator behind in any order (torch drops its autocast cache in hash order)
    let sorted = |ids: Vec<(bool, u64, u64)>| {
        let mut v = ids;
        let mut i = 0;
        while i < v.len() {
            let mut j = i;
            while j < v.len() && v[j].0 {
                j += 1;
            }
            v[i..j].sort_unstable();
            i = j.max(i + 1);
        }
        v
    };
    let ours_list = sorted(
        events
            .iter()
            .map(|e| match e.kind() {
                EventKind::Alloc { id } => (false, id as u64, e.bytes),
                EventKind::Free { id } => (true, id as u64, 0),
                EventKind::EmptyCache => (false, u64::MAX, 0),
            })
            .collect(),
    );
    let theirs = sorted(
        trace
            .iter()
            .map(|t| match t["e"].as_str() {
                Some("a") => (
                    false,
                    t["id"].as_u64().unwrap_or(0),
                    t["req"].as_u64().unwrap_or(0),
                ),
                Some("f") => (true, t["id"].as_u64().unwrap_or(0), 0),
                _ => (false, u64::MAX, 0),
            })
            .collect(),
    );
    let beyond = ours_list.iter().zip(&theirs).position(|(a, b)| a != b);
    match beyond {
        None if ours_list.len() == theirs.len() => {
            println!("equal but for the order of consecutive frees")
        }
        None => println!("equal as far as the shorter goes"),
        Some(k) => println!("first difference beyond the order of consecutive frees: {k}"),
    }
    // show what matters: the order of frees only where nothing else differs
    match beyond.or_else(|| (0..n).find(|i| !same(*i))) {
        None => println!("all {n} identical"),
        Some(k) => {
            println!("first difference at event {k}");
            for (i, theirs) in trace
                .iter()
                .enumerate()
                .take(k + 24)
                .skip(k.saturating_sub(8))
            {
                println!(
                    "{} {:6} sim: {:60} | trace: {}",
                    if same(i) { ' ' } else { '*' },
                    i,
                    ours(i),
                    describe(theirs)
                );
            }
        }
    }
    let f = torch_run::figures(&sim.timeline);
    println!(
        "peaks: allocated {} reserved {} requested {}",
        f.peak_allocated, f.peak_reserved, f.peak_requested
    );
    println!(
        "traced: {} {}",
        r["annotated"]["peak_allocated_bytes"], r["annotated"]["peak_reserved_bytes"]
    );
}
