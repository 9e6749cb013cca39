//! Jobs that no machine runs: refused before their sizes overflow anything.

use super::{Job, Origin};
use crate::doc::Diagnostic;
use serde_json::Value as Json;
use tonnage_model::readers::config;

/// Tokens of one sample.
const SEQ: u64 = 1 << 24;
/// Samples times tokens of one forward pass.
const TOKENS: u64 = 1 << 28;
/// Scores of one attention layer: samples, heads, tokens, tokens.
const SCORES: u128 = 1 << 58;
/// Pixels of one forward pass.
const PIXELS: u64 = u32::MAX as u64;
/// Micro-batches of one step, each of which is simulated.
const ACCUMULATION: u64 = 4096;
/// Steps to simulate.
const STEPS: u64 = 1000;
/// Rank of an adapter.
const RANK: u64 = 1 << 20;

impl Job {
    /// What is too large to be meant.
    pub(super) fn limits(&self, config: &Json) -> Result<(), Diagnostic> {
        let n = |key: &str| self.count(key).unwrap_or(1);
        let (batch, seq) = (
            n("train.micro_batch_size"),
            n("train.seq_len").max(n("train.target_len")),
        );
        for (key, what, most) in [
            ("train.seq_len", "tokens", SEQ),
            ("train.target_len", "tokens", SEQ),
            ("train.micro_batch_size", "samples at a time", TOKENS),
            (
                "train.gradient_accumulation_steps",
                "micro-batches of a step",
                ACCUMULATION,
            ),
            ("train.steps", "steps", STEPS),
            ("lora.r", "ranks", RANK),
        ] {
            if n(key) > most {
                return Err(self.too_large(
                    key,
                    format!(
                        "{} {what} are more than are simulated (at most {most})",
                        n(key)
                    ),
                ));
            }
        }
        let key = "train.micro_batch_size";
        if batch.saturating_mul(seq) > TOKENS {
            let message = format!(
                "{batch} x {seq} tokens in one forward pass are more than are simulated (at most {TOKENS})"
            );
            return Err(self.too_large(key, message));
        }
        let heads = [
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "encoder_attention_heads",
        ]
        .iter()
        .find_map(|k| config.get(*k)?.as_u64())
        .unwrap_or(1);
        let scores = u128::from(batch) * u128::from(heads) * u128::from(seq).pow(2);
        if scores > SCORES || batch.saturating_mul(heads) > u64::from(u32::MAX) {
            let message =
                format!("{batch} x {heads} heads over {seq} tokens are more than are simulated");
            return Err(self.too_large(key, message));
        }
        let image = n("train.image_size");
        if self.given("train.image_size").is_some()
            && u128::from(batch) * u128::from(image).pow(2) > u128::from(PIXELS)
        {
            let message =
                format!("{batch} images of {image} x {image} are more than are simulated");
            return Err(self.too_large("train.image_size", message));
        }
        Ok(())
    }

    fn too_large(&self, key: &str, message: String) -> Diagnostic {
        self.placed(key, Diagnostic::error("bad-value", message))
    }

    fn placed(&self, key: &str, d: Diagnostic) -> Diagnostic {
        match self.given(key).map(|g| &g.origin) {
            Some(Origin::File(p)) => d.at(p.clone()),
            _ => d,
        }
    }

    /// Sizes of a configuration that no model has: zero, negative, enormous, heads that do not divide the width.
    pub(super) fn config_sizes(&self, config: &Json) -> Result<(), Diagnostic> {
        match config::parse(config.to_string().as_bytes()) {
            Ok(_) => Ok(()),
            Err(e) => {
                let message = format!("the model's `{}`: {}", e.field, e.problem);
                Err(self.placed("model.config", Diagnostic::error("bad-model", message)))
            }
        }
    }
}
