//! Models described in data: modules and tensors as expressions over configuration fields (`catalog/architectures/*.toml`).
//!
//! The format is documented in `catalog/architectures/README.md`.

pub mod build;
pub mod eval;
pub mod expr;
pub mod format;
pub mod forward;
pub mod registry;

pub use build::{Described, build};
pub use expr::Expr;
pub use format::{Class, Description};

use crate::error::ModelError;

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
