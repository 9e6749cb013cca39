//! The tensors that a model's files hold, against the parameters that we count.

use std::collections::{BTreeMap, HashMap};
use tonnage_model::count::Counted;
use tonnage_model::readers::StoredTensor;
use tonnage_units::Count;

/// Tensors whose names differ in numbers alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// With `*` for the numbers.
    pub pattern: String,
    pub tensors: u64,
    pub elements: u64,
}

/// What the two have in common, and where they differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Our count.
    pub counted: u64,
    /// Elements in the files.
    pub stored: u64,
    /// Tensors in the files.
    pub tensors: u64,
    /// Buffers in the files: no parameters (masks, positions, running statistics).
    pub buffers: Vec<Group>,
    /// In the files a second time, under the name that shares it.
    pub tied: Vec<Group>,
    /// In the files, and no parameter of ours.
    pub extra: Vec<Group>,
    /// Parameters of ours, and not in the files.
    pub missing: Vec<Group>,
    /// Of another shape: name, ours, stored.
    pub shapes: Vec<(String, Vec<u64>, Vec<u64>)>,
}

/// Names of buffers that older checkpoints store.
const BUFFERS: [&str; 10] = [
    "rotary_emb.inv_freq",
    "attn.bias",
    "attn.masked_bias",
    "attention.bias",
    "attention.masked_bias",
    "position_ids",
    "token_type_ids",
    "running_mean",
    "running_var",
    "num_batches_tracked",
];

/// Compares a count with the headers.
pub fn compare(counted: &Counted, stored: &[StoredTensor]) -> Comparison {
    let ours: Vec<(&str, Vec<u64>)> = counted
        .inventory()
        .map(|t| {
            (
                t.name,
                t.shape.dims().iter().map(|d| u64::from(*d)).collect(),
            )
        })
        .collect();
    let known: HashMap<&str, usize> = ours.iter().enumerate().map(|(i, o)| (o.0, i)).collect();
    // older names of the same tensors
    let modern = |n: &str| match n.rsplit_once('.') {
        Some((m, "gamma")) => format!("{m}.weight"),
        Some((m, "beta")) => format!("{m}.bias"),
        _ => n.to_string(),
    };
    let names: Vec<String> = stored.iter().map(|t| modern(&t.name)).collect();
    // a model saved without its head has names without the base model's prefix, and the other way round
    let mut prefixes: Vec<&str> = ours.iter().filter_map(|o| o.0.split('.').next()).collect();
    prefixes.extend(names.iter().filter_map(|n| n.split('.').next()));
    prefixes.sort_unstable();
    prefixes.dedup();
    let find = |name: &str, prefix: &str| -> Option<usize> {
        let with = || known.get(format!("{prefix}.{name}").as_str());
        let without = || known.get(name.strip_prefix(prefix)?.strip_prefix('.')?);
        known.get(name).or_else(with).or_else(without).copied()
    };
    let hits = |prefix: &str| names.iter().filter(|n| find(n, prefix).is_some()).count();
    let prefix = prefixes
        .into_iter()
        .map(|p| (hits(p), p))
        .max_by_key(|(n, p)| (*n, std::cmp::Reverse(*p)))
        .map_or("", |(_, p)| p);

    let mut out = Comparison {
        counted: counted.total,
        stored: stored.iter().map(StoredTensor::elements).sum(),
        tensors: stored.len() as u64,
        ..Comparison::default()
    };
    let mut seen = vec![false; ours.len()];
    let (mut buffers, mut tied, mut extra) =
        (Groups::default(), Groups::default(), Groups::default());
    for (name, t) in names.iter().zip(stored) {
        match find(name, prefix) {
            Some(i) if !seen[i] => {
                seen[i] = true;
                if ours[i].1 != t.shape {
                    let elements: u64 = ours[i].1.iter().product();
                    // a packed or transposed tensor of the same size is the same parameter
                    if elements != t.elements() {
                        out.shapes
                            .push((t.name.clone(), ours[i].1.clone(), t.shape.clone()));
                    }
                }
            }
            Some(_) => tied.add(name, t.elements()),
            None if BUFFERS
                .iter()
                .any(|b| name == b || name.ends_with(&format!(".{b}"))) =>
            {
                buffers.add(name, t.elements());
            }
            None if is_tied(name, t, &ours) => tied.add(name, t.elements()),
            None => extra.add(name, t.elements()),
        }
    }
    let mut missing = Groups::default();
    for (o, _) in ours.iter().zip(&seen).filter(|(_, s)| !**s) {
        missing.add(o.0, o.1.iter().product());
    }
    out.buffers = buffers.list();
    out.tied = tied.list();
    out.extra = extra.list();
    out.missing = missing.list();
    out
}

/// An output matrix that is the embedding once more: ours has no such tensor, and the shapes are the same.
fn is_tied(name: &str, t: &StoredTensor, ours: &[(&str, Vec<u64>)]) -> bool {
    let heads = [
        "lm_head.weight",
        "decoder.weight",
        "embed_out.weight",
        "embed_tokens.weight",
        "vocab_projector.weight",
    ];
    let (embeddings, rank) = (
        [
            "embed_tokens.weight",
            "wte.weight",
            "word_embeddings.weight",
            "shared.weight",
            "embed_in.weight",
        ],
        t.shape.len(),
    );
    rank == 2
        && heads.iter().any(|h| name.ends_with(h))
        && !ours.iter().any(|o| o.0 == name)
        && ours
            .iter()
            .any(|o| o.1 == t.shape && embeddings.iter().any(|e| o.0.ends_with(e)))
}

#[derive(Default)]
struct Groups(BTreeMap<String, (u64, u64)>);

impl Groups {
    fn add(&mut self, name: &str, elements: u64) {
        let starred: Vec<&str> = name
            .split('.')
            .map(|p| {
                if p.bytes().all(|b| b.is_ascii_digit()) {
                    "*"
                } else {
                    p
                }
            })
            .collect();
        let e = self.0.entry(starred.join(".")).or_default();
        e.0 += 1;
        e.1 += elements;
    }
    fn list(self) -> Vec<Group> {
        let mut all: Vec<Group> = self
            .0
            .into_iter()
            .map(|(pattern, (tensors, elements))| Group {
                pattern,
                tensors,
                elements,
            })
            .collect();
        all.sort_by(|a, b| b.elements.cmp(&a.elements).then(a.pattern.cmp(&b.pattern)));
        all
    }
}

impl Comparison {
    /// Parameters in the files: without buffers and what is stored twice.
    pub fn stored_parameters(&self) -> u64 {
        let beside = |g: &[Group]| g.iter().map(|g| g.elements).sum::<u64>();
        self.stored - beside(&self.buffers) - beside(&self.tied)
    }

    /// The same number of parameters; their names may still differ.
    pub fn is_equal(&self) -> bool {
        self.stored_parameters() == self.counted
    }

    /// Every tensor has its counterpart.
    pub fn is_identical(&self) -> bool {
        self.is_equal()
            && self.extra.is_empty()
            && self.missing.is_empty()
            && self.shapes.is_empty()
    }

    /// The difference in a sentence that names tensors; None where the counts are equal.
    pub fn difference(&self) -> Option<String> {
        if self.is_equal() {
            return None;
        }
        let mut t = format!(
            "the safetensors headers hold {} parameters, {} are counted",
            Count(self.stored_parameters()).grouped(),
            Count(self.counted).grouped()
        );
        for (what, groups) in [
            ("only in the files", &self.extra),
            ("not in the files", &self.missing),
        ] {
            if !groups.is_empty() {
                t += &format!("; {what}: {}", named(groups));
            }
        }
        if let Some((name, ours, stored)) = self.shapes.first() {
            t += &format!("; {name} is {stored:?} in the files, {ours:?} by the configuration");
            match self.shapes.len() {
                1 => {}
                n => t += &format!(" (and {} more)", n - 1),
            }
        }
        Some(t)
    }
}

/// The first of these tensors by name.
pub(crate) fn named(groups: &[Group]) -> String {
    const FIRST: usize = 4;
    let mut list: Vec<String> = groups
        .iter()
        .take(FIRST)
        .map(|g| {
            let pattern: String = g
                .pattern
                .chars()
                .filter(|c| !c.is_control())
                .take(100)
                .collect();
            match g.tensors {
                1 => format!("{pattern} ({})", Count(g.elements).grouped()),
                n => format!("{pattern} ({n} tensors, {})", Count(g.elements).grouped()),
            }
        })
        .collect();
    if groups.len() > FIRST {
        list.push(format!("{} more", groups.len() - FIRST));
    }
    list.join(", ")
}
