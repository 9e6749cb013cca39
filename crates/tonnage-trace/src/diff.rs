//! Where a prediction and a recording part: levels, components, modules.

use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use tonnage_core::footprint::{Component, Footprint};

/// The version of the JSON form.
pub const SCHEMA: &str = "tonnage.diff/1";

/// One side of a comparison.
#[derive(Clone, Debug, Default)]
pub struct Side {
    pub name: String,
    pub levels: BTreeMap<String, u64>,
    pub components: BTreeMap<String, u64>,
    /// (module, component) -> bytes.
    pub modules: BTreeMap<(String, String), u64>,
    pub phase: String,
}

/// A line of the comparison; bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    pub what: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub component: String,
    pub predicted: u64,
    pub recorded: u64,
    /// Predicted less recorded.
    pub difference: i64,
}

/// The comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Diff {
    pub schema: &'static str,
    pub predicted: String,
    pub recorded: String,
    pub predicted_peak_phase: String,
    pub recorded_peak_phase: String,
    /// `allocated`, `reserved`, at their peaks.
    pub levels: Vec<Row>,
    /// The largest difference first; equal ones left out.
    pub components: Vec<Row>,
    pub modules: Vec<Row>,
}

impl Side {
    /// Of a footprint.
    pub fn of(f: &Footprint) -> Side {
        let mut s = Side {
            name: f.job.clone(),
            phase: f.instant.phase.clone(),
            ..Side::default()
        };
        s.levels
            .insert("allocated".into(), f.peak.allocated.expected);
        s.levels.insert("reserved".into(), f.peak.reserved.expected);
        for l in f.components.iter().filter(|l| l.level == "allocated") {
            *s.components.entry(l.component.name().into()).or_default() += l.bytes;
        }
        for m in &f.modules {
            for (c, bytes) in &m.components {
                *s.modules
                    .entry((m.module.clone(), c.name().into()))
                    .or_default() += bytes;
            }
        }
        s
    }

    /// Of a footprint's JSON (`tonnage estimate --format json`).
    ///
    /// # Errors
    /// What is missing.
    pub fn read(text: &str) -> Result<Side, String> {
        let v: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let schema = v.get("schema").and_then(Value::as_str).unwrap_or("none");
        if schema != tonnage_core::footprint::SCHEMA {
            return Err(format!(
                "schema {schema}; a footprint has {}",
                tonnage_core::footprint::SCHEMA
            ));
        }
        let text = |x: &Value, k: &str| {
            x.get(k)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_string()
        };
        let list = |x: &Value, k: &str| {
            x.get(k)
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default()
        };
        let mut s = Side {
            name: text(&v, "job"),
            phase: text(&v["instant"], "phase"),
            ..Side::default()
        };
        for level in ["allocated", "reserved"] {
            let n = v["peak"][level]["expected"]
                .as_u64()
                .ok_or_else(|| format!("peak.{level}.expected is missing"))?;
            s.levels.insert(level.into(), n);
        }
        for l in list(&v, "components") {
            if text(&l, "level") == "allocated" {
                *s.components.entry(text(&l, "component")).or_default() +=
                    l["bytes"].as_u64().unwrap_or(0);
            }
        }
        for m in list(&v, "modules") {
            for c in list(&m, "components") {
                if let (Some(name), Some(n)) = (c[0].as_str(), c[1].as_u64()) {
                    *s.modules
                        .entry((text(&m, "module"), name.into()))
                        .or_default() += n;
                }
            }
        }
        Ok(s)
    }
}

fn row(what: &str, component: &str, predicted: u64, recorded: u64) -> Row {
    Row {
        what: what.into(),
        component: component.into(),
        predicted,
        recorded,
        difference: i64::try_from(i128::from(predicted) - i128::from(recorded)).unwrap_or(0),
    }
}

/// Compares.
pub fn diff(predicted: &Side, recorded: &Side) -> Diff {
    let get = |m: &BTreeMap<String, u64>, k: &str| m.get(k).copied().unwrap_or(0);
    let levels = ["allocated", "reserved"]
        .iter()
        .map(|l| row(l, "", get(&predicted.levels, l), get(&recorded.levels, l)))
        .collect();
    let names: BTreeSet<&String> = predicted
        .components
        .keys()
        .chain(recorded.components.keys())
        .collect();
    let mut components: Vec<Row> = names
        .into_iter()
        .map(|n| {
            row(
                n,
                "",
                get(&predicted.components, n),
                get(&recorded.components, n),
            )
        })
        .filter(|r| r.difference != 0)
        .collect();
    let keys: BTreeSet<&(String, String)> = predicted
        .modules
        .keys()
        .chain(recorded.modules.keys())
        .collect();
    let mut modules: Vec<Row> = keys
        .into_iter()
        .map(|k| {
            let get = |m: &BTreeMap<(String, String), u64>| m.get(k).copied().unwrap_or(0);
            row(&k.0, &k.1, get(&predicted.modules), get(&recorded.modules))
        })
        .filter(|r| r.difference != 0)
        .collect();
    for rows in [&mut components, &mut modules] {
        rows.sort_by_key(|r| std::cmp::Reverse(r.difference.unsigned_abs()));
    }
    Diff {
        schema: SCHEMA,
        predicted: predicted.name.clone(),
        recorded: recorded.name.clone(),
        predicted_peak_phase: predicted.phase.clone(),
        recorded_peak_phase: recorded.phase.clone(),
        levels,
        components,
        modules,
    }
}

/// A component's title by its name, for text.
pub fn title(name: &str) -> &str {
    Component::ALL
        .iter()
        .find(|c| c.name() == name)
        .map_or(name, |c| c.title())
}
