//! A job as a job file, so that whatever flags say can be kept.

use super::settings::SETTINGS;
use super::{Job, Uncertain};
use crate::doc::Value;
use std::fmt::Write;

fn text(v: &Value) -> String {
    match v {
        Value::Text(t) => toml::Value::String(t.clone()).to_string(),
        Value::Float(f) => format!("{f:?}"),
        Value::List(l) => format!(
            "[{}]",
            l.iter()
                .map(|n| text(&n.value))
                .collect::<Vec<_>>()
                .join(", ")
        ),
        Value::Table(t) => {
            let entries = t.iter().filter(|(_, v)| v.value != Value::Null);
            format!(
                "{{ {} }}",
                entries
                    .map(|(k, v)| format!("{} = {}", key(&k.name), text(&v.value)))
                    .collect::<Vec<_>>()
                    .join(", ")
            )
        }
        v => v.shown(),
    }
}

fn key(name: &str) -> String {
    if !name.is_empty()
        && name
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || c == b'_' || c == b'-')
    {
        name.into()
    } else {
        toml::Value::String(name.into()).to_string()
    }
}

/// The job as TOML: what was given, not the defaults. Reading it back gives the same job.
pub fn to_toml(job: &Job) -> String {
    let mut out = String::new();
    let mut table = "";
    for s in SETTINGS
        .iter()
        .filter(|s| s.table().is_empty())
        .chain(SETTINGS.iter().filter(|s| !s.table().is_empty()))
    {
        let Some(g) = job.given(s.key) else { continue };
        if s.table() != table {
            table = s.table();
            let _ = write!(out, "\n[{table}]\n");
        }
        let _ = writeln!(out, "{} = {}", s.local(), text(&g.value));
    }
    if !job.uncertain.is_empty() {
        out.push_str("\n[uncertain]\n");
        for Uncertain {
            key: k,
            values,
            why,
        } in &job.uncertain
        {
            let values: Vec<_> = values.iter().map(text).collect();
            let _ = writeln!(
                out,
                "{} = {{ values = [{}], why = {} }}",
                key(k),
                values.join(", "),
                text(&Value::Text(why.clone()))
            );
        }
    }
    out.trim_start().to_string()
}
