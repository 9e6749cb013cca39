//! What can be wrong with a model or its settings.

/// Why there is no estimate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A key that the architecture needs.
    #[error("the file has no `{0}`")]
    MissingKey(String),
    /// A key whose value cannot be.
    #[error("`{key}`: {problem}")]
    BadKey { key: String, problem: String },
    /// A tensor that the architecture needs.
    #[error("missing tensor '{0}'")]
    MissingTensor(String),
    /// A tensor that does not fit the model.
    #[error("tensor '{name}' has wrong shape: {problem}")]
    WrongShape { name: String, problem: String },
    /// Not modelled here, although the engine may run it.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// The engine refuses it, with its own words.
    #[error("llama.cpp refuses: {0}")]
    Refused(String),
    /// A setting that cannot be.
    #[error("{field}: {problem}")]
    Setting {
        field: &'static str,
        problem: String,
    },
}
