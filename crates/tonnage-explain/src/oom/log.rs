//! A log's failures with their causes and changes: what `tonnage explain` prints.

use super::{Change, Diagnosis, Found, Message};
use crate::leak::{Finding, Verdict};
use serde::Serialize;

/// The version of the JSON form.
pub const SCHEMA: &str = "tonnage.explain/1";

/// A failure of a log.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// Where it is first, from 1.
    pub line: u64,
    pub times: u64,
    pub message: Message,
    pub diagnosis: Diagnosis,
}

/// What the job, where it is known, is predicted to need.
#[derive(Clone, Debug, Serialize)]
pub struct JobNote {
    pub job: String,
    pub peak_allocated_bytes: u64,
    pub peak_reserved_bytes: u64,
    /// When the peak is.
    pub phase: String,
    /// What the prediction says about the failure.
    pub says: String,
}

/// A log's failures.
#[derive(Clone, Debug, Serialize)]
pub struct Log {
    pub schema: &'static str,
    /// What this is: `log`.
    pub kind: &'static str,
    pub source: String,
    pub lines: u64,
    pub bytes: u64,
    pub failures: Vec<Failure>,
    /// Further distinct messages that were only counted.
    pub more: u64,
    /// What the log's own memory figures say, where there are enough.
    pub growth: Option<Verdict>,
    /// What that growth is over: `step` or `line`.
    pub growth_unit: &'static str,
    pub job: Option<JobNote>,
}

impl Log {
    /// Of what a scanner found.
    pub fn of(source: &str, found: &Found) -> Log {
        let growth =
            Some(found.series.series().verdict()).filter(|v| v.finding != Finding::TooShort);
        Log {
            schema: SCHEMA,
            kind: "log",
            source: source.into(),
            lines: found.lines,
            bytes: found.bytes,
            failures: found
                .errors
                .iter()
                .map(|e| Failure {
                    line: e.line,
                    times: e.times,
                    message: e.message.clone(),
                    diagnosis: Diagnosis::of(&e.message, e.leak.as_ref()),
                })
                .collect(),
            more: found.more,
            growth,
            growth_unit: found.series.unit(),
            job: None,
        }
    }

    /// The failure that ended the run: the first that is fatal, with the most figures of its moment.
    pub fn decisive(&self) -> Option<&Failure> {
        self.failures
            .iter()
            .find(|f| f.message.fatal)
            .or(self.failures.first())
    }

    /// Puts simulated changes of the job ahead of the general ones.
    pub fn with_job(&mut self, note: JobNote, changes: &[Change]) {
        for f in &mut self.failures {
            let mut all = changes.to_vec();
            // general advice that the simulation has replaced
            let general = f.diagnosis.changes.iter().filter(|c| {
                c.setting
                    .as_deref()
                    .is_some_and(|s| s.contains("ALLOC_CONF"))
                    || c.frees_bytes.is_some() && c.frees_bytes == f.diagnosis.others_bytes
            });
            let kept: Vec<Change> = if f.message.framework.is_torch() {
                general.cloned().collect()
            } else {
                f.diagnosis.changes.clone()
            };
            if f.message.framework.is_torch() {
                all.extend(kept);
            } else {
                all = kept;
            }
            f.diagnosis.changes = all;
        }
        self.job = Some(note);
    }
}
