//! This program's own job file.

use super::{File, Options, Written};
use tonnage_core::Job;
use tonnage_core::doc::Diagnostic;
use tonnage_core::job::to_toml;

pub(super) fn write(job: &Job, _: &Options) -> Result<Written, Vec<Diagnostic>> {
    Ok(Written {
        files: vec![File {
            name: "job.toml".into(),
            text: to_toml(job),
            what: "the job".into(),
        }],
        command: Some("tonnage estimate job.toml".into()),
        notes: vec![],
    })
}
