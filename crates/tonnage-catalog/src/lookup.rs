//! Finding an entry by name: exact or not at all. An ambiguous name lists its candidates, an unknown one the nearest names.

/// Why a name did not lead to one entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// The name stands for several entries.
    #[error("{what} \"{name}\" is ambiguous: {}", candidates.join(", "))]
    Ambiguous {
        /// What was looked for ("GPU", "model", "instance").
        what: &'static str,
        /// The name as given.
        name: String,
        /// The ids it may mean, in catalog order.
        candidates: Vec<String>,
    },
    /// No entry has this name.
    #[error("no {what} is named \"{name}\"{}", hint(nearest))]
    Unknown {
        /// What was looked for ("GPU", "model", "instance").
        what: &'static str,
        /// The name as given.
        name: String,
        /// Up to three similar ids, nearest first; may be empty.
        nearest: Vec<String>,
    },
}

fn hint(nearest: &[String]) -> String {
    if nearest.is_empty() {
        String::new()
    } else {
        format!("; did you mean {}?", nearest.join(", "))
    }
}

/// Names longer than this are not compared for similarity (the comparison is quadratic).
const MAX_COMPARED: usize = 120;

/// Up to three ids whose names are nearest to `name` by edit distance (at most a third of its length, and at least 2).
pub(crate) fn nearest<'a>(
    name: &str,
    pairs: impl Iterator<Item = (&'a str, String)>,
) -> Vec<String> {
    let wanted: Vec<char> = name.chars().collect();
    if wanted.is_empty() || wanted.len() > MAX_COMPARED {
        return Vec::new();
    }
    let limit = (wanted.len() / 3).max(2);
    let mut found: Vec<(usize, String)> = Vec::new();
    for (key, id) in pairs {
        if key.len().abs_diff(name.len()) > 4 * limit {
            continue;
        }
        let d = distance(&wanted, key);
        if d > limit {
            continue;
        }
        match found.iter_mut().find(|(_, other)| *other == id) {
            Some(entry) => entry.0 = entry.0.min(d),
            None => found.push((d, id)),
        }
    }
    found.sort();
    found.truncate(3);
    found.into_iter().map(|(_, id)| id).collect()
}

/// Levenshtein distance in characters.
fn distance(a: &[char], b: &str) -> usize {
    let mut row: Vec<usize> = (0..=a.len()).collect();
    for (i, cb) in b.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &ca) in a.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[a.len()]
}

/// The rows under `key` in a table sorted by key, as a slice.
pub(crate) fn equal_range<'t>(
    table: &'t [(&'static str, u8, u16)],
    key: &str,
) -> &'t [(&'static str, u8, u16)] {
    let start = table.partition_point(|e| e.0 < key);
    let len = table[start..].partition_point(|e| e.0 == key);
    &table[start..start + len]
}
