//! Where a job's model is from: the built-in configurations, a file, a folder, the Hugging Face cache, a hub.

use crate::jobs::read_text;
use std::path::{Path, PathBuf};
use tonnage_catalog::LookupError;
use tonnage_core::doc::{Doc, Value};
use tonnage_core::job::{Given, Origin};
use tonnage_core::{Diagnostic, Job};
use tonnage_host::{Env, HostError, ModelFiles, compare};
use tonnage_model::count::count;
use tonnage_plan::cards::sizes;

/// Reads what the job's model needs; nothing where the configuration is built in.
///
/// # Errors
/// The file, folder or hub has no such model, or does not give it.
pub fn resolve(job: &mut Job, job_file: Option<&Path>) -> Result<(), Vec<Diagnostic>> {
    let id = job.word("model.id");
    if let Some(given) = job.given("model.id").cloned()
        && given.origin == Origin::Flag
        && tonnage_host::is_model_folder(Path::new(&id))
        && job.given("model.revision").is_none()
    {
        job.unset("model.id");
        job.set("model.path", given.value, given.origin)
            .map_err(|e| vec![Diagnostic::error("bad-value", e)])?;
    }
    if let Some(given) = job.given("model.path").cloned() {
        return from_path(job, &given, job_file);
    }
    if id.is_empty() || job.resolved.is_some() {
        return Ok(());
    }
    let origin = job.given("model.id").map(|g| g.origin.clone());
    let at = |d: Diagnostic| match &origin {
        Some(Origin::File(p)) => d.at(p.clone()),
        _ => d,
    };
    let id = match named(&id).map_err(|d| vec![at(d)])? {
        n if n == id => id,
        model => {
            let origin = origin.clone().unwrap_or(Origin::Flag);
            job.set("model.id", Value::Text(model.clone()), origin)
                .map_err(|e| vec![Diagnostic::error("bad-value", e)])?;
            let said = format!("{id} stands for {model}");
            job.notes.push(Diagnostic::note(sizes::STANDS_FOR, said));
            model
        }
    };
    let revision = job.word("model.revision");
    let revision = (!revision.is_empty()).then_some(revision);
    let found = find(&id, revision.as_deref()).map_err(|d| vec![at(d)])?;
    let Some(files) = found else { return Ok(()) };
    accept(job, files, true).map_err(|d| vec![at(d)])
}

/// The model that a name stands for: itself, or of a bare size (`1.3B`) the reference of that size.
///
/// # Errors
/// A size without a reference.
pub fn named(name: &str) -> Result<String, Diagnostic> {
    if tonnage_catalog::model(name).is_ok() {
        return Ok(name.into());
    }
    Ok(sizes::size(name)?.model)
}

/// The files of a model that is not built in, or not at this revision. None: the built-in configuration is to be used, or the name
/// cannot be a hub's (the catalog has the better complaint).
///
/// # Errors
/// Cache and hub do not have it.
pub fn find(id: &str, revision: Option<&str>) -> Result<Option<ModelFiles>, Diagnostic> {
    let known = tonnage_catalog::model(id);
    let main = revision.is_none_or(|r| r == "main");
    let full = match known {
        Ok(_) if main => return Ok(None),
        Ok(m) => m.id,
        Err(LookupError::Ambiguous { .. }) => return Ok(None),
        Err(LookupError::Unknown { .. }) => id,
    };
    let env = Env::of_process();
    if !full.contains('/') {
        // a name alone is more often a slip than one of the few old models: it is looked for, but not asked for
        let revision =
            tonnage_host::Revision::parse(revision.unwrap_or("main")).map_err(|e| said(&e))?;
        return match tonnage_host::check_id(full) {
            Ok(()) => tonnage_host::cached(&env, full, &revision).map_err(|e| said(&e)),
            Err(_) => Ok(None),
        };
    }
    tonnage_host::find(&env, full, revision)
        .map(Some)
        .map_err(|e| {
            let mut d = said(&e);
            if let Err(LookupError::Unknown { nearest, .. }) = tonnage_catalog::model(id)
                && !nearest.is_empty()
            {
                let near = format!("did you mean {}?", nearest.join(", "));
                d.help = Some(
                    d.help
                        .map_or_else(|| near.clone(), |h| format!("{h}; {near}")),
                );
            }
            d
        })
}

/// A host's error as a message.
pub fn said(e: &HostError) -> Diagnostic {
    let code = if e.is_unavailable() {
        "unavailable"
    } else {
        "bad-model"
    };
    let d = Diagnostic::error(code, e.to_string());
    match e.help() {
        Some(h) => d.help(h),
        None => d,
    }
}

/// Takes over what was read: configuration, adapter, and the check of the count as a note.
fn accept(job: &mut Job, files: ModelFiles, say: bool) -> Result<(), Diagnostic> {
    let from = files.describe();
    if let Some(adapter) = &files.adapter {
        let base = adapted(job, adapter, &from)?;
        let name = Path::new(&base);
        let files = if tonnage_host::is_model_folder(name) {
            tonnage_host::folder(name).map_err(|e| said(&e))?
        } else {
            match find(&base, None)? {
                Some(f) => f,
                None => {
                    let m = tonnage_catalog::model(&base)
                        .map_err(|e| Diagnostic::error("unknown-model", e.to_string()))?;
                    job.resolved = serde_json::from_str(m.config()).ok();
                    return Ok(());
                }
            }
        };
        if files.config.is_none() {
            let message = format!("{base}, the base of this adapter, is an adapter itself");
            return Err(Diagnostic::error("bad-model", message));
        }
        return accept(job, files, true);
    }
    let Some(config) = files.config else {
        return Ok(());
    };
    if say {
        job.notes.push(Diagnostic::note(
            "model",
            format!("the model's configuration is from: {from}"),
        ));
    }
    for n in files.notes {
        job.notes.push(Diagnostic::note("model", n));
    }
    if let (Some(stored), Ok(counted)) = (&files.tensors, count(&config))
        && let Some(difference) = compare(&counted, stored).difference()
    {
        job.notes.push(Diagnostic::note("count", difference));
    }
    job.resolved = Some(config);
    Ok(())
}

/// The settings of an `adapter_config.json`, where the job does not say them; its base model's name.
fn adapted(job: &mut Job, adapter: &serde_json::Value, from: &str) -> Result<String, Diagnostic> {
    let kind = adapter["peft_type"].as_str().unwrap_or("LORA");
    if kind != "LORA" {
        let message = format!("adapters of the kind {kind} are not supported yet");
        return Err(Diagnostic::error("unsupported", message));
    }
    let base = adapter["base_model_name_or_path"]
        .as_str()
        .filter(|b| !b.is_empty())
        .ok_or_else(|| {
            Diagnostic::error(
                "bad-model",
                format!("adapter_config.json of {from} does not name its base model"),
            )
            .help("give the base model instead, with --lora-r and --lora-targets")
        })?;
    for (field, key) in [
        ("r", "lora.r"),
        ("lora_alpha", "lora.alpha"),
        ("target_modules", "lora.targets"),
        ("lora_dropout", "lora.dropout"),
        ("use_dora", "lora.dora"),
    ] {
        let value = &adapter[field];
        if value.is_null() || job.given(key).is_some() {
            continue;
        }
        let why = format!("adapter_config.json ({from})");
        job.set(key, Value::from_json(value), Origin::Inferred(why))
            .map_err(|e| {
                Diagnostic::error("bad-value", format!("adapter_config.json, `{field}`: {e}"))
            })?;
    }
    job.notes.push(Diagnostic::note(
        "model",
        format!("an adapter ({from}) of {base}"),
    ));
    Ok(base.into())
}

/// The file that `model.path` names (a config.json or its folder), beside the job file where that path is relative.
fn from_path(job: &mut Job, given: &Given, job_file: Option<&Path>) -> Result<(), Vec<Diagnostic>> {
    let word = job.word("model.path");
    let beside = matches!(given.origin, Origin::File(_))
        .then_some(job_file)
        .flatten()
        .and_then(Path::parent);
    let path: PathBuf = beside.map_or_else(|| word.clone().into(), |d| d.join(&word));
    if !path.is_dir() {
        return from_file(job, &path);
    }
    let config = path.join("config.json");
    if config.is_file() {
        // first, because its complaints show the line
        from_file(job, &config)?;
    }
    let files = tonnage_host::folder(&path).map_err(|e| vec![said(&e)])?;
    let adapter = files.adapter.is_some();
    accept(job, files, false).map_err(|d| vec![d])?;
    if !adapter {
        // the fields are the job's own already
        job.resolved = None;
    }
    Ok(())
}

fn from_file(job: &mut Job, path: &Path) -> Result<(), Vec<Diagnostic>> {
    let text = read_text(path)?;
    let doc = Doc::parse(&path.display().to_string(), &text).map_err(|d| vec![d])?;
    let own = job.given("model.config").cloned();
    let place = doc.place(&(0..1));
    job.set("model.config", doc.root.value.clone(), Origin::File(place))
        .map_err(|e| vec![Diagnostic::error("bad-value", e)])?;
    if let Some(Given {
        value: Value::Table(t),
        origin,
    }) = own
    {
        for (k, v) in t {
            let _ = job.set(&format!("model.config.{}", k.name), v.value, origin.clone());
        }
    }
    Ok(())
}
