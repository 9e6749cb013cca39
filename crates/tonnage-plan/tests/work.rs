//! The counted work of a step against closed formulas, and its independence of the events.

use tonnage_catalog::gpu;
use tonnage_core::{Job, simulate, simulate_counted};
use tonnage_plan::time::{StepWork, step_work};

fn job(settings: &[(&str, &str)]) -> Job {
    let mut j = Job::new("test", "flags");
    for (k, v) in settings {
        j.set_text(k, v)
            .unwrap_or_else(|e| panic!("{k} = {v}: {e}"));
    }
    j
}

fn work(settings: &[(&str, &str)]) -> StepWork {
    let spec = job(settings).spec(&gpu("a100-sxm4-80gb").unwrap()).unwrap();
    step_work(&spec).unwrap()
}

const LLAMA: &[(&str, &str)] = &[
    ("model", "meta-llama/Llama-2-7b-hf"),
    ("precision", "bf16"),
    ("seq-len", "512"),
];

fn with<'a>(base: &[(&'a str, &'a str)], more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    base.iter().chain(more).copied().collect()
}

/// Parameters in products: all but the embedding and the norms.
const LLAMA_PRODUCTS: f64 =
    32.0 * (4.0 * 4096.0 * 4096.0 + 3.0 * 4096.0 * 11008.0) + 32000.0 * 4096.0;

#[test]
fn counting_changes_no_event() {
    for more in [
        &[][..],
        &[
            ("checkpointing", "full"),
            ("lora-r", "8"),
            ("lora-targets", "all-linear"),
            ("quant", "nf4"),
        ],
    ] {
        let spec = job(&with(LLAMA, more))
            .spec(&gpu("a100-sxm4-80gb").unwrap())
            .unwrap();
        let (a, b) = (simulate(&spec).unwrap(), simulate_counted(&spec).unwrap());
        assert_eq!(a.timeline.events, b.timeline.events);
        assert!(a.work.is_empty() && !b.work.is_empty());
    }
}

#[test]
fn full_training_is_six_operations_a_parameter_and_token() {
    for batch in ["1", "3"] {
        let w = work(&with(LLAMA, &[("batch-size", batch)]));
        let tokens = w.tokens as f64;
        // the rotary tables' product is all that is beside
        let ratio = w.pass.product_flops() / (6.0 * LLAMA_PRODUCTS * tokens);
        assert!((ratio - 1.0).abs() < 1e-4, "{ratio}");
        // forward 4, backward 10, per layer, position pair and hidden unit; half of the pairs are masked
        let pairs = 512.0 * 512.0 * (tokens / 512.0) / 2.0;
        assert_eq!(w.pass.attention_flops, 32.0 * 14.0 * 4096.0 * pairs);
    }
}

/// A recomputation stops when it has the last tensor that was saved: the last product of a layer is not done again, nor is the head.
#[test]
fn checkpointing_repeats_the_forward_pass_but_the_last_product_of_a_layer() {
    let w = work(&with(LLAMA, &[("checkpointing", "full")]));
    let last = 32.0 * 4096.0 * 11008.0;
    let head = 32000.0 * 4096.0;
    let again = 2.0 * (LLAMA_PRODUCTS - last - head);
    let per_token = w.pass.product_flops() / w.tokens as f64;
    assert!((per_token / (6.0 * LLAMA_PRODUCTS + again) - 1.0).abs() < 1e-4);
}

#[test]
fn adapters_leave_out_the_weight_gradients() {
    let lora = [("lora-r", "1"), ("lora-targets", "q_proj")];
    let full = work(LLAMA).pass.product_flops();
    let adapters = work(&with(LLAMA, &lora)).pass.product_flops();
    // 4 of 6, and the first layer's input needs no gradient
    assert!(
        (0.63..0.6667).contains(&(adapters / full)),
        "{}",
        adapters / full
    );
}

#[test]
fn accumulation_repeats_the_pass_and_not_the_optimizer() {
    let one = work(LLAMA);
    let four = work(&with(LLAMA, &[("accumulation", "4")]));
    assert_eq!(four.passes, 4);
    assert_eq!(one.pass, four.pass);
    assert_eq!(one.optimizer_bytes, four.optimizer_bytes);
    assert_eq!(four.tokens_per_step(), 4 * one.tokens_per_step());
}

/// One token of one sequence reads all weights once.
#[test]
fn a_new_token_reads_the_weights() {
    let w = work(&with(LLAMA, &[("kind", "generate"), ("new-tokens", "33")]));
    let token = w.token.unwrap();
    let weights = 2.0 * LLAMA_PRODUCTS;
    assert!(
        (token.product_bytes / weights - 1.0).abs() < 0.02,
        "{}",
        token.product_bytes / weights
    );
    assert!((token.product_flops() / (2.0 * LLAMA_PRODUCTS) - 1.0).abs() < 0.02);
}
