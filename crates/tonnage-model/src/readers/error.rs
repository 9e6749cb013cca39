//! What can be wrong with a file, where, and in which field.

/// Where in a text: counted from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Position {
    pub line: u32,
    pub column: u32,
}

/// The file that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Hugging Face `config.json`.
    Config,
    /// The header of a `.safetensors` file.
    Safetensors,
    /// `model.safetensors.index.json`.
    SafetensorsIndex,
    /// The header of a `.gguf` file.
    Gguf,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Format::Config => "config.json",
            Format::Safetensors => "safetensors header",
            Format::SafetensorsIndex => "safetensors index",
            Format::Gguf => "GGUF header",
        }
    }
}

/// Why a file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}{}: {problem}", format.name(), place(*at), named(field))]
pub struct ReadError {
    pub format: Format,
    /// Where it begins, for texts.
    pub at: Option<Position>,
    /// The field (a dotted path) or the tensor; empty for the file as a whole.
    pub field: String,
    pub problem: Problem,
}

fn place(at: Option<Position>) -> String {
    at.map_or_else(String::new, |p| {
        format!(", line {}, column {}", p.line, p.column)
    })
}

fn named(field: &str) -> String {
    // a hostile name may be megabytes long
    match field.char_indices().nth(120) {
        _ if field.is_empty() => String::new(),
        Some((end, _)) => format!(", `{}...`", &field[..end]),
        None => format!(", `{field}`"),
    }
}

/// One kind of mistake each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("{bytes} bytes are too many (at most {most})")]
    TooLarge { bytes: u64, most: u64 },
    #[error("too many {what} (at most {most})")]
    TooMany { what: &'static str, most: u64 },
    #[error("nested too deeply (at most {0} levels)")]
    TooDeep(u32),
    #[error("the file ends here, but {0} is expected")]
    Truncated(String),
    #[error("{0}")]
    Syntax(String),
    #[error("not UTF-8")]
    NotUtf8,
    #[error("the key stands here a second time")]
    DuplicateKey,
    #[error("is missing")]
    Missing,
    #[error("must be {expected}, is {found}")]
    WrongType {
        expected: &'static str,
        found: String,
    },
    #[error("{value} is impossible (it must be from {least} to {most})")]
    Impossible {
        value: String,
        least: u64,
        most: u64,
    },
    #[error("{0}")]
    Contradiction(String),
}
