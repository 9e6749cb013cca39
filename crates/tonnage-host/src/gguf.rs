//! Model files of llama.cpp: the header of each part, a stretch at a time, never a weight.

use crate::HostError;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use tonnage_model::readers::gguf::{FileError, Gguf, SplitName, header_of, merge};

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
    let mut at = 0;
    let mut read = |from: u64, into: &mut [u8]| {
        if from != at {
            file.seek(SeekFrom::Start(from))?;
        }
        let got = file.read(into)?;
        at = from + got as u64;
        Ok::<_, std::io::Error>(got)
    };
    let model = header_of(len, &mut read).map_err(|e| match e {
        FileError::Unread(e) => fail(e.to_string()),
        FileError::Damaged(error) => HostError::Damaged {
            name: path.display().to_string(),
            error,
        },
    })?;
    Ok((model, len))
}
