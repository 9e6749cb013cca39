//! A strict JSON reader with positions and limits.
//!
//! Strict: no comments, no trailing commas, no second key of the same name, nothing after the end. One extension: Python writes bare
//! `NaN`, `Infinity` and `-Infinity`; they become null, and where they stood is remembered, so that a size can refuse them.

use super::error::{Format, Position, Problem, ReadError};
use serde_json::{Map, Number, Value};
use std::cell::Cell;
use std::collections::HashMap;

/// How much a text may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the text.
    pub bytes: u64,
    /// Levels of lists and objects.
    pub depth: u32,
    /// Values of all kinds.
    pub values: u64,
}

/// Reads a text from its beginning to its end; never goes back.
pub struct Parser<'a> {
    format: Format,
    text: &'a str,
    at: usize,
    line: u32,
    line_start: usize,
    /// A place in this line and the characters before it, so that positions cost what lies between them.
    counted: Cell<(usize, u32)>,
    depth: u32,
    values: u64,
    limits: Limits,
}

/// A parsed text with the places of its fields.
#[derive(Clone, Debug, Default)]
pub struct Document {
    pub value: Value,
    /// By dotted path (`text_config.hidden_size`): where the value begins.
    pub places: HashMap<String, Position>,
    /// Paths of numbers that are not finite.
    pub not_finite: Vec<String>,
}

/// Fields deeper than this have no remembered place.
const PLACED_DEPTH: usize = 3;

impl<'a> Parser<'a> {
    /// Over a whole text.
    ///
    /// # Errors
    /// Too many bytes, or not UTF-8.
    pub fn new(format: Format, bytes: &'a [u8], limits: Limits) -> Result<Parser<'a>, ReadError> {
        let error = |at, problem| ReadError {
            format,
            at,
            field: String::new(),
            problem,
        };
        if bytes.len() as u64 > limits.bytes {
            let problem = Problem::TooLarge {
                bytes: bytes.len() as u64,
                most: limits.bytes,
            };
            return Err(error(None, problem));
        }
        let text = std::str::from_utf8(bytes).map_err(|e| {
            let good = std::str::from_utf8(&bytes[..e.valid_up_to()]).unwrap_or_default();
            let line = good.matches('\n').count() as u32 + 1;
            let column = good.rsplit('\n').next().unwrap_or_default().chars().count() as u32 + 1;
            error(Some(Position { line, column }), Problem::NotUtf8)
        })?;
        Ok(Parser {
            format,
            text,
            at: 0,
            line: 1,
            line_start: 0,
            counted: Cell::new((0, 0)),
            depth: 0,
            values: 0,
            limits,
        })
    }

    /// Where the next character is.
    pub fn position(&self) -> Position {
        let (mut from, mut chars) = self.counted.get();
        if from < self.line_start {
            (from, chars) = (self.line_start, 0);
        }
        chars += self.text[from..self.at].chars().count() as u32;
        self.counted.set((self.at, chars));
        Position {
            line: self.line,
            column: chars + 1,
        }
    }
    /// An error at the next character.
    pub fn error(&self, field: &str, problem: Problem) -> ReadError {
        self.error_at(self.position(), field, problem)
    }
    /// An error at a place.
    pub fn error_at(&self, at: Position, field: &str, problem: Problem) -> ReadError {
        ReadError {
            format: self.format,
            at: Some(at),
            field: field.to_string(),
            problem,
        }
    }

    fn rest(&self) -> &'a [u8] {
        &self.text.as_bytes()[self.at..]
    }
    fn space(&mut self) {
        while let Some(b) = self.rest().first() {
            match b {
                b'\n' => {
                    self.line += 1;
                    self.line_start = self.at + 1;
                }
                b' ' | b'\t' | b'\r' => {}
                _ => return,
            }
            self.at += 1;
        }
    }
    /// The next character that is not white space.
    fn peek(&mut self) -> Option<u8> {
        self.space();
        self.rest().first().copied()
    }
    fn unexpected(&mut self, field: &str, expected: &str) -> ReadError {
        self.space();
        match self.text[self.at..].chars().next() {
            None => self.error(field, Problem::Truncated(expected.to_string())),
            Some(c) => {
                let problem = format!("{c:?} stands where {expected} is expected");
                self.error(field, Problem::Syntax(problem))
            }
        }
    }
    fn expect(&mut self, field: &str, c: u8, name: &str) -> Result<(), ReadError> {
        if self.peek() == Some(c) {
            self.at += 1;
            return Ok(());
        }
        Err(self.unexpected(field, name))
    }
    fn count_value(&mut self, field: &str) -> Result<(), ReadError> {
        self.values += 1;
        if self.values > self.limits.values {
            let most = self.limits.values;
            return Err(self.error(
                field,
                Problem::TooMany {
                    what: "values",
                    most,
                },
            ));
        }
        Ok(())
    }
    fn enter(&mut self, field: &str) -> Result<(), ReadError> {
        self.depth += 1;
        if self.depth > self.limits.depth {
            return Err(self.error(field, Problem::TooDeep(self.limits.depth)));
        }
        Ok(())
    }

    /// An object: `entry` reads the value of each key. It sees every key; whether one stands twice is its business.
    ///
    /// # Errors
    /// A mistake in the text, or what `entry` says.
    pub fn object(
        &mut self,
        field: &str,
        entry: &mut dyn FnMut(&mut Parser<'a>, String, Position) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        self.count_value(field)?;
        self.expect(field, b'{', "an object (`{`)")?;
        self.enter(field)?;
        if self.peek() == Some(b'}') {
            self.at += 1;
        } else {
            loop {
                if self.peek() != Some(b'"') {
                    return Err(self.unexpected(field, "a key in double quotes"));
                }
                let at = self.position();
                let key = self.string(field)?;
                self.expect(&key, b':', "`:`")?;
                entry(self, key, at)?;
                match self.peek() {
                    Some(b',') => self.at += 1,
                    Some(b'}') => {
                        self.at += 1;
                        break;
                    }
                    _ => return Err(self.unexpected(field, "`,` or `}`")),
                }
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// A list: `item` reads each element.
    ///
    /// # Errors
    /// A mistake in the text, or what `item` says.
    pub fn array(
        &mut self,
        field: &str,
        item: &mut dyn FnMut(&mut Parser<'a>) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        self.count_value(field)?;
        self.expect(field, b'[', "a list (`[`)")?;
        self.enter(field)?;
        if self.peek() == Some(b']') {
            self.at += 1;
        } else {
            loop {
                item(self)?;
                match self.peek() {
                    Some(b',') => self.at += 1,
                    Some(b']') => {
                        self.at += 1;
                        break;
                    }
                    _ => return Err(self.unexpected(field, "`,` or `]`")),
                }
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// A text in quotes.
    ///
    /// # Errors
    /// Anything else, or a bad escape.
    pub fn string(&mut self, field: &str) -> Result<String, ReadError> {
        self.expect(field, b'"', "a text in double quotes")?;
        let start = self.at;
        // without escapes the text is a slice
        let plain = self
            .rest()
            .iter()
            .take_while(|b| **b >= 0x20 && **b != b'"' && **b != b'\\')
            .count();
        self.at += plain;
        let mut out = self.text[start..self.at].to_string();
        loop {
            let Some(c) = self.text[self.at..].chars().next() else {
                return Err(
                    self.error(field, Problem::Truncated("the end of a text (`\"`)".into()))
                );
            };
            match c {
                '"' => {
                    self.at += 1;
                    return Ok(out);
                }
                '\\' => {
                    let c = self.escape(field)?;
                    out.push(c);
                }
                c if (c as u32) < 0x20 => {
                    let problem = "a control character stands in a text".to_string();
                    return Err(self.error(field, Problem::Syntax(problem)));
                }
                c => {
                    out.push(c);
                    self.at += c.len_utf8();
                }
            }
        }
    }

    fn escape(&mut self, field: &str) -> Result<char, ReadError> {
        let bad = |p: &Parser, what: &str| p.error(field, Problem::Syntax(what.to_string()));
        let c = match self.rest().get(1) {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let high = self.hex(2).ok_or_else(|| bad(self, "a bad \\u escape"))?;
                if !(0xD800..0xE000).contains(&high) {
                    self.at += 6;
                    return char::from_u32(high).ok_or_else(|| bad(self, "a bad \\u escape"));
                }
                let low = (high < 0xDC00 && self.rest().get(6..8) == Some(b"\\u"))
                    .then(|| self.hex(8))
                    .flatten()
                    .filter(|l| (0xDC00..0xE000).contains(l))
                    .ok_or_else(|| bad(self, "half of a surrogate pair"))?;
                self.at += 12;
                let code = 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
                return char::from_u32(code).ok_or_else(|| bad(self, "a bad \\u escape"));
            }
            _ => return Err(bad(self, "an unknown escape")),
        };
        self.at += 2;
        Ok(c)
    }
    fn hex(&self, from: usize) -> Option<u32> {
        let digits = self.rest().get(from..from + 4)?;
        digits
            .iter()
            .try_fold(0, |n, d| Some(n * 16 + char::from(*d).to_digit(16)?))
    }

    /// The text of a number, by JSON's grammar.
    fn number(&mut self, field: &str) -> Result<&'a str, ReadError> {
        self.space();
        let b = self.rest();
        let digits = |i: usize| {
            b[i.min(b.len())..]
                .iter()
                .take_while(|c| c.is_ascii_digit())
                .count()
        };
        let mut n = usize::from(b.first() == Some(&b'-'));
        let whole = digits(n);
        let leading_zero = whole > 1 && b[n] == b'0';
        n += whole;
        let mut good = whole > 0 && !leading_zero;
        if good && b.get(n) == Some(&b'.') {
            let fraction = digits(n + 1);
            good = fraction > 0;
            n += 1 + fraction;
        }
        if good && matches!(b.get(n), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(b.get(n + 1), Some(b'+' | b'-')));
            let exponent = digits(n + 1 + sign);
            good = exponent > 0;
            n += 1 + sign + exponent;
        }
        if !good {
            let problem = "not a number as JSON writes them".to_string();
            return Err(self.error(field, Problem::Syntax(problem)));
        }
        let text = &self.text[self.at..self.at + n];
        self.at += n;
        Ok(text)
    }

    /// A whole number that is not negative.
    ///
    /// # Errors
    /// Anything else.
    pub fn unsigned(&mut self, field: &str) -> Result<u64, ReadError> {
        self.count_value(field)?;
        self.space();
        let at = self.position();
        let wrong = |p: &Parser, found: String| {
            let expected = "a whole number that is not negative";
            p.error_at(at, field, Problem::WrongType { expected, found })
        };
        if !matches!(self.peek(), Some(b'-' | b'0'..=b'9')) {
            let found = self.found();
            return Err(wrong(self, found));
        }
        let text = self.number(field)?;
        text.parse().map_err(|_| wrong(self, shortened(text)))
    }

    /// The kind of the value that comes next, in words.
    pub fn found(&mut self) -> String {
        match self.peek() {
            None => "the end of the file",
            Some(b'{') => "an object",
            Some(b'[') => "a list",
            Some(b'"') => "a text",
            Some(b't' | b'f') => "a boolean",
            Some(b'n') => "null",
            Some(b'-' | b'0'..=b'9') => "a number",
            Some(_) => "no value",
        }
        .to_string()
    }

    /// Whether a text in quotes comes next.
    pub fn at_string(&mut self) -> bool {
        self.peek() == Some(b'"')
    }

    /// Any value.
    ///
    /// # Errors
    /// A mistake in the text, a key that stands twice, a limit.
    pub fn value(&mut self, path: &str, into: &mut Document) -> Result<Value, ReadError> {
        match self.peek() {
            Some(b'{') => {
                let mut map = Map::new();
                self.object(path, &mut |p, key, at| {
                    let path = join(path, &key);
                    if map.contains_key(&key) {
                        return Err(p.error_at(at, &path, Problem::DuplicateKey));
                    }
                    p.space();
                    if path.matches('.').count() < PLACED_DEPTH {
                        into.places.insert(path.clone(), p.position());
                    }
                    let v = p.value(&path, into)?;
                    map.insert(key, v);
                    Ok(())
                })?;
                Ok(Value::Object(map))
            }
            Some(b'[') => {
                let mut items = Vec::new();
                self.array(path, &mut |p| {
                    items.push(p.value(path, into)?);
                    Ok(())
                })?;
                Ok(Value::Array(items))
            }
            Some(b'"') => {
                self.count_value(path)?;
                Ok(Value::String(self.string(path)?))
            }
            _ => self.scalar(path, into),
        }
    }

    fn scalar(&mut self, path: &str, into: &mut Document) -> Result<Value, ReadError> {
        self.count_value(path)?;
        let word = |s: &str| self.rest().starts_with(s.as_bytes());
        let known = [
            ("null", Value::Null),
            ("true", Value::Bool(true)),
            ("false", Value::Bool(false)),
        ];
        for (text, value) in known {
            if word(text) {
                self.at += text.len();
                return Ok(value);
            }
        }
        for text in ["NaN", "Infinity", "-Infinity"] {
            if word(text) {
                self.at += text.len();
                into.not_finite.push(path.to_string());
                return Ok(Value::Null);
            }
        }
        if !matches!(self.peek(), Some(b'-' | b'0'..=b'9')) {
            return Err(self.unexpected(path, "a value"));
        }
        let at = self.position();
        let text = self.number(path)?;
        let number = text
            .parse::<i64>()
            .ok()
            .map(Number::from)
            .or_else(|| text.parse::<u64>().ok().map(Number::from))
            .or_else(|| text.parse::<f64>().ok().and_then(Number::from_f64));
        number.map(Value::Number).ok_or_else(|| {
            let problem = format!("{} is too large a number", shortened(text));
            self.error_at(at, path, Problem::Syntax(problem))
        })
    }

    /// Reads a value and drops it.
    ///
    /// # Errors
    /// As [`Parser::value`].
    pub fn skip(&mut self, path: &str) -> Result<(), ReadError> {
        self.value(path, &mut Document::default()).map(drop)
    }

    /// That only white space is left.
    ///
    /// # Errors
    /// Something else stands there.
    pub fn end(&mut self) -> Result<(), ReadError> {
        match self.peek() {
            None => Ok(()),
            Some(_) => {
                let problem = "something follows the end of the value".to_string();
                Err(self.error("", Problem::Syntax(problem)))
            }
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_string()
    } else {
        format!("{path}.{key}")
    }
}

fn shortened(text: &str) -> String {
    match text.get(..40) {
        Some(s) if text.len() > 40 => format!("{s}..."),
        _ => text.to_string(),
    }
}
