//! `tonnage report`: what if, in one file.

use super::plan::Bar;
use crate::Status;
use crate::args::SettingFlags;
use crate::jobs;
use crate::output::Output;
use crate::workers::Threads;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use tonnage_core::footprint::{Options, estimate};
use tonnage_core::workers::Crew;
use tonnage_core::{Diagnostic, Job};
use tonnage_plan::cards::{self, Here, Tried, largest::largest};
use tonnage_plan::plan;
use tonnage_plan::report;
use tonnage_plan::report::whatif::{self, Sweep, WhatIf};
use tonnage_report::chart::Dot;

/// `report`
#[derive(Args, Debug)]
pub struct ReportArgs {
    /// A job
    pub job: Option<PathBuf>,
    #[command(flatten)]
    pub settings: SettingFlags,
    /// The card that the question is about
    #[arg(long, value_name = "ID")]
    pub gpu: Option<String>,
    /// The cards of the table and the lines of the charts (default: the job's, and one of each usual size)
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub gpus: Vec<String>,
    /// Leave the plan out (its search takes the most time)
    #[arg(long)]
    pub no_plan: bool,
    /// Where to write it; without, to standard output
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Form of the output (default: by the file's name, else HTML)
    #[arg(long, value_enum)]
    pub format: Option<ReportFormat>,
}

/// `--format` of report
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    Html,
    Md,
}

/// One card of each usual size.
const USUAL: [&str; 8] = [
    "rtx-3070",
    "rtx-3060-12gb",
    "rtx-4060-ti-16gb",
    "rtx-4090",
    "rtx-5090",
    "a100-sxm4-40gb",
    "h100-sxm",
    "h200-sxm",
];

pub fn run(a: &ReportArgs, out: &Output) -> Status {
    if a.job.is_none() && a.settings.given.is_empty() {
        out.complain(&[Diagnostic::error("missing", "no job")
            .help("tonnage report JOB --gpu ID -o report.html")]);
        return Status::Usage;
    }
    let made = jobs::load(a.job.as_deref(), &a.settings).and_then(|job| {
        make(a, out, &job).map_err(|bad| {
            let s = jobs::status_of(&bad);
            (bad, s)
        })
    });
    let w = match made {
        Ok(w) => w,
        Err((bad, status)) => {
            out.complain(&bad);
            return status;
        }
    };
    let md = a
        .output
        .as_ref()
        .and_then(|p| p.extension())
        .is_some_and(|e| e == "md");
    let text = match a.format {
        Some(ReportFormat::Md) => whatif::markdown(&w, &out.style),
        None if md => whatif::markdown(&w, &out.style),
        _ => whatif::html(&w, &out.style),
    };
    match &a.output {
        None => out.print(&text),
        Some(p) => {
            if let Err(e) = std::fs::write(p, &text) {
                out.complain(&[Diagnostic::error(
                    "unwritable",
                    format!("{}: {e}", p.display()),
                )]);
                return Status::BadInput;
            }
        }
    }
    Status::Ok
}

/// Values around the job's own: halves and doubles.
fn around(own: u64, least: u64) -> Vec<u64> {
    let mut all = vec![own / 4, own / 2, own, own * 2, own * 3, own * 4];
    all.extend((own < 4).then_some(own * 8));
    all.retain(|n| *n >= least);
    all.dedup();
    all
}

fn sweep(
    job: &Job,
    d: &tonnage_core::verdict::Device,
    key: &str,
    least: u64,
    title: &str,
) -> Option<Sweep> {
    let own = job.count(key).filter(|n| *n > 0)?;
    let mut dots = vec![];
    for x in around(own, least) {
        let mut j = job.clone();
        // a value that cannot be (longer than the model's positions) has no dot
        if j.set_text(key, &x.to_string()).is_err() {
            continue;
        }
        let Ok(t) = Tried::new(&j, &d.gpu) else {
            continue;
        };
        dots.push(Dot {
            x,
            device: t.wanted() + d.outside().1,
            allocated: t.allocated(),
            own: x == own,
        });
    }
    (dots.len() > 1).then(|| Sweep {
        title: title.into(),
        setting: key.rsplit('.').next().unwrap_or(key).into(),
        dots,
    })
}

fn make(a: &ReportArgs, out: &Output, job: &Job) -> Result<WhatIf, Vec<Diagnostic>> {
    let options = Options {
        gpu: a.gpu.clone(),
        advice: true,
        gpus: out.catalogs.gpus.clone(),
        workers: Crew(&Threads),
        ..Options::default()
    };
    let footprint = estimate(job, &options)?.footprint;
    let d = options.device(&footprint.gpu)?;
    let mut names: Vec<String> = a.gpus.clone();
    if names.is_empty() {
        names.extend(footprint.gpu_stated.then(|| footprint.gpu.clone()));
        names.extend(job.texts("verdict.gpus"));
        names.extend(USUAL.map(String::from));
    }
    let mut gpus = vec![];
    for n in &names {
        let g = options.device(n)?.gpu;
        if !gpus.iter().any(|k: &tonnage_catalog::Gpu| k.id == g.id) {
            gpus.push(g);
        }
    }
    let mut expected = job.clone();
    expected.uncertain.clear();
    let (classes, _) = cards::classes(gpus, Here::default());
    let mut rows = cards::need::rows(&expected, &classes)?;
    rows.sort_by(|x, y| (x.usable_bytes, &x.gpu).cmp(&(y.usable_bytes, &y.gpu)));
    let generates = job.word("work.kind") == "generate";
    let (batch, length) = if generates {
        ("generate.batch_size", "generate.prompt_len")
    } else {
        ("train.micro_batch_size", "train.seq_len")
    };
    let sweeps = [
        sweep(&expected, &d, batch, 1, "Memory by batch"),
        sweep(&expected, &d, length, 16, "Memory by length"),
    ];
    let mut limits = vec![];
    if footprint.gpu_stated {
        for setting in [batch, length] {
            // a job without a length has none to enlarge
            if expected.count(setting).is_some_and(|n| n > 0)
                && let Ok(l) = largest(&expected, &d, setting, None)
            {
                limits.push(l);
            }
        }
    }
    // a plan is for a card, and for work that trains
    let mut sections = vec![];
    if footprint.gpu_stated && !generates && !a.no_plan {
        let o = plan::Options {
            gpus: out.catalogs.gpus.clone(),
            ..plan::Options::new(&footprint.gpu)
        };
        let bar = Bar::new();
        let found = plan::plan(&expected, &o, &Threads, &bar);
        bar.bar.finish_and_clear();
        sections = report::plan::sections(&found?, &out.style);
    }
    Ok(WhatIf {
        footprint,
        sweeps: sweeps.into_iter().flatten().collect(),
        cards: rows,
        largest: limits,
        sections,
        version: env!("CARGO_PKG_VERSION").into(),
    })
}
