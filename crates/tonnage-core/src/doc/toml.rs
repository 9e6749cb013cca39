//! TOML with places.

use super::{Key, MAX_DEPTH, Node, SyntaxError, Value};
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    let root = DeTable::parse(text).map_err(|e| {
        let span = e.span().unwrap_or(0..0);
        let word = text.get(span.clone()).unwrap_or("");
        let line = text[..span.start.min(text.len())]
            .rfind('\n')
            .map_or(0, |i| i + 1);
        let rest = text[line..].lines().next().unwrap_or("");
        let null = ["null", "None", "nil"].into_iter().find(|n| {
            word.starts_with(n) || rest.split_once('=').is_some_and(|(_, v)| v.trim() == *n)
        });
        SyntaxError {
            message: match null {
                Some(n) => format!("not valid TOML: `{n}` is not a TOML value"),
                None => format!(
                    "not valid TOML: {}",
                    e.message().lines().next().unwrap_or("")
                ),
            },
            span,
            help: null.map(|_| "leave the key out, or give it an empty text: \"\"".into()),
        }
    })?;
    let span = root.span();
    Ok(Node {
        span: span.clone(),
        value: table(root.get_ref(), &span, 0)?,
    })
}

fn table(
    t: &DeTable<'_>,
    span: &std::ops::Range<usize>,
    depth: usize,
) -> Result<Value, SyntaxError> {
    if depth > MAX_DEPTH {
        return Err(SyntaxError {
            message: format!("more than {MAX_DEPTH} levels of nesting"),
            span: span.clone(),
            help: None,
        });
    }
    let mut out = t
        .iter()
        .map(|(k, v)| entry(k, v, depth))
        .collect::<Result<Vec<_>, _>>()?;
    out.sort_by_key(|(k, _)| k.span.start);
    Ok(Value::Table(out))
}

fn entry(
    k: &Spanned<DeString<'_>>,
    v: &Spanned<DeValue<'_>>,
    depth: usize,
) -> Result<(Key, Node), SyntaxError> {
    Ok((
        Key {
            span: k.span(),
            name: k.get_ref().to_string(),
        },
        node(v, depth + 1)?,
    ))
}

fn node(v: &Spanned<DeValue<'_>>, depth: usize) -> Result<Node, SyntaxError> {
    let span = v.span();
    let bad = |what: &str| SyntaxError {
        message: format!("not valid TOML: {what}"),
        span: span.clone(),
        help: None,
    };
    let value = match v.get_ref() {
        DeValue::String(s) => Value::Text(s.to_string()),
        DeValue::Integer(i) => Value::Int(
            i128::from_str_radix(&i.as_str().replace('_', ""), i.radix())
                .map_err(|_| bad("the number is too large"))?,
        ),
        DeValue::Float(f) => Value::Float(
            f.as_str()
                .replace('_', "")
                .parse()
                .map_err(|_| bad("not a number"))?,
        ),
        DeValue::Boolean(b) => Value::Bool(*b),
        DeValue::Datetime(d) => Value::Text(d.to_string()),
        DeValue::Array(a) => {
            if depth > MAX_DEPTH {
                return Err(bad("too many levels of nesting"));
            }
            Value::List(
                a.iter()
                    .map(|n| node(n, depth + 1))
                    .collect::<Result<_, _>>()?,
            )
        }
        DeValue::Table(t) => table(t, &span, depth)?,
    };
    Ok(Node { span, value })
}
