//! Jobs from files and flags.

use crate::Status;
use crate::args::SettingFlags;
use crate::models;
use std::io::Read;
use std::path::{Path, PathBuf};
use tonnage_core::doc::MAX_BYTES;
use tonnage_core::job::{DescriptionFile, Origin};
use tonnage_core::{Diagnostic, Job};

/// Reads a text file of a sane size; `-` is standard input.
///
/// # Errors
/// What the system says, as a diagnostic.
pub fn read_text(path: &Path) -> Result<String, Vec<Diagnostic>> {
    let fail = |e: &dyn std::fmt::Display| {
        let d = Diagnostic::error("unreadable", format!("{}: {e}", path.display()));
        let name = path.to_string_lossy();
        let known = |n: &str| tonnage_catalog::model(n).is_ok();
        vec![if known(&name) {
            d.help(format!("to name a model: --model {name}"))
        } else if path.is_dir() {
            d.help("a job is a file; a model's folder is named by --model")
        } else {
            d
        }]
    };
    let mut bytes = Vec::new();
    let limit = MAX_BYTES as u64 + 1;
    let result = if path.as_os_str() == "-" {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|f| f.take(limit).read_to_end(&mut bytes))
    };
    result.map_err(|e| fail(&e))?;
    String::from_utf8(bytes).map_err(|_| fail(&"not UTF-8 text; a job is a TOML or JSON file"))
}

/// A job from a file (or none) with flags on top.
///
/// # Errors
/// Everything that is wrong, and the exit status.
pub fn load(path: Option<&Path>, flags: &SettingFlags) -> Result<Job, (Vec<Diagnostic>, Status)> {
    let mut job = match path {
        Some(p) => {
            let text = read_text(p).map_err(|d| (d, Status::BadInput))?;
            tonnage_plan::export::read(&p.display().to_string(), &text)
                .map_err(|d| (d, Status::BadInput))?
        }
        None => Job::new("command line", "flags"),
    };
    for (name, value) in &flags.given {
        job.set_text(name, value)
            .map_err(|e| (vec![Diagnostic::error("bad-flag", e)], Status::Usage))?;
    }
    models::resolve(&mut job, path).map_err(|d| {
        let status = status_of(&d);
        (d, status)
    })?;
    resolve_description(&mut job, path).map_err(|d| (d, Status::BadInput))?;
    Ok(job)
}

/// Reads the file that `model.description` names, beside the job file where that path is relative.
fn resolve_description(job: &mut Job, job_file: Option<&Path>) -> Result<(), Vec<Diagnostic>> {
    let Some(given) = job.given("model.description") else {
        return Ok(());
    };
    let path = beside(&job.word("model.description"), &given.origin, job_file);
    let text = read_text(&path).map_err(|bad| match &given.origin {
        Origin::File(p) => bad.into_iter().map(|d| d.at(p.clone())).collect(),
        _ => bad,
    })?;
    let file = DescriptionFile::parse(&path.display().to_string(), &text).map_err(|d| vec![d])?;
    job.describe(file);
    Ok(())
}

/// A path as the user means it: relative to the job file that names it, or to the working directory where a flag does.
fn beside(word: &str, origin: &Origin, job_file: Option<&Path>) -> PathBuf {
    let folder = matches!(origin, Origin::File(_))
        .then_some(job_file)
        .flatten()
        .and_then(Path::parent);
    folder.map_or_else(|| word.into(), |d| d.join(word))
}

/// The exit status of complaints: not supported is not the user's mistake.
pub fn status_of(bad: &[Diagnostic]) -> Status {
    if !bad.is_empty()
        && bad
            .iter()
            .all(|d| matches!(d.code, "unsupported" | "unavailable"))
    {
        Status::Unavailable
    } else {
        Status::BadInput
    }
}
