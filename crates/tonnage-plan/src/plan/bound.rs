//! Requested bytes of many settings from a few small simulations, as a bound that no full simulation goes below.
//!
//! Runs of one setting that differ in the micro-batch alone make the same events; every size in them is affine in the batch, so what is
//! alive at an event is affine too and a phase's peak is the maximum of affine functions: exact for every batch from two runs. In the
//! number of identical layers the peak of a phase is a maximum over instants of affine functions of (layers, position of the instant),
//! hence convex: the line through two small numbers of layers stays below it. So the extrapolated value is a lower bound of the
//! requested peak, and requested <= allocated <= reserved. `tests/plan_bound.rs` holds it against full simulations.
//!
//! Not affine: a batch of 1 (broadcasting looks at sizes of 1), and settings whose chunks or kernels depend on the batch, which the run
//! of the largest batch shows. These get runs of their own at the small depths.

use crate::time::{StepWork, work_of};
use serde_json::Value;
use std::collections::BTreeMap;
use tonnage_core::spec::{Spec, Work};
use tonnage_core::{CoreError, Simulated, simulate_counted};
use tonnage_sim::timeline::{EventKind, Phase};

/// Keys under which configurations keep the number of layers.
const LAYERS: &[&str] = &["num_hidden_layers", "n_layer", "n_layers", "num_layers"];

/// The two small depths.
const DEPTHS: [u64; 2] = [2, 3];

/// The two small batches.
const BATCHES: [u64; 2] = [2, 3];

fn depth(config: &Value) -> Option<(&'static str, u64)> {
    LAYERS
        .iter()
        .find_map(|k| Some((*k, config.get(*k)?.as_u64()?)))
}

/// The same model with `n` layers; lists with an entry for each layer are cut.
fn with_depth(spec: &Spec, key: &str, full: u64, n: u64) -> Spec {
    let mut s = spec.clone();
    if let Value::Object(o) = &mut s.config {
        for v in o.values_mut() {
            if let Value::Array(a) = v
                && a.len() as u64 == full
            {
                a.truncate(n as usize);
            }
        }
        o.insert(key.into(), n.into());
    }
    s
}

/// What is alive (requested bytes) after every event, with the phase.
struct Curve {
    phases: Vec<(Phase, usize, usize)>,
    alive: Vec<i64>,
    /// Kind and operator of every event: runs with other ones cannot be compared.
    shape: u64,
    work: StepWork,
}

fn curve(sim: &Simulated, spec: &Spec) -> Curve {
    let events = &sim.timeline.events;
    let mut alive = Vec::with_capacity(events.len());
    let mut now = 0i64;
    let mut shape = 0xcbf2_9ce4_8422_2325u64;
    for e in events {
        let sign = match e.kind() {
            EventKind::Alloc { .. } => 1,
            EventKind::Free { .. } => -1,
            EventKind::EmptyCache => 0,
        };
        now += sign * e.bytes as i64;
        alive.push(now);
        shape =
            (shape ^ (u64::from(e.owner) << 2) ^ (sign + 1) as u64).wrapping_mul(0x100_0000_01b3);
    }
    let marks = &sim.timeline.marks;
    let phases = marks
        .iter()
        .enumerate()
        .map(|(i, m)| {
            let to = marks.get(i + 1).map_or(events.len(), |n| n.at);
            (m.phase, m.at.min(events.len()), to.min(events.len()))
        })
        .collect();
    Curve {
        phases,
        alive,
        shape,
        work: work_of(sim, spec, spec.accumulation),
    }
}

/// Requested bytes of each phase at its peak.
type Peaks = BTreeMap<Phase, i64>;

/// Peaks of each phase for the wanted batches, at one depth.
fn peaks(spec: &Spec, batches: &[u64]) -> Result<(Vec<Peaks>, Vec<StepWork>), CoreError> {
    let run = |b: u64| {
        let mut s = spec.clone();
        s.batch = b;
        simulate_counted(&s).map(|sim| curve(&sim, &s))
    };
    let max = |c: &Curve, f: &dyn Fn(usize) -> i64| {
        let mut out: BTreeMap<Phase, i64> = BTreeMap::new();
        for &(phase, from, to) in &c.phases {
            let top = (from..to).map(f).max().unwrap_or(0);
            let p = out.entry(phase).or_insert(0);
            *p = (*p).max(top);
        }
        out
    };
    let (first, second) = (BATCHES[0], BATCHES[1]);
    let largest = batches.iter().copied().max().unwrap_or(0);
    // affine from the two small batches on, as the largest shows? Where chunks or kernels depend on the batch it is not
    let mut line = None;
    if batches.iter().filter(|b| **b > second).count() > 1 {
        let (a, b, far) = (run(first)?, run(second)?, run(largest)?);
        let x = (largest - first) as i64;
        let affine = a.shape == b.shape
            && a.shape == far.shape
            && a.alive.len() == far.alive.len()
            && (0..a.alive.len())
                .all(|i| a.alive[i] + (b.alive[i] - a.alive[i]) * x == far.alive[i]);
        line = affine.then_some((a, b));
    }
    let (mut all, mut works) = (Vec::new(), Vec::new());
    for &b in batches {
        match &line {
            Some((c2, c3)) if b >= first => {
                let x = (b - first) as i64;
                all.push(max(c2, &|i| c2.alive[i] + (c3.alive[i] - c2.alive[i]) * x));
                let mut w = c2.work.towards(&c3.work, x as f64);
                w.sequences = b;
                w.tokens = c2.work.tokens / first * b;
                works.push(w);
            }
            _ => {
                let c = run(b)?;
                all.push(max(&c, &|i| c.alive[i]));
                works.push(c.work);
            }
        }
    }
    Ok((all, works))
}

/// A candidate's bound and work.
#[derive(Clone, Debug)]
pub struct Bound {
    /// No run of the setting requests less at its peak.
    pub requested: u64,
    pub work: StepWork,
}

/// Bounds of one setting for (micro-batch, accumulation) pairs.
///
/// # Errors
/// The setting cannot be simulated.
pub fn bounds(spec: &Spec, splits: &[(u64, u64)]) -> Result<Vec<Bound>, CoreError> {
    let mut out: Vec<Option<Bound>> = vec![None; splits.len()];
    // gradients are alive in the second micro-batch: more than two make no difference
    for variant in [1u32, 2] {
        let wanted: Vec<usize> = (0..splits.len())
            .filter(|i| splits[*i].1.min(2) as u32 == variant)
            .collect();
        if wanted.is_empty() {
            continue;
        }
        let mut s = spec.clone();
        s.accumulation = variant;
        s.steps = if s.work == Work::Train { 2 } else { 1 };
        let batches: Vec<u64> = wanted.iter().map(|i| splits[*i].0).collect();
        let found = match depth(&s.config).filter(|d| d.1 > DEPTHS[1]) {
            None => {
                let (p, w) = peaks(&s, &batches)?;
                p.into_iter()
                    .map(|p| p.into_values().max().unwrap_or(0))
                    .zip(w)
                    .collect::<Vec<_>>()
            }
            Some((key, full)) => {
                let at = |n| peaks(&with_depth(&s, key, full, n), &batches);
                let ((low, wl), (high, wh)) = (at(DEPTHS[0])?, at(DEPTHS[1])?);
                let far = (full - DEPTHS[1]) as i64;
                low.iter()
                    .zip(&high)
                    .map(|(a, b)| {
                        let line = |(phase, p): (&Phase, &i64)| {
                            let before = a.get(phase).copied().unwrap_or(*p);
                            p + (p - before) * far
                        };
                        b.iter().map(line).max().unwrap_or(0)
                    })
                    .zip(wl.iter().zip(&wh).map(|(a, b)| {
                        let x = (full - DEPTHS[0]) as f64 / (DEPTHS[1] - DEPTHS[0]) as f64;
                        a.towards(b, x)
                    }))
                    .collect()
            }
        };
        for (i, (requested, mut work)) in wanted.into_iter().zip(found) {
            work.passes = splits[i].1;
            out[i] = Some(Bound {
                requested: requested.max(0) as u64,
                work,
            });
        }
    }
    Ok(out.into_iter().flatten().collect())
}
