//! Comparisons and sweeps as SVG: stacked bars by component, and a curve against the memory of cards.

use crate::style::Style;
use crate::table::Comparison;
use std::fmt::Write;
use tonnage_core::footprint::{Component, Footprint};
use tonnage_units::Bytes;

const W: f64 = 960.0;
const LEFT: f64 = 210.0;
const RIGHT: f64 = 90.0;

/// A text inside SVG or HTML.
pub fn escape(t: &str) -> String {
    t.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// A component's colour: model states blue and green, what a step makes warm, what nobody's tensor holds grey.
pub fn colour(c: Component) -> &'static str {
    match c {
        Component::Parameters => "#1f4e8c",
        Component::QuantState => "#5b7fb5",
        Component::Buffers => "#8fb0d9",
        Component::Gradients => "#2f8f83",
        Component::OptimizerState => "#6dbf8b",
        Component::SavedActivations => "#e39a2d",
        Component::AttentionScores => "#c9622f",
        Component::LogitsAndLoss => "#b23a48",
        Component::AutocastCopies => "#8e5ea2",
        Component::KvCache => "#c178b0",
        Component::Temporaries => "#e8c95a",
        Component::Inputs => "#bfa77a",
        Component::HeldOutputs => "#d98c86",
        Component::Workspaces => "#7f7f9c",
        Component::AllocatorCache => "#aeb4bc",
        Component::DeviceContext => "#8a9099",
        Component::Libraries => "#676d76",
    }
}

fn bytes(n: u64, s: &Style) -> String {
    Bytes(n).display(s.units).to_string()
}

/// Cuts a label to so many characters.
fn cut(t: &str, most: usize) -> String {
    if t.chars().count() <= most {
        return t.into();
    }
    let start: String = t.chars().take(most - 1).collect();
    format!("{start}…")
}

/// The head of a figure of this height, on white so that it can be read anywhere.
fn head(title: &str, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {W} {height}\" font-family=\"system-ui, sans-serif\" font-size=\"13\" role=\"img\">\n<title>{}</title>\n<rect width=\"{W}\" height=\"{height}\" fill=\"#ffffff\"/>\n",
        escape(title)
    )
}

/// The cards that the bars are to be seen against: those up to half as large again, and the least that is larger. One far beyond the bars
/// would make them invisible.
fn near(cards: &[(String, u64)], most: u64) -> Vec<&(String, u64)> {
    let mut out: Vec<&(String, u64)> = cards.iter().filter(|c| c.1 <= most / 2 * 3).collect();
    if !out.iter().any(|c| c.1 >= most) {
        let larger = cards.iter().filter(|c| c.1 >= most).min_by_key(|c| c.1);
        out.extend(larger.filter(|c| c.1 <= most.saturating_mul(4)));
    }
    out.sort_by_key(|c| std::cmp::Reverse(c.1));
    out
}

/// Between the lines of a scale up to `high`: a power of two of bytes that makes four to eight of them.
fn tick(high: f64) -> u64 {
    (0..60)
        .map(|i| 1u64 << i)
        .find(|t| high / *t as f64 <= 8.0)
        .unwrap_or(1 << 60)
}

/// A bar of stacked components for each footprint; `cards` are vertical lines (name, bytes). Labels and footprints as given.
pub fn stacked(
    title: &str,
    bars: &[(String, Result<&Footprint, &str>)],
    cards: &[(String, u64)],
    s: &Style,
) -> String {
    let present: Vec<Component> = Component::ALL
        .into_iter()
        .filter(|c| {
            bars.iter()
                .filter_map(|b| b.1.ok())
                .any(|f| f.component(*c) > 0)
        })
        .collect();
    let most = bars
        .iter()
        .filter_map(|b| b.1.ok())
        .map(|f| f.peak.device.expected)
        .max()
        .unwrap_or(1);
    let cards = near(cards, most);
    let scale = cards
        .iter()
        .map(|c| c.1)
        .max()
        .unwrap_or(0)
        .max(most)
        .max(1) as f64
        * 1.02;
    let x = |n: u64| LEFT + (W - LEFT - RIGHT) * n as f64 / scale;
    let row = 30.0;
    let legend_rows = present.len().div_ceil(4) as f64;
    let top = 34.0 + 14.0 * cards.len() as f64;
    let bottom = top + row * bars.len() as f64;
    let height = bottom + 26.0 + legend_rows * 20.0;
    let mut o = head(title, height);
    let _ = writeln!(
        o,
        "<text x=\"12\" y=\"20\" font-size=\"15\" fill=\"#1c1f24\">{}</text>",
        escape(title)
    );
    for (i, (label, f)) in bars.iter().enumerate() {
        let y = top + row * i as f64;
        let _ = writeln!(
            o,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#1c1f24\">{}</text>",
            LEFT - 8.0,
            y + 19.0,
            escape(&cut(label, 28))
        );
        match f {
            Ok(f) => {
                let mut at = 0;
                for c in &present {
                    let n = f.component(*c);
                    if n > 0 {
                        let _ = writeln!(
                            o,
                            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{}\" fill=\"{}\"><title>{}: {}</title></rect>",
                            x(at),
                            y + 4.0,
                            (x(at + n) - x(at)).max(0.1),
                            row - 9.0,
                            colour(*c),
                            c.title(),
                            bytes(n, s)
                        );
                        at += n;
                    }
                }
                let _ = writeln!(
                    o,
                    "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"#1c1f24\">{}</text>",
                    x(at) + 5.0,
                    y + 19.0,
                    bytes(f.peak.device.expected, s)
                );
            }
            Err(why) => {
                let _ = writeln!(
                    o,
                    "<text x=\"{LEFT}\" y=\"{:.1}\" fill=\"#8a2b2b\">{}</text>",
                    y + 19.0,
                    escape(&cut(why, 90))
                );
            }
        }
    }
    // over all lines
    let mut labels = String::new();
    for (i, c) in cards.iter().enumerate() {
        let at = x(c.1);
        let y = 34.0 + 14.0 * i as f64;
        let anchor = if at > W * 0.6 { "end" } else { "start" };
        let dx = if anchor == "end" { -4.0 } else { 4.0 };
        let _ = writeln!(
            o,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{bottom:.1}\" stroke=\"#444\" stroke-dasharray=\"5 3\"/>",
            y - 6.0,
        );
        let _ = writeln!(
            labels,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" font-size=\"11\" fill=\"#444\" stroke=\"#fff\" stroke-width=\"3\" paint-order=\"stroke\">{} ({})</text>",
            at + dx,
            y + 3.0,
            escape(&c.0),
            bytes(c.1, s)
        );
    }
    o.push_str(&labels);
    for (i, c) in present.iter().enumerate() {
        let (col, line) = ((i % 4) as f64, (i / 4) as f64);
        let (lx, ly) = (12.0 + col * 235.0, bottom + 18.0 + line * 20.0);
        let _ = writeln!(
            o,
            "<rect x=\"{lx}\" y=\"{ly:.1}\" width=\"12\" height=\"12\" fill=\"{}\"/><text x=\"{}\" y=\"{:.1}\" font-size=\"12\" fill=\"#333\">{}</text>",
            colour(*c),
            lx + 17.0,
            ly + 10.5,
            c.title()
        );
    }
    o.push_str("</svg>\n");
    o
}

/// A comparison as SVG; the usable memory of the cards of its verdicts as lines.
pub fn comparison(c: &Comparison, s: &Style) -> String {
    let bars: Vec<(String, Result<&Footprint, &str>)> = c
        .entries
        .iter()
        .map(|e| {
            (
                e.label.clone(),
                e.footprint.as_ref().map_err(String::as_str),
            )
        })
        .collect();
    let mut cards: Vec<(String, u64)> = vec![];
    for v in c
        .entries
        .iter()
        .flat_map(|e| &e.footprint)
        .flat_map(|f| &f.verdicts)
        .flat_map(|r| &r.cases)
    {
        if !cards.iter().any(|k| k.0 == v.1.name) {
            cards.push((v.1.name.clone(), v.1.usable_bytes));
        }
    }
    stacked("Peak device memory by component", &bars, &cards, s)
}

/// A point of a curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dot {
    pub x: u64,
    pub device: u64,
    pub allocated: u64,
    /// What the user's own job has.
    pub own: bool,
}

/// A curve of memory over a setting, against what cards leave to a process; both axes linear.
pub fn curve(
    title: &str,
    setting: &str,
    dots: &[Dot],
    cards: &[(String, u64)],
    s: &Style,
) -> String {
    const H: f64 = 380.0;
    let (left, right, top, bottom) = (86.0, 190.0, 44.0, H - 48.0);
    let most = dots.iter().map(|d| d.device).max().unwrap_or(1);
    let widest = dots.iter().map(|d| d.x).max().unwrap_or(1).max(1) as f64;
    let shown = near(cards, most);
    let high = shown
        .iter()
        .map(|c| c.1)
        .max()
        .unwrap_or(0)
        .max(most)
        .max(1) as f64
        * 1.06;
    let x = |v: u64| left + (W - left - right) * v as f64 / widest;
    let y = |n: u64| bottom - (bottom - top) * n as f64 / high;
    let mut o = head(title, H);
    let _ = writeln!(
        o,
        "<text x=\"12\" y=\"22\" font-size=\"15\" fill=\"#1c1f24\">{}</text>",
        escape(title)
    );
    let step = tick(high);
    for i in 0..=(high / step as f64) as u64 {
        let n = i * step;
        let _ = writeln!(
            o,
            "<line x1=\"{left}\" x2=\"{}\" y1=\"{yy:.1}\" y2=\"{yy:.1}\" stroke=\"#e6e9ed\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" font-size=\"12\" fill=\"#555\">{}</text>",
            W - right,
            left - 8.0,
            y(n) + 4.0,
            bytes(n, s),
            yy = y(n)
        );
    }
    // names of cards that lie close to each other are moved apart
    let mut lines: Vec<(f64, &str, u64)> =
        shown.iter().map(|c| (y(c.1), c.0.as_str(), c.1)).collect();
    lines.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut last = f64::MIN;
    for (at, name, n) in &lines {
        let text = at.max(last + 13.0);
        last = text;
        let _ = writeln!(
            o,
            "<line x1=\"{left}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#b23a48\" stroke-dasharray=\"6 4\"><title>{}</title></line><text x=\"{}\" y=\"{:.1}\" font-size=\"11\" fill=\"#8a2b2b\">{}</text>",
            W - right,
            bytes(*n, s),
            W - right + 6.0,
            text + 4.0,
            escape(&cut(name, 26))
        );
    }
    for (pick, stroke, dash, name) in [
        (
            &(|d: &Dot| d.device) as &dyn Fn(&Dot) -> u64,
            "#1f4e8c",
            "",
            "device",
        ),
        (
            &|d: &Dot| d.allocated,
            "#6d93c4",
            " stroke-dasharray=\"3 3\"",
            "allocated",
        ),
    ] {
        let path: Vec<String> = dots
            .iter()
            .map(|d| format!("{:.1},{:.1}", x(d.x), y(pick(d))))
            .collect();
        let _ = writeln!(
            o,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{stroke}\" stroke-width=\"2\"{dash}/>",
            path.join(" ")
        );
        if let Some(d) = dots.last() {
            let _ = writeln!(
                o,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" font-size=\"12\" fill=\"{stroke}\">{name}</text>",
                x(d.x) - 10.0,
                y(pick(d)) - 8.0
            );
        }
    }
    let mut labelled = f64::MIN;
    for d in dots {
        let (r, fill) = if d.own {
            (6.0, "#e39a2d")
        } else {
            (3.5, "#1f4e8c")
        };
        let _ = writeln!(
            o,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{r}\" fill=\"{fill}\"><title>{setting} {}: {}</title></circle>",
            x(d.x),
            y(d.device),
            d.x,
            bytes(d.device, s)
        );
        if x(d.x) - labelled > 34.0 {
            labelled = x(d.x);
            let _ = writeln!(
                o,
                "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\" font-size=\"12\" fill=\"#555\">{}</text>",
                x(d.x),
                bottom + 18.0,
                d.x
            );
        }
    }
    let _ = writeln!(
        o,
        "<line x1=\"{left}\" x2=\"{}\" y1=\"{bottom}\" y2=\"{bottom}\" stroke=\"#888\"/>",
        W - right
    );
    let _ = writeln!(
        o,
        "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#333\">{}{}</text>",
        (left + W - right) / 2.0,
        H - 10.0,
        escape(setting),
        if dots.iter().any(|d| d.own) {
            " (the large dot is the job as it is)"
        } else {
            ""
        }
    );
    o.push_str("</svg>\n");
    o
}
