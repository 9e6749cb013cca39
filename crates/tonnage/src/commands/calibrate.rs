//! `tonnage calibrate`

use crate::Status;
use crate::args::SettingFlags;
use crate::jobs;
use crate::output::Output;
use clap::{Args, ValueEnum};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use tonnage_core::Diagnostic;
use tonnage_core::footprint::{Footprint, Options, estimate};
use tonnage_core::job::Job;
use tonnage_explain::calibrate::{Book, Calibrated, Corrected, Environment, Peaks, Run};
use tonnage_host::record;
use tonnage_report::json;
use tonnage_units::Bytes;

/// `--format` of calibrate
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CalibrateFormat {
    Text,
    Json,
}

/// `calibrate`
#[derive(Args, Debug)]
pub struct CalibrateArgs {
    /// The job that was measured; without one the environments that are known
    pub job: Option<PathBuf>,
    /// The card that it ran on
    #[arg(long, value_name = "ID")]
    pub gpu: Option<String>,
    /// The driver's version, so that another one is not corrected alike
    #[arg(long, value_name = "VERSION", default_value = "")]
    pub driver: String,
    /// A torch-run record of the run (tonnage history record RUN, tonnage measure); `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Measured peak of allocated memory ("9.1 GiB")
    #[arg(long, value_name = "AMOUNT")]
    pub allocated: Option<Bytes>,
    /// Measured peak of reserved memory
    #[arg(long, value_name = "AMOUNT")]
    pub reserved: Option<Bytes>,
    /// Measured peak of the process on the device
    #[arg(long, value_name = "AMOUNT")]
    pub device: Option<Bytes>,
    /// Forget the runs of the job's environment (without a job: all)
    #[arg(long)]
    pub forget: bool,
    /// Form of the output
    #[arg(long, value_enum, default_value_t = CalibrateFormat::Text)]
    pub format: CalibrateFormat,
}

type Failed = (Vec<Diagnostic>, Status);

fn one(code: &'static str, text: String, status: Status) -> Failed {
    (vec![Diagnostic::error(code, text)], status)
}

fn path() -> Option<PathBuf> {
    Some(record::folder()?.join("calibration.json"))
}

/// The file's runs; none where there is no file.
fn load() -> Result<Book, Failed> {
    let Some(p) = path() else {
        return Ok(Book::default());
    };
    match std::fs::read_to_string(&p) {
        Ok(t) => Book::parse(&t).map_err(|e| {
            one(
                "bad-calibration",
                format!("{}: {e}", p.display()),
                Status::BadInput,
            )
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Book::default()),
        Err(e) => Err(one(
            "unreadable",
            format!("{}: {e}", p.display()),
            Status::BadInput,
        )),
    }
}

/// Written beside and moved, so that it is never half.
fn save(b: &Book) -> Result<(), Failed> {
    let none = || {
        one(
            "unavailable",
            record::RecordError::NoFolder.to_string(),
            Status::Unavailable,
        )
    };
    let p = path().ok_or_else(none)?;
    let folder = p.parent().ok_or_else(none)?;
    let fail = |e: std::io::Error| {
        one(
            "unwritable",
            format!("{}: {e}", p.display()),
            Status::BadInput,
        )
    };
    std::fs::create_dir_all(folder).map_err(fail)?;
    let beside = tempfile::NamedTempFile::new_in(folder).map_err(fail)?;
    std::fs::write(beside.path(), b.write()).map_err(fail)?;
    beside.persist(&p).map_err(|e| fail(e.error))?;
    Ok(())
}

fn environment(job: &Job, f: &Footprint, driver: &str) -> Environment {
    Environment {
        gpu: f.gpu.clone(),
        stack: format!("torch {}", job.word("stack.torch")),
        driver: driver.into(),
    }
}

fn raw(f: &Footprint) -> Peaks {
    Peaks {
        allocated_bytes: Some(f.peak.allocated.expected),
        reserved_bytes: Some(f.peak.reserved.expected),
        device_bytes: Some(f.peak.device.expected),
    }
}

/// What `estimate` adds to its text where runs of this environment are known: the raw prediction stays above it.
pub fn note(job: &Job, f: &Footprint, out: &Output) -> String {
    let Ok(book) = load() else {
        return String::new();
    };
    match book.correct(&environment(job, f, ""), &raw(f)) {
        Some(c) => format!("\n{}", text(&c, out)),
        None => String::new(),
    }
}

fn text(c: &Calibrated, out: &Output) -> String {
    let show = |b: u64| Bytes(b).display(out.style.units).to_string();
    let runs = if c.runs == 1 {
        "one run".to_string()
    } else {
        format!("{} runs", c.runs)
    };
    let mut t = format!(
        "Calibrated by {runs} on {} (the prediction above is uncorrected):\n",
        c.environment
    );
    let mut line = |name: &str, c: &Option<Corrected>| {
        if let Some(c) = c {
            let _ = writeln!(
                t,
                "  {name:<10} {:>12} +-{:.1} %   (predicted {})",
                show(c.bytes),
                c.tolerance_pct,
                show(c.raw_bytes)
            );
        }
    };
    line("allocated", &c.allocated);
    line("reserved", &c.reserved);
    line("device", &c.device);
    if c.left_out > 0 {
        let _ = writeln!(
            t,
            "  {} runs are far from their prediction and left out",
            c.left_out
        );
    }
    t
}

/// Peaks of a torch-run record.
fn of_record(p: &Path) -> Result<Peaks, Failed> {
    let all = jobs::read_text(p).map_err(|d| (d, Status::BadInput))?;
    let line = all.lines().find(|l| !l.trim().is_empty()).unwrap_or("");
    let bad = |why: &str| {
        one(
            "bad-record",
            format!("{}: {why}", p.display()),
            Status::BadInput,
        )
    };
    let v: serde_json::Value = serde_json::from_str(line).map_err(|e| bad(&e.to_string()))?;
    let measured = ["measured", "results", "result"]
        .iter()
        .map(|k| &v[*k])
        .find(|m| m.is_object())
        .unwrap_or(&v);
    let of = |names: &[&str]| {
        names
            .iter()
            .find_map(|n| measured[*n].as_u64().or_else(|| v[*n].as_u64()))
    };
    let peaks = Peaks {
        allocated_bytes: of(&["peak_allocated", "peak_allocated_bytes"]),
        reserved_bytes: of(&["peak_reserved", "peak_reserved_bytes"]),
        device_bytes: of(&["peak_device", "peak_device_bytes", "device_peak"]),
    };
    match peaks == Peaks::default() {
        true => Err(bad("the record has no peak_allocated and no peak_reserved")),
        false => Ok(peaks),
    }
}

/// Now, as RFC 3339 without a library.
fn now() -> String {
    let s = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    let (days, rest) = (s / 86400, s % 86400);
    // civil date of a day number (Hinnant)
    let z = days as i64 + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    let day = doy - (153 * mp + 2) / 5 + 1;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

pub fn run(a: &CalibrateArgs, out: &Output) -> Status {
    match answer(a, out) {
        Ok(t) => {
            out.print(&t);
            Status::Ok
        }
        Err((bad, status)) => {
            out.complain(&bad);
            status
        }
    }
}

fn list(book: &Book) -> String {
    let mut t = String::new();
    for e in book.environments() {
        let runs: Vec<&Run> = book.runs.iter().filter(|r| r.environment == e).collect();
        let _ = writeln!(
            t,
            "{e}: {} runs, the last {}",
            runs.len(),
            runs.last().map_or("", |r| r.at.as_str())
        );
    }
    if t.is_empty() {
        t = "No measured runs are known: tonnage calibrate JOB --gpu ID --reserved \"9.1 GiB\" adds one.\n".into();
    }
    t
}

fn answer(a: &CalibrateArgs, out: &Output) -> Result<String, Failed> {
    let mut book = load()?;
    let Some(path) = &a.job else {
        if a.forget {
            let n = book.forget(None);
            save(&book)?;
            return Ok(format!("{n} runs forgotten\n"));
        }
        return Ok(match a.format {
            CalibrateFormat::Json => json::pretty(&book),
            CalibrateFormat::Text => list(&book),
        });
    };
    let job = jobs::load(Some(path), &SettingFlags::default())?;
    let options = Options {
        gpu: a.gpu.clone(),
        expected_only: true,
        ..Options::default()
    };
    let e = estimate(&job, &options).map_err(|bad| {
        let status = jobs::status_of(&bad);
        (bad, status)
    })?;
    let f = &e.footprint;
    let env = environment(&job, f, &a.driver);
    if a.forget {
        let n = book.forget(Some(&env));
        save(&book)?;
        return Ok(format!("{n} runs of {env} forgotten\n"));
    }
    let mut measured = match &a.record {
        Some(p) => of_record(p)?,
        None => Peaks::default(),
    };
    measured.allocated_bytes = a.allocated.map(|b| b.0).or(measured.allocated_bytes);
    measured.reserved_bytes = a.reserved.map(|b| b.0).or(measured.reserved_bytes);
    measured.device_bytes = a.device.map(|b| b.0).or(measured.device_bytes);
    let mut t = String::new();
    if measured != Peaks::default() {
        let run = Run {
            environment: env.clone(),
            job: f.job.clone(),
            at: now(),
            predicted: raw(f),
            measured,
        };
        if !run.plausible() {
            t += "The run is far from this job's prediction: it is kept, and not used as a correction.\n";
        }
        book.add(run)
            .map_err(|e| one("bad-measurement", e.to_string(), Status::Usage))?;
        save(&book)?;
    }
    let c = book.correct(&env, &raw(f));
    if a.format == CalibrateFormat::Json {
        return Ok(json::pretty(&serde_json::json!({
            "schema": "tonnage.calibrate/1",
            "job": f.job,
            "environment": env,
            "raw": raw(f),
            "calibrated": c,
        })));
    }
    let show = |b: u64| Bytes(b).display(out.style.units).to_string();
    let _ = writeln!(
        t,
        "{}: predicted {} allocated, {} reserved, {} on the device",
        f.job,
        show(f.peak.allocated.expected),
        show(f.peak.reserved.expected),
        show(f.peak.device.expected)
    );
    t += &match &c {
        Some(c) => text(c, out),
        None => format!("No measured run of {env} can correct it.\n"),
    };
    Ok(t)
}
