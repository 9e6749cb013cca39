//! The what-if report: one job, one file, nothing from outside it.

use crate::cards::Row;
use crate::cards::largest::Largest;
use crate::cards::text as cards_text;
use std::fmt::Write;
use tonnage_core::footprint::Footprint;
use tonnage_report::chart::{self, Dot, escape};
use tonnage_report::{Style, markdown, svg};
use tonnage_units::{ByteDelta, Bytes, Count};

/// A setting swept over values, the others as they are.
#[derive(Clone, Debug, Default)]
pub struct Sweep {
    /// In words, and the setting's key.
    pub title: String,
    pub setting: String,
    pub dots: Vec<Dot>,
}

/// A section that another part of the program made: a title and its rows (the plan).
#[derive(Clone, Debug, Default)]
pub struct Section {
    pub title: String,
    pub intro: String,
    pub head: Vec<String>,
    pub rows: Vec<Vec<String>>,
    pub notes: Vec<String>,
}

/// Everything that the report shows.
pub struct WhatIf {
    pub footprint: Footprint,
    pub sweeps: Vec<Sweep>,
    /// Cards, in the order of their memory.
    pub cards: Vec<Row>,
    pub largest: Vec<Largest>,
    pub sections: Vec<Section>,
    pub version: String,
}

fn bytes(n: u64, s: &Style) -> String {
    Bytes(n).display(s.units).to_string()
}

fn delta(n: i64, s: &Style) -> String {
    ByteDelta(i128::from(n)).display(s.units).to_string()
}

/// Cards as lines of a chart: what they leave to a process.
fn lines(cards: &[Row]) -> Vec<(String, u64)> {
    let mut out: Vec<(String, u64)> = vec![];
    for c in cards {
        let n = c.usable_bytes - c.taken_bytes.min(c.usable_bytes);
        // of cards with about the same memory the first stands for all
        if !out.iter().any(|o| o.1.abs_diff(n) < n / 50) {
            out.push((short(&c.name), n));
        }
    }
    out
}

fn short(name: &str) -> String {
    name.trim_start_matches("NVIDIA ")
        .trim_start_matches("GeForce ")
        .into()
}

const STYLE: &str = "\
:root{--ink:#1c1f24;--soft:#5a6270;--line:#dfe3e8;--back:#f6f7f9;--card:#ffffff;--good:#1d7a4a;--warn:#9a6700;--bad:#b3261e}\
@media (prefers-color-scheme: dark){:root{--ink:#e6e9ee;--soft:#9aa4b2;--line:#333a45;--back:#14171c;--card:#1c2129;--good:#58c38a;--warn:#e0b34c;--bad:#ff8a80}}\
*{box-sizing:border-box}body{margin:0;background:var(--back);color:var(--ink);font:15px/1.5 system-ui,-apple-system,'Segoe UI',sans-serif}\
main{max-width:1040px;margin:0 auto;padding:28px 20px 60px}\
h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:36px 0 10px}p{margin:6px 0}.soft{color:var(--soft)}\
.tiles{display:flex;flex-wrap:wrap;gap:12px;margin:18px 0}.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 16px;min-width:170px;flex:1}\
.tile b{display:block;font-size:22px;font-variant-numeric:tabular-nums}.tile span{color:var(--soft);font-size:13px}\
figure{margin:0;background:#fff;border:1px solid var(--line);border-radius:10px;padding:10px;overflow-x:auto}figure svg{display:block;width:100%;min-width:640px;height:auto}\
figure+figure{margin-top:14px}.wide{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px}\
table{border-collapse:collapse;width:100%;font-size:14px}th,td{padding:6px 12px;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}\
th{color:var(--soft);font-weight:600;font-size:13px;white-space:nowrap}tr:last-child td{border-bottom:0}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}\
.fits{color:var(--good);font-weight:600}.tight{color:var(--warn);font-weight:600}.no{color:var(--bad);font-weight:600}\
.swatch{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:8px;vertical-align:-1px}\
details{margin-top:10px}summary{cursor:pointer;color:var(--soft)}code{font:13px ui-monospace,Consolas,monospace}td code{white-space:nowrap}\
@media print{body{background:#fff}figure,.wide,.tile{break-inside:avoid}}";

/// A table; columns with a `>` before their name are numbers, a verdict's cell gets its colour.
fn table(o: &mut String, head: &[&str], rows: &[Vec<String>]) {
    o.push_str("<div class=\"wide\"><table><thead><tr>");
    let number: Vec<bool> = head.iter().map(|h| h.starts_with('>')).collect();
    for (h, n) in head.iter().zip(&number) {
        let _ = write!(
            o,
            "<th{}>{}</th>",
            if *n { " class=\"n\"" } else { "" },
            escape(h.trim_start_matches('>'))
        );
    }
    o.push_str("</tr></thead><tbody>\n");
    for r in rows {
        o.push_str("<tr>");
        for (i, cell) in r.iter().enumerate() {
            let class = match (cell.as_str(), number.get(i)) {
                ("fits" | "tight" | "no", _) => format!(" class=\"{cell}\""),
                (_, Some(true)) => " class=\"n\"".into(),
                _ => String::new(),
            };
            // a cell that begins with a tag of ours is one already
            let text = if cell.starts_with("<span class=\"swatch\"") {
                cell.clone()
            } else if let Some(flags) = cell.strip_prefix("--") {
                // a flag with its value stays on one line
                let each = flags
                    .split(" --")
                    .map(|f| format!("<code>--{}</code>", escape(f)));
                each.collect::<Vec<_>>().join(" ")
            } else {
                escape(cell)
            };
            let _ = write!(o, "<td{class}>{text}</td>");
        }
        o.push_str("</tr>\n");
    }
    o.push_str("</tbody></table></div>\n");
}

fn share(n: u64, of: u64) -> String {
    format!("{:.1} %", 100.0 * n as f64 / of.max(1) as f64)
}

/// The verdict in a sentence; none where no card is asked about.
fn answer(f: &Footprint, s: &Style) -> Option<(&'static str, String)> {
    let v = f.decisive()?;
    Some((
        v.outcome.name(),
        format!(
            "On {}: {}; {}. Margin {}.",
            v.name,
            v.outcome.name(),
            v.why,
            delta(v.margin_bytes, s)
        ),
    ))
}

/// Sweeps, cards and the largest values are shown as the caller worked them out.
pub fn html(w: &WhatIf, s: &Style) -> String {
    let f = &w.footprint;
    let mut o = String::with_capacity(1 << 17);
    let _ = write!(
        o,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"generator\" content=\"tonnage {}\">\n<title>{}: memory</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{}</h1>\n",
        escape(&w.version),
        escape(&f.job),
        escape(&f.job)
    );
    let _ = writeln!(
        o,
        "<p class=\"soft\">{} with {} parameters ({} trained), micro-batch {} x {} accumulated, {} tokens; kernels of {}</p>",
        escape(&f.model.model_type),
        Count(f.model.base_param_count).grouped().replace('_', ","),
        Count(f.model.trainable_count).grouped().replace('_', ","),
        f.micro_batch_size,
        f.gradient_accumulation_steps,
        f.seq_len,
        escape(&f.gpu)
    );
    if let Some((class, text)) = answer(f, s) {
        let _ = writeln!(o, "<p class=\"{class}\">{}</p>", escape(&text));
    }
    o.push_str("<div class=\"tiles\">\n");
    for (name, r) in [
        ("device: what the driver reports", f.peak.device),
        ("reserved by the allocator", f.peak.reserved),
        ("allocated: live tensors", f.peak.allocated),
    ] {
        let range = if r.low == r.high {
            String::new()
        } else {
            format!("; {} to {}", bytes(r.low, s), bytes(r.high, s))
        };
        let _ = writeln!(
            o,
            "<div class=\"tile\"><b>{}</b><span>{name}{range}</span></div>",
            bytes(r.expected, s)
        );
    }
    let _ = writeln!(
        o,
        "<div class=\"tile\"><b>{}</b><span>where the peak is, step {}</span></div>\n</div>",
        escape(&f.instant.phase),
        f.instant.step
    );
    for u in &f.unsupported {
        let _ = writeln!(o, "<p class=\"no\">Not simulated: {}</p>", escape(u));
    }

    o.push_str("<h2>Where every byte is at the peak</h2>\n<figure>");
    o.push_str(&chart::stacked(
        "Device memory at the peak, by component",
        &[("the job as it is".into(), Ok(f))],
        &lines(&w.cards),
        s,
    ));
    o.push_str("</figure>\n<p></p>\n");
    let mut rows: Vec<Vec<String>> = f
        .components
        .iter()
        .filter(|l| l.bytes > 0)
        .map(|l| {
            vec![
                format!(
                    "<span class=\"swatch\" style=\"background:{}\"></span>{}",
                    chart::colour(l.component),
                    l.component.title()
                ),
                bytes(l.bytes, s),
                share(l.bytes, f.peak.device.expected),
                l.component.what().into(),
            ]
        })
        .collect();
    rows.push(vec![
        "sum: the device level".into(),
        bytes(f.peak.device.expected, s),
        "100.0 %".into(),
        String::new(),
    ]);
    table(
        &mut o,
        &["component", ">at the peak", ">share", "what it is"],
        &rows,
    );

    o.push_str("<h2>Over time</h2>\n<figure>");
    o.push_str(&svg::timeline(f, s));
    o.push_str("</figure>\n");

    if !w.sweeps.is_empty() {
        o.push_str("<h2>What if: other batches and lengths</h2>\n<p class=\"soft\">Every dot is a simulation of its own; lines are what cards leave to a process.</p>\n");
        for sweep in &w.sweeps {
            let _ = writeln!(
                o,
                "<figure>{}</figure>",
                chart::curve(
                    &sweep.title,
                    &sweep.setting,
                    &sweep.dots,
                    &lines(&w.cards),
                    s
                )
            );
        }
    }
    if !w.cards.is_empty() {
        o.push_str("<h2>On which card it fits</h2>\n");
        let rows: Vec<Vec<String>> = w
            .cards
            .iter()
            .map(|c| {
                vec![
                    c.name.clone(),
                    bytes(c.usable_bytes, s),
                    bytes(c.needed_bytes, s),
                    delta(c.margin_bytes, s),
                    c.outcome.name().into(),
                ]
            })
            .collect();
        table(
            &mut o,
            &["card", ">usable", ">needed", ">margin", "verdict"],
            &rows,
        );
        o.push_str("<p class=\"soft\">fits: no request has to wait, in the worst case of the device level either; tight: it runs after cached blocks are given back, or only in the expected case; no: a request fails.</p>\n");
    }
    if !w.largest.is_empty() {
        o.push_str("<h2>The largest setting that fits</h2>\n");
        let rows: Vec<Vec<String>> = w
            .largest
            .iter()
            .map(|l| {
                let value = |p: &Option<crate::cards::largest::Point>| {
                    p.as_ref().map_or("-".into(), |p| p.value.to_string())
                };
                vec![
                    l.setting.into(),
                    l.name.clone(),
                    value(&l.fits),
                    l.fits
                        .as_ref()
                        .map_or("-".into(), |p| bytes(p.needed_bytes, s)),
                    value(&l.runs),
                    value(&l.fails),
                ]
            })
            .collect();
        table(
            &mut o,
            &[
                "setting",
                "card",
                ">fits up to",
                ">needs",
                ">runs up to",
                ">fails at",
            ],
            &rows,
        );
    }
    for x in &w.sections {
        let _ = writeln!(o, "<h2>{}</h2>", escape(&x.title));
        if !x.intro.is_empty() {
            let _ = writeln!(o, "<p>{}</p>", escape(&x.intro));
        }
        if !x.rows.is_empty() {
            table(
                &mut o,
                &x.head.iter().map(String::as_str).collect::<Vec<_>>(),
                &x.rows,
            );
        }
        for n in &x.notes {
            let _ = writeln!(o, "<p class=\"soft\">{}</p>", escape(n));
        }
    }
    if !f.advice.is_empty() {
        o.push_str("<h2>Edits, each simulated</h2>\n");
        let rows: Vec<Vec<String>> = f
            .advice
            .iter()
            .map(|a| {
                vec![
                    a.edit.clone(),
                    delta(-a.saves_bytes, s),
                    a.outcome.unwrap_or("-").into(),
                    a.cost.clone(),
                    a.flags.clone(),
                ]
            })
            .collect();
        table(
            &mut o,
            &["edit", ">change", "then", "what it costs", "flags"],
            &rows,
        );
    }
    if !f.uncertainties.is_empty() {
        o.push_str("<h2>What makes the range wide</h2>\n");
        let rows: Vec<Vec<String>> = f
            .uncertainties
            .iter()
            .map(|u| {
                vec![
                    u.key.clone(),
                    u.expected.clone(),
                    bytes(u.width_bytes, s),
                    format!("{:.0} %", u.share_pct),
                    u.why.clone(),
                ]
            })
            .collect();
        table(
            &mut o,
            &["setting", "expected", ">width", ">share", "why"],
            &rows,
        );
    }
    o.push_str("<h2>Assumptions</h2>\n<details><summary>");
    let _ = writeln!(
        o,
        "{} settings, given and assumed</summary>",
        f.assumptions.len()
    );
    let rows: Vec<Vec<String>> = f
        .assumptions
        .iter()
        .map(|a| {
            vec![
                a.key.clone(),
                a.value.clone(),
                a.origin.clone(),
                a.why.clone().unwrap_or_else(|| a.what.clone()),
            ]
        })
        .collect();
    table(&mut o, &["setting", "value", "from", "what"], &rows);
    o.push_str("</details>\n");
    for n in &f.notes {
        let _ = writeln!(o, "<p class=\"soft\">{}</p>", escape(&n.message));
    }
    let _ = writeln!(
        o,
        "<p class=\"soft\">Made by tonnage {} from {} ({}).</p>\n</main>\n</body>\n</html>",
        escape(&w.version),
        escape(&f.source),
        escape(&f.format)
    );
    o
}

/// The same as Markdown, charts as tables.
pub fn markdown(w: &WhatIf, s: &Style) -> String {
    let f = &w.footprint;
    let mut o = markdown::footprint(f, s);
    if let Some((_, text)) = answer(f, s) {
        let _ = writeln!(o, "\n{text}");
    }
    for sweep in &w.sweeps {
        let _ = writeln!(
            o,
            "\n### {}\n\n| {} | allocated | device |\n| ---: | ---: | ---: |",
            sweep.title, sweep.setting
        );
        for d in &sweep.dots {
            let _ = writeln!(
                o,
                "| {}{} | {} | {} |",
                d.x,
                if d.own { " (as it is)" } else { "" },
                bytes(d.allocated, s),
                bytes(d.device, s)
            );
        }
    }
    if !w.cards.is_empty() {
        let _ = writeln!(
            o,
            "\n### On which card it fits\n\n{}",
            cards_text::rows_markdown(&w.cards, s).trim_end()
        );
    }
    for l in &w.largest {
        let _ = writeln!(
            o,
            "\n### The largest {} on {}\n\n{}",
            l.setting,
            l.name,
            cards_text::largest_markdown(l, s).trim_end()
        );
    }
    for x in &w.sections {
        let _ = writeln!(o, "\n### {}\n", x.title);
        if !x.intro.is_empty() {
            let _ = writeln!(o, "{}\n", x.intro);
        }
        if !x.rows.is_empty() {
            let head: Vec<&str> = x.head.iter().map(|h| h.trim_start_matches('>')).collect();
            let rule: Vec<&str> = x
                .head
                .iter()
                .map(|h| if h.starts_with('>') { "---:" } else { "---" })
                .collect();
            let _ = writeln!(o, "| {} |\n| {} |", head.join(" | "), rule.join(" | "));
            for r in &x.rows {
                let cells: Vec<String> = r.iter().map(|c| c.replace('|', "\\|")).collect();
                let _ = writeln!(o, "| {} |", cells.join(" | "));
            }
        }
        for n in &x.notes {
            let _ = writeln!(o, "\n{n}");
        }
    }
    if !f.advice.is_empty() {
        o.push_str("\n### Edits, each simulated\n\n| edit | change | then | what it costs |\n| --- | ---: | --- | --- |\n");
        for a in &f.advice {
            let _ = writeln!(
                o,
                "| {} | {} | {} | {} |",
                a.edit,
                delta(-a.saves_bytes, s),
                a.outcome.unwrap_or("-"),
                a.cost
            );
        }
    }
    o
}
