//! `tonnage explain`

use crate::Status;
use crate::args::SettingFlags;
use crate::jobs;
use crate::output::Output;
use clap::{Args, ValueEnum};
use std::fs::File;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use tonnage_core::Diagnostic;
use tonnage_core::footprint::{Options, estimate};
use tonnage_explain::oom::log::{JobNote, Log};
use tonnage_explain::oom::{Change, Scanner};
use tonnage_explain::snapshot::diff::Diff;
use tonnage_explain::snapshot::report::Report;
use tonnage_explain::snapshot::{
    Limits, Snapshot, SnapshotError, json as snapshot_json, pickle, profiler, replay,
};
use tonnage_report::{json, oom, snapshot, snapshot_html};
use tonnage_sim::alloc::AllocatorConfig;

/// `--format` of explain
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExplainFormat {
    Text,
    Json,
    /// One page: timeline and segment map (a memory snapshot)
    Html,
}

/// `explain`
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// A log, a memory snapshot of PyTorch (.pickle or JSON), or its profiler's memory timeline; of any size, also .gz; `-` is standard input
    #[arg(required = true)]
    pub file: PathBuf,
    /// A later snapshot of the same run: what grew
    pub later: Option<PathBuf>,
    /// The job that failed: its changes are simulated
    #[arg(long, value_name = "JOB")]
    pub job: Option<PathBuf>,
    /// The card that the job ran on
    #[arg(long, value_name = "ID")]
    pub gpu: Option<String>,
    /// A snapshot's requests under other settings (PYTORCH_CUDA_ALLOC_CONF's words; empty: the defaults); may be given again
    #[arg(long, value_name = "CONF")]
    pub replay: Vec<String>,
    /// How many stacks of a snapshot are listed
    #[arg(long, value_name = "N", default_value_t = 15)]
    pub top: usize,
    /// Form of the output
    #[arg(long, value_enum, default_value_t = ExplainFormat::Text)]
    pub format: ExplainFormat,
}

fn unreadable(path: &Path, e: &std::io::Error) -> Diagnostic {
    Diagnostic::error("unreadable", format!("{}: {e}", path.display()))
}

/// A file, or standard input, unpacked where it is compressed.
fn open(path: &Path) -> std::io::Result<Box<dyn Read>> {
    let mut input: Box<dyn Read> = if path.as_os_str() == "-" {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(File::open(path)?)
    };
    let mut head = peek(&mut input, 2)?;
    if head != [0x1f, 0x8b] {
        return Ok(Box::new(Cursor::new(head).chain(input)));
    }
    let packed = Cursor::new(std::mem::take(&mut head)).chain(input);
    Ok(Box::new(flate2::read::MultiGzDecoder::new(packed)))
}

/// Up to `n` first bytes.
fn peek(input: &mut dyn Read, n: usize) -> std::io::Result<Vec<u8>> {
    let mut head = vec![0; n];
    let mut at = 0;
    while at < n {
        match input.read(&mut head[at..]) {
            Ok(0) => break,
            Ok(k) => at += k,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    head.truncate(at);
    Ok(head)
}

/// What a file is, by its first bytes.
enum Kind {
    Pickle,
    /// JSON that names what a snapshot has.
    Snapshot,
    /// JSON of the profiler.
    Profiler,
    Log,
}

fn kind(head: &[u8]) -> Kind {
    let text = String::from_utf8_lossy(head);
    let t = text.trim_start();
    let has = |w: &str| text.contains(w);
    match () {
        () if head.first() == Some(&0x80) => Kind::Pickle,
        () if t.starts_with('{') && has("\"traceEvents\"")
            || t.starts_with('{') && has("\"schemaVersion\"") =>
        {
            Kind::Profiler
        }
        () if t.starts_with('{')
            && ["\"segments\"", "\"device_traces\"", "\"total_size\""]
                .iter()
                .any(|w| has(w)) =>
        {
            Kind::Snapshot
        }
        () if t.starts_with("[[") || t.starts_with("[\n") => Kind::Profiler,
        () => Kind::Log,
    }
}

/// A file's first part, and all of it.
type Opened = (Kind, Box<dyn Read>);

fn start(path: &Path) -> std::io::Result<Opened> {
    let mut f = open(path)?;
    let head = peek(&mut f, 4096)?;
    Ok((kind(&head), Box::new(Cursor::new(head).chain(f))))
}

/// Complaints about a file.
fn bad(path: &Path, e: &SnapshotError) -> Diagnostic {
    Diagnostic::error("bad-snapshot", format!("{}: {e}", path.display()))
}

fn load(path: &Path) -> Result<Snapshot, Diagnostic> {
    let (kind, f) = start(path).map_err(|e| unreadable(path, &e))?;
    let f = std::io::BufReader::with_capacity(1 << 20, f);
    let result = match kind {
        Kind::Pickle => pickle::read(f, Limits::default()),
        _ => snapshot_json::read(f, Limits::default()),
    };
    result.map_err(|e| bad(path, &e))
}

pub fn run(a: &ExplainArgs, out: &Output) -> Status {
    match answer(a, out) {
        Ok(text) => {
            out.print(&text);
            Status::Ok
        }
        Err((bad, status)) => {
            out.complain(&bad);
            status
        }
    }
}

type Failed = (Vec<Diagnostic>, Status);

fn answer(a: &ExplainArgs, out: &Output) -> Result<String, Failed> {
    let input = |d: Diagnostic| (vec![d], Status::BadInput);
    let usage = |t: &str| (vec![Diagnostic::error("bad-use", t)], Status::Usage);
    let name = |p: &Path| match p.as_os_str() == "-" {
        true => "standard input".to_string(),
        false => p.display().to_string(),
    };
    let text = a.format == ExplainFormat::Text;
    if let Some(later) = &a.later {
        let (x, y) = (load(&a.file).map_err(input)?, load(later).map_err(input)?);
        let d = Diff::of((&name(&a.file), &name(later)), &x, &y);
        return Ok(match a.format {
            ExplainFormat::Text => snapshot::diff(&d, &out.style),
            ExplainFormat::Json => json::pretty(&d),
            ExplainFormat::Html => return Err(usage("--format html is of one snapshot")),
        });
    }
    let mut configs = Vec::new();
    for c in &a.replay {
        let parsed = match c.as_str() {
            "" => AllocatorConfig::default(),
            c => AllocatorConfig::parse(c).map_err(|e| usage(&format!("--replay {c}: {e}")))?,
        };
        configs.push((c, parsed));
    }
    let (kind, f) = start(&a.file).map_err(|e| input(unreadable(&a.file, &e)))?;
    match kind {
        Kind::Log => {
            if a.format == ExplainFormat::Html || !a.replay.is_empty() {
                return Err(usage(
                    "--format html and --replay are of memory snapshots; this is a log",
                ));
            }
            let log = log(a, f, &name(&a.file))?;
            Ok(if text {
                oom::log(&log, &out.style)
            } else {
                json::pretty(&log)
            })
        }
        Kind::Profiler => {
            let value: serde_json::Value = serde_json::from_reader(std::io::BufReader::new(f))
                .map_err(|e| input(bad(&a.file, &e.into())))?;
            let t = profiler::read(&name(&a.file), &value).map_err(|e| input(bad(&a.file, &e)))?;
            Ok(if text {
                snapshot::timeline(&t, &out.style)
            } else {
                json::pretty(&t)
            })
        }
        Kind::Pickle | Kind::Snapshot => {
            let f = std::io::BufReader::with_capacity(1 << 20, f);
            let s = match kind {
                Kind::Pickle => pickle::read(f, Limits::default()),
                _ => snapshot_json::read(f, Limits::default()),
            }
            .map_err(|e| input(bad(&a.file, &e)))?;
            let mut r = Report::of(&name(&a.file), &s, a.top);
            for d in &mut r.devices {
                for (text, config) in &configs {
                    d.replays
                        .push(replay::replay(&s, d.device, text, config, None));
                }
            }
            Ok(match a.format {
                ExplainFormat::Text => snapshot::report(&r, &out.style),
                ExplainFormat::Json => json::pretty(&r),
                ExplainFormat::Html => snapshot_html::page(&r),
            })
        }
    }
}

/// A log, streamed.
fn log(a: &ExplainArgs, mut f: Box<dyn Read>, name: &str) -> Result<Log, Failed> {
    let mut scanner = Scanner::default();
    let mut piece = vec![0; 1 << 20];
    let found = loop {
        match f.read(&mut piece) {
            Ok(0) => break scanner.finish(),
            Ok(n) => scanner.feed(&piece[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err((vec![unreadable(&a.file, &e)], Status::BadInput)),
        }
    };
    let mut log = Log::of(name, &found);
    if let Some(path) = &a.job {
        let (note, changes) = job(path, a.gpu.clone(), &log)?;
        log.with_job(note, &changes);
    }
    Ok(log)
}

/// The job's prediction and its simulated edits, those that save something, the largest first.
fn job(
    path: &Path,
    gpu: Option<String>,
    log: &Log,
) -> Result<(JobNote, Vec<Change>), (Vec<Diagnostic>, Status)> {
    let job = jobs::load(Some(path), &SettingFlags::default())?;
    let options = Options {
        gpu,
        advice: true,
        expected_only: true,
        ..Options::default()
    };
    let e = estimate(&job, &options).map_err(|bad| {
        let status = jobs::status_of(&bad);
        (bad, status)
    })?;
    let f = &e.footprint;
    let mut changes: Vec<Change> = f
        .advice
        .iter()
        .filter(|a| a.saves_bytes > 0)
        .map(|a| Change {
            what: format!("{} ({})", a.edit, a.cost),
            setting: Some(a.flags.clone()),
            frees_bytes: u64::try_from(a.saves_bytes).ok(),
            at_most: false,
        })
        .collect();
    changes.sort_by_key(|c| std::cmp::Reverse(c.frees_bytes));
    let allocated = f.peak.allocated.expected;
    let used = log
        .decisive()
        .and_then(|f| Some(f.message.bytes("allocated_bytes")? + f.message.bytes("tried_bytes")?));
    let says = match used {
        Some(u) if u > allocated + allocated / 10 => {
            "the run used more than that when it failed: it is not this job, or something else is held".to_string()
        }
        Some(u) => format!(
            "the run held {} of it when it failed",
            tonnage_units::Bytes(u.min(allocated))
        ),
        None => "the text does not say how much was in use".to_string(),
    };
    let note = JobNote {
        job: f.job.clone(),
        peak_allocated_bytes: allocated,
        peak_reserved_bytes: f.peak.reserved.expected,
        phase: f.instant.phase.clone(),
        says,
    };
    Ok((note, changes))
}
