//! The loss of causal language models (transformers 5.17, src/transformers/loss/loss_utils.py, ForCausalLMLoss).

use crate::layers::Linear;
use crate::run::{Loss, Run};
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

/// The head and the loss of a causal model's training call, as the job's loss implementation has them: `(logits, loss)`.
pub fn head_and_loss(
    m: &Run,
    head: &Linear,
    hidden: &Tensor,
    labels: Option<&Tensor>,
) -> (Option<Tensor>, Option<Tensor>) {
    head_cap_and_loss(m, head, hidden, labels, false)
}

/// The same where `cap` says that the logits are soft capped; the fused loss does that in its kernel.
pub fn head_cap_and_loss(
    m: &Run,
    head: &Linear,
    hidden: &Tensor,
    labels: Option<&Tensor>,
    cap: bool,
) -> (Option<Tensor>, Option<Tensor>) {
    if let (true, Some(labels)) = (m.training, labels) {
        let weight = || m.weight(m.net.module(head.0).params[0].1).clone();
        let loss = match m.options.loss {
            Loss::Library => None,
            Loss::Liger => Some(super::liger::causal_lm(m, hidden, &weight(), labels)),
            Loss::Cut => Some(super::cut::causal_lm(m, hidden, &weight(), labels)),
            Loss::Unsloth => Some(super::unsloth::causal_lm(m, hidden, &weight(), labels)),
            Loss::Chunked { chunks } => {
                let n = u64::from(chunks).max(1);
                Some(super::chunked::causal_lm(m, head, hidden, labels, n))
            }
        };
        if loss.is_some() {
            return (None, loss);
        }
    }
    let mut logits = head.forward(m, hidden);
    if cap {
        logits = super::activation::soft_cap(m, logits);
    }
    let loss = labels.map(|l| causal_lm(m, &logits, l));
    (Some(logits), loss)
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

/// `CrossEntropyLoss()(logits.view(-1, classes), labels.view(-1))`, as the task heads of encoders have it, in the logits' dtype.
pub fn cross_entropy(m: &Run, logits: &Tensor, labels: &Tensor) -> Tensor {
    let cx = &m.cx;
    let classes = logits.size(-1);
    let flat = ops::view(
        cx,
        logits,
        Shape::new(&[logits.numel() / classes.max(1), classes]),
    );
    let target = ops::view(cx, labels, Shape::new(&[labels.numel()]));
    ops::cross_entropy(cx, &flat, &target, ops::Reduction::Mean)
}

/// The decoder's ids from the labels of an encoder-decoder (`_shift_right`, `shift_tokens_right`): int64 [B, T].
pub fn shift_right(m: &Run, labels: &Tensor) -> Tensor {
    let cx = &m.cx;
    let (b, t) = (labels.size(0), labels.size(1));
    let ids = cx.empty(OpId::ZEROS, labels.shape, ScalarType::I64);
    let tail = Shape::new(&[b, t.saturating_sub(1)]);
    drop(cx.empty(OpId::CLONE, tail, ScalarType::I64));
    drop(ops::compare_scalar(cx, OpId::EQ, &ids));
    ids
}
