//! The fit of the efficiencies: deterministic, in seconds, from the published rows alone.

use super::efficiency::{CONSTANTS, Efficiencies, Fitted, Spread};
use super::published::Case;
use std::collections::BTreeMap;

/// Rounds of the search.
const ROUNDS: usize = 60;

/// Robust distance: sums of |log ratio|, large ones limited (a wrong row must not pull), and a weak pull to the prior.
fn loss(e: &Efficiencies, cases: &[&Case]) -> f64 {
    let rows: f64 = cases
        .iter()
        .map(|c| {
            let d = (c.predict(e) / c.value).ln().abs().min(1.5);
            d + 0.5 * d * d
        })
        .sum();
    let prior: f64 = CONSTANTS
        .iter()
        .zip(&e.0)
        .map(|(c, v)| (v.max(1e-12) / c.prior.max(1e-12)).ln().abs())
        .sum();
    rows + 0.02 * prior
}

/// The constants that fit these rows best: one constant at a time, up or down by a factor that grows with success and shrinks without.
pub fn fit(cases: &[&Case]) -> Efficiencies {
    let mut e = Efficiencies::prior();
    let mut best = loss(&e, cases);
    let mut step = vec![0.3f64; CONSTANTS.len()];
    for _ in 0..ROUNDS {
        for (i, c) in CONSTANTS.iter().enumerate() {
            let old = e.0[i];
            let mut moved = false;
            for sign in [1.0, -1.0] {
                e.0[i] = (old * (sign * step[i]).exp()).clamp(c.low.max(1e-12), c.high);
                let l = loss(&e, cases);
                if l < best - 1e-9 {
                    (best, moved) = (l, true);
                    break;
                }
            }
            if moved {
                step[i] *= 1.3;
            } else {
                e.0[i] = old;
                step[i] *= 0.5;
            }
        }
        if step.iter().all(|s| *s < 1e-3) {
            break;
        }
    }
    e
}

/// Parts of the cross-validation.
const FOLDS: u64 = 5;

/// FNV-1a: the same on every machine.
fn fold(family: &str) -> u64 {
    let hash = family.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
    });
    (hash >> 20) % FOLDS
}

fn nearest_rank(sorted: &[f64], p: f64) -> f64 {
    let i = (sorted.len() as f64 * p).ceil() as usize;
    sorted[i.clamp(1, sorted.len()) - 1]
}

/// The spread of predictions for rows that the fit has not seen: whole families (model, card, software) are left out.
pub fn cross_validate(cases: &[&Case]) -> Vec<Spread> {
    let mut by_task: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for f in 0..FOLDS {
        let (out, kept): (Vec<&Case>, Vec<&Case>) =
            cases.iter().copied().partition(|c| fold(&c.family) == f);
        let e = fit(&kept);
        for c in out {
            let ratio = c.value / c.predict(&e);
            by_task.entry(c.task.clone()).or_default().push(ratio);
            by_task.entry("all".into()).or_default().push(ratio);
        }
    }
    by_task
        .into_iter()
        .map(|(task, mut ratios)| {
            ratios.sort_by(f64::total_cmp);
            let mut errors: Vec<f64> = ratios
                .iter()
                .map(|r| 100.0 * (1.0 / r - 1.0).abs())
                .collect();
            errors.sort_by(f64::total_cmp);
            Spread {
                task,
                rows: ratios.len(),
                median_pct: nearest_rank(&errors, 0.5),
                p95_pct: nearest_rank(&errors, 0.95),
                low: nearest_rank(&ratios, 0.1).min(1.0),
                high: nearest_rank(&ratios, 0.9).max(1.0),
            }
        })
        .collect()
}

/// Fit and spread from records (one JSON object a line); lines that have no prediction are left out.
pub fn from_records(text: &str, source: &str, date: &str) -> Fitted {
    let cases: Vec<Case> = text
        .lines()
        .filter_map(|l| Case::read(&serde_json::from_str(l).ok()?).ok())
        .filter(|c| c.is_speed() && c.value > 0.0)
        .collect();
    let refs: Vec<&Case> = cases.iter().collect();
    Fitted {
        values: fit(&refs),
        spreads: cross_validate(&refs),
        source: source.into(),
        date: date.into(),
    }
}
