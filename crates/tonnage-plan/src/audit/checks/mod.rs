//! A document against itself: sums, floors, cards, rows that disagree. No simulation is needed but for the facts of bound jobs.

use super::claim::{Claim, Part, Phase, Unit, What};
use super::judge::Row;
use serde::Serialize;
use std::collections::BTreeMap;

mod cards;
mod rows;

/// Something that cannot be right whatever the truth is.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The check: `sum`, `disagree`, `floor`, ...
    pub check: &'static str,
    pub subject: String,
    /// Ids of the claims.
    pub claims: Vec<String>,
    pub text: String,
}

/// Numbers agree when they are this near.
const NEAR: f64 = 0.03;

/// All checks.
pub fn findings(all: &[Row]) -> Vec<Finding> {
    let mut out = Vec::new();
    for check in [
        sums,
        doubled,
        disagreements,
        scaled,
        floors,
        slopes,
        growth,
        ratios,
        cards::cards,
        cards::tables,
        rows::per_parameter,
        rows::savings,
        rows::levels,
        rows::formula,
    ] {
        check(all, &mut out);
    }
    out
}

fn finding(check: &'static str, claims: &[&Claim], text: String) -> Finding {
    Finding {
        check,
        subject: claims.first().map_or(String::new(), |c| c.subject.clone()),
        claims: claims.iter().map(|c| c.id.clone()).collect(),
        text,
    }
}

/// Bytes as the documents print them: decimal.
fn gb(bytes: f64) -> String {
    if bytes >= 1e9 {
        format!("{:.1} GB", bytes / 1e9)
    } else {
        format!("{:.1} MB", bytes / 1e6)
    }
}

/// The middle of a claim in decimal bytes: claims of one document share their unit, so its meaning cancels out.
fn middle(c: &Claim) -> Option<f64> {
    let Unit::Memory { least, .. } = c.unit else {
        return None;
    };
    Some((c.low + c.high.unwrap_or(c.low)) / 2.0 * least)
}

fn ends(c: &Claim) -> Option<(f64, f64)> {
    let Unit::Memory { least, .. } = c.unit else {
        return None;
    };
    Some((c.low * least, c.high.unwrap_or(c.low) * least))
}

fn document(c: &Claim) -> &str {
    c.block.split(':').next().unwrap_or("")
}

fn is_total(c: &Claim) -> bool {
    matches!(c.what, What::Total | What::Case(_))
}

/// Parts of one block add up to its total.
fn sums(rows: &[Row], out: &mut Vec<Finding>) {
    let mut blocks: BTreeMap<(&str, &str, Phase), Vec<&Claim>> = BTreeMap::new();
    for r in rows {
        let c = &r.claim;
        blocks
            .entry((&c.block, &c.subject, c.phase))
            .or_default()
            .push(c);
    }
    for claims in blocks.values() {
        let parts: Vec<&Claim> = claims
            .iter()
            .copied()
            .filter(|c| matches!(c.what, What::Part(_)))
            .collect();
        let totals: Vec<&Claim> = claims.iter().copied().filter(|c| is_total(c)).collect();
        let [total] = totals[..] else { continue };
        if parts.len() < 2 {
            continue;
        }
        let Some((low, high)) = ends(total) else {
            continue;
        };
        let add = |pick: fn((f64, f64)) -> f64| {
            parts.iter().filter_map(|c| ends(c)).map(pick).sum::<f64>()
        };
        let (l, h) = (add(|e| e.0), add(|e| e.1));
        // each number was rounded where it was printed
        let scale = |c: &Claim| match c.unit {
            Unit::Memory { least, .. } => least * c.last_place() / 2.0,
            _ => 0.0,
        };
        let rounding: f64 = parts.iter().map(|c| scale(c)).sum::<f64>() + scale(total);
        let off = |sum: f64, printed: f64| (sum - printed).abs() > (printed * NEAR).max(rounding);
        if off(l, low) || off(h, high) {
            let mut all = vec![total];
            all.extend(&parts);
            let sum = if (l - h).abs() < 1.0 {
                gb(l)
            } else {
                format!("{} to {}", gb(l), gb(h))
            };
            out.push(finding(
                "sum",
                &all,
                format!(
                    "the parts add up to {sum}, the total printed is {}",
                    total.printed()
                ),
            ));
        }
    }
}

/// Backward listed as another copy of the activations.
fn doubled(rows: &[Row], out: &mut Vec<Finding>) {
    for r in rows
        .iter()
        .filter(|r| r.claim.what == What::Part(Part::Backward))
    {
        let same = rows.iter().find(|o| {
            o.claim.what == What::Part(Part::Activations)
                && o.claim.block == r.claim.block
                && (o.claim.low, o.claim.high) == (r.claim.low, r.claim.high)
        });
        if let Some(o) = same {
            let text =
                "the activations are counted again for backward, which releases them as it goes"
                    .into();
            out.push(finding("double-count", &[&r.claim, &o.claim], text));
        }
    }
}

/// The settings that tell two claims of one subject apart, as the bound jobs see them.
fn same_job(a: &Row, b: &Row) -> bool {
    match (&a.job, &b.job) {
        (Some(x), Some(y)) => unnamed(x, &[]) == unnamed(y, &[]),
        _ => a.claim.subject == b.claim.subject && a.claim.settings == b.claim.settings,
    }
}

/// A job file without its name and without some settings.
fn unnamed(job: &str, without: &[&str]) -> String {
    let keeps = |l: &&str| {
        let key = l.split('=').next().unwrap_or("").trim();
        key != "name" && !without.contains(&key)
    };
    let lines = job.lines().filter(keeps).map(|l| {
        // a configuration's fields in any order
        let mut parts: Vec<&str> = l.split([',', '{', '}']).map(str::trim).collect();
        parts.sort_unstable();
        parts.join(",")
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Totals of one job at two batches in two places: what one implies for the other, states aside.
fn scaled(rows: &[Row], out: &mut Vec<Finding>) {
    let whole: Vec<&Row> = rows
        .iter()
        .filter(|r| {
            // a wide range implies nothing
            r.claim.high.is_some_and(|h| h <= 1.5 * r.claim.low)
                && r.claim.what == What::Total
                && r.claim.phase == Phase::Training
                && r.facts.is_some()
        })
        .collect();
    for (i, a) in whole.iter().enumerate() {
        for b in whole.iter().skip(i + 1) {
            let (Some(f), Some(g), Some(x), Some(y)) = (a.facts, b.facts, &a.job, &b.job) else {
                continue;
            };
            let without = ["micro_batch_size", "gradient_accumulation_steps"];
            let apart = document(&a.claim) != document(&b.claim) || a.claim.block == b.claim.block;
            if apart || f.batch == g.batch || unnamed(x, &without) != unnamed(y, &without) {
                continue;
            }
            let (Some(p), Some(q)) = (middle(&a.claim), middle(&b.claim)) else {
                continue;
            };
            // weights, gradients and two states in fp32
            let states = 16.0 * g.parameters as f64;
            let implied = (q - states) / g.batch as f64 * f.batch as f64 + states;
            if implied > 0.0 && (implied / p).max(p / implied) > 1.25 {
                let text = format!(
                    "{} at batch {} implies about {} at batch {}; {} is printed",
                    b.claim.printed(),
                    g.batch,
                    gb(implied),
                    f.batch,
                    a.claim.printed()
                );
                out.push(finding("disagree", &[&a.claim, &b.claim], text));
            }
        }
    }
}

/// The same job, phase and part with two numbers.
fn disagreements(rows: &[Row], out: &mut Vec<Finding>) {
    let comparable = |c: &Claim| {
        is_total(c) || matches!(c.what, What::Part(_) | What::Needed(_) | What::Parameters)
    };
    let mut told: Vec<(&str, &str)> = Vec::new();
    for (i, a) in rows.iter().enumerate() {
        for b in rows.iter().skip(i + 1) {
            let (x, y) = (&a.claim, &b.claim);
            let kinds = x.what == y.what
                || (is_total(x) || matches!(x.what, What::Needed(_)))
                    && (is_total(y) || matches!(y.what, What::Needed(_)));
            let cases =
                matches!((&x.what, &y.what), (What::Case(_), What::Case(_))) && x.what != y.what;
            if document(x) != document(y)
                || x.block == y.block
                || x.phase != y.phase
                || !comparable(x)
                || !kinds
                || cases
                || !same_job(a, b)
            {
                continue;
            }
            // parts of the low, middle and high case are meant to differ
            if x.settings.get("case") != y.settings.get("case") {
                continue;
            }
            let (Some((l, h)), Some((m, n))) = (ends(x), ends(y)) else {
                continue;
            };
            let apart = l > n * (1.0 + NEAR) || m > h * (1.0 + NEAR);
            let beyond = matches!(x.what, What::Case(_)) != matches!(y.what, What::Case(_))
                && (l < m * (1.0 - NEAR) || h > n * (1.0 + NEAR));
            if !apart && !beyond || told.contains(&(&x.id, &y.id)) {
                continue;
            }
            told.push((&x.id, &y.id));
            // from the nearer ends to the farther ones
            let (low, high) = if h < m {
                (m / h, n / l)
            } else {
                (l / n, h / m)
            };
            let factor = match (low > 1.0, high / low < 1.05) {
                (false, _) => "out of range".to_string(),
                (true, true) => format!("{low:.1}x apart"),
                (true, false) => format!("{low:.1}x to {high:.1}x apart"),
            };
            let of = |c: &Claim| {
                let named = if matches!(c.what, What::Total) {
                    String::new()
                } else {
                    format!(" ({})", c.what.name())
                };
                format!("{}{named}", c.printed())
            };
            out.push(finding(
                "disagree",
                &[x, y],
                format!("the same job has {} and {}: {factor}", of(x), of(y)),
            ));
        }
    }
}

/// Less than the weights alone.
fn floors(rows: &[Row], out: &mut Vec<Finding>) {
    for r in rows {
        let c = &r.claim;
        let Some(f) = r.facts else { continue };
        let whole = is_total(c) || matches!(c.what, What::Needed(_) | What::Part(Part::Weights));
        let Some((_, most)) = c.bytes().filter(|_| whole) else {
            continue;
        };
        if most < f.weights as f64 * 0.995 {
            let text = format!(
                "{} is below the stored weights alone, {}",
                c.printed(),
                gb(f.weights as f64)
            );
            out.push(finding("floor", &[c], text));
        } else if is_total(c)
            && c.bytes().is_some_and(|b| b.0 <= f.weights as f64 * 1.005)
            && c.low > 0.0
            && c.high == Some(c.low)
        {
            let text = format!(
                "{} is the stored weights ({}) and nothing else",
                c.printed(),
                gb(f.weights as f64)
            );
            out.push(finding("floor", &[c], text));
        }
    }
}

/// Rows of one block that differ in the batch only: what a sample costs there, and in the simulator.
fn slopes(rows: &[Row], out: &mut Vec<Finding>) {
    let mut series: BTreeMap<(&str, &str, Phase), Vec<&Row>> = BTreeMap::new();
    for r in rows
        .iter()
        .filter(|r| is_total(&r.claim) && r.facts.is_some())
    {
        series
            .entry((&r.claim.block, &r.claim.subject, r.claim.phase))
            .or_default()
            .push(r);
    }
    for s in series.values() {
        let batch = |r: &Row| r.facts.map_or(0, |f| f.batch);
        let first = s.iter().min_by_key(|r| batch(r));
        let last = s.iter().max_by_key(|r| batch(r));
        let (Some(first), Some(last)) = (first, last) else {
            continue;
        };
        let (Some(a), Some(b)) = (first.facts, last.facts) else {
            continue;
        };
        let others = |r: &Row| {
            let mut t = r.claim.settings.clone();
            t.retain(|k, _| !k.contains("batch"));
            t
        };
        if a.batch == b.batch || s.iter().any(|r| others(r) != others(first)) {
            continue;
        }
        let (Some(x), Some(y)) = (middle(&first.claim), middle(&last.claim)) else {
            continue;
        };
        let n = (b.batch - a.batch) as f64;
        let (claimed, predicted) = ((y - x) / n, (b.allocated as f64 - a.allocated as f64) / n);
        let fixed = x - claimed * a.batch as f64;
        let claims = [&first.claim, &last.claim];
        if predicted > 0.0 && (claimed / predicted > 1.25 || predicted / claimed.max(1.0) > 1.25) {
            let text = format!(
                "the rows are {} and {} for each sample more; a sample costs {} of allocated memory",
                gb(fixed.max(0.0)),
                gb(claimed),
                gb(predicted)
            );
            out.push(finding("slope", &claims, text));
        }
        let cache = rows.iter().find(|r| {
            r.claim.what == What::Part(Part::KvCache)
                && document(&r.claim) == document(&first.claim)
                && r.facts.is_some_and(|f| f.weights == a.weights)
        });
        if let Some((r, f)) = cache.and_then(|r| Some((r, r.facts?)))
            && let Some(own) = middle(&r.claim)
        {
            let each = own / f.batch as f64;
            if (each / claimed - 1.0).abs() > 0.25 {
                let text = format!(
                    "a sequence costs {} in the rows and {} by the document's own KV cache",
                    gb(claimed),
                    gb(each)
                );
                out.push(finding(
                    "slope",
                    &[&first.claim, &last.claim, &r.claim],
                    text,
                ));
            }
        }
    }
}

/// One part of one model at two settings: how it grows there, and in the simulator.
fn growth(rows: &[Row], out: &mut Vec<Finding>) {
    let parts: Vec<&Row> = rows
        .iter()
        .filter(|r| matches!(r.claim.what, What::Part(Part::Activations)) && r.facts.is_some())
        .collect();
    for (i, a) in parts.iter().enumerate() {
        for b in parts.iter().skip(i + 1) {
            let (Some(f), Some(g)) = (a.facts, b.facts) else {
                continue;
            };
            let same_model = (f.parameters as f64 / g.parameters as f64 - 1.0).abs() < 0.01;
            if document(&a.claim) != document(&b.claim)
                || !same_model
                || a.job == b.job
                || f.part == 0
            {
                continue;
            }
            let (Some(x), Some(y)) = (middle(&a.claim), middle(&b.claim)) else {
                continue;
            };
            let (claimed, real) = (y / x, g.part as f64 / f.part as f64);
            if claimed / real > 1.25 || real / claimed > 1.25 {
                let text = format!(
                    "activations grow {claimed:.2}x from {} to {}; simulated, {real:.1}x",
                    a.claim.subject, b.claim.subject
                );
                out.push(finding("growth", &[&a.claim, &b.claim], text));
            }
        }
    }
}

/// Printed ratios against the document's own totals.
fn ratios(rows: &[Row], out: &mut Vec<Finding>) {
    for r in rows {
        let c = &r.claim;
        let family = |o: &Claim| {
            let stem = c.subject.trim_end_matches('*');
            document(o) == document(c) && (c.subject == "any" || o.subject.starts_with(stem))
        };
        let mut found: Vec<(f64, &Claim, &Claim)> = Vec::new();
        for a in rows
            .iter()
            .map(|r| &r.claim)
            .filter(|a| is_total(a) && family(a))
        {
            let other = rows.iter().map(|r| &r.claim).find(|b| match c.what {
                What::TrainToGenerate => {
                    let values = |c: &Claim| c.settings.values().cloned().collect::<Vec<_>>();
                    a.phase == Phase::Training
                        && b.phase == Phase::Inference
                        && is_total(b)
                        && b.line == a.line
                        && b.subject == a.subject
                        && values(a) == values(b)
                }
                What::TotalToWeights => {
                    a.phase == c.phase
                        && b.phase == c.phase
                        && b.what == What::Part(Part::Weights)
                        && b.subject == a.subject
                        && a.settings.is_empty()
                }
                _ => false,
            });
            if let Some(b) = other
                && let (Some(x), Some(y)) = (middle(a), middle(b))
            {
                found.push((x / y, a, b));
            }
        }
        let inside = |v: f64| {
            v >= c.low * (1.0 - NEAR) && v <= c.high.unwrap_or(f64::INFINITY) * (1.0 + NEAR)
        };
        let worst = found.iter().filter(|f| !inside(f.0)).max_by(|a, b| {
            (a.0 / c.low)
                .ln()
                .abs()
                .total_cmp(&(b.0 / c.low).ln().abs())
        });
        if let Some((v, a, b)) = worst {
            let outside = found.iter().filter(|f| !inside(f.0)).count();
            let text = format!(
                "{} is said to be {}; {} over {} ({}) is {v:.1}x, and {outside} of {} own rows lie outside",
                c.what.name(),
                c.printed(),
                a.printed(),
                b.printed(),
                a.subject,
                found.len()
            );
            out.push(finding("ratio", &[c, a, b], text));
        }
    }
}
