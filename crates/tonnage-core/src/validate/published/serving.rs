//! Start-up lines of serving engines. Only what has not changed between the logged version and the one whose rules are known is
//! predicted: weights of vLLM (a rank's own), model and KV buffers of llama.cpp.

use super::{Predicted, Why, number, text};
use crate::serve::llamacpp::{self, Buft, Device, FlashAttention, Kind};
use crate::serve::vllm;
use serde_json::Value;
use tonnage_model::readers::gguf::{Progress, header};

/// `model_weights` of a vLLM log: "Loading model weights took", `memory_allocated()` before and after in the older versions too.
pub fn vllm(r: &Value) -> Result<Predicted, Why> {
    let metric = text(r, "measured_metric");
    if metric != "model_weights" {
        return Err(format!(
            "{metric} of vLLM {}: the profile run of 0.33.0 is another one",
            text(r, "versions")
        ));
    }
    let dtype = text(r, "dtype");
    if !matches!(dtype, "bf16" | "fp16") {
        return Err(format!("{dtype} weights of this source"));
    }
    let id = text(r, "config_id").replacen("--", "/", 1);
    let config =
        tonnage_catalog::model_config(&id).ok_or_else(|| format!("no configuration of `{id}`"))?;
    let mut config: Value = serde_json::from_str(config).map_err(|e| e.to_string())?;
    if text(r, "model").starts_with("Qwen2.5-1.5B-Instruct") {
        // the catalog has the base model's file, with 131,072 positions
        config["max_position_embeddings"] = 32768.into();
    }
    let model = vllm::model::read(&config).map_err(|e| e.to_string())?;
    let settings = vllm::Settings {
        max_model_len: number(r, "seq_len").unwrap_or(8192),
        max_num_batched_tokens: 2048,
        max_num_seqs: 256,
        gpu_memory_utilization: 0.9,
        tensor_parallel_size: number(r, "num_gpus").unwrap_or(1),
        block_size: None,
        kv_bytes: 2,
        enable_prefix_caching: true,
        enforce_eager: true,
        inductor_cache_warm: true,
        kv_cache_memory_bytes: None,
    };
    // the weights do not depend on the card
    let card = vllm::Card {
        total: 96 << 30,
        free: 95 << 30,
        hopper: false,
        fp8: false,
        multiprocessors: 108,
    };
    let s = vllm::start(&model, &settings, &card).map_err(|e| e.to_string())?;
    Ok(Predicted {
        value: s.weights_bytes as f64,
        decimals: 2,
    })
}

/// The inventory that has the tensors of a row's file.
fn inventory(r: &Value) -> Option<&'static str> {
    let dtype = text(r, "dtype");
    Some(match (text(r, "model"), dtype.split([';', ' ']).nth(1)?) {
        // the same shapes as Llama 2 7B: 32 layers of 4096, 11008 wide, 32000 tokens
        ("open_llama_7b_v2", "F16") => "llama-2-7b.F16",
        ("open_llama_7b_v2", "Q8_0") => "llama-2-7b.Q8_0",
        ("Llama-3.1-8B", "Q4_K_M") => "llama-3.1-8b.Q4_K_M",
        // the source says no more than 4 bits; its cache does not depend on them
        ("Phi-3-mini-4k", _) => "phi-3-mini-4k.Q4_K_M",
        _ => return None,
    })
}

/// Model and KV buffers of a llama.cpp log, everything offloaded, caches in f16.
pub fn llamacpp(
    r: &Value,
    file: &mut dyn FnMut(&str) -> Option<Vec<u8>>,
) -> Result<Predicted, Why> {
    let kind = match text(r, "measured_metric") {
        "CUDA0 model buffer" => Kind::Weights,
        "KV buffer" => Kind::KvCache,
        m => {
            return Err(format!(
                "{m}: the graphs of the logged build are not those of 0.5.0"
            ));
        }
    };
    let name = inventory(r).ok_or("no inventory of this file's tensors")?;
    if kind == Kind::Weights && text(r, "model").starts_with("Phi-3") {
        return Err("the source does not say which 4-bit file".into());
    }
    let bytes = file(&format!("{name}.gguf-header"))
        .ok_or_else(|| format!("no header file `{name}` here"))?;
    let gguf = match header(&bytes, Some(bytes.len() as u64)) {
        Ok(Progress::Done(g)) => g,
        Ok(Progress::Need(_)) => return Err("the header is cut short".into()),
        Err(e) => return Err(e.to_string()),
    };
    let context = text(r, "seq_len")
        .strip_prefix("n_ctx ")
        .and_then(|n| n.parse().ok())
        .ok_or("no context length")?;
    let settings = llamacpp::Settings {
        context_len: context,
        gpu_layers: 999,
        flash_attention: FlashAttention::Off,
        devices: vec![Device::default()],
        ..llamacpp::Settings::default()
    };
    let e = llamacpp::estimate(&gguf, &settings).map_err(|e| e.to_string())?;
    let value = match kind {
        Kind::Weights => e.bytes(Buft::Cuda(0), kind),
        _ => e
            .buffers
            .iter()
            .filter(|b| b.kind == kind)
            .map(|b| b.bytes)
            .sum(),
    };
    Ok(Predicted {
        value: value as f64,
        decimals: 2,
    })
}
