//! A tool's file being read: keys by path, each either taken, refused because memory depends on it, or counted as of no concern.

use super::block;
use std::collections::BTreeSet;
use tonnage_core::Job;
use tonnage_core::doc::{Diagnostic, Doc, Node, Value};
use tonnage_core::job::Origin;
use tonnage_units::nearest;

pub(super) struct Source<'a> {
    doc: &'a Doc,
    tool: &'static str,
    pub job: Job,
    bad: Vec<Diagnostic>,
    looked: BTreeSet<&'static str>,
}

pub(super) fn text(t: impl Into<String>) -> Value {
    Value::Text(t.into())
}

pub(super) fn texts<'t>(list: impl IntoIterator<Item = &'t str>) -> Value {
    Value::List(
        list.into_iter()
            .map(|t| Node {
                span: 0..0,
                value: text(t),
            })
            .collect(),
    )
}

impl<'a> Source<'a> {
    /// `format` is what reports call the file, e.g. "axolotl configuration".
    pub fn new(doc: &'a Doc, tool: &'static str, format: &'static str) -> Source<'a> {
        Source {
            doc,
            tool,
            job: Job::new(&doc.file, format),
            bad: Vec::new(),
            looked: BTreeSet::new(),
        }
    }

    /// The node at `a.b.c`; a null is as if the key were not there.
    pub fn node(&mut self, path: &'static str) -> Option<&'a Node> {
        self.looked.insert(path);
        path.split('.')
            .try_fold(&self.doc.root, |n, k| n.get(k))
            .filter(|n| n.value != Value::Null)
    }

    pub fn fail(&mut self, n: Option<&Node>, code: &'static str, message: String, help: &str) {
        let d = Diagnostic::error(code, message).help(help);
        self.bad.push(match n {
            Some(n) => d.at(self.doc.place(&n.span)),
            None => d,
        });
    }

    fn wrong(&mut self, path: &str, n: &'a Node, wanted: &str) {
        let message = format!("`{path}` is {wanted}, not {}", n.value.shown());
        self.fail(
            Some(n),
            "bad-value",
            message,
            "see the tool's documentation",
        );
    }

    /// A switch; `True` in quotes is one too.
    pub fn switch(&mut self, path: &'static str) -> Option<bool> {
        let n = self.node(path)?;
        match &n.value {
            Value::Bool(b) => Some(*b),
            Value::Text(t) if t.eq_ignore_ascii_case("true") => Some(true),
            Value::Text(t) if t.eq_ignore_ascii_case("false") => Some(false),
            _ => {
                self.wrong(path, n, "true or false");
                None
            }
        }
    }

    /// Is the switch on?
    pub fn on(&mut self, path: &'static str) -> bool {
        self.switch(path) == Some(true)
    }

    pub fn word(&mut self, path: &'static str) -> Option<&'a str> {
        let n = self.node(path)?;
        if n.text().is_none() {
            self.wrong(path, n, "text");
        }
        n.text().filter(|t| !t.is_empty())
    }

    /// A whole number, also one in quotes (DeepSpeed's `"auto"` is absent).
    pub fn count(&mut self, path: &'static str) -> Option<u64> {
        let n = self.node(path)?;
        let count = match &n.value {
            Value::Text(t) if t == "auto" => return None,
            Value::Text(t) => t.parse().ok(),
            Value::Float(f) if f.fract() == 0.0 && *f >= 0.0 && *f < 1e15 => Some(*f as u64),
            _ => n.count(),
        };
        if count.is_none() {
            self.wrong(path, n, "a whole number");
        }
        count
    }

    pub fn number(&mut self, path: &'static str) -> Option<f64> {
        let n = self.node(path)?;
        let number = match &n.value {
            Value::Text(t) if t == "auto" => return None,
            Value::Text(t) => t.parse().ok().filter(|f: &f64| f.is_finite()),
            Value::Float(f) => Some(*f),
            Value::Int(i) => Some(*i as f64),
            _ => None,
        };
        if number.is_none() {
            self.wrong(path, n, "a number");
        }
        number
    }

    /// Sets a setting as the file has it at `path`.
    pub fn set(&mut self, key: &str, value: Value, path: &'static str) {
        let n = self.node(path);
        let origin = match n {
            Some(n) => Origin::File(self.doc.place(&n.span)),
            None => Origin::Inferred(format!("{} has it so", self.tool)),
        };
        if let Err(e) = self.job.set(key, value, origin) {
            self.fail(n, "bad-value", e, "see `tonnage estimate --help`");
        }
    }

    /// Sets a setting that follows from what the tool does.
    pub fn infer(&mut self, key: &str, value: Value, why: &str) {
        if let Err(e) = self.job.set(key, value, Origin::Inferred(why.into())) {
            self.fail(None, "defect", e, "please report it");
        }
    }

    /// A count from the file, else the tool's default.
    pub fn count_or(&mut self, path: &'static str, key: &str, default: u64) {
        let n = self.count(path);
        let v = Value::Int(i128::from(n.unwrap_or(default)));
        match n {
            Some(_) => self.set(key, v, path),
            None => self.infer(key, v, &format!("{}'s default of `{path}`", self.tool)),
        }
    }

    /// A key on which memory depends and that is not simulated: an error where it is on.
    pub fn refuse(&mut self, path: &'static str, what: &str) {
        let Some(n) = self.node(path) else { return };
        let off = match &n.value {
            Value::Bool(b) => !b,
            Value::Int(i) => *i == 0,
            Value::Float(f) => *f == 0.0,
            Value::Text(t) => ["", "no", "none", "false", "disabled", "NO"].contains(&t.as_str()),
            Value::List(l) => l.is_empty(),
            Value::Table(t) => t.is_empty(),
            Value::Null => true,
        };
        if !off {
            let message = format!("`{path}` = {}: {what} is not simulated", n.value.shown());
            self.fail(
                Some(n),
                "unsupported",
                message,
                "take it out of the file to see the job without it",
            );
        }
    }

    /// Something the tool does that the figures leave out; every output says it.
    pub fn leaves_out(&mut self, what: impl Into<String>) {
        self.job.unsupported.push(what.into());
    }

    /// The model: a hub's id, or a folder.
    pub fn model(&mut self, path: &'static str, revision: &'static str) {
        let Some(m) = self.word(path) else {
            return;
        };
        let folder =
            m.starts_with(['.', '/', '~']) || m.ends_with(".json") || m.matches('/').count() > 1;
        self.set(
            if folder { "model.path" } else { "model.id" },
            text(m),
            path,
        );
        if let Some(r) = self.word(revision)
            && !folder
            && r != "main"
        {
            self.set("model.revision", text(r), revision);
        }
    }

    /// The job, or everything that is wrong. Keys that nobody looked at are counted; one that is spelled nearly as one that matters is
    /// named.
    pub fn finish(mut self) -> Result<Job, Vec<Diagnostic>> {
        if let Err(bad) = block::read(self.doc, &mut self.job) {
            self.bad.extend(bad);
        }
        let mut unread = Vec::new();
        let plain = |t: &str| t.to_ascii_lowercase().replace(['_', '-'], "");
        for (k, v) in self.doc.root.table().unwrap_or_default() {
            let dotted = format!("{}.", k.name);
            if self
                .looked
                .iter()
                .any(|p| *p == k.name || p.starts_with(&dotted))
            {
                continue;
            }
            if let Some(near) = self.looked.iter().find(|p| plain(p) == plain(&k.name)) {
                self.bad.push(
                    Diagnostic::error(
                        "unknown-key",
                        format!("unknown key `{}` in a file for {}", k.name, self.tool),
                    )
                    .at(self.doc.place(&k.span))
                    .effect(format!("{} is not read", v.value.shown()))
                    .help(format!("did you mean `{near}`?")),
                );
                continue;
            }
            unread.push(k);
        }
        let close: Vec<_> = unread
            .iter()
            .filter(|k| k.name.len() > 4)
            .filter_map(|k| {
                let near = nearest(&k.name, self.looked.iter().copied())?;
                let edits = k.name.len().abs_diff(near.len()) <= 2;
                let first = k.name.get(..3) == near.get(..3);
                (edits && first).then_some((*k, near))
            })
            .collect();
        for (k, near) in close {
            self.job.notes.push(
                Diagnostic::warning("unknown-key", format!("`{}` is not read", k.name))
                    .at(self.doc.place(&k.span))
                    .help(format!("if `{near}` is meant, say so")),
            );
        }
        if !unread.is_empty() {
            let names: Vec<_> = unread.iter().take(6).map(|k| k.name.as_str()).collect();
            let more = if unread.len() > names.len() {
                ", ..."
            } else {
                ""
            };
            self.job.notes.push(Diagnostic::note(
                "not-read",
                format!(
                    "{} keys of the file do not concern memory and were not read: {}{more}",
                    unread.len(),
                    names.join(", ")
                ),
            ));
        }
        if self.bad.is_empty() {
            Ok(self.job)
        } else {
            Err(self.bad)
        }
    }
}
