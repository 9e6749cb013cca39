//! JSON with places: RFC 8259, no duplicate keys, bounded nesting.

use super::{Key, MAX_DEPTH, Node, SyntaxError, Value};
use std::collections::HashSet;

pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    let mut p = Parser {
        text,
        bytes: text.as_bytes(),
        at: 0,
    };
    p.space();
    let root = p.value(0)?;
    p.space();
    if p.at < p.bytes.len() {
        return Err(p.error("nothing may follow the value"));
    }
    Ok(root)
}

struct Parser<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn error(&self, what: impl Into<String>) -> SyntaxError {
        self.error_at(self.at, what)
    }
    fn error_at(&self, at: usize, what: impl Into<String>) -> SyntaxError {
        let what = what.into();
        let end = if at >= self.bytes.len() { at } else { at + 1 };
        let cut = if at >= self.bytes.len() {
            " (the text ends here: is the file cut off?)"
        } else {
            ""
        };
        SyntaxError {
            message: format!("not valid JSON: {what}{cut}"),
            span: at..end,
            help: None,
        }
    }
    fn space(&mut self) {
        while matches!(self.bytes.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }
    fn eat(&mut self, c: u8) -> bool {
        let hit = self.bytes.get(self.at) == Some(&c);
        self.at += usize::from(hit);
        hit
    }
    fn value(&mut self, depth: usize) -> Result<Node, SyntaxError> {
        if depth > MAX_DEPTH {
            return Err(self.error(format!("more than {MAX_DEPTH} levels of nesting")));
        }
        let start = self.at;
        let value = match self.bytes.get(self.at) {
            Some(b'{') => self.object(depth)?,
            Some(b'[') => self.array(depth)?,
            Some(b'"') => Value::Text(self.string()?),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            _ => self.word()?,
        };
        Ok(Node {
            span: start..self.at,
            value,
        })
    }
    fn word(&mut self) -> Result<Value, SyntaxError> {
        for (w, v) in [
            ("null", Value::Null),
            ("true", Value::Bool(true)),
            ("false", Value::Bool(false)),
        ] {
            if self.text[self.at..].starts_with(w) {
                self.at += w.len();
                return Ok(v);
            }
        }
        Err(self.error("a value is expected here"))
    }
    fn object(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        self.at += 1;
        let mut out = Vec::new();
        let mut seen = HashSet::new();
        self.space();
        if self.eat(b'}') {
            return Ok(Value::Table(out));
        }
        loop {
            self.space();
            let start = self.at;
            if self.bytes.get(self.at) != Some(&b'"') {
                return Err(self.error("a key in double quotes is expected here"));
            }
            let name = self.string()?;
            if !seen.insert(name.clone()) {
                return Err(self.error_at(start, format!("the key `{name}` is there twice")));
            }
            let key = Key {
                span: start..self.at,
                name,
            };
            self.space();
            if !self.eat(b':') {
                return Err(self.error("`:` is expected here"));
            }
            self.space();
            let node = self.value(depth + 1)?;
            out.push((key, node));
            self.space();
            if self.eat(b'}') {
                return Ok(Value::Table(out));
            }
            if !self.eat(b',') {
                return Err(self.error("`,` or `}` is expected here"));
            }
        }
    }
    fn array(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        self.at += 1;
        let mut out = Vec::new();
        self.space();
        if self.eat(b']') {
            return Ok(Value::List(out));
        }
        loop {
            self.space();
            out.push(self.value(depth + 1)?);
            self.space();
            if self.eat(b']') {
                return Ok(Value::List(out));
            }
            if !self.eat(b',') {
                return Err(self.error("`,` or `]` is expected here"));
            }
        }
    }
    fn string(&mut self) -> Result<String, SyntaxError> {
        let start = self.at;
        self.at += 1;
        loop {
            match self.bytes.get(self.at) {
                None => return Err(self.error("a text is not closed")),
                Some(b'"') => {
                    self.at += 1;
                    break;
                }
                Some(b'\\') => self.at += 2,
                Some(0..=0x1f) => return Err(self.error("a control character stands in a text")),
                Some(_) => self.at += 1,
            }
        }
        // escapes, surrogate pairs included, are the JSON library's business
        self.text
            .get(start..self.at)
            .and_then(|s| serde_json::from_str(s).ok())
            .ok_or_else(|| self.error_at(start, "this text has a bad escape"))
    }
    fn number(&mut self) -> Result<Value, SyntaxError> {
        let start = self.at;
        while matches!(
            self.bytes.get(self.at),
            Some(b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')
        ) {
            self.at += 1;
        }
        let t = &self.text[start..self.at];
        let digits = t.strip_prefix('-').unwrap_or(t);
        if digits.bytes().all(|c| c.is_ascii_digit())
            && !digits.is_empty()
            && (digits == "0" || !digits.starts_with('0'))
        {
            return t
                .parse()
                .map(Value::Int)
                .map_err(|_| self.error_at(start, "the number is too large"));
        }
        let n: serde_json::Number = serde_json::from_str(t)
            .map_err(|_| self.error_at(start, format!("`{t}` is not a number")))?;
        n.as_f64()
            .map(Value::Float)
            .ok_or_else(|| self.error_at(start, "the number is too large"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Doc, Value};

    fn message(text: &str) -> String {
        Doc::parse("x.json", text).unwrap_err().to_string()
    }

    #[test]
    fn agrees_with_serde_json_on_what_it_takes() {
        let text = r#"{"a": [1, -2.5e3, true, null, "x\u00e9\n\ud83d\ude00"], "b": {"c": 0}}"#;
        let d = Doc::parse("x.json", text).unwrap();
        let theirs: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(d.root.value.to_json(), theirs);
        assert_eq!(
            d.root.get("b").unwrap().get("c").unwrap().value,
            Value::Int(0)
        );
    }

    #[test]
    fn hostile_texts_are_one_error_each() {
        for bad in [
            "",
            "{",
            "{\"a\":1,}",
            "[1 2]",
            "{\"a\":01}",
            "\"\\",
            "\"\\u12",
            "nul",
            "1e999",
            "{\"a\":1}x",
            "\u{1}",
            "{1:2}",
            "--1",
            "\"\u{7}\"",
        ] {
            assert!(message(bad).contains("not valid JSON"), "{bad}");
        }
        assert!(message("{\"a\":1,\n\"a\":2}").contains("x.json:2:1"));
        assert!(message(&"[".repeat(100_000)).contains("levels of nesting"));
        assert!(message("{\"a\": [1,").contains("cut off"));
    }
}
