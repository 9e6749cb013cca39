//! Rows of one table against each other and against printed savings, levels and counts.

use super::super::claim::{Claim, What};
use super::super::judge::Row;
use super::{Finding, document, finding, middle};
use std::collections::BTreeMap;

/// The parameters of a subject that is a size: `7B`.
fn size_named(c: &Claim) -> Option<f64> {
    let (n, unit) = match (c.subject.strip_suffix('B'), c.subject.strip_suffix('M')) {
        (Some(n), _) => (n, 1e9),
        (_, Some(n)) => (n, 1e6),
        _ => return None,
    };
    n.parse::<f64>().ok().map(|n| n * unit)
}

/// Bytes for each parameter in the rows of one table and method.
pub(super) fn per_parameter(rows: &[Row], out: &mut Vec<Finding>) {
    let mut tables: BTreeMap<(&str, String), Vec<&Row>> = BTreeMap::new();
    for r in rows {
        let c = &r.claim;
        if let Some(m) = c.settings.get("method")
            && c.what == What::Total
            && m == "full"
            && size_named(c)
                .or(r.facts.map(|f| f.parameters as f64))
                .is_some()
        {
            tables.entry((&c.block, m.clone())).or_default().push(r);
        }
    }
    for of in tables.values() {
        let each: Vec<f64> = of
            .iter()
            .filter_map(|r| {
                Some(
                    middle(&r.claim)?
                        / size_named(&r.claim).or(r.facts.map(|f| f.parameters as f64))?,
                )
            })
            .collect();
        let low = each.iter().copied().fold(f64::INFINITY, f64::min);
        let high = each.iter().copied().fold(0.0, f64::max);
        if each.len() > 2 && high / low > 1.3 {
            let all: Vec<String> = each.iter().map(|e| format!("{e:.1}")).collect();
            let claims: Vec<&Claim> = of.iter().map(|r| &r.claim).collect();
            let text = format!(
                "bytes for each parameter are {} from row to row",
                all.join(", ")
            );
            out.push(finding("per-parameter", &claims, text));
        }
    }
}

/// Printed savings against the document's own rows.
pub(super) fn savings(rows: &[Row], out: &mut Vec<Finding>) {
    for r in rows {
        let c = &r.claim;
        let What::Saving(of) = &c.what else { continue };
        let pair: fn(&Claim, &Claim) -> bool = match of.as_str() {
            "lora vs full, 7B" => |a, b| {
                a.subject == "7B"
                    && a.settings.get("method").is_some_and(|m| m == "full")
                    && b.settings.get("method").is_some_and(|m| m == "lora")
            },
            "checkpointing" => |a, b| {
                let (x, y) = (a.settings.get("config"), b.settings.get("config"));
                x.zip(y)
                    .is_some_and(|(x, y)| *y == format!("{x} checkpointing"))
            },
            "4-bit" => |a, b| precisions(a, b, "4bit"),
            "8-bit" => |a, b| precisions(a, b, "8bit"),
            _ => continue,
        };
        let mut found: Vec<(f64, &Claim, &Claim)> = Vec::new();
        let totals: Vec<&Claim> = rows
            .iter()
            .map(|r| &r.claim)
            .filter(|o| o.what == What::Total && document(o) == document(c))
            .collect();
        for a in &totals {
            for b in totals
                .iter()
                .filter(|b| b.subject == a.subject && b.block == a.block && pair(a, b))
            {
                if let (Some(x), Some(y)) = (middle(a), middle(b)) {
                    found.push((100.0 * (x - y) / x, a, b));
                }
            }
        }
        let (low, high) = found
            .iter()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), f| {
                (l.min(f.0), h.max(f.0))
            });
        if found.is_empty() || (low >= c.low - 2.0 && high <= c.high.unwrap_or(100.0) + 2.0) {
            continue;
        }
        let mut claims = vec![c];
        for f in &found {
            claims.extend([f.1, f.2]);
        }
        let text = format!(
            "{of} is said to save {}; the document's own rows save {low:.0} to {high:.0}%",
            c.printed()
        );
        out.push(finding("saving", &claims, text));
    }
}

fn precisions(a: &Claim, b: &Claim, to: &str) -> bool {
    let of = |c: &Claim| c.settings.get("precision").cloned().unwrap_or_default();
    of(a) == "fp16" && of(b) == to
}

/// A level of advice against the document's own thresholds.
pub(super) fn levels(rows: &[Row], out: &mut Vec<Finding>) {
    for r in rows {
        let c = &r.claim;
        let What::Level(level) = &c.what else {
            continue;
        };
        let total = rows.iter().map(|r| &r.claim).find(|o| {
            o.what == What::Total && o.subject == c.subject && document(o) == document(c)
        });
        let row = total.and_then(|t| {
            rows.iter().map(|r| &r.claim).find(|o| {
                matches!(o.what, What::Threshold(_))
                    && document(o) == document(c)
                    && t.low >= o.low
                    && o.high.is_none_or(|h| t.low < h)
            })
        });
        if let (Some(t), Some(o)) = (total, row)
            && let What::Threshold(right) = &o.what
            && right != level
        {
            let text = format!(
                "{} is called {level}; by the document's own thresholds it is {right}",
                t.printed()
            );
            out.push(finding("level", &[c, t, o], text));
        }
    }
}

/// Parts of the same kind in one block with a fixed relation to the parameter count printed there.
pub(super) fn formula(rows: &[Row], out: &mut Vec<Finding>) {
    for r in rows.iter().filter(|r| r.claim.what == What::Parameters) {
        let Some(f) = r.facts else { continue };
        let counted = f.parameters as f64 / 1e6;
        if (counted / r.claim.low - 1.0).abs() > 0.02 {
            let text = format!(
                "{} is printed; the configuration has {counted:.2} M parameters",
                r.claim.printed()
            );
            out.push(finding("parameters", &[&r.claim], text));
        }
    }
}
