//! How far the peaks swing: each uncertain setting alone and all together, and what the device level leaves open.

use super::analysis::Analysis;
use super::build::run;
use super::*;
use crate::doc::{Diagnostic, Value};
use crate::job::{Job, Origin, Uncertain};
use crate::verdict::Device;

pub(super) fn levels(
    f: &mut Footprint,
    here: &Device,
    a: &Analysis,
    low: Option<(u64, u64)>,
    high: Option<(u64, u64)>,
) {
    let (ol, oe, oh) = here.outside();
    let e = (a.peak.allocated, a.peak.reserved);
    let low = low.unwrap_or(e);
    let high = high.unwrap_or(e);
    f.peak = Levels {
        allocated: Range {
            low: low.0.min(e.0),
            expected: e.0,
            high: high.0.max(e.0),
        },
        reserved: Range {
            low: low.1.min(e.1),
            expected: e.1,
            high: high.1.max(e.1),
        },
        device: Range {
            low: low.1.min(e.1) + ol,
            expected: e.1 + oe,
            high: high.1.max(e.1) + oh,
        },
    };
}

pub(super) fn shown(v: &Value) -> String {
    match v {
        Value::Text(t) => t.clone(),
        v => v.shown(),
    }
}

pub(super) fn with(job: &Job, key: &str, value: &Value) -> Result<Job, Vec<Diagnostic>> {
    let mut other = job.clone();
    other
        .set(
            key,
            value.clone(),
            Origin::Inferred("an alternative of an uncertain setting".into()),
        )
        .map_err(|e| vec![Diagnostic::error("bad-value", e)])?;
    Ok(other)
}

fn current(job: &Job, key: &str) -> String {
    if let Some(field) = key.strip_prefix("model.config.") {
        return job
            .model_config()
            .ok()
            .and_then(|(_, c)| c.get(field).map(|v| v.to_string()))
            .unwrap_or_else(|| "?".into());
    }
    job.get(key).map_or_else(|| "absent".into(), |v| shown(&v))
}

type Pair = Option<(u64, u64)>;

/// Each uncertain setting alone, then the lowest values of all together, and the highest.
pub(super) fn swings(job: &Job, here: &Device, a: &Analysis) -> (Vec<Swing>, Pair, Pair) {
    let e = (a.peak.allocated, a.peak.reserved);
    let (mut low_job, mut high_job) = (job.clone(), job.clone());
    let (mut lowers, mut highers) = (0, 0);
    let mut extremes: (Pair, Pair) = (None, None);
    let mut out = Vec::new();
    for Uncertain { key, values, why } in &job.uncertain {
        let mut alternatives = Vec::new();
        let (mut least, mut most) = (e, e);
        let (mut to_low, mut to_high) = (None, None);
        for v in values {
            match with(job, key, v).and_then(|j| run(&j, here)) {
                Ok((_, b)) => {
                    let p = (b.peak.allocated, b.peak.reserved);
                    if p.1 < least.1 {
                        (least, to_low) = (p, Some(v));
                    }
                    if p.1 > most.1 {
                        (most, to_high) = (p, Some(v));
                    }
                    alternatives.push(Alternative {
                        value: shown(v),
                        allocated_bytes: Some(p.0),
                        reserved_bytes: Some(p.1),
                        unsupported: None,
                    });
                }
                Err(d) => alternatives.push(Alternative {
                    value: shown(v),
                    allocated_bytes: None,
                    reserved_bytes: None,
                    unsupported: d.first().map(|d| d.message.clone()),
                }),
            }
        }
        let lean = |target: &mut Job, n: &mut u32, v: Option<&Value>| {
            if let Some(v) = v
                && let Ok(j) = with(target, key, v)
            {
                *target = j;
                *n += 1;
            }
        };
        lean(&mut low_job, &mut lowers, to_low);
        lean(&mut high_job, &mut highers, to_high);
        let widen = |slot: &mut Pair, p: (u64, u64), less: bool| {
            let q = slot.unwrap_or(e);
            *slot = Some(if less {
                (q.0.min(p.0), q.1.min(p.1))
            } else {
                (q.0.max(p.0), q.1.max(p.1))
            });
        };
        widen(&mut extremes.0, least, true);
        widen(&mut extremes.1, most, false);
        out.push(Swing {
            key: key.clone(),
            why: why.clone(),
            expected: current(job, key),
            alternatives,
            width_bytes: most.1 - least.1,
            share_pct: 0.0,
        });
    }
    // together they can reach further than each alone
    for (target, n, slot, less) in [
        (&low_job, lowers, &mut extremes.0, true),
        (&high_job, highers, &mut extremes.1, false),
    ] {
        if n > 1
            && let Ok((_, b)) = run(target, here)
        {
            let q = slot.unwrap_or(e);
            let p = (b.peak.allocated, b.peak.reserved);
            *slot = Some(if less {
                (q.0.min(p.0), q.1.min(p.1))
            } else {
                (q.0.max(p.0), q.1.max(p.1))
            });
        }
    }
    (out, extremes.0, extremes.1)
}

pub(super) fn device_swings(f: &mut Footprint, here: &Device) {
    for (key, r) in [
        ("device_context", &here.overhead.context),
        ("libraries", &here.overhead.libraries),
    ] {
        f.uncertainties.push(Swing {
            key: key.into(),
            why: r.source.into(),
            expected: tonnage_units::Bytes(r.expected).to_string(),
            alternatives: Vec::new(),
            width_bytes: r.high - r.low,
            share_pct: 0.0,
        });
    }
    let all: u64 = f.uncertainties.iter().map(|s| s.width_bytes).sum();
    for s in &mut f.uncertainties {
        s.share_pct = if all == 0 {
            0.0
        } else {
            100.0 * s.width_bytes as f64 / all as f64
        };
    }
    f.uncertainties
        .sort_by_key(|s| std::cmp::Reverse(s.width_bytes));
}
