//! Sizes by name: a model of the catalog, or a bare size such as `1.3B` that stands for a named one.

use tonnage_core::{Diagnostic, Job};

/// What bare sizes stand for, by parameters as people round them. Chosen for being the models that people mean by the size, or the ones
/// that the documents with size tables are about; each name is printed with its answer.
pub const REFERENCES: &[(&str, &str)] = &[
    ("125M", "facebook/opt-125m"),
    ("135M", "HuggingFaceTB/SmolLM2-135M"),
    ("355M", "openai-community/gpt2-medium"),
    ("360M", "HuggingFaceTB/SmolLM2-360M"),
    ("0.5B", "Qwen/Qwen2.5-0.5B"),
    ("774M", "openai-community/gpt2-large"),
    ("1B", "meta-llama/Llama-3.2-1B"),
    (
        "1.1B",
        "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
    ),
    ("1.3B", "facebook/opt-1.3b"),
    ("1.5B", "Qwen/Qwen2.5-1.5B"),
    ("1.7B", "HuggingFaceTB/SmolLM2-1.7B"),
    ("2.7B", "facebook/opt-2.7b"),
    ("3B", "meta-llama/Llama-3.2-3B"),
    ("4B", "Qwen/Qwen3-4B"),
    ("6.7B", "facebook/opt-6.7b"),
    ("7B", "meta-llama/Llama-2-7b-hf"),
    ("8B", "meta-llama/Llama-3.1-8B"),
    ("13B", "meta-llama/Llama-2-13b-hf"),
    ("14B", "Qwen/Qwen2.5-14B"),
    ("30B", "huggyllama/llama-30b"),
    ("32B", "Qwen/Qwen2.5-32B"),
    ("65B", "huggyllama/llama-65b"),
    ("70B", "meta-llama/Llama-2-70b-hf"),
    ("72B", "Qwen/Qwen2.5-72B"),
];

/// The sizes of the table "I have X GB: what can I train?".
pub const USUAL: [&str; 8] = ["125M", "355M", "774M", "1.3B", "3B", "7B", "13B", "70B"];

/// A model that an answer is about.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Size {
    /// As asked for.
    pub asked: String,
    /// The model that it stands for.
    pub model: String,
}

/// A number with `M` or `B` behind it, in parameters.
pub fn bare(text: &str) -> Option<f64> {
    let t = text.trim();
    let (n, unit) = (t.get(..t.len().checked_sub(1)?)?, t.chars().last()?);
    let scale = match unit {
        'M' | 'm' => 1e6,
        'B' | 'b' => 1e9,
        _ => return None,
    };
    n.parse::<f64>()
        .ok()
        .filter(|n| n.is_finite() && *n > 0.0)
        .map(|n| n * scale)
}

/// The model that a name or a bare size stands for.
///
/// # Errors
/// A size that no reference is within 10 percent of: the two on its sides. Names are looked up when the job is made.
pub fn size(text: &str) -> Result<Size, Diagnostic> {
    let of = |model: &str| Size {
        asked: text.trim().into(),
        model: model.into(),
    };
    let Some(n) = bare(text) else {
        return Ok(of(text.trim()));
    };
    let known = |r: &(&str, &str)| bare(r.0).unwrap_or(0.0);
    let near = REFERENCES.iter().min_by(|a, b| {
        (known(a) / n)
            .ln()
            .abs()
            .total_cmp(&(known(b) / n).ln().abs())
    });
    match near {
        Some(r) if (known(r) / n).ln().abs() < 1.1f64.ln() => Ok(of(r.1)),
        _ => {
            let below = REFERENCES.iter().rev().find(|r| known(r) < n);
            let above = REFERENCES.iter().find(|r| known(r) > n);
            let sides: Vec<String> = [below, above]
                .into_iter()
                .flatten()
                .map(|r| format!("{} ({})", r.0, r.1))
                .collect();
            Err(Diagnostic::error(
                "unknown-size",
                format!("no reference model is within 10 % of {}", text.trim()),
            )
            .help(format!(
                "the nearest are {}; or name a model",
                sides.join(" and ")
            )))
        }
    }
}

/// The code of the note that a bare size stands for a model.
pub const STANDS_FOR: &str = "size";

/// What a job's bare size stands for, if it names one.
pub fn said(job: &Job) -> impl Iterator<Item = String> {
    let notes = job.notes.iter().filter(|n| n.code == STANDS_FOR);
    notes.map(|n| n.message.clone())
}

/// A way to train.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    pub name: &'static str,
    pub what: &'static str,
    settings: &'static [(&'static str, &'static str)],
}

/// The methods that are compared, in the order of what they need.
pub const METHODS: [Method; 4] = [
    Method {
        name: "qlora",
        what: "4-bit weights (nf4, double quantisation), adapters of rank 16 on all linear layers, bf16 autocast",
        settings: &[
            ("model.dtype", "bf16"),
            ("train.precision", "bf16-mixed"),
            ("lora.r", "16"),
            ("lora.targets", "all-linear"),
            ("quant.format", "nf4"),
            ("quant.double", "true"),
        ],
    },
    Method {
        name: "lora",
        what: "bf16 weights, adapters of rank 16 on all linear layers, bf16 autocast",
        settings: &[
            ("model.dtype", "bf16"),
            ("train.precision", "bf16-mixed"),
            ("lora.r", "16"),
            ("lora.targets", "all-linear"),
        ],
    },
    Method {
        name: "full",
        what: "weights, gradients and AdamW in bf16",
        settings: &[("train.precision", "bf16")],
    },
    Method {
        name: "full-mixed",
        what: "fp32 weights, gradients and AdamW under bf16 autocast",
        settings: &[("train.precision", "bf16-mixed")],
    },
];

/// What every method does where nobody says otherwise.
pub const COMMON: &[(&str, &str)] = &[
    ("train.micro_batch_size", "1"),
    ("train.seq_len", "2048"),
    ("train.activation_checkpointing", "full"),
    ("train.optimizer", "adamw_foreach"),
];

/// The methods of a list of names.
///
/// # Errors
/// A name that is none.
pub fn methods(names: &[String]) -> Result<Vec<Method>, Diagnostic> {
    if names.is_empty() {
        return Ok(METHODS.to_vec());
    }
    names
        .iter()
        .map(|n| {
            METHODS
                .iter()
                .copied()
                .find(|m| m.name == n.trim())
                .ok_or_else(|| {
                    let all: Vec<_> = METHODS.iter().map(|m| m.name).collect();
                    Diagnostic::error("unknown-method", format!("no method is named `{n}`"))
                        .help(all.join(", "))
                })
        })
        .collect()
}

/// The job of a model trained by a method. `base` holds what the user set; that is never changed.
///
/// # Errors
/// The model is not known.
pub fn job(base: &Job, model: &str, m: &Method) -> Result<Job, Vec<Diagnostic>> {
    let bad = |e: String| vec![Diagnostic::error("bad-value", e)];
    let mut j = base.clone();
    for (k, v) in m.settings.iter().chain(COMMON) {
        if j.given(k).is_none() {
            j.set_text(k, v).map_err(bad)?;
        }
    }
    if j.given("model.id").is_none() && j.given("model.path").is_none() {
        j.set_text("model.id", model).map_err(bad)?;
    }
    // learned positions end where they end: a shorter sample is the longest there is
    if base.given("train.seq_len").is_none()
        && let Ok((_, c)) = j.model_config()
        && let Some(n) = ["n_positions", "max_position_embeddings", "n_ctx"]
            .iter()
            .find_map(|k| c.get(*k)?.as_u64())
        && n < 2048
    {
        j.set_text("train.seq_len", &n.to_string()).map_err(bad)?;
    }
    Ok(j)
}
