//! The tool's own job file: TOML, strict. Every complaint names line, value, effect and the nearest known key.

use super::settings::{SETTINGS, Setting};
use super::value;
use super::{Job, Origin, Uncertain};
use crate::doc::{Diagnostic, Doc, Key, Node, Value};
use tonnage_units::nearest;

/// Reads a job file.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read_job(doc: &Doc) -> Result<Job, Vec<Diagnostic>> {
    let mut r = Reader {
        doc,
        job: Job::new(&doc.file, "tonnage job"),
        bad: Vec::new(),
    };
    for (key, node) in doc.root.table().unwrap_or_default() {
        r.top(key, node);
    }
    if r.bad.is_empty() {
        Ok(r.job)
    } else {
        Err(r.bad)
    }
}

struct Reader<'a> {
    doc: &'a Doc,
    job: Job,
    bad: Vec<Diagnostic>,
}

impl Reader<'_> {
    fn top(&mut self, key: &Key, node: &Node) {
        if key.name == "uncertain" {
            return self.uncertain(key, node);
        }
        if let Some(s) = SETTINGS
            .iter()
            .find(|s| s.table().is_empty() && s.key == key.name)
        {
            return self.setting(s, key, node);
        }
        let in_table: Vec<&Setting> = SETTINGS
            .iter()
            .filter(|s| !s.table().is_empty() && s.table() == key.name)
            .collect();
        if in_table.is_empty() {
            let tables = SETTINGS
                .iter()
                .map(Setting::table)
                .filter(|t| !t.is_empty())
                .chain(["name", "gpu", "uncertain"]);
            let mut d = Diagnostic::error("unknown-key", format!("unknown key `{}`", key.name))
                .at(self.doc.place(&key.span));
            d = match SETTINGS.iter().find(|s| s.local() == key.name || s.also.contains(&key.name.as_str())) {
                Some(s) => d.help(format!("it belongs in the table [{}], as `{}`", s.table(), s.local())),
                None => match nearest(&key.name, tables) {
                    Some(n) => d.help(format!("did you mean `{n}`?")),
                    None => d.help("a job has: name, gpu, [model], [work], [train], [lora], [quant], [allocator], [verdict], [stack], [uncertain]"),
                },
            };
            self.bad
                .push(d.effect(format!("{} is not read", node.value.shown())));
            return;
        }
        let Some(entries) = node.table() else {
            let place = self.doc.place(&node.span);
            self.bad.push(
                Diagnostic::error(
                    "wrong-type",
                    format!("`{}` is a table, not {}", key.name, node.value.kind()),
                )
                .at(place),
            );
            return;
        };
        for (k, v) in entries {
            match in_table
                .iter()
                .find(|s| s.local() == k.name || s.also.contains(&k.name.as_str()))
            {
                Some(s) => self.setting(s, k, v),
                None => self.unknown(&in_table, key, k, v),
            }
        }
    }

    fn unknown(&mut self, known: &[&Setting], table: &Key, k: &Key, v: &Node) {
        let names = known
            .iter()
            .flat_map(|s| std::iter::once(s.local()).chain(s.also.iter().copied()));
        let d = Diagnostic::error(
            "unknown-key",
            format!("unknown key `{}` in [{}]", k.name, table.name),
        )
        .at(self.doc.place(&k.span));
        let near = nearest(&k.name, names).and_then(|n| {
            known
                .iter()
                .find(|s| s.local() == n || s.also.contains(&n))
                .map(|s| (n, *s))
        });
        self.bad.push(match near {
            Some((n, s)) => d
                .effect(format!(
                    "{} is not read; `{}` would be {}",
                    v.value.shown(),
                    s.local(),
                    s.default.unwrap_or("absent")
                ))
                .help(format!("did you mean `{n}`?")),
            None => match SETTINGS.iter().find(|s| s.local() == k.name) {
                Some(s) => d
                    .effect(format!("{} is not read", v.value.shown()))
                    .help(format!("`{}` belongs in [{}]", s.local(), s.table())),
                None => d
                    .effect(format!("{} is not read", v.value.shown()))
                    .help(format!(
                        "[{}] has: {}",
                        table.name,
                        known
                            .iter()
                            .map(|s| s.local())
                            .collect::<Vec<_>>()
                            .join(", ")
                    )),
            },
        });
    }

    fn setting(&mut self, s: &'static Setting, k: &Key, v: &Node) {
        let place = self.doc.place(&v.span);
        if let Some(before) = self.job.given(s.key) {
            let first = match &before.origin {
                Origin::File(p) => format!(" (line {} says {})", p.line, before.value.shown()),
                _ => String::new(),
            };
            self.bad.push(
                Diagnostic::error(
                    "contradiction",
                    format!("`{}` and another name of it are both given{first}", k.name),
                )
                .at(self.doc.place(&k.span))
                .help(format!("keep one; the name here is `{}`", s.local())),
            );
            return;
        }
        if let Err(e) = self
            .job
            .set(s.key, v.value.clone(), Origin::File(place.clone()))
        {
            let effect = format!(
                "without it, `{}` would be {}",
                s.local(),
                s.default.unwrap_or("absent")
            );
            self.bad.push(
                Diagnostic::error("bad-value", e)
                    .at(place)
                    .effect(effect)
                    .help(s.what),
            );
        }
    }

    /// `[uncertain]`: `loss = ["fused"]`, or `loss = { values = ["fused"], why = "..." }`.
    fn uncertain(&mut self, key: &Key, node: &Node) {
        let Some(entries) = node.table() else {
            let place = self.doc.place(&node.span);
            self.bad.push(
                Diagnostic::error("wrong-type", format!("`{}` is a table", key.name)).at(place),
            );
            return;
        };
        for (k, v) in entries {
            let place = self.doc.place(&k.span);
            // a field of the model's configuration takes any value, a setting its own
            let known = match k.name.starts_with("model.config.") {
                true => None,
                false => match value::find(&k.name) {
                    Ok(s) => Some(s),
                    Err(e) => {
                        self.bad.push(Diagnostic::error("unknown-key", e).at(place));
                        continue;
                    }
                },
            };
            let full = known.map_or_else(|| k.name.clone(), |s| s.key.to_string());
            let accept = |v: &Value| known.map_or_else(|| Ok(v.clone()), |s| s.accept(v));
            let list = v.get("values").unwrap_or(v);
            let Value::List(items) = &list.value else {
                self.bad.push(
                    Diagnostic::error(
                        "wrong-type",
                        format!("`{}` is a list of values to consider", k.name),
                    )
                    .at(place),
                );
                continue;
            };
            let why = v
                .get("why")
                .and_then(Node::text)
                .unwrap_or("the job file names the alternatives")
                .to_string();
            match items
                .iter()
                .map(|n| accept(&n.value))
                .collect::<Result<Vec<_>, _>>()
            {
                Ok(values) => self.job.uncertain.push(Uncertain {
                    key: full,
                    values,
                    why,
                }),
                Err(e) => self
                    .bad
                    .push(Diagnostic::error("bad-value", e).at(self.doc.place(&list.span))),
            }
        }
    }
}
