//! Jobs side by side.

use crate::style::{Paint, Style};
use tonnage_core::footprint::{Component, Footprint};
use tonnage_units::{ByteDelta, Bytes};

/// One job of a comparison.
pub struct Entry {
    pub label: String,
    /// The footprint, or why there is none.
    pub footprint: Result<Footprint, String>,
}

/// Jobs to show side by side; the first is what the others are compared with.
pub struct Comparison {
    pub entries: Vec<Entry>,
    /// What somebody else says of each job, as given; empty: nobody.
    pub claims: Vec<String>,
}

impl Comparison {
    /// The components that any of the jobs has.
    pub fn components(&self) -> Vec<Component> {
        Component::ALL
            .into_iter()
            .filter(|c| {
                self.entries
                    .iter()
                    .flat_map(|e| &e.footprint)
                    .any(|f| f.component(*c) > 0)
            })
            .collect()
    }

    fn first(&self) -> Option<&Footprint> {
        self.entries.iter().find_map(|e| e.footprint.as_ref().ok())
    }

    /// The rows of the table: name and a value for each job.
    fn rows(&self) -> Vec<(String, Vec<Option<u64>>)> {
        let get = |g: &dyn Fn(&Footprint) -> u64| {
            self.entries
                .iter()
                .map(|e| e.footprint.as_ref().ok().map(g))
                .collect::<Vec<_>>()
        };
        let mut rows: Vec<(String, Vec<Option<u64>>)> = self
            .components()
            .into_iter()
            .map(|c| (c.title().to_string(), get(&|f| f.component(c))))
            .collect();
        rows.push(("= allocated".into(), get(&|f| f.peak.allocated.expected)));
        rows.push(("= reserved".into(), get(&|f| f.peak.reserved.expected)));
        rows.push(("= device".into(), get(&|f| f.peak.device.expected)));
        rows
    }
}

/// A cell: the amount, and against the first job the difference in bytes and percent.
fn change(now: u64, first: u64, s: &Style) -> String {
    if now == first {
        return "0".into();
    }
    let d = ByteDelta(i128::from(now) - i128::from(first));
    if first == 0 {
        return d.display(s.units).to_string();
    }
    let percent = 100.0 * (now as f64 - first as f64) / first as f64;
    // of a few bytes that became gigabytes the percentage says nothing
    if percent > 9999.0 {
        format!("{} (> 9999 %)", d.display(s.units))
    } else {
        format!("{} ({percent:+.1} %)", d.display(s.units))
    }
}

/// The column of claims: its head, or a job's cell; nothing where nobody claims anything.
fn claimed(c: &Comparison, of: Option<usize>) -> String {
    if c.claims.is_empty() {
        return String::new();
    }
    let text = of.map_or("claimed", |i| c.claims.get(i).map_or("", String::as_str));
    format!("{text:>12}")
}

/// A comparison as text: a job a row where there are many (with bars), else a job a column with the change against the first.
pub fn text(c: &Comparison, s: &Style) -> String {
    let mut o = String::new();
    let mut line = |t: &str| {
        o.push_str(t.trim_end());
        o.push('\n');
    };
    let bytes = |n: u64| Bytes(n).display(s.units).to_string();
    let widest = c
        .entries
        .iter()
        .map(|e| e.label.chars().count())
        .max()
        .unwrap_or(0)
        .clamp(12, 44);
    let most = c
        .entries
        .iter()
        .flat_map(|e| &e.footprint)
        .map(|f| f.peak.device.expected)
        .max()
        .unwrap_or(1);
    let head = format!(
        "{:<widest$}{:>13}{:>13}{:>13}{}  {:<10}",
        "job",
        "allocated",
        "reserved",
        "device",
        claimed(c, None),
        "peak in"
    );
    line(&s.paint(Paint::Dim, &head));
    let room = s.width.saturating_sub(head.chars().count() + 1).min(30);
    for (i, e) in c.entries.iter().enumerate() {
        match &e.footprint {
            Ok(f) => line(&format!(
                "{:<widest$}{:>13}{:>13}{:>13}{}  {:<10} {}",
                e.label,
                bytes(f.peak.allocated.expected),
                bytes(f.peak.reserved.expected),
                bytes(f.peak.device.expected),
                claimed(c, Some(i)),
                f.instant.phase,
                s.bar(f.peak.device.expected, most, room)
            )),
            Err(why) => line(&format!("{:<widest$}  no answer: {why}", e.label)),
        }
    }
    let Some(first) = c.first() else { return o };
    if c.entries.len() > 1 && c.entries.len() <= 5 {
        for e in c.entries.iter().skip(1) {
            let Ok(f) = &e.footprint else { continue };
            line("");
            line(&s.paint(
                Paint::Bold,
                &format!("{} against {}", e.label, c.entries[0].label),
            ));
            for k in c.components() {
                let (a, b) = (f.component(k), first.component(k));
                line(&format!(
                    "{:<26}{:>14}{:>14}  {}",
                    k.title(),
                    bytes(b),
                    bytes(a),
                    change(a, b, s)
                ));
            }
            for (name, a, b) in [
                (
                    "= allocated",
                    f.peak.allocated.expected,
                    first.peak.allocated.expected,
                ),
                (
                    "= reserved",
                    f.peak.reserved.expected,
                    first.peak.reserved.expected,
                ),
                (
                    "= device",
                    f.peak.device.expected,
                    first.peak.device.expected,
                ),
            ] {
                line(&s.paint(
                    Paint::Bold,
                    &format!(
                        "{name:<26}{:>14}{:>14}  {}",
                        bytes(b),
                        bytes(a),
                        change(a, b, s)
                    ),
                ));
            }
        }
    }
    for l in crate::against::caches(c, s) {
        line(&l);
    }
    for l in crate::against::text(c, s) {
        line(&l);
    }
    for l in crate::against::verdicts(c, s) {
        line(&l);
    }
    o
}

/// A comparison as a Markdown table: a job a column.
pub fn markdown(c: &Comparison, s: &Style) -> String {
    let mut o = String::from("|  |");
    for e in &c.entries {
        o.push_str(&format!(" {} |", e.label.replace('|', "\\|")));
    }
    o.push_str("\n| --- |");
    o.push_str(&" ---: |".repeat(c.entries.len()));
    o.push('\n');
    for (name, cells) in c.rows() {
        o.push_str(&format!("| {name} |"));
        for cell in cells {
            o.push_str(&match cell {
                Some(n) => format!(" {} |", Bytes(n).display(s.units)),
                None => " - |".into(),
            });
        }
        o.push('\n');
    }
    if !c.claims.is_empty() {
        o.push_str("| claimed |");
        for i in 0..c.entries.len() {
            let claim = c.claims.get(i).map_or("", String::as_str);
            o.push_str(&format!(" {} |", claim.replace('|', "\\|")));
        }
        o.push('\n');
    }
    let more = crate::against::caches(c, s)
        .into_iter()
        .chain(crate::against::text(c, s));
    for l in more.chain(crate::against::verdicts(c, s)) {
        // a list item a line
        let l = l.trim();
        if !l.is_empty() {
            o.push_str(&format!("\n- {l}"));
        }
    }
    if !o.ends_with('\n') {
        o.push('\n');
    }
    o
}

/// A comparison as JSON: `tonnage.compare/1`, a footprint (or the reason for none) a job.
pub fn json(c: &Comparison) -> String {
    let jobs: Vec<serde_json::Value> = c
        .entries
        .iter()
        .enumerate()
        .map(|(i, e)| {
            let mut v = match &e.footprint {
                Ok(f) => serde_json::json!({"label": e.label, "footprint": f}),
                Err(why) => serde_json::json!({"label": e.label, "error": why}),
            };
            if let (Some(claim), Some(o)) = (c.claims.get(i), v.as_object_mut()) {
                o.insert("claim".into(), claim.as_str().into());
            }
            v
        })
        .collect();
    crate::json::pretty(&serde_json::json!({
        "schema": "tonnage.compare/1",
        "jobs": jobs,
        "training_against_generation": crate::against::json(c),
    }))
}
