//! The answers as text, Markdown and CSV.

use super::have::Have;
use super::largest::{Largest, Point};
use super::need::Need;
use super::over::Over;
use super::{Row, largest};
use tonnage_core::verdict::Outcome;
use tonnage_report::csv::field;
use tonnage_report::{Paint, Style};
use tonnage_units::{ByteDelta, Bytes, Count};

fn bytes(n: u64, s: &Style) -> String {
    Bytes(n).display(s.units).to_string()
}

fn delta(n: i64, s: &Style) -> String {
    ByteDelta(i128::from(n)).display(s.units).to_string()
}

fn paint(o: Outcome) -> Paint {
    match o {
        Outcome::Fits => Paint::Good,
        Outcome::Tight => Paint::Warn,
        Outcome::No => Paint::Bad,
    }
}

fn painted(o: Outcome, text: &str, s: &Style) -> String {
    s.paint(paint(o), text)
}

/// Wide text over several lines, later ones indented.
fn wrapped(text: &str, indent: usize, s: &Style) -> String {
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

fn counted(n: u64) -> String {
    match n {
        0 => "?".into(),
        n if n >= 1_000_000_000 => format!("{:.2}B", n as f64 / 1e9),
        n => format!("{:.0}M", n as f64 / 1e6),
    }
}

/// What a memory can train.
pub fn have(a: &Have, s: &Style) -> String {
    let mut t = format!(
        "{}: {} usable, {} left to the job.\n",
        a.name,
        bytes(a.usable_bytes, s),
        bytes(a.available_bytes, s)
    );
    let best: Vec<String> = a
        .methods
        .iter()
        .map(|(m, _)| {
            format!(
                "{m} up to {}",
                a.largest(m)
                    .map_or("none of these".into(), |l| l.asked.clone())
            )
        })
        .collect();
    t += &wrapped(&format!("It trains: {}.", best.join(", ")), 2, s);
    t.push('\n');
    let w = a
        .lines
        .iter()
        .map(|l| l.model.len())
        .max()
        .unwrap_or(0)
        .max(5);
    let mut head = format!("{:<6}{:<w$}{:>7}", "size", "model", "counted");
    for (m, _) in &a.methods {
        head += &format!("{m:>15}");
    }
    t += &s.paint(Paint::Dim, &head);
    t.push('\n');
    for l in &a.lines {
        t += &format!(
            "{:<6}{:<w$}{:>7}",
            if l.asked == l.model { "-" } else { &l.asked },
            l.model,
            counted(l.parameters)
        );
        for c in &l.cells {
            let cell = match (c.outcome, c.needed_bytes) {
                (Some(o), Some(n)) => format!("{} {:<5}", bytes(n, s), o.name()),
                _ => "no answer".into(),
            };
            let padded = format!("{cell:>15}");
            t += &c.outcome.map_or(padded.clone(), |o| painted(o, &padded, s));
        }
        t.truncate(t.trim_end().len());
        t.push('\n');
        if l.cells.iter().any(|c| c.claim.is_some()) {
            let mut line = format!("{:<6}{:<w$}{:>7}", "", "claimed", "");
            for c in &l.cells {
                line += &format!(
                    "{:>15}",
                    c.claim
                        .as_ref()
                        .map_or(String::new(), |c| format!("{c} {:<5}", ""))
                );
            }
            t += line.trim_end();
            t.push('\n');
        }
    }
    t.push('\n');
    for (m, what) in &a.methods {
        t += &wrapped(&format!("{m}: {what}"), 4, s);
    }
    t += &wrapped(&format!("all: {}", a.assumptions.join(", ")), 4, s);
    for l in a.lines.iter().filter(|l| {
        l.seq_len < 2048
            && l.seq_len > 0
            && !a
                .assumptions
                .iter()
                .any(|x| x.contains("given") && x.contains("seq_len"))
    }) {
        t += &wrapped(
            &format!("{}: {} tokens, all that it has", l.model, l.seq_len),
            4,
            s,
        );
    }
    let mut said: Vec<String> = vec![];
    for l in &a.lines {
        for c in &l.cells {
            if let Some(w) = &c.why {
                let line = format!("no answer for {} by {}: {w}", l.model, c.method);
                if !said.contains(&line) {
                    t += &wrapped(&line, 4, s);
                    said.push(line);
                }
            }
        }
    }
    t
}

/// What a memory can train, as Markdown.
pub fn have_markdown(a: &Have, s: &Style) -> String {
    let mut t = String::from("| size | model |");
    for (m, _) in &a.methods {
        t += &format!(" {m} |");
    }
    t += "\n| --- | --- |";
    t += &" ---: |".repeat(a.methods.len());
    t.push('\n');
    for l in &a.lines {
        t += &format!("| {} | {} |", l.asked, l.model);
        for c in &l.cells {
            t += &match (c.outcome, c.needed_bytes) {
                (Some(o), Some(n)) => format!(" {}, {} |", bytes(n, s), o.name()),
                _ => " no answer |".into(),
            };
        }
        t.push('\n');
    }
    t
}

/// As CSV: a line for each model and method.
pub fn have_csv(a: &Have) -> String {
    let mut t = String::from("size,model,parameters,seq_len,method,needed,margin,verdict\n");
    let n = |n: Option<String>| n.unwrap_or_default();
    for l in &a.lines {
        for c in &l.cells {
            t += &format!(
                "{},{},{},{},{},{},{},{}\n",
                field(&l.asked),
                field(&l.model),
                l.parameters,
                l.seq_len,
                c.method,
                n(c.needed_bytes.map(|b| b.to_string())),
                n(c.margin_bytes.map(|b| b.to_string())),
                c.outcome.map_or("no answer", Outcome::name)
            );
        }
    }
    t
}

/// What a model needs.
pub fn need(a: &Need, s: &Style) -> String {
    let name = if a.asked == a.model {
        a.model.clone()
    } else {
        format!("{} ({})", a.asked, a.model)
    };
    let mut t = format!(
        "{name}: {} parameters, {} tokens a sample.\n",
        Count(a.parameters).grouped(),
        a.seq_len
    );
    for p in &a.plans {
        t.push('\n');
        t += &s.paint(
            Paint::Bold,
            &format!("{}: {}", p.method, bytes(p.needed_bytes, s)),
        );
        if let Some(c) = &p.claim {
            t += &format!(" (claimed: {c})");
        }
        t += &format!("  {}\n", p.what);
        if let Some(w) = &p.why {
            t += &wrapped(&format!("  no answer: {w}"), 4, s);
        }
        for k in &p.picks {
            match &k.row {
                None if k.grade == "ideal"
                    && p.picks
                        .iter()
                        .any(|q| q.grade == "recommended" && q.row.is_none()) => {}
                None => t += &format!("  {:<12}  no single card\n", k.grade),
                Some(r) => {
                    t += &format!(
                        "  {:<12}  {} ({} usable, margin {}, {})\n",
                        k.grade,
                        r.gpu,
                        bytes(r.usable_bytes, s),
                        delta(r.margin_bytes, s),
                        painted(r.outcome, r.outcome.name(), s)
                    );
                    if !k.also.is_empty() {
                        let more = k.also.len().saturating_sub(6);
                        let mut names = k.also.clone();
                        names.truncate(6);
                        let more = if more > 0 {
                            format!(" and {more} more")
                        } else {
                            String::new()
                        };
                        t += &wrapped(
                            &format!("                also {}{more}", names.join(", ")).replacen(
                                "                also",
                                "also",
                                1,
                            ),
                            16,
                            s,
                        )
                        .replacen("also", "                also", 1);
                    }
                    if let Some(rent) = &k.rent {
                        t += &wrapped(
                            &format!(
                                "rented from {:.3} USD/h: {} x {}, {} ({}, {})",
                                rent.usd_per_hour,
                                rent.gpus,
                                rent.instance,
                                rent.region,
                                rent.date,
                                rent.source
                            ),
                            16,
                            s,
                        )
                        .replacen("rented", "                rented", 1);
                    }
                }
            }
        }
    }
    t.push('\n');
    t += "minimum: it runs; recommended: it fits with a tenth of the card free; ideal: so do 4 samples at a time\n";
    t += &wrapped(&format!("all: {}", a.assumptions.join(", ")), 4, s);
    for n in &a.notes {
        t += &wrapped(n, 4, s);
    }
    t
}

/// What a model needs, as Markdown.
pub fn need_markdown(a: &Need, s: &Style) -> String {
    let mut t = String::from(
        "| method | needs | minimum | recommended | ideal |\n| --- | ---: | --- | --- | --- |\n",
    );
    for p in &a.plans {
        t += &format!("| {} | {} |", p.method, bytes(p.needed_bytes, s));
        for grade in ["minimum", "recommended", "ideal"] {
            let k = p
                .picks
                .iter()
                .find(|k| k.grade == grade)
                .and_then(|k| k.row.as_ref());
            t += &format!(
                " {} |",
                k.map_or("no single card".into(), |r| r.name.clone())
            );
        }
        t.push('\n');
    }
    t
}

/// As CSV: a line for each method and grade.
pub fn need_csv(a: &Need) -> String {
    let mut t = String::from(
        "model,parameters,method,grade,gpu,usable,needed,margin,verdict,instance,usd_per_hour,price_date,price_source\n",
    );
    for p in &a.plans {
        for k in &p.picks {
            let (gpu, usable, needed, margin, verdict) = k.row.as_ref().map_or(
                (
                    String::new(),
                    String::new(),
                    p.needed_bytes.to_string(),
                    String::new(),
                    "no single card",
                ),
                |r| {
                    (
                        r.gpu.clone(),
                        r.usable_bytes.to_string(),
                        r.needed_bytes.to_string(),
                        r.margin_bytes.to_string(),
                        r.outcome.name(),
                    )
                },
            );
            let (i, usd, date, source) = k.rent.as_ref().map_or(
                (String::new(), String::new(), String::new(), String::new()),
                |r| {
                    (
                        field(&r.instance),
                        r.usd_per_hour.to_string(),
                        r.date.clone(),
                        field(&r.source),
                    )
                },
            );
            t += &format!(
                "{},{},{},{},{gpu},{usable},{needed},{margin},{verdict},{i},{usd},{date},{source}\n",
                field(&a.model),
                a.parameters,
                p.method,
                k.grade
            );
        }
    }
    t
}
