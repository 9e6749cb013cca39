//! The timeline as SVG: reserved behind, allocated before it, phases along the bottom.

use crate::style::Style;
use std::fmt::Write;
use tonnage_core::footprint::Footprint;
use tonnage_units::Bytes;

const W: f64 = 960.0;
const H: f64 = 420.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 60.0;

fn escape(t: &str) -> String {
    t.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// A footprint's timeline as a stand-alone SVG.
pub fn timeline(f: &Footprint, s: &Style) -> String {
    let t = &f.timeline;
    let events = t.events.max(1) as f64;
    let most = f.peak.reserved.expected.max(1) as f64 * 1.05;
    let x = |e: f64| LEFT + (W - LEFT - RIGHT) * e / events;
    let y = |b: f64| H - BOTTOM - (H - TOP - BOTTOM) * b / most;
    let area = |pick: &dyn Fn(&(u32, u64, u64)) -> u64| {
        let mut d = format!("M{:.1},{:.1}", x(0.0), y(0.0));
        for p in &t.curve {
            let _ = write!(d, "L{:.1},{:.1}", x(f64::from(p.0)), y(pick(p) as f64));
        }
        let _ = write!(d, "L{:.1},{:.1}Z", x(events), y(0.0));
        d
    };
    let mut o = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {W} {H}\" font-family=\"system-ui, sans-serif\" font-size=\"12\" role=\"img\">\n<title>{}</title>\n<rect width=\"{W}\" height=\"{H}\" fill=\"#ffffff\"/>\n",
        escape(&format!("Memory of {}", f.job))
    );
    let _ = writeln!(
        o,
        "<text x=\"{LEFT}\" y=\"20\" font-size=\"14\">{}: peak {} allocated, {} reserved</text>",
        escape(&f.job),
        Bytes(f.peak.allocated.expected).display(s.units),
        Bytes(f.peak.reserved.expected).display(s.units)
    );
    for i in 0..=4 {
        let b = most * f64::from(i) / 4.0;
        let _ = writeln!(
            o,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{yy:.1}\" y2=\"{yy:.1}\" stroke=\"#e3e6ea\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555\">{}</text>",
            W - RIGHT,
            LEFT - 6.0,
            y(b) + 4.0,
            Bytes(b as u64).display(s.units),
            yy = y(b)
        );
    }
    let _ = writeln!(o, "<path d=\"{}\" fill=\"#c9d7e8\"/>", area(&|p| p.2));
    let _ = writeln!(o, "<path d=\"{}\" fill=\"#3b74b4\"/>", area(&|p| p.1));
    let mut last_label = f64::MIN;
    for (n, i) in t.intervals.iter().enumerate() {
        let at = x(i.at_event as f64);
        let end = t
            .intervals
            .get(n + 1)
            .map_or(W - RIGHT, |next| x(next.at_event as f64));
        let _ = writeln!(
            o,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{}\" stroke=\"#999\" stroke-dasharray=\"2 4\"/>",
            H - BOTTOM
        );
        // a phase too short to be seen takes no label from one that is; none runs out of the picture
        if at - last_label > 52.0 && end - at > 6.0 && at < W - RIGHT - 30.0 {
            let label = if i.step < 0 {
                i.phase.to_string()
            } else {
                format!("{} {}", i.phase, i.step)
            };
            let _ = writeln!(
                o,
                "<text transform=\"translate({:.1},{:.1}) rotate(35)\" fill=\"#333\" font-size=\"10\">{}</text>",
                at + 2.0,
                H - BOTTOM + 12.0,
                escape(&label)
            );
            last_label = at;
        }
    }
    let at = x(f.instant.event as f64);
    let _ = writeln!(
        o,
        "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{}\" stroke=\"#b4443b\"/>",
        H - BOTTOM
    );
    let _ = writeln!(
        o,
        "<g transform=\"translate({},{})\"><rect width=\"10\" height=\"10\" fill=\"#3b74b4\"/><text x=\"14\" y=\"9\">allocated</text><rect x=\"80\" width=\"10\" height=\"10\" fill=\"#c9d7e8\"/><text x=\"94\" y=\"9\">reserved</text></g>",
        W - RIGHT - 160.0,
        H - 16.0
    );
    o.push_str("</svg>\n");
    o
}
