//! Bytes to a header.

use super::{
    Array, DEFAULT_ALIGNMENT, Gguf, KEPT_ITEMS, MAX_DIMS, MAX_HEADER, MAX_NAME, Progress,
    TensorInfo, Value, error, padded,
};
use crate::readers::error::{Problem, ReadError};
use std::collections::{BTreeMap, HashSet};
use tonnage_units::GgmlType;

/// Longest metadata key (GGUF specification).
const MAX_KEY: u64 = (1 << 16) - 1;

/// Why reading stopped.
enum Stop {
    /// The prefix ends before this offset.
    Short(u64),
    Bad(ReadError),
    /// The file could not be read.
    Source,
}

impl From<ReadError> for Stop {
    fn from(e: ReadError) -> Stop {
        Stop::Bad(e)
    }
}

/// Where the bytes come from.
trait Source {
    /// `n` bytes from `at` on.
    fn get(&mut self, at: u64, n: u64) -> Result<&[u8], Stop>;
    /// Are there `n` bytes from `at` on?
    fn has(&mut self, at: u64, n: u64) -> Result<(), Stop>;
}

/// The first bytes of a file.
struct First<'a>(&'a [u8]);

impl Source for First<'_> {
    fn get(&mut self, at: u64, n: u64) -> Result<&[u8], Stop> {
        let end = at.saturating_add(n);
        let range = usize::try_from(at).ok().zip(usize::try_from(end).ok());
        range
            .and_then(|(at, end)| self.0.get(at..end))
            .ok_or(Stop::Short(end))
    }
    fn has(&mut self, at: u64, n: u64) -> Result<(), Stop> {
        self.get(at, n).map(|_| ())
    }
}

/// A file that is read a stretch at a time.
struct Window<F, E> {
    read: F,
    len: u64,
    /// The stretch held begins here.
    from: u64,
    bytes: Vec<u8>,
    /// Bytes of it that are filled.
    filled: usize,
    failed: Option<E>,
}

impl<E, F: FnMut(u64, &mut [u8]) -> Result<usize, E>> Window<F, E> {
    /// Holds `n` bytes from `at` on.
    fn load(&mut self, at: u64, n: usize) -> Result<(), Stop> {
        // what is held of them moves to the front
        let skipped = usize::try_from(at.wrapping_sub(self.from)).unwrap_or(usize::MAX);
        if skipped < self.filled {
            self.bytes.copy_within(skipped..self.filled, 0);
            self.filled -= skipped;
        } else {
            self.filled = 0;
        }
        self.from = at;
        if self.bytes.len() < n {
            self.bytes.resize(n.max(STRETCH), 0);
        }
        while self.filled < n {
            let next = at + self.filled as u64;
            match (self.read)(next, &mut self.bytes[self.filled..]) {
                // it shrank while it was read
                Ok(0) => return Err(Stop::Short(at + n as u64)),
                Ok(got) => self.filled += got.min(self.bytes.len() - self.filled),
                Err(e) => {
                    self.failed = Some(e);
                    return Err(Stop::Source);
                }
            }
        }
        Ok(())
    }
}

/// Bytes that are read at once.
const STRETCH: usize = 128 << 10;

impl<E, F: FnMut(u64, &mut [u8]) -> Result<usize, E>> Source for Window<F, E> {
    fn get(&mut self, at: u64, n: u64) -> Result<&[u8], Stop> {
        let held = |w: &Self| {
            let start = usize::try_from(at.checked_sub(w.from)?).ok()?;
            let end = start.checked_add(usize::try_from(n).ok()?)?;
            (end <= w.filled).then_some(start..end)
        };
        if let Some(range) = held(self) {
            return Ok(&self.bytes[range]);
        }
        self.has(at, n)?;
        // at most the largest header
        let n = usize::try_from(n).map_err(|_| Stop::Short(at.saturating_add(n)))?;
        self.load(at, n)?;
        Ok(&self.bytes[..n])
    }
    fn has(&mut self, at: u64, n: u64) -> Result<(), Stop> {
        let end = at.saturating_add(n);
        match end <= self.len.min(MAX_HEADER) {
            true => Ok(()),
            false => Err(Stop::Short(end)),
        }
    }
}

struct Cursor<S> {
    source: S,
    at: u64,
}

impl<S: Source> Cursor<S> {
    fn take(&mut self, n: u64) -> Result<&[u8], Stop> {
        let at = self.at;
        let part = self.source.get(at, n)?;
        self.at = at + n;
        Ok(part)
    }
    fn skip(&mut self, n: u64) -> Result<(), Stop> {
        self.source.has(self.at, n)?;
        self.at += n;
        Ok(())
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let part = self.take(N as u64)?;
        Ok(*part.first_chunk::<N>().expect("took N bytes"))
    }
    fn u32(&mut self) -> Result<u32, Stop> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    fn u64(&mut self) -> Result<u64, Stop> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    /// A string of at most `most` bytes.
    fn text(&mut self, field: &str, most: u64) -> Result<&str, Stop> {
        let n = self.u64()?;
        if n > most {
            return Err(error(field, Problem::TooLarge { bytes: n, most }).into());
        }
        std::str::from_utf8(self.take(n)?).map_err(|_| error(field, Problem::NotUtf8).into())
    }
}

/// The types of metadata values: name and bytes (0 for strings and arrays), by id.
const KINDS: [(&str, u64); 13] = [
    ("u8", 1),
    ("i8", 1),
    ("u16", 2),
    ("i16", 2),
    ("u32", 4),
    ("i32", 4),
    ("f32", 4),
    ("bool", 1),
    ("string", 0),
    ("array", 0),
    ("u64", 8),
    ("i64", 8),
    ("f64", 8),
];
const STRING: usize = 8;
const ARRAY: usize = 9;

fn kind<S: Source>(c: &mut Cursor<S>, key: &str) -> Result<usize, Stop> {
    let id = c.u32()?;
    match usize::try_from(id) {
        Ok(k) if k < KINDS.len() => Ok(k),
        _ => {
            let problem = format!("type {id} of a value is unknown (known: 0 to 12)");
            Err(error(key, Problem::Syntax(problem)).into())
        }
    }
}

/// A value of a fixed size.
fn scalar<S: Source>(c: &mut Cursor<S>, k: usize, key: &str) -> Result<Value, Stop> {
    Ok(match KINDS[k].0 {
        "u8" => Value::Unsigned(u8::from_le_bytes(c.array()?).into()),
        "i8" => Value::Signed(i8::from_le_bytes(c.array()?).into()),
        "u16" => Value::Unsigned(u16::from_le_bytes(c.array()?).into()),
        "i16" => Value::Signed(i16::from_le_bytes(c.array()?).into()),
        "u32" => Value::Unsigned(c.u32()?.into()),
        "i32" => Value::Signed(i32::from_le_bytes(c.array()?).into()),
        "f32" => Value::Float(f32::from_le_bytes(c.array()?).into()),
        "u64" => Value::Unsigned(c.u64()?),
        "i64" => Value::Signed(i64::from_le_bytes(c.array()?)),
        "f64" => Value::Float(f64::from_le_bytes(c.array()?)),
        "bool" => match c.array::<1>()?[0] {
            0 => Value::Bool(false),
            1 => Value::Bool(true),
            b => {
                let problem = format!("{b} is no truth value (0 or 1)");
                return Err(error(key, Problem::Syntax(problem)).into());
            }
        },
        _ => Value::Text(c.text(key, MAX_HEADER)?.to_string()),
    })
}

fn value<S: Source>(c: &mut Cursor<S>, key: &str) -> Result<Value, Stop> {
    let k = kind(c, key)?;
    if k != ARRAY {
        return scalar(c, k, key);
    }
    let of = kind(c, key)?;
    if of == ARRAY {
        return Err(error(key, Problem::TooDeep(1)).into());
    }
    let (name, size) = KINDS[of];
    let len = c.u64()?;
    // an item has at least these bytes, so a count beyond the largest header is a lie
    let least = len.checked_mul(size.max(if of == STRING { 8 } else { 1 }));
    if least.is_none_or(|b| b > MAX_HEADER) {
        let most = MAX_HEADER;
        return Err(error(
            key,
            Problem::TooMany {
                what: "items",
                most,
            },
        )
        .into());
    }
    let mut items = Vec::new();
    if len <= KEPT_ITEMS {
        for _ in 0..len {
            items.push(scalar(c, of, key)?);
        }
    } else if of == STRING {
        for _ in 0..len {
            let n = c.u64()?;
            if n > MAX_HEADER {
                let most = MAX_HEADER;
                return Err(error(key, Problem::TooLarge { bytes: n, most }).into());
            }
            c.skip(n)?;
        }
    } else {
        c.skip(len * size)?;
    }
    Ok(Value::Array(Array {
        of: name,
        len,
        items,
    }))
}

/// Reads a header from the first bytes of a file.
///
/// `first` may be any part from the beginning on; [`Progress::Need`] says how much a next call needs (at least twice as much each
/// time, so that few calls do). With the file's length, where it is known, the header must end before it.
///
/// # Errors
/// One [`ReadError`]: not a GGUF file, a version or byte order that the engine does not read, an impossible count or length, a key or
/// tensor that stands twice, an unknown type, a shape that is not whole blocks or not countable, an offset that is not where the tensor
/// must be, an end too early.
pub fn header(first: &[u8], file_len: Option<u64>) -> Result<Progress, ReadError> {
    let mut c = Cursor {
        source: First(first),
        at: 0,
    };
    match whole(&mut c) {
        Ok(g) => Ok(Progress::Done(Box::new(g))),
        Err(Stop::Bad(e)) => Err(e),
        Err(Stop::Source) => Err(missing(first.len() as u64)),
        Err(Stop::Short(end)) => {
            if end > MAX_HEADER || file_len.is_some_and(|n| n < end || n <= first.len() as u64) {
                return Err(missing(end));
            }
            let wish = end.max(first.len() as u64 * 2).min(MAX_HEADER);
            Ok(Progress::Need(file_len.map_or(wish, |n| wish.min(n))))
        }
    }
}

/// The header ends before this byte, at the earliest.
fn missing(end: u64) -> ReadError {
    if end > MAX_HEADER {
        let most = MAX_HEADER;
        return error("", Problem::TooLarge { bytes: end, most });
    }
    let what = format!("a header of at least {end} bytes");
    error("", Problem::Truncated(what))
}

/// Why a file has no header.
#[derive(Debug)]
pub enum FileError<E> {
    /// It could not be read.
    Unread(E),
    Damaged(ReadError),
}

/// Reads the header of a file of `len` bytes through `read`, which fills a part of the buffer with what begins at the offset and says how
/// much it was. Only what counts is read: a stretch at a time, without the scores and types of a vocabulary.
///
/// # Errors
/// As [`header`], and those of `read`.
pub fn header_of<E>(
    len: u64,
    read: impl FnMut(u64, &mut [u8]) -> Result<usize, E>,
) -> Result<Gguf, FileError<E>> {
    let mut c = Cursor {
        source: Window {
            read,
            len,
            from: 0,
            bytes: Vec::new(),
            filled: 0,
            failed: None,
        },
        at: 0,
    };
    whole(&mut c).map_err(|stop| match (stop, c.source.failed.take()) {
        (Stop::Bad(e), _) => FileError::Damaged(e),
        (Stop::Source, Some(e)) => FileError::Unread(e),
        (Stop::Source, None) => FileError::Damaged(missing(len)),
        (Stop::Short(end), _) => FileError::Damaged(missing(end)),
    })
}

fn whole<S: Source>(c: &mut Cursor<S>) -> Result<Gguf, Stop> {
    let syntax = |text: String| Stop::Bad(error("", Problem::Syntax(text)));
    if &c.array::<4>()? != b"GGUF" {
        return Err(syntax(
            "not a GGUF file (it does not begin with GGUF)".into(),
        ));
    }
    let version = c.u32()?;
    match version {
        2 | 3 => {}
        1 => return Err(syntax("version 1 is no longer read by llama.cpp".into())),
        v if v != 0 && v & 0xffff == 0 => {
            return Err(syntax("the file is big endian".into()));
        }
        v => return Err(syntax(format!("version {v} is unknown (known: 2, 3)"))),
    }
    let n_tensors = c.u64()?;
    let n_values = c.u64()?;
    // the least that one takes: key length, type, value; name length, dimensions, type, offset
    for (what, n, least) in [("tensors", n_tensors, 24), ("values", n_values, 13)] {
        let most = MAX_HEADER / least;
        if n > most {
            return Err(error("", Problem::TooMany { what, most }).into());
        }
    }
    let mut metadata = BTreeMap::new();
    for _ in 0..n_values {
        let key = c.text("a key", MAX_KEY)?.to_string();
        let v = value(c, &key)?;
        if metadata.contains_key(&key) {
            return Err(error(&key, Problem::DuplicateKey).into());
        }
        metadata.insert(key, v);
    }
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(Value::Unsigned(n)) if n.is_power_of_two() && *n <= 1 << 30 => *n,
        Some(v) => {
            let problem = format!("{v:?} is no alignment (a power of two)");
            return Err(error("general.alignment", Problem::Syntax(problem)).into());
        }
    };
    let mut tensors = Vec::new();
    let mut names = HashSet::new();
    let mut data_bytes = 0u64;
    for _ in 0..n_tensors {
        let t = tensor(c, data_bytes)?;
        if !names.insert(t.name.clone()) {
            return Err(error(&t.name, Problem::DuplicateKey).into());
        }
        data_bytes = padded(t.bytes, alignment)
            .and_then(|b| data_bytes.checked_add(b))
            .ok_or_else(|| overflow(&t.name))?;
        tensors.push(t);
    }
    let header_bytes = c.at;
    let data_start = padded(header_bytes, alignment).ok_or_else(|| overflow(""))?;
    Ok(Gguf {
        version,
        metadata,
        tensors,
        alignment,
        data_start,
        data_bytes,
        header_bytes,
    })
}

fn overflow(name: &str) -> ReadError {
    error(
        name,
        Problem::Contradiction("more bytes than 64 bits count".into()),
    )
}

fn tensor<S: Source>(c: &mut Cursor<S>, expected: u64) -> Result<TensorInfo, Stop> {
    let name = c.text("a tensor's name", MAX_NAME)?.to_string();
    let name = name.as_str();
    let dims = c.u32()?;
    if dims > MAX_DIMS {
        return Err(error(
            name,
            Problem::Impossible {
                value: format!("{dims} dimensions"),
                least: 0,
                most: MAX_DIMS.into(),
            },
        )
        .into());
    }
    let mut ne = [1u64; 4];
    let mut elements = 1u64;
    for n in ne.iter_mut().take(dims as usize) {
        *n = c.u64()?;
        // ggml counts in i64
        elements = elements
            .checked_mul(*n)
            .filter(|e| i64::try_from(*e).is_ok() && i64::try_from(*n).is_ok())
            .ok_or_else(|| overflow(name))?;
    }
    let id = c.u32()?;
    let offset = c.u64()?;
    let typed = |e: tonnage_units::GgmlError| error(name, Problem::Contradiction(e.to_string()));
    let ggml_type = GgmlType::from_id(id).map_err(typed)?;
    let rows = ne[1]
        .checked_mul(ne[2])
        .and_then(|n| n.checked_mul(ne[3]))
        .ok_or_else(|| overflow(name))?;
    let bytes = ggml_type.bytes(ne[0], rows).map_err(typed)?;
    if offset != expected {
        let problem = format!("begins at byte {offset} of the data, expected at {expected}");
        return Err(error(name, Problem::Contradiction(problem)).into());
    }
    Ok(TensorInfo {
        name: name.to_string(),
        ggml_type,
        ne,
        offset,
        bytes,
        part: 0,
    })
}
