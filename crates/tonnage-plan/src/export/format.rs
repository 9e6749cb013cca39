//! The table of formats.

use super::{
    Options, Written, agi2, axolotl, companion, hf, job_file, llamafactory, request, serve,
    torchtitan, torchtune,
};
use tonnage_core::Job;
use tonnage_core::doc::{Diagnostic, Doc};
use tonnage_units::nearest;

/// What a format is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A job, whole.
    Job,
    /// Part of a job: a file that stands beside a trainer's.
    Companion,
    /// A serving engine's command line.
    Engine,
    /// A request for machines.
    Request,
}

/// A job, or everything that is wrong.
pub type Read = Result<Job, Vec<Diagnostic>>;

/// A row of the table.
pub struct Format {
    /// The word after `--to`.
    pub name: &'static str,
    /// Other words for it.
    pub also: &'static [&'static str],
    pub kind: Kind,
    /// The tool and the version whose source was read.
    pub what: &'static str,
    /// Of a companion: the settings that it can hold. Empty: all of a job.
    pub keys: &'static [&'static str],
    /// The files of a job; the first is the one that [`Format::read`] reads.
    pub write: fn(&Job, &Options) -> Result<Written, Vec<Diagnostic>>,
    /// Is this file of the format?
    pub recognise: Option<fn(&Doc) -> bool>,
    /// The job that a file says.
    pub read: Option<fn(&Doc) -> Read>,
}

/// Every format; a file is read by the first that recognises it.
pub static FORMATS: &[Format] = &[
    Format {
        name: "job",
        also: &["toml", "tonnage"],
        kind: Kind::Job,
        what: "this program's own job file",
        keys: &[],
        write: job_file::write,
        recognise: None,
        read: Some(tonnage_core::import::read_doc),
    },
    Format {
        name: "axolotl",
        also: &[],
        kind: Kind::Job,
        what: "axolotl 0.18",
        keys: &[],
        write: axolotl::write,
        recognise: Some(axolotl::is),
        read: Some(axolotl::read),
    },
    Format {
        name: "llamafactory",
        also: &["llama-factory", "lf"],
        kind: Kind::Job,
        what: "LLaMA-Factory 0.9.5",
        keys: &[],
        write: llamafactory::write,
        recognise: Some(llamafactory::is),
        read: Some(llamafactory::read),
    },
    Format {
        name: "torchtune",
        also: &["tune"],
        kind: Kind::Job,
        what: "torchtune 0.6, single-device recipes",
        keys: &[],
        write: torchtune::write,
        recognise: Some(torchtune::is),
        read: Some(torchtune::read),
    },
    Format {
        name: "torchtitan",
        also: &["titan"],
        kind: Kind::Job,
        what: "torchtitan 0.2.2",
        keys: &[],
        write: torchtitan::write,
        recognise: Some(torchtitan::is),
        read: Some(torchtitan::read),
    },
    Format {
        name: "agi2",
        also: &[],
        kind: Kind::Job,
        what: "AGI2's trainer",
        keys: &[],
        write: agi2::write,
        recognise: None,
        read: Some(agi2::read),
    },
    Format {
        name: "deepspeed",
        also: &["ds"],
        kind: Kind::Companion,
        what: "DeepSpeed 0.19: batch, accumulation, clipping",
        keys: companion::DEEPSPEED,
        write: companion::write_deepspeed,
        recognise: Some(companion::is_deepspeed),
        read: Some(companion::read_deepspeed),
    },
    Format {
        name: "accelerate",
        also: &[],
        kind: Kind::Companion,
        what: "accelerate 1.15: mixed precision",
        keys: companion::ACCELERATE,
        write: companion::write_accelerate,
        recognise: Some(companion::is_accelerate),
        read: Some(companion::read_accelerate),
    },
    Format {
        name: "trl",
        also: &["trl-sft", "sft"],
        kind: Kind::Job,
        what: "trl sft, TRL 1.16",
        keys: &[],
        write: hf::write_trl,
        recognise: Some(hf::is_trl),
        read: Some(hf::read_trl),
    },
    Format {
        name: "hf",
        also: &["transformers", "trainer", "training-arguments"],
        kind: Kind::Job,
        what: "arguments of a transformers script, 5.17",
        keys: &[],
        write: hf::write,
        recognise: Some(hf::is_hf),
        read: Some(hf::read),
    },
    engine(
        "vllm",
        &["vllm-serve"],
        "vLLM 0.33.0's command line",
        serve::vllm,
    ),
    engine(
        "llama-server",
        &["llamacpp", "llama.cpp"],
        "llama.cpp's server, v0.5.0",
        serve::llama_server,
    ),
    request(
        "slurm",
        &["sbatch"],
        "Slurm's batch script",
        request::slurm::write,
    ),
    request(
        "skypilot",
        &["sky"],
        "SkyPilot 0.14's task",
        request::skypilot::write,
    ),
    request(
        "kubernetes",
        &["k8s", "kueue"],
        "Kubernetes' Job, ready for Kueue",
        request::kubernetes::write,
    ),
    request(
        "ray",
        &["kuberay", "rayjob"],
        "KubeRay's RayJob",
        request::ray::write,
    ),
];

/// What a format's files are made by.
type Write = fn(&Job, &Options) -> Result<Written, Vec<Diagnostic>>;

/// A row of a command line: read by `estimate -- LINE`, not as a file.
const fn engine(
    name: &'static str,
    also: &'static [&'static str],
    what: &'static str,
    write: Write,
) -> Format {
    Format {
        name,
        also,
        kind: Kind::Engine,
        what,
        keys: &[],
        write,
        recognise: None,
        read: None,
    }
}

/// A row of a request: nothing of the job is read from it.
const fn request(
    name: &'static str,
    also: &'static [&'static str],
    what: &'static str,
    write: Write,
) -> Format {
    Format {
        kind: Kind::Request,
        ..engine(name, also, what, write)
    }
}

/// The format of this name.
///
/// # Errors
/// There is none; the nearest is said.
pub fn find(name: &str) -> Result<&'static Format, Diagnostic> {
    let lower = name.to_ascii_lowercase().replace('_', "-");
    FORMATS
        .iter()
        .find(|f| f.name == lower || f.also.contains(&lower.as_str()))
        .ok_or_else(|| {
            let words = FORMATS
                .iter()
                .flat_map(|f| std::iter::once(f.name).chain(f.also.iter().copied()));
            let d = Diagnostic::error("unknown-format", format!("no format is named `{name}`"));
            match nearest(&lower, words) {
                Some(n) => d.help(format!("did you mean `{n}`?")),
                None => {
                    let names: Vec<_> = FORMATS.iter().map(|f| f.name).collect();
                    d.help(format!("one of {}", names.join(", ")))
                }
            }
        })
}
