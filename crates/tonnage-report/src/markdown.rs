//! Markdown, for a readme or an issue.

use crate::style::Style;
use crate::text::short;
use std::fmt::Write;
use tonnage_core::footprint::Footprint;
use tonnage_units::{Bytes, Count};

fn cell(t: &str) -> String {
    t.replace('|', "\\|").replace('\n', " ")
}

/// A footprint as Markdown.
pub fn footprint(f: &Footprint, s: &Style) -> String {
    let b = |n: u64| Bytes(n).display(s.units).to_string();
    let mut o = String::new();
    let _ = writeln!(o, "## {}\n", cell(&f.job));
    // a recorded run does not say
    let batch = match f.micro_batch_size {
        0 => "as recorded".to_string(),
        n => format!(
            "batch {n} x {}, {} tokens",
            f.gradient_accumulation_steps, f.seq_len
        ),
    };
    let _ = writeln!(
        o,
        "{} of device memory ({} to {}); {} {} parameters, {batch}.\n",
        b(f.peak.device.expected),
        b(f.peak.device.low),
        b(f.peak.device.high),
        f.model.model_type,
        Count(f.model.base_param_count).grouped(),
    );
    for u in &f.unsupported {
        let _ = writeln!(o, "Not simulated: {}\n", cell(u));
    }
    let _ = writeln!(
        o,
        "| component | bytes | of device |\n| --- | ---: | ---: |"
    );
    let total = f.peak.device.expected.max(1) as f64;
    for l in f.components.iter().filter(|l| l.bytes > 0) {
        let _ = writeln!(
            o,
            "| {} | {} | {:.1} % |",
            l.component.title(),
            b(l.bytes),
            100.0 * l.bytes as f64 / total
        );
    }
    let _ = writeln!(
        o,
        "| **device** | **{}** | 100.0 % |",
        b(f.peak.device.expected)
    );
    if let Some(first) = f.verdicts.first() {
        let _ = write!(o, "\n| card | usable |");
        for (case, _) in &first.cases {
            let _ = write!(o, " {} |", cell(case));
        }
        let _ = writeln!(o, "\n| --- | ---: |{}", " --- |".repeat(first.cases.len()));
        for row in &f.verdicts {
            let Some((_, v)) = row.cases.first() else {
                continue;
            };
            let _ = write!(o, "| {} | {} |", cell(&short(&v.name)), b(v.usable_bytes));
            for (_, v) in &row.cases {
                let _ = write!(o, " {} |", v.outcome.name());
            }
            o.push('\n');
        }
    }
    let _ = writeln!(
        o,
        "\n| phase | allocated | reserved |\n| --- | ---: | ---: |"
    );
    for p in &f.phases {
        let _ = writeln!(
            o,
            "| {} | {} | {} |",
            p.phase,
            b(p.allocated_bytes),
            b(p.reserved_bytes)
        );
    }
    let _ = writeln!(o, "\n<details><summary>Assumptions</summary>\n");
    for a in &f.assumptions {
        let _ = writeln!(
            o,
            "- `{}` = {} ({}); change with `{}`",
            a.key,
            cell(&a.value),
            a.origin,
            a.flag
        );
    }
    let _ = writeln!(
        o,
        "- kernels and context of `{}`; change with `--gpu ID`\n\n</details>",
        f.gpu
    );
    o
}
