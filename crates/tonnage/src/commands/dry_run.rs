//! `tonnage dry-run`: the user's own script on the null device.

use super::dry_engine::{self, Engine};
use super::dry_llama;
use crate::Status;
use crate::args::Format;
use crate::dry::run::{self, Done, Plan};
use crate::dry::{null, python, recording};
use crate::output::Output;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;
use tonnage_catalog::Gpus;
use tonnage_core::Diagnostic;
use tonnage_core::footprint::{Component, Footprint};
use tonnage_core::job::DEFAULT_GPU;
use tonnage_core::verdict::{Device, Outcome};
use tonnage_report::{csv, json as as_json, markdown, oom, svg, text};
use tonnage_sim::alloc::{AllocatorConfig, format_size};
use tonnage_trace::{Trace, again, footprint, scale};
use tonnage_units::Bytes;

/// `dry-run`
#[derive(Args, Debug)]
pub struct DryRunArgs {
    /// The card that is stood in for (`tonnage gpus` lists them)
    #[arg(long, value_name = "ID")]
    pub gpu: Option<String>,
    /// How many of the card the machine has (default: as many as torchrun's, accelerate's or DeepSpeed's flags start processes)
    #[arg(long, value_name = "N")]
    pub gpu_count: Option<usize>,
    /// Run one process as a rank of a world of N
    #[arg(long, value_name = "N", requires = "rank")]
    pub world: Option<u32>,
    /// Which rank (from 0)
    #[arg(long, value_name = "R", requires = "world")]
    pub rank: Option<u32>,
    /// NAME=A[,B,C]: replaces {NAME} in the command; one run for each value
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub set: Vec<String>,
    /// With two or three values of --set: the footprint at another, out of their traces
    #[arg(long, value_name = "VALUE")]
    pub scale_to: Option<u64>,
    /// Keep the trace here (.jsonl.gz); of several, the number of the rank or value is put before the ending
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Give the card as much memory as the run wants, to see how much that is
    #[arg(long)]
    pub unlimited: bool,
    /// Record every step; else steps that repeat the ones before are recorded once
    #[arg(long)]
    pub every_step: bool,
    /// End with our verdict (0 fits, 1 does not) instead of the script's own status
    #[arg(long)]
    pub verdict_exit: bool,
    /// No announcement of the null device, and its plain name
    #[arg(long)]
    pub no_mark: bool,
    /// Form of the output; the script's own goes to standard error where it is not text
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// The command: python train.py ..., torchrun ..., accelerate launch ..., vllm serve ..., llama-server ...
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// The command's processes by a launcher's flags.
fn processes(command: &[String]) -> usize {
    const FLAGS: [&str; 5] = [
        "--num_gpus",
        "--nproc_per_node",
        "--nproc-per-node",
        "--num_processes",
        "--num-processes",
    ];
    for (i, a) in command.iter().enumerate() {
        for f in FLAGS {
            let value = match a.strip_prefix(f) {
                Some("") => command.get(i + 1).map(String::as_str),
                Some(rest) => rest.strip_prefix('='),
                None => None,
            };
            if let Some(n) = value.and_then(|v| v.parse().ok()) {
                return n;
            }
        }
    }
    1
}

/// Every command that `--set` makes, with the value that varies.
fn variants(a: &DryRunArgs) -> Result<Vec<(String, Vec<String>)>, String> {
    let mut all = vec![(String::new(), a.command.clone())];
    for s in &a.set {
        let (name, values) = s
            .split_once('=')
            .ok_or_else(|| format!("--set {s}: NAME=VALUE is expected"))?;
        let hole = format!("{{{name}}}");
        if !a.command.iter().any(|w| w.contains(&hole)) {
            return Err(format!(
                "--set {s}: the command has no {hole} to put it in, as in `python train.py --{name} {hole}`"
            ));
        }
        let values: Vec<&str> = values.split(',').collect();
        let mut next = Vec::new();
        for (label, c) in &all {
            for v in &values {
                let words = c.iter().map(|w| w.replace(&hole, v)).collect();
                // what is the same in every run names none of them
                let label = if values.len() == 1 && !label.is_empty() {
                    label.clone()
                } else {
                    (*v).to_string()
                };
                next.push((label, words));
            }
        }
        all = next;
    }
    Ok(all)
}

/// Runs it.
pub fn run(a: &DryRunArgs, out: &Output) -> Status {
    let fail = |d: Diagnostic| {
        let status = match d.code {
            "unavailable" => Status::Unavailable,
            _ => Status::Usage,
        };
        out.complain(&[d]);
        status
    };
    let device = match device(a.gpu.as_deref().unwrap_or(DEFAULT_GPU), &out.catalogs.gpus) {
        Ok(d) => d,
        Err(d) => return fail(d),
    };
    let variants = match variants(a) {
        Ok(v) => v,
        Err(e) => return fail(Diagnostic::error("bad-set", e)),
    };
    match dry_engine::engine(&a.command) {
        Engine::No => {}
        Engine::Vllm => return dry_engine::run(a, &device, out),
        Engine::Llama => return dry_llama::run(a, &device, out),
        Engine::Refused(d) => return fail(d),
    }
    let ready = run::platform()
        .and_then(|()| null::library().map(|_| ()))
        .and_then(|()| run::check(&variants[0].1, &device));
    let torch: Option<python::Torch> = match ready {
        Ok(t) => t,
        Err(d) => return fail(d),
    };
    if torch.is_none() {
        out.complain(&[Diagnostic::note(
            "unknown-python",
            format!(
                "{} is neither Python nor a script of one: whatever Python it starts is recorded if its torch is a CUDA build",
                a.command[0]
            ),
        )]);
    }
    let mut results: Vec<(String, Done)> = Vec::new();
    let all = [("TONNAGE_RECORD_ALL".to_string(), "1".to_string())];
    for (label, command) in &variants {
        let plan = Plan {
            command,
            device: &device,
            count: a
                .gpu_count
                .unwrap_or_else(|| processes(command))
                .clamp(1, 64),
            lone: a.world.zip(a.rank),
            unlimited: a.unlimited,
            quiet: a.no_mark,
            aside: a.format != Format::Text,
            env: if a.every_step { &all } else { &[] },
        };
        match run::run(&plan) {
            Ok(d) => {
                // Ctrl-C and its like are meant for all of them
                let stopped = matches!(d.code, 130 | 143);
                results.push((label.clone(), d));
                if stopped {
                    break;
                }
            }
            Err(d) => return fail(d),
        }
    }
    let mut code = 0;
    let (mut fits, mut whole, mut shows) = (true, true, true);
    let many = results.len() > 1;
    let mut footprints: Vec<(String, Footprint)> = Vec::new();
    for (label, done) in &results {
        out.complain(&done.bad);
        for m in &done.report.messages {
            out.complain(&[Diagnostic::error("null-device", m.clone())]);
        }
        if code == 0 {
            code = done.code;
        }
        for (k, (pid, t)) in done.traces.iter().enumerate() {
            let mut f = footprint::footprint(t, &device);
            enrich(&mut f, t, done, *pid, a.unlimited);
            let full = f.decisive().is_some_and(|v| v.outcome == Outcome::No);
            fits &= !full;
            if done.code != 0 && !full {
                whole = false;
                f.job = format!("{} (stopped with status {})", f.job, done.code);
                f.notes.push(Diagnostic::note(
                    "stopped",
                    format!("the command ended with status {}: this is what it had used until then, not what a whole run uses", done.code),
                ));
            }
            let several = done.traces.len() > 1;
            let name = match (many, several) {
                (true, true) => format!("{label}, rank {}", t.header.rank),
                (true, false) => label.clone(),
                (false, true) => format!("rank {}", t.header.rank),
                (false, false) => String::new(),
            };
            if let Some(path) = &a.save {
                let path = numbered(path, label, if several { Some(k) } else { None });
                if let Err(d) = recording::save(t, &path) {
                    return fail(d);
                }
            }
            footprints.push((name, f));
        }
        // what was allocated before the first kernel is no answer
        shows &= !(done.report.no_kernels && done.code != 0);
        if done.traces.is_empty() {
            let why = match done.code {
                0 => "the command used no CUDA memory through PyTorch, or its Python ignores PYTHONPATH (-I, -E)".into(),
                n => format!("the command ended with status {n} before it used CUDA memory through PyTorch"),
            };
            out.complain(&[Diagnostic::error(
                "nothing-recorded",
                format!("nothing was recorded: {why}"),
            )]);
        }
    }
    if !shows && a.format == Format::Text {
        out.print(&format!(
            "This torch has no kernels for {}, so the run ended at the first one. A wheel that has them is named above.\n",
            device.gpu.name
        ));
        footprints.clear();
        if a.verdict_exit {
            return Status::Unavailable;
        }
    }
    let beyond = match a.scale_to.map(|x| (x, scaled(&results, x, &device))) {
        None => None,
        Some((x, Ok((f, words)))) => Some((x, f, words)),
        Some((_, Err(e))) => {
            out.complain(&[Diagnostic::error("cannot-scale", e)]);
            return Status::BadInput;
        }
    };
    if a.format == Format::Json && (beyond.is_some() || footprints.len() > 1) {
        out.print(&several(&footprints, beyond.as_ref()));
    } else if !footprints.is_empty() {
        out.print(&shown(a.format, &footprints, out));
    }
    for (_, done) in &results {
        // what the script died of, as `explain` tells it
        if done.log.decisive().is_some() && a.format == Format::Text {
            out.print("\n");
            out.print(&oom::log(&done.log, &out.style));
        }
    }
    if let Some((x, f, words)) = beyond
        && a.format != Format::Json
    {
        out.print("\n");
        if let Some(f) = f {
            out.print(&shown(a.format, &[(format!("scaled to {x}"), f)], out));
        }
        if a.format == Format::Text {
            out.print(&format!("\n{words}\n"));
        }
    }
    if a.verdict_exit {
        return if footprints.is_empty() || (fits && !whole) {
            Status::BadInput
        } else if fits {
            Status::Ok
        } else {
            Status::DoesNotFit
        };
    }
    // the script's own status, whatever it is
    std::process::exit(code)
}

/// The card's figures.
pub fn device(id: &str, gpus: &Gpus) -> Result<Device, Diagnostic> {
    let g = gpus.find(id).map_err(|e| {
        Diagnostic::error("unknown-gpu", e.to_string()).help("`tonnage gpus` lists them")
    })?;
    Device::of(g).map_err(|e| Diagnostic::error("unavailable", e.to_string()))
}

fn numbered(path: &std::path::Path, label: &str, rank: Option<usize>) -> PathBuf {
    let mut parts = Vec::new();
    if !label.is_empty() {
        parts.push(label.to_string());
    }
    if let Some(r) = rank {
        parts.push(format!("rank{r}"));
    }
    if parts.is_empty() {
        return path.to_path_buf();
    }
    let name = path
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    let (stem, end) = name.split_once('.').unwrap_or((name.as_str(), "jsonl.gz"));
    path.with_file_name(format!("{stem}-{}.{end}", parts.join("-")))
}

/// What only the run as a whole knows.
fn enrich(f: &mut Footprint, t: &Trace, done: &Done, pid: u64, unlimited: bool) {
    let outside = done
        .report
        .used
        .iter()
        .filter(|u| u.pid == pid)
        .map(|u| u.peak_allocated)
        .max()
        .unwrap_or(0)
        .saturating_sub(f.peak.reserved.expected);
    if outside >= 1 << 20 {
        f.notes.push(Diagnostic::note(
            "outside-allocator",
            format!(
                "{} of device memory did not come through PyTorch's allocator (libraries' own)",
                Bytes(outside)
            ),
        ));
    }
    for m in &done.report.inferred {
        f.notes.push(Diagnostic::note("inferred", m.clone()));
    }
    if unlimited {
        f.notes.push(Diagnostic::note(
            "unlimited",
            "the card was given unlimited memory for this run",
        ));
    }
    if t.header.seconds > 0.0 {
        f.notes.push(Diagnostic::note(
            "took",
            format!(
                "the run took {:.1} s, of which {:.2} s for recording",
                done.seconds, t.header.recorder_seconds
            ),
        ));
    }
    f.advice = advice(f, t);
}

/// What would help, computed where it can be.
fn advice(f: &Footprint, t: &Trace) -> Vec<tonnage_core::footprint::Advice> {
    let mut out = Vec::new();
    let bad = f.decisive().is_some_and(|v| v.outcome != Outcome::Fits);
    if !bad {
        return out;
    }
    let mut say = |edit: &str, flags: &str, saves: u64, keeps: bool, cost: &str| {
        out.push(tonnage_core::footprint::Advice {
            edit: edit.into(),
            flags: flags.into(),
            saves_bytes: i64::try_from(saves).unwrap_or(i64::MAX),
            keeps_effective_batch: keeps,
            cost: cost.into(),
            outcome: None,
        });
    };
    let config = AllocatorConfig::parse(&t.header.settings).unwrap_or_default();
    if !config.expandable_segments {
        let grown = AllocatorConfig {
            expandable_segments: true,
            ..config
        };
        let other = again::replay(t, &grown, None).peak.reserved;
        if other < f.peak.reserved.expected {
            say(
                "expandable segments",
                "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
                f.peak.reserved.expected - other,
                true,
                "none to speak of (replayed from this trace)",
            );
        }
    }
    let c = |x| f.component(x);
    let saved = c(Component::SavedActivations) + c(Component::AttentionScores);
    if saved > 0 {
        say(
            "half the micro-batch, twice the accumulation steps",
            "saved activations and logits halve",
            (saved + c(Component::LogitsAndLoss)) / 2,
            true,
            "smaller kernels",
        );
        say(
            "activation checkpointing",
            "most of the saved activations; at most",
            saved,
            true,
            "about a third more compute",
        );
    }
    let states = c(Component::OptimizerState);
    if states > 0 {
        say(
            "8-bit optimizer states",
            "of fp32 moments",
            states / 4 * 3,
            true,
            "quantised moments",
        );
    }
    out.sort_by_key(|a| std::cmp::Reverse(a.saves_bytes));
    out
}

/// Several runs in one document (`tonnage.dry-run/1`); `beyond` is a value that was not run, its footprint where there is one, and how far it can be trusted.
fn several(
    all: &[(String, Footprint)],
    beyond: Option<&(u64, Option<Footprint>, String)>,
) -> String {
    let runs: Vec<_> = all
        .iter()
        .map(|(name, f)| json!({"name": name, "footprint": f}))
        .collect();
    let mut v = json!({"schema": "tonnage.dry-run/1", "runs": runs});
    if let Some((x, f, words)) = beyond {
        v["scaled"] = json!({"value": x, "footprint": f, "words": words});
    }
    as_json::pretty(&v)
}

fn shown(format: Format, all: &[(String, Footprint)], out: &Output) -> String {
    let one = |f: &Footprint| match format {
        Format::Text => text::footprint(f, &out.style),
        Format::Json => as_json::footprint(f),
        Format::Md => markdown::footprint(f, &out.style),
        Format::Csv => csv::footprint(f),
        Format::Svg => svg::timeline(f, &out.style),
    };
    if all.len() == 1 {
        return one(&all[0].1);
    }
    let most = all
        .iter()
        .max_by_key(|x| x.1.peak.reserved.expected)
        .map(|x| &x.1);
    let mut t = String::new();
    if format == Format::Text {
        let b = |n: u64| Bytes(n).display(out.style.units).to_string();
        t.push_str(&format!(
            "{:<24}{:>14}{:>14}{:>14}  verdict\n",
            "run", "allocated", "reserved", "device"
        ));
        for (name, f) in all {
            t.push_str(&format!(
                "{name:<24}{:>14}{:>14}{:>14}  {}\n",
                b(f.peak.allocated.expected),
                b(f.peak.reserved.expected),
                b(f.peak.device.expected),
                f.decisive().map_or("", |v| v.outcome.name())
            ));
        }
        t.push_str("\nThe largest of them:\n\n");
    }
    t + &most.map(one).unwrap_or_default()
}

/// The footprint at a value that was not run.
fn scaled(
    results: &[(String, Done)],
    x: u64,
    device: &Device,
) -> Result<(Option<Footprint>, String), String> {
    let mut runs: Vec<(u64, &Trace)> = Vec::new();
    for (label, d) in results {
        let v = label
            .parse()
            .map_err(|_| format!("--scale-to needs whole numbers in --set; {label:?} is none"))?;
        let t = d
            .traces
            .iter()
            .map(|t| &t.1)
            .next()
            .ok_or("a run left no trace")?;
        if !t.header.refusals.is_empty() {
            return Err(format!(
                "the run with {v} ran out of memory, so its trace is not whole; --unlimited runs it to the end"
            ));
        }
        runs.push((v, t));
    }
    let config = AllocatorConfig::parse(runs.first().map_or("", |r| r.1.header.settings.as_str()))
        .unwrap_or_default();
    let s = scale::scale(&runs, x, &config).map_err(|e| e.to_string())?;
    let f = s.trace.as_ref().map(|t| footprint::footprint(t, device));
    Ok((f, format!("At {x}: {}", scale_words(&s))))
}

/// The figures of a check, with what they are off by.
fn against(c: &scale::Check) -> String {
    let pct = |a: u64, b: u64| 100.0 * (a as f64 - b as f64) / (b as f64).max(1.0);
    format!(
        "{} allocated ({:+.3} %) and {} reserved ({:+.3} %)",
        format_size(c.by_line.allocated),
        pct(c.by_line.allocated, c.recorded.allocated),
        format_size(c.by_line.reserved),
        pct(c.by_line.reserved, c.recorded.reserved)
    )
}

/// What a scaled trace says, and how far it can be trusted.
pub fn scale_words(s: &scale::Scaled) -> String {
    let mut t = format!(
        "{} allocated, {} reserved. ",
        format_size(s.peak.allocated),
        format_size(s.peak.reserved)
    );
    if let (Some(why), Some(_)) = (&s.parted, &s.trace) {
        t.push_str(&format!(
            "Continued from the two nearest recordings alone, because {why}. "
        ));
        if let Some(c) = &s.check {
            t.push_str(&format!(
                "Error: the one at {}, which went another way, is ",
                c.at
            ));
            t.push_str(&against(c));
            t.push_str(" by their line.");
        } else {
            t.push_str("Error: not known.");
        }
        return t;
    }
    if let Some(why) = &s.parted {
        t.push_str(&format!(
            "Only the totals are continued, because {why}; recordings at larger values often are the same events. "
        ));
    }
    t.push_str(&match &s.check {
        None => "Error: not known with two recordings; a third checks it.".into(),
        Some(c) => {
            let bent = match (c.bent, &s.parted) {
                (0, _) => "everything is continued in a straight line".to_string(),
                (n, None) => {
                    format!(
                        "{n} requests are not on a straight line and are continued as parabolas"
                    )
                }
                _ => "the totals are continued as a parabola".into(),
            };
            format!(
                "Error: the recording at {} predicted from the other two is {}; {bent}.",
                c.at,
                against(c)
            )
        }
    });
    t
}
