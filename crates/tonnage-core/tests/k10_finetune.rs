//! K10: fine-tuning methods on whole jobs.

mod events;

use events::{OWN, records, unobserved};
use serde_json::{Value, json};
use tonnage_core::simulate;
use tonnage_core::validate::torch_run::{figures, rows, spec};

fn finetunes(record: &Value) -> bool {
    ["peft", "quant", "freeze"]
        .iter()
        .any(|k| record["config"].get(k).is_some())
}

/// Every recorded fine-tuning job of both transformers versions that is supported at all is exact in every figure.
#[test]
fn k10_recorded_fine_tuning_is_exact() {
    let (mut exact, mut unsupported) = (0, vec![]);
    for file in [
        "torch-trace-dev.jsonl",
        "torch-trace-tf457-dev.jsonl",
        "torch-trace-own.jsonl",
    ] {
        for record in records(file).iter().filter(|r| finetunes(r)) {
            let rows = rows(record);
            if let Some(why) = &rows[0].unsupported {
                unsupported.push(format!("{}: {why}", record["id"]));
                continue;
            }
            let wrong: Vec<_> = rows
                .iter()
                .filter(|r| r.error_pct > 0.0)
                .map(|r| (&r.metric, &r.measured, &r.predicted))
                .collect();
            assert!(wrong.is_empty(), "{}: {wrong:?}", record["id"]);
            exact += 1;
        }
    }
    assert!(exact >= 59, "{exact} exact, unsupported: {unsupported:?}");
}

/// Unobserved runs (gradients accumulate in place), event by event.
#[test]
fn k10_events_are_those_of_recorded_fine_tuning() {
    let all = records(OWN);
    for id in [
        "llama-tiny-plain-amp_bf16-nf4-dora8all",
        "llama-tiny-plain-bf16-nf4-single-lora8all-ckpt",
        "llama-tiny-plain-amp_bf16-int8-threshold-lora8all-ckpt",
        "llama-tiny-plain-amp_bf16-freeze1-embeddings",
        "qwen2-tiny-plain-amp_fp16-nf4-lora4all",
        "qwen2-tiny-plain-fp16-int8-threshold-dora4all-mask-ones",
        "gpt2-tiny-plain-fp16-dora4-d0-layer1",
        "gpt_neox-tiny-plain-fp16-nf4-dora4-d0-ckpt-tf4.57.6",
    ] {
        unobserved(all.iter().find(|r| r["id"] == id).unwrap());
    }
}

fn job(extra: Value) -> Value {
    let mut c = json!({"kind": "train", "gpu": "a100-sxm4-80gb", "precision": "bf16", "batch": 1, "seq": 64, "steps": 1,
        "optim": "adamw_foreach",
        "model": {"family": "llama", "args": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000}}});
    for (k, v) in extra.as_object().expect("an object") {
        c[k] = v.clone();
    }
    json!({"id": "job", "config": c})
}

fn trainable(extra: Value) -> u64 {
    simulate(&spec(&job(extra)).unwrap())
        .unwrap()
        .trainable_count
}

/// LoRA of Llama-2-13B in 16 bits holds at least its weights: 13,015,864,320 parameters of 2 bytes.
#[test]
fn k10_13b_lora_in_16_bit_is_never_below_its_weights() {
    let r = job(
        json!({"seq": 8, "ckpt": true, "peft": {"r": 8, "targets": ["q_proj", "v_proj"]},
        "model": {"family": "llama", "args": {"hidden_size": 5120, "intermediate_size": 13_824, "num_hidden_layers": 40,
            "num_attention_heads": 40, "num_key_value_heads": 40, "vocab_size": 32_000}}}),
    );
    let s = simulate(&spec(&r).unwrap()).unwrap();
    assert_eq!(s.param_count, 13_015_864_320);
    let f = figures(&s.timeline);
    assert!(
        f.load_peak_allocated >= 26_031_728_640,
        "{}",
        f.load_peak_allocated
    );
    assert!(f.peak_allocated > f.load_peak_allocated);
}

#[test]
fn k10_frozen_layers_have_no_gradients() {
    let layer = |n: u64| 256 * (256 + 128 + 128 + 256) * n + 3 * 256 * 512 * n + 2 * 256 * n;
    let head = 1000 * 256;
    assert_eq!(trainable(json!({})), 2 * head + layer(3) + 256);
    assert_eq!(
        trainable(json!({"freeze": {"layers": 2}})),
        2 * head + layer(1) + 256
    );
    assert_eq!(
        trainable(json!({"freeze": {"layers": 3, "embeddings": true}})),
        head + 256
    );
    let bad = spec(&job(json!({"freeze": {"layers": 4}}))).unwrap();
    assert!(
        simulate(&bad)
            .err()
            .expect("four of three layers")
            .to_string()
            .contains("4 of 3")
    );
}

/// A 4-bit model's trainable parameters are its adapters alone, whatever the precision of the rest.
#[test]
fn k10_only_adapters_of_a_packed_model_train() {
    let lora = json!({"r": 4, "targets": ["q_proj"], "dropout": 0.0});
    let n = 3 * 4 * (256 + 256);
    assert_eq!(trainable(json!({"peft": lora, "quant": "nf4"})), n);
    assert_eq!(trainable(json!({"peft": lora})), n);
}
