//! What a recording says: peaks at three levels against the prediction, the gap explained, growth, fragmentation, out of memory.

use serde::Serialize;
use serde_json::Value;
use std::fmt::Write as _;
use tonnage_explain::leak::{Series, Verdict};
use tonnage_explain::oom::Scanner;
use tonnage_explain::oom::log::Log;
use tonnage_host::record::{Point, Recording};
use tonnage_report::Style;
use tonnage_units::Bytes;

/// The summary's version.
pub const SCHEMA: &str = "tonnage.run/1";

/// A level: measured and predicted bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Level {
    pub measured_bytes: Option<u64>,
    /// How it was measured.
    pub source: &'static str,
    pub predicted_bytes: Option<u64>,
    pub predicted_low_bytes: Option<u64>,
    pub predicted_high_bytes: Option<u64>,
}

/// One device of a run.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceSummary {
    pub number: usize,
    pub name: String,
    pub source: String,
    pub total_bytes: Option<u64>,
    /// Everything on the device, at its highest.
    pub peak_used_bytes: Option<u64>,
    pub least_free_bytes: Option<u64>,
    pub allocated: Level,
    pub reserved: Level,
    pub device: Level,
    /// device - reserved: context and libraries of the run's processes.
    pub context_bytes: Option<u64>,
    pub context_predicted_bytes: Option<u64>,
    /// reserved - allocated, of the peaks: cache and fragmentation.
    pub cache_bytes: Option<u64>,
    /// used - own when own was highest: others on the device.
    pub others_bytes: Option<u64>,
    pub inactive_split_bytes: Option<u64>,
    pub alloc_retries: Option<u64>,
    pub growth: Option<Growth>,
}

/// Growth of a level.
#[derive(Clone, Debug, Serialize)]
pub struct Growth {
    /// allocated, reserved or device
    pub of: &'static str,
    /// step or second
    pub unit: &'static str,
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Steps or seconds until the device is full.
    pub full_in: Option<f64>,
}

/// A run.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub schema: &'static str,
    pub id: i64,
    pub command: Vec<String>,
    pub begun_unix_ms: u64,
    pub seconds: f64,
    pub samples: u64,
    /// Whether the recording has an end.
    pub ended: bool,
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    pub framework: Option<String>,
    pub devices: Vec<DeviceSummary>,
    pub peak_host_resident_bytes: Option<u64>,
    pub out_of_memory: Option<String>,
    pub trouble: Option<String>,
}

fn most(points: &[&Point], get: impl Fn(&Point) -> Option<u64>) -> Option<u64> {
    points.iter().filter_map(|p| get(p)).max()
}

/// Of a job, or of a serving engine (which has one level: what it holds of each device).
fn predicted(p: &Value, level: &str, device: usize) -> [Option<u64>; 3] {
    if level == "device" && p["totals"].is_array() {
        let row = p["totals"].as_array().and_then(|t| {
            t.iter()
                .find(|r| r["device"].as_u64() == Some(device as u64))
        });
        return ["bytes", "low_bytes", "high_bytes"].map(|k| row.and_then(|r| r[k].as_u64()));
    }
    ["expected", "low", "high"].map(|k| p["peak"][level][k].as_u64())
}

fn level(
    p: &Value,
    name: &str,
    device: usize,
    measured: Option<u64>,
    source: &'static str,
) -> Level {
    let [e, l, h] = predicted(p, name, device);
    Level {
        measured_bytes: measured,
        source,
        predicted_bytes: e,
        predicted_low_bytes: l,
        predicted_high_bytes: h,
    }
}

/// Bytes over steps where the process counts them (the highest of each), else over seconds.
fn growth(points: &[&Point], usable: Option<u64>) -> Option<Growth> {
    type Get = fn(&Point) -> Option<u64>;
    let levels: [(&'static str, Get); 3] = [
        ("allocated", |p| p.allocated_bytes),
        ("reserved", |p| p.reserved_bytes),
        ("device", |p| p.own_bytes.or(p.used_bytes)),
    ];
    let (name, get) = levels
        .into_iter()
        .find(|(_, get)| points.iter().filter(|p| get(p).is_some()).count() > 1)?;
    let by_step = points.iter().filter_map(|p| p.step).max() > Some(1);
    let mut s = Series::default();
    if by_step {
        let mut held: Option<(u64, u64)> = None;
        for p in points {
            let (Some(step), Some(b)) = (p.step, get(p)) else {
                continue;
            };
            match &mut held {
                Some((at, most)) if *at == step => *most = b.max(*most),
                h => {
                    if let Some((at, most)) = h.replace((step, b)) {
                        s.push(at as f64, most);
                    }
                }
            }
        }
    } else {
        let begun = points.first()?.at_unix_ms;
        for p in points {
            if let Some(b) = get(p) {
                s.push(p.at_unix_ms.saturating_sub(begun) as f64 / 1000.0, b);
            }
        }
    }
    let verdict = s.verdict();
    Some(Growth {
        of: name,
        unit: if by_step { "step" } else { "second" },
        full_in: usable.and_then(|u| verdict.until_full(u)),
        verdict,
    })
}

/// What a recording says.
pub fn summary(r: &Recording) -> Summary {
    let prediction: Value = r
        .run
        .prediction
        .as_deref()
        .and_then(|p| serde_json::from_str(p).ok())
        .unwrap_or_default();
    let mut devices = Vec::new();
    for (number, d) in r.devices.iter().enumerate() {
        let points: Vec<&Point> = r.of(i64::try_from(number).unwrap_or(i64::MAX)).collect();
        let own = most(&points, |p| p.own_bytes).filter(|b| *b > 0);
        let used = most(&points, |p| p.used_bytes);
        let rise = match (used, d.used_before_bytes) {
            (Some(u), Some(b)) => Some(u.saturating_sub(b)),
            _ => None,
        };
        let told = points.iter().all(|p| p.own_bytes.is_some());
        let reserved = most(&points, |p| p.peak_reserved_bytes.max(p.reserved_bytes));
        let allocated = most(&points, |p| p.peak_allocated_bytes.max(p.allocated_bytes));
        // a device that the run did not touch is not its device
        if own.is_none() && reserved.is_none() && (told || rise.unwrap_or(0) < 64 << 20) {
            continue;
        }
        let (held, source) = match own {
            Some(b) => (Some(b), "processes, by the driver"),
            None => (
                rise,
                "rise of the whole device: the driver does not tell processes",
            ),
        };
        let at_peak = points.iter().max_by_key(|p| p.own_bytes);
        let context = match (own, reserved) {
            (Some(o), Some(r)) => o.checked_sub(r),
            _ => None,
        };
        let expected = |l: &str| prediction["peak"][l]["expected"].as_u64();
        let usable = d
            .total_bytes
            .map(|t| t.saturating_sub(d.reserved_bytes.unwrap_or(0)));
        devices.push(DeviceSummary {
            number,
            name: d.name.clone(),
            source: d.source.clone(),
            total_bytes: d.total_bytes,
            peak_used_bytes: used,
            least_free_bytes: points.iter().filter_map(|p| p.free_bytes).min(),
            allocated: level(
                &prediction,
                "allocated",
                devices.len(),
                allocated,
                "published by the process",
            ),
            reserved: level(
                &prediction,
                "reserved",
                devices.len(),
                reserved,
                "published by the process",
            ),
            device: level(&prediction, "device", devices.len(), held, source),
            context_bytes: context,
            context_predicted_bytes: match (expected("device"), expected("reserved")) {
                (Some(d), Some(r)) => d.checked_sub(r),
                _ => None,
            },
            cache_bytes: match (reserved, allocated) {
                (Some(r), Some(a)) => r.checked_sub(a),
                _ => None,
            },
            others_bytes: at_peak.and_then(|p| p.used_bytes?.checked_sub(p.own_bytes?)),
            inactive_split_bytes: most(&points, |p| p.inactive_split_bytes),
            alloc_retries: most(&points, |p| p.alloc_retries),
            growth: growth(&points, usable),
        });
    }
    let last = r
        .run
        .ended_unix_ms
        .or_else(|| r.points.last().map(|p| p.at_unix_ms))
        .unwrap_or(r.run.begun_unix_ms);
    Summary {
        schema: SCHEMA,
        id: r.run.id,
        command: r.run.command.clone(),
        begun_unix_ms: r.run.begun_unix_ms,
        seconds: last.saturating_sub(r.run.begun_unix_ms) as f64 / 1000.0,
        samples: r.run.samples,
        ended: r.run.ended_unix_ms.is_some(),
        exit_code: r.run.exit_code,
        signal: r.run.signal,
        framework: r.run.framework.clone(),
        devices,
        peak_host_resident_bytes: r.points.iter().filter_map(|p| p.host_resident_bytes).max(),
        out_of_memory: r.run.out_of_memory.clone(),
        trouble: r.run.trouble.clone(),
    }
}

fn compared(l: &Level, s: &Style) -> String {
    let amount = |b: u64| Bytes(b).display(s.units).to_string();
    match (l.measured_bytes, l.predicted_bytes) {
        (Some(m), Some(p)) => {
            let pct = 100.0 * (p as f64 - m as f64) / (m.max(1)) as f64;
            let range = match (l.predicted_low_bytes, l.predicted_high_bytes) {
                (Some(a), Some(b)) if a != b => format!(" ({} to {})", amount(a), amount(b)),
                _ => String::new(),
            };
            format!(
                "measured {}, predicted {}{range}: {pct:+.1} %",
                amount(m),
                amount(p)
            )
        }
        (Some(m), None) => format!("measured {}", amount(m)),
        (None, Some(p)) => format!("not measured, predicted {}", amount(p)),
        (None, None) => "not measured".into(),
    }
}

/// As text.
pub fn text(s: &Summary, style: &Style) -> String {
    let amount = |b: u64| Bytes(b).display(style.units).to_string();
    let mut t = String::new();
    let end = match (s.exit_code, s.signal) {
        (Some(c), _) => format!("ended with status {c}"),
        (_, Some(n)) => format!("ended by signal {n}"),
        _ if s.ended => "ended".into(),
        _ => "no end is recorded (it goes on, or the recorder was ended)".into(),
    };
    let _ = writeln!(
        t,
        "run {}: {end}, {:.1} s, {} sample{}: {}",
        s.id,
        s.seconds,
        s.samples,
        if s.samples == 1 { "" } else { "s" },
        s.command.join(" ")
    );
    for d in &s.devices {
        let _ = writeln!(t, "GPU {} {}  [{}]", d.number, d.name, d.source);
        let _ = writeln!(t, "  allocated  {}", compared(&d.allocated, style));
        let _ = writeln!(t, "  reserved   {}", compared(&d.reserved, style));
        let _ = writeln!(
            t,
            "  device     {}  ({})",
            compared(&d.device, style),
            d.device.source
        );
        let mut gap = Vec::new();
        if let Some(c) = d.cache_bytes {
            gap.push(format!("reserved - allocated: {} of cache", amount(c)));
        }
        if let Some(c) = d.context_bytes {
            let p = d
                .context_predicted_bytes
                .map_or(String::new(), |p| format!(" (predicted {})", amount(p)));
            gap.push(format!(
                "device - reserved: {} of context and libraries{p}",
                amount(c)
            ));
        }
        if let Some(o) = d.others_bytes {
            gap.push(format!("others on the device: {}", amount(o)));
        }
        if d.allocated.measured_bytes.is_none() {
            gap.push("allocated and reserved are known where the process publishes them (docs/observe.md)".into());
        }
        if !gap.is_empty() {
            let _ = writeln!(t, "  the gap    {}", gap.join("; "));
        }
        if let Some(f) = d.least_free_bytes {
            let _ = writeln!(t, "  least free {}", amount(f));
        }
        if let Some(b) = d.inactive_split_bytes {
            let n = d.alloc_retries.unwrap_or(0);
            let _ = writeln!(
                t,
                "  fragments  up to {} in free pieces of blocks in use; the cache was given back {n} time{}",
                amount(b),
                if n == 1 { "" } else { "s" }
            );
        }
        if let Some(g) = &d.growth {
            let mut line = format!("  growth     {}: {}", g.of, g.verdict.sentence(g.unit));
            if let Some(f) = g.full_in {
                let _ = write!(line, "; full in {f:.0} {}s", g.unit);
            }
            let _ = writeln!(t, "{line}");
        }
    }
    if s.devices.is_empty() {
        t.push_str("no device was used by it\n");
    }
    if let Some(h) = s.peak_host_resident_bytes {
        let _ = writeln!(t, "host memory: {} resident at the peak", amount(h));
    }
    if let Some(x) = &s.trouble {
        let _ = writeln!(t, "trouble: {x}");
    }
    if let Some(x) = &s.out_of_memory {
        let mut scanner = Scanner::default();
        scanner.feed(x.as_bytes());
        scanner.feed(b"\n");
        let log = Log::of("its errors", &scanner.finish());
        t.push_str("\nWhy it ran out of memory:\n");
        t.push_str(&tonnage_report::oom::log(&log, style));
    }
    t
}
