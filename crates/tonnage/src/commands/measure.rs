//! `tonnage measure`: a job of ours performed for real, and its record.

use crate::Status;
use crate::args::{ListFormat, SettingFlags};
use crate::commands::dry_run;
use crate::dry::run::{self, Plan};
use crate::dry::{python, recording, script};
use crate::jobs;
use crate::output::Output;
use clap::Args;
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use tonnage_core::Diagnostic;
use tonnage_core::job::DEFAULT_GPU;
use tonnage_core::validate::{Report, record_rows_with};

/// `measure`
#[derive(Args, Debug)]
pub struct MeasureArgs {
    /// A job, as for estimate; or a file of `torch-run` records with --id
    pub job: Option<PathBuf>,
    #[command(flatten)]
    pub settings: SettingFlags,
    /// The record whose job is performed again; several with commas or by repeating
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    pub id: Vec<String>,
    /// The card: for --null the one that is stood in for, else what the record says it is
    #[arg(long, value_name = "ID")]
    pub gpu: Option<String>,
    /// On the null device instead of a real one
    #[arg(long)]
    pub null: bool,
    /// The Python with torch and transformers
    #[arg(long, value_name = "PATH", default_value = "python3")]
    pub python: String,
    /// Where the record is appended
    #[arg(long, value_name = "FILE", default_value = "measured.jsonl")]
    pub out: PathBuf,
    /// Keep the script here
    #[arg(long, value_name = "FILE")]
    pub keep: Option<PathBuf>,
    /// Only write the script (--keep)
    #[arg(long, requires = "keep")]
    pub no_run: bool,
    /// Keep the trace of a run on the null device
    #[arg(long, value_name = "FILE", requires = "null")]
    pub save: Option<PathBuf>,
    /// Form of the output
    #[arg(long, value_enum, default_value_t = ListFormat::Text)]
    pub format: ListFormat,
}

/// What a record says of a run, for comparing two of them.
const FIGURES: [&str; 9] = [
    "peak_allocated_bytes",
    "peak_reserved_bytes",
    "peak_requested_bytes",
    "load_peak_allocated_bytes",
    "param_count",
    "trainable_count",
    "param_bytes",
    "buffer_bytes",
    "peak_at",
];

/// A job to perform, with the record that it comes from.
struct Wanted {
    id: String,
    config: Value,
    recorded: Option<Value>,
}

type Failed = (Vec<Diagnostic>, Status);

/// The jobs to perform.
fn wanted(a: &MeasureArgs, out: &Output) -> Result<Vec<Wanted>, Failed> {
    let bad = |code, m: String, s| Err((vec![Diagnostic::error(code, m)], s));
    if !a.id.is_empty() {
        let Some(path) = &a.job else {
            return bad(
                "missing",
                "--id needs a file of records".into(),
                Status::Usage,
            );
        };
        let text = std::fs::read_to_string(path).map_err(|e| {
            let m = format!("{}: {e}", path.display());
            (vec![Diagnostic::error("unreadable", m)], Status::BadInput)
        })?;
        let all: Vec<Value> = text
            .lines()
            .filter_map(|l| serde_json::from_str(l).ok())
            .collect();
        let mut found = Vec::new();
        for id in &a.id {
            let Some(r) = all.iter().find(|r| r["id"].as_str() == Some(id)) else {
                return bad(
                    "unknown-id",
                    format!("{}: no record {id}", path.display()),
                    Status::BadInput,
                );
            };
            let mut config = r["config"].clone();
            if let Some(g) = &a.gpu {
                config["gpu"] = Value::from(g.as_str());
            }
            found.push(Wanted {
                id: id.clone(),
                config,
                recorded: Some(r.clone()),
            });
        }
        return Ok(found);
    }
    if a.job.is_none() && a.settings.given.is_empty() {
        return bad(
            "missing",
            "no job: give a file, or flags such as --model gpt2 --seq-len 1024".into(),
            Status::Usage,
        );
    }
    let job = jobs::load(a.job.as_deref(), &a.settings)?;
    let gpu = a
        .gpu
        .clone()
        .or_else(|| Some(job.word("gpu")).filter(|g| !g.is_empty()))
        .unwrap_or_else(|| DEFAULT_GPU.into());
    let device =
        dry_run::device(&gpu, &out.catalogs.gpus).map_err(|d| (vec![d], Status::BadInput))?;
    let spec = job.spec(&device.gpu).map_err(|d| {
        let s = jobs::status_of(&d);
        (d, s)
    })?;
    let config = script::config(&spec, &device.gpu.id).map_err(|e| {
        let m = format!("a script for this job is not written: {e}");
        (
            vec![Diagnostic::error("unsupported", m)],
            Status::Unavailable,
        )
    })?;
    let title: String = job
        .title()
        .chars()
        .map(|c| if c.is_alphanumeric() { c } else { '-' })
        .collect();
    Ok(vec![Wanted {
        id: title.trim_matches('-').to_lowercase(),
        config,
        recorded: None,
    }])
}

/// A path for one of several: the id is put before the ending.
fn of_several(path: &std::path::Path, id: &str, several: bool) -> PathBuf {
    if !several {
        return path.to_path_buf();
    }
    let name = path
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    let (stem, end) = name.split_once('.').unwrap_or((name.as_str(), "py"));
    path.with_file_name(format!("{stem}-{id}.{end}"))
}

/// Runs it.
pub fn run(a: &MeasureArgs, out: &Output) -> Status {
    let jobs = match wanted(a, out) {
        Ok(x) => x,
        Err((bad, s)) => {
            out.complain(&bad);
            return s;
        }
    };
    let (mut runs, mut rows, mut same) = (Vec::new(), Vec::new(), 0);
    for w in &jobs {
        let record = match perform(a, w, jobs.len() > 1, out) {
            Ok(Some(r)) => r,
            Ok(None) => continue,
            Err((bad, s)) => {
                out.complain(&bad);
                return s;
            }
        };
        match record_rows_with(&record, &mut |_| None) {
            Ok(r) => rows.extend(r),
            Err(e) => out.complain(&[Diagnostic::error("bad-record", e.to_string())]),
        }
        let figures: Vec<Value> = w
            .recorded
            .iter()
            .flat_map(|r| {
                FIGURES.map(|k| json!({"name": k, "recorded": r[k], "measured": record[k]}))
            })
            .collect();
        let equal = figures.iter().all(|f| f["recorded"] == f["measured"]);
        same += usize::from(equal && !figures.is_empty());
        runs.push(json!({"id": w.id, "equal": (!figures.is_empty()).then_some(equal), "figures": figures, "record": record}));
    }
    if a.no_run {
        return Status::Ok;
    }
    let report = Report::of(rows);
    if a.format == ListFormat::Json {
        out.print(&tonnage_report::json::pretty(&json!({
            "schema": "tonnage.measure/1", "runs": runs, "validation": report,
        })));
    } else {
        if !a.id.is_empty() {
            out.print(&against(&runs, same));
        }
        out.print(&tonnage_report::validate::report(&report, 10, &out.style));
    }
    // the null device has no chance in it: another figure is another program
    if a.null && !a.id.is_empty() && same < jobs.len() {
        Status::DoesNotFit
    } else {
        Status::Ok
    }
}

/// The runs against the records that they come from.
fn against(runs: &[Value], same: usize) -> String {
    let mut t = format!(
        "{same} of {} runs have every figure of their records, to the byte.\n",
        runs.len()
    );
    for r in runs {
        for f in r["figures"].as_array().into_iter().flatten() {
            if f["recorded"] != f["measured"] {
                t.push_str(&format!(
                    "  {}: {} is {}, recorded {}\n",
                    r["id"].as_str().unwrap_or_default(),
                    f["name"].as_str().unwrap_or_default(),
                    f["measured"],
                    f["recorded"]
                ));
            }
        }
    }
    t.push('\n');
    t
}

/// Performs one job; `None` where only its script was wanted.
fn perform(
    a: &MeasureArgs,
    w: &Wanted,
    several: bool,
    out: &Output,
) -> Result<Option<Value>, Failed> {
    let fail =
        |code: &'static str, m: String, s: Status| Err((vec![Diagnostic::error(code, m)], s));
    let (id, config) = (&w.id, &w.config);
    let text = match script::script(id, config) {
        Ok(t) => t,
        Err(e) => {
            return fail(
                "unsupported",
                format!("a script for this job is not written: {e}"),
                Status::Unavailable,
            );
        }
    };
    let temp = tempfile::tempdir().map_err(|e| {
        let d = Diagnostic::error("unavailable", e.to_string());
        (vec![d], Status::Unavailable)
    })?;
    let path = match &a.keep {
        Some(k) => of_several(k, id, several),
        None => temp.path().join("job.py"),
    };
    if let Err(e) = std::fs::write(&path, &text) {
        return fail(
            "unreadable",
            format!("{}: {e}", path.display()),
            Status::BadInput,
        );
    }
    if a.no_run {
        return Ok(None);
    }
    let answer = temp.path().join("record.json");
    let command = vec![
        a.python.clone(),
        path.display().to_string(),
        answer.display().to_string(),
    ];
    let refused = |d: Diagnostic| (vec![d], Status::Unavailable);
    let code = if a.null {
        let gpu = config["gpu"].as_str().unwrap_or(DEFAULT_GPU).to_string();
        let device = dry_run::device(&gpu, &out.catalogs.gpus)
            .and_then(|d| run::platform().map(|()| d))
            .and_then(|d| run::check(&command, &d).map(|_| d))
            .map_err(refused)?;
        let plan = Plan {
            command: &command,
            device: &device,
            count: 1,
            lone: None,
            unlimited: true,
            quiet: true,
            aside: true,
            env: &[],
        };
        let done = run::run(&plan).map_err(refused)?;
        out.complain(&done.bad);
        for m in &done.report.messages {
            out.complain(&[Diagnostic::error("null-device", m.clone())]);
        }
        if let (Some(save), Some((_, t))) = (&a.save, done.traces.first()) {
            recording::save(t, &of_several(save, id, several))
                .map_err(|d| (vec![d], Status::BadInput))?;
        }
        done.code
    } else {
        if let Some(p) = python::of(&command).map_err(refused)? {
            python::torch(&p)
                .and_then(|t| python::check(&p, &t, None))
                .map_err(refused)?;
        }
        match Command::new(&command[0])
            .args(&command[1..])
            .stdout(std::io::stderr())
            .status()
        {
            Ok(s) => s.code().unwrap_or(1),
            Err(e) => {
                return fail(
                    "unavailable",
                    format!("{}: {e}", command[0]),
                    Status::Unavailable,
                );
            }
        }
    };
    let record: Option<Value> = std::fs::read_to_string(&answer)
        .ok()
        .and_then(|t| serde_json::from_str(&t).ok());
    let Some(record) = record else {
        return fail(
            "no-record",
            format!("{id}: the script ended with {code} and left no record"),
            Status::BadInput,
        );
    };
    let appended = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&a.out)
        .and_then(|mut f| writeln!(f, "{record}"));
    if let Err(e) = appended {
        return fail(
            "unreadable",
            format!("{}: {e}", a.out.display()),
            Status::BadInput,
        );
    }
    Ok(Some(record))
}
