//! What can be wrong with a stored format or the weight it is asked to store.
use crate::GgmlError;

/// Why a weight cannot be stored in a format, or a format's name not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The library needs whole groups, blocks or 32-bit words here.
    #[error("{format} needs {what} to be a multiple of {by}; {value} is not")]
    NotDivisible {
        format: String,
        /// What the value is: "in_features", "out_features", "values".
        what: &'static str,
        value: u64,
        by: u64,
    },
    /// A number of values alone does not say the bytes.
    #[error("{format} stores something for each row or group: give rows and columns")]
    NeedsMatrix { format: String },
    /// A setting outside of what the library takes.
    #[error("{format}: {setting} is {value}; it must be {allowed}")]
    Setting {
        format: String,
        setting: &'static str,
        value: u64,
        allowed: &'static str,
    },
    /// More bytes than 64 bits count.
    #[error("a weight of {rows} x {cols} has more bytes than 64 bits count")]
    Overflow { rows: u64, cols: u64 },
    /// A ggml type or row.
    #[error(transparent)]
    Ggml(#[from] GgmlError),
    /// A name that is not a format's.
    #[error("unknown stored format `{input}`{}", hint(.suggestion))]
    UnknownFormat {
        input: String,
        suggestion: Option<String>,
    },
    /// A part of a name that its format does not have.
    #[error("`{part}` in `{input}` is not a setting of {format}; write it like {example}")]
    UnknownPart {
        input: String,
        part: String,
        format: &'static str,
        example: &'static str,
    },
}

impl LayoutError {
    /// What to write instead, when there is one answer.
    pub fn suggestion(&self) -> Option<&str> {
        match self {
            LayoutError::UnknownFormat { suggestion, .. } => suggestion.as_deref(),
            LayoutError::UnknownPart { example, .. } => Some(example),
            LayoutError::Setting { allowed, .. } => Some(allowed),
            LayoutError::Ggml(GgmlError::UnknownName { suggestion, .. }) => *suggestion,
            LayoutError::Ggml(GgmlError::Mixture { mostly, .. }) => Some(mostly),
            LayoutError::Ggml(GgmlError::Removed { instead, .. }) => Some(instead),
            _ => None,
        }
    }
}

fn hint(suggestion: &Option<String>) -> String {
    match suggestion {
        Some(s) => format!("; did you mean {s}?"),
        None => String::new(),
    }
}
