//! Settings by name, and their values: what is accepted, and what to write instead.

use super::settings::{Kind, SETTINGS, Setting};
use crate::doc::Value;
use tonnage_model::stack::Version;
use tonnage_units::nearest;

/// The setting of this key.
pub fn setting(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|s| s.key == key)
}

/// The setting that a sweep or an `uncertain` entry names: the full key, its last part, or its flag.
///
/// # Errors
/// What to write instead.
pub fn find(name: &str) -> Result<&'static Setting, String> {
    let last = |k: &'static str| k.rsplit('.').next().unwrap_or(k);
    let mut hits = SETTINGS.iter().filter(|s| s.key == name);
    if let Some(s) = hits.next() {
        return Ok(s);
    }
    let hits: Vec<_> = SETTINGS
        .iter()
        .filter(|s| last(s.key) == name || s.flag == name || s.also.contains(&name))
        .collect();
    match hits[..] {
        [one] => Ok(one),
        [] => {
            let near = nearest(name, SETTINGS.iter().flat_map(|s| [s.key, last(s.key)]));
            Err(format!(
                "no setting is named `{name}`{}",
                near.map(|n| format!(", did you mean `{n}`?"))
                    .unwrap_or_default()
            ))
        }
        _ => Err(format!(
            "`{name}` could be {}",
            hits.iter()
                .map(|s| format!("`{}`", s.key))
                .collect::<Vec<_>>()
                .join(" or ")
        )),
    }
}

impl Setting {
    /// The key within its table.
    pub fn local(&self) -> &'static str {
        self.key.rsplit('.').next().unwrap_or(self.key)
    }
    /// The table, empty for a top-level key.
    pub fn table(&self) -> &'static str {
        self.key.split_once('.').map_or("", |(t, _)| t)
    }
    /// `--seq-len N`, or the key where there is no flag.
    pub fn how_to_change(&self) -> String {
        if self.flag.is_empty() {
            return format!("`{}` in the job file", self.key);
        }
        match self.kind {
            Kind::Choice(c) if c.len() > 6 => format!("--{} NAME", self.flag),
            Kind::Choice(c) => format!(
                "--{} {}",
                self.flag,
                c.iter().map(|(n, _)| *n).collect::<Vec<_>>().join("|")
            ),
            Kind::Bool => format!("--{} true|false", self.flag),
            Kind::Count(_) | Kind::Number => format!("--{} N", self.flag),
            Kind::Version => format!("--{} VERSION", self.flag),
            _ => format!("--{} ...", self.flag),
        }
    }

    /// Checks a value from a file and normalises it.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn accept(&self, v: &Value) -> Result<Value, String> {
        let wanted = |w: &str| {
            Err(format!(
                "`{}` is {w}, not {} ({})",
                self.local(),
                v.kind(),
                v.shown()
            ))
        };
        match (self.kind, v) {
            (Kind::Count(min), Value::Int(i)) => {
                if *i < i128::from(min) {
                    return Err(format!("`{}` is at least {min}, not {i}", self.local()));
                }
                if *i > i128::from(u32::MAX) {
                    return Err(format!("`{}` is {i}: no job is that large", self.local()));
                }
                Ok(v.clone())
            }
            (Kind::Count(_), _) => wanted("a whole number"),
            (Kind::Number, Value::Int(i)) if *i >= 0 => Ok(Value::Float(*i as f64)),
            (Kind::Number, Value::Float(f)) if f.is_finite() && *f >= 0.0 => Ok(v.clone()),
            (Kind::Number, _) => wanted("a number of at least 0"),
            (Kind::Bool, Value::Bool(_)) => Ok(v.clone()),
            (Kind::Bool, _) => wanted("true or false"),
            (Kind::Choice(choices), Value::Text(_) | Value::Bool(_)) => {
                let word = match v {
                    Value::Bool(b) => b.to_string(),
                    Value::Text(t) => t.clone(),
                    _ => String::new(),
                };
                let hit = choices
                    .iter()
                    .find(|(n, also)| word == *n || (!also.is_empty() && word == *also));
                hit.map(|(n, _)| Value::Text((*n).into())).ok_or_else(|| {
                    let names: Vec<_> = choices.iter().map(|(n, _)| *n).collect();
                    let near = nearest(&word, names.iter().copied())
                        .map(|n| format!("; did you mean `{n}`?"))
                        .unwrap_or_default();
                    format!(
                        "`{}` is one of {}, not {}{near}",
                        self.local(),
                        names.join(", "),
                        v.shown()
                    )
                })
            }
            (Kind::Choice(c), _) => wanted(&format!(
                "one of {}",
                c.iter().map(|(n, _)| *n).collect::<Vec<_>>().join(", ")
            )),
            (Kind::Text, Value::Text(t)) if !t.is_empty() => Ok(v.clone()),
            (Kind::Text, _) => wanted("text"),
            (Kind::Texts, Value::Text(_)) => Ok(Value::List(vec![crate::doc::Node {
                span: 0..0,
                value: v.clone(),
            }])),
            (Kind::Texts, Value::List(l))
                if !l.is_empty() && l.iter().all(|n| n.text().is_some()) =>
            {
                Ok(v.clone())
            }
            (Kind::Texts, _) => wanted("a list of texts"),
            (Kind::Version, Value::Text(t)) if Version::parse(t).is_some() => Ok(v.clone()),
            (Kind::Version, _) => wanted("a version such as \"2.11.0\""),
            (Kind::Table, Value::Table(_)) => Ok(v.clone()),
            (Kind::Table, _) => wanted("a table"),
        }
    }

    /// Reads a value from the command line.
    ///
    /// # Errors
    /// As [`Setting::accept`].
    pub fn parse(&self, text: &str) -> Result<Value, String> {
        let v = match self.kind {
            Kind::Count(_) => text
                .parse()
                .map(Value::Int)
                .unwrap_or_else(|_| Value::Text(text.into())),
            Kind::Number => text
                .parse()
                .map(Value::Float)
                .unwrap_or_else(|_| Value::Text(text.into())),
            Kind::Bool => text
                .parse()
                .map(Value::Bool)
                .unwrap_or_else(|_| Value::Text(text.into())),
            Kind::Texts => Value::List(
                text.split(',')
                    .map(|t| crate::doc::Node {
                        span: 0..0,
                        value: Value::Text(t.trim().into()),
                    })
                    .collect(),
            ),
            _ => Value::Text(text.into()),
        };
        self.accept(&v)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_accepted_and_names_are_unique() {
        let mut keys = std::collections::BTreeSet::new();
        let mut flags = std::collections::BTreeSet::new();
        for s in SETTINGS {
            assert!(keys.insert(s.key), "{}", s.key);
            assert!(s.flag.is_empty() || flags.insert(s.flag), "{}", s.flag);
            if let Some(d) = s.default {
                s.parse(d).unwrap_or_else(|e| panic!("{}: {e}", s.key));
            }
        }
    }

    #[test]
    fn a_wrong_value_says_what_is_right() {
        let e = find("precision").unwrap().parse("bf16_mixed").unwrap_err();
        assert!(e.contains("did you mean `bf16-mixed`?"), "{e}");
        assert!(
            find("seq_len")
                .unwrap()
                .parse("-3")
                .unwrap_err()
                .contains("at least 1")
        );
        assert!(find("seq_lne").unwrap_err().contains("`seq_len`"));
        assert_eq!(
            find("gradient_checkpointing")
                .unwrap()
                .accept(&Value::Bool(true)),
            Ok(Value::Text("full".into()))
        );
    }
}
