//! `tonnage validate`

use crate::Status;
use crate::args::{ListFormat, ValidateArgs};
use crate::output::Output;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use tonnage_core::Diagnostic;
use tonnage_core::validate::{Report, record_rows_with};
use tonnage_plan::time::published;
use tonnage_report::{json, validate as text};

/// A record is one line; longer ones are refused.
const MAX_LINE: u64 = 64 << 20;

/// Largest model header that is read.
const MAX_HEADER: u64 = 1 << 30;

/// The header of a model that a record names: in `gguf/` beside the records or in `gguf-headers/` beside their folder, otherwise among
/// this project's own in the working directory. Each also compressed.
fn model_header(records: &Path, name: &str) -> Option<Vec<u8>> {
    // a record must not choose another folder
    let name = Path::new(name).file_name()?;
    let folder = records.parent()?;
    let folders = [
        folder.join("gguf"),
        folder.join("..").join("gguf-headers"),
        Path::new("groundtruth").join("gguf"),
    ];
    folders.iter().find_map(|f| {
        let mut out = Vec::new();
        if let Ok(f) = File::open(f.join(name)) {
            f.take(MAX_HEADER).read_to_end(&mut out).ok()?;
            return Some(out);
        }
        let packed = File::open(f.join(name).with_added_extension("gz")).ok()?;
        let f = flate2::read::GzDecoder::new(packed);
        f.take(MAX_HEADER).read_to_end(&mut out).ok()?;
        Some(out)
    })
}

pub fn run(a: &ValidateArgs, out: &Output) -> Status {
    let mut rows = Vec::new();
    for path in &a.files {
        let file = match File::open(path) {
            Ok(f) => f,
            Err(e) => {
                out.complain(&[Diagnostic::error(
                    "unreadable",
                    format!("{}: {e}", path.display()),
                )]);
                return Status::BadInput;
            }
        };
        let mut reader = BufReader::new(file);
        let mut n = 0;
        loop {
            let mut line = Vec::new();
            n += 1;
            let bad = |why: String| {
                Diagnostic::error("bad-record", format!("{}:{n}: {why}", path.display()))
            };
            match Read::take(&mut reader, MAX_LINE).read_until(b'\n', &mut line) {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) => {
                    out.complain(&[bad(e.to_string())]);
                    return Status::BadInput;
                }
            }
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let record: serde_json::Value = match serde_json::from_slice(&line) {
                Ok(v) => v,
                Err(e) => {
                    out.complain(&[bad(format!("not a JSON record: {e}"))]);
                    return Status::BadInput;
                }
            };
            let scored = if record["schema"] == "throughput" {
                Ok(published::rows(&record))
            } else {
                record_rows_with(&record, &mut |name| model_header(path, name))
            };
            match scored {
                Ok(r) => rows.extend(r),
                Err(e) => {
                    out.complain(&[bad(e.to_string())]);
                    return Status::BadInput;
                }
            }
        }
    }
    let report = Report::of(rows);
    out.print(&match a.format {
        ListFormat::Json => json::pretty(&report),
        ListFormat::Text => text::report(&report, a.worst, &out.style),
    });
    Status::Ok
}
