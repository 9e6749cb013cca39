//! A model's own `config.json` as a job: the model, and nothing about the work.

use crate::doc::{Diagnostic, Doc};
use crate::job::{Job, Origin};

pub(super) fn read(doc: &Doc) -> Result<Job, Vec<Diagnostic>> {
    let mut job = Job::new(&doc.file, "config.json");
    let origin = Origin::File(doc.place(&(0..1)));
    job.set("model.config", doc.root.value.clone(), origin)
        .map_err(|e| vec![Diagnostic::error("bad-value", e)])?;
    let message = "this file describes a model, not a job: batch, length and the rest come from flags or are defaults";
    job.notes.push(Diagnostic::note("understood", message));
    Ok(job)
}
