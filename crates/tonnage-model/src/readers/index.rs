//! `model.safetensors.index.json`: which tensor is in which file.

use super::error::{Format, Problem, ReadError};
use super::json::{Limits, Parser};
use super::safetensors::{Header, StoredTensor};
use std::collections::{BTreeMap, HashMap};

/// Limits of an index; the largest published ones have 250,000 tensors.
pub const LIMITS: Limits = Limits {
    bytes: 128 << 20,
    depth: 16,
    values: 4_000_000,
};

/// Most files of one model.
const MAX_SHARDS: u64 = 10_000;

/// The files of a model and the tensors of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// `metadata.total_size`: bytes of all tensors.
    pub total_size: Option<u64>,
    /// File names, sorted.
    pub shards: Vec<String>,
    /// Tensor and the number of its file in [`Index::shards`], sorted by name.
    pub tensors: Vec<(String, u32)>,
}

/// Reads an index.
///
/// # Errors
/// A mistake in the JSON, a tensor that stands twice, a file name that leads elsewhere.
pub fn parse(bytes: &[u8]) -> Result<Index, ReadError> {
    let mut p = Parser::new(Format::SafetensorsIndex, bytes, LIMITS)?;
    let mut total_size = None;
    let mut map: Option<Vec<(String, u32)>> = None;
    let mut shards: HashMap<String, u32> = HashMap::new();
    p.object("", &mut |p, key, at| match key.as_str() {
        "metadata" => p.object("metadata", &mut |p, key, at| {
            if key != "total_size" {
                return p.skip("metadata");
            }
            if total_size.is_some() {
                return Err(p.error_at(at, "metadata.total_size", Problem::DuplicateKey));
            }
            total_size = Some(size(p)?);
            Ok(())
        }),
        "weight_map" if map.is_some() => Err(p.error_at(at, "weight_map", Problem::DuplicateKey)),
        "weight_map" => {
            map = Some(weight_map(p, &mut shards)?);
            Ok(())
        }
        other => p.skip(other),
    })?;
    p.end()?;
    let Some(mut tensors) = map else {
        return Err(ReadError {
            format: Format::SafetensorsIndex,
            at: None,
            field: "weight_map".into(),
            problem: Problem::Missing,
        });
    };
    tensors.sort();
    if let Some(w) = tensors.windows(2).find(|w| w[0].0 == w[1].0) {
        return Err(ReadError {
            format: Format::SafetensorsIndex,
            at: None,
            field: format!("weight_map.{}", w[0].0),
            problem: Problem::DuplicateKey,
        });
    }
    // numbers of files by their sorted names
    let mut names: Vec<(String, u32)> = shards.into_iter().collect();
    names.sort();
    let mut renumbered = vec![0; names.len()];
    for (new, (_, old)) in names.iter().enumerate() {
        renumbered[*old as usize] = new as u32;
    }
    for t in &mut tensors {
        t.1 = renumbered[t.1 as usize];
    }
    Ok(Index {
        total_size,
        shards: names.into_iter().map(|(n, _)| n).collect(),
        tensors,
    })
}

/// Some writers give the total as `1.6e10`.
fn size(p: &mut Parser) -> Result<u64, ReadError> {
    let field = "metadata.total_size";
    let mut d = super::json::Document::default();
    let found = p.found();
    let at = p.position();
    let value = p.value(field, &mut d)?;
    let whole = value.as_u64().or_else(|| {
        value
            .as_f64()
            .filter(|x| x.fract() == 0.0 && (0.0..9e15).contains(x))
            .map(|x| x as u64)
    });
    let expected = "a whole number of bytes";
    whole.ok_or_else(|| p.error_at(at, field, Problem::WrongType { expected, found }))
}

fn weight_map(
    p: &mut Parser,
    shards: &mut HashMap<String, u32>,
) -> Result<Vec<(String, u32)>, ReadError> {
    let mut out = Vec::new();
    p.object("weight_map", &mut |p, name, _| {
        let at = p.position();
        if !p.at_string() {
            let (expected, found) = ("the name of a file", p.found());
            return Err(p.error(&name, Problem::WrongType { expected, found }));
        }
        let file = p.string(&name)?;
        // a name is joined to the model's folder or address: it must not lead out of it
        let plain = !file.is_empty()
            && file.len() <= 255
            && file != "."
            && file != ".."
            && !file.contains(['/', '\\', '\0', ':'])
            && !file.contains(char::is_control);
        if !plain {
            let shown: String = file.chars().take(80).collect();
            let problem = format!("{shown:?} is not the plain name of a file");
            return Err(p.error_at(at, &name, Problem::Contradiction(problem)));
        }
        let next = shards.len() as u32;
        let number = *shards.entry(file).or_insert(next);
        if u64::from(number) >= MAX_SHARDS {
            let (what, most) = ("files", MAX_SHARDS);
            return Err(p.error(&name, Problem::TooMany { what, most }));
        }
        out.push((name, number));
        Ok(())
    })?;
    Ok(out)
}

impl Index {
    /// All tensors, from the headers of the files by their names.
    ///
    /// # Errors
    /// A file without header, a tensor that only one of index and header knows, a total that is not the sum.
    pub fn inventory<'h>(
        &self,
        headers: &'h BTreeMap<String, Header>,
    ) -> Result<Vec<&'h StoredTensor>, ReadError> {
        let error = |field: &str, problem: String| ReadError {
            format: Format::SafetensorsIndex,
            at: None,
            field: field.to_string(),
            problem: Problem::Contradiction(problem),
        };
        let mut found: HashMap<&str, (u32, &'h StoredTensor)> = HashMap::new();
        for (n, shard) in self.shards.iter().enumerate() {
            let header = headers
                .get(shard)
                .ok_or_else(|| error(shard, "this file's header is missing".into()))?;
            for t in &header.tensors {
                if let Some((other, _)) = found.insert(&t.name, (n as u32, t)) {
                    let other = &self.shards[other as usize];
                    return Err(error(&t.name, format!("it is in {other} and in {shard}")));
                }
            }
        }
        let mut out = Vec::with_capacity(self.tensors.len());
        for (name, shard) in &self.tensors {
            let file = &self.shards[*shard as usize];
            match found.remove(name.as_str()) {
                Some((n, t)) if n == *shard => out.push(t),
                Some((n, _)) => {
                    let there = &self.shards[n as usize];
                    return Err(error(
                        name,
                        format!("the index says {file}, it is in {there}"),
                    ));
                }
                None => {
                    return Err(error(
                        name,
                        format!("the index says {file}, it is not there"),
                    ));
                }
            }
        }
        if let Some(name) = found.keys().min() {
            return Err(error(
                name,
                "a file holds it, the index does not name it".into(),
            ));
        }
        let sum: u64 = out.iter().map(|t| t.bytes()).sum();
        match self.total_size {
            Some(total) if total != sum => Err(error(
                "metadata.total_size",
                format!("{total} is not the sum of the tensors, {sum}"),
            )),
            _ => Ok(out),
        }
    }
}
