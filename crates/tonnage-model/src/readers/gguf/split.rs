//! Models in several files: `NAME-00001-of-00003.gguf` (llama.cpp v0.5.0, tools/gguf-split and `llama_split_path`).

use super::{Gguf, error};
use crate::readers::error::{Problem, ReadError};
use std::collections::HashSet;

/// The name of one file of a split model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitName {
    /// What stands before `-00001-of-00003.gguf`.
    pub prefix: String,
    /// From 0.
    pub no: u16,
    pub count: u16,
}

impl SplitName {
    /// None for a name that is not one of a split model.
    pub fn parse(file: &str) -> Option<SplitName> {
        let stem = file.strip_suffix(".gguf")?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (prefix, no) = rest.rsplit_once('-')?;
        let number = |s: &str| {
            let digits = s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| s.parse::<u16>().ok()).flatten()
        };
        let (no, count) = (number(no)?, number(count)?);
        (no >= 1 && no <= count).then(|| SplitName {
            prefix: prefix.to_string(),
            no: no - 1,
            count,
        })
    }

    /// The name of part `no`, from 0.
    pub fn of(&self, no: u16) -> String {
        let n = u32::from(no) + 1;
        format!("{}-{n:05}-of-{:05}.gguf", self.prefix, self.count)
    }
}

/// One model of all parts, in their order. A single whole file passes through.
///
/// # Errors
/// A part is missing, stands at another place, belongs to another split, or has a tensor that another part has too; the tensors are
/// not as many as the first part says.
pub fn merge(parts: Vec<Gguf>) -> Result<Gguf, ReadError> {
    let count = parts.len() as u64;
    let mut parts = parts.into_iter();
    let number = |g: &Gguf, key: &str| g.metadata.get(key).and_then(super::Value::as_u64);
    let wrong = |key: &str, found: Option<u64>, expected: u64| {
        let found = found.map_or("absent".to_string(), |n| n.to_string());
        error(
            key,
            Problem::Contradiction(format!("is {found}, expected {expected}")),
        )
    };
    let Some(mut all) = parts.next() else {
        return Err(error("", Problem::Missing));
    };
    let said = number(&all, "split.count").unwrap_or(1).max(1);
    if said != count {
        return Err(wrong("split.count", Some(said), count));
    }
    if said == 1 {
        return Ok(all);
    }
    if number(&all, "split.no") != Some(0) {
        return Err(wrong("split.no", number(&all, "split.no"), 0));
    }
    let mut names: HashSet<String> = all.tensors.iter().map(|t| t.name.clone()).collect();
    for (i, part) in parts.enumerate() {
        let no = i as u64 + 1;
        for (key, expected) in [("split.no", no), ("split.count", count)] {
            let found = number(&part, key);
            if found != Some(expected) {
                return Err(wrong(key, found, expected));
            }
        }
        for mut t in part.tensors {
            if !names.insert(t.name.clone()) {
                return Err(error(&t.name, Problem::DuplicateKey));
            }
            t.part = u16::try_from(no).unwrap_or(u16::MAX);
            all.tensors.push(t);
        }
        all.data_bytes = all.data_bytes.saturating_add(part.data_bytes);
    }
    let expected = number(&all, "split.tensors.count");
    let found = all.tensors.len() as u64;
    if expected != Some(found) {
        return Err(wrong("split.tensors.count", expected, found));
    }
    Ok(all)
}
