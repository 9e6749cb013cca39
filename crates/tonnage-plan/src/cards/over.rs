//! Cards for a job.

use super::runs::Runs;
use super::{Class, Row, SCHEMA, Unanswered, row_of};
use serde::Serialize;
use tonnage_core::verdict::{Device, Outcome};
use tonnage_core::{Diagnostic, Job};

/// The cards of the catalog for a job, the least usable memory first.
#[derive(Clone, Debug, Serialize)]
pub struct Over {
    pub schema: &'static str,
    pub question: &'static str,
    pub job: String,
    pub micro_batch_size: u64,
    pub effective_batch: u64,
    pub rows: Vec<Row>,
    /// What somebody else says of each row, as given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<String>,
    pub unanswered: Vec<Unanswered>,
    pub notes: Vec<String>,
}

impl Over {
    /// Puts the classes' rows together.
    pub fn new(job: &Job, mut rows: Vec<Row>, unanswered: Vec<Unanswered>) -> Over {
        rows.sort_by(|a, b| (a.available_bytes, &a.gpu).cmp(&(b.available_bytes, &b.gpu)));
        Over {
            schema: SCHEMA,
            question: "cards",
            job: job.title(),
            micro_batch_size: job.count("train.micro_batch_size").unwrap_or(1),
            effective_batch: job.effective_batch(),
            rows,
            claims: vec![],
            unanswered,
            notes: super::sizes::said(job)
                .chain(job.unsupported.clone())
                .collect(),
        }
    }

    /// The rows in the order of these cards.
    pub fn in_order(&mut self, ids: &[String]) {
        self.rows
            .sort_by_key(|r| ids.iter().position(|i| *i == r.gpu));
    }

    /// Rows of an outcome.
    pub fn count(&self, o: Outcome) -> usize {
        self.rows.iter().filter(|r| r.outcome == o).count()
    }

    /// Whether any card runs it.
    pub fn any(&self) -> bool {
        self.rows.iter().any(|r| r.outcome != Outcome::No)
    }
}

/// The rows of a job over classes of cards.
///
/// # Errors
/// What `estimate` says to the job.
pub fn rows<'a>(
    job: &Job,
    classes: impl IntoIterator<Item = &'a Class>,
) -> Result<Vec<Row>, Vec<Diagnostic>> {
    let mut runs = Runs::new(job)?;
    let mut rows = Vec::new();
    for c in classes {
        let run = runs.on(c)?;
        let row = |d: &Device| row_of(run.wanted(), run.outcome(d), d);
        rows.extend(c.cards.iter().map(row));
    }
    Ok(rows)
}
