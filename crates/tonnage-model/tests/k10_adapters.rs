//! K10: fine-tuning methods: exact adapter counts, and what stays unquantised.

use serde_json::json;
use tonnage_model::adapt::{LoraOptions, QuantScope, Targets, lora, quant};
use tonnage_model::arch::{self, Head};
use tonnage_model::{ModelError, Net, Stack};

fn deepseek() -> Net {
    let c = json!({"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
        "intermediate_size": 8960, "vocab_size": 151_936});
    arch::build("qwen2", &c, Head::Default, &Stack::default())
        .expect("a qwen2 model")
        .net
}

fn projections() -> Targets {
    Targets::Names(
        [
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ]
        .map(String::from)
        .to_vec(),
    )
}

/// DeepSeek-R1-Distill-Qwen-1.5B, r = 32 on the seven projections: the count that peft prints.
#[test]
fn k10_adapter_count_of_the_deepseek_job() {
    let net = deepseek();
    assert_eq!(
        lora::adapter_params(&net, &LoraOptions::new(32, projections(), 0.05)).unwrap(),
        36_929_536
    );
    let all = LoraOptions::new(32, Targets::from_string("all-linear"), 0.0);
    assert_eq!(
        lora::adapter_params(&net, &all).unwrap(),
        36_929_536,
        "all-linear leaves only the head out"
    );
    let by_pattern = LoraOptions::new(
        32,
        Targets::from_string(r".*\.(self_attn|mlp)\.\w+_proj"),
        0.0,
    );
    assert_eq!(lora::adapter_params(&net, &by_pattern).unwrap(), 36_929_536);
}

/// DoRA adds one magnitude for each output: q, o, down 1536, k, v 256, gate, up 8960, in 28 layers.
#[test]
fn k10_dora_adds_a_magnitude_for_each_output() {
    let mut o = LoraOptions::new(32, projections(), 0.0);
    o.dora = true;
    assert_eq!(
        lora::adapter_params(&deepseek(), &o).unwrap(),
        36_929_536 + 28 * (3 * 1536 + 2 * 256 + 2 * 8960)
    );
}

#[test]
fn k10_layers_and_exclusions_restrict_targets() {
    let net = deepseek();
    let one = 36_929_536 / 28;
    let mut o = LoraOptions::new(32, projections(), 0.0);
    o.layers = Some(vec![0, 27]);
    assert_eq!(lora::adapter_params(&net, &o).unwrap(), 2 * one);
    o.layers = None;
    o.exclude = vec!["down_proj".into()];
    assert_eq!(
        lora::adapter_params(&net, &o).unwrap(),
        28 * (one - 32 * (1536 + 8960))
    );
}

/// What a 4-bit or 8-bit load leaves in its own dtype: embeddings, norms, the head.
#[test]
fn k10_lists_what_stays_unquantised() {
    let names = quant::unquantised(&deepseek(), &QuantScope::Library);
    assert_eq!(names.len(), 1 + 2 * 28 + 1 + 1);
    assert_eq!(names[0], "model.embed_tokens");
    assert!(names.contains(&"model.layers.27.post_attention_layernorm".to_string()));
    assert!(names.contains(&"model.norm".to_string()));
    assert_eq!(names.last().unwrap(), "lm_head");
    assert!(!names.iter().any(|n| n.contains("_proj")));
}

#[test]
fn a_target_that_matches_nothing_says_what_there_is() {
    let o = LoraOptions::new(8, Targets::Names(vec!["query_key_value".into()]), 0.0);
    let e = lora::adapter_params(&deepseek(), &o).unwrap_err();
    assert!(matches!(e, ModelError::Field { .. }));
    assert!(e.to_string().contains("q_proj, k_proj"), "{e}");
}
