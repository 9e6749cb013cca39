//! Claims of a Markdown document: numbers of memory in tables, lists and sentences, with what the words around them say.

use super::amounts::{Amount, amounts};
use super::checks::Finding;
use super::claim::{Claim, Method, Phase, Role, Unit, What};
use super::words::{Hints, hints, part};
use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

/// A piece of a document.
enum Piece {
    Heading(u8, String),
    /// Header, and rows with their lines.
    Table(Vec<String>, Vec<(u64, Vec<String>)>),
    Text(String),
}

fn level(l: HeadingLevel) -> u8 {
    l as u8
}

/// The pieces of a document with the line that each begins on. Code is left out.
fn pieces(text: &str) -> Vec<(u64, Piece)> {
    let starts: Vec<usize> = std::iter::once(0)
        .chain(text.match_indices('\n').map(|(i, _)| i + 1))
        .collect();
    let line = |at: usize| starts.partition_point(|s| *s <= at) as u64;
    let mut out = Vec::new();
    let mut now = String::new();
    let mut from = 1;
    let mut header = Vec::new();
    let mut rows: Vec<(u64, Vec<String>)> = Vec::new();
    let mut row = Vec::new();
    let mut code = false;
    let mut heading = None;
    for (event, span) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
        match event {
            Event::Start(Tag::Heading { level: l, .. }) => {
                heading = Some(level(l));
                now.clear();
                from = line(span.start);
            }
            Event::End(TagEnd::Heading(_)) => {
                let l = heading.take().unwrap_or(1);
                out.push((from, Piece::Heading(l, std::mem::take(&mut now))));
            }
            Event::Start(Tag::Table(_)) => {
                header.clear();
                rows.clear();
                from = line(span.start);
            }
            Event::Start(Tag::TableHead | Tag::TableRow) => row.clear(),
            Event::Start(Tag::TableCell) => now.clear(),
            Event::End(TagEnd::TableCell) => row.push(std::mem::take(&mut now)),
            Event::End(TagEnd::TableHead) => header = std::mem::take(&mut row),
            Event::End(TagEnd::TableRow) => rows.push((line(span.start), std::mem::take(&mut row))),
            Event::End(TagEnd::Table) => {
                let t = Piece::Table(std::mem::take(&mut header), std::mem::take(&mut rows));
                out.push((from, t));
            }
            Event::Start(Tag::Paragraph | Tag::Item) => {
                if !now.trim().is_empty() {
                    out.push((from, Piece::Text(std::mem::take(&mut now))));
                }
                now.clear();
                from = line(span.start);
            }
            Event::End(TagEnd::Paragraph | TagEnd::Item) if !now.trim().is_empty() => {
                out.push((from, Piece::Text(std::mem::take(&mut now))));
            }
            Event::Start(Tag::CodeBlock(_)) => code = true,
            Event::End(TagEnd::CodeBlock) => code = false,
            Event::Text(t) | Event::Code(t) if !code => now.push_str(&t),
            Event::SoftBreak | Event::HardBreak => now.push(' '),
            _ => {}
        }
    }
    out
}

/// The claims of a document. `names` are the subjects that its bindings know.
pub fn claims(text: &str, names: &[String]) -> Vec<Claim> {
    let mut out = Vec::new();
    let mut headings: Vec<(u8, Hints)> = Vec::new();
    for (line, piece) in pieces(text) {
        let outer = headings
            .iter()
            .rev()
            .fold(Hints::default(), |h, (_, o)| h.within(o));
        match piece {
            Piece::Heading(l, t) => {
                headings.retain(|(o, _)| *o < l);
                let mut h = hints(&t, names);
                // a heading names the topic; its part is no part of every number below
                (h.part, h.gpu, h.role) = (None, None, None);
                headings.push((l, h));
            }
            Piece::Table(header, rows) => table(line, &header, &rows, &outer, names, &mut out),
            Piece::Text(t) => sentences(line, &t, &outer, names, &mut out),
        }
    }
    let mut seen = std::collections::BTreeMap::<u64, u32>::new();
    for c in &mut out {
        let n = seen.entry(c.line).or_default();
        *n += 1;
        c.id = if *n == 1 {
            format!("L{}", c.line)
        } else {
            format!("L{}.{n}", c.line)
        };
    }
    out
}

/// What a column of a table is.
enum Column {
    Setting(&'static str),
    /// Memory, or an answer of any kind; with what its header says.
    Value(Box<Hints>, Option<Unit>),
    /// Names and words about the row.
    Label,
}

fn column(header: &str, names: &[String]) -> Column {
    let lower = header.to_lowercase();
    let is = |words: &[&str]| words.iter().any(|w| lower.trim() == *w);
    if is(&["batch size", "batch", "batch_size"]) {
        return Column::Setting("batch_size");
    }
    if is(&[
        "sequence length",
        "seq length",
        "seq len",
        "seq_len",
        "length",
        "context",
        "context length",
        "block size",
        "block_size",
    ]) {
        return Column::Setting("seq_len");
    }
    if is(&["precision", "dtype", "quantization"]) {
        return Column::Setting("precision");
    }
    if is(&[
        "model",
        "model size",
        "size",
        "config",
        "configuration",
        "name",
        "component",
        "part",
        "gpu",
        "card",
        "hardware",
        "method",
        "gpu model",
        "notes",
        "note",
        "verdict",
        "status",
    ]) {
        return Column::Label;
    }
    let unit = header
        .rsplit_once('(')
        .and_then(|(_, u)| Unit::parse(u.trim_end_matches(')')))
        .filter(|u| matches!(u, Unit::Memory { .. } | Unit::Percent));
    Column::Value(Box::new(hints(header, names)), unit)
}

/// The amount of a cell: with its own unit, or a bare number under a header with one.
fn cell_amount(cell: &str, unit: Option<Unit>) -> Option<Amount> {
    if let Some(a) = amounts(cell).first() {
        return Some(*a);
    }
    let unit = unit?;
    let plain = format!(
        "{}GB",
        cell.trim().trim_start_matches(['~', '\u{2248}']).trim()
    );
    let mut a = *amounts(&plain)
        .first()
        .filter(|a| a.from == 0 && a.to == plain.len())?;
    a.unit = unit;
    Some(a)
}

fn table(
    line: u64,
    header: &[String],
    rows: &[(u64, Vec<String>)],
    outer: &Hints,
    names: &[String],
    out: &mut Vec<Claim>,
) {
    let columns: Vec<Column> = header.iter().map(|h| column(h, names)).collect();
    for (at, cells) in rows {
        let mut row = Hints::default();
        let mut verdict = None;
        for (i, (cell, col)) in cells.iter().zip(&columns).enumerate() {
            match col {
                Column::Label => {
                    let mut h = hints(cell, names);
                    // in a table of models the first cell is the name, known or not
                    let named = header[i].to_lowercase();
                    if h.subject.is_none()
                        && ["model", "config", "configuration", "name"]
                            .iter()
                            .any(|w| named.contains(w))
                        && part(cell).is_none()
                    {
                        h.subject = Some(cell.trim().to_string()).filter(|s| !s.is_empty());
                    }
                    if named.contains("verdict") || named.contains("status") {
                        verdict = Some(cell.trim().to_lowercase());
                    }
                    row = h.within(&row);
                }
                Column::Setting(k) => {
                    let v = cell.trim().trim_start_matches("batch ").to_string();
                    if !v.is_empty() {
                        row.settings
                            .insert((*k).into(), v.replace(['\u{2013}', '\u{2014}'], "-"));
                    }
                }
                Column::Value(..) => {}
            }
        }
        for (cell, col) in cells.iter().zip(&columns) {
            let Column::Value(head, unit) = col else {
                continue;
            };
            let Some(a) = cell_amount(cell, *unit) else {
                continue;
            };
            let own = hints(cell, names);
            let all = own.within(&row).within(head).within(outer);
            let mut c = claim(*at, &format!("table:{line}"), &a, &all);
            c.text = cells.join(" | ");
            c.verdict.clone_from(&verdict);
            let card = all.gpu.is_some() && all.part.is_none();
            if all.role.is_some() && (card || head.role.is_some()) {
                c.what = What::Card(all.role.unwrap_or(Role::Fits));
            } else if card && row.gpu.is_some() && row.subject.is_none() {
                // a card's own memory beside its name
                c.what = What::Card(Role::Fits);
            } else if let Some(of) = all.saving.as_ref().filter(|_| a.unit == Unit::Percent) {
                c.what = What::Saving(of.clone());
            }
            if a.unit == Unit::Percent && !matches!(c.what, What::Saving(_)) {
                continue;
            }
            out.push(c);
        }
    }
}

fn claim(line: u64, block: &str, a: &Amount, h: &Hints) -> Claim {
    let mut c = Claim::at("", line, block);
    c.subject = h.subject.clone().unwrap_or_default();
    // a document about training that says nothing is about training
    c.phase = h.phase.unwrap_or(Phase::Training);
    c.what = h.part.map_or(What::Total, What::Part);
    (c.low, c.high, c.unit) = (a.low, a.high, a.unit);
    c.settings = h.settings.clone();
    c.gpu = h.gpu.clone();
    c
}

/// Sentences of a paragraph, with the byte where each begins.
fn split(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut from = 0;
    for (i, c) in text.char_indices() {
        let next = text[i + c.len_utf8()..].chars().next();
        if matches!(c, '.' | ';' | '!' | '?') && next.is_none_or(char::is_whitespace) {
            out.push(&text[from..=i]);
            from = i + c.len_utf8();
        }
    }
    out.push(&text[from..]);
    out
}

fn sentences(line: u64, text: &str, outer: &Hints, names: &[String], out: &mut Vec<Claim>) {
    for s in split(text) {
        let whole = hints(s, names);
        let lower = s.to_lowercase();
        let mut from = 0;
        for a in amounts(s) {
            let before = &s[from..a.from];
            let near = hints(before, names);
            from = a.to;
            let mut h = near.clone().within(&Hints {
                part: None,
                gpu: None,
                role: None,
                ..whole.clone()
            });
            h = h.within(outer);
            let mut c = claim(line, &format!("text:{line}"), &a, &h);
            c.text = s.trim().into();
            c.gpu.clone_from(&near.gpu);
            let follows = s[a.to..].trim_start().to_lowercase();
            let is_card = ["card", "gpu", "vram card"]
                .iter()
                .any(|w| follows.starts_with(w))
                || near
                    .gpu
                    .as_ref()
                    .is_some_and(|g| before.trim_end().ends_with(g.as_str()));
            if a.unit == Unit::Percent {
                let Some(of) = &whole.saving else { continue };
                c.what = What::Saving(of.clone());
            } else if c.low == 0.0 && c.high == Some(0.0) {
                continue;
            } else if is_card {
                // "a 24 GB card trains a 7B model (LoRA)"
                c.what = match (&whole.subject, lower.contains("train")) {
                    (Some(_), true) => What::Needed(method_of(&c)),
                    _ => What::Card(near.role.or(whole.role).unwrap_or(Role::Fits)),
                };
            } else if near.part.is_none() && !(whole.memory || outer.memory) {
                continue;
            }
            out.push(c);
        }
    }
}

fn method_of(c: &Claim) -> Method {
    match c.settings.get("method").map(String::as_str) {
        Some("lora") => Method::Lora,
        Some("qlora") => Method::Qlora,
        _ => Method::Full,
    }
}

/// Text that was decoded with the wrong encoding on its way.
pub fn broken_text(text: &str) -> Vec<Finding> {
    let marks = [
        "\u{fffd}",
        "\u{c3}\u{97}",
        "\u{e2}\u{20ac}",
        "\u{f0}\u{178}",
        "\u{c3}\u{a9}",
    ];
    let lines: Vec<String> = text
        .lines()
        .enumerate()
        .filter(|(_, l)| marks.iter().any(|m| l.contains(m)))
        .map(|(i, _)| (i + 1).to_string())
        .collect();
    if lines.is_empty() {
        return vec![];
    }
    let many = if lines.len() > 5 { ", ..." } else { "" };
    let first = lines.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
    vec![Finding {
        check: "encoding",
        subject: String::new(),
        claims: vec![],
        text: format!(
            "characters were decoded wrongly in {} lines ({first}{many})",
            lines.len()
        ),
    }]
}
