//! A snapshot as one page without anything from elsewhere: timeline, segment map, tables.

use std::fmt::Write;
use tonnage_explain::snapshot::report::{DeviceReport, Report, SegmentRow, StackBytes};
use tonnage_units::Bytes;

fn escape(t: &str) -> String {
    t.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

const STYLE: &str = "body{font:14px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1100px;padding:0 1em;color:#1b1f24;background:#fff}\
h1{font-size:1.4em}h2{font-size:1.1em;margin-top:2em}table{border-collapse:collapse;width:100%}td,th{padding:.2em .6em;text-align:left;\
border-bottom:1px solid #d8dee4;vertical-align:top}td.n,th.n{text-align:right;white-space:nowrap}code{font-size:12px}svg{width:100%;height:auto;\
display:block}.a{fill:#2f6f9f}.p{fill:#c98a1b}.f{fill:#e3e8ec}.r{fill:#b9c6d0}.t{fill:#2f6f9f}details{margin:.2em 0}small{color:#57606a}\
@media(prefers-color-scheme:dark){body{background:#14181c;color:#d7dde3}td,th{border-color:#333b44}.f{fill:#2a323a}.r{fill:#44515d}}";

const W: f64 = 1000.0;

fn timeline(d: &DeviceReport, out: &mut String) {
    let top = d
        .timeline
        .iter()
        .map(|t| t.2.max(t.1))
        .max()
        .unwrap_or(0)
        .max(1) as f64;
    let last = d.timeline.last().map_or(1, |t| t.0).max(1) as f64;
    let x = |e: u64| e as f64 / last * W;
    let y = |b: u64| 200.0 - b as f64 / top * 190.0;
    let area = |value: fn(&(u64, u64, u64)) -> u64| {
        let mut p = String::from("M0 200");
        for t in &d.timeline {
            let _ = write!(p, "L{:.1} {:.1}", x(t.0), y(value(t)));
        }
        p + &format!("L{W} 200Z")
    };
    let _ = write!(
        out,
        "<svg viewBox=\"0 0 {W} 222\" role=\"img\" aria-label=\"allocated and reserved over the events\"><path class=\"r\" d=\"{}\"/><path class=\"t\" d=\"{}\"/>\
         <line x1=\"{px:.1}\" x2=\"{px:.1}\" y1=\"0\" y2=\"200\" stroke=\"currentColor\" stroke-dasharray=\"4 3\"/>\
         <text x=\"4\" y=\"218\" font-size=\"12\" fill=\"currentColor\">event 0</text><text x=\"{W}\" y=\"218\" font-size=\"12\" text-anchor=\"end\" fill=\"currentColor\">event {}</text>\
         <text x=\"4\" y=\"14\" font-size=\"12\" fill=\"currentColor\">{}</text></svg>",
        area(|t| t.2),
        area(|t| t.1),
        d.events,
        Bytes(top as u64),
        px = x(d.peak_event)
    );
    out.push_str("<p><small>dark: allocated; light: reserved; dashed: the peak</small></p>");
}

fn map(segments: &[SegmentRow], out: &mut String) {
    let widest = segments.iter().map(|s| s.bytes).max().unwrap_or(1).max(1) as f64;
    let shown: Vec<&SegmentRow> = segments
        .iter()
        .filter(|s| !s.runs.is_empty())
        .take(300)
        .collect();
    let _ = write!(
        out,
        "<svg viewBox=\"0 0 {W} {}\" role=\"img\" aria-label=\"segments and their blocks\">",
        shown.len() * 9 + 4
    );
    for (i, s) in shown.iter().enumerate() {
        let mut at = 0.0;
        let _ = write!(
            out,
            "<g><title>{} at 0x{:x}: {} allocated{}{}</title>",
            Bytes(s.bytes),
            s.address,
            Bytes(s.allocated_bytes),
            if s.small { ", small pool" } else { "" },
            if s.private_pool { ", private pool" } else { "" }
        );
        // what is too narrow to be seen is drawn with its neighbour
        for (kind, bytes) in s.runs.iter().take(2000) {
            let w = *bytes as f64 / widest * W;
            let _ = write!(
                out,
                "<rect class=\"{kind}\" x=\"{at:.2}\" y=\"{}\" width=\"{:.2}\" height=\"7\"/>",
                i * 9 + 1,
                w.max(0.15)
            );
            at += w;
        }
        out.push_str("</g>");
    }
    out.push_str("</svg>");
    if segments.len() > shown.len() {
        let _ = write!(
            out,
            "<p><small>{} of {} segments</small></p>",
            shown.len(),
            segments.len()
        );
    }
}

fn stacks(all: &[StackBytes], out: &mut String) {
    out.push_str("<table><tr><th class=\"n\">bytes</th><th class=\"n\">blocks</th><th>category</th><th>stack</th></tr>");
    for s in all {
        let first = s
            .frames
            .first()
            .map_or_else(|| escape(crate::snapshot::NO_FRAME), |f| escape(f));
        let rest: String = s
            .frames
            .iter()
            .skip(1)
            .map(|f| format!("<br><code>{}</code>", escape(f)))
            .collect();
        let _ = write!(
            out,
            "<tr><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td><td><details><summary><code>{first}</code></summary>{rest}</details></td></tr>",
            Bytes(s.bytes),
            s.blocks,
            s.category.words()
        );
    }
    out.push_str("</table>");
}

/// The page.
pub fn page(r: &Report) -> String {
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\"><title>{0}</title><style>{STYLE}</style></head><body><h1>{0}</h1>",
        escape(&r.source)
    );
    for d in &r.devices {
        let _ = write!(
            out,
            "<h2>Device {}: peak {} allocated, {} reserved</h2><p>{} events; at the end {} allocated, {} reserved; {} free in the allocator, largest piece {}.</p>",
            d.device,
            Bytes(d.peak.allocated_bytes),
            Bytes(d.peak.reserved_bytes),
            d.events,
            Bytes(d.end.allocated_bytes),
            Bytes(d.end.reserved_bytes),
            Bytes(d.fragmentation.free_bytes),
            Bytes(d.fragmentation.largest_free_bytes)
        );
        if !d.timeline.is_empty() {
            timeline(d, &mut out);
        }
        out.push_str("<h2>Alive at the peak</h2><table><tr><th>category</th><th class=\"n\">bytes</th><th class=\"n\">blocks</th></tr>");
        for c in &d.categories_at_peak {
            let _ = write!(
                out,
                "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
                c.category.words(),
                Bytes(c.bytes),
                c.blocks
            );
        }
        out.push_str("</table>");
        stacks(&d.stacks_at_peak, &mut out);
        out.push_str("<h2>Segments now</h2>");
        map(&d.segments, &mut out);
        out.push_str(
            "<p><small>dark: allocated; light: free; amber: waiting for another stream</small></p>",
        );
    }
    out.push_str("</body></html>\n");
    out
}
