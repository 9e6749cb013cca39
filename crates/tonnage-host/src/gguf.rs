//! Model files of llama.cpp: the header of each part by a growing prefix, never a weight.

use crate::HostError;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use tonnage_model::readers::gguf::{Gguf, MAX_HEADER, Progress, SplitName, header, merge};

/// The first read. A header with a vocabulary of 262,144 words has 6.5 MB; one without it a few kB.
const FIRST: u64 = 64 << 10;
/// Later reads grow by this factor, so that the header is parsed few times.
const GROWTH: u64 = 8;

/// A model, with what was found of its files.
#[derive(Clone, Debug)]
pub struct GgufFile {
    pub model: Gguf,
    /// All parts, in order.
    pub files: Vec<PathBuf>,
    /// What is missing of the data, where a file ends early.
    pub truncated: Option<String>,
}

/// Reads a model; of a split one, any part may be named.
///
/// # Errors
/// A part that cannot be read, is no GGUF file or contradicts the others.
pub fn gguf(path: &Path) -> Result<GgufFile, HostError> {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
    let files: Vec<PathBuf> = match SplitName::parse(name) {
        Some(s) => (0..s.count).map(|i| path.with_file_name(s.of(i))).collect(),
        None => vec![path.to_path_buf()],
    };
    let mut parts = Vec::new();
    let mut truncated = None;
    for f in &files {
        let (part, len) = one(f)?;
        if let Err(e) = part.check_data(len) {
            truncated.get_or_insert_with(|| format!("{}: {e}", f.display()));
        }
        parts.push(part);
    }
    let model = merge(parts).map_err(|error| HostError::Damaged {
        name: path.display().to_string(),
        error,
    })?;
    Ok(GgufFile {
        model,
        files,
        truncated,
    })
}

fn one(path: &Path) -> Result<(Gguf, u64), HostError> {
    let fail = |problem: String| HostError::Unreadable {
        path: path.to_path_buf(),
        problem,
    };
    let meta = std::fs::metadata(path).map_err(|e| fail(e.to_string()))?;
    // a pipe or a device would keep us waiting
    if !meta.is_file() {
        return Err(fail("not a file".into()));
    }
    let len = meta.len();
    let mut file = File::open(path).map_err(|e| fail(e.to_string()))?;
    let mut bytes = Vec::new();
    let mut want = FIRST;
    loop {
        let more = want.min(len).saturating_sub(bytes.len() as u64);
        (&mut file)
            .take(more)
            .read_to_end(&mut bytes)
            .map_err(|e| fail(e.to_string()))?;
        match header(&bytes, Some(len)) {
            Ok(Progress::Done(g)) => return Ok((*g, len)),
            Ok(Progress::Need(n)) => {
                // a file that shrinks while it is read would never be done
                if bytes.len() as u64 >= n {
                    return Err(fail("it changed while it was read".into()));
                }
                want = n
                    .max((bytes.len() as u64).saturating_mul(GROWTH))
                    .min(MAX_HEADER);
            }
            Err(error) => {
                return Err(HostError::Damaged {
                    name: path.display().to_string(),
                    error,
                });
            }
        }
    }
}
