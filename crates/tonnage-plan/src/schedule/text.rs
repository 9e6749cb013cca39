//! Schedules as text, Markdown and CSV.

use super::ramp::{Length, Schedule};
use crate::cards::largest::Point;
use tonnage_report::{Paint, Style};
use tonnage_units::Bytes;

fn cells(l: &Length, s: &Style) -> [String; 6] {
    let bytes = |p: &Option<Point>| {
        p.as_ref().map_or("-".into(), |p| {
            Bytes(p.needed_bytes).display(s.units).to_string()
        })
    };
    let value = |p: &Option<Point>| p.as_ref().map_or("none".into(), |p| p.value.to_string());
    [
        l.seq_len.to_string(),
        value(&l.largest),
        l.batch.as_ref().map_or("none".into(), |b| {
            format!("{} x {}", b.value, l.accumulation)
        }),
        bytes(&l.batch),
        value(&l.rule),
        l.rule.as_ref().map_or(String::new(), |p| {
            format!("{} {}", bytes(&l.rule), p.outcome.name())
        }),
    ]
}

/// A schedule as text.
pub fn text(a: &Schedule, s: &Style) -> String {
    let mut t = format!(
        "{} on {}: {} left to the job; steps of {} samples.\n",
        a.job,
        a.name,
        Bytes(a.budget_bytes).display(s.units),
        a.global_batch
    );
    let broken: Vec<String> = a
        .lengths
        .iter()
        .filter(|l| l.violates)
        .map(|l| l.seq_len.to_string())
        .collect();
    if let Some(r) = &a.rule {
        t += &match broken.is_empty() {
            true => format!("{r}: within the budget at every length.\n"),
            false => format!("{r}: exceeds the budget at length {}.\n", broken.join(", ")),
        };
    }
    t.push('\n');
    let mut head = format!(
        "{:>8}{:>16}{:>20}{:>13}",
        "length", "largest batch", "batch x accumulated", "needed"
    );
    if a.rule.is_some() {
        head += &format!("{:>10}{:>21}", "by rule", "needed");
    }
    t += &s.paint(Paint::Dim, &head);
    t.push('\n');
    for l in &a.lengths {
        let c = cells(l, s);
        t += &format!("{:>8}{:>16}{:>20}{:>13}", c[0], c[1], c[2], c[3]);
        if a.rule.is_some() {
            let rule = format!("{:>10}{:>21}", c[4], c[5]);
            t += &if l.violates {
                s.paint(Paint::Bad, &rule)
            } else {
                rule
            };
        }
        t.push('\n');
    }
    for n in &a.notes {
        let mut used = 0;
        for w in format!("note: {n}").split(' ') {
            if used > 0 && used + w.len() + 1 > s.width {
                t += "\n  ";
                used = 2;
            } else if used > 0 {
                t.push(' ');
                used += 1;
            }
            t += w;
            used += w.len();
        }
        t.push('\n');
    }
    t
}

/// As Markdown.
pub fn markdown(a: &Schedule, s: &Style) -> String {
    let mut t = String::from(
        "| length | largest batch | batch x accumulation | needed | by rule | needed |\n| ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for l in &a.lengths {
        t += &format!("| {} |\n", cells(l, s).join(" | "));
    }
    t
}

/// As CSV.
pub fn csv(a: &Schedule) -> String {
    let mut t = String::from(
        "seq_len,largest,batch,accumulation,needed,rule_batch,rule_needed,rule_verdict\n",
    );
    for l in &a.lengths {
        let v = |p: &Option<Point>| p.as_ref().map_or(String::new(), |p| p.value.to_string());
        let n = |p: &Option<Point>| {
            p.as_ref()
                .map_or(String::new(), |p| p.needed_bytes.to_string())
        };
        t += &format!(
            "{},{},{},{},{},{},{},{}\n",
            l.seq_len,
            v(&l.largest),
            v(&l.batch),
            l.accumulation,
            n(&l.batch),
            v(&l.rule),
            n(&l.rule),
            l.rule.as_ref().map_or("", |p| p.outcome.name())
        );
    }
    t
}
