//! What PyTorch's profiler writes of memory: `export_memory_timeline` as JSON (`[times, sizes]`), its raw form (`[[time, action, bytes,
//! category], ...]`), and the `[memory]` events of a Chrome trace. torch/profiler/_memory_profiler.py, _KinetoProfile.

use super::SnapshotError;
use serde::Serialize;
use serde_json::Value;

/// The profiler's categories in its order; the last is what it could not tell.
pub const CATEGORIES: [&str; 8] = [
    "parameter",
    "optimizer_state",
    "input",
    "temporary",
    "activation",
    "gradient",
    "autograd_detail",
    "unknown",
];

/// A timeline: `tonnage.explain/1`, kind `timeline`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Timeline {
    pub schema: &'static str,
    pub kind: &'static str,
    pub source: String,
    /// `memory_timeline`, `memory_timeline_raw` or `chrome_trace`.
    pub format: &'static str,
    pub points: u64,
    pub peak_bytes: u64,
    pub peak_time_us: i64,
    /// Highest reserved; only a Chrome trace has it.
    pub peak_reserved_bytes: Option<u64>,
    /// By category when most was allocated: (name, bytes).
    pub at_peak: Vec<(&'static str, u64)>,
    pub end_bytes: u64,
    /// (time, allocated), up to 1,500.
    pub timeline: Vec<(i64, u64)>,
}

struct Points<'a> {
    source: &'a str,
    format: &'static str,
    all: Vec<(i64, u64)>,
    peak: (u64, i64),
    reserved: Option<u64>,
    at_peak: Vec<(&'static str, u64)>,
}

impl<'a> Points<'a> {
    fn new(source: &'a str, format: &'static str) -> Points<'a> {
        Points {
            source,
            format,
            all: Vec::new(),
            peak: (0, 0),
            reserved: None,
            at_peak: Vec::new(),
        }
    }

    fn add(&mut self, time: i64, by: &[i64]) {
        let total = by.iter().map(|n| (*n).max(0) as u64).sum();
        if total > self.peak.0 {
            self.peak = (total, time);
            if by.len() == CATEGORIES.len() {
                self.at_peak = CATEGORIES
                    .iter()
                    .zip(by)
                    .filter(|(_, b)| **b > 0)
                    .map(|(c, b)| (*c, *b as u64))
                    .collect();
            }
        }
        self.all.push((time, total));
    }

    fn finish(self) -> Timeline {
        let part = self.all.len().div_ceil(1500).max(1);
        Timeline {
            schema: crate::oom::log::SCHEMA,
            kind: "timeline",
            source: self.source.into(),
            format: self.format,
            points: self.all.len() as u64,
            peak_bytes: self.peak.0,
            peak_time_us: self.peak.1,
            peak_reserved_bytes: self.reserved,
            at_peak: self.at_peak,
            end_bytes: self.all.last().map_or(0, |p| p.1),
            timeline: self
                .all
                .chunks(part)
                .filter_map(|c| c.iter().copied().max_by_key(|p| p.1))
                .collect(),
        }
    }
}

/// Reads any of the three forms.
///
/// # Errors
/// It is none of them.
pub fn read(source: &str, json: &Value) -> Result<Timeline, SnapshotError> {
    let none = || {
        SnapshotError::NotASnapshot(
            "JSON, but neither a memory snapshot nor a memory timeline of PyTorch's profiler",
        )
    };
    if let Some(events) = json.get("traceEvents").and_then(Value::as_array) {
        return chrome(source, events).ok_or_else(none);
    }
    let top = json.as_array().ok_or_else(none)?;
    if let [Value::Array(times), Value::Array(sizes)] = top.as_slice()
        && times.len() == sizes.len()
        && times.iter().all(Value::is_i64)
    {
        let mut p = Points::new(source, "memory_timeline");
        for (t, row) in times.iter().zip(sizes) {
            let row: Vec<i64> = row
                .as_array()
                .ok_or_else(none)?
                .iter()
                .map(|v| v.as_i64().unwrap_or(0))
                .collect();
            // the first column is always 0
            p.add(t.as_i64().unwrap_or(0), row.get(1..).unwrap_or(&[]));
        }
        return Ok(p.finish());
    }
    let mut p = Points::new(source, "memory_timeline_raw");
    let mut now = [0i64; CATEGORIES.len()];
    for e in top {
        let row = e.as_array().filter(|r| r.len() == 4).ok_or_else(none)?;
        let of = |i: usize| row[i].as_i64();
        let (Some(time), Some(action), Some(bytes), Some(category)) = (of(0), of(1), of(2), of(3))
        else {
            return Err(none());
        };
        let c = usize::try_from(category)
            .unwrap_or(usize::MAX)
            .min(CATEGORIES.len() - 1);
        // 1 there before, 2 made, 3 another version (its bytes have a sign), 4 gone
        now[c] += match action {
            4 => -bytes.abs(),
            _ => bytes,
        };
        p.add(time / 1000, &now);
    }
    if p.all.is_empty() {
        return Err(none());
    }
    Ok(p.finish())
}

fn chrome(source: &str, events: &[Value]) -> Option<Timeline> {
    let mut p = Points::new(source, "chrome_trace");
    let memory = || events.iter().filter(|e| e["name"] == "[memory]");
    // the host's only where there is nothing else
    let device = memory().any(|e| e["args"]["Device Type"] != 0);
    let mut all: Vec<(f64, i64, Option<u64>)> = memory()
        .filter(|e| !device || e["args"]["Device Type"] != 0)
        .filter_map(|e| {
            let a = &e["args"];
            let total = a.get("Total Allocated").and_then(Value::as_i64)?;
            Some((
                e["ts"].as_f64()?,
                total,
                a.get("Total Reserved").and_then(Value::as_u64),
            ))
        })
        .collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    for (t, total, reserved) in all {
        p.reserved = p.reserved.max(reserved);
        p.add(t as i64, &[total]);
    }
    (!p.all.is_empty()).then(|| p.finish())
}
