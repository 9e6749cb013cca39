//! What can be wrong with a written amount.

/// Why a written amount was refused. Every variant's message says what to write instead;
/// [`UnitError::suggestion`] is that alone, ready for a diagnostic's help line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Nothing was written.
    #[error("empty amount; write {example}")]
    Empty { example: &'static str },
    /// A number without a unit, where only a unit says what it means.
    #[error("`{input}` has no unit; write {suggestion}")]
    MissingUnit { input: String, suggestion: String },
    /// A unit that is not one of ours.
    #[error("unknown unit `{unit}`{}", hint(.suggestion, " (one of B, kB, MB, GB, TB, KiB, MiB, GiB, TiB)"))]
    UnknownUnit {
        unit: String,
        suggestion: Option<String>,
    },
    /// A suffix of a count that is not one of ours.
    #[error("unknown suffix `{suffix}`{}", hint(.suggestion, " (one of K, M, B, T)"))]
    UnknownSuffix {
        suffix: String,
        suggestion: Option<String>,
    },
    /// Not a decimal number: letters, two points, an exponent, a thousands comma, stray signs.
    #[error("`{input}` is not a number: {reason}{}", hint(.suggestion, ""))]
    NotANumber {
        input: String,
        reason: &'static str,
        suggestion: Option<String>,
    },
    /// NaN or an infinity.
    #[error("`{input}` is not a finite number; write an amount such as {example}")]
    NotFinite {
        input: String,
        example: &'static str,
    },
    /// A minus sign where an amount cannot be negative.
    #[error("`{input}` is negative; write `{suggestion}`")]
    Negative { input: String, suggestion: String },
    /// More than the type holds.
    #[error("`{input}` is too large; the largest is {max}")]
    Overflow { input: String, max: &'static str },
    /// A part of a byte, or of one counted thing.
    #[error("`{input}` is not a whole number of {of}; write `{suggestion}`")]
    Fractional {
        input: String,
        of: &'static str,
        suggestion: String,
    },
    /// More digits after the point than any amount can mean (18).
    #[error("`{input}` has more than 18 digits after the point; round it")]
    TooPrecise { input: String },
    /// A name that is not a scalar type's.
    #[error("unknown dtype `{input}`{}", hint(.suggestion, ""))]
    UnknownDtype {
        input: String,
        suggestion: Option<String>,
    },
}

impl UnitError {
    /// What to write instead, when there is one answer.
    pub fn suggestion(&self) -> Option<&str> {
        match self {
            UnitError::MissingUnit { suggestion, .. }
            | UnitError::Negative { suggestion, .. }
            | UnitError::Fractional { suggestion, .. } => Some(suggestion),
            UnitError::UnknownUnit { suggestion, .. }
            | UnitError::UnknownSuffix { suggestion, .. }
            | UnitError::NotANumber { suggestion, .. }
            | UnitError::UnknownDtype { suggestion, .. } => suggestion.as_deref(),
            UnitError::Empty { example } | UnitError::NotFinite { example, .. } => Some(example),
            UnitError::Overflow { max, .. } => Some(max),
            UnitError::TooPrecise { .. } => None,
        }
    }
}

fn hint(suggestion: &Option<String>, otherwise: &'static str) -> String {
    match suggestion {
        Some(s) => format!("; did you mean {s}?"),
        None => otherwise.to_owned(),
    }
}

/// An input as an error shows it: at most 48 characters, so that hostile input stays readable.
pub(crate) fn shown(input: &str) -> String {
    const MAX: usize = 48;
    match input.char_indices().nth(MAX) {
        Some((at, _)) => format!("{}...", &input[..at]),
        None => input.to_owned(),
    }
}
