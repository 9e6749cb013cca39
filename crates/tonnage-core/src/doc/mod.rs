//! A document with places: TOML or JSON as one tree whose every key and value knows where it stands, so that whatever is wrong
//! is said with file, line and column.

mod diagnostic;
mod json;
mod toml;

pub use diagnostic::{Diagnostic, Place, Severity};

use std::ops::Range;

/// Files larger than this are refused before they are parsed (a job or a `config.json` is a few kB).
pub const MAX_BYTES: usize = 16 << 20;
/// Deeper nesting than this is refused.
pub const MAX_DEPTH: usize = 64;

/// A value of a document and its bytes there.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub span: Range<usize>,
    pub value: Value,
}

/// A key of a table and its bytes in the document.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    pub span: Range<usize>,
    pub name: String,
}

/// What TOML and JSON have in common.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    /// In document order.
    Table(Vec<(Key, Node)>),
}

impl Value {
    /// "a number", "text", ...
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "true or false",
            Value::Int(_) => "a whole number",
            Value::Float(_) => "a number",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
        }
    }
    /// As a file shows it, short.
    pub fn shown(&self) -> String {
        match self {
            Value::Null => "null".into(),
            Value::Bool(b) => b.to_string(),
            Value::Int(i) => i.to_string(),
            Value::Float(f) => f.to_string(),
            Value::Text(s) => format!("\"{}\"", s.chars().take(60).collect::<String>()),
            Value::List(l) => format!(
                "[{}]",
                l.iter()
                    .take(8)
                    .map(|n| n.value.shown())
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
            Value::Table(_) => "{...}".into(),
        }
    }
    /// From JSON; the parts have no place.
    pub fn from_json(json: &serde_json::Value) -> Value {
        use serde_json::Value as J;
        let node = |v: &J| Node {
            span: 0..0,
            value: Value::from_json(v),
        };
        match json {
            J::Null => Value::Null,
            J::Bool(b) => Value::Bool(*b),
            J::Number(n) => match (n.as_i64(), n.as_u64()) {
                (Some(i), _) => Value::Int(i.into()),
                (_, Some(u)) => Value::Int(u.into()),
                _ => Value::Float(n.as_f64().unwrap_or_default()),
            },
            J::String(s) => Value::Text(s.clone()),
            J::Array(a) => Value::List(a.iter().map(node).collect()),
            J::Object(o) => Value::Table(
                o.iter()
                    .map(|(k, v)| {
                        let key = Key {
                            span: 0..0,
                            name: k.clone(),
                        };
                        (key, node(v))
                    })
                    .collect(),
            ),
        }
    }
    /// As a JSON value.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as J;
        match self {
            Value::Null => J::Null,
            Value::Bool(b) => J::Bool(*b),
            Value::Int(i) => i64::try_from(*i)
                .map(J::from)
                .or_else(|_| u64::try_from(*i).map(J::from))
                .unwrap_or_else(|_| J::from(*i as f64)),
            Value::Float(f) => J::from(*f),
            Value::Text(s) => J::String(s.clone()),
            Value::List(l) => J::Array(l.iter().map(|n| n.value.to_json()).collect()),
            Value::Table(t) => J::Object(
                t.iter()
                    .map(|(k, v)| (k.name.clone(), v.value.to_json()))
                    .collect(),
            ),
        }
    }
}

impl Node {
    /// The entries, where this is a table.
    pub fn table(&self) -> Option<&[(Key, Node)]> {
        match &self.value {
            Value::Table(t) => Some(t),
            _ => None,
        }
    }
    /// The entry `name` of a table.
    pub fn get(&self, name: &str) -> Option<&Node> {
        self.table()?
            .iter()
            .find(|(k, _)| k.name == name)
            .map(|(_, n)| n)
    }
    /// The text, where this is text.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(s) => Some(s),
            _ => None,
        }
    }
    /// The number, where this is a whole number that is not negative.
    pub fn count(&self) -> Option<u64> {
        match &self.value {
            Value::Int(i) => u64::try_from(*i).ok(),
            _ => None,
        }
    }
}

/// A parsed file.
#[derive(Clone, Debug)]
pub struct Doc {
    /// The name to show.
    pub file: String,
    pub text: String,
    pub root: Node,
}

/// The syntax of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    Toml,
    Json,
}

impl Syntax {
    /// By the file's extension, else by its first character.
    pub fn of(file: &str, text: &str) -> Syntax {
        let lower = file.to_ascii_lowercase();
        if lower.ends_with(".json") {
            Syntax::Json
        } else if lower.ends_with(".toml") {
            Syntax::Toml
        } else if text
            .trim_start_matches('\u{feff}')
            .trim_start()
            .starts_with('{')
        {
            Syntax::Json
        } else {
            Syntax::Toml
        }
    }
}

impl Doc {
    /// Parses `text`.
    ///
    /// # Errors
    /// One diagnostic for the first thing that is not of the syntax.
    pub fn parse(file: &str, text: &str) -> Result<Doc, Diagnostic> {
        if text.len() > MAX_BYTES {
            return Err(Diagnostic::error(
                "too-large",
                format!(
                    "{file} has {} bytes; at most {MAX_BYTES} are read",
                    text.len()
                ),
            ));
        }
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let parsed = match Syntax::of(file, text) {
            Syntax::Toml => toml::parse(text),
            Syntax::Json => json::parse(text),
        };
        match parsed {
            Ok(root) => Ok(Doc {
                file: file.into(),
                text: text.into(),
                root,
            }),
            Err(e) => {
                let d = Diagnostic::error("syntax", e.message).at(Place::of(file, text, e.span));
                Err(match e.help {
                    Some(h) => d.help(h),
                    None => d,
                })
            }
        }
    }

    /// The place of a span of this document.
    pub fn place(&self, span: &Range<usize>) -> Place {
        Place::of(&self.file, &self.text, span.clone())
    }
}

/// Why a text is not of its syntax.
struct SyntaxError {
    message: String,
    span: Range<usize>,
    help: Option<String>,
}
