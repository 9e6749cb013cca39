#![no_main]
//! A description written by the user, built over a small configuration.

use libfuzzer_sys::fuzz_target;
use tonnage_model::describe::{Description, build};

fuzz_target!(|text: &str| {
    if let Ok(d) = Description::parse(text) {
        let config = serde_json::json!({"hidden_size": 8, "vocab_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 16, "num_experts": 4, "layer_types": ["a", "b"], "text_config": {"hidden_size": 4}});
        let _ = build(&d, &config);
    }
});
