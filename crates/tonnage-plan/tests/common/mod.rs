//! Jobs of the tests.
#![allow(dead_code)] // each test file uses its own part

use tonnage_catalog::Gpus;
use tonnage_core::footprint::{Options, estimate};
use tonnage_core::verdict::Verdict;
use tonnage_core::{Diagnostic, Job, import};
use tonnage_plan::cards::{Class, Here, classes};

/// A job from settings by name.
pub fn made(settings: &[(&str, &str)]) -> Job {
    with(&Job::new("test", "flags"), settings)
}

/// With other settings.
pub fn with(job: &Job, settings: &[(&str, &str)]) -> Job {
    let mut j = job.clone();
    for (k, v) in settings {
        j.set_text(k, v).unwrap_or_else(|e| panic!("{k}={v}: {e}"));
    }
    j
}

/// A file of `examples`.
pub fn example(name: &str) -> Job {
    let path = format!("{}/../../examples/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    import::read(name, &text).unwrap_or_else(|bad| panic!("{name}: {}", shown(&bad)))
}

pub fn shown(bad: &[Diagnostic]) -> String {
    bad.iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

/// GPT-2, small enough to be simulated often.
pub fn gpt2() -> Job {
    made(&[
        ("model", "gpt2"),
        ("model.config.n_layer", "3"),
        ("train.micro_batch_size", "4"),
        ("train.seq_len", "512"),
        ("train.precision", "bf16-mixed"),
        ("train.steps", "3"),
    ])
}

/// A Llama of few layers.
pub fn llama() -> Job {
    made(&[
        (
            "model",
            "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
        ),
        ("model.config.num_hidden_layers", "3"),
        ("train.micro_batch_size", "2"),
        ("train.seq_len", "1024"),
        ("train.precision", "bf16"),
        ("train.activation_checkpointing", "full"),
    ])
}

/// All cards with figures.
pub fn all() -> Vec<Class> {
    classes(Gpus::builtin().iter(), Here::default()).0
}

/// `estimate`'s verdict.
pub fn estimated(job: &Job, gpu: &str) -> Verdict {
    let options = Options {
        gpu: Some(gpu.into()),
        expected_only: true,
        ..Options::default()
    };
    let e = estimate(job, &options).unwrap_or_else(|bad| panic!("{gpu}: {}", shown(&bad)));
    e.footprint.decisive().unwrap().clone()
}
