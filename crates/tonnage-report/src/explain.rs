//! One line of a footprint explained: what it is, the tensors it is made of, and their sum.

use crate::style::{Paint, Style};
use crate::text::Out;
use tonnage_core::footprint::{Component, Footprint};
use tonnage_units::Count;

/// One line of the footprint explained: what it is, the tensors it is made of, and their sum.
///
/// # Errors
/// The names that there are, where `line` is none.
pub fn explain(f: &Footprint, line: &str, s: &Style) -> Result<String, String> {
    let mut o = Out {
        s,
        text: String::new(),
    };
    let Some(c) = Component::ALL
        .into_iter()
        .find(|c| c.name() == line || c.title() == line)
    else {
        let names: Vec<_> = Component::ALL.iter().map(|c| c.name()).collect();
        let near = tonnage_units::nearest(line, names.iter().copied())
            .map(|n| format!(", did you mean `{n}`?"))
            .unwrap_or_default();
        return Err(format!(
            "no line is named `{line}`{near} (lines: {})",
            names.join(", ")
        ));
    };
    let total = f.component(c);
    let line = format!(
        "{}: {} ({})",
        c.title(),
        o.bytes(total),
        Count(total).grouped() + " bytes"
    );
    o.line(line);
    o.wrap(c.what(), 0);
    o.line("");
    match c {
        Component::AllocatorCache => {
            let t = format!(
                "= peak reserved {} - peak allocated {}",
                f.peak.reserved.expected, f.peak.allocated.expected
            );
            o.wrap(&t, 2);
        }
        Component::DeviceContext | Component::Libraries => {
            let u = f.uncertainties.iter().find(|u| u.key == c.name());
            let t = u.map_or(String::new(), |u| {
                format!("{} for {}: {}", u.expected, f.gpu, u.why)
            });
            o.wrap(&t, 2);
        }
        _ => {
            let mut sum = 0u64;
            let groups: Vec<_> = f.tensors.iter().filter(|t| t.component == c).collect();
            let head = o.s.paint(
                Paint::Dim,
                &format!(
                    "{:>8} {:>14} {:>16}  made by",
                    "count", "bytes each", "bytes"
                ),
            );
            o.line(head);
            for t in groups.iter().take(40) {
                sum += t.bytes;
                o.line(format!(
                    "{:>8} {:>14} {:>16}  {} in {} ({})",
                    t.count, t.bytes_each, t.bytes, t.op, t.module, t.phase
                ));
            }
            let rest: u64 = groups.iter().skip(40).map(|t| t.bytes).sum();
            if rest > 0 {
                sum += rest;
                o.line(format!(
                    "{:>8} {:>14} {:>16}  {} smaller kinds",
                    "",
                    "",
                    rest,
                    groups.len() - 40
                ));
            }
            o.line(format!("{:>8} {:>14} {:>16}  = {}", "", "", sum, c.title()));
            if c == Component::Parameters {
                let t = format!(
                    "{} parameters, {} trained; each tensor takes a multiple of 512 bytes.",
                    Count(f.model.param_count).grouped(),
                    Count(f.model.trainable_count).grouped()
                );
                o.wrap(&t, 0);
            }
        }
    }
    Ok(o.text)
}
