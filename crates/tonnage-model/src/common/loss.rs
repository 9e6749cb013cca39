//! The loss of causal language models (transformers 5.17, src/transformers/loss/loss_utils.py, ForCausalLMLoss).

use crate::run::Run;
use tonnage_sim::OpId;
use tonnage_sim::ops;
use tonnage_sim::{ScalarType, Shape, Tensor};

/// `fixed_cross_entropy`: the mean, or the sum over the number of items that the Trainer counted in its batches
/// (case `gpt2-small-trainer-fp32-adamw_fused-b4-s512`).
pub fn fixed_cross_entropy(m: &Run, logits: &Tensor, target: &Tensor) -> Tensor {
    let cx = &m.cx;
    match &*m.items.borrow() {
        None => ops::cross_entropy(cx, logits, target, ops::Reduction::Mean),
        Some(items) => {
            let sum = ops::cross_entropy(cx, logits, target, ops::Reduction::Sum);
            ops::div(cx, &sum, items)
        }
    }
}

/// fp32 logits, labels padded by one and shifted, cross entropy.
pub fn causal_lm(m: &Run, logits: &Tensor, labels: &Tensor) -> Tensor {
    let cx = &m.cx;
    let (b, s, v) = (logits.size(0), logits.size(1), logits.size(2));
    let l32 = ops::to_dtype(cx, logits, ScalarType::F32);
    let padded = cx.empty(OpId::PAD, Shape::new(&[b, s + 1]), ScalarType::I64);
    debug_assert_eq!(labels.numel(), b * s);
    let shifted = ops::contiguous(cx, &ops::slice(cx, &padded, 1, 1, s));
    let flat = ops::view(cx, &l32, Shape::new(&[b * s, v]));
    let target = ops::view(cx, &shifted, Shape::new(&[b * s]));
    drop(shifted);
    let loss = fixed_cross_entropy(m, &flat, &target);
    // frame locals in first-assignment order: logits, labels, shift_labels
    drop(flat);
    drop(l32);
    drop(padded);
    drop(target);
    loss
}
