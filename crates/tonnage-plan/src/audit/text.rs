//! An audit as text and Markdown.

use super::claim::Claim;
use super::judge::{Prediction, Row, Verdict};
use super::{Audit, Finding};
use tonnage_report::Style;
use tonnage_units::Bytes;

fn predicted(p: Prediction, s: &Style) -> String {
    let bytes = |n: u64| Bytes(n).display(s.units).to_string();
    match p {
        Prediction::Bytes { low, high } if low == high => bytes(low),
        Prediction::Bytes { low, high } => format!("{} to {}", bytes(low), bytes(high)),
        Prediction::Percent { low, high } if high - low < 1.0 => format!("{}%", low.round() as i64),
        Prediction::Percent { low, high } => {
            format!("{} to {}%", low.round() as i64, high.round() as i64)
        }
        Prediction::Ratio { low, high } => format!("{low:.1} to {high:.1}x"),
        Prediction::Millions { value } => format!("{value:.2} M"),
    }
}

fn verdict(r: &Row) -> String {
    match r.factor.filter(|_| r.verdict == Verdict::Fails) {
        Some(f) if f >= 1.0 => format!("low by {f:.1}x"),
        Some(f) => format!("high by {:.1}x", 1.0 / f),
        None => r.verdict.name().into(),
    }
}

fn about(c: &Claim) -> String {
    let subject = if c.subject.is_empty() {
        "?"
    } else {
        &c.subject
    };
    let conditions = c.conditions();
    let gap = if conditions.is_empty() { "" } else { ", " };
    let answer = c
        .answer
        .as_ref()
        .map_or(String::new(), |a| format!(" = {a}"));
    format!("{subject}: {}{answer}{gap}{conditions}", c.what.name())
}

/// Shortens to a number of columns.
fn cut(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.into();
    }
    let head: String = text.chars().take(columns.saturating_sub(2)).collect();
    format!("{head}..")
}

fn headline(a: &Audit) -> String {
    let n = |v| a.count(v);
    format!(
        "{}: {} claims, {} hold, {} tight, {} fail, {} not judged; {} contradictions",
        a.document,
        a.rows.len(),
        n(Verdict::Holds),
        n(Verdict::Tight),
        n(Verdict::Fails),
        n(Verdict::NotJudged),
        a.findings.len()
    )
}

/// As text: the answer, a line for each claim, the contradictions, what each subject was taken for.
pub fn text(a: &Audit, s: &Style) -> String {
    let mut o = format!("{}\n\n", headline(a));
    let wide = s.width.max(60);
    let longest = a.rows.iter().map(|r| r.claim.id.chars().count()).max();
    let id = longest.unwrap_or(0).clamp(5, 11);
    let claim = (wide.saturating_sub(id + 52)).clamp(18, 56);
    o += &format!(
        "{:<id$} {:<claim$} {:>12}  {:<22} {}\n",
        "claim", "about", "printed", "simulated", "verdict"
    );
    for r in &a.rows {
        let p = r.predicted.map_or(String::new(), |p| predicted(p, s));
        let line = format!(
            "{:<id$} {:<claim$} {:>12}  {:<22} {}",
            cut(&r.claim.id, id),
            cut(&about(&r.claim), claim),
            cut(&r.claim.printed(), 12),
            p,
            verdict(r)
        );
        o += line.trim_end();
        o.push('\n');
    }
    if !a.findings.is_empty() {
        o += "\nContradictions (whatever the truth is)\n";
    }
    for f in &a.findings {
        o += &wrapped(&sentence(f), wide);
    }
    o += "\nTaken to mean\n";
    for (subject, how, job) in bindings(a) {
        o += &wrapped(&format!("{subject} ({how}): {job}"), wide);
    }
    for (why, n) in reasons(a) {
        o += &wrapped(&format!("not judged, {n}: {why}"), wide);
    }
    o
}

fn sentence(f: &Finding) -> String {
    let first: Vec<&str> = f.claims.iter().take(3).map(String::as_str).collect();
    let more = if f.claims.len() > 3 { ", .." } else { "" };
    let gap = if f.subject.is_empty() { "" } else { ": " };
    let ids = if first.is_empty() {
        String::new()
    } else {
        format!(" [{}{more}]", first.join(", "))
    };
    format!("{}: {}{gap}{}{ids}", f.check, f.subject, f.text)
}

/// Lines of a width, the later ones indented.
fn wrapped(text: &str, width: usize) -> String {
    let mut o = String::from("- ");
    let mut column = 2;
    for w in text.split_whitespace() {
        let n = w.chars().count();
        if column + n > width && column > 4 {
            o += "\n  ";
            column = 2;
        }
        o += w;
        o.push(' ');
        column += n + 1;
    }
    format!("{}\n", o.trim_end())
}

/// Subjects by the model that they were taken for.
fn bindings(a: &Audit) -> Vec<(String, &'static str, String)> {
    let mut out: Vec<(String, &'static str, String)> = Vec::new();
    for r in &a.rows {
        let (Some(job), Some(how)) = (&r.job, r.how) else {
            continue;
        };
        let how = match how {
            super::How::Stated => "stated",
            super::How::Inferred => "inferred",
        };
        let value = |key: &str| {
            job.lines().find_map(|l| {
                let v = l.trim().strip_prefix(key)?.trim().strip_prefix('=')?;
                Some(v.trim().trim_matches('"').to_string())
            })
        };
        let model = value("id").or_else(|| value("type")).unwrap_or_default();
        let subject = &r.claim.subject;
        match out.iter_mut().find(|(_, h, m)| *h == how && *m == model) {
            Some((s, _, _)) if s.split(", ").any(|n| n == subject) => {}
            Some((s, _, _)) => *s = format!("{s}, {subject}"),
            None => out.push((subject.clone(), how, model)),
        }
    }
    out
}

fn reasons(a: &Audit) -> Vec<(&str, usize)> {
    let mut out: Vec<(&str, usize)> = Vec::new();
    for r in a.rows.iter().filter(|r| r.verdict == Verdict::NotJudged) {
        match out.iter_mut().find(|(w, _)| *w == r.why) {
            Some((_, n)) => *n += 1,
            None => out.push((&r.why, 1)),
        }
    }
    out
}

/// As Markdown.
pub fn markdown(a: &Audit, s: &Style) -> String {
    let mut o = format!(
        "{}\n\n| claim | about | printed | simulated | verdict |\n| --- | --- | ---: | ---: | --- |\n",
        headline(a)
    );
    let cell = |t: String| t.replace('|', "\\|");
    for r in &a.rows {
        let p = r.predicted.map_or(String::new(), |p| predicted(p, s));
        let c = &r.claim;
        o += &format!(
            "| {} | {} | {} | {p} | {} |\n",
            c.id,
            cell(about(c)),
            cell(c.printed()),
            verdict(r)
        );
    }
    if !a.findings.is_empty() {
        o += "\n**Contradictions**\n\n";
    }
    for f in &a.findings {
        o += &format!("- {}\n", sentence(f));
    }
    o
}
