//! The embedded model configurations. Finding one is a binary search over a static table; its `config.json` is a slice
//! of one embedded text, so nothing else is read or parsed.

use crate::lookup::{LookupError, nearest};

static BLOB: &str = include_str!(concat!(env!("OUT_DIR"), "/models.blob"));
static MODELS: &[Model] = include!(concat!(env!("OUT_DIR"), "/models.rs"));
static SHORT: &[(&str, u16)] = include!(concat!(env!("OUT_DIR"), "/models_short.rs"));

/// One model of the table.
#[derive(Debug)]
pub struct Model {
    /// The hub id, e.g. `meta-llama/Llama-2-7b-hf`.
    pub id: &'static str,
    key: &'static str,
    offset: usize,
    len: usize,
    /// `model_type` of the configuration.
    pub model_type: &'static str,
    /// The checkpoint's element type as the hub names it, when known.
    pub torch_dtype: Option<&'static str>,
    /// Unique trainable parameters, tied weights counted once. Where [`Model::basis`] is computed, this is a calculation
    /// from the configuration and proves nothing about another one.
    pub params_exact: Option<u64>,
    /// How `params_exact` came about, in the words of the index.
    pub params_basis: Option<&'static str>,
    /// Elements of all tensors in the published checkpoint: may hold buffers, quantisation scales or stored tied weights.
    pub checkpoint_total: Option<u64>,
    /// Where the configuration is from and what of it was checked.
    pub source: &'static str,
    /// `high` or `medium`.
    pub confidence: &'static str,
}

/// What stands behind a parameter count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CountBasis {
    /// Equal to the number of elements in the published checkpoint.
    Checkpoint,
    /// Recorded as equal to a published total; the checkpoint's own element total is not at hand.
    Published,
    /// Recorded as equal to a published total, while the checkpoint's own total, also at hand, is another number (it
    /// holds buffers or a stored tied matrix, or leaves some out). The two are in `params_exact` and `checkpoint_total`.
    PublishedCheckpointDiffers,
    /// The published count of one component of a pipeline (a diffusion model's UNet, an image encoder).
    PublishedComponent,
    /// The element total of a checkpoint that holds more than the unique parameters; the index names the surplus
    /// (rotary `inv_freq` buffers, a stored tied head, FP8 scales). A count must be compared after adding that surplus.
    CheckpointWithSurplus,
}

/// A parameter count that does not come from the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownCount {
    /// The number. Unique trainable parameters, except for [`CountBasis::CheckpointWithSurplus`].
    pub count: u64,
    /// What stands behind it.
    pub basis: CountBasis,
}

impl Model {
    /// The text of `config.json`, without white space.
    pub fn config(&self) -> &'static str {
        &BLOB[self.offset..self.offset + self.len]
    }

    /// The count that is independent of the configuration, if there is one. A count "computed from config" with no
    /// total to compare is none.
    pub fn known_count(&self) -> Option<KnownCount> {
        let basis = self.params_basis?;
        let known = |count, basis| Some(KnownCount { count, basis });
        match (basis, self.params_exact, self.checkpoint_total) {
            ("computed from config; no independent total at hand", ..) => None,
            (
                "computed from config; equals the HF/safetensors or published total",
                Some(p),
                None,
            ) => known(p, CountBasis::Published),
            (
                "computed from config; equals the HF/safetensors or published total",
                Some(p),
                Some(c),
            ) => known(
                p,
                if p == c {
                    CountBasis::Checkpoint
                } else {
                    CountBasis::PublishedCheckpointDiffers
                },
            ),
            ("HF/safetensors total (not recomputed)", _, Some(c)) => {
                known(c, CountBasis::Checkpoint)
            }
            ("published count of the component", Some(p), _) => {
                known(p, CountBasis::PublishedComponent)
            }
            (b, _, Some(c)) if b.contains("; HF total differs: ") => {
                known(c, CountBasis::CheckpointWithSurplus)
            }
            _ => None,
        }
    }

    /// What the checkpoint holds beyond the unique parameters, in the words of the index.
    pub fn surplus(&self) -> Option<&'static str> {
        Some(self.params_basis?.split_once("; HF total differs: ")?.1)
    }
}

/// All models, sorted by lower-case id.
pub fn models() -> &'static [Model] {
    MODELS
}

/// The configuration of the model with exactly this id (case does not matter).
pub fn model_config(id: &str) -> Option<&'static str> {
    by_id(id).map(Model::config)
}

/// The model with exactly this id (case does not matter).
pub fn by_id(id: &str) -> Option<&'static Model> {
    let key = id.trim().to_lowercase();
    MODELS
        .binary_search_by(|m| m.key.cmp(key.as_str()))
        .ok()
        .map(|n| &MODELS[n])
}

/// The model with this id, or with this name after its organisation's slash.
///
/// # Errors
/// [`LookupError::Ambiguous`] when several organisations have a model of that name, [`LookupError::Unknown`] otherwise.
pub fn model(name: &str) -> Result<&'static Model, LookupError> {
    if let Some(found) = by_id(name) {
        return Ok(found);
    }
    let key = name.trim().to_lowercase();
    let hits = same_name(SHORT, &key);
    match hits {
        [(_, n)] => Ok(&MODELS[usize::from(*n)]),
        [] => Err(LookupError::Unknown {
            what: "model",
            name: name.to_owned(),
            nearest: if key.contains('/') {
                nearest(&key, MODELS.iter().map(|m| (m.key, m.id.to_owned())))
            } else {
                nearest(
                    &key,
                    SHORT
                        .iter()
                        .map(|(s, n)| (*s, MODELS[usize::from(*n)].id.to_owned())),
                )
            },
        }),
        many => Err(LookupError::Ambiguous {
            what: "model",
            name: name.to_owned(),
            candidates: many
                .iter()
                .map(|(_, n)| MODELS[usize::from(*n)].id.to_owned())
                .collect(),
        }),
    }
}

/// The entries of a table sorted by name that have this name.
fn same_name<'t>(table: &'t [(&'static str, u16)], key: &str) -> &'t [(&'static str, u16)] {
    let start = table.partition_point(|e| e.0 < key);
    let len = table[start..].partition_point(|e| e.0 == key);
    &table[start..start + len]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_name_of_two_organisations_is_ambiguous() {
        let table = [("alpha", 0), ("beta", 1), ("beta", 2), ("gamma", 3)];
        assert_eq!(same_name(&table, "beta").len(), 2);
        assert_eq!(same_name(&table, "alpha").len(), 1);
        assert!(same_name(&table, "bet").is_empty());
        assert!(same_name(&table, "zeta").is_empty());
    }
}
