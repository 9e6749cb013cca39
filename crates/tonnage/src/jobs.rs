//! Jobs from files and flags.

use crate::Status;
use crate::args::SettingFlags;
use std::io::Read;
use std::path::Path;
use tonnage_core::doc::{Doc, MAX_BYTES};
use tonnage_core::job::Origin;
use tonnage_core::{Diagnostic, Job, import};

/// Reads a text file of a sane size; `-` is standard input.
///
/// # Errors
/// What the system says, as a diagnostic.
pub fn read_text(path: &Path) -> Result<String, Vec<Diagnostic>> {
    let fail = |e: &dyn std::fmt::Display| {
        vec![Diagnostic::error(
            "unreadable",
            format!("{}: {e}", path.display()),
        )]
    };
    let mut bytes = Vec::new();
    let limit = MAX_BYTES as u64 + 1;
    let result = if path.as_os_str() == "-" {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|f| f.take(limit).read_to_end(&mut bytes))
    };
    result.map_err(|e| fail(&e))?;
    String::from_utf8(bytes).map_err(|_| fail(&"not UTF-8 text"))
}

/// A job from a file (or none) with flags on top.
///
/// # Errors
/// Everything that is wrong, and the exit status.
pub fn load(path: Option<&Path>, flags: &SettingFlags) -> Result<Job, (Vec<Diagnostic>, Status)> {
    let mut job = match path {
        Some(p) => {
            let text = read_text(p).map_err(|d| (d, Status::BadInput))?;
            import::read(&p.display().to_string(), &text).map_err(|d| (d, Status::BadInput))?
        }
        None => Job::new("command line", "flags"),
    };
    for (name, value) in &flags.given {
        job.set_text(name, value)
            .map_err(|e| (vec![Diagnostic::error("bad-flag", e)], Status::Usage))?;
    }
    resolve_model(&mut job, path).map_err(|d| (d, Status::BadInput))?;
    Ok(job)
}

/// Reads the file that `model.path` names (a config.json or its folder), beside the job file where that path is relative.
fn resolve_model(job: &mut Job, job_file: Option<&Path>) -> Result<(), Vec<Diagnostic>> {
    let Some(given) = job.given("model.path").cloned() else {
        return Ok(());
    };
    let word = job.word("model.path");
    let beside = matches!(given.origin, Origin::File(_))
        .then_some(job_file)
        .flatten()
        .and_then(Path::parent);
    let mut path = beside.map_or_else(|| word.clone().into(), |d| d.join(&word));
    if path.is_dir() {
        path = path.join("config.json");
    }
    let text = read_text(&path)?;
    let doc = Doc::parse(&path.display().to_string(), &text).map_err(|d| vec![d])?;
    let own = job.given("model.config").cloned();
    let place = doc.place(&(0..1));
    job.set("model.config", doc.root.value.clone(), Origin::File(place))
        .map_err(|e| vec![Diagnostic::error("bad-value", e)])?;
    if let Some(tonnage_core::job::Given {
        value: tonnage_core::doc::Value::Table(t),
        origin,
    }) = own
    {
        for (k, v) in t {
            let _ = job.set(&format!("model.config.{}", k.name), v.value, origin.clone());
        }
    }
    Ok(())
}

/// The exit status of complaints: not supported is not the user's mistake.
pub fn status_of(bad: &[Diagnostic]) -> Status {
    if !bad.is_empty() && bad.iter().all(|d| d.code == "unsupported") {
        Status::Unavailable
    } else {
        Status::BadInput
    }
}
