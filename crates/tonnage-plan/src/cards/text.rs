//! Cards and limits as text, Markdown and CSV.

use super::largest::{ByCard, Largest, Point};
use super::over::Over;
use super::{Row, largest};
use crate::report::plan::number;
use tonnage_core::verdict::Outcome;
use tonnage_report::csv::field;
use tonnage_report::{Paint, Style};
use tonnage_units::{ByteDelta, Bytes, Count};

pub(super) fn bytes(n: u64, s: &Style) -> String {
    Bytes(n).display(s.units).to_string()
}

pub(super) fn delta(n: i64, s: &Style) -> String {
    ByteDelta(i128::from(n)).display(s.units).to_string()
}

fn paint(o: Outcome) -> Paint {
    match o {
        Outcome::Fits => Paint::Good,
        Outcome::Tight => Paint::Warn,
        Outcome::No => Paint::Bad,
    }
}

pub(super) fn painted(o: Outcome, text: &str, s: &Style) -> String {
    s.paint(paint(o), text)
}

/// Wide text over several lines, later ones indented.
pub(super) fn wrapped(text: &str, indent: usize, s: &Style) -> String {
    let mut out = String::new();
    let mut used = 0;
    for w in text.split_whitespace() {
        if used > 0 && used + 1 + w.len() > s.width {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            used = indent;
        } else if used > 0 {
            out.push(' ');
            used += 1;
        }
        out.push_str(w);
        used += w.len();
    }
    out.push('\n');
    out
}

/// Rows around the limit: so many on each side where not all are asked for.
const NEAR: usize = 10;

/// Cards for a job: the answer, then the cards around the limit (`all`: every card).
pub fn over(a: &Over, all: bool, s: &Style) -> String {
    let (fits, tight, no) = (
        a.count(Outcome::Fits),
        a.count(Outcome::Tight),
        a.count(Outcome::No),
    );
    let mut t = format!(
        "{}: {fits} of {} cards fit, {tight} tight, {no} do not hold it.\n",
        a.job,
        a.rows.len()
    );
    if let Some(least) = a.rows.iter().find(|r| r.outcome == Outcome::Fits) {
        t += &format!(
            "The least that fits: {} ({} needed of {} usable).\n",
            least.name,
            bytes(least.needed_bytes, s),
            bytes(least.usable_bytes, s)
        );
    }
    t.push('\n');
    // the last that fail, everything between, the first that fit
    let first_run = a
        .rows
        .iter()
        .position(|r| r.outcome != Outcome::No)
        .unwrap_or(a.rows.len());
    let last_not = a
        .rows
        .iter()
        .rposition(|r| r.outcome != Outcome::Fits)
        .map_or(0, |i| i + 1);
    let (mut from, mut to) = (
        first_run.saturating_sub(NEAR),
        (last_not.max(first_run) + NEAR).min(a.rows.len()),
    );
    if all {
        (from, to) = (0, a.rows.len());
    }
    t += &rows(
        &a.rows[from..to],
        a.claims.get(from..to).unwrap_or_default(),
        s,
    );
    let hidden = [(from, "smaller"), (a.rows.len() - to, "larger")];
    let words: Vec<String> = hidden
        .iter()
        .filter(|h| h.0 > 0)
        .map(|(n, w)| format!("{n} {w}"))
        .collect();
    if !words.is_empty() {
        t += &format!("not shown: {} (--all)\n", words.join(", "));
    }
    if !a.unanswered.is_empty() {
        t += &wrapped(
            &format!(
                "no answer for {} cards without figures for kernels, context or memory (other vendors, unified memory; --format json names them)",
                a.unanswered.len()
            ),
            2,
            s,
        );
    }
    t += &wrapped(
        "needed: the device level of `tonnage estimate`; margin: what the allocator can have, less what it would reserve with no limit",
        2,
        s,
    );
    for n in &a.notes {
        t += &wrapped(&format!("note: {n}"), 2, s);
    }
    t
}

/// Rows of cards as a table; with claims, what somebody else says of each.
pub fn rows(list: &[Row], claims: &[String], s: &Style) -> String {
    let w = list.iter().map(|r| r.gpu.len()).max().unwrap_or(0).max(4);
    let taken = list.iter().any(|r| r.taken_bytes > 0);
    let others = |text: String| {
        if taken {
            format!("{text:>12}")
        } else {
            String::new()
        }
    };
    let head = format!(
        "{:<w$}{:>12}{}{:>12}{:>13}  verdict{}",
        "card",
        "usable",
        others("others".into()),
        "needed",
        "margin",
        if claims.is_empty() { "" } else { "  claimed" }
    );
    let mut t = s.paint(Paint::Dim, &head) + "\n";
    for (i, r) in list.iter().enumerate() {
        let verdict = format!("{:<7}", r.outcome.name());
        let line = format!(
            "{:<w$}{:>12}{}{:>12}{:>13}  {}  {}",
            r.gpu,
            bytes(r.usable_bytes, s),
            others(bytes(r.taken_bytes, s)),
            bytes(r.needed_bytes, s),
            delta(r.margin_bytes, s),
            painted(r.outcome, &verdict, s),
            claims.get(i).map_or("", String::as_str)
        );
        t += line.trim_end();
        t.push('\n');
    }
    t
}

/// Rows of cards as Markdown.
pub fn rows_markdown(list: &[Row], s: &Style) -> String {
    let mut t = String::from(
        "| card | usable | needed | margin | verdict |\n| --- | ---: | ---: | ---: | --- |\n",
    );
    for r in list {
        t += &format!(
            "| {} | {} | {} | {} | {} |\n",
            r.name,
            bytes(r.usable_bytes, s),
            bytes(r.needed_bytes, s),
            delta(r.margin_bytes, s),
            r.outcome.name()
        );
    }
    t
}

/// Rows of cards as CSV.
pub fn rows_csv(list: &[Row]) -> String {
    let mut t = String::from("gpu,name,usable,taken,available,needed,margin,verdict\n");
    for r in list {
        t += &format!(
            "{},{},{},{},{},{},{},{}\n",
            field(&r.gpu),
            field(&r.name),
            r.usable_bytes,
            r.taken_bytes,
            r.available_bytes,
            r.needed_bytes,
            r.margin_bytes,
            r.outcome.name()
        );
    }
    t
}

/// The largest value of a setting.
pub fn largest(a: &Largest, s: &Style) -> String {
    let local = a.setting.rsplit('.').next().unwrap_or(a.setting);
    let head = match (&a.fits, &a.runs) {
        (Some(p), _) => format!(
            "{} on {}: the largest {local} that fits is {}.",
            a.job,
            a.name,
            Count(p.value).grouped()
        ),
        (None, Some(p)) => format!(
            "{} on {}: no {local} fits with certainty; up to {} it runs (tight).",
            a.job,
            a.name,
            Count(p.value).grouped()
        ),
        (None, None) => format!("{} on {}: not even {local} {} runs.", a.job, a.name, a.step),
    };
    let mut t = wrapped(&head, 2, s);
    t += &format!(
        "\n{}\n",
        s.paint(
            Paint::Dim,
            &format!(
                "{local:<26}{:>10}{:>14}{:>14}  verdict",
                "value", "needed", "margin"
            )
        )
    );
    let mut seen: Vec<u64> = vec![];
    for (what, p) in [
        ("largest that fits", &a.fits),
        ("the next", &a.next),
        ("largest that runs", &a.runs),
        ("the next", &a.fails),
    ] {
        if let Some(p) = p
            && !seen.contains(&p.value)
        {
            seen.push(p.value);
            t += &format!(
                "{what:<26}{:>10}{:>14}{:>14}  {}\n",
                Count(p.value).grouped(),
                bytes(p.needed_bytes, s),
                delta(p.margin_bytes, s),
                painted(p.outcome, p.outcome.name(), s)
            );
        }
    }
    let checked = if a.stride == 1 {
        format!(
            "every {}value below was simulated ({} in all)",
            if a.step > 1 {
                format!("{}th ", a.step)
            } else {
                String::new()
            },
            a.simulated
        )
    } else {
        format!(
            "{} values were simulated: every {}th below, and all between the last of these that fits and the next",
            a.simulated,
            a.step * a.stride
        )
    };
    t += &wrapped(&checked, 2, s);
    if let Some(c) = &a.capped {
        t += &wrapped(&format!("no larger value: {c}"), 2, s);
    }
    t
}

/// As CSV: `what,value,effective_batch,needed,available,margin,verdict`.
pub fn largest_csv(a: &Largest) -> String {
    let mut t = String::from("what,value,effective_batch,needed,available,margin,verdict\n");
    let mut line = |what: &str, p: &Option<Point>| {
        if let Some(p) = p {
            t += &format!(
                "{what},{},{},{},{},{},{}\n",
                p.value,
                p.effective_batch,
                p.needed_bytes,
                p.available_bytes,
                p.margin_bytes,
                p.outcome.name()
            );
        }
    };
    line("fits", &a.fits);
    line("next", &a.next);
    line("runs", &a.runs);
    line("fails", &a.fails);
    t
}

/// As Markdown.
pub fn largest_markdown(a: &Largest, s: &Style) -> String {
    let mut t = format!(
        "| {} | value | needed | margin | verdict |\n| --- | ---: | ---: | ---: | --- |\n",
        a.setting
    );
    for (what, p) in [
        ("largest that fits", &a.fits),
        ("the next", &a.next),
        ("largest that runs", &a.runs),
        ("the next", &a.fails),
    ] {
        if let Some(largest::Point {
            value,
            needed_bytes,
            margin_bytes,
            outcome,
            ..
        }) = p
        {
            t += &format!(
                "| {what} | {value} | {} | {} | {} |\n",
                bytes(*needed_bytes, s),
                delta(*margin_bytes, s),
                outcome.name()
            );
        }
    }
    t
}

/// Cells of a card's row: card, fits up to, needs, runs up to, fails at, claim.
fn card_cells(a: &ByCard, i: usize, s: &Style) -> Option<[String; 6]> {
    let r = a.rows.get(i)?;
    let value = |p: &Option<Point>| {
        let p = p.as_ref();
        p.map_or("none".into(), |p| Count(p.value).grouped())
    };
    let needs = r.fits.as_ref().or(r.runs.as_ref());
    Some([
        r.gpu.clone(),
        value(&r.fits),
        needs.map_or("-".into(), |p| bytes(p.needed_bytes, s)),
        value(&r.runs),
        r.fails
            .as_ref()
            .map_or("-".into(), |p| Count(p.value).grouped()),
        a.claims.get(i).cloned().unwrap_or_default(),
    ])
}

/// Cells of the speed and the money at the largest that fits; none: not asked for.
fn rate_cells(a: &ByCard, i: usize) -> Option<[String; 2]> {
    let asked = a.rows.iter().any(|r| r.rate.is_some());
    let rate = a.rows.get(i)?.rate.as_ref();
    asked.then(|| {
        let speed = rate.map(|r| number(r.tokens_per_s.expected));
        let usd =
            rate.and_then(|r| Some(format!("${}", number(r.usd_per_million_tokens?.expected))));
        [speed, usd].map(|c| c.unwrap_or_else(|| "-".into()))
    })
}

/// Where the prices of a table come from, with the range of its speeds.
fn rate_notes(a: &ByCard) -> Vec<String> {
    let mut out = Vec::new();
    for r in &a.rows {
        let Some(rate) = &r.rate else { continue };
        let t = rate.tokens_per_s;
        let price = rate.price.as_deref().unwrap_or("no dated price is known");
        out.push(format!(
            "{}: {} to {} tokens/s; {price}",
            r.gpu,
            number(t.low),
            number(t.high)
        ));
    }
    out
}

/// The largest value on each of several cards.
pub fn by_card(a: &ByCard, s: &Style) -> String {
    let setting = a.rows.first().map_or("", |r| r.setting);
    let mut t = format!("{}: the largest {setting} on each card.\n\n", a.job);
    let w = a.rows.iter().map(|r| r.gpu.len()).max().unwrap_or(0).max(4);
    let claims = if a.claims.is_empty() { "" } else { "  claimed" };
    let rates = rate_cells(a, 0).map_or(String::new(), |_| {
        format!("{:>10}{:>14}", "tokens/s", "per M tokens")
    });
    let head = format!(
        "{:<w$}{:>12}{:>13}{:>13}{:>11}{rates}{claims}",
        "card", "fits up to", "needs", "runs up to", "fails at"
    );
    t += &s.paint(Paint::Dim, &head);
    t.push('\n');
    for i in 0..a.rows.len() {
        let Some([card, fits, needs, runs, fails, claim]) = card_cells(a, i, s) else {
            continue;
        };
        let rates = rate_cells(a, i).map_or(String::new(), |[v, d]| format!("{v:>10}{d:>14}"));
        let line = format!("{card:<w$}{fits:>12}{needs:>13}{runs:>13}{fails:>11}{rates}  {claim}");
        t += line.trim_end();
        t.push('\n');
    }
    let notes = rate_notes(a);
    if !notes.is_empty() {
        t += "\nspeed and money at the largest that fits; ranges and prices:\n";
        for n in notes {
            t += &format!("  - {n}\n");
        }
    }
    t
}

/// As Markdown.
pub fn by_card_markdown(a: &ByCard, s: &Style) -> String {
    let (head, line) = match rate_cells(a, 0) {
        Some(_) => (" tokens/s | per M tokens |", " ---: | ---: |"),
        None => ("", ""),
    };
    let mut t = format!(
        "| card | fits up to | needs | runs up to | fails at |{head} claimed |\n| --- | ---: | ---: | ---: | ---: |{line} --- |\n",
    );
    for i in 0..a.rows.len() {
        if let Some(c) = card_cells(a, i, s) {
            let rates = rate_cells(a, i).map_or(String::new(), |r| format!(" {} |", r.join(" | ")));
            t += &format!("| {} |{rates} {} |\n", c[..5].join(" | "), c[5]);
        }
    }
    for n in rate_notes(a) {
        t += &format!("\n- {n}");
    }
    if head.is_empty() { t } else { t + "\n" }
}

/// As CSV.
pub fn by_card_csv(a: &ByCard) -> String {
    let mut t = String::from(
        "gpu,setting,fits,needs,runs,fails,tokens_per_s,usd_per_million_tokens,claimed\n",
    );
    let n = |p: &Option<Point>| p.as_ref().map_or(String::new(), |p| p.value.to_string());
    for (i, r) in a.rows.iter().enumerate() {
        let needs = r
            .fits
            .as_ref()
            .map_or(String::new(), |p| p.needed_bytes.to_string());
        let rate = r.rate.as_ref();
        let speed = rate.map_or(String::new(), |x| number(x.tokens_per_s.expected));
        let usd = rate
            .and_then(|x| x.usd_per_million_tokens)
            .map_or(String::new(), |u| number(u.expected));
        t += &format!(
            "{},{},{},{needs},{},{},{speed},{usd},{}\n",
            r.gpu,
            r.setting,
            n(&r.fits),
            n(&r.runs),
            n(&r.fails),
            a.claims.get(i).map_or(String::new(), |c| field(c))
        );
    }
    t
}
