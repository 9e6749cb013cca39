//! What can be wrong with a model's description.

/// An unusable configuration; says which field and what would help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    #[error(
        "model_type `{0}` has no forward pass here; its parameters can be counted, its training cannot be simulated"
    )]
    NoForward(String),
    #[error("unknown model_type `{found}`{hint}")]
    UnknownType { found: String, hint: String },
    #[error("{field}: {problem}")]
    Field { field: String, problem: String },
    #[error("not a valid configuration: {0}")]
    Json(String),
    /// A mistake in a description file or in its expressions.
    #[error("description of `{model_type}`, {place}: {problem}")]
    Description {
        model_type: String,
        place: String,
        problem: String,
    },
    #[error("{0} is not supported: {1}")]
    Unsupported(String, String),
}

impl ModelError {
    /// A complaint about one field.
    pub fn field(field: impl Into<String>, problem: impl Into<String>) -> ModelError {
        ModelError::Field {
            field: field.into(),
            problem: problem.into(),
        }
    }
}
