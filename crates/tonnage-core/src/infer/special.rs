//! The special tokens that `generate` puts on the device (generation/utils.py, `_prepare_special_tokens`).

use serde_json::Value;

/// Configuration classes whose `bos_token_id` is None by default (transformers 5.17 and 4.57.6,
/// models/*/configuration_*.py); the others name one.
const WITHOUT_BOS: [&str; 12] = [
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "gpt_oss",
    "olmo",
    "olmo2",
    "glm",
    "glm4",
    "t5",
    "granitemoe",
    "lfm2_moe",
];

/// Does the model's configuration name a first token?
pub fn has_bos(model_type: &str, config: &Value) -> bool {
    match config.get("bos_token_id") {
        Some(v) => !v.is_null(),
        None => !WITHOUT_BOS.contains(&model_type),
    }
}
