//! `tonnage replay`: a recorded trace under other settings, on another card, or at another size.

use crate::Status;
use crate::args::ListFormat;
use crate::commands::dry_run::{device, scale_words};
use crate::dry::recording;
use crate::output::Output;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;
use tonnage_core::Diagnostic;
use tonnage_report::json as as_json;
use tonnage_sim::alloc::{AllocatorConfig, Capacity};
use tonnage_trace::trace::Figures;
use tonnage_trace::{Event, Trace, again, raw, scale};
use tonnage_units::{ByteDelta, Bytes};

/// `replay`
#[derive(Args, Debug)]
pub struct ReplayArgs {
    /// A trace; with --scale-to two or three, each as VALUE=FILE
    #[arg(required = true, value_name = "TRACE")]
    pub traces: Vec<String>,
    /// Does it fit this card? (its memory; the requests stay as recorded)
    #[arg(long, value_name = "ID")]
    pub gpu: Option<String>,
    /// One growing segment a pool
    #[arg(long)]
    pub expandable_segments: bool,
    /// Blocks of this size or more are never split, in MiB
    #[arg(long, value_name = "MIB")]
    pub max_split_size: Option<u64>,
    /// Round requests up to divisions of powers of two
    #[arg(long, value_name = "N")]
    pub roundup_power2_divisions: Option<u64>,
    /// Share of the card above which old cached blocks are freed
    #[arg(long, value_name = "SHARE")]
    pub garbage_collection_threshold: Option<f64>,
    /// Share of the card that the process may have
    #[arg(long, value_name = "SHARE")]
    pub memory_fraction: Option<f64>,
    /// The whole settings string of PYTORCH_CUDA_ALLOC_CONF instead
    #[arg(long, value_name = "TEXT")]
    pub alloc_conf: Option<String>,
    /// The batch or length to go to, out of recordings at two or three others
    #[arg(long, value_name = "VALUE")]
    pub scale_to: Option<u64>,
    /// Form of the output
    #[arg(long, value_enum, default_value_t = ListFormat::Text)]
    pub format: ListFormat,
}

fn settings(a: &ReplayArgs, recorded: &str) -> Result<AllocatorConfig, String> {
    let mut text = a.alloc_conf.clone().unwrap_or_else(|| recorded.to_string());
    let mut add = |t: String| {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(&t);
    };
    if a.expandable_segments {
        add("expandable_segments:True".into());
    }
    if let Some(n) = a.max_split_size {
        add(format!("max_split_size_mb:{n}"));
    }
    if let Some(n) = a.roundup_power2_divisions {
        add(format!("roundup_power2_divisions:{n}"));
    }
    if let Some(x) = a.garbage_collection_threshold {
        add(format!("garbage_collection_threshold:{x}"));
    }
    if let Some(x) = a.memory_fraction {
        add(format!("per_process_memory_fraction:{x}"));
    }
    AllocatorConfig::parse(&text).map_err(|e| e.to_string())
}

fn place(t: &Trace, event: usize) -> String {
    match t.events.get(event) {
        Some(Event::Alloc { place, site, .. }) => {
            let (p, s) = (&t.places[*place as usize], &t.sites[*site as usize]);
            let module = if p.module.is_empty() {
                String::new()
            } else {
                format!(", module {}", p.module)
            };
            let at = if s.source.is_empty() {
                String::new()
            } else {
                format!(", at {}", s.source)
            };
            format!("{} of step {}{module}{at}", p.phase, p.step)
        }
        _ => "?".into(),
    }
}

/// Runs it.
pub fn run(a: &ReplayArgs, out: &Output) -> Status {
    match answer(a, out) {
        Ok(s) => s,
        Err((d, s)) => {
            out.complain(&[d]);
            s
        }
    }
}

fn answer(a: &ReplayArgs, out: &Output) -> Result<Status, (Diagnostic, Status)> {
    let bad = |d| (d, Status::BadInput);
    let usage = |code, m: String| (Diagnostic::error(code, m), Status::Usage);
    let mut loaded: Vec<(u64, Trace)> = Vec::new();
    for word in &a.traces {
        let (value, path) = match word.split_once('=') {
            Some((v, p)) if a.scale_to.is_some() => (
                v.parse()
                    .map_err(|_| usage("bad-value", format!("{word}: VALUE=FILE is expected")))?,
                p,
            ),
            None if a.scale_to.is_some() => {
                return Err(usage(
                    "bad-value",
                    format!("{word}: VALUE=FILE is expected with --scale-to"),
                ));
            }
            _ => (0, word.as_str()),
        };
        loaded.push((value, recording::load(&PathBuf::from(path)).map_err(bad)?));
    }
    let config = settings(a, &loaded[0].1.header.settings).map_err(|e| usage("bad-settings", e))?;
    let mut words = None;
    let trace = match a.scale_to {
        Some(x) => {
            let runs: Vec<(u64, &Trace)> = loaded.iter().map(|(v, t)| (*v, t)).collect();
            let s = scale::scale(&runs, x, &config)
                .map_err(|e| bad(Diagnostic::error("cannot-scale", e.to_string())))?;
            words = Some(scale_words(&s));
            match s.trace {
                Some(t) => t,
                None => {
                    // there is nothing to replay: the totals are the answer
                    let text = format!("At {x}: {}\n", words.unwrap_or_default());
                    out.print(&match a.format {
                        ListFormat::Text => text,
                        ListFormat::Json => as_json::pretty(&json!({"schema": "tonnage.replay/1", "peak": s.peak, "scaled": text.trim()})),
                    });
                    return Ok(Status::Ok);
                }
            }
        }
        None if loaded.len() > 1 => {
            return Err(usage(
                "several",
                "one trace is replayed at a time; several are for --scale-to".into(),
            ));
        }
        None => loaded.remove(0).1,
    };
    let card = a
        .gpu
        .as_deref()
        .map(|g| device(g, &out.catalogs.gpus))
        .transpose()
        .map_err(bad)?;
    let capacity = card.as_ref().map(|d| {
        let total = d.usable.expected;
        Capacity {
            total,
            free: total.saturating_sub(d.outside().1),
        }
    });
    let run = again::replay(&trace, &config, capacity);
    let recorded = if trace.has_segments() && a.scale_to.is_none() {
        let f = raw::figures(&trace);
        Some(f)
    } else {
        None
    };
    // with several streams the limit is compared, not applied
    let too_large = run.failed.is_some()
        || capacity.is_some_and(|c| run.streams > 1 && run.peak.reserved > c.free);
    let b = |n: u64| Bytes(n).display(out.style.units).to_string();
    match a.format {
        ListFormat::Json => {
            let failed = run.failed.as_ref().map(|(event, oom)| {
                json!({"event": event, "where": place(&trace, *event), "requested_bytes": oom.requested, "free_bytes": oom.free, "total_bytes": oom.total, "message": oom.to_string()})
            });
            out.print(&as_json::pretty(&json!({
                "schema": "tonnage.replay/1", "gpu": card.as_ref().map(|d| d.gpu.id.clone()), "peak": run.peak, "end": run.end, "recorded_peak": recorded,
                "retries": run.retries, "failed": failed, "fits": card.is_some().then_some(!too_large), "blocks_that_differ": run.blocks_differ,
                "streams": run.streams, "scaled": words,
            })));
        }
        ListFormat::Text => {
            let mut t = String::new();
            match (&card, &run.failed) {
                (Some(d), Some((event, oom))) => {
                    t.push_str(&format!("It does not fit {}: a request fails in {}.\n  torch.OutOfMemoryError: {oom}\n\n", d.gpu.name, place(&trace, *event)));
                }
                (Some(d), None) if too_large => t.push_str(&format!(
                    "It does not fit {}: the peak is above what the card has.\n\n",
                    d.gpu.name
                )),
                (Some(d), None) if run.retries > 0 => t.push_str(&format!(
                    "It runs on {} after cached blocks are given back {} times.\n\n",
                    d.gpu.name, run.retries
                )),
                (Some(d), None) => t.push_str(&format!("It fits {}.\n\n", d.gpu.name)),
                _ => {}
            }
            t.push_str(&format!("{:<12}{:>14}", "peak", "replayed"));
            if recorded.is_some() {
                t.push_str(&format!("{:>14}{:>16}", "recorded", "difference"));
            }
            t.push('\n');
            type Get = fn(&Figures) -> u64;
            let rows: [(&str, Get); 3] = [
                ("allocated", |f| f.allocated),
                ("reserved", |f| f.reserved),
                ("requested", |f| f.requested),
            ];
            for (name, get) in rows {
                t.push_str(&format!("{name:<12}{:>14}", b(get(&run.peak))));
                if let Some(r) = &recorded {
                    let d = ByteDelta(i128::from(get(&run.peak)) - i128::from(get(r)));
                    t.push_str(&format!(
                        "{:>14}{:>16}",
                        b(get(r)),
                        d.display(out.style.units).to_string()
                    ));
                }
                t.push('\n');
            }
            if run.streams > 1 {
                t.push_str(&format!("\n{} streams allocate, each with pools of its own; a card's limit is compared with the peak, its order of releases is not played.\n", run.streams));
            }
            if let Some(w) = &words {
                t.push_str(&format!("\n{w}\n"));
            }
            out.print(&t);
        }
    }
    Ok(if too_large {
        Status::DoesNotFit
    } else {
        Status::Ok
    })
}
