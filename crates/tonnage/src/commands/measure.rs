//! `tonnage measure`: a job of ours performed for real, and its record.

use crate::Status;
use crate::args::SettingFlags;
use crate::commands::dry_run;
use crate::dry::run::{self, Plan};
use crate::dry::{python, recording, script};
use crate::jobs;
use crate::output::Output;
use clap::Args;
use serde_json::Value;
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
    /// The record whose job is performed again
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,
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
}

/// The id and configuration to perform.
fn wanted(a: &MeasureArgs, out: &Output) -> Result<(String, Value), (Vec<Diagnostic>, Status)> {
    let bad = |code, m: String, s| Err((vec![Diagnostic::error(code, m)], s));
    if let Some(id) = &a.id {
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
        let found = text
            .lines()
            .filter_map(|l| serde_json::from_str::<Value>(l).ok())
            .find(|r| r["id"].as_str() == Some(id));
        return match found {
            Some(r) => {
                let mut c = r["config"].clone();
                if let Some(g) = &a.gpu {
                    c["gpu"] = Value::from(g.as_str());
                }
                Ok((id.clone(), c))
            }
            None => bad(
                "unknown-id",
                format!("{}: no record {id}", path.display()),
                Status::BadInput,
            ),
        };
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
    Ok((title.trim_matches('-').to_lowercase(), config))
}

/// Runs it.
pub fn run(a: &MeasureArgs, out: &Output) -> Status {
    let fail = |code: &'static str, m: String, s: Status| {
        out.complain(&[Diagnostic::error(code, m)]);
        s
    };
    let (id, config) = match wanted(a, out) {
        Ok(x) => x,
        Err((bad, s)) => {
            out.complain(&bad);
            return s;
        }
    };
    let text = match script::script(&id, &config) {
        Ok(t) => t,
        Err(e) => {
            return fail(
                "unsupported",
                format!("a script for this job is not written: {e}"),
                Status::Unavailable,
            );
        }
    };
    let temp = match tempfile::tempdir() {
        Ok(t) => t,
        Err(e) => return fail("unavailable", e.to_string(), Status::Unavailable),
    };
    let path = a.keep.clone().unwrap_or_else(|| temp.path().join("job.py"));
    if let Err(e) = std::fs::write(&path, &text) {
        return fail(
            "unreadable",
            format!("{}: {e}", path.display()),
            Status::BadInput,
        );
    }
    if a.no_run {
        return Status::Ok;
    }
    let answer = temp.path().join("record.json");
    let command = vec![
        a.python.clone(),
        path.display().to_string(),
        answer.display().to_string(),
    ];
    let code = if a.null {
        let gpu = config["gpu"].as_str().unwrap_or(DEFAULT_GPU).to_string();
        let ready = dry_run::device(&gpu, &out.catalogs.gpus)
            .and_then(|d| run::platform().map(|()| d))
            .and_then(|d| run::check(&command).map(|_| d));
        let device = match ready {
            Ok(d) => d,
            Err(d) => {
                out.complain(&[d]);
                return Status::Unavailable;
            }
        };
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
        match run::run(&plan) {
            Ok(done) => {
                out.complain(&done.bad);
                for m in &done.report.messages {
                    out.complain(&[Diagnostic::error("null-device", m.clone())]);
                }
                if let (Some(save), Some((_, t))) = (&a.save, done.traces.first())
                    && let Err(d) = recording::save(t, save)
                {
                    out.complain(&[d]);
                    return Status::BadInput;
                }
                done.code
            }
            Err(d) => {
                out.complain(&[d]);
                return Status::Unavailable;
            }
        }
    } else {
        let known = python::of(&command).and_then(|p| {
            p.map_or(Ok(()), |p| {
                python::torch(&p).and_then(|t| python::check(&p, &t))
            })
        });
        if let Err(d) = known {
            out.complain(&[d]);
            return Status::Unavailable;
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
            format!("the script ended with {code} and left no record"),
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
    match record_rows_with(&record, &mut |_| None) {
        Ok(rows) => out.print(&tonnage_report::validate::report(
            &Report::of(rows),
            10,
            &out.style,
        )),
        Err(e) => out.complain(&[Diagnostic::error("bad-record", e.to_string())]),
    }
    Status::Ok
}
