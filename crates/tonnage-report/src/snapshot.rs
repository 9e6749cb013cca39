//! Memory snapshots, their differences and the profiler's timelines as text.

use crate::style::{Paint, Style};
use std::fmt::Write;
use tonnage_explain::snapshot::diff::Diff;
use tonnage_explain::snapshot::profiler::Timeline;
use tonnage_explain::snapshot::report::{CategoryBytes, DeviceReport, Report, StackBytes};
use tonnage_units::Bytes;

fn show(b: u64, s: &Style) -> String {
    Bytes(b).display(s.units).to_string()
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        100.0 * part as f64 / whole as f64
    }
}

fn categories(all: &[CategoryBytes], s: &Style, out: &mut String) {
    let total: u64 = all.iter().map(|c| c.bytes).sum();
    for c in all {
        let bar = s.bar(c.bytes, total, 20);
        let _ = writeln!(
            out,
            "  {:<20} {:>12}  {:>5.1} %  {:>7} blocks  {bar}",
            c.category.words(),
            show(c.bytes, s),
            share(c.bytes, total),
            c.blocks
        );
    }
}

fn cut(text: &str, width: usize) -> String {
    let n = text.chars().count();
    if n <= width {
        return text.to_string();
    }
    // the end of a path says more than its beginning
    let tail: String = text.chars().skip(n + 3 - width).collect();
    format!("...{tail}")
}

/// What stands for a stack that recorded no frame.
pub(crate) const NO_FRAME: &str = "(no frame recorded: autograd's own thread, or a library)";

fn stacks(all: &[StackBytes], s: &Style, out: &mut String) {
    for k in all {
        let _ = writeln!(
            out,
            "  {:>12}  {:>6} block{} {}",
            show(k.bytes, s),
            k.blocks,
            if k.blocks == 1 { "  " } else { "s " },
            k.category.words()
        );
        if k.frames.is_empty() {
            let _ = writeln!(out, "      {NO_FRAME}");
        }
        for f in k.frames.iter().take(4) {
            let _ = writeln!(out, "      {}", cut(f, s.width.saturating_sub(6)));
        }
    }
}

fn device(d: &DeviceReport, s: &Style, out: &mut String) {
    let head = format!(
        "device {}: peak {} allocated, {} reserved",
        d.device,
        show(d.peak.allocated_bytes, s),
        show(d.peak.reserved_bytes, s)
    );
    let _ = writeln!(out, "{}", s.paint(Paint::Bold, &head));
    if d.events == 0 {
        let _ = writeln!(
            out,
            "  no events were recorded: what is there now is all that is known"
        );
    } else {
        let beginning = if d.complete {
            "from the beginning"
        } else {
            "a ring that lost its beginning"
        };
        let exact = if d.verified {
            "they end at the blocks listed, to the byte"
        } else {
            "they do not end at all of the blocks listed: sizes of the oldest blocks are estimates"
        };
        let _ = writeln!(out, "  {} events, {beginning}; {exact}", d.events);
    }
    let _ = writeln!(
        out,
        "  at the end {} allocated, {} reserved",
        show(d.end.allocated_bytes, s),
        show(d.end.reserved_bytes, s)
    );
    let _ = writeln!(
        out,
        "\nalive at the peak (event {}), by category:",
        d.peak_event
    );
    categories(&d.categories_at_peak, s, out);
    let _ = writeln!(out, "\nby stack:");
    stacks(&d.stacks_at_peak, s, out);
    let f = &d.fragmentation;
    let _ = writeln!(
        out,
        "\nfree in the allocator now: {} in {} segments; {} of it returnable (empty_cache), largest piece {}{}",
        show(f.free_bytes, s),
        f.segments,
        show(f.releasable_bytes, s),
        show(f.largest_free_bytes, s),
        if f.private_bytes > 0 {
            format!("; {} in private pools", show(f.private_bytes, s))
        } else {
            String::new()
        }
    );
    for o in &d.ooms {
        let _ = writeln!(
            out,
            "out of memory at event {}: {} asked for, the device had {} free",
            o.event,
            show(o.bytes, s),
            show(o.device_free_bytes, s)
        );
    }
    if !d.replays.is_empty() {
        let _ = writeln!(out, "\nthe same requests under other settings:");
        for r in &d.replays {
            let name = if r.settings.is_empty() {
                "defaults"
            } else {
                &r.settings
            };
            let end = match r.failed_event {
                Some(e) => format!("runs out of memory at event {e}"),
                None => format!(
                    "peak {} reserved, {} allocated",
                    show(r.peak.reserved_bytes, s),
                    show(r.peak.allocated_bytes, s)
                ),
            };
            let _ = writeln!(out, "  {name}: {end}");
        }
    }
}

/// A snapshot.
pub fn report(r: &Report, s: &Style) -> String {
    let mut out = String::new();
    for (i, d) in r.devices.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        device(d, s, &mut out);
    }
    if r.devices.is_empty() {
        let _ = writeln!(
            out,
            "The snapshot of {} has no segments and no events.",
            r.source
        );
    }
    out
}

/// A difference.
pub fn diff(d: &Diff, s: &Style) -> String {
    let mut out = String::new();
    let grew = d.allocated_after.saturating_sub(d.allocated_before);
    let likely = d.candidates.iter().filter(|c| c.likely).count();
    let _ = writeln!(
        out,
        "{} more allocated in {} than in {}; {}",
        show(grew, s),
        d.with,
        d.source,
        match likely {
            0 => "no stack looks like a leak".to_string(),
            1 => "one stack looks like a leak".to_string(),
            n => format!("{n} stacks look like leaks"),
        }
    );
    for c in d.candidates.iter().take(20) {
        let mark = if c.likely { "leak?" } else { "grew" };
        let _ = writeln!(
            out,
            "\n{mark}  +{}  {} -> {} blocks  {}",
            show(c.growth(), s),
            c.blocks_before,
            c.blocks_after,
            c.category.words()
        );
        for f in c.frames.iter().take(6) {
            let _ = writeln!(out, "      {}", cut(f, s.width.saturating_sub(6)));
        }
    }
    if d.candidates.len() > 20 {
        let _ = writeln!(out, "\nand {} more", d.candidates.len() - 20);
    }
    out
}

/// A timeline of PyTorch's profiler.
pub fn timeline(t: &Timeline, s: &Style) -> String {
    let mut out = String::new();
    let reserved = t
        .peak_reserved_bytes
        .map(|r| format!(", {} reserved", show(r, s)))
        .unwrap_or_default();
    let _ = writeln!(
        out,
        "peak {} allocated{reserved} ({} points, {})",
        show(t.peak_bytes, s),
        t.points,
        t.format
    );
    for (name, bytes) in &t.at_peak {
        let _ = writeln!(
            out,
            "  {:<18} {:>12}  {:>5.1} %",
            name.replace('_', " "),
            show(*bytes, s),
            share(*bytes, t.peak_bytes)
        );
    }
    let _ = writeln!(out, "at the end {}", show(t.end_bytes, s));
    out
}
