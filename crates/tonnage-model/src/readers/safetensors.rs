//! The header of a `.safetensors` file: eight bytes of length (little endian), then JSON. The tensors themselves are never read.
//!
//! The rules are those of safetensors 0.6 (safetensors/src/tensor.rs): offsets count from the end of the header, tensors follow one
//! another without overlap or hole, and the last one ends where the file ends.

use super::error::{Format, Problem, ReadError};
use super::json::{Limits, Parser};
use std::collections::BTreeMap;

/// Largest header, as in the reference implementation.
pub const MAX_HEADER: u64 = 100_000_000;
/// Most dimensions of a tensor.
const MAX_DIMS: u64 = 64;

const LIMITS: Limits = Limits {
    bytes: MAX_HEADER,
    depth: 4,
    values: 40_000_000,
};

/// The element type of a stored tensor, by its name in the file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StoredType {
    pub name: String,
    /// Bits of an element; None for a type that is not known here.
    pub bits: Option<u64>,
}

impl StoredType {
    fn new(name: String) -> StoredType {
        let bits = match name.as_str() {
            "F4" => Some(4),
            "F6_E2M3" | "F6_E3M2" => Some(6),
            "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => Some(8),
            "I16" | "U16" | "F16" | "BF16" => Some(16),
            "I32" | "U32" | "F32" => Some(32),
            "I64" | "U64" | "F64" | "C64" => Some(64),
            _ => None,
        };
        StoredType { name, bits }
    }
}

/// A tensor as the header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    pub name: String,
    pub dtype: StoredType,
    pub shape: Vec<u64>,
    /// First and one past the last byte, from the end of the header.
    pub begin: u64,
    pub end: u64,
}

impl StoredTensor {
    /// Elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
    /// Bytes in the file.
    pub fn bytes(&self) -> u64 {
        self.end - self.begin
    }
}

/// A whole header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// In the order of their bytes.
    pub tensors: Vec<StoredTensor>,
    /// `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// Bytes before the first tensor.
    pub data_start: u64,
}

/// What the beginning of a file gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many bytes from the beginning of the file are needed.
    Need(u64),
    Done(Header),
}

/// Reads a header from the first bytes of a file.
///
/// `first` may be any part from the beginning on; [`Progress::Need`] says how much a next call needs. With the file's length, where it is
/// known, the tensors must end there.
///
/// # Errors
/// An impossible length, a mistake in the JSON, tensors that overlap, leave a hole, end elsewhere or do not fit their shape.
pub fn header(first: &[u8], file_len: Option<u64>) -> Result<Progress, ReadError> {
    let whole = |problem| ReadError {
        format: Format::Safetensors,
        at: None,
        field: String::new(),
        problem,
    };
    let cut = |what: &str| whole(Problem::Truncated(what.to_string()));
    if file_len.is_some_and(|n| n < 8) {
        return Err(cut("the length of the header (8 bytes)"));
    }
    let Some(length) = first.first_chunk::<8>() else {
        return Ok(Progress::Need(8));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(whole(Problem::TooLarge {
            bytes: length,
            most: MAX_HEADER,
        }));
    }
    if length < 2 {
        let problem = format!("a header of {length} bytes cannot be an object");
        return Err(whole(Problem::Syntax(problem)));
    }
    let data_start = 8 + length;
    if file_len.is_some_and(|n| n < data_start) {
        return Err(cut(&format!("a header of {length} bytes")));
    }
    let Some(text) = first.get(8..data_start as usize) else {
        return Ok(Progress::Need(data_start));
    };
    let mut header = read(text, data_start)?;
    layout(&mut header, file_len)?;
    Ok(Progress::Done(header))
}

fn read(text: &[u8], data_start: u64) -> Result<Header, ReadError> {
    let mut p = Parser::new(Format::Safetensors, text, LIMITS)?;
    let mut tensors = Vec::new();
    let mut metadata = None;
    p.object("", &mut |p, name, at| {
        if name == "__metadata__" {
            let mut map = BTreeMap::new();
            p.object(&name, &mut |p, key, at| {
                if !p.at_string() {
                    let (expected, found) = ("a text", p.found());
                    return Err(p.error(&key, Problem::WrongType { expected, found }));
                }
                let value = p.string(&key)?;
                match map.insert(key.clone(), value) {
                    None => Ok(()),
                    Some(_) => Err(p.error_at(at, &key, Problem::DuplicateKey)),
                }
            })?;
            return match metadata.replace(map) {
                None => Ok(()),
                Some(_) => Err(p.error_at(at, &name, Problem::DuplicateKey)),
            };
        }
        tensors.push(tensor(p, name)?);
        Ok(())
    })?;
    p.end()?;
    Ok(Header {
        tensors,
        metadata: metadata.unwrap_or_default(),
        data_start,
    })
}

fn tensor(p: &mut Parser, name: String) -> Result<StoredTensor, ReadError> {
    let (mut dtype, mut shape, mut offsets) = (None, None, None);
    p.object(&name, &mut |p, key, at| {
        let twice = match key.as_str() {
            "dtype" => {
                if !p.at_string() {
                    let (expected, found) = ("a text", p.found());
                    return Err(p.error(&name, Problem::WrongType { expected, found }));
                }
                dtype.replace(StoredType::new(p.string(&name)?)).is_some()
            }
            "shape" => shape.replace(numbers(p, &name, MAX_DIMS)?).is_some(),
            "data_offsets" => offsets.replace(numbers(p, &name, 2)?).is_some(),
            _ => {
                p.skip(&name)?;
                false
            }
        };
        if twice {
            return Err(p.error_at(at, &format!("{name}.{key}"), Problem::DuplicateKey));
        }
        Ok(())
    })?;
    let error = |part: &str, problem| {
        let field = if part.is_empty() {
            name.clone()
        } else {
            format!("{name}.{part}")
        };
        Err(p.error(&field, problem))
    };
    let Some(dtype) = dtype else {
        return error("dtype", Problem::Missing);
    };
    let Some(shape) = shape else {
        return error("shape", Problem::Missing);
    };
    let (begin, end) = match offsets.as_deref() {
        Some([begin, end]) => (*begin, *end),
        Some(_) => {
            let problem = "must be two numbers: begin and end".to_string();
            return error("data_offsets", Problem::Syntax(problem));
        }
        None => return error("data_offsets", Problem::Missing),
    };
    if begin > end {
        let problem = format!("it begins at {begin}, after its end at {end}");
        return error("", Problem::Contradiction(problem));
    }
    let elements = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
    let Some(elements) = elements else {
        let problem = format!("a shape of {shape:?} has too many elements");
        return error("", Problem::Contradiction(problem));
    };
    if let Some(bits) = dtype.bits {
        let stored = u128::from(end - begin) * 8;
        let needed = u128::from(elements) * u128::from(bits);
        if stored != needed {
            let problem = format!(
                "{} of {shape:?} is {needed} bits, the offsets hold {stored}",
                dtype.name
            );
            return error("", Problem::Contradiction(problem));
        }
    }
    Ok(StoredTensor {
        name,
        dtype,
        shape,
        begin,
        end,
    })
}

fn numbers(p: &mut Parser, field: &str, most: u64) -> Result<Vec<u64>, ReadError> {
    let mut out = Vec::new();
    p.array(field, &mut |p| {
        if out.len() as u64 >= most {
            let what = "numbers in this list";
            return Err(p.error(field, Problem::TooMany { what, most }));
        }
        out.push(p.unsigned(field)?);
        Ok(())
    })?;
    Ok(out)
}

/// Sorts the tensors by their bytes and checks that they tile the rest of the file.
fn layout(h: &mut Header, file_len: Option<u64>) -> Result<(), ReadError> {
    let error = |field: &str, problem| ReadError {
        format: Format::Safetensors,
        at: None,
        field: field.to_string(),
        problem,
    };
    let mut names: Vec<&str> = h.tensors.iter().map(|t| t.name.as_str()).collect();
    names.sort_unstable();
    if let Some(w) = names.windows(2).find(|w| w[0] == w[1]) {
        return Err(error(w[0], Problem::DuplicateKey));
    }
    h.tensors.sort_by_key(|t| (t.begin, t.end));
    let mut at = 0;
    for t in &h.tensors {
        if t.begin != at {
            let problem = if t.begin < at {
                format!(
                    "it begins at {}, inside the tensor that ends at {at}",
                    t.begin
                )
            } else {
                format!("the {} bytes before it belong to no tensor", t.begin - at)
            };
            return Err(error(&t.name, Problem::Contradiction(problem)));
        }
        at = t.end;
    }
    if let Some(len) = file_len
        && Some(len) != h.data_start.checked_add(at)
    {
        let held = len - h.data_start;
        let problem = format!("the tensors take {at} bytes, the file holds {held}");
        return Err(error("", Problem::Contradiction(problem)));
    }
    Ok(())
}
