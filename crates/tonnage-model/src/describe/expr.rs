//! The expressions of a description: whole numbers, fractions, booleans, text and lists over configuration fields.
//!
//! Sizes are exact: `/` of whole numbers must leave no remainder, every operation is checked for overflow, and a mistake is an
//! error with the text of the expression, never a number.

use serde::Deserialize;

/// A parsed expression with its source text.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    pub text: String,
    pub(super) node: Node,
}

/// The tree of an expression.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Name(String),
    Member(Box<Node>, String),
    Index(Box<Node>, Box<Node>),
    Call(String, Vec<Node>),
    Not(Box<Node>),
    Neg(Box<Node>),
    Binary(Op, Box<Node>, Box<Node>),
    If(Box<Node>, Box<Node>, Box<Node>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Or,
    And,
    Else,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Rem,
}

/// Longest expression text, in bytes.
const MAX_TEXT: usize = 2000;
/// Deepest nesting of an expression.
const MAX_DEPTH: usize = 40;

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Int(i64),
    Float(f64),
    Text(String),
    Word(String),
    Sign(&'static str),
}

const SIGNS: [&str; 23] = [
    "??", "//", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "<", ">", "(", ")", "[", "]", ",",
    ".", "?", ":", "=", "!",
];

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut out = Vec::new();
    let mut rest = text;
    'next: while let Some(c) = rest.chars().next() {
        if c.is_whitespace() {
            rest = &rest[c.len_utf8()..];
        } else if c.is_ascii_digit() {
            let mut end = rest
                .bytes()
                .take_while(|b| b.is_ascii_digit() || *b == b'_')
                .count();
            let fraction = rest[end..]
                .strip_prefix('.')
                .map_or(0, |r| r.bytes().take_while(u8::is_ascii_digit).count());
            let number = if fraction > 0 {
                end += 1 + fraction;
                rest[..end].parse().ok().map(Token::Float)
            } else {
                rest[..end].replace('_', "").parse().ok().map(Token::Int)
            };
            out.push(number.ok_or_else(|| format!("`{}` is not a number", &rest[..end]))?);
            rest = &rest[end..];
        } else if c == '_' || c.is_ascii_alphabetic() {
            let end = rest
                .bytes()
                .take_while(|b| *b == b'_' || b.is_ascii_alphanumeric())
                .count();
            out.push(Token::Word(rest[..end].to_string()));
            rest = &rest[end..];
        } else if c == '\'' {
            let end = rest[1..].find('\'').ok_or("a quote is not closed")?;
            out.push(Token::Text(rest[1..=end].to_string()));
            rest = &rest[end + 2..];
        } else {
            for s in SIGNS {
                if let Some(r) = rest.strip_prefix(s) {
                    out.push(Token::Sign(s));
                    rest = r;
                    continue 'next;
                }
            }
            return Err(format!("`{c}` has no meaning here"));
        }
    }
    Ok(out)
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

/// Binary operators by binding strength, loosest first.
const LEVELS: [&[(&str, Op)]; 5] = [
    &[("or", Op::Or)],
    &[("and", Op::And)],
    &[
        ("==", Op::Eq),
        ("!=", Op::Ne),
        ("<=", Op::Le),
        (">=", Op::Ge),
        ("<", Op::Lt),
        (">", Op::Gt),
        ("in", Op::In),
    ],
    &[("??", Op::Else)],
    &[("+", Op::Add), ("-", Op::Sub)],
];
const FACTORS: &[(&str, Op)] = &[
    ("*", Op::Mul),
    ("//", Op::FloorDiv),
    ("/", Op::Div),
    ("%", Op::Rem),
];

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }
    fn take(&mut self, s: &str) -> bool {
        let hit = match self.peek() {
            Some(Token::Sign(x)) => *x == s,
            Some(Token::Word(w)) => w == s,
            _ => false,
        };
        self.at += usize::from(hit);
        hit
    }
    fn need(&mut self, s: &str) -> Result<(), String> {
        if self.take(s) {
            Ok(())
        } else {
            Err(format!("`{s}` is missing"))
        }
    }
    fn expr(&mut self) -> Result<Node, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("nested too deeply".into());
        }
        let c = self.level(0)?;
        let node = if self.take("?") {
            let yes = self.expr()?;
            self.need(":")?;
            Node::If(Box::new(c), Box::new(yes), Box::new(self.expr()?))
        } else {
            c
        };
        self.depth -= 1;
        Ok(node)
    }
    fn level(&mut self, n: usize) -> Result<Node, String> {
        let ops = if n < LEVELS.len() { LEVELS[n] } else { FACTORS };
        let operand = |p: &mut Parser| {
            if n < LEVELS.len() {
                p.level(n + 1)
            } else {
                p.unary()
            }
        };
        let mut left = operand(self)?;
        while let Some((_, op)) = ops.iter().find(|(s, _)| self.take(s)) {
            left = Node::Binary(*op, Box::new(left), Box::new(operand(self)?));
        }
        Ok(left)
    }
    fn unary(&mut self) -> Result<Node, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("nested too deeply".into());
        }
        let node = if self.take("not") {
            Node::Not(Box::new(self.unary()?))
        } else if self.take("-") {
            Node::Neg(Box::new(self.unary()?))
        } else {
            self.postfix()?
        };
        self.depth -= 1;
        Ok(node)
    }
    fn postfix(&mut self) -> Result<Node, String> {
        let mut node = self.primary()?;
        loop {
            if self.take(".") {
                let Some(Token::Word(w)) = self.peek().cloned() else {
                    return Err("a field's name is missing after `.`".into());
                };
                self.at += 1;
                node = Node::Member(Box::new(node), w);
            } else if self.take("[") {
                let i = self.expr()?;
                self.need("]")?;
                node = Node::Index(Box::new(node), Box::new(i));
            } else {
                return Ok(node);
            }
        }
    }
    fn primary(&mut self) -> Result<Node, String> {
        if self.take("(") {
            let e = self.expr()?;
            self.need(")")?;
            return Ok(e);
        }
        if self.take("[") {
            return Ok(Node::List(self.list("]")?));
        }
        let token = self
            .peek()
            .cloned()
            .ok_or("the expression ends too early")?;
        self.at += 1;
        Ok(match token {
            Token::Int(i) => Node::Int(i),
            Token::Float(x) => Node::Float(x),
            Token::Text(s) => Node::Text(s),
            Token::Sign(s) => return Err(format!("`{s}` is not expected here")),
            Token::Word(w) => match w.as_str() {
                "true" => Node::Bool(true),
                "false" => Node::Bool(false),
                "null" => Node::Null,
                _ if self.take("(") => Node::Call(w, self.list(")")?),
                _ => Node::Name(w),
            },
        })
    }
    fn list(&mut self, end: &str) -> Result<Vec<Node>, String> {
        let mut items = Vec::new();
        if self.take(end) {
            return Ok(items);
        }
        loop {
            items.push(self.expr()?);
            if self.take(end) {
                return Ok(items);
            }
            self.need(",")?;
        }
    }
}

impl Expr {
    /// Parses one expression.
    ///
    /// # Errors
    /// What is wrong with the text, in words.
    pub fn parse(text: &str) -> Result<Expr, String> {
        if text.len() > MAX_TEXT {
            return Err(format!("an expression of {} bytes is too long", text.len()));
        }
        let mut p = Parser {
            tokens: tokens(text)?,
            at: 0,
            depth: 0,
        };
        let node = p.expr()?;
        if p.at < p.tokens.len() {
            return Err("something follows the end of the expression".into());
        }
        Ok(Expr {
            text: text.to_string(),
            node,
        })
    }
}

impl<'de> Deserialize<'de> for Expr {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Expr, D::Error> {
        struct Visit;
        impl serde::de::Visitor<'_> for Visit {
            type Value = Expr;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a number, a boolean or an expression in quotes")
            }
            fn visit_str<E: serde::de::Error>(self, s: &str) -> Result<Expr, E> {
                Expr::parse(s).map_err(|e| E::custom(format!("in `{s}`: {e}")))
            }
            fn visit_i64<E: serde::de::Error>(self, i: i64) -> Result<Expr, E> {
                Ok(Expr {
                    text: i.to_string(),
                    node: Node::Int(i),
                })
            }
            fn visit_u64<E: serde::de::Error>(self, i: u64) -> Result<Expr, E> {
                i64::try_from(i)
                    .map_err(|_| E::custom("too large"))
                    .and_then(|i| self.visit_i64(i))
            }
            fn visit_bool<E: serde::de::Error>(self, b: bool) -> Result<Expr, E> {
                Ok(Expr {
                    text: b.to_string(),
                    node: Node::Bool(b),
                })
            }
            fn visit_f64<E: serde::de::Error>(self, x: f64) -> Result<Expr, E> {
                Ok(Expr {
                    text: x.to_string(),
                    node: Node::Float(x),
                })
            }
        }
        d.deserialize_any(Visit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binding_is_as_in_arithmetic() {
        let a = Expr::parse("a ?? b / c + 1 == 2 and not d").unwrap().node;
        let b = Expr::parse("((a ?? ((b / c) + 1)) == 2) and (not d)")
            .unwrap()
            .node;
        assert_eq!(a, b);
    }

    #[test]
    fn bad_text_is_an_error_with_words() {
        for (text, words) in [
            ("", "ends too early"),
            ("1 +", "ends too early"),
            ("(1", "`)` is missing"),
            ("a ? 1", "`:` is missing"),
            ("1 2", "follows the end"),
            ("99999999999999999999", "not a number"),
            ("'open", "not closed"),
            ("a $ b", "no meaning"),
            ("a.1", "after `.`"),
        ] {
            let e = Expr::parse(text).unwrap_err();
            assert!(e.contains(words), "{text}: {e}");
        }
        assert!(Expr::parse(&"(".repeat(500)).unwrap_err().contains("deep"));
        assert!(Expr::parse(&"-".repeat(500)).unwrap_err().contains("deep"));
        assert!(
            Expr::parse(&"1+".repeat(1500))
                .unwrap_err()
                .contains("too long")
        );
    }
}
