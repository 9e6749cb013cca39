//! `tonnage plan`

use crate::Status;
use crate::args::SettingFlags;
use crate::jobs;
use crate::output::Output;
use crate::workers::Threads;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tonnage_core::Diagnostic;
use tonnage_plan::plan::{self, Allow, Margin, Objective, Options, Progress};
use tonnage_plan::report;
use tonnage_report::json;

/// `plan`
#[derive(clap::Args, Debug)]
pub struct PlanArgs {
    /// The job: a TOML file, or any file that `estimate` reads
    pub job: Option<PathBuf>,
    /// The card to fit
    #[arg(long, value_name = "ID")]
    pub gpu: Option<String>,
    /// What is wanted most
    #[arg(long, value_enum, default_value_t = Goal::Throughput)]
    pub objective: Goal,
    /// Changes of the method that may be made: optimizer, offload, precision, adapter, rank, quant, length, batch
    #[arg(long, value_delimiter = ',', value_name = "WHAT")]
    pub allow: Vec<String>,
    /// Kept free beside what the verdict leaves: 5%, 1GiB
    #[arg(long, default_value = "0%", value_name = "SIZE")]
    pub margin: String,
    /// Your price of the card, US dollars an hour
    #[arg(long, value_name = "USD")]
    pub price: Option<f64>,
    /// Tokens of the whole work, for its time and cost
    #[arg(long, value_name = "N")]
    pub tokens: Option<f64>,
    /// Form of the output
    #[arg(long, value_enum, default_value_t = PlanFormat::Text)]
    pub format: PlanFormat,
    /// Print the recommended settings as a file of this format (`tonnage export` lists them) in place of the plan
    #[arg(long, value_name = "FORMAT")]
    pub to: Option<String>,
    #[command(flatten)]
    pub settings: SettingFlags,
}

/// The job with the recommended settings.
fn recommended(job: &tonnage_core::Job, p: &plan::Plan) -> Result<tonnage_core::Job, Diagnostic> {
    let none = || Diagnostic::error("no-plan", "nothing fits: there is nothing to write");
    let mut job = job.clone();
    let point = p.recommended.as_ref().ok_or_else(none)?;
    for edit in &point.edits {
        edit.apply(&mut job)
            .map_err(|e| Diagnostic::error("defect", e))?;
    }
    Ok(job)
}

/// `--objective`
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Goal {
    Throughput,
    Cost,
    Memory,
}

/// `--format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum PlanFormat {
    Text,
    Json,
    Md,
    Csv,
}

/// A bar on standard error, where that is a terminal and the search is long; Ctrl-C ends the search, not the program.
pub struct Bar {
    pub bar: ProgressBar,
    stop: Arc<AtomicBool>,
}

impl Bar {
    pub fn new() -> Bar {
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::new(0)
        } else {
            ProgressBar::hidden()
        };
        let stop = Arc::new(AtomicBool::new(false));
        // a second Ctrl-C ends the program
        let _ = signal_hook::flag::register_conditional_shutdown(
            signal_hook::consts::SIGINT,
            130,
            Arc::clone(&stop),
        );
        let _ = signal_hook::flag::register(signal_hook::consts::SIGINT, Arc::clone(&stop));
        Bar { bar, stop }
    }
}

impl Progress for Bar {
    fn step(&self, what: &str, done: usize, total: usize) -> bool {
        // how many simulations there will be is not known before
        let form = if total == 0 {
            "{spinner} {msg}: {pos} settings ({elapsed})"
        } else {
            "{msg} {bar:30} {pos}/{len} ({eta} left)"
        };
        if let Ok(style) = ProgressStyle::with_template(form) {
            self.bar.set_style(style);
        }
        self.bar.set_message(what.to_string());
        self.bar.set_length(total.max(done) as u64);
        self.bar.set_position(done as u64);
        !self.stop.load(Ordering::Relaxed)
    }
}

fn usage(message: String, help: &str) -> Diagnostic {
    Diagnostic::error("bad-command", message).help(help)
}

fn options(a: &PlanArgs, out: &Output) -> Result<Options, Diagnostic> {
    let gpu = a
        .gpu
        .clone()
        .ok_or_else(|| usage("--gpu ID is needed".into(), "tonnage gpus lists them"))?;
    let names = Allow::ALL.map(Allow::name).join(", ");
    let allow = a.allow.iter().map(|w| {
        Allow::parse(w).ok_or_else(|| {
            usage(
                format!("--allow {w}: not a change of the method"),
                &format!("one of {names}"),
            )
        })
    });
    let positive = |what: &str, v: Option<f64>| match v {
        Some(x) if !(x.is_finite() && x > 0.0) => Err(usage(
            format!("--{what} {x} is not a positive number"),
            "give a number above 0",
        )),
        v => Ok(v),
    };
    Ok(Options {
        gpu,
        gpus: out.catalogs.gpus.clone(),
        objective: match a.objective {
            Goal::Throughput => Objective::Throughput,
            Goal::Cost => Objective::Cost,
            Goal::Memory => Objective::Memory,
        },
        allow: allow.collect::<Result<_, _>>()?,
        margin: Margin::parse(&a.margin)
            .map_err(|e| usage(format!("--margin: {e}"), "5% or 1GiB"))?,
        price: positive("price", a.price)?,
        tokens: positive("tokens", a.tokens)?,
    })
}

pub fn run(a: &PlanArgs, out: &Output) -> Status {
    let o = match options(a, out) {
        Ok(o) => o,
        Err(d) => {
            out.complain(&[d]);
            return Status::Usage;
        }
    };
    if a.job.is_none() && a.settings.given.is_empty() {
        out.complain(&[usage(
            "no job".into(),
            "give a file, or flags such as --model gpt2 --seq-len 1024",
        )]);
        return Status::Usage;
    }
    let job = match jobs::load(a.job.as_deref(), &a.settings) {
        Ok(j) => j,
        Err((bad, status)) => {
            out.complain(&bad);
            return status;
        }
    };
    let bar = Bar::new();
    let found = plan::plan(&job, &o, &Threads, &bar);
    bar.bar.finish_and_clear();
    match found {
        Err(bad) => {
            out.complain(&job.notes);
            out.complain(&bad);
            jobs::status_of(&bad)
        }
        Ok(p) if a.to.is_some() => {
            let options = tonnage_plan::export::Options {
                gpu: a.gpu.clone(),
                gpus: out.catalogs.gpus.clone(),
                ..Default::default()
            };
            match recommended(&job, &p) {
                Ok(job) => super::export::write(
                    &job,
                    a.to.as_deref().unwrap_or_default(),
                    &options,
                    None,
                    out,
                ),
                Err(d) => {
                    out.complain(&[d]);
                    Status::DoesNotFit
                }
            }
        }
        Ok(p) => {
            out.print(&match a.format {
                PlanFormat::Text => report::plan::text(&p, &out.style),
                PlanFormat::Json => json::pretty(&p),
                PlanFormat::Md => report::plan::markdown(&p, &out.style),
                PlanFormat::Csv => report::plan::csv(&p),
            });
            if p.fits() {
                Status::Ok
            } else {
                Status::DoesNotFit
            }
        }
    }
}
