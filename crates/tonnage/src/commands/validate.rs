//! `tonnage validate`

use crate::Status;
use crate::args::{ListFormat, ValidateArgs};
use crate::output::Output;
use std::io::{BufRead, BufReader};
use tonnage_core::Diagnostic;
use tonnage_core::validate::{Report, record_rows};
use tonnage_report::{json, validate as text};

/// A record is one line; longer ones are refused.
const MAX_LINE: u64 = 64 << 20;

pub fn run(a: &ValidateArgs, out: &Output) -> Status {
    let mut rows = Vec::new();
    for path in &a.files {
        let file = match std::fs::File::open(path) {
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
            match std::io::Read::take(&mut reader, MAX_LINE).read_until(b'\n', &mut line) {
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
            match record_rows(&record) {
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
