//! Parameter counts from a configuration, through the components: never from a table.

use crate::describe::{self, Class, Described};
use crate::error::ModelError;
use crate::net::Net;
use serde_json::Value as Json;
use tonnage_units::ScalarType;

/// What a configuration's model consists of.
#[derive(Clone, Debug)]
pub struct Counted {
    pub model_type: String,
    /// Unique parameters (tied ones once).
    pub total: u64,
    /// Parameters of each class, those that are not there left out; they add up to `total`.
    pub by_class: Vec<(Class, u64)>,
    /// Parameters that work for one token: all but the experts that are not chosen.
    pub active: u64,
    /// The model's element type (`dtype`, or `torch_dtype` of older configurations), where the configuration says it.
    pub dtype: Option<ScalarType>,
    /// What a published checkpoint may hold beside the parameters: name and elements.
    pub surplus: Vec<(String, u64)>,
    /// What a published count may leave out (a pre-training head).
    pub omitted: Vec<(String, u64)>,
    described: Described,
}

/// A tensor of the inventory.
#[derive(Clone, Copy, Debug)]
pub struct TensorInfo<'a> {
    /// The full name.
    pub name: &'a str,
    pub shape: tonnage_sim::Shape,
    /// None where neither the model nor the configuration says it.
    pub dtype: Option<ScalarType>,
    pub class: Class,
}

impl TensorInfo<'_> {
    pub fn elements(&self) -> u64 {
        self.shape.numel()
    }
    /// Bytes, when the type is known.
    pub fn bytes(&self) -> Option<u64> {
        Some(self.elements() * self.dtype?.size())
    }
}

impl Counted {
    /// Every tensor once, in registration order.
    pub fn inventory(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        let d = &self.described;
        d.net
            .params
            .iter()
            .zip(&d.classes)
            .map(|(p, c)| TensorInfo {
                name: &p.name,
                shape: p.shape,
                dtype: p.dtype.or(self.dtype),
                class: *c,
            })
    }
    /// The module tree.
    pub fn net(&self) -> &Net {
        &self.described.net
    }
}

/// Counts the model of a configuration.
///
/// # Errors
/// A missing or unknown `model_type` (with the nearest known one), a missing or impossible field.
pub fn count(config: &Json) -> Result<Counted, ModelError> {
    let model_type = match config.get("model_type") {
        Some(Json::String(s)) => s.as_str(),
        Some(_) => return Err(ModelError::field("model_type", "must be a text")),
        None => {
            return Err(ModelError::field(
                "model_type",
                "is missing: it says which architecture this is",
            ));
        }
    };
    count_with(&describe::find(model_type)?, config)
}

/// Counts through a description given by the caller (a file of the user's).
///
/// # Errors
/// A missing or impossible field, a mistake in the description.
pub fn count_with(
    description: &describe::Description,
    config: &Json,
) -> Result<Counted, ModelError> {
    let described = describe::build(description, config)?;
    let mut sums = [0u64; Class::ALL.len()];
    for (p, class) in described.net.params.iter().zip(&described.classes) {
        sums[*class as usize] += p.shape.numel();
    }
    let dtype = ["dtype", "torch_dtype"]
        .into_iter()
        .find_map(|k| config.get(k)?.as_str())
        .and_then(|s| s.parse().ok());
    Ok(Counted {
        model_type: description.model_type.clone(),
        total: described.net.param_count(),
        by_class: Class::ALL
            .into_iter()
            .zip(sums)
            .filter(|(_, n)| *n > 0)
            .collect(),
        active: described.active_count(),
        dtype,
        surplus: described.surplus.clone(),
        omitted: described.omitted.clone(),
        described,
    })
}

/// A configuration to check, with the count that is known independently of it.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    pub id: &'a str,
    /// The text of `config.json`.
    pub config: &'a str,
    /// The number, and in words where it is from; None: there is no independent count.
    pub count: Option<(u64, &'a str)>,
}

/// One row of `models --check`.
#[derive(Clone, Debug)]
pub struct CheckRow {
    pub id: String,
    pub model_type: String,
    pub counted: Result<u64, ModelError>,
    pub known: Option<u64>,
    pub basis: Option<String>,
    /// What the known number holds beside the parameters, or leaves out (negative), each computed from the configuration as well.
    pub beside: Vec<(String, i64)>,
    /// `counted` and `beside` together are `known`.
    pub equal: bool,
}

/// The rows of `models --check`: those with an independent count first, then those without.
#[derive(Clone, Debug, Default)]
pub struct Check {
    pub known: Vec<CheckRow>,
    pub unknown: Vec<CheckRow>,
}

/// Counts every configuration and compares.
pub fn check<'a>(rows: impl IntoIterator<Item = Known<'a>>) -> Check {
    let mut out = Check::default();
    for row in rows {
        let config =
            serde_json::from_str::<Json>(row.config).map_err(|e| ModelError::Json(e.to_string()));
        let model_type = config
            .as_ref()
            .ok()
            .and_then(|c| c.get("model_type")?.as_str())
            .unwrap_or_default()
            .to_string();
        let counted = config.and_then(|c| count(&c));
        let beside = match (&counted, row.count) {
            (Ok(c), Some((known, _))) => explain(c, known as i64 - c.total as i64),
            _ => None,
        };
        let r = CheckRow {
            id: row.id.to_string(),
            model_type,
            counted: counted.map(|c| c.total),
            known: row.count.map(|(n, _)| n),
            basis: row.count.map(|(_, b)| b.to_string()),
            equal: beside.is_some(),
            beside: beside.unwrap_or_default(),
        };
        if row.count.is_some() {
            out.known.push(r)
        } else {
            out.unknown.push(r)
        }
    }
    out
}

/// The parts that add up to a difference: none for none.
fn explain(c: &Counted, difference: i64) -> Option<Vec<(String, i64)>> {
    let parts: Vec<(&String, i64)> = c
        .surplus
        .iter()
        .map(|(n, e)| (n, *e as i64))
        .chain(c.omitted.iter().map(|(n, e)| (n, -(*e as i64))))
        .collect();
    // a description names a handful; each subset is a different checkpoint that may exist
    let n = parts.len().min(8);
    (0u32..1 << n).find_map(|set| {
        let chosen = parts[..n]
            .iter()
            .enumerate()
            .filter(|(i, _)| set & (1 << i) != 0)
            .map(|(_, p)| p);
        let sum: i64 = chosen.clone().map(|p| p.1).sum();
        (sum == difference).then(|| chosen.map(|(n, e)| (n.to_string(), *e)).collect())
    })
}
