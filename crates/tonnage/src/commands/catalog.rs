//! `tonnage models`

use crate::Status;
use crate::args::{ListFormat, ModelsArgs};
use crate::output::Output;
use tonnage_catalog::models as all_models;
use tonnage_model::ModelError;
use tonnage_model::count::{Check, Known, check, count};
use tonnage_report::json;
use tonnage_units::Count;

/// Parameters counted from the configuration; the reason where they cannot be.
fn counted(m: &tonnage_catalog::Model) -> Result<u64, String> {
    let config: serde_json::Value = serde_json::from_str(m.config()).map_err(|e| e.to_string())?;
    count(&config).map(|c| c.total).map_err(|e| e.to_string())
}

pub fn models(a: &ModelsArgs, out: &Output) -> Status {
    if a.check {
        return check_all(a, out);
    }
    if let Some(name) = &a.name
        && (name.contains('/')
            || tonnage_catalog::model(name).is_ok()
            || tonnage_host::is_model_folder(std::path::Path::new(name)))
    {
        return super::model::one(name, a, out);
    }
    let part = a.name.clone().unwrap_or_default().to_lowercase();
    let list: Vec<_> = all_models()
        .iter()
        .filter(|m| m.id.to_lowercase().contains(&part))
        .collect();
    if list.is_empty() {
        out.complain(&[tonnage_core::Diagnostic::error(
            "unknown-model",
            format!("no model's id has \"{part}\" in it"),
        )]);
        return Status::BadInput;
    }
    if a.format == ListFormat::Json {
        let rows: Vec<_> = list
            .iter()
            .map(|m| {
                let c = counted(m);
                serde_json::json!({"id": m.id, "model_type": m.model_type, "dtype": m.torch_dtype, "parameters": c.as_ref().ok(), "not_counted": c.as_ref().err(), "source": m.source})
            })
            .collect();
        out.print(&json::pretty(
            &serde_json::json!({"schema": "tonnage.models/1", "models": rows}),
        ));
        return Status::Ok;
    }
    let width = list.iter().map(|m| m.id.len()).max().unwrap_or(0);
    let mut t = format!(
        "{:<width$}  {:<18}{:>18}  {}\n",
        "id", "model_type", "parameters", "dtype"
    );
    for m in list {
        let n = counted(m).map_or_else(|_| "not counted".into(), |n| Count(n).grouped());
        t.push_str(
            format!(
                "{:<width$}  {:<18}{n:>18}  {}",
                m.id,
                m.model_type,
                m.torch_dtype.unwrap_or("-")
            )
            .trim_end(),
        );
        t.push('\n');
    }
    out.print(&t);
    Status::Ok
}

/// Counts every configuration and compares with what is known independently of it.
fn check_all(a: &ModelsArgs, out: &Output) -> Status {
    let c: Check = check(all_models().iter().map(|m| {
        Known {
            id: m.id,
            config: m.config(),
            count: m
                .known_count()
                .map(|k| (k.count, m.params_basis.unwrap_or_default())),
        }
    }));
    let different: Vec<_> = c.known.iter().filter(|r| !r.equal).collect();
    let row = |r: &tonnage_model::count::CheckRow| {
        serde_json::json!({
            "id": r.id, "model_type": r.model_type, "counted": r.counted.as_ref().ok(),
            "error": r.counted.as_ref().err().map(ToString::to_string), "known": r.known, "equal": r.equal,
        })
    };
    if a.format == ListFormat::Json {
        out.print(&json::pretty(&serde_json::json!({
            "schema": "tonnage.models-check/1",
            "known": c.known.iter().map(row).collect::<Vec<_>>(),
            "no_independent_count": c.unknown.iter().map(row).collect::<Vec<_>>(),
        })));
    } else {
        let mut t = format!(
            "{} configurations: {} of {} equal to an independent count, {} without one.\n",
            c.known.len() + c.unknown.len(),
            c.known.len() - different.len(),
            c.known.len(),
            c.unknown.len()
        );
        let show = |n: &Result<u64, _>| {
            n.as_ref()
                .map_or_else(|e: &ModelError| e.to_string(), |n| Count(*n).grouped())
        };
        for r in &different {
            let known = r.known.map_or_else(|| "-".into(), |k| Count(k).grouped());
            t.push_str(&format!(
                "  different: {}: {} counted, {known} known\n",
                r.id,
                show(&r.counted)
            ));
        }
        for r in &c.unknown {
            t.push_str(&format!(
                "  no independent count: {}: {}\n",
                r.id,
                show(&r.counted)
            ));
        }
        out.print(&t);
    }
    if different.is_empty() {
        Status::Ok
    } else {
        Status::DoesNotFit
    }
}
