//! Is this table true? Claims of a document, what the simulator says to each, and where the document contradicts itself.
//!
//! `text -> claims (markdown.rs, claims_file.rs) -> bound jobs (bind.rs) -> rows (judge.rs) -> findings (checks.rs)`.

pub mod amounts;
pub mod bind;
pub mod checks;
pub mod claim;
pub mod claims_file;
mod judge;
pub mod markdown;
mod predict;
pub mod text;
mod words;

pub use bind::{Bindings, How, OpenJob};
pub use checks::Finding;
pub use claim::Claim;
pub use judge::{Facts, Prediction, Row, Verdict, card_id};

use serde::Serialize;
use tonnage_core::Diagnostic;

/// The version of the JSON form.
pub const SCHEMA: &str = "tonnage.audit/1";

/// A document's audit.
#[derive(Clone, Debug, Serialize)]
pub struct Audit {
    pub schema: &'static str,
    pub document: String,
    pub rows: Vec<Row>,
    pub findings: Vec<Finding>,
}

impl Audit {
    /// Claims with a verdict.
    pub fn count(&self, v: Verdict) -> usize {
        self.rows.iter().filter(|r| r.verdict == v).count()
    }
    /// Does a claim fail, or the document contradict itself?
    pub fn fails(&self) -> bool {
        self.count(Verdict::Fails) > 0 || !self.findings.is_empty()
    }
}

/// Reads the claims of a document (Markdown) or of a file of claims (JSON, [`claims_file`]).
///
/// # Errors
/// A file of claims that cannot be read.
pub fn claims(file: &str, text: &str, bindings: &Bindings) -> Result<Vec<Claim>, Diagnostic> {
    if claims_file::is_claims(text) {
        claims_file::read(file, text)
    } else {
        Ok(markdown::claims(text, &bindings.names()))
    }
}

/// Audits a document.
///
/// # Errors
/// What is wrong with the document or its bindings.
pub fn audit(
    file: &str,
    text: &str,
    bindings: &Bindings,
    open: OpenJob,
) -> Result<Audit, Diagnostic> {
    let mut all = claims(file, text, bindings)?;
    let ignored = bindings.correct(&mut all)?;
    let mut judge = judge::Judge {
        bindings,
        open,
        simulator: predict::Simulator::default(),
    };
    let rows: Vec<Row> = all
        .iter()
        .map(|c| judge.row(c, &all, ignored.get(&c.id).map(String::as_str)))
        .collect();
    let mut findings = checks::findings(&rows);
    findings.extend(markdown::broken_text(text));
    Ok(Audit {
        schema: SCHEMA,
        document: file.into(),
        rows,
        findings,
    })
}

/// The claims of a document as they were understood, none judged.
///
/// # Errors
/// What is wrong with the document or its bindings.
pub fn list(file: &str, text: &str, bindings: &Bindings) -> Result<Audit, Diagnostic> {
    let mut all = claims(file, text, bindings)?;
    bindings.correct(&mut all)?;
    Ok(Audit {
        schema: SCHEMA,
        document: file.into(),
        rows: all.into_iter().map(Row::unjudged).collect(),
        findings: vec![],
    })
}
