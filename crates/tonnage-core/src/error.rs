//! What can go wrong between a job and its footprint.

use tonnage_model::ModelError;

/// Why a job has no footprint.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CoreError {
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A combination that is not simulated; said by name, never approximated.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// An input that cannot be meant.
    #[error("{field}: {problem}")]
    Invalid { field: String, problem: String },
}
