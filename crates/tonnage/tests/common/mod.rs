//! Helpers of the acceptance tests: the seeds' files, the program, footprints.
#![allow(dead_code)] // each test file uses its own part

pub mod document;

use std::path::PathBuf;
use std::process::{Command, Output};
use tonnage_core::footprint::{Component, Estimate, Footprint, Options, estimate};
use tonnage_core::{Diagnostic, Job, import};

/// A file of `tests/seeds`.
pub fn seed(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/seeds")
        .join(name)
}

/// The seed's file as a job.
pub fn read(name: &str) -> Result<Job, Vec<Diagnostic>> {
    let text = std::fs::read_to_string(seed(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    import::read(name, &text)
}

/// The seed's file, which is valid.
pub fn job(name: &str) -> Job {
    read(name).unwrap_or_else(|bad| panic!("{name}: {}", shown(&bad)))
}

pub fn shown(bad: &[Diagnostic]) -> String {
    bad.iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

/// The footprint at the expected values.
pub fn expected(job: &Job) -> Footprint {
    run(
        job,
        &Options {
            expected_only: true,
            ..Options::default()
        },
    )
    .footprint
}

pub fn run(job: &Job, options: &Options) -> Estimate {
    estimate(job, options).unwrap_or_else(|bad| panic!("{}: {}", job.title(), shown(&bad)))
}

/// A job from settings by name.
pub fn made(settings: &[(&str, &str)]) -> Job {
    let mut j = Job::new("test", "flags");
    for (k, v) in settings {
        j.set_text(k, v).unwrap_or_else(|e| panic!("{k}={v}: {e}"));
    }
    j
}

/// With other settings.
pub fn with(job: &Job, settings: &[(&str, &str)]) -> Job {
    let mut j = job.clone();
    for (k, v) in settings {
        j.set_text(k, v).unwrap_or_else(|e| panic!("{k}={v}: {e}"));
    }
    j
}

/// The program's answer.
pub fn tonnage(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tonnage"))
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR").to_string() + "/../..")
        .env_remove("NO_COLOR")
        // the answers are those of a machine without a GPU, wherever the tests run
        .env("TONNAGE_NO_DEVICE", "1")
        .output()
        .unwrap_or_else(|e| panic!("the program does not start: {e}"))
}

pub fn stdout(o: &Output) -> String {
    String::from_utf8(o.stdout.clone()).expect("UTF-8")
}

pub fn stderr(o: &Output) -> String {
    String::from_utf8(o.stderr.clone()).expect("UTF-8")
}

/// The parts that do not depend on the batch: model states.
pub fn states(f: &Footprint) -> [u64; 4] {
    [
        Component::Parameters,
        Component::Buffers,
        Component::Gradients,
        Component::OptimizerState,
    ]
    .map(|c| f.component(c))
}

pub const GPT: [&str; 10] = [
    "gpt-configs/tiny.json",
    "gpt-configs/small.json",
    "gpt-configs/150M.json",
    "gpt-configs/200M.json",
    "gpt-configs/250M.json",
    "gpt-configs/150M_1024.json",
    "gpt-configs/200M_1024.json",
    "gpt-configs/250M_1024.json",
    "gpt-configs/350M_1024.json",
    "gpt-configs/500M_1024.json",
];

pub const AGI2: [&str; 8] = [
    "agi2/default.toml",
    "agi2/large_model.toml",
    "agi2/lilwill.toml",
    "agi2/moby_dick.toml",
    "agi2/rj.toml",
    "agi2/small_model.toml",
    "agi2/lilwill-later.toml",
    "agi2/bigwill-later.toml",
];

pub const STATESET: [&str; 4] = [
    "stateset/stateset-7b.json",
    "stateset/stateset-7b-grpo.json",
    "stateset/stateset-7b-gspo.json",
    "stateset/stateset-7b-24gb.json",
];
