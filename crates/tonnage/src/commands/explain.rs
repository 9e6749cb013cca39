//! `tonnage explain`

use crate::Status;
use crate::args::SettingFlags;
use crate::jobs;
use crate::output::Output;
use clap::{Args, ValueEnum};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use tonnage_core::Diagnostic;
use tonnage_core::footprint::{Options, estimate};
use tonnage_explain::oom::log::{JobNote, Log};
use tonnage_explain::oom::{Change, Scanner};
use tonnage_report::{json, oom};

/// `--format` of explain
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExplainFormat {
    Text,
    Json,
}

/// `explain`
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// A log (of any size, also .gz); `-` is standard input
    #[arg(required = true)]
    pub file: PathBuf,
    /// The job that failed: its changes are simulated
    #[arg(long, value_name = "JOB")]
    pub job: Option<PathBuf>,
    /// The card that the job ran on
    #[arg(long, value_name = "ID")]
    pub gpu: Option<String>,
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
    let mut head = [0u8; 2];
    let mut n = 0;
    while n < 2 {
        match input.read(&mut head[n..])? {
            0 => break,
            k => n += k,
        }
    }
    let whole = std::io::Cursor::new(head[..n].to_vec()).chain(input);
    Ok(if head == [0x1f, 0x8b] {
        Box::new(flate2::read::MultiGzDecoder::new(whole))
    } else {
        Box::new(whole)
    })
}

pub fn run(a: &ExplainArgs, out: &Output) -> Status {
    let found = open(&a.file).and_then(|mut f| {
        let mut scanner = Scanner::default();
        let mut piece = vec![0; 1 << 20];
        loop {
            match f.read(&mut piece) {
                Ok(0) => return Ok(scanner.finish()),
                Ok(n) => scanner.feed(&piece[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    });
    let found = match found {
        Ok(f) => f,
        Err(e) => {
            out.complain(&[unreadable(&a.file, &e)]);
            return Status::BadInput;
        }
    };
    let name = if a.file.as_os_str() == "-" {
        "standard input".to_string()
    } else {
        a.file.display().to_string()
    };
    let mut log = Log::of(&name, &found);
    if let Some(path) = &a.job {
        match job(path, a.gpu.clone(), &log) {
            Ok((note, changes)) => log.with_job(note, &changes),
            Err((bad, status)) => {
                out.complain(&bad);
                return status;
            }
        }
    }
    out.print(&match a.format {
        ExplainFormat::Json => json::pretty(&log),
        ExplainFormat::Text => oom::log(&log, &out.style),
    });
    Status::Ok
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
