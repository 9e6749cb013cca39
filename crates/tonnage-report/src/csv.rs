//! CSV (RFC 4180), bytes as whole numbers.

use crate::table::Comparison;
use tonnage_core::footprint::Footprint;

/// A field, quoted where it must be.
pub fn field(t: &str) -> String {
    if t.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", t.replace('"', "\"\""))
    } else {
        t.to_string()
    }
}

fn row(out: &mut String, fields: &[&str]) {
    let fields: Vec<String> = fields.iter().map(|f| field(f)).collect();
    out.push_str(&fields.join(","));
    out.push('\n');
}

/// The lines of a footprint: `kind,name,bytes`, where the components add up to `total,device`.
pub fn footprint(f: &Footprint) -> String {
    let mut o = String::new();
    row(&mut o, &["kind", "name", "bytes"]);
    for l in &f.components {
        row(
            &mut o,
            &["component", l.component.name(), &l.bytes.to_string()],
        );
    }
    for (name, r) in [
        ("allocated", f.peak.allocated),
        ("reserved", f.peak.reserved),
        ("device", f.peak.device),
    ] {
        row(&mut o, &["total", name, &r.expected.to_string()]);
        row(&mut o, &["low", name, &r.low.to_string()]);
        row(&mut o, &["high", name, &r.high.to_string()]);
    }
    for p in &f.phases {
        row(
            &mut o,
            &["phase_allocated", &p.phase, &p.allocated_bytes.to_string()],
        );
        row(
            &mut o,
            &["phase_reserved", &p.phase, &p.reserved_bytes.to_string()],
        );
    }
    for m in &f.modules {
        row(&mut o, &["module", &m.module, &m.bytes.to_string()]);
    }
    o
}

/// A comparison: one row a job.
pub fn comparison(c: &Comparison) -> String {
    let mut o = String::new();
    let components = c.components();
    let mut head = vec![
        "job",
        "peak_allocated",
        "peak_reserved",
        "peak_device",
        "phase",
    ];
    head.extend(components.iter().map(|c| c.name()));
    let cached = c
        .entries
        .iter()
        .flat_map(|e| &e.footprint)
        .any(|f| f.kv_cache.is_some());
    if cached {
        head.extend(["kv_bytes_per_token", "kv_bytes"]);
    }
    head.push("error");
    if !c.claims.is_empty() {
        head.push("claimed");
    }
    row(&mut o, &head);
    for (i, e) in c.entries.iter().enumerate() {
        let mut fields = vec![e.label.clone()];
        match &e.footprint {
            Ok(f) => {
                fields.extend(
                    [
                        f.peak.allocated.expected,
                        f.peak.reserved.expected,
                        f.peak.device.expected,
                    ]
                    .map(|n| n.to_string()),
                );
                fields.push(f.instant.phase.clone());
                fields.extend(components.iter().map(|c| f.component(*c).to_string()));
                if cached {
                    let k = f.kv_cache;
                    fields.push(k.map_or_else(String::new, |k| k.bytes_per_token.to_string()));
                    fields.push(k.map_or_else(String::new, |k| k.bytes.to_string()));
                }
                fields.push(String::new());
            }
            Err(why) => {
                let n = 4 + components.len() + if cached { 2 } else { 0 };
                fields.extend(std::iter::repeat_n(String::new(), n));
                fields.push(why.clone());
            }
        }
        if !c.claims.is_empty() {
            fields.push(c.claims.get(i).cloned().unwrap_or_default());
        }
        row(
            &mut o,
            &fields.iter().map(String::as_str).collect::<Vec<_>>(),
        );
    }
    o
}
