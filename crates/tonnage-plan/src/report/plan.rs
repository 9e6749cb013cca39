//! A plan as text and Markdown.

use super::whatif::Section;
use crate::plan::{Plan, Point};
use crate::time::Span;
use std::fmt::Write;
use tonnage_report::Style;
use tonnage_report::csv::field;
use tonnage_report::style::Paint;
use tonnage_units::{ByteDelta, Bytes};

fn bytes(n: u64, s: &Style) -> String {
    Bytes(n).display(s.units).to_string()
}

fn delta(n: i64, s: &Style) -> String {
    ByteDelta(i128::from(n)).display(s.units).to_string()
}

/// Three significant digits.
pub(crate) fn number(x: f64) -> String {
    let digits = if x >= 100.0 || x <= 0.0 {
        0
    } else if x >= 10.0 {
        1
    } else if x >= 1.0 {
        2
    } else {
        (2.0 - x.log10().floor()).clamp(0.0, 9.0) as usize
    };
    format!("{x:.digits$}")
}

fn range(s: Span) -> String {
    format!(
        "{} ({} to {})",
        number(s.expected),
        number(s.low),
        number(s.high)
    )
}

fn known(p: &Point) -> bool {
    !p.time.parts.is_empty()
}

fn split(p: &Point) -> String {
    format!("{} x {}", p.micro_batch_size, p.gradient_accumulation_steps)
}

/// The table's columns: batch, verdict, reserved, margin, speed, dollars a million tokens.
fn columns(p: &Point, s: &Style) -> [String; 6] {
    [
        split(p),
        p.outcome.to_string(),
        bytes(p.peak_reserved_bytes, s),
        delta(p.margin_bytes, s),
        if known(p) {
            number(p.time.tokens_per_s.expected)
        } else {
            "?".into()
        },
        p.cost.as_ref().map_or("-".into(), |c| {
            format!("${}", number(c.usd_per_million_tokens.expected))
        }),
    ]
}

const HEADS: [&str; 6] = [
    "batch",
    "verdict",
    "reserved",
    "left",
    "tokens/s",
    "per M tokens",
];

/// The points that are shown, with their names.
fn points(p: &Plan) -> Vec<(String, &Point)> {
    let mut all = vec![("yours".to_string(), &p.yours)];
    all.extend(p.recommended.as_ref().map(|r| ("recommended".into(), r)));
    all.extend(p.next.as_ref().map(|n| ("next step".into(), n)));
    let others = p.front.iter().filter(|f| {
        f.changes != p.yours.changes
            && p.recommended
                .as_ref()
                .is_none_or(|r| r.changes != f.changes)
    });
    all.extend(others.map(|f| ("front".into(), f)));
    all
}

/// Text in lines of at most `width` columns, the second and later ones indented.
fn folded(text: &str, indent: usize, width: usize) -> String {
    let mut out = String::new();
    let mut column = 0;
    for (i, word) in text.split(' ').enumerate() {
        let n = word.chars().count();
        if i > 0 && column + 1 + n > width && column > indent {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            column = indent;
        } else if i > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += n;
    }
    out
}

/// The changes beside those that the batch's column shows.
fn beside_batch(p: &Point) -> String {
    let shown = |c: &&String| !(c.starts_with("micro-batch ") && c.contains("batch stays"));
    let left: Vec<&str> = p.changes.iter().filter(shown).map(String::as_str).collect();
    match (left.is_empty(), p.changes.is_empty()) {
        (true, true) => "as it is".into(),
        (true, false) => "the batch alone".into(),
        _ => left.join("; "),
    }
}

fn what(p: &Point) -> String {
    if p.changes.is_empty() {
        "as it is".into()
    } else {
        p.changes.join("; ")
    }
}

fn answer(p: &Plan) -> String {
    match &p.recommended {
        Some(r) if r.changes.is_empty() => format!(
            "{} on {}: keep the settings, {}",
            p.job,
            p.gpu_name,
            match p.searched.interrupted {
                true => "nothing better was found before the search was stopped",
                false => "nothing that is allowed is better",
            }
        ),
        Some(r) => format!("{} on {}: {}", p.job, p.gpu_name, what(r)),
        None => format!("{} on {}: nothing that is allowed fits", p.job, p.gpu_name),
    }
}

fn sums(p: &Plan) -> String {
    let q = &p.searched;
    format!(
        "{} settings ranked, {} ruled out by a lower bound of their bytes, {} cannot be simulated, {} simulated in full{}",
        q.candidates,
        q.ruled_out,
        q.unsupported,
        q.simulated,
        if q.interrupted {
            "; stopped early: the best so far"
        } else {
            ""
        }
    )
}

fn money(p: &Plan) -> Vec<String> {
    let mut out = Vec::new();
    let Some(r) = p.recommended.as_ref().or(Some(&p.yours)) else {
        return out;
    };
    if known(r) {
        out.push(format!(
            "speed of {}: {} tokens/s, a step {} s",
            if p.fits() {
                "the recommended settings"
            } else {
                "your settings, did they fit"
            },
            range(r.time.tokens_per_s),
            range(r.time.seconds)
        ));
        out.push(format!("range: {}", r.time.range_from));
    }
    if let Some(c) = &r.cost {
        let o = &c.offer;
        let dated = if o.date.is_empty() {
            o.source.clone()
        } else {
            format!("{}, {}, {}", o.region, o.date, o.source)
        };
        out.push(format!(
            "price: {} at ${} an hour{} ({dated}): ${} a million tokens",
            o.what,
            number(o.usd_per_hour),
            if o.gpus > 1 {
                format!(" for {} cards, all paid, one used", o.gpus)
            } else {
                String::new()
            },
            range(c.usd_per_million_tokens)
        ));
        if let Some(t) = c.total {
            out.push(format!(
                "{} tokens: {} hours, ${}",
                number(t.tokens),
                range(t.hours),
                range(t.usd)
            ));
        }
    } else {
        out.push(format!(
            "no dated price of {} is known: give --price",
            p.gpu
        ));
    }
    out
}

/// As text.
pub fn text(p: &Plan, s: &Style) -> String {
    let mut out = String::new();
    let head = folded(&answer(p), 2, s.width);
    let _ = writeln!(out, "{}", s.paint(Paint::Bold, &head));
    let keeps = if p.kept_free_bytes > 0 {
        format!(", {} kept free", bytes(p.kept_free_bytes, s))
    } else {
        String::new()
    };
    let given = format!(
        "{} for the allocator in the worst case{keeps}; {}; effective batch {}",
        bytes(p.available_bytes, s),
        p.objective,
        p.effective_batch
    );
    let _ = writeln!(out, "{}\n", folded(&given, 2, s.width));
    let rows: Vec<(String, [String; 6], String)> = points(p)
        .into_iter()
        .map(|(name, q)| (name, columns(q, s), beside_batch(q)))
        .collect();
    let mut wide = HEADS.map(str::len);
    for (_, r, _) in &rows {
        for (w, c) in wide.iter_mut().zip(r) {
            *w = (*w).max(c.len());
        }
    }
    let left = 12 + wide.iter().map(|w| w + 1).sum::<usize>() + 2;
    // a narrow terminal has the changes on lines of their own
    let below = s.width < left + 28;
    let line = |name: &str, cells: [&str; 6], last: &str| {
        let mut l = format!("{name:<12}");
        for (w, c) in wide.iter().zip(cells) {
            let _ = write!(l, " {c:>w$}");
        }
        if below {
            let text = format!("    {last}");
            format!("{l}\n{}", folded(&text, 4, s.width))
        } else {
            folded(&format!("{l}  {last}"), left, s.width)
        }
    };
    let heads = if below { "" } else { "changes" };
    let _ = writeln!(
        out,
        "{}",
        s.paint(Paint::Dim, line("", HEADS, heads).trim_end())
    );
    for (name, r, w) in &rows {
        let cells = [&r[0], &r[1], &r[2], &r[3], &r[4], &r[5]].map(String::as_str);
        let _ = writeln!(out, "{}", line(name, cells, w));
    }
    if let Some(r) = p.recommended.as_ref().filter(|r| !r.flags.is_empty()) {
        let flags = format!("recommended: {}", r.flags.join(" "));
        let _ = writeln!(out, "\n{}", folded(&flags, 2, s.width));
    }
    if !p.changes.is_empty() {
        let title = if p.yours.fits() {
            "From your settings to the recommended ones, in this order"
        } else {
            "The shortest list of changes that makes it fit, in this order"
        };
        let _ = writeln!(out, "\n{}", s.paint(Paint::Bold, title));
        for (i, c) in p.changes.iter().enumerate() {
            let verb = if c.saves_bytes >= 0 { "saves" } else { "takes" };
            let time = if known(&p.yours) {
                format!(", time {:+.1} %", c.costs_pct)
            } else {
                String::new()
            };
            let effect = format!(
                "  {}. {}: {verb} {}{time}; then: {}{}",
                i + 1,
                c.edit,
                bytes(c.saves_bytes.unsigned_abs(), s),
                c.outcome,
                if c.keeps_effective_batch {
                    ""
                } else {
                    "; another effective batch"
                }
            );
            let how = format!("     {}    ({})", c.flags, c.remark);
            let _ = writeln!(out, "{}", folded(&effect, 5, s.width));
            let _ = writeln!(out, "{}", folded(&how, 7, s.width));
        }
    }
    if !p.no_effect.is_empty() {
        let _ = writeln!(out, "\n{}", s.paint(Paint::Bold, "No effect"));
        for n in &p.no_effect {
            let l = format!(
                "  - {}: {} ({} by simulation)",
                n.edit,
                n.why,
                delta(n.saves_bytes, s)
            );
            let _ = writeln!(out, "{}", folded(&l, 4, s.width));
        }
    }
    if !p.if_allowed.is_empty() {
        let _ = writeln!(out, "\n{}", s.paint(Paint::Bold, "It fits with --allow"));
        for i in &p.if_allowed {
            let l = format!("  - {}: {}", i.allow.join(","), i.changes.join("; "));
            let _ = writeln!(out, "{}", folded(&l, 4, s.width));
        }
    }
    let _ = writeln!(out, "\n{}", s.paint(Paint::Bold, "Time and money"));
    for l in money(p).into_iter().chain(p.notes.clone()).chain([sums(p)]) {
        let _ = writeln!(out, "{}", folded(&format!("  - {l}"), 4, s.width));
    }
    if s.ascii {
        out.replace('\u{2212}', "-")
    } else {
        out
    }
}

/// As CSV: the points that are shown.
pub fn csv(p: &Plan) -> String {
    let mut out = String::from(
        "point,micro_batch_size,gradient_accumulation_steps,verdict,peak_allocated_bytes,peak_reserved_bytes,margin_bytes,tokens_per_s,usd_per_million_tokens,changes,flags\n",
    );
    for (name, q) in points(p) {
        let speed = if known(q) {
            number(q.time.tokens_per_s.expected)
        } else {
            String::new()
        };
        let usd = q
            .cost
            .as_ref()
            .map_or(String::new(), |c| number(c.usd_per_million_tokens.expected));
        let _ = writeln!(
            out,
            "{name},{},{},{},{},{},{},{speed},{usd},{},{}",
            q.micro_batch_size,
            q.gradient_accumulation_steps,
            q.outcome,
            q.peak_allocated_bytes,
            q.peak_reserved_bytes,
            q.margin_bytes,
            field(&q.changes.join("; ")),
            field(&q.flags.join(" "))
        );
    }
    out
}

/// As Markdown.
pub fn markdown(p: &Plan, s: &Style) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "## {}\n", answer(p));
    let _ = writeln!(out, "| | {} | changes |", HEADS.join(" | "));
    let _ = writeln!(out, "|---|{}---|", "---:|".repeat(HEADS.len()));
    for (name, q) in points(p) {
        let _ = writeln!(
            out,
            "| {name} | {} | {} |",
            columns(q, s).join(" | "),
            what(q)
        );
    }
    if !p.changes.is_empty() {
        let _ = writeln!(
            out,
            "\n| # | change | flags | saves | time | then |\n|---:|---|---|---:|---:|---|"
        );
        for (i, c) in p.changes.iter().enumerate() {
            let _ = writeln!(
                out,
                "| {} | {} | `{}` | {} | {:+.1} % | {} |",
                i + 1,
                c.edit,
                c.flags,
                delta(c.saves_bytes, s),
                c.costs_pct,
                c.outcome
            );
        }
    }
    for n in &p.no_effect {
        let _ = writeln!(out, "\nNo effect: {} ({}).", n.edit, n.why);
    }
    for i in &p.if_allowed {
        let (allow, changes) = (i.allow.join(","), i.changes.join("; "));
        let _ = writeln!(out, "\nIt fits with `--allow {allow}`: {changes}.");
    }
    out.push('\n');
    for l in money(p).iter().chain(&p.notes) {
        let _ = writeln!(out, "- {l}");
    }
    let _ = writeln!(out, "- {}", sums(p));
    out
}

/// As sections of a what-if report: the points with the front among them, and the changes in the order to try.
pub fn sections(p: &Plan, s: &Style) -> Vec<Section> {
    let strings = |l: &[&str]| l.iter().map(|x| x.to_string()).collect::<Vec<_>>();
    let mut all = vec![Section {
        title: "The plan".into(),
        intro: format!(
            "{}. {} for the allocator in the worst case; most wanted: {}; effective batch {} kept.",
            answer(p),
            bytes(p.available_bytes, s),
            p.objective,
            p.effective_batch
        ),
        head: strings(&[
            "settings",
            ">batch",
            "verdict",
            ">reserved",
            ">left",
            ">tokens/s",
            ">per M tokens",
            "changes",
        ]),
        rows: points(p)
            .into_iter()
            .map(|(name, q)| {
                let mut row = vec![name];
                row.extend(columns(q, s));
                row.push(what(q));
                row
            })
            .collect(),
        notes: money(p)
            .into_iter()
            .chain(p.notes.iter().cloned())
            .chain([sums(p)])
            .collect(),
    }];
    if !p.changes.is_empty() {
        let time = |c: &crate::plan::Change| {
            if known(&p.yours) {
                format!("{:+.1} %", c.costs_pct)
            } else {
                "?".into()
            }
        };
        all.push(Section {
            title: if p.yours.fits() {
                "From your settings to the recommended ones, in this order".into()
            } else {
                "The shortest list of changes that makes it fit, in this order".into()
            },
            intro: String::new(),
            head: strings(&[
                ">#",
                "change",
                ">memory",
                ">time",
                "then",
                "flags",
                "what it costs",
            ]),
            rows: p
                .changes
                .iter()
                .enumerate()
                .map(|(i, c)| {
                    vec![
                        (i + 1).to_string(),
                        c.edit.clone(),
                        delta(-c.saves_bytes, s),
                        time(c),
                        c.outcome.into(),
                        c.flags.clone(),
                        c.remark.into(),
                    ]
                })
                .collect(),
            notes: vec![],
        });
    }
    let idle: Vec<String> = p
        .no_effect
        .iter()
        .map(|n| format!("No effect: {}: {}.", n.edit, n.why))
        .chain(p.if_allowed.iter().map(|i| {
            format!(
                "It fits with --allow {}: {}.",
                i.allow.join(","),
                i.changes.join("; ")
            )
        }))
        .collect();
    if let Some(last) = all.last_mut() {
        last.notes.extend(idle);
    }
    all
}
