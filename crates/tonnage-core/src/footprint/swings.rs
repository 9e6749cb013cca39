//! How far the peaks swing: each uncertain setting alone and all together, and what the device level leaves open.

use super::build::{Ran, run};
use super::*;
use crate::doc::{Diagnostic, Value};
use crate::job::{Job, Origin, Uncertain};
use crate::verdict::Device;
use crate::workers::Crew;

pub(super) fn levels(
    f: &mut Footprint,
    here: &Device,
    e: (u64, u64),
    low: Option<(u64, u64)>,
    high: Option<(u64, u64)>,
) {
    let (ol, oe, oh) = here.outside();
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

/// The setting that swings most, with the runs of its alternatives.
pub(super) struct Widest {
    pub key: String,
    pub expected: String,
    pub alternatives: Vec<(String, Job, Ran)>,
    width: u64,
}

/// What the uncertain settings do.
#[derive(Default)]
pub(super) struct Swung {
    pub each: Vec<Swing>,
    /// Allocated and reserved bytes of the lowest and the highest that was found.
    pub low: Pair,
    pub high: Pair,
    pub widest: Option<Widest>,
}

impl Swung {
    fn lower(&mut self, e: (u64, u64), p: (u64, u64)) {
        let q = self.low.unwrap_or(e);
        self.low = Some((q.0.min(p.0), q.1.min(p.1)));
    }

    fn higher(&mut self, e: (u64, u64), p: (u64, u64)) {
        let q = self.high.unwrap_or(e);
        self.high = Some((q.0.max(p.0), q.1.max(p.1)));
    }
}

/// Each uncertain setting alone, then the lowest values of all together, and the highest. `e`: allocated and reserved bytes as expected.
pub(super) fn swings(job: &Job, here: &Device, e: (u64, u64), workers: Crew) -> Swung {
    let all: Vec<(&str, &Value)> = job
        .uncertain
        .iter()
        .flat_map(|u| u.values.iter().map(|v| (u.key.as_str(), v)))
        .collect();
    let tried = workers.each_of(&all, |(key, v)| {
        with(job, key, v).and_then(|j| Ok((Ran::of(&j, here)?, j)))
    });
    let mut tried = tried.into_iter();
    let (mut low_job, mut high_job) = (job.clone(), job.clone());
    let (mut lowers, mut highers) = (0, 0);
    let mut out = Swung::default();
    for Uncertain { key, values, why } in &job.uncertain {
        let mut alternatives = Vec::new();
        let mut runs = Vec::new();
        let (mut least, mut most) = (e, e);
        let (mut to_low, mut to_high) = (None, None);
        for (v, tried) in values.iter().zip(tried.by_ref()) {
            match tried {
                Ok((ran, j)) => {
                    let p = ran.peak();
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
                    runs.push((shown(v), j, ran));
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
        out.lower(e, least);
        out.higher(e, most);
        let width = most.1 - least.1;
        if out.widest.as_ref().is_none_or(|w| width > w.width) {
            out.widest = Some(Widest {
                key: key.clone(),
                expected: current(job, key),
                alternatives: runs,
                width,
            });
        }
        out.each.push(Swing {
            key: key.clone(),
            why: why.clone(),
            expected: current(job, key),
            alternatives,
            width_bytes: width,
            share_pct: 0.0,
        });
    }
    // together they can reach further than each alone
    let both = [(&low_job, lowers), (&high_job, highers)];
    let found = workers.each_of(&both, |(j, n)| {
        let (_, a) = (*n > 1).then(|| run(j, here).ok()).flatten()?;
        Some((a.peak.allocated, a.peak.reserved))
    });
    if let Some(p) = found[0] {
        out.lower(e, p);
    }
    if let Some(p) = found[1] {
        out.higher(e, p);
    }
    out
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
