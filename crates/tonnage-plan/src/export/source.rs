//! A tool's file being read: keys by path, each either taken, refused because memory depends on it, or counted as of no concern.

use super::{block, fields};
use std::collections::BTreeSet;
use tonnage_core::Job;
use tonnage_core::doc::{Diagnostic, Doc, Key, Node, Value};
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

/// Does a switch of any kind say no?
fn is_off(v: &Value) -> bool {
    match v {
        Value::Bool(b) => !b,
        Value::Int(i) => *i == 0,
        Value::Float(f) => *f == 0.0,
        Value::Text(t) => ["", "no", "none", "false", "disabled", "off"]
            .contains(&t.to_ascii_lowercase().as_str()),
        Value::List(l) => l.is_empty(),
        Value::Table(t) => t.is_empty(),
        Value::Null => true,
    }
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
        let leaf = path.rsplit('.').next().unwrap_or(path);
        let is = if self.tool == "torchtitan" { " =" } else { ":" };
        let help = match wanted {
            "true or false" => format!("`{leaf}{is} true` or `{leaf}{is} false`"),
            "a whole number" => format!("for instance `{leaf}{is} 4`"),
            "a number" => format!("for instance `{leaf}{is} 0.5`"),
            _ => format!("for instance `{leaf}{is} \"word\"`"),
        };
        self.fail(Some(n), "bad-value", message, &help);
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
        if !is_off(&n.value) {
            let message = format!("`{path}` = {}: {what} is not simulated", n.value.shown());
            self.fail(
                Some(n),
                "unsupported",
                message,
                "take it out of the file to see the job without it",
            );
        }
    }

    /// A number of devices: an error above one.
    pub fn one_device(&mut self, path: &'static str) {
        let n = self.node(path);
        if self.count(path).is_some_and(|c| c > 1) {
            let message = format!("`{path}`: several devices are not simulated");
            self.fail(n, "unsupported", message, "1, to see one device");
        }
    }

    /// Something that is on and that the figures leave out: said in every output.
    pub fn warn(&mut self, path: &'static str, what: &str) {
        if let Some(n) = self.node(path)
            && !is_off(&n.value)
        {
            self.leaves_out(format!("{what} (`{path}`)"));
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

    /// The job, or everything that is wrong. A key that nobody looked at is an error where it is spelled nearly as one that matters, a
    /// warning where the tool has no such key, and else named as read past.
    pub fn finish(mut self) -> Result<Job, Vec<Diagnostic>> {
        if let Err(bad) = block::read(self.doc, &mut self.job) {
            self.bad.extend(bad);
        }
        let mut unread = Vec::new();
        rest(&self.doc.root, "", &self.looked, &mut unread);
        let known = fields::whole(self.tool);
        let mut past = Vec::new();
        for (name, key, value) in unread {
            let has = known.is_some_and(|t| t.fields.contains_key(&name));
            // a table's own keys are recorded only where the tool's tables are fixed
            let judged = known.filter(|t| {
                name.split_once('.').is_none_or(|(table, _)| {
                    t.fields.keys().any(|f| f.starts_with(&format!("{table}.")))
                })
            });
            let near = self.near(&name);
            let at = self.doc.place(&key.span);
            match (judged, near) {
                _ if has => past.push(name),
                (Some(t), None) => {
                    let d = Diagnostic::warning(
                        "unknown-key",
                        format!("{} has no key `{name}`: it is not read", t.tool),
                    )
                    .at(at);
                    let like = nearest(&name, t.fields.keys().map(String::as_str));
                    self.job.notes.push(match like {
                        Some(n) => d.help(format!("did you mean `{n}`?")),
                        None => d.help("if memory depends on it, the figures are not yours"),
                    });
                }
                (t, Some((near, exact))) if t.is_some() || exact => self.bad.push(
                    Diagnostic::error(
                        "unknown-key",
                        format!("unknown key `{name}` in a file for {}", self.tool),
                    )
                    .at(at)
                    .effect(format!("{} is not read", value.shown()))
                    .help(format!("did you mean `{near}`?")),
                ),
                (_, Some((near, _))) => {
                    self.job.notes.push(
                        Diagnostic::warning("unknown-key", format!("`{name}` is not read"))
                            .at(at)
                            .help(format!("if `{near}` is meant, say so")),
                    );
                    past.push(name);
                }
                (None, None) => past.push(name),
            }
        }
        if !past.is_empty() {
            self.job.notes.push(Diagnostic::note(
                "not-read",
                format!(
                    "{} keys of the file are not taken to concern memory and were not read: {}",
                    past.len(),
                    past.join(", ")
                ),
            ));
        }
        // what is missing may be what is wrong or misspelt
        if self.bad.iter().any(|d| d.code != "missing") {
            self.bad.retain(|d| d.code != "missing");
        }
        if self.bad.is_empty() {
            Ok(self.job)
        } else {
            Err(self.bad)
        }
    }

    /// The key that was looked for and is spelled nearly so; is it the same but for case, `-` and `_`?
    fn near(&self, name: &str) -> Option<(&'static str, bool)> {
        let plain = |t: &str| t.to_ascii_lowercase().replace(['_', '-'], "");
        if let Some(p) = self.looked.iter().find(|p| plain(p) == plain(name)) {
            return Some((p, true));
        }
        let near = nearest(name, self.looked.iter().copied())?;
        let close = name.len().abs_diff(near.len()) <= 3 && name.get(..3) == near.get(..3);
        (name.len() > 4 && close).then_some((near, false))
    }
}

/// The keys of a table that nobody looked at, with those of its tables of which somebody looked at one.
fn rest<'a>(
    node: &'a Node,
    prefix: &str,
    looked: &BTreeSet<&'static str>,
    out: &mut Vec<(String, &'a Key, &'a Value)>,
) {
    for (k, v) in node.table().unwrap_or_default() {
        let name = format!("{prefix}{}", k.name);
        let dotted = format!("{name}.");
        if looked.iter().any(|p| p.starts_with(&dotted)) && v.table().is_some() {
            rest(v, &dotted, looked, out);
        } else if !looked.contains(name.as_str()) {
            out.push((name, k, &v.value));
        }
    }
}
