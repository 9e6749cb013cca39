//! The header of a GGUF file: magic, version, counts, metadata, tensor infos. The tensors themselves are never read, so a caller
//! reads a growing prefix of a big file and a file that ends after its last tensor info will do.
//!
//! The rules are those of llama.cpp v0.5.0 (ggml/src/gguf.cpp, `gguf_init_from_file_impl`): versions 2 and 3, little endian, at most
//! four dimensions, whole blocks, each tensor where the one before it ends, padded to the alignment. It refuses what the engine refuses.

mod read;
mod split;

pub use read::{FileError, header, header_of};
pub use split::{SplitName, merge};

use super::error::{Format, Problem, ReadError};
use std::collections::BTreeMap;
use tonnage_units::GgmlType;

/// Largest header that is read: a vocabulary of a million tokens is below 64 MB.
pub const MAX_HEADER: u64 = 1 << 30;
/// Most dimensions of a tensor (`GGML_MAX_DIMS`).
pub const MAX_DIMS: u32 = 4;
/// Longest tensor name in bytes (`GGML_MAX_NAME` counts the terminator).
pub const MAX_NAME: u64 = 63;
/// Longest array whose items are kept; of a longer one (a vocabulary) only the type and the length are.
pub const KEPT_ITEMS: u64 = 4096;
/// `GGUF_DEFAULT_ALIGNMENT`.
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// u8 to u64.
    Unsigned(u64),
    /// i8 to i64.
    Signed(i64),
    /// f32 and f64.
    Float(f64),
    Bool(bool),
    Text(String),
    Array(Array),
}

impl Value {
    /// A count: any integer that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Value::Unsigned(n) => Some(*n),
            Value::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }
    /// A float, or an integer as one.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Value::Float(x) => Some(*x),
            Value::Unsigned(n) => Some(*n as f64),
            Value::Signed(n) => Some(*n as f64),
            _ => None,
        }
    }
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(b) => Some(*b),
            _ => None,
        }
    }
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Text(s) => Some(s),
            _ => None,
        }
    }
    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Value::Array(a) => Some(a),
            _ => None,
        }
    }
}

/// An array of one type. Arrays of arrays do not exist in GGUF files that the engine reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// The type's name: `u32`, `string`.
    pub of: &'static str,
    pub len: u64,
    /// All items, or none where there are more than [`KEPT_ITEMS`].
    pub items: Vec<Value>,
}

/// A tensor as the header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    pub ggml_type: GgmlType,
    /// Elements of each dimension, fastest first; always four, absent ones are 1.
    pub ne: [u64; 4],
    /// First byte, from the start of the data of its part.
    pub offset: u64,
    /// `ggml_nbytes`, without padding.
    pub bytes: u64,
    /// Which file of a split model holds it; 0 for a whole one.
    pub part: u16,
}

impl TensorInfo {
    /// Elements.
    pub fn elements(&self) -> u64 {
        // checked when it was read
        self.ne.iter().product()
    }
}

/// A whole header, or those of all parts merged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gguf {
    pub version: u32,
    pub metadata: BTreeMap<String, Value>,
    /// In the order of the file.
    pub tensors: Vec<TensorInfo>,
    /// `general.alignment` in bytes.
    pub alignment: u64,
    /// Bytes before the data of the first tensor, padding included.
    pub data_start: u64,
    /// Bytes of all tensors with their padding; for merged parts of all of them.
    pub data_bytes: u64,
    /// Bytes of the header itself: where the last tensor info ends.
    pub header_bytes: u64,
}

impl Gguf {
    /// `general.architecture`.
    pub fn architecture(&self) -> Option<&str> {
        self.metadata.get("general.architecture")?.as_str()
    }
    /// A key of the architecture: `get("block_count")` is `llama.block_count` in a llama.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata
            .get(&format!("{}.{key}", self.architecture()?))
    }
    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|t| t.name == name)
    }
    /// Bytes that the whole file has, padding after the last tensor included.
    pub fn file_bytes(&self) -> u64 {
        self.data_start.saturating_add(self.data_bytes)
    }
    /// That a file of `len` bytes holds all tensors. Padding after the last one may be missing.
    ///
    /// # Errors
    /// [`Problem::Truncated`], naming the size it should have.
    pub fn check_data(&self, len: u64) -> Result<(), ReadError> {
        let end = self
            .tensors
            .iter()
            .map(|t| t.offset.saturating_add(t.bytes))
            .max()
            .unwrap_or(0);
        if len >= self.data_start.saturating_add(end) {
            return Ok(());
        }
        Err(error(
            "",
            Problem::Truncated(format!(
                "tensor data up to {} bytes (the file has {len})",
                self.file_bytes()
            )),
        ))
    }
}

/// What the beginning of a file gave.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// So many bytes from the beginning of the file are needed.
    Need(u64),
    Done(Box<Gguf>),
}

fn error(field: &str, problem: Problem) -> ReadError {
    ReadError {
        format: Format::Gguf,
        at: None,
        field: field.to_string(),
        problem,
    }
}

/// `n` padded to a multiple of `to`, which is a power of two.
fn padded(n: u64, to: u64) -> Option<u64> {
    n.checked_add(to - 1).map(|x| x & !(to - 1))
}
