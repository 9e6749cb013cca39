//! Files of recordings and traces.

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use std::io::{Read, Write};
use std::path::Path;
use tonnage_core::Diagnostic;
use tonnage_trace::trace::TraceError;
use tonnage_trace::{Trace, raw};

/// Unpacked traces larger than this are refused.
const MOST: u64 = 8 << 30;

fn unreadable(path: &Path, e: impl std::fmt::Display) -> Diagnostic {
    Diagnostic::error("unreadable", format!("{}: {e}", path.display()))
}

/// A trace file, packed or not.
///
/// # Errors
/// What the system or the reader says.
pub fn load(path: &Path) -> Result<Trace, Diagnostic> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| unreadable(path, e))?;
    file.take(MOST)
        .read_to_end(&mut bytes)
        .map_err(|e| unreadable(path, e))?;
    let mut text = String::new();
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let result = GzDecoder::new(bytes.as_slice())
            .take(MOST)
            .read_to_string(&mut text);
        result.map_err(|e| unreadable(path, e))?;
    } else {
        text = String::from_utf8(bytes).map_err(|_| unreadable(path, "not a trace"))?;
    }
    Trace::parse(&text).map_err(|e| unreadable(path, e))
}

/// Writes a trace, packed.
///
/// # Errors
/// What the system says.
pub fn save(t: &Trace, path: &Path) -> Result<(), Diagnostic> {
    let file = std::fs::File::create(path).map_err(|e| unreadable(path, e))?;
    let mut z = GzEncoder::new(file, Compression::default());
    z.write_all(t.write().as_bytes())
        .and_then(|()| z.finish())
        .map_err(|e| unreadable(path, e))?;
    Ok(())
}

/// What the recorder left in a folder, by rank and device.
pub fn collect(folder: &Path, root: &str) -> (Vec<(u64, Trace)>, Vec<Diagnostic>) {
    let mut all: Vec<(u64, Trace)> = Vec::new();
    let (mut bad, mut empty) = (Vec::new(), Vec::new());
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.extension().is_some_and(|x| x == "raw"))
        .collect();
    files.sort();
    for p in files {
        let pid = p
            .file_stem()
            .and_then(|s| s.to_str())
            .and_then(|s| s.split('-').next()?.parse().ok())
            .unwrap_or(0);
        let text = match std::fs::read(&p) {
            Ok(b) => String::from_utf8_lossy(&b).into_owned(),
            Err(e) => {
                bad.push(unreadable(&p, e));
                continue;
            }
        };
        match raw::parse(&text, root) {
            Ok(t) => all.push((pid, t)),
            Err(TraceError::Empty) => empty.push(unreadable(&p, TraceError::Empty)),
            Err(e) => bad.push(unreadable(&p, e)),
        }
    }
    // a process that looked at another's device left nothing there, which matters only where it is all there is
    if all.is_empty() {
        bad.append(&mut empty);
    }
    all.sort_by_key(|(pid, t)| (t.header.rank, *pid));
    (all, bad)
}
