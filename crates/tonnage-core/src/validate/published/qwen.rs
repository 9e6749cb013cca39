//! QwenLM/Qwen2.5, docs/source/benchmark/speed_benchmark.rst: `examples/speed-benchmark/speed_benchmark_transformer.py` prints
//! `max_memory_allocated() / 2**30` after one `generate` of 2,048 tokens, batch 1, bf16, flash attention, weights placed by
//! `device_map="auto"` (transformers 4.46: the last position's logits only).
//!
//! The allocated peak is that of the prompt's call or of the last token's, whichever is higher: both are simulated, the tokens between
//! them are not (a whole run of 2,048 tokens gives the same to 0.0004 GiB).

use super::{Predicted, Why, text};
use crate::spec::Spec;
use crate::validate::torch_run;
use serde_json::{Value, json};
use tonnage_sim::timeline::Phase;

/// The record's job with this prompt and this many new tokens.
fn job(r: &Value, config: &Value, prompt: u64, new: u64) -> Result<Spec, Why> {
    let record = json!({
        "id": text(r, "id"),
        "config": {
            "kind": "generate", "model": {"family": config["model_type"], "args": config}, "gpu": "a100-sxm4-80gb",
            "precision": "bf16", "attn": "flash_attention_2", "batch": 1, "seq": prompt, "new": new,
            // the generation configuration draws, and names an end token
            "sample": true, "eos": 1,
        },
        // 4.46's `generate` is taken to keep what the 4.57 one keeps, the oldest that is recorded
        "versions": {"transformers": "4.46.0"},
    });
    torch_run::spec(&record).map_err(|e| e.to_string())
}

/// The allocated peak of a phase.
fn peak(spec: &Spec, phase: Phase) -> Result<u64, Why> {
    let t = crate::simulate(spec).map_err(|e| e.to_string())?.timeline;
    let f = torch_run::figures(&t);
    let of = t.marks.iter().zip(&f.per_mark);
    let found = of
        .filter(|(m, _)| m.phase == phase)
        .map(|(_, p)| p.allocated);
    found.max().ok_or_else(|| "a phase is missing".into())
}

pub fn predict(r: &Value) -> Result<Predicted, Why> {
    if !text(r, "dtype").eq_ignore_ascii_case("bf16") {
        return Err(format!(
            "{} weights of this source are not modelled",
            text(r, "dtype")
        ));
    }
    let id = text(r, "config_id");
    let config = tonnage_catalog::model_config(&id.replacen("--", "/", 1))
        .ok_or_else(|| format!("no configuration of `{id}`"))?;
    let config: Value = serde_json::from_str(config).map_err(|e| e.to_string())?;
    let words: Vec<&str> = text(r, "seq_len").split(' ').collect();
    let n = |i: usize| words.get(i).and_then(|w| w.parse::<u64>().ok());
    let (Some(prompt), Some(new)) = (n(0), n(3)) else {
        return Err(format!("lengths `{}`", text(r, "seq_len")));
    };
    let first = peak(&job(r, &config, prompt, 1)?, Phase::Prefill)?;
    // the last call sees prompt + new - 1 tokens
    let last = if new > 1 {
        peak(&job(r, &config, prompt + new - 2, 2)?, Phase::Decode)?
    } else {
        0
    };
    Ok(Predicted {
        value: first.max(last) as f64,
        decimals: 2,
    })
}
