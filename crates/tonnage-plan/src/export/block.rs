//! What a job says about itself and its surroundings, and no tool's file has a key for: written as comments of the file, and read back
//! from there. The lines begin with `#|` and are a job file of their own.

use tonnage_core::Job;
use tonnage_core::doc::{Diagnostic, Doc};
use tonnage_core::job::{Origin, read_job, to_toml};

/// The settings that a block may hold: nothing that the tool itself decides or has a key for.
const KEYS: &[&str] = &[
    "name",
    "gpu",
    "verdict.gpus",
    "allocator.conf",
    "train.steps",
    "train.mask",
    "stack.torch",
    "stack.transformers",
    "stack.peft",
    "stack.accelerate",
    "stack.bitsandbytes",
];
const MARK: &str = "#|";

/// Settings that a format may add: what its own key says less exactly (a builder's name for a model's id).
pub(super) const ALSO: &[&str] = &["model.id", "model.revision", "model.path"];

/// The comment lines of a job; empty where it says nothing of the kind.
pub(super) fn write(job: &Job, also: &[&'static str]) -> String {
    let mut part = Job::new(&job.source, job.format);
    for key in KEYS.iter().chain(also) {
        if let Some(g) = job.given(key) {
            // a value that was accepted once is accepted again
            let _ = part.set(key, g.value.clone(), Origin::Flag);
        }
    }
    part.uncertain.clone_from(&job.uncertain);
    let text = to_toml(&part);
    if text.is_empty() {
        return String::new();
    }
    let mut out =
        format!("# Lines with {MARK} are for tonnage alone; the tool does not see them.\n");
    for line in text.lines() {
        out.push_str(format!("{MARK} {line}").trim_end());
        out.push('\n');
    }
    out
}

/// Adds what the block of a file says to a job.
///
/// # Errors
/// The block is not a job file, or has other keys.
pub(super) fn read(doc: &Doc, job: &mut Job) -> Result<(), Vec<Diagnostic>> {
    if !doc.text.lines().any(|l| l.starts_with(MARK)) {
        return Ok(());
    }
    // blanked, not cut, so that places are the file's own
    let text: String = doc
        .text
        .split_inclusive('\n')
        .map(|l| match l.strip_prefix(MARK) {
            Some(rest) => format!("  {rest}"),
            None if l.ends_with('\n') => "\n".into(),
            None => String::new(),
        })
        .collect();
    let mut own = Doc::parse("block.toml", &text).map_err(|mut d| {
        if let Some(p) = &mut d.place {
            p.file.clone_from(&doc.file);
        }
        vec![d]
    })?;
    own.file.clone_from(&doc.file);
    let part = read_job(&own)?;
    let mut bad = Vec::new();
    for (key, g) in part.all_given() {
        if !KEYS.contains(&key) && !ALSO.contains(&key) {
            let d = Diagnostic::error(
                "unknown-key",
                format!("`{key}` has no place among the lines with {MARK}"),
            )
            .help("say it with the tool's own key");
            bad.push(match &g.origin {
                Origin::File(p) => d.at(p.clone()),
                _ => d,
            });
        } else if let Err(e) = job.set(key, g.value.clone(), g.origin.clone()) {
            bad.push(Diagnostic::error("bad-value", e));
        }
    }
    job.uncertain.extend(part.uncertain);
    if bad.is_empty() { Ok(()) } else { Err(bad) }
}
