//! A validation report as text.

use crate::style::{Paint, Style};
use tonnage_core::validate::{Report, Row};

fn pct(v: Option<f64>) -> String {
    v.map_or_else(
        || "-".into(),
        |v| {
            if v == 0.0 {
                "0".into()
            } else {
                format!("{v:.3}")
            }
        },
    )
}

/// The summary by metric and group, the rows that are worst, and why rows have no prediction.
pub fn report(r: &Report, worst: usize, s: &Style) -> String {
    let mut o = String::new();
    let width = r.summary.keys().map(|m| m.len()).max().unwrap_or(6).max(6);
    let groups = r
        .summary
        .values()
        .flat_map(|g| g.keys().map(|k| k.len()))
        .max()
        .unwrap_or(5)
        .max(5);
    let head = format!(
        "{:<width$}  {:<groups$}{:>7}{:>13}{:>7}{:>10}{:>10}{:>10}",
        "metric", "group", "rows", "unsupported", "exact", "median %", "p95 %", "worst %"
    );
    o.push_str(&s.paint(Paint::Dim, &head));
    o.push('\n');
    for (metric, gs) in &r.summary {
        for (group, x) in gs {
            if gs.len() == 2 && group != "all" {
                continue; // one group: the same as all
            }
            o.push_str(&format!(
                "{metric:<width$}  {group:<groups$}{:>7}{:>13}{:>7}{:>10}{:>10}{:>10}\n",
                x.n,
                x.unsupported,
                x.exact,
                pct(x.median_abs_pct),
                pct(x.p95_abs_pct),
                pct(x.max_abs_pct)
            ));
        }
    }
    let mut bad: Vec<&Row> = r
        .rows
        .iter()
        .filter(|r| r.unsupported.is_none() && r.error_pct > 0.0)
        .collect();
    bad.sort_by(|a, b| b.error_pct.total_cmp(&a.error_pct));
    if worst > 0 && !bad.is_empty() {
        o.push_str(&format!("\n{}\n", s.paint(Paint::Bold, "Largest errors")));
        for r in bad.iter().take(worst) {
            o.push_str(&format!(
                "{:>9.3} %  {}: {} measured {}, predicted {}\n",
                r.error_pct, r.id, r.metric, r.measured, r.predicted
            ));
        }
    }
    let mut reasons: Vec<(&str, usize)> = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for r in r.rows.iter() {
        let Some(why) = r.unsupported.as_deref() else {
            continue;
        };
        if !seen.insert((r.id.as_str(), why)) {
            continue;
        }
        match reasons.iter_mut().find(|(w, _)| *w == why) {
            Some((_, n)) => *n += 1,
            None => reasons.push((why, 1)),
        }
    }
    reasons.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    if !reasons.is_empty() {
        o.push_str(&format!("\n{}\n", s.paint(Paint::Bold, "Not predicted")));
        for (why, n) in reasons.iter().take(20) {
            o.push_str(&format!("{n:>5} records: {why}\n"));
        }
    }
    o
}
