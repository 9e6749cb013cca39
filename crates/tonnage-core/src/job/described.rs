//! A job whose model is a description file: reading it, and saying where in it something is wrong.

use super::{Job, Origin};
use crate::doc::{Diagnostic, Doc, Node, Place, Value};
use std::sync::Arc;
use tonnage_model::ModelError;
use tonnage_model::describe::{Description, is_verified};

/// A description file that was read.
#[derive(Clone, Debug)]
pub struct DescriptionFile {
    doc: Doc,
    pub description: Arc<Description>,
    /// Is it one whose runs were compared with recorded jobs?
    pub verified: bool,
}

impl DescriptionFile {
    /// Reads a description.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn parse(file: &str, text: &str) -> Result<DescriptionFile, Diagnostic> {
        let doc = Doc::parse(file, text)?;
        match Description::parse(&doc.text) {
            Ok(d) => Ok(DescriptionFile {
                verified: is_verified(&d),
                description: Arc::new(d),
                doc,
            }),
            Err(e) => Err(explain(&doc, &e)),
        }
    }

    /// The error of building this description, with its place in the file.
    pub fn explain(&self, e: &ModelError) -> Diagnostic {
        explain(&self.doc, e)
    }
}

/// The deepest node that a path such as `blocks.layer[2]` or `forward.attention.q` names; at least its first step must be there.
fn walk<'a>(doc: &'a Doc, path: &str) -> Option<&'a Node> {
    let mut at = &doc.root;
    let mut found = None;
    let steps = path
        .split('.')
        .flat_map(|p| p.split('['))
        .map(|p| p.trim_end_matches(']'));
    for step in steps {
        let next = match &at.value {
            Value::List(items) => step.parse::<usize>().ok().and_then(|i| items.get(i)),
            _ => at.get(step),
        };
        match next {
            Some(n) => (at, found) = (n, Some(n)),
            None => break,
        }
    }
    found
}

/// The place that an error's words name: `line 3, column 5`, a path of keys, or an expression's text.
fn locate(doc: &Doc, place: &str) -> Option<Place> {
    if let Some(rest) = place.strip_prefix("line ") {
        let (line, column) = rest.split_once(", column ")?;
        let (line, column): (usize, usize) = (line.parse().ok()?, column.parse().ok()?);
        let start: usize = doc
            .text
            .split_inclusive('\n')
            .take(line.checked_sub(1)?)
            .map(str::len)
            .sum();
        let within: usize = doc
            .text
            .get(start..)?
            .chars()
            .take(column.checked_sub(1)?)
            .map(char::len_utf8)
            .sum();
        let at = start + within;
        let key = doc.text.get(at..)?;
        let width = key
            .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-'))
            .unwrap_or(key.len());
        return Some(doc.place(&(at..at + width)));
    }
    if let Some(n) = walk(doc, place) {
        // the header of a table is not its whole text
        let end = doc.text[n.span.start.min(doc.text.len())..]
            .find('\n')
            .map_or(n.span.end, |i| n.span.end.min(n.span.start + i));
        return Some(doc.place(&(n.span.start..end)));
    }
    let quoted = format!("\"{place}\"");
    let at = doc.text.find(&quoted)?;
    Some(doc.place(&(at..at + quoted.len())))
}

fn explain(doc: &Doc, e: &ModelError) -> Diagnostic {
    let (place, problem) = match e {
        ModelError::Description { place, problem, .. } => (place.as_str(), problem.as_str()),
        ModelError::Field { field, problem } => (field.as_str(), problem.as_str()),
        e => return Diagnostic::error("bad-description", format!("{}: {e}", doc.file)),
    };
    let (problem, fix) = match problem.split_once("; did you mean ") {
        Some((p, n)) => (p, Some(format!("did you mean {n}"))),
        None => (problem, None),
    };
    let found = locate(doc, place);
    let named = match &found {
        Some(_) if place.starts_with("line ") => problem.to_string(),
        _ => format!("{place}: {problem}"),
    };
    let fix = fix.unwrap_or_else(|| likely(problem).into());
    match found {
        Some(p) => Diagnostic::error("bad-description", named).at(p).help(fix),
        None => Diagnostic::error("bad-description", format!("{}: {named}", doc.file)).help(fix),
    }
}

/// What usually mends it.
fn likely(problem: &str) -> &'static str {
    for (words, fix) in [
        (
            "is not divisible by",
            "choose sizes that divide without remainder, or use // for whole parts",
        ),
        (
            "is neither a field nor a derived name",
            "list it under `required`, or give it a default in [fields]",
        ),
        (
            "(model_type",
            "give it in the job's `[model] config`, or a default in [fields]",
        ),
        (
            "are needed here",
            "the two widths must be the same expression: compare the module's line in [blocks] with the forward section",
        ),
        (
            "is missing",
            "add the key; docs/descriptions.md lists what each kind needs",
        ),
        (
            "there is no such block",
            "name a list of [blocks], or add one",
        ),
        (
            "is impossible",
            "check the value of this expression in the job's configuration",
        ),
        ("belongs to", "take the key out, or change the kind"),
    ] {
        if problem.contains(words) {
            return fix;
        }
    }
    "see docs/descriptions.md for the format"
}

impl Job {
    /// Takes the description that `model.description` names; one that no recorded job verifies makes the answer `unverified`.
    pub fn describe(&mut self, file: DescriptionFile) {
        if !file.verified {
            self.notes.push(Diagnostic::note(
                "unverified",
                format!(
                    "unverified: no recorded job was compared with the description `{}` ({}); its forward is the one that docs/descriptions.md defines",
                    file.description.model_type, file.doc.file
                ),
            ));
        }
        self.description = Some(Arc::new(file));
    }

    /// What the description and the rest of the job do not agree on.
    pub(super) fn described_contradictions(&self) -> Vec<Diagnostic> {
        let Some(file) = &self.description else {
            return Vec::new();
        };
        let d = &file.description;
        let mut bad = Vec::new();
        let place = |key: &str| match self.given(key).map(|g| &g.origin) {
            Some(Origin::File(p)) => Some(p.clone()),
            _ => None,
        };
        let mut say = |key: &str, code: &'static str, words: String, help: String| {
            let x = Diagnostic::error(code, words).help(help);
            bad.push(match place(key) {
                Some(p) => x.at(p),
                None => x,
            });
        };
        let said = self.word("model.type");
        if !said.is_empty() && said != d.model_type {
            say(
                "model.type",
                "contradiction",
                format!(
                    "`model.type` is {said}, the description is of `{}`",
                    d.model_type
                ),
                "leave `type` out: the description says what the model is".into(),
            );
        }
        if self.given("model.head").is_some() {
            say(
                "model.head",
                "contradiction",
                "`model.head` is given, and the description has a head of its own".into(),
                "leave `head` out, or change [forward.head] in the description".into(),
            );
        }
        // a config.json has many fields of no interest; what the job itself gives must mean something
        let own = ["model.id", "model.path"]
            .iter()
            .all(|k| self.given(k).is_none());
        if let (true, Some(Value::Table(t))) = (own, self.given("model.config").map(|g| &g.value)) {
            let text = format!("{d:?}");
            let known = || d.required.iter().chain(d.fields.keys());
            for (k, v) in t {
                let used = known().any(|n| *n == k.name)
                    || k.name == "model_type"
                    || text.contains(&format!("config.{}", k.name));
                if !used {
                    let help = match tonnage_units::nearest(&k.name, known().map(String::as_str)) {
                        Some(n) => format!("did you mean `{n}`?"),
                        None => format!(
                            "it reads: {}",
                            known().cloned().collect::<Vec<_>>().join(", ")
                        ),
                    };
                    say(
                        "model.config",
                        "unknown-key",
                        format!(
                            "unknown field `{}` in `model.config`: the description of `{}` does not read it ({})",
                            k.name,
                            d.model_type,
                            v.value.shown()
                        ),
                        help,
                    );
                }
            }
        }
        bad
    }
}
