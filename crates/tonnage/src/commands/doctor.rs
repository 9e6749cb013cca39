//! `tonnage doctor`

use crate::Status;
use crate::jobs::read_text;
use crate::output::Output;
use clap::{Args, ValueEnum};
use serde_json::json;
use std::fmt::Write as _;
use std::path::PathBuf;
use tonnage_catalog::LookupError;
use tonnage_catalog::device::{Stack, usable};
use tonnage_core::Diagnostic;
use tonnage_host::device::System;
use tonnage_host::doctor::{Section, block, gather, parse};
use tonnage_units::Bytes;

/// `--format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
}

/// `doctor`
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Instead of this machine: a block that doctor printed (`-`: standard input); what stands around it does not matter
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    /// Form of the output
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Where /proc and /sys are (a recorded machine)
    #[arg(long, value_name = "DIR", hide = true, default_value = "/")]
    pub root: PathBuf,
}

pub fn run(a: &DoctorArgs, out: &Output) -> Status {
    let sections = match &a.from {
        None => gather(&System {
            root: a.root.clone(),
            nvml: None,
        }),
        Some(f) => {
            let read = read_text(f).and_then(|t| {
                parse(&t).map_err(|e| {
                    vec![Diagnostic::error(
                        "no-block",
                        format!("{}: {e}", f.display()),
                    )]
                })
            });
            match read {
                Ok(s) => s,
                Err(bad) => {
                    out.complain(&bad);
                    return Status::BadInput;
                }
            }
        }
    };
    let findings = findings(&sections, out);
    out.print(&match a.format {
        Format::Text => {
            let mut t = block(&sections);
            t.push_str("findings\n");
            for f in &findings {
                let _ = writeln!(t, "  {f}");
            }
            if findings.is_empty() {
                t.push_str("  nothing that needs attention\n");
            }
            t
        }
        Format::Json => {
            let all: Vec<_> = sections
                .iter()
                .map(|s| {
                    let facts: Vec<_> = s
                        .facts
                        .iter()
                        .map(|(k, v)| json!({"name": k, "value": v}))
                        .collect();
                    json!({"section": s.name, "facts": facts})
                })
                .collect();
            tonnage_report::json::pretty(
                &json!({"schema": "tonnage.doctor/1", "sections": all, "findings": findings}),
            )
        }
    });
    Status::Ok
}

/// `12.8` as (12, 8).
fn version(text: &str) -> Option<(u32, u32)> {
    let mut p = text.split('.');
    Some((
        p.next()?.trim().parse().ok()?,
        p.next().unwrap_or("0").trim().parse().ok()?,
    ))
}

/// What follows from the facts; the same for a replayed block.
fn findings(sections: &[Section], out: &Output) -> Vec<String> {
    let amount = |b: u64| Bytes(b).display(out.style.units).to_string();
    let mut all = Vec::new();
    let section = |n: &str| sections.iter().find(|s| s.name == n);
    if let Some(none) = section("gpus").and_then(|s| s.get("none")) {
        all.push(format!(
            "{none}: predictions work, verdicts need --gpu ID, watch and run see host memory only"
        ));
    }
    for s in sections.iter().filter(|s| s.name.starts_with("gpu ")) {
        let name = s.get("name").unwrap_or("?");
        match out.catalogs.gpus.find(name) {
            Ok(g) => {
                let kept = s.bytes("reserved by the driver").unwrap_or(0);
                let here = s.bytes("total").map(|t| t.saturating_sub(kept));
                let known = usable(&g, &Stack::default()).ok();
                match (here, known) {
                    (Some(h), Some(u)) if h + (h >> 7) < u.low || h > u.high + (h >> 7) => all
                        .push(format!(
                            "{}: {} is usable here, the catalog expects {} to {} of {}: error correction, a partition or another board; --gpu auto takes what is here",
                            s.name, amount(h), amount(u.low), amount(u.high), g.id
                        )),
                    (Some(h), Some(u)) => all.push(format!(
                        "{}: {} in the catalog, usable {} (expected there {})",
                        s.name,
                        g.id,
                        amount(h),
                        amount(u.expected)
                    )),
                    _ => all.push(format!("{}: {} in the catalog", s.name, g.id)),
                }
            }
            Err(LookupError::Ambiguous { candidates, .. }) => all.push(format!(
                "{}: one of {} in the catalog; --gpu auto takes the one of its size",
                s.name,
                candidates.join(", ")
            )),
            Err(LookupError::Unknown { .. }) => all.push(format!(
                "{}: {name} is not in the catalog: its verdicts need a row there",
                s.name
            )),
        }
        if let (Some(f), Some(t)) = (s.bytes("free"), s.bytes("total"))
            && f < t / 2
        {
            all.push(format!(
                "{}: only {} of {} is free now; processes there: {}",
                s.name,
                amount(f),
                amount(t),
                s.get("processes").unwrap_or("?")
            ));
        }
        for (_, t) in s.facts.iter().filter(|f| f.0 == "trouble") {
            all.push(format!("{}: {t}", s.name));
        }
    }
    let python = section("python");
    if let (Some(built), Some(most)) = (
        python
            .and_then(|s| s.get("torch built for"))
            .and_then(|b| b.strip_prefix("cuda ")),
        section("driver").and_then(|s| s.get("cuda at most")),
    ) && let (Some(b), Some(m)) = (version(built), version(most))
        // within a major version a driver runs later minor versions (CUDA minor version compatibility)
        && b.0 > m.0
    {
        all.push(format!(
            "torch is built for CUDA {built} and the driver speaks {most} at most: torch will not see the GPU until the driver is newer"
        ));
    }
    let has_gpu = sections.iter().any(|s| s.name.starts_with("gpu "));
    if let Some(t) = python.and_then(|s| s.get("torch"))
        && has_gpu
        && python.is_some_and(|s| s.get("torch built for").is_none())
    {
        all.push(format!(
            "torch {t} is built for processors only: it will not use the GPU"
        ));
    }
    if let Some(v) = section("settings").and_then(|s| s.get("CUDA_VISIBLE_DEVICES"))
        && matches!(v, "(empty)" | "-1")
    {
        all.push("CUDA_VISIBLE_DEVICES hides every GPU from programs started here".into());
    }
    if let Some(m) = section("machine")
        && let (Some(l), Some(t)) = (m.bytes("memory limit of the container"), m.bytes("memory"))
        && l < t
    {
        all.push(format!(
            "the container may use {} of the machine's {} of memory: loading a checkpoint can end there",
            amount(l),
            amount(t)
        ));
    }
    all
}
