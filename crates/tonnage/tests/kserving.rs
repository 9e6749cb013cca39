//! Acceptance checks of generation (K24).

mod common;
use common::{expected, made};
use tonnage_core::footprint::Component;

/// In 16 bits the weights of generation are half of those in 32, and so is its cache.
#[test]
fn k24_weights_and_cache_halve() {
    for (model, len) in [("gpt2", "512"), ("Qwen/Qwen2.5-0.5B", "1024")] {
        let of = |precision: &str| {
            let job = made(&[
                ("model.id", model),
                ("work.kind", "generate"),
                ("generate.new_tokens", "32"),
                ("train.micro_batch_size", "4"),
                ("train.seq_len", len),
                ("train.precision", precision),
            ]);
            let f = expected(&job);
            [f.model.param_bytes, f.component(Component::KvCache)]
        };
        let (full, half) = (of("fp32"), of("fp16"));
        assert_eq!(half, of("bf16"), "{model}");
        for (what, f, h) in [("weights", full[0], half[0]), ("cache", full[1], half[1])] {
            assert!(f > 0, "{model} {what}");
            // blocks are rounded, and short rests of segments stay with them
            let off = f.abs_diff(2 * h);
            assert!(off * 100 < f, "{model} {what}: {f} and {h}");
        }
    }
}
