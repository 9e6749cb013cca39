#![no_main]
//! `config.json`: read strictly, then counted through its description.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(config) = tonnage_model::readers::config::parse(bytes) {
        let _ = config.model_type();
        // a count may allocate one entry per module: small models only, so that a run is fast
        let layers = |v: &serde_json::Value| {
            [
                "num_hidden_layers",
                "n_layer",
                "num_layers",
                "n_layers",
                "encoder_layers",
                "decoder_layers",
                "depth",
            ]
            .iter()
            .all(|k| {
                v.get(k)
                    .and_then(serde_json::Value::as_u64)
                    .is_none_or(|n| n < 100)
            })
        };
        if layers(config.value()) {
            let _ = tonnage_model::count::count(config.value());
        }
    }
});
