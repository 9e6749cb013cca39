//! Requested bytes of many settings from a few small simulations, as a bound that no full simulation goes below.
//!
//! Runs of one setting that differ in the micro-batch alone make the same events; every size in them is affine in the batch, so what is
//! alive at an event is affine too and a phase's peak is the maximum of affine functions: exact for every batch from two runs. In the
//! number of identical layers the peak of a phase is a maximum over instants of affine functions of (layers, position of the instant),
//! hence convex: the line through two small numbers of layers stays below it. So the extrapolated value is a lower bound of the
//! requested peak, and requested <= allocated <= reserved. `tests/plan_bound.rs` holds it against full simulations.
//!
//! Not affine: a batch of 1 (broadcasting looks at sizes of 1), and settings whose chunks or kernels depend on the batch, which the run
//! of the largest batch shows at the first depth. These get runs of their own at the small depths.
//!
//! Settings that differ in the optimizer alone share these runs ([`Known::beside`]): one run of the other optimizer at each depth has to
//! make the same events with a constant shift in every phase but the optimizer's own, or it gets all runs of its own.

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

/// Which part of a run: step and phase. Micro-batches of a step are one.
type Key = (i32, Phase);

/// A phase of a run.
#[derive(Clone, Copy)]
struct Part {
    key: Key,
    from: usize,
    to: usize,
}

/// What is alive (requested bytes) after every event, with the phases.
struct Curve {
    parts: Vec<Part>,
    alive: Vec<i64>,
    /// Kind and operator of every event: runs with other ones cannot be compared.
    shape: u64,
    work: StepWork,
}

impl Curve {
    /// Alive before event `i`.
    fn before(&self, i: usize) -> i64 {
        i.checked_sub(1).map_or(0, |k| self.alive[k])
    }
    /// Each phase's peak and start, where `f` is what is alive after an event.
    fn run(&self, f: &dyn Fn(usize) -> i64) -> Run {
        let of = |p: &Part| Peak {
            key: p.key,
            start: p.from.checked_sub(1).map_or(0, f),
            top: (p.from..p.to).map(f).max().unwrap_or(0),
        };
        Run(self.parts.iter().map(of).collect())
    }
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
    let parts = marks
        .iter()
        .enumerate()
        .map(|(i, m)| Part {
            key: (m.step, m.phase),
            from: m.at.min(events.len()),
            to: marks
                .get(i + 1)
                .map_or(events.len(), |n| n.at)
                .min(events.len()),
        })
        .collect();
    Curve {
        parts,
        alive,
        shape,
        work: work_of(sim, spec, spec.accumulation),
    }
}

/// A phase's peak of requested bytes, and what was alive before it.
#[derive(Clone, Copy)]
struct Peak {
    key: Key,
    start: i64,
    top: i64,
}

/// The phases of one batch.
struct Run(Vec<Peak>);

impl Run {
    /// The highest of each phase, over all steps.
    fn by_phase(&self) -> BTreeMap<Phase, i64> {
        let mut out: BTreeMap<Phase, i64> = BTreeMap::new();
        for p in &self.0 {
            let top = out.entry(p.key.1).or_insert(0);
            *top = (*top).max(p.top);
        }
        out
    }
}

/// All wanted batches at one depth.
struct Depth {
    runs: Vec<Run>,
    works: Vec<StepWork>,
    /// A whole run, and its batch.
    example: (u64, Curve),
    /// The small batches make a line.
    affine: bool,
}

fn simulated(spec: &Spec, batch: u64) -> Result<Curve, CoreError> {
    let mut s = spec.clone();
    s.batch = batch;
    simulate_counted(&s).map(|sim| curve(&sim, &s))
}

/// Runs of the wanted batches at one depth; `known`: whether the small batches make a line at another depth.
fn depth_of(spec: &Spec, batches: &[u64], known: Option<bool>) -> Result<Depth, CoreError> {
    let run = |b: u64| simulated(spec, b);
    let (first, second) = (BATCHES[0], BATCHES[1]);
    let largest = batches.iter().copied().max().unwrap_or(0);
    // affine from the two small batches on, as the largest shows? Where chunks or kernels depend on the batch it is not
    let mut line = None;
    if known != Some(false) && batches.iter().filter(|b| **b > second).count() > 1 {
        let (a, b) = (run(first)?, run(second)?);
        let mut affine = a.shape == b.shape && a.alive.len() == b.alive.len();
        if affine && known.is_none() {
            let far = run(largest)?;
            let x = (largest - first) as i64;
            affine = a.shape == far.shape
                && a.alive.len() == far.alive.len()
                && (0..a.alive.len())
                    .all(|i| a.alive[i] + (b.alive[i] - a.alive[i]) * x == far.alive[i]);
        }
        line = affine.then_some((a, b));
    }
    let (mut runs, mut works, mut example) = (Vec::new(), Vec::new(), None);
    for &b in batches {
        match &line {
            Some((c2, c3)) if b >= first => {
                let x = (b - first) as i64;
                runs.push(c2.run(&|i| c2.alive[i] + (c3.alive[i] - c2.alive[i]) * x));
                let mut w = c2.work.towards(&c3.work, x as f64);
                w.sequences = b;
                w.tokens = c2.work.tokens / first * b;
                works.push(w);
            }
            _ => {
                let c = run(b)?;
                runs.push(c.run(&|i| c.alive[i]));
                works.push(c.work.clone());
                example = Some((b, c));
            }
        }
    }
    let affine = line.is_some();
    let example = match (line, example) {
        (Some((c2, _)), _) => (first, c2),
        (None, Some(e)) => e,
        (None, None) => (first, run(first)?),
    };
    Ok(Depth {
        runs,
        works,
        example,
        affine,
    })
}

/// A candidate's bound and work.
#[derive(Clone, Debug, PartialEq)]
pub struct Bound {
    /// No run of the setting requests less at its peak.
    pub requested: u64,
    pub work: StepWork,
}

/// Bounds of a setting, and the runs that they come from.
pub struct Known {
    pub bounds: Vec<Bound>,
    variants: Vec<Variant>,
}

/// The splits with one micro-batch a step, or those with more.
struct Variant {
    accumulation: u32,
    wanted: Vec<usize>,
    /// One depth (the model's own), or the two small ones.
    depths: Vec<Depth>,
}

/// The setting as it is simulated: gradients are alive in the second micro-batch, more than two make no difference.
fn short(spec: &Spec, accumulation: u32) -> Spec {
    let mut s = spec.clone();
    s.accumulation = accumulation;
    s.steps = if s.work == Work::Train { 2 } else { 1 };
    s
}

/// The specs of the depths that are simulated.
fn depths(s: &Spec) -> Vec<Spec> {
    match depth(&s.config).filter(|d| d.1 > DEPTHS[1]) {
        None => vec![s.clone()],
        Some((key, full)) => DEPTHS.map(|n| with_depth(s, key, full, n)).to_vec(),
    }
}

/// Peak and work of the full depth from those of the simulated ones.
fn full_depth(s: &Spec, runs: &[&Run], works: &[StepWork]) -> (i64, StepWork) {
    match (runs, works, depth(&s.config)) {
        ([low, high], [wl, wh], Some((_, full))) => {
            let (low, far) = (low.by_phase(), (full - DEPTHS[1]) as i64);
            let line = |(phase, p): (&Phase, &i64)| {
                let before = low.get(phase).copied().unwrap_or(*p);
                p + (p - before) * far
            };
            let x = (full - DEPTHS[0]) as f64 / (DEPTHS[1] - DEPTHS[0]) as f64;
            let top = high.by_phase().iter().map(line).max().unwrap_or(0);
            (top, wl.towards(wh, x))
        }
        _ => {
            let top = runs
                .first()
                .map_or(0, |r| r.by_phase().into_values().max().unwrap_or(0));
            (top, works.first().cloned().unwrap_or_default())
        }
    }
}

fn bound((top, mut work): (i64, StepWork), passes: u64) -> Bound {
    work.passes = passes;
    Bound {
        requested: top.max(0) as u64,
        work,
    }
}

/// Bounds of one setting for (micro-batch, accumulation) pairs.
///
/// # Errors
/// The setting cannot be simulated.
pub fn bounds(spec: &Spec, splits: &[(u64, u64)]) -> Result<Vec<Bound>, CoreError> {
    Ok(known(spec, splits)?.bounds)
}

/// As [`bounds`], with what other optimizers need to share the runs.
///
/// # Errors
/// The setting cannot be simulated.
pub fn known(spec: &Spec, splits: &[(u64, u64)]) -> Result<Known, CoreError> {
    let mut out: Vec<Option<Bound>> = vec![None; splits.len()];
    let mut variants = Vec::new();
    for accumulation in [1u32, 2] {
        let wanted: Vec<usize> = (0..splits.len())
            .filter(|i| splits[*i].1.min(2) as u32 == accumulation)
            .collect();
        if wanted.is_empty() {
            continue;
        }
        let s = short(spec, accumulation);
        let batches: Vec<u64> = wanted.iter().map(|i| splits[*i].0).collect();
        let mut at: Vec<Depth> = Vec::new();
        for d in depths(&s) {
            // the second depth has more of the same layers
            let known = at.last().map(|l| l.affine);
            at.push(depth_of(&d, &batches, known)?);
        }
        for (k, i) in wanted.iter().enumerate() {
            let runs: Vec<&Run> = at.iter().map(|d| &d.runs[k]).collect();
            let works: Vec<StepWork> = at.iter().map(|d| d.works[k].clone()).collect();
            out[*i] = Some(bound(full_depth(&s, &runs, &works), splits[*i].1));
        }
        variants.push(Variant {
            accumulation,
            wanted,
            depths: at,
        });
    }
    Ok(Known {
        bounds: out.into_iter().flatten().collect(),
        variants,
    })
}

/// How another optimizer's phase differs from the known run's.
#[derive(Clone, Copy, PartialEq)]
enum Shift {
    /// The same events over so many bytes more.
    Same(i64),
    /// The optimizer's own: bytes more at its start, its peak above that, and the known run's peak above its start.
    Own { start: i64, above: i64, known: i64 },
}

/// The differences of each phase; none: another phase differs in its events.
fn shifts(known: &Curve, other: &Curve) -> Option<BTreeMap<Key, Shift>> {
    if known.parts.len() != other.parts.len() {
        return None;
    }
    let mut out = BTreeMap::new();
    for (a, b) in known.parts.iter().zip(&other.parts) {
        if a.key != b.key {
            return None;
        }
        let start = other.before(b.from) - known.before(a.from);
        let (x, y) = (&known.alive[a.from..a.to], &other.alive[b.from..b.to]);
        let same = x.len() == y.len() && x.iter().zip(y).all(|(x, y)| y - x == start);
        let shift = if same {
            Shift::Same(start)
        } else if a.key.1 == Phase::Optimizer {
            let above = |c: &Curve, p: &Part, y: &[i64]| {
                y.iter().copied().max().unwrap_or(0) - c.before(p.from)
            };
            Shift::Own {
                start,
                above: above(other, b, y),
                known: above(known, a, x),
            }
        } else {
            return None;
        };
        if out.insert(a.key, shift).is_some_and(|s| s != shift) {
            return None;
        }
    }
    Some(out)
}

/// The same phases with the differences; none: the optimizer's memory depends on the batch, or a phase is not known.
fn shifted(run: &Run, by: &BTreeMap<Key, Shift>) -> Option<Run> {
    let moved = |p: &Peak| {
        let top = match *by.get(&p.key)? {
            Shift::Same(d) => p.top + d,
            Shift::Own {
                start,
                above,
                known,
            } if p.top - p.start == known => p.start + start + above,
            Shift::Own { .. } => return None,
        };
        Some(Peak { top, ..*p })
    };
    run.0.iter().map(moved).collect::<Option<_>>().map(Run)
}

impl Known {
    /// Bounds of a setting that differs in the optimizer alone, by one run at each depth; `None`: it differs in more than its own
    /// phase, or cannot be simulated.
    pub fn beside(&self, spec: &Spec, splits: &[(u64, u64)]) -> Option<Vec<Bound>> {
        let base = self.variants.last()?;
        let mut by = Vec::new();
        for (s, d) in depths(&short(spec, base.accumulation))
            .iter()
            .zip(&base.depths)
        {
            let (batch, example) = &d.example;
            let other = simulated(s, *batch).ok()?;
            by.push((shifts(example, &other)?, other.work.optimizer_bytes));
        }
        let mut out: Vec<Option<Bound>> = vec![None; splits.len()];
        for v in &self.variants {
            let s = short(spec, v.accumulation);
            for (k, i) in v.wanted.iter().enumerate() {
                let (mut runs, mut works) = (Vec::new(), Vec::new());
                for (d, (by, bytes)) in v.depths.iter().zip(&by) {
                    runs.push(shifted(&d.runs[k], by)?);
                    let mut w = d.works[k].clone();
                    w.optimizer_bytes = *bytes;
                    works.push(w);
                }
                let runs: Vec<&Run> = runs.iter().collect();
                out[*i] = Some(bound(full_depth(&s, &runs, &works), splits[*i].1));
            }
        }
        Some(out.into_iter().flatten().collect())
    }
}
