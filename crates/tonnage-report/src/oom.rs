//! A log's out-of-memory messages as text.

use crate::style::{Paint, Style};
use std::fmt::Write;
use tonnage_explain::oom::Cause;
use tonnage_explain::oom::log::{Failure, Log};
use tonnage_units::Bytes;

/// The words of a cause.
pub fn cause(c: Cause) -> &'static str {
    match c {
        Cause::TooBig => "too big",
        Cause::Fragmentation => "fragmentation",
        Cause::Leak => "leak",
        Cause::OtherProcess => "other processes",
        Cause::PoolSetting => "a pool's setting",
        Cause::Graphs => "CUDA graphs",
        Cause::HostMemory => "host memory",
        Cause::DriverLimit => "a limit outside of the framework",
        Cause::Unknown => "not told by the text",
    }
}

fn wrap(text: &str, first: &str, rest: &str, width: usize) -> String {
    let mut out = String::new();
    let mut line = first.to_string();
    let mut empty = true;
    for word in text.split_whitespace() {
        if !empty && line.chars().count() + 1 + word.chars().count() > width {
            out.push_str(line.trim_end());
            out.push('\n');
            line = rest.to_string();
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    out.push_str(line.trim_end());
    out.push('\n');
    out
}

/// The names of figures, in the order in which they are shown.
const FIGURES: &[(&str, &str)] = &[
    ("tried_bytes", "asked for"),
    ("required_bytes", "required"),
    ("kv_needed_bytes", "cache needed"),
    ("kv_available_bytes", "cache available"),
    ("available_bytes", "available"),
    ("free_bytes", "free"),
    ("desired_bytes", "wanted"),
    ("allocated_bytes", "in use by tensors"),
    ("active_bytes", "active"),
    ("private_pool_bytes", "in private pools"),
    ("reserved_unallocated_bytes", "reserved, not in use"),
    ("reserved_bytes", "reserved"),
    ("process_bytes", "this process"),
    ("allowed_bytes", "allowed"),
    ("other_bytes", "other allocations"),
    ("used_bytes", "used"),
    ("program_bytes", "program"),
    ("exceeded_bytes", "exceeded by"),
    ("total_bytes", "device"),
];

fn failure(f: &Failure, s: &Style, out: &mut String) {
    let m = &f.message;
    let times = if f.times > 1 {
        format!(", {} times", f.times)
    } else {
        String::new()
    };
    let warning = if m.fatal { "" } else { " (a warning)" };
    let device = m
        .get("gpu_index")
        .map(|i| format!(", device {i}"))
        .unwrap_or_default();
    let head = format!(
        "{}{device}: {}{warning}",
        m.framework.name(),
        cause(f.diagnosis.cause)
    );
    let _ = writeln!(
        out,
        "{}  line {}{times}",
        s.paint(Paint::Bold, &head),
        f.line
    );
    out.push_str(&wrap(&f.diagnosis.why, "  ", "  ", s.width));
    let show = |b: u64| Bytes(b).display(s.units).to_string();
    let mut figures: Vec<String> = FIGURES
        .iter()
        .filter_map(|(k, name)| m.bytes(k).map(|b| format!("{name} {}", show(b))))
        .collect();
    for (key, name) in [
        ("max_model_len", "longest request"),
        ("kv_cache_tokens", "tokens in the cache"),
        ("estimated_max_len", "longest that fits"),
        ("total_tokens", "total tokens"),
        ("prefill_tokens", "prefill tokens"),
        ("tried_tokens", "tokens asked for"),
        ("available_tokens", "tokens available"),
        ("stage", "stage"),
        ("backend", "backend"),
        ("node", "node"),
        ("call", "call"),
        ("shape", "shape"),
    ] {
        if let Some(v) = m.get(key) {
            let v = v.as_str().map_or_else(|| v.to_string(), str::to_string);
            figures.push(format!("{name} {v}"));
        }
    }
    if !figures.is_empty() {
        out.push_str(&wrap(&figures.join("; "), "  ", "  ", s.width));
    }
    if let Some(n) = f.diagnosis.missing_bytes {
        let _ = writeln!(out, "  at least {} more must be free", show(n));
    }
    for (i, c) in f.diagnosis.changes.iter().enumerate() {
        let mut line = c.what.clone();
        if let Some(set) = &c.setting {
            line += &format!(": {set}");
        }
        if let Some(b) = c.frees_bytes {
            line += &format!(" [{}{}]", if c.at_most { "up to " } else { "" }, show(b));
        }
        out.push_str(&wrap(&line, &format!("  {}. ", i + 1), "     ", s.width));
    }
}

/// The whole answer.
pub fn log(l: &Log, s: &Style) -> String {
    let mut out = String::new();
    match l.decisive() {
        None => {
            let _ = writeln!(
                out,
                "No out-of-memory message in {} lines of {}.",
                l.lines, l.source
            );
        }
        Some(f) => {
            let n = l.failures.len() as u64 + l.more;
            let many = if n == 1 {
                String::new()
            } else {
                format!(" ({n} different messages)")
            };
            let _ = writeln!(out, "{}: {}{many}\n", l.source, cause(f.diagnosis.cause));
        }
    }
    for f in &l.failures {
        failure(f, s, &mut out);
        out.push('\n');
    }
    if l.more > 0 {
        let _ = writeln!(out, "and {} more", l.more);
    }
    if let Some(v) = &l.growth {
        let _ = writeln!(
            out,
            "memory in the log's own lines: {}",
            v.sentence(l.growth_unit)
        );
    }
    if let Some(j) = &l.job {
        let show = |b: u64| Bytes(b).display(s.units).to_string();
        let text = format!(
            "the job {}: predicted peak {} allocated, {} reserved, in {}; {}",
            j.job,
            show(j.peak_allocated_bytes),
            show(j.peak_reserved_bytes),
            j.phase,
            j.says
        );
        out.push_str(&wrap(&text, "", "  ", s.width));
    }
    out
}
