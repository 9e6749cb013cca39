//! The program: arguments in, text out, an exit status that means something.

mod args;
mod catalogs;
mod commands;
mod dry;
mod engines;
mod headers;
mod here;
mod hook;
mod jobs;
mod models;
mod observed;
mod output;
mod prediction;
mod tui;
mod workers;

use clap::Parser;
use mimalloc::MiMalloc;
use std::process::ExitCode;

/// A simulation makes and drops small objects by the hundred thousand (docs/speed.md has the figures).
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// What a command ends with (DESIGN section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It fits, or it is done.
    Ok = 0,
    /// It does not fit.
    DoesNotFit = 1,
    /// Wrong use of the command line.
    Usage = 2,
    /// Bad input.
    BadInput = 3,
    /// Not available here, or not supported.
    Unavailable = 4,
}

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|defect| {
        let text = "a defect of tonnage, not of your input; please report it with the command";
        eprintln!("error: {text}\n  = {defect}");
        std::process::exit(70);
    }));
    let cli = args::Cli::parse_from(engines::arguments(std::env::args_os()));
    let mut out = output::Output::new(&cli.global);
    match catalogs::Catalogs::new(&cli.global.catalog) {
        Ok(c) => out.catalogs = c,
        Err(bad) => {
            out.complain(&bad);
            return ExitCode::from(Status::BadInput as u8);
        }
    }
    let status = match &cli.command {
        args::Command::Estimate(a) => commands::estimate::run(a, &out),
        args::Command::Compare(a) => commands::compare::run(a, &out),
        args::Command::Fit(a) => commands::fit::run(a, &out),
        args::Command::Calibrate(a) => commands::calibrate::run(a, &out),
        args::Command::Explain(a) => commands::explain::run(a, &out),
        args::Command::Export(a) => commands::export::run(a, &out),
        args::Command::Audit(a) => commands::audit::run(a, &out),
        args::Command::Plan(a) => commands::plan::run(a, &out),
        args::Command::Validate(a) => commands::validate::run(a, &out),
        args::Command::Models(a) => commands::catalog::models(a, &out),
        args::Command::DryRun(a) => commands::dry_run::run(a, &out),
        args::Command::Watch(a) => commands::watch::run(a, &out),
        args::Command::Replay(a) => commands::replay::run(a, &out),
        args::Command::Diff(a) => commands::diff::run(a, &out),
        args::Command::Measure(a) => commands::measure::run(a, &out),
        args::Command::Run(a) => commands::run::run(a, &out),
        args::Command::History(a) => commands::history::run(a, &out),
        args::Command::Doctor(a) => commands::doctor::run(a, &out),
        args::Command::Report(a) => commands::report::run(a, &out),
        args::Command::Gpus(a) => commands::gpus::run(a, &out),
        args::Command::Instances(a) => commands::instances::run(a, &out),
        args::Command::Schema(a) => commands::schema::run(a, &out),
    };
    ExitCode::from(status as u8)
}
