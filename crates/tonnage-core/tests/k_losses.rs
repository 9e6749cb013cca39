//! Losses that a script writes or installs in the library's place, and `zero_grad()` between forward and backward.

mod events;

use events::{OWN, exact_rows, records, unobserved};
use serde_json::{Value, json};
use tonnage_core::simulate;
use tonnage_core::validate::torch_run::{figures, spec};

fn recorded(wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
    let mut all = records(OWN);
    all.retain(|r| wanted(&r["config"]));
    all
}

#[test]
fn recorded_chunked_losses_are_exact_event_by_event() {
    let all = recorded(|c| c["loss"] == "chunked");
    assert!(all.len() >= 2);
    exact_rows(&all);
    all.iter().for_each(unobserved);
}

/// The list of counted tokens is read back from a kernel that did not run in the recordings: figures only.
#[test]
fn recorded_cut_losses_are_exact() {
    let all = recorded(|c| c["loss"] == "cut");
    assert!(all.len() >= 2);
    exact_rows(&all);
}

#[test]
fn recorded_late_zero_grad_is_exact_event_by_event() {
    let all = recorded(|c| c["zero_grad"] == "before_backward");
    assert!(all.iter().any(|r| r["config"]["set_to_none"] == false));
    assert!(all.iter().any(|r| r["config"]["set_to_none"].is_null()));
    exact_rows(&all);
    all.iter().for_each(unobserved);
}

fn job(extra: Value) -> Value {
    let mut c = json!({"kind": "train", "gpu": "a100-sxm4-80gb", "precision": "bf16", "batch": 4, "seq": 512, "steps": 2,
        "optim": "sgd", "model": {"family": "llama", "args": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 32_000}}});
    for (k, v) in extra.as_object().unwrap() {
        c[k] = v.clone();
    }
    json!({"id": "job", "config": c})
}

/// Fewer logits at a time, less memory: whole, by chunks, fused, none at all.
#[test]
fn losses_come_in_the_order_of_what_they_keep() {
    let peak = |extra: Value| {
        let s = simulate(&spec(&job(extra)).unwrap()).unwrap();
        figures(&s.timeline).peak_allocated
    };
    let [library, chunked, liger, cut] = [
        json!({}),
        json!({"loss": "chunked"}),
        json!({"loss": "liger"}),
        json!({"loss": "cut"}),
    ]
    .map(peak);
    assert!(
        library > chunked && chunked > liger && chunked > cut,
        "{library} {chunked} {liger} {cut}"
    );
    // log-probabilities in fp32 of all tokens stay with chunks
    assert!(chunked > 4 * 512 * 32_000 * 4);
    // the weight's gradient twice, and nothing of a chunk's logits' size
    assert!(cut < 4 * 512 * 32_000 * 2);
}

#[test]
fn what_a_kernel_cannot_take_is_refused() {
    let refused = |extra: Value, what: &str| {
        let e = simulate(&spec(&job(extra)).unwrap()).err().unwrap();
        assert!(e.to_string().contains(what), "{e}");
    };
    refused(json!({"loss": "cut", "precision": "amp_bf16"}), "32-bit");
    refused(
        json!({"attn": "flash_attention_2", "precision": "fp32"}),
        "fp32",
    );
    refused(
        json!({"attn": "flash_attention_2", "mask": "pad"}),
        "padded",
    );
    refused(
        json!({"attn": "flash_attention_2", "model": {"family": "nanogpt", "args": {}}}),
        "nanogpt",
    );
}

/// flash-attn keeps q, k, v, the output and one number per row and head: less than scores.
#[test]
fn flash_attention_2_keeps_no_scores() {
    let run = |attn: &str| {
        let s = simulate(&spec(&job(json!({"attn": attn}))).unwrap()).unwrap();
        figures(&s.timeline).peak_allocated
    };
    assert!(run("flash_attention_2") < run("eager"));
}
