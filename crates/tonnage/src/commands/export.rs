//! `tonnage export`

use crate::Status;
use crate::args::SettingFlags;
use crate::jobs;
use crate::output::Output;
use std::path::{Path, PathBuf};
use tonnage_core::footprint::{Options as EstimateOptions, estimate};
use tonnage_core::{Diagnostic, Job};
use tonnage_plan::export::request::Wants;
use tonnage_plan::export::{self, Exported, FORMATS, Options};

/// `export`
#[derive(clap::Args, Debug)]
pub struct ExportArgs {
    /// The job: a TOML file, or any file that `estimate` reads
    pub job: Option<PathBuf>,
    /// The tool that the file is for; without it, the formats are listed
    #[arg(long, value_name = "FORMAT")]
    pub to: Option<String>,
    /// Write the file there, and its companions beside it (default: standard output)
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// The card that the file is for
    #[arg(long, value_name = "ID")]
    pub gpu: Option<String>,
    /// Requests for machines: the command that starts the job
    #[arg(long, value_name = "COMMAND", help_heading = "Requests for machines")]
    pub start: Option<String>,
    /// Requests for machines: the container's image
    #[arg(long, value_name = "IMAGE", help_heading = "Requests for machines")]
    pub image: Option<String>,
    /// Requests for machines: Slurm's partition, Kueue's queue
    #[arg(long, value_name = "NAME", help_heading = "Requests for machines")]
    pub queue: Option<String>,
    /// Requests for machines: the scheduler's own name of the card
    #[arg(long, value_name = "NAME", help_heading = "Requests for machines")]
    pub gpu_type: Option<String>,
    /// Requests for machines: memory of the host
    #[arg(long, value_name = "SIZE", help_heading = "Requests for machines")]
    pub host_memory: Option<tonnage_units::Bytes>,
    /// Requests for machines: tokens of the whole work, for its time and cost
    #[arg(long, value_name = "N", help_heading = "Requests for machines")]
    pub tokens: Option<f64>,
    /// Requests for machines: your price of a card, US dollars an hour
    #[arg(long, value_name = "USD", help_heading = "Requests for machines")]
    pub price: Option<f64>,
    /// Command lines of llama.cpp: the model's file
    #[arg(long, value_name = "FILE", help_heading = "Requests for machines")]
    pub gguf: Option<String>,
    #[command(flatten)]
    pub settings: SettingFlags,
}

impl ExportArgs {
    fn options(&self, out: &Output) -> Options {
        Options {
            gpu: self.gpu.clone(),
            gpus: out.catalogs.gpus.clone(),
            request: Wants {
                start: self.start.clone(),
                image: self.image.clone(),
                queue: self.queue.clone(),
                gpu_type: self.gpu_type.clone(),
                host: self.host_memory.map(|b| b.0),
                tokens: self.tokens,
                price: self.price,
            },
            gguf: self.gguf.clone(),
        }
    }
}

pub fn run(a: &ExportArgs, out: &Output) -> Status {
    let Some(to) = &a.to else {
        out.print(&list());
        return Status::Ok;
    };
    if a.job.is_none() && a.settings.given.is_empty() {
        let d = Diagnostic::error("missing", "no job");
        out.complain(&[d.help("give a file, or flags such as --model gpt2 --seq-len 1024")]);
        return Status::Usage;
    }
    let job = match jobs::load(a.job.as_deref(), &a.settings) {
        Ok(j) => j,
        Err((bad, status)) => {
            out.complain(&bad);
            return status;
        }
    };
    write(&job, to, &a.options(out), a.out.as_deref(), out)
}

/// Writes a job in a format; what the files say and what they estimate to goes to standard error.
pub fn write(job: &Job, to: &str, options: &Options, file: Option<&Path>, out: &Output) -> Status {
    let format = match export::find(to) {
        Ok(f) => f,
        Err(d) => {
            out.complain(&[d]);
            return Status::Usage;
        }
    };
    let e = match export::export(job, format, options) {
        Ok(e) => e,
        Err(bad) => {
            out.complain(&bad);
            return Status::BadInput;
        }
    };
    if let Err(d) = put(&e, file, out) {
        out.complain(&[d]);
        return Status::Unavailable;
    }
    out.complain(&e.notes);
    if format.read.is_some() && format.keys.is_empty() {
        promise(job, &e, options.gpu.as_deref(), out);
    }
    Status::Ok
}

fn put(e: &Exported, file: Option<&Path>, out: &Output) -> Result<(), Diagnostic> {
    let save = |path: &Path, text: &str| {
        std::fs::write(path, text)
            .map_err(|x| Diagnostic::error("unwritable", format!("{}: {x}", path.display())))
    };
    let Some(file) = file else {
        let [first, others @ ..] = &e.files[..] else {
            return Ok(());
        };
        out.print(&first.text);
        for f in others {
            eprintln!("{}: {} (--out FILE writes it too)", f.name, f.what);
        }
        return Ok(());
    };
    for (i, f) in e.files.iter().enumerate() {
        let path = match i {
            0 => file.to_path_buf(),
            _ => file.with_file_name(&f.name),
        };
        save(&path, &f.text)?;
        eprintln!("{}: {}", path.display(), f.what);
    }
    if let (Some(c), Some(first)) = (&e.command, e.files.first()) {
        eprintln!(
            "start: {}",
            c.replace(&first.name, &file.display().to_string())
        );
    }
    Ok(())
}

/// What the written file estimates to, and what the job did where that is another number.
fn promise(job: &Job, e: &Exported, gpu: Option<&str>, out: &Output) {
    let options = EstimateOptions {
        gpu: gpu.map(String::from),
        expected_only: true,
        gpus: out.catalogs.gpus.clone(),
        ..EstimateOptions::default()
    };
    let peak = |j: &Job| {
        estimate(j, &options)
            .ok()
            .map(|e| e.footprint.peak.allocated.expected)
    };
    let shown = |n: u64| tonnage_units::Bytes(n).to_string();
    match (peak(job), peak(&e.job)) {
        (Some(ours), Some(theirs)) if ours == theirs => {
            eprintln!(
                "the file estimates to {} allocated, as the job does",
                shown(theirs)
            );
        }
        (Some(ours), Some(theirs)) if shown(ours) == shown(theirs) => eprintln!(
            "the file estimates to {} allocated, {} {} than the job as it stands",
            shown(theirs),
            shown(ours.abs_diff(theirs)),
            if theirs > ours { "more" } else { "less" }
        ),
        (Some(ours), Some(theirs)) => eprintln!(
            "the file estimates to {} allocated; the job as it stands to {}",
            shown(theirs),
            shown(ours)
        ),
        _ => {}
    }
}

fn list() -> String {
    let width = FORMATS.iter().map(|f| f.name.len()).max().unwrap_or(0);
    FORMATS
        .iter()
        .map(|f| {
            let reads = if f.read.is_some() {
                ""
            } else {
                " (written only)"
            };
            format!("{:width$}  {}{reads}\n", f.name, f.what)
        })
        .collect()
}
