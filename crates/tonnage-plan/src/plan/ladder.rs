//! The shortest list of changes, in the order to try, and edits that do nothing.

use super::full::Place;
use super::search::{Candidate, Choice, Simulations};
use super::{Change, Edit, NoEffect, Point};
use std::collections::HashMap;
use tonnage_core::Job;
use tonnage_core::doc::Value;
use tonnage_core::job::Origin;

/// Changes in one list, at most.
const LONGEST: usize = 6;

/// Full simulations for each length of list, at most.
const TRIED: usize = 40;

/// The fewest changes after which the job fits, of those the fastest; where the user's own settings fit, those that make the
/// recommended point.
pub(super) fn changes(
    sims: &mut Simulations,
    possible: &[&Candidate],
    yours: &Point,
    recommended: Option<&Candidate>,
) -> Vec<Change> {
    let chosen = if yours.fits() {
        recommended.map(|c| c.choice.clone())
    } else {
        shortest(sims, possible).or_else(|| recommended.map(|c| c.choice.clone()))
    };
    let Some(chosen) = chosen else {
        return Vec::new();
    };
    let edits = ordered(possible, chosen.edits);
    let batch = |p: &Point| p.micro_batch_size * p.gradient_accumulation_steps;
    let mut before = yours.clone();
    let mut out = Vec::new();
    for n in 1..=edits.len() {
        let Some(p) = sims.point(&Choice {
            edits: edits[..n].to_vec(),
        }) else {
            break;
        };
        let e = &edits[n - 1];
        let (a, b) = (
            1.0 / before.time.tokens_per_s.expected,
            1.0 / p.time.tokens_per_s.expected,
        );
        out.push(Change {
            edit: e.what.clone(),
            flags: e.flags(),
            saves_bytes: before.peak_reserved_bytes as i64 - p.peak_reserved_bytes as i64,
            costs_seconds: (b - a) * before.time.tokens_per_step as f64,
            costs_pct: 100.0 * (b / a - 1.0),
            keeps_effective_batch: batch(&before) == batch(&p),
            remark: e.cost,
            outcome: p.outcome,
        });
        before = p;
    }
    out
}

fn shortest(sims: &mut Simulations, possible: &[&Candidate]) -> Option<Choice> {
    for n in 1..=LONGEST {
        let mut of: Vec<&&Candidate> = possible
            .iter()
            .filter(|c| c.choice.edits.len() == n)
            .collect();
        of.sort_by(|a, b| {
            a.seconds_per_token
                .total_cmp(&b.seconds_per_token)
                .then(a.requested.cmp(&b.requested))
        });
        let fits = of.iter().take(TRIED).find(|c| sims.fits(&c.choice));
        if let Some(c) = fits {
            return Some(c.choice.clone());
        }
        // the smallest of this length decides whether any fits
        if of.len() > TRIED
            && let Some(c) = of.iter().min_by_key(|c| c.requested)
            && sims.fits(&c.choice)
        {
            return Some(c.choice.clone());
        }
        if sims.interrupted {
            return None;
        }
    }
    None
}

/// The order to try: what costs no time first, then the most bytes for the time. Single changes that the bound ruled out alone come in
/// the order in which the settings stand.
fn ordered(possible: &[&Candidate], mut edits: Vec<Edit>) -> Vec<Edit> {
    let alone: HashMap<&str, (f64, u64)> = possible
        .iter()
        .filter(|c| c.choice.edits.len() == 1)
        .map(|c| {
            (
                c.choice.edits[0].what.as_str(),
                (c.seconds_per_token, c.requested),
            )
        })
        .collect();
    let cost = |e: &Edit| match e.set.first().map(|(k, _)| *k) {
        Some("allocator.conf" | "train.hold" | "train.zero_grad") => 0,
        Some("train.loss" | "train.attention") => 1,
        Some("train.micro_batch_size" | "generate.batch_size") => 2,
        Some("train.activation_checkpointing") => 3,
        Some("train.optimizer") => 4,
        _ => 5,
    };
    edits.sort_by(|a, b| {
        let by_class = cost(a).cmp(&cost(b));
        let time = |e: &Edit| alone.get(e.what.as_str()).map(|x| x.0);
        by_class.then_with(|| match (time(a), time(b)) {
            (Some(x), Some(y)) => x.total_cmp(&y),
            _ => std::cmp::Ordering::Equal,
        })
    });
    edits
}

/// An edit in words, why it does nothing, and its settings.
type Tried = (String, &'static str, Vec<(&'static str, Value)>);

/// Edits that people try and that change nothing, each simulated: another 16-bit type, the adapters' scale.
pub(super) fn no_effect(job: &Job, place: &Place, yours: &Point) -> Vec<NoEffect> {
    let mut tried: Vec<Tried> = Vec::new();
    let other = |now: &str| match now {
        "bf16" => Some("fp16"),
        "fp16" => Some("bf16"),
        "bf16-mixed" => Some("fp16-mixed"),
        "fp16-mixed" => Some("bf16-mixed"),
        _ => None,
    };
    let now = job.word("train.precision");
    if let Some(o) = other(&now) {
        let (from, to) = (now.trim_end_matches("-mixed"), o.trim_end_matches("-mixed"));
        let mut set = vec![("train.precision", Value::Text(o.into()))];
        // the same type everywhere: a base in another one would be cast at each use
        for key in ["model.dtype", "quant.compute"] {
            if job.word(key) == from
                && (key != "quant.compute" || job.given("quant.format").is_some())
            {
                set.push((key, Value::Text(to.into())));
            }
        }
        tried.push((
            format!("{o} instead of {now}"),
            "both take two bytes an element",
            set,
        ));
    }
    if job.count("lora.r").is_some() {
        let alpha = job.number("lora.alpha").unwrap_or(16.0);
        tried.push((
            format!("alpha {} instead of {alpha}", alpha / 2.0),
            "a factor, not a tensor",
            vec![("lora.alpha", Value::Float(alpha / 2.0))],
        ));
    }
    tried
        .into_iter()
        .filter_map(|(edit, why, set)| {
            let mut j = job.clone();
            for (k, v) in set {
                j.set(k, v, Origin::Flag).ok()?;
            }
            let p = place.point(&j, &Choice::default()).ok()?;
            let saves = yours.peak_allocated_bytes as i64 - p.peak_allocated_bytes as i64;
            // fp16 brings a gradient scaler: a few scalars
            let nothing = saves.unsigned_abs() <= yours.peak_allocated_bytes / 1000;
            nothing.then_some(NoEffect {
                edit,
                why,
                saves_bytes: saves,
            })
        })
        .collect()
}
