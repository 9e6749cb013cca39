//! Generation in 16 bits.

mod common;
use common::{expected, made};

/// The weights of generation in 16 bits are half of those in 32. (Its cache is not compared here: the peak need not be where it is longest.)
#[test]
fn weights_of_generation_halve() {
    for model in ["gpt2", "Qwen/Qwen2.5-0.5B"] {
        let of = |precision: &str| {
            let job = made(&[
                ("model.id", model),
                ("work.kind", "generate"),
                ("generate.new_tokens", "32"),
                ("train.seq_len", "512"),
                ("train.precision", precision),
            ]);
            expected(&job).model.param_bytes
        };
        let (full, half) = (of("fp32"), of("fp16"));
        assert_eq!(half, of("bf16"), "{model}");
        assert!(half > 0 && full.abs_diff(2 * half) * 1000 < full, "{model}");
    }
}
