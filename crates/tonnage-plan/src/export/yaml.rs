//! YAML with places, as PyYAML's `safe_load` reads it (YAML 1.1's words for true and false, merge keys), with limits.

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use std::collections::HashMap;
use std::ops::Range;
use tonnage_core::doc::{Diagnostic, Doc, Key, MAX_BYTES, MAX_DEPTH, Node, Place, Value};

/// Values of one document, those behind aliases counted each time.
const MAX_NODES: usize = 100_000;

/// Is this text to be read as YAML? By the file's extension, else (a text without one) by its first lines.
pub fn is_yaml(file: &str, text: &str) -> bool {
    let lower = file.to_ascii_lowercase();
    if lower.ends_with(".yaml") || lower.ends_with(".yml") {
        return true;
    }
    if lower.ends_with(".json") || lower.ends_with(".toml") {
        return false;
    }
    let first = text
        .trim_start_matches('\u{feff}')
        .lines()
        .map(str::trim_end)
        .find(|l| !l.is_empty() && !l.starts_with('#'));
    first.is_some_and(|l| {
        l == "---"
            || l.split_once(':').is_some_and(|(k, rest)| {
                (rest.is_empty() || rest.starts_with(' '))
                    && !k.is_empty()
                    && k.bytes()
                        .all(|c| c.is_ascii_alphanumeric() || b"_-.".contains(&c))
            })
    })
}

/// Parses one YAML document.
///
/// # Errors
/// The first thing that is wrong: syntax, a key given twice, a tag that makes objects, too much.
pub fn parse(file: &str, text: &str) -> Result<Doc, Diagnostic> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let fail = |message: String, span: Range<usize>| {
        Diagnostic::error("syntax", message).at(Place::of(file, text, span))
    };
    if text.len() > MAX_BYTES {
        return Err(Diagnostic::error(
            "too-large",
            format!(
                "{file} has {} bytes; at most {MAX_BYTES} are read",
                text.len()
            ),
        ));
    }
    let mut r = Reader {
        parser: Parser::new_from_str(text),
        bytes: (!text.is_ascii()).then(|| text.char_indices().map(|(i, _)| i).collect()),
        len: text.len(),
        anchors: HashMap::new(),
        nodes: 0,
    };
    match r.document() {
        Ok(root) => Ok(Doc {
            file: file.into(),
            text: text.into(),
            root,
        }),
        Err((message, span)) => Err(fail(format!("not valid YAML: {message}"), span)),
    }
}

type Bad = (String, Range<usize>);

struct Reader<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    /// Byte of each character, where they differ.
    bytes: Option<Vec<usize>>,
    len: usize,
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
}

impl<'a> Reader<'a> {
    fn byte(&self, character: usize) -> usize {
        match &self.bytes {
            Some(b) => b.get(character).copied().unwrap_or(self.len),
            None => character.min(self.len),
        }
    }

    fn range(&self, s: Span) -> Range<usize> {
        let start = self.byte(s.start.index());
        start..self.byte(s.end.index()).max(start)
    }

    fn next(&mut self) -> Result<(Event<'a>, Range<usize>), Bad> {
        match self.parser.next_event() {
            Some(Ok((e, s))) => Ok((e, self.range(s))),
            Some(Err(e)) => {
                let at = self.byte(e.marker().index());
                Err((e.info().to_string(), at..at))
            }
            None => Ok((Event::StreamEnd, self.len..self.len)),
        }
    }

    fn document(&mut self) -> Result<Node, Bad> {
        let mut root = None;
        loop {
            let (e, span) = self.next()?;
            match e {
                Event::StreamEnd => break,
                Event::StreamStart | Event::DocumentEnd | Event::Nothing => {}
                Event::DocumentStart(_) if root.is_some() => {
                    return Err(("a second document; one is read".into(), span));
                }
                Event::DocumentStart(_) => {}
                e => root = Some(self.node(e, span, 0)?),
            }
        }
        Ok(root.unwrap_or(Node {
            span: 0..0,
            value: Value::Table(Vec::new()),
        }))
    }

    fn counted(&mut self, n: usize, span: &Range<usize>) -> Result<(), Bad> {
        self.nodes += n;
        if self.nodes > MAX_NODES {
            return Err((format!("more than {MAX_NODES} values"), span.clone()));
        }
        Ok(())
    }

    fn node(&mut self, e: Event<'a>, span: Range<usize>, depth: usize) -> Result<Node, Bad> {
        if depth > MAX_DEPTH {
            return Err((format!("more than {MAX_DEPTH} levels of nesting"), span));
        }
        let before = self.nodes;
        self.counted(1, &span)?;
        let (anchor, value) = match e {
            Event::Alias(id) => {
                let Some((n, size)) = self.anchors.get(&id).cloned() else {
                    return Err(("an alias of nothing".into(), span));
                };
                self.counted(size, &span)?;
                return Ok(Node { span, ..n });
            }
            Event::Scalar(text, style, anchor, tag) => {
                let text_tag = match &tag {
                    Some(t) if t.is_yaml_core_schema() => t.suffix == "str",
                    Some(t) => {
                        let name = format!("{}{}", t.handle, t.suffix);
                        return Err((format!("the tag `{name}` is not read"), span));
                    }
                    None => false,
                };
                let plain = style == ScalarStyle::Plain && !text_tag;
                let value = if plain {
                    plain_value(&text)
                } else {
                    Value::Text(text.into_owned())
                };
                (anchor, value)
            }
            Event::SequenceStart(anchor, _) => {
                let mut items = Vec::new();
                loop {
                    let (e, s) = self.next()?;
                    if e == Event::SequenceEnd {
                        break;
                    }
                    items.push(self.node(e, s, depth + 1)?);
                }
                (anchor, Value::List(items))
            }
            Event::MappingStart(anchor, _) => (anchor, self.mapping(depth)?),
            _ => return Err(("unexpected end".into(), span)),
        };
        let n = Node { span, value };
        if anchor != 0 {
            self.anchors
                .insert(anchor, (n.clone(), self.nodes - before));
        }
        Ok(n)
    }

    fn mapping(&mut self, depth: usize) -> Result<Value, Bad> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        let mut merged: Vec<(Key, Node)> = Vec::new();
        let mut seen: HashMap<String, ()> = HashMap::new();
        loop {
            let (e, s) = self.next()?;
            let name = match e {
                Event::MappingEnd => break,
                Event::Scalar(t, ..) => t.into_owned(),
                _ => return Err(("a key is not text".into(), s)),
            };
            let (e, vs) = self.next()?;
            let value = self.node(e, vs, depth + 1)?;
            if name == "<<" {
                let tables = match value.value {
                    Value::List(l) => l,
                    _ => vec![value],
                };
                for t in tables {
                    match t.value {
                        Value::Table(t) => merged.extend(t),
                        _ => return Err(("`<<` merges tables".into(), s)),
                    }
                }
                continue;
            }
            if seen.insert(name.clone(), ()).is_some() {
                return Err((format!("`{name}` is given twice"), s));
            }
            entries.push((Key { span: s, name }, value));
        }
        for (k, v) in merged {
            if seen.insert(k.name.clone(), ()).is_none() {
                entries.push((k, v));
            }
        }
        Ok(Value::Table(entries))
    }
}

/// A scalar without quotes. PyYAML takes `2e-4` for text, and every tool here makes a number of it: a number.
fn plain_value(t: &str) -> Value {
    match t {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => {
            return Value::Bool(true);
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        ".inf" | ".Inf" | ".INF" | "+.inf" => return Value::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Value::Float(f64::NEG_INFINITY),
        ".nan" | ".NaN" | ".NAN" => return Value::Float(f64::NAN),
        _ => {}
    }
    let Some(first) = t.bytes().next() else {
        return Value::Null;
    };
    if !(first.is_ascii_digit() || b"+-.".contains(&first)) {
        return Value::Text(t.into());
    }
    let clean = t.replace('_', "");
    if let Some(hex) = clean.strip_prefix("0x")
        && let Ok(i) = i128::from_str_radix(hex, 16)
    {
        return Value::Int(i);
    }
    let decimal = clean.strip_prefix('+').unwrap_or(&clean);
    if decimal
        .strip_prefix('-')
        .unwrap_or(decimal)
        .bytes()
        .all(|c| c.is_ascii_digit())
        && let Ok(i) = decimal.parse::<i64>()
    {
        return Value::Int(i.into());
    }
    match decimal.parse::<f64>() {
        Ok(f) if decimal.bytes().any(|c| c.is_ascii_digit()) => Value::Float(f),
        _ => Value::Text(t.into()),
    }
}

/// A text as YAML, in quotes where a reader could take it for something else.
pub fn quoted(t: &str) -> String {
    let safe = !t.is_empty()
        && t.bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"_-./".contains(&c))
        && t.bytes()
            .next()
            .is_some_and(|c| c.is_ascii_alphabetic() || c == b'/')
        && plain_value(t) == Value::Text(t.into())
        && !["y", "n", "Y", "N"].contains(&t);
    if safe {
        t.into()
    } else {
        serde_json::Value::from(t).to_string()
    }
}
