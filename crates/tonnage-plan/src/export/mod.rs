//! Launch files: a job in the form that the user's own tool starts from, and such files read back.
//!
//! One table, [`FORMATS`]; a row says how a job becomes the tool's files and, where files of it are read, how they are known and read.
//! The law, checked on every export by reading the text again: what the job says is in the file, or the export is an error that
//! names the field. What the job does *not* say becomes what the tool does, and every such change is listed ([`Exported::notes`]).

mod agi2;
mod axolotl;
mod block;
mod companion;
pub mod fields;
mod format;
mod hf;
mod job_file;
pub mod law;
mod lines;
mod llamafactory;
pub mod request;
pub mod serve;
mod source;
mod torchtitan;
mod torchtune;
pub mod yaml;

pub use format::{FORMATS, Format, Kind, find};

use tonnage_catalog::Gpus;
use tonnage_core::doc::{Diagnostic, Doc, Syntax};
use tonnage_core::{Job, import};

/// A file to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// The name that the other files and the command know it by.
    pub name: String,
    pub text: String,
    /// What it is for, in a few words.
    pub what: String,
}

/// What a launch file needs and a job does not say.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The card; `None`: the job's, where it names one.
    pub gpu: Option<String>,
    /// The cards there are: the catalog's and the user's own.
    pub gpus: Gpus,
    /// What a request for machines needs beside the job.
    pub request: request::Wants,
    /// The model as a file of llama.cpp's, for its command line.
    pub gguf: Option<String>,
}

/// A job in a tool's own form.
#[derive(Clone, Debug)]
pub struct Exported {
    /// The first is the one that was asked for; companions follow.
    pub files: Vec<File>,
    /// The command that starts it, where one is known.
    pub command: Option<String>,
    /// What the files say, read back: the job with what it left open as the tool has it.
    pub job: Job,
    /// Each thing that the job left open and that the tool does otherwise than assumed.
    pub notes: Vec<Diagnostic>,
}

/// What a format's writer gives.
#[derive(Clone, Debug, Default)]
pub struct Written {
    pub files: Vec<File>,
    pub command: Option<String>,
    /// What the format needs, the job does not say, and was taken.
    pub notes: Vec<Diagnostic>,
}

/// The job in a format's files.
///
/// # Errors
/// One for each field that the job gives and the format cannot say.
pub fn export(job: &Job, format: &Format, options: &Options) -> Result<Exported, Vec<Diagnostic>> {
    let written = (format.write)(job, options)?;
    let (job, mut notes) = match (&format.read, written.files.first()) {
        (Some(read), Some(file)) => {
            let doc = parse(&file.name, &file.text).map_err(|d| vec![defect(format, d)])?;
            let mut back = read(&doc).map_err(|bad| {
                bad.into_iter()
                    .map(|d| defect(format, d))
                    .collect::<Vec<_>>()
            })?;
            let notes = law::check(job, &mut back, format)?;
            (back, notes)
        }
        _ => (job.clone(), Vec::new()),
    };
    notes.extend(written.notes);
    Ok(Exported {
        files: written.files,
        command: written.command,
        job,
        notes,
    })
}

/// What was written does not read: the job has values that the tool refuses, or the writer is wrong.
fn defect(format: &Format, d: Diagnostic) -> Diagnostic {
    Diagnostic {
        message: format!("as {}: {}", format.name, d.message),
        ..d
    }
}

/// A job file of any known kind: the trainers' files of [`FORMATS`], else what [`import::read`] knows.
///
/// # Errors
/// Everything that is wrong with the file.
pub fn read(file: &str, text: &str) -> Result<Job, Vec<Diagnostic>> {
    // a file whose syntax is wrong as TOML or JSON is said to be so by the general reader
    let is_yaml = yaml::is_yaml(file, text);
    let doc = match parse(file, text) {
        Ok(d) => d,
        Err(d) if is_yaml => return Err(vec![d]),
        Err(_) => return import::read(file, text),
    };
    for f in FORMATS {
        if let (Some(known), Some(read)) = (f.recognise, f.read)
            && known(&doc)
        {
            return read(&doc);
        }
    }
    if is_yaml {
        let names: Vec<_> = FORMATS
            .iter()
            .filter(|f| f.recognise.is_some())
            .map(|f| f.name)
            .collect();
        return Err(vec![
            Diagnostic::error(
                "unknown-format",
                format!("{file}: no known kind of YAML file"),
            )
            .at(doc.place(&(0..1)))
            .help(format!(
                "known are: {}; or write a TOML job",
                names.join(", ")
            )),
        ]);
    }
    import::read(file, text)
}

/// Parses a file in its own syntax.
///
/// # Errors
/// The first thing that is not of the syntax.
pub fn parse(file: &str, text: &str) -> Result<Doc, Diagnostic> {
    if yaml::is_yaml(file, text) {
        yaml::parse(file, text)
    } else {
        debug_assert!(matches!(
            Syntax::of(file, text),
            Syntax::Toml | Syntax::Json
        ));
        Doc::parse(file, text)
    }
}
