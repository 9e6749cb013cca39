//! Generation and plain forward calls: whole recorded traces, event by event, every figure of the records, and what a cache costs.

mod events;

use events::{OWN, own, records};
use serde_json::{Value, json};
use tonnage_core::infer::kv_cache_bytes;
use tonnage_core::spec::{Spec, Work};
use tonnage_core::validate::torch_run::{figures, rows, spec};

/// Every recorded generation and forward call of both transformers versions is exact in every figure.
#[test]
fn recorded_inference_is_exact() {
    let mut exact = 0;
    for file in ["torch-trace-dev.jsonl", "torch-trace-tf457-dev.jsonl", OWN] {
        for r in records(file) {
            if r["config"]["kind"] == "train" {
                continue;
            }
            let id = r["id"].as_str().unwrap();
            for row in rows(&r) {
                assert_eq!(row.unsupported, None, "{id} {}", row.metric);
                assert_eq!(
                    row.error_pct, 0.0,
                    "{id} {}: {} recorded, {} predicted",
                    row.metric, row.measured, row.predicted
                );
            }
            exact += 1;
        }
    }
    assert_eq!(exact, 100, "rows of generation and forward calls");
}

#[test]
fn generation_events() {
    own("llama-tiny-generate-bf16-static");
    own("llama-tiny-generate-bf16-static-tf4.57.6");
    own("llama-tiny-generate-bf16-beams3");
    own("llama-tiny-generate-bf16-beams4-big");
    own("llama-tiny-generate-bf16-sample");
    own("llama-tiny-generate-bf16-end-token-tf4.57.6");
    own("mistral-tiny-generate-bf16-window");
    own("mistral-tiny-generate-bf16-window-tf4.57.6");
    own("gpt-per-head-generate-fp32");
    own("llama-tiny-generate-fp16-int8");
    own("deepseek-v3-tiny-generate-bf16");
    own("opt-tiny-generate-bf16");
    own("phi-tiny-generate-bf16");
    own("gemma3-tiny-generate-bf16");
    own("gemma2-tiny-generate-bf16-window");
    own("gemma2-tiny-generate-bf16");
    own("phi3-tiny-generate-bf16");
    own("mistral-tiny-generate-bf16-static-window");
    own("mistral-tiny-generate-bf16-static-window-tf4.57.6");
    own("mistral-tiny-generate-bf16-static-short");
    own("gemma2-tiny-generate-bf16-static-window");
    own("gemma3-tiny-generate-bf16-static");
    own("gpt-oss-tiny-generate-bf16");
    own("deepseek-v2-tiny-generate-bf16");
    own("qwen2-tiny-generate-bf16-beams3");
    own("qwen3-tiny-generate-bf16-beams3-nf4");
    own("phi-tiny-generate-bf16-tf4.57.6");
    own("phi3-tiny-generate-bf16-tf4.57.6");
    own("t5-tiny-generate-bf16");
    own("qwen3-tiny-forward-bf16-classification");
    own("bert-tiny-forward-fp16-embedding");
    own("qwen2-tiny-forward-bf16-embedding");
    own("llama-tiny-forward-bf16-classification-one");
}

/// Caches that no run without a GPU shows are refused by name, as are generations that are not modelled.
#[test]
fn what_cannot_be_recorded_is_refused() {
    for (cache, word) in [("offloaded", "second stream"), ("quantized", "quanto")] {
        let text = tonnage_core::simulate(&tiny(json!({"cache": cache})))
            .err()
            .expect("refused")
            .to_string();
        assert!(text.contains(word), "{text}");
    }
    for (change, word) in [
        (json!({"beams": 3}), "beams"),
        (json!({"cache": "static"}), "not dynamic"),
        (json!({"mask": "pad"}), "padding"),
    ] {
        let t5 = job("t5", json!({}), change);
        let text = tonnage_core::simulate(&t5).err().expect("refused");
        let text = text.to_string();
        assert!(text.contains("t5") && text.contains(word), "{text}");
    }
}

/// A decoder that classifies several sequences needs a padding token, as transformers says; it is not trained here.
#[test]
fn a_classifying_decoder_needs_a_padding_token() {
    let with = |kind: &str, changes: Value| {
        let mut args: Value = serde_json::from_str(TINY).unwrap();
        for (k, v) in changes.as_object().unwrap() {
            args[k] = v.clone();
        }
        let config = json!({
            "kind": kind, "model": {"family": "llama", "args": args, "head": "classification"},
            "gpu": "a100-sxm4-80gb", "precision": "bf16", "batch": 4, "seq": 64, "optim": "adamw_foreach"
        });
        let s = spec(&json!({"id": "job", "config": config, "versions": {}})).unwrap();
        tonnage_core::simulate(&s).map(|s| s.param_bytes)
    };
    let text = with("forward", json!({})).unwrap_err().to_string();
    assert!(text.contains("pad_token_id"), "{text}");
    assert!(with("forward", json!({"pad_token_id": 0})).is_ok());
    let text = with("train", json!({"pad_token_id": 0}))
        .unwrap_err()
        .to_string();
    assert!(text.contains("classification"), "{text}");
}

fn job(family: &str, args: Value, changes: Value) -> Spec {
    let mut config = json!({
        "kind": "generate", "model": {"family": family, "args": args}, "gpu": "a100-sxm4-80gb",
        "precision": "fp16", "batch": 1, "seq": 64, "new": 4
    });
    for (k, v) in changes.as_object().unwrap() {
        config[k] = v.clone();
    }
    spec(&json!({"id": "job", "config": config, "versions": {}})).unwrap()
}

fn llama_2(size: &str) -> Value {
    match size {
        "7b" => json!({"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
                       "intermediate_size": 11008, "vocab_size": 32000}),
        _ => json!({"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
                    "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 32000}),
    }
}

fn peak(s: &Spec) -> u64 {
    figures(&tonnage_core::simulate(s).unwrap().timeline).peak_allocated
}

/// The most that is allocated in the last decoding step.
fn last_step(s: &Spec) -> u64 {
    let f = figures(&tonnage_core::simulate(s).unwrap().timeline);
    f.per_mark[f.per_mark.len() - 2].allocated
}

const TINY: &str = r#"{"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4,
    "intermediate_size": 512, "vocab_size": 1000}"#;

fn tiny(changes: Value) -> Spec {
    job("llama", serde_json::from_str(TINY).unwrap(), changes)
}

#[test]
fn k9_cache_bytes_of_a_token_and_of_a_batch() {
    let seven = job("llama", llama_2("7b"), json!({}));
    assert_eq!(kv_cache_bytes(&seven, 1, 1).unwrap(), 524_288);
    assert_eq!(kv_cache_bytes(&seven, 8, 2048).unwrap(), 8_589_934_592);
    // eight key/value heads of sixty-four, not 2,621,440 bytes
    let seventy = job("llama", llama_2("70b"), json!({}));
    assert_eq!(kv_cache_bytes(&seventy, 1, 1).unwrap(), 327_680);
    assert_eq!(kv_cache_bytes(&seventy, 3, 100).unwrap(), 300 * 327_680);
}

/// A sliding layer holds its window less one token, as long as the sequence is longer than that.
#[test]
fn k9_a_window_bounds_the_cache() {
    let args: Value = serde_json::from_str(TINY).unwrap();
    let with = |w: Value| {
        let mut a = args.clone();
        a["sliding_window"] = w;
        let changes = json!({"seq": 2000, "new": 3, "batch": 4});
        last_step(&job("mistral", a, changes))
    };
    let token = kv_cache_bytes(&tiny(json!({})), 1, 1).unwrap();
    assert_eq!(token, 2 * 2 * 128 * 2);
    assert!(with(json!(100)) < with(Value::Null));
}

#[test]
fn k9_cache_on_and_off_and_quantised_weights() {
    let on = tiny(json!({"seq": 500, "new": 8}));
    let off = tiny(json!({"seq": 500, "new": 8, "use_cache": false}));
    // without a cache each token computes all before it again
    assert!(last_step(&on) < last_step(&off));
    // packed weights, the same cache
    let packed = tiny(json!({"precision": "bf16", "quant": "nf4"}));
    let plain = tiny(json!({"precision": "bf16"}));
    let bytes = |s: &Spec| kv_cache_bytes(s, 2, 10).unwrap();
    assert_eq!(bytes(&packed), bytes(&plain));
    let weights = |s: &Spec| tonnage_core::simulate(s).unwrap().param_bytes;
    assert!(weights(&packed) < weights(&plain));
}

#[test]
fn k24_half_precision_halves_weights_and_cache() {
    let at = |p: &str| tiny(json!({"precision": p}));
    let (full, half) = (at("fp32"), at("fp16"));
    let weights = |s: &Spec| {
        let sim = tonnage_core::simulate(s).unwrap();
        sim.param_bytes
    };
    assert_eq!(weights(&full), 2 * weights(&half));
    let cache = |s: &Spec| kv_cache_bytes(s, 4, 100).unwrap();
    assert_eq!(cache(&full), 2 * cache(&half));
    assert!(peak(&half) < peak(&full));
}

/// Training against generation of one model: the totals differ by gradients, states and activations, and generation follows its own
/// batch.
#[test]
fn k8_training_against_generation() {
    let run = |kind: &str, b: u64| {
        peak(&job(
            "llama",
            json!({"hidden_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 16, "intermediate_size": 4096,
                   "vocab_size": 32000}),
            json!({"kind": kind, "batch": b, "precision": "bf16", "optim": "adamw_foreach"}),
        ))
    };
    assert!(run("generate", 8) > run("generate", 1));
    assert!(run("train", 8) > run("train", 1));
    let ratio = run("train", 1) as f64 / run("generate", 1) as f64;
    assert!(
        ratio > 3.0,
        "gradients and two states beside the weights: {ratio}"
    );
}

/// A longer generation is the shorter one and more: the same events up to the shorter one's last step.
#[test]
fn long_decodes_go_on_as_short_ones() {
    let run = |new: u64| {
        let s = tiny(json!({"new": new, "seq": 20}));
        assert!(matches!(s.work, Work::Generate(_)));
        tonnage_core::simulate(&s).unwrap().timeline
    };
    let (short, long) = (run(8), run(300));
    let upto = short.marks[short.marks.len() - 2].at;
    assert_eq!(short.events[..upto], long.events[..upto]);
    assert_eq!(long.marks.len(), 2 + 300 + 1);
}
