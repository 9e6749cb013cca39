//! Lightning-AI/litgpt, config_hub/finetune/README.md: its own model, adapters and loop.

use super::{Predicted, Why};
use serde_json::Value;

pub fn predict(_r: &Value, _oom: Option<f64>) -> Result<Predicted, Why> {
    Err("litgpt's own model and adapters are not simulated yet".into())
}
