//! AGI2's own estimator, restated (seed 3), for comparison with its documents and nothing else: a formula without logits, score maps,
//! biases or device context, whose activations have no element size. Always labelled.

use crate::doc::{Diagnostic, Doc};
use serde::Serialize;

/// How its results are labelled.
pub const LABEL: &str = "AGI2 formula (compatibility; not a prediction)";

const GIB: f64 = 1_073_741_824.0;

/// The arguments of its `estimate_memory_usage`, under its names.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Input {
    pub model_positions: u64,
    pub model_embd: u64,
    pub model_layer: u64,
    /// Not used by its formula.
    pub model_head: u64,
    pub batch_size: u64,
    pub seq_len: u64,
    pub vocab_size: u64,
    pub dtype_bytes: u64,
    pub include_activations: bool,
    pub include_optimizer: bool,
}

impl Default for Input {
    /// Its command line's defaults, which are also its defaults for fields missing from a file.
    fn default() -> Input {
        Input {
            model_positions: 512,
            model_embd: 384,
            model_layer: 6,
            model_head: 6,
            batch_size: 4,
            seq_len: 512,
            vocab_size: 50257,
            dtype_bytes: 4,
            include_activations: true,
            include_optimizer: true,
        }
    }
}

/// Its seven results: parameters in millions and GiB (printed as GB), each rounded to 2 decimals on its own.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Output {
    pub total_params_millions: f64,
    pub model_weights_gb: f64,
    pub activations_gb: f64,
    pub optimizer_state_gb: f64,
    pub gradients_gb: f64,
    pub io_tensors_gb: f64,
    pub total_estimated_gb: f64,
}

/// As Python's `round(x, 2)`: the exact binary value to two decimals.
fn round2(x: f64) -> f64 {
    format!("{x:.2}").parse().unwrap_or(x)
}

/// Its formula.
pub fn estimate(i: &Input) -> Output {
    let f = |n: u64| n as f64;
    let (v, e, p, l) = (
        f(i.vocab_size),
        f(i.model_embd),
        f(i.model_positions),
        f(i.model_layer),
    );
    let params = v * e + p * e + l * (12.0 * e * e) + l * 2.0 * e;
    let weights = params * f(i.dtype_bytes);
    let optimizer = if i.include_optimizer {
        2.0 * weights
    } else {
        0.0
    };
    let bse = f(i.batch_size) * f(i.seq_len) * e;
    // the element size is not applied to these two; that is the formula
    let activations = if i.include_activations {
        bse * l * 3.0
    } else {
        0.0
    };
    let io = bse * 2.0;
    Output {
        total_params_millions: round2(params / 1e6),
        model_weights_gb: round2(weights / GIB),
        activations_gb: round2(activations / GIB),
        optimizer_state_gb: round2(optimizer / GIB),
        gradients_gb: round2(weights / GIB),
        io_tensors_gb: round2(io / GIB),
        total_estimated_gb: round2((weights + weights + optimizer + activations + io) / GIB),
    }
}

/// Its advice for a total.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    pub name: &'static str,
    pub text: &'static str,
}

/// The level of a total in its GB (GiB): under 4 reasonable, to 8 moderate, to 12 high, above very high.
pub fn level(gb: f64) -> Level {
    if gb > 12.0 {
        Level {
            name: "very high",
            text: "very high; a high-end card (24 GB or more) or several GPUs",
        }
    } else if gb > 8.0 {
        Level {
            name: "high",
            text: "high; reduce the batch or the length, or take a card of 16 GB or more",
        }
    } else if gb >= 4.0 {
        Level {
            name: "moderate",
            text: "moderate; watch it, on a card of 8 GB or more",
        }
    } else {
        Level {
            name: "reasonable",
            text: "reasonable",
        }
    }
}

impl Input {
    /// From an AGI2 file and flags (by the names of this tool's settings), the estimator's defaults for the rest.
    ///
    /// # Errors
    /// The file does not parse, or a value is no number.
    pub fn read(
        file: Option<(&str, &str)>,
        flags: &[(String, String)],
    ) -> Result<Input, Vec<Diagnostic>> {
        let mut i = Input::default();
        if let Some((name, text)) = file {
            let doc = Doc::parse(name, text).map_err(|d| vec![d])?;
            for (k, v) in doc.root.table().unwrap_or_default() {
                let Some(slot) = i.slot(&k.name) else {
                    continue;
                };
                *slot = v.count().ok_or_else(|| {
                    vec![
                        Diagnostic::error(
                            "bad-value",
                            format!("`{}` is a whole number, not {}", k.name, v.value.shown()),
                        )
                        .at(doc.place(&v.span)),
                    ]
                })?;
            }
        }
        for (key, value) in flags {
            let bad = || {
                vec![Diagnostic::error(
                    "bad-flag",
                    format!("{key}: `{value}` is not a whole number"),
                )]
            };
            let name = match key.as_str() {
                "model.config.n_positions" => "model_positions",
                "model.config.n_embd" => "model_embd",
                "model.config.n_layer" => "model_layer",
                "model.config.n_head" => "model_head",
                "model.config.vocab_size" => "vocab_size",
                "train.micro_batch_size" => "batch_size",
                "train.seq_len" => "seq_len",
                "train.precision" => {
                    i.dtype_bytes = if value == "fp32" { 4 } else { 2 };
                    continue;
                }
                _ => {
                    return Err(vec![Diagnostic::error(
                        "bad-flag",
                        format!("{key} means nothing to AGI2's formula"),
                    )]);
                }
            };
            if let Some(slot) = i.slot(name) {
                *slot = value.parse().map_err(|_| bad())?;
            }
        }
        Ok(i)
    }

    fn slot(&mut self, name: &str) -> Option<&mut u64> {
        Some(match name {
            "model_positions" => &mut self.model_positions,
            "model_embd" => &mut self.model_embd,
            "model_layer" => &mut self.model_layer,
            "model_head" => &mut self.model_head,
            "batch_size" => &mut self.batch_size,
            "seq_len" => &mut self.seq_len,
            "vocab_size" => &mut self.vocab_size,
            _ => return None,
        })
    }
}

/// Its output in words: the components, the total, fp32 against fp16, and its advice.
pub fn text(i: &Input, o: &Output) -> String {
    let with = |d: u64| {
        estimate(&Input {
            dtype_bytes: d,
            ..i.clone()
        })
        .total_estimated_gb
    };
    let (fp32, fp16) = (with(4), with(2));
    format!(
        "{LABEL}\n{:.2} M parameters, batch {} x {} tokens, {} bytes an element\n\n\
         model weights    {:>8.2} GB\nactivations      {:>8.2} GB\noptimizer state  {:>8.2} GB\ngradients        {:>8.2} GB\nio tensors       {:>8.2} GB\ntotal            {:>8.2} GB\n\n\
         fp32 {fp32:.2} GB, fp16 {fp16:.2} GB: {:.2} GB less (GB here is 2^30 bytes)\nadvice: {}\n\n\
         Not counted by this formula: vocabulary logits, attention scores, biases, device context, the allocator's cache;\n\
         its fp16 halves weights and optimizer states, which autocast does not. `tonnage estimate` without --method simulates the run.\n",
        o.total_params_millions,
        i.batch_size,
        i.seq_len,
        i.dtype_bytes,
        o.model_weights_gb,
        o.activations_gb,
        o.optimizer_state_gb,
        o.gradients_gb,
        o.io_tensors_gb,
        o.total_estimated_gb,
        fp32 - fp16,
        level(o.total_estimated_gb).text
    )
}
