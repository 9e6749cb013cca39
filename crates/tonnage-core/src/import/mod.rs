//! Files that people already have, as they are: the kind is recognised, every key is either understood, known to be irrelevant to
//! memory, or named as unknown.

mod agi2;
mod deepseek;
mod gpt;
mod hf_config;
mod spoter;
mod stateset;

use crate::doc::{Diagnostic, Doc, Key, Node, Value};
use crate::job::{Job, Origin, Uncertain, read_job};
use tonnage_units::nearest;

/// Reads a job of any known kind.
///
/// # Errors
/// Everything that is wrong with the file.
pub fn read(file: &str, text: &str) -> Result<Job, Vec<Diagnostic>> {
    read_doc(&Doc::parse(file, text).map_err(|d| vec![d])?)
}

/// As [`read`], of a file that is parsed.
///
/// # Errors
/// As [`read`].
pub fn read_doc(doc: &Doc) -> Result<Job, Vec<Diagnostic>> {
    let file = &doc.file;
    let has = |k: &str| doc.root.get(k).is_some();
    let is_table = |k: &str| doc.root.get(k).is_some_and(|n| n.table().is_some());
    if doc.root.table().is_none() {
        return Err(vec![
            Diagnostic::error("wrong-type", "a job is a table of keys").at(doc.place(&(0..1))),
        ]);
    }
    if [
        "model_embd",
        "model_layer",
        "model_head",
        "model_positions",
        "seq_len_start",
    ]
    .iter()
    .any(|k| has(k))
    {
        agi2::read(doc)
    } else if has("n_layer") && has("block_size") {
        gpt::read(doc)
    } else if has("family") && is_table("model") {
        match doc.root.get("family").and_then(Node::text) {
            Some("encoder-classifier") => spoter::read(doc),
            _ => deepseek::read(doc),
        }
    } else if has("method") && has("model") && !is_table("model") {
        stateset::read(doc)
    } else if has("model_type") || has("architectures") {
        hf_config::read(doc)
    } else if doc.file.to_ascii_lowercase().ends_with(".json")
        || doc.text.trim_start().starts_with('{')
    {
        let known = "a model's config.json (`model_type`), a GPT configuration (`n_layer`, `block_size`), SPOTER or DeepSeek settings \
                     (`family`, `model`), StateSet settings (`model`, `method`)";
        Err(vec![
            Diagnostic::error(
                "unknown-format",
                format!("{file}: no known kind of job file"),
            )
            .help(format!("known JSON files: {known}; or write a TOML job")),
        ])
    } else {
        read_job(doc)
    }
}

/// A reader in progress: what was looked at, what was set, what is wrong.
struct Import<'a> {
    doc: &'a Doc,
    job: Job,
    bad: Vec<Diagnostic>,
    /// Keys that were understood or are known not to matter, with their table's path.
    known: Vec<String>,
}

impl<'a> Import<'a> {
    fn new(doc: &'a Doc, format: &'static str) -> Import<'a> {
        Import {
            doc,
            job: Job::new(&doc.file, format),
            bad: Vec::new(),
            known: Vec::new(),
        }
    }

    fn origin(&self, n: &Node) -> Origin {
        Origin::File(self.doc.place(&n.span))
    }

    /// The node at `path` (`train.batch_size`), marked as known.
    fn node(&mut self, path: &str) -> Option<&'a Node> {
        self.known.push(path.into());
        path.split('.').try_fold(&self.doc.root, |n, k| n.get(k))
    }

    /// Something wrong with a value.
    fn wrong(&mut self, n: Option<&Node>, code: &'static str, message: String, help: &str) {
        let d = Diagnostic::error(code, message).help(help);
        self.bad.push(match n {
            Some(n) => d.at(self.doc.place(&n.span)),
            None => d,
        });
    }

    /// The whole number at `path`; a complaint where it is something else.
    fn count(&mut self, path: &str) -> Option<u64> {
        let n = self.node(path)?;
        match n.count() {
            Some(0) | None => {
                let shown = n.value.shown();
                self.wrong(
                    Some(n),
                    "bad-value",
                    format!("`{path}` is a whole number of at least 1, not {shown}"),
                    "write a number",
                );
                None
            }
            Some(c) if c > u64::from(u32::MAX) => {
                self.wrong(
                    Some(n),
                    "bad-value",
                    format!("`{path}` is {c}: no job is that large"),
                    "write a smaller number",
                );
                None
            }
            c => c,
        }
    }

    /// As [`Import::count`], and its absence is an error.
    fn need(&mut self, path: &str) -> u64 {
        let c = self.count(path);
        if c.is_none()
            && path
                .split('.')
                .try_fold(&self.doc.root, |n, k| n.get(k))
                .is_none()
        {
            let file = &self.doc.file;
            self.bad.push(
                Diagnostic::error("missing", format!("{file}: `{path}` is missing"))
                    .help("nothing is assumed in its place"),
            );
        }
        c.unwrap_or(1)
    }

    fn text(&mut self, path: &str) -> Option<&'a str> {
        self.node(path)?.text()
    }

    /// Puts the value at `path` into a setting, as it is.
    fn copy(&mut self, path: &str, key: &str) {
        if let Some(n) = self.node(path) {
            self.set(key, n.value.clone(), self.origin(n));
        }
    }

    fn set(&mut self, key: &str, value: Value, origin: Origin) {
        let place = match &origin {
            Origin::File(p) => Some(p.clone()),
            _ => None,
        };
        if let Err(e) = self.job.set(key, value, origin) {
            let d = Diagnostic::error("bad-value", e);
            self.bad.push(match place {
                Some(p) => d.at(p),
                None => d,
            });
        }
    }

    fn say(&mut self, key: &str, value: &str, why: &str) {
        self.set(key, Value::Text(value.into()), Origin::Inferred(why.into()));
    }

    fn say_count(&mut self, key: &str, value: u64, why: &str) {
        self.set(key, Value::Int(value.into()), Origin::Inferred(why.into()));
    }

    fn say_texts(&mut self, key: &str, list: &[&str], origin: Origin) {
        let list = list
            .iter()
            .map(|t| Node {
                span: 0..0,
                value: Value::Text((*t).into()),
            })
            .collect();
        self.set(key, Value::List(list), origin);
    }

    fn config(&mut self, field: &str, value: Value) {
        self.set(
            &format!("model.config.{field}"),
            value,
            Origin::Inferred("the file's model".into()),
        );
    }

    fn config_count(&mut self, field: &str, n: u64) {
        self.config(field, Value::Int(n.into()));
    }

    /// Copies the value at `path`, if there is one, into a configuration field.
    fn config_copy(&mut self, path: &str, field: &str) {
        if let Some(n) = self.node(path) {
            self.config(field, n.value.clone());
        }
    }

    fn uncertain(&mut self, key: &str, values: Vec<Value>, why: &str) {
        self.job.uncertain.push(Uncertain {
            key: key.into(),
            values,
            why: why.into(),
        });
    }

    fn note(&mut self, message: String, at: Option<&Node>) {
        let d = Diagnostic::note("understood", message);
        self.job.notes.push(match at {
            Some(n) => d.at(self.doc.place(&n.span)),
            None => d,
        });
    }

    /// Keys that do not change memory.
    fn ignore(&mut self, paths: &[&str]) {
        self.known.extend(paths.iter().map(|p| (*p).to_string()));
    }

    /// Width and heads must divide.
    fn check_heads(&mut self, width: u64, heads: u64, field: &str) {
        if !width.is_multiple_of(heads) {
            let divisors = (1..=64)
                .filter(|h| width.is_multiple_of(*h))
                .map(|h| h.to_string())
                .collect::<Vec<_>>()
                .join(", ");
            let at = self.doc.root.get(field);
            let help = format!("`{field}` must divide the width: {divisors}");
            self.wrong(
                at,
                "contradiction",
                format!("width {width} cannot be divided among {heads} heads"),
                &help,
            );
        }
    }

    /// The job, or everything that is wrong; a key that nobody looked at is wrong.
    fn finish(mut self) -> Result<Job, Vec<Diagnostic>> {
        self.unknown_in("", &self.doc.root);
        if self.bad.is_empty() {
            Ok(self.job)
        } else {
            Err(self.bad)
        }
    }

    fn unknown_in(&mut self, prefix: &str, table: &'a Node) {
        for (k, v) in table.table().unwrap_or_default() {
            let path = if prefix.is_empty() {
                k.name.clone()
            } else {
                format!("{prefix}.{}", k.name)
            };
            if self.known.contains(&path) {
                continue;
            }
            if v.table().is_some()
                && self
                    .known
                    .iter()
                    .any(|p| p.starts_with(&format!("{path}.")))
            {
                self.unknown_in(&path, v);
                continue;
            }
            self.unknown(&path, k, v);
        }
    }

    fn unknown(&mut self, path: &str, k: &Key, v: &Node) {
        let near = nearest(path, self.known.iter().map(String::as_str)).map(String::from);
        let d = Diagnostic::error(
            "unknown-key",
            format!("unknown key `{path}` in a {}", self.job.format),
        )
        .at(self.doc.place(&k.span))
        .effect(format!(
            "{} is not read, and nothing is assumed about it",
            v.value.shown()
        ));
        self.bad.push(match near {
            Some(n) => d.help(format!("did you mean `{n}`?")),
            None => d.help("leave it out if it does not matter to memory"),
        });
    }
}
