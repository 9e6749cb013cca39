//! What a memory can train and what a model needs, as text, Markdown and CSV.

use super::have::Have;
use super::need::Need;
use super::text::{bytes, delta, painted, wrapped};
use tonnage_core::verdict::Outcome;
use tonnage_report::csv::field;
use tonnage_report::{Paint, Style};
use tonnage_units::Count;

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
    let mut head = format!("{:<6}{:<w$}", "size", "model");
    for (m, _) in &a.methods {
        head += &format!("{m:>16}");
    }
    t += &s.paint(Paint::Dim, &head);
    t.push('\n');
    for l in &a.lines {
        t += &format!(
            "{:<6}{:<w$}",
            if l.asked == l.model {
                counted(l.parameters)
            } else {
                l.asked.clone()
            },
            l.model,
        );
        for c in &l.cells {
            let cell = match (c.outcome, c.needed_bytes) {
                (Some(o), Some(n)) => format!("{} {:<5}", bytes(n, s), o.name()),
                _ => "no answer".into(),
            };
            let padded = format!("{cell:>16}");
            t += &c.outcome.map_or(padded.clone(), |o| painted(o, &padded, s));
        }
        t.truncate(t.trim_end().len());
        t.push('\n');
        if l.cells.iter().any(|c| c.claim.is_some()) {
            let mut line = format!("{:<6}{:<w$}", "", "claimed");
            for c in &l.cells {
                line += &format!(
                    "{:>16}",
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
        "| method | needs | claimed | minimum | recommended | ideal |\n| --- | ---: | ---: | --- | --- | --- |\n",
    );
    for p in &a.plans {
        t += &format!(
            "| {} | {} | {} |",
            p.method,
            bytes(p.needed_bytes, s),
            p.claim.as_deref().unwrap_or("")
        );
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
