//! The report file: JSON lines, each written whole, so that several processes can share it and a crash loses nothing.

use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

/// Version of the lines.
pub const SCHEMA: &str = "tonnage.null-report/1";

/// The open file, if one was asked for.
#[derive(Debug, Default)]
pub struct Report(Option<File>);

impl Report {
    /// Opens for appending. The error is a sentence.
    pub fn open(path: Option<&Path>) -> Result<Report, String> {
        let Some(path) = path else {
            return Ok(Report(None));
        };
        match OpenOptions::new().append(true).create(true).open(path) {
            Ok(file) => Ok(Report(Some(file))),
            Err(e) => Err(format!("TONNAGE_NULL_REPORT: {}: {e}", path.display())),
        }
    }

    /// Appends one event.
    pub fn line(&self, event: &str, fields: Value) {
        let Some(mut file) = self.0.as_ref() else {
            return;
        };
        let mut object = json!({ "event": event, "pid": std::process::id() });
        if let (Some(to), Value::Object(from)) = (object.as_object_mut(), fields) {
            to.extend(from);
        }
        let mut text = object.to_string();
        text.push('\n');
        // One write call: appended whole. A full disk must not end the user's program.
        let _ = file.write_all(text.as_bytes());
    }
}
