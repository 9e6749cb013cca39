//! `tonnage models ID`: everything about one model.

use crate::Status;
use crate::args::{ListFormat, ModelsArgs};
use crate::jobs::status_of;
use crate::models::{find, said};
use crate::output::Output;
use std::path::Path;
use tonnage_core::Diagnostic;
use tonnage_host::{Comparison, Env, ModelFiles, compare};
use tonnage_model::count::{Counted, count};
use tonnage_report::json;
use tonnage_units::Count;

/// A configuration, what was read beside it, and where from.
struct Found {
    config: serde_json::Value,
    files: Option<ModelFiles>,
    from: String,
    notes: Vec<String>,
}

pub fn one(name: &str, a: &ModelsArgs, out: &Output) -> Status {
    let found = match look(name, a) {
        Ok(f) => f,
        Err(d) => {
            let status = status_of(std::slice::from_ref(&d));
            out.complain(&[d]);
            return status;
        }
    };
    let counted = count(&found.config);
    let stored = found.files.as_ref().and_then(|f| f.tensors.as_ref());
    let check = match (&counted, stored) {
        (Ok(c), Some(s)) => Some(compare(c, s)),
        _ => None,
    };
    let text = match a.format {
        ListFormat::Json => {
            let c = counted.as_ref();
            let classes = |c: &Counted| {
                c.by_class
                    .iter()
                    .map(|(k, n)| (format!("{k:?}").to_lowercase(), (*n).into()))
                    .collect::<serde_json::Map<_, _>>()
            };
            json::pretty(&serde_json::json!({
                "schema": "tonnage.model/1", "id": name, "from": found.from,
                "commit": found.files.as_ref().and_then(|f| f.commit.as_ref()),
                "model_type": found.config.get("model_type"),
                "parameters": c.ok().map(|c| c.total), "active_parameters": c.ok().map(|c| c.active),
                "by_class": c.ok().map(classes), "not_counted": c.err().map(ToString::to_string),
                "dtype": c.ok().and_then(|c| c.dtype).map(|d| d.to_string()),
                "stored": check.as_ref().map(stored_json), "notes": found.notes,
            }))
        }
        ListFormat::Text => text(name, &found, &counted, check.as_ref()),
    };
    out.print(&text);
    match &counted {
        Ok(_) => Status::Ok,
        Err(_) => Status::Unavailable,
    }
}

fn look(name: &str, a: &ModelsArgs) -> Result<Found, Diagnostic> {
    let folder = Path::new(name);
    let files = if a.revision.is_none() && tonnage_host::is_model_folder(folder) {
        Some(tonnage_host::folder(folder).map_err(|e| said(&e))?)
    } else if a.headers {
        let id = tonnage_catalog::model(name).map_or(name, |m| m.id);
        Some(
            tonnage_host::find(&Env::of_process(), id, a.revision.as_deref())
                .map_err(|e| said(&e))?,
        )
    } else {
        find(name, a.revision.as_deref())?
    };
    let Some(mut files) = files else {
        let m = tonnage_catalog::model(name)
            .map_err(|e| Diagnostic::error("unknown-model", e.to_string()))?;
        let config = serde_json::from_str(m.config())
            .map_err(|e| Diagnostic::error("defect", e.to_string()))?;
        return Ok(Found {
            config,
            files: None,
            from: "built in".into(),
            notes: Vec::new(),
        });
    };
    let from = files.describe();
    let Some(config) = files.config.take() else {
        let base = files
            .adapter
            .as_ref()
            .and_then(|a| a["base_model_name_or_path"].as_str());
        let message = format!("{name} is an adapter, not a model ({from})");
        let d = Diagnostic::error("bad-model", message);
        return Err(match base {
            Some(b) => d.help(format!("its base model: tonnage models {b}")),
            None => d,
        });
    };
    Ok(Found {
        config,
        notes: std::mem::take(&mut files.notes),
        files: Some(files),
        from,
    })
}

fn stored_json(c: &Comparison) -> serde_json::Value {
    let list = |g: &[tonnage_host::Group]| {
        g.iter()
            .map(|g| serde_json::json!({"tensors": g.pattern, "count": g.tensors, "elements": g.elements}))
            .collect::<Vec<_>>()
    };
    serde_json::json!({
        "tensors": c.tensors, "elements": c.stored, "parameters": c.stored_parameters(), "equal": c.is_equal(),
        "buffers": list(&c.buffers), "tied": list(&c.tied), "only_stored": list(&c.extra), "not_stored": list(&c.missing),
    })
}

fn text(
    name: &str,
    found: &Found,
    counted: &Result<Counted, tonnage_model::ModelError>,
    check: Option<&Comparison>,
) -> String {
    let model_type = found
        .config
        .get("model_type")
        .and_then(|t| t.as_str())
        .unwrap_or("no model_type");
    let mut t = format!("{name}: {model_type}, ");
    let mut rows = String::new();
    match counted {
        Ok(c) => {
            t += &format!("{} parameters\n", Count(c.total).grouped());
            for (class, n) in &c.by_class {
                rows += &row(
                    &format!("  {}", format!("{class:?}").to_lowercase()),
                    format!("{:>18}", Count(*n).grouped()),
                );
            }
            if c.active != c.total {
                rows += &row(
                    "active for a token",
                    format!("{:>18}", Count(c.active).grouped()),
                );
            }
            rows += &row(
                "dtype",
                c.dtype.map_or_else(|| "not said".into(), |d| d.to_string()),
            );
        }
        Err(e) => t += &format!("not counted: {e}\n"),
    }
    rows += &row("configuration", &found.from);
    if let Some(c) = check {
        let tensors = format!("{} tensors in the safetensors headers", c.tensors);
        rows += &row(
            "stored",
            match c.difference() {
                None => format!("{tensors}, the same number of parameters"),
                Some(d) => format!("{tensors}; {d}"),
            },
        );
        if c.is_equal() && !c.is_identical() {
            rows += &row("", "some of them under other names");
        }
    }
    for n in &found.notes {
        rows += &row("note", n);
    }
    t + &rows
}

fn row(label: &str, value: impl std::fmt::Display) -> String {
    format!("{label:<20}{value}").trim_end().to_string() + "\n"
}
