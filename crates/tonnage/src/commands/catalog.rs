//! `tonnage models` and `tonnage gpus`

use crate::Status;
use crate::args::{GpusArgs, ListFormat, ModelsArgs};
use crate::output::Output;
use tonnage_catalog::device::{Stack, device_overhead, usable};
use tonnage_catalog::{CountBasis, Gpus, models as all_models};
use tonnage_model::arch::{Head, build};
use tonnage_report::json;
use tonnage_units::{Bytes, Count};

/// Parameters counted from the configuration; the reason where they cannot be.
fn counted(m: &tonnage_catalog::Model) -> Result<u64, String> {
    let config: serde_json::Value = serde_json::from_str(m.config()).map_err(|e| e.to_string())?;
    build(
        m.model_type,
        &config,
        Head::Default,
        &tonnage_model::Stack::default(),
    )
    .map(|b| b.net.param_count())
    .map_err(|e| e.to_string())
}

pub fn models(a: &ModelsArgs, out: &Output) -> Status {
    if a.check {
        return check(a, out);
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
fn check(a: &ModelsArgs, out: &Output) -> Status {
    let (mut equal, mut differ, mut apart, mut not) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for m in all_models() {
        match (counted(m), m.known_count()) {
            (Err(e), _) => not.push((m.id, e)),
            (Ok(n), None) => apart.push((m.id, n)),
            (Ok(n), Some(k)) => {
                // the element total of a checkpoint may hold a named surplus
                let same = n == k.count
                    || (k.basis == CountBasis::CheckpointWithSurplus && m.params_exact == Some(n));
                if same {
                    equal.push((m.id, n))
                } else {
                    differ.push((m.id, n, k.count))
                }
            }
        }
    }
    if a.format == ListFormat::Json {
        let name = |l: &[(&str, u64)]| {
            l.iter()
                .map(|(i, n)| serde_json::json!({"id": i, "counted": n}))
                .collect::<Vec<_>>()
        };
        out.print(&json::pretty(&serde_json::json!({
            "schema": "tonnage.models-check/1",
            "equal": name(&equal),
            "different": differ.iter().map(|(i, n, k)| serde_json::json!({"id": i, "counted": n, "known": k})).collect::<Vec<_>>(),
            "no_independent_count": name(&apart),
            "not_counted": not.iter().map(|(i, e)| serde_json::json!({"id": i, "why": e})).collect::<Vec<_>>(),
        })));
    } else {
        let mut t = format!(
            "{} configurations: {} equal to an independent count, {} different, {} without one, {} not counted.\n",
            all_models().len(),
            equal.len(),
            differ.len(),
            apart.len(),
            not.len()
        );
        for (id, n, k) in &differ {
            t.push_str(&format!(
                "  different: {id}: {} counted, {} known\n",
                Count(*n).grouped(),
                Count(*k).grouped()
            ));
        }
        for (id, n) in &apart {
            t.push_str(&format!(
                "  no independent count: {id}: {} counted\n",
                Count(*n).grouped()
            ));
        }
        for (id, e) in &not {
            t.push_str(&format!("  not counted: {id}: {e}\n"));
        }
        out.print(&t);
    }
    if differ.is_empty() {
        Status::Ok
    } else {
        Status::DoesNotFit
    }
}

pub fn gpus(a: &GpusArgs, out: &Output) -> Status {
    let part = a.name.clone().unwrap_or_default().to_lowercase();
    let catalog = Gpus::builtin();
    let list: Vec<_> = catalog
        .iter()
        .filter(|g| g.id.contains(&part) || g.name.to_lowercase().contains(&part))
        .collect();
    if list.is_empty() {
        out.complain(&[tonnage_core::Diagnostic::error(
            "unknown-gpu",
            format!("no GPU's id or name has \"{part}\" in it"),
        )]);
        return Status::BadInput;
    }
    let stack = Stack::default();
    if a.format == ListFormat::Json {
        let rows: Vec<_> = list
            .iter()
            .map(|g| {
                let u = usable(g, &stack).ok();
                let o = device_overhead(g, &stack).ok();
                serde_json::json!({
                    "id": g.id, "name": g.name, "marketed_gb": g.memory_gb_marketed.get(),
                    "usable_bytes": u.as_ref().map(|u| u.expected), "usable_low_bytes": u.as_ref().map(|u| u.low), "usable_source": u.map(|u| u.source),
                    "context_bytes": o.map(|o| o.context.expected), "libraries_bytes": o.map(|o| o.libraries.expected),
                    "compute_capability": g.compute_capability.map(|c| format!("{}.{}", c.major, c.minor)),
                })
            })
            .collect();
        out.print(&json::pretty(
            &serde_json::json!({"schema": "tonnage.gpus/1", "gpus": rows}),
        ));
        return Status::Ok;
    }
    let width = list.iter().map(|g| g.id.len()).max().unwrap_or(0);
    let mut t = format!(
        "{:<width$}  {:>8}{:>13}{:>13}  {}\n",
        "id", "marketed", "usable", "context", "name"
    );
    let show = |n: Option<u64>| {
        n.map_or_else(
            || "-".into(),
            |n| Bytes(n).display(out.style.units).to_string(),
        )
    };
    for g in list {
        let u = usable(&g, &stack).ok().map(|u| u.expected);
        let c = device_overhead(&g, &stack)
            .ok()
            .map(|o| o.context.expected + o.libraries.expected);
        t.push_str(&format!(
            "{:<width$}  {:>5} GB{:>13}{:>13}  {}\n",
            g.id,
            g.memory_gb_marketed,
            show(u),
            show(c),
            g.name
        ));
    }
    t.push_str(
        "usable: what CUDA calls total, expected; context: with the libraries of a training step\n",
    );
    out.print(&t);
    Status::Ok
}
