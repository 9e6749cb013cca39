//! Models described in data: modules and tensors as expressions over configuration fields (`catalog/architectures/*.toml`).
//!
//! The format is documented in `catalog/architectures/README.md`.

pub mod build;
mod compile;
mod compile_attention;
pub mod eval;
pub mod expr;
pub mod format;
pub mod forward;
pub mod plan;
pub mod registry;
pub mod run;
mod verified;

pub use build::{Described, build};
pub use expr::Expr;
pub use format::{Class, Description};
pub use verified::is_verified;

use crate::arch::Built;
use crate::error::ModelError;
use std::rc::Rc;

/// The model of `description` over `config`, ready to load and to run.
///
/// # Errors
/// As [`build()`]; also where there is no forward section.
pub fn model(description: &Description, config: &serde_json::Value) -> Result<Built, ModelError> {
    let d = build(description, config)?;
    let Some(plan) = d.plan else {
        return Err(ModelError::Description {
            model_type: description.model_type.clone(),
            place: "forward".into(),
            problem:
                "is missing: without it the model can be counted, not run; add a [forward] section"
                    .into(),
        });
    };
    Ok(Built {
        net: d.net,
        arch: Rc::new(run::Model(plan)),
    })
}

/// The description of a `model_type`.
///
/// # Errors
/// [`ModelError::UnknownType`] with the nearest known name.
pub fn find(model_type: &str) -> Result<Description, ModelError> {
    match registry::text(model_type) {
        Some(text) if !model_type.starts_with('_') => Description::parse(text),
        _ => Err(unknown_type(model_type)),
    }
}

/// The error for a `model_type` that is not described.
pub fn unknown_type(model_type: &str) -> ModelError {
    let hint = tonnage_units::nearest(model_type, registry::model_types())
        .map(|n| format!("; did you mean `{n}`?"))
        .unwrap_or_default();
    ModelError::UnknownType {
        found: model_type.chars().take(80).collect(),
        hint,
    }
}
