//! The fused loss of Unsloth (unsloth_zoo 2025, fused_losses/cross_entropy_loss.py `UnslothFusedLoss`): gradients are computed in the
//! forward, a chunk of tokens at a time, as many chunks as keep a chunk's scores within 4 GiB (half the free memory of the card, if
//! that is less, which is not modelled). The chunk runs compiled there; here every operator of it has its own tensors. Written from
//! the source: no recorded run has it.

use crate::run::Run;
use tonnage_sim::autograd::{CustomBackward, Grads, Saved};
use tonnage_sim::ops;
use tonnage_sim::{Cx, OpId, ScalarType, Shape, Tensor};

struct Backward;

impl CustomBackward for Backward {
    fn backward(&self, _: &Cx, s: &Saved, _: &mut Grads) -> Grads {
        // scaled in place by the incoming gradient
        s.all().map(|t| t.cloned()).collect()
    }
}

/// Bytes of one token's one score over the chain (bf16 and fp32 logits, log-probabilities, gradient), by which the chunks are counted.
const BYTES_PER_SCORE: f64 = 16.0;
const TARGET: f64 = 4.0 * 1024.0 * 1024.0 * 1024.0;

/// `get_chunk_size`: 1, or a multiple of 4.
fn chunks(rows: u64, vocab: u64, fixed: u64) -> u64 {
    let fixed = fixed as f64;
    let target = if fixed < TARGET {
        TARGET - fixed
    } else {
        TARGET
    };
    let exact = (rows * vocab) as f64 * BYTES_PER_SCORE / target;
    if exact <= 1.0 {
        return 1;
    }
    (((exact / 4.0).ceil() as u64) * 4).min(rows)
}

/// The loss of hidden states `h` [B, S, H] and a head `w` [V, H] for labels [B, S].
pub fn causal_lm(m: &Run, h: &Tensor, w: &Tensor, labels: &Tensor) -> Tensor {
    let cx = &m.cx;
    let (rows, width, vocab) = (h.size(0) * h.size(1), h.size(2), w.size(0));
    let mut n = cx.node(OpId::NLL_LOSS, &[h, w]);
    let need_w = n.need(1);
    let shifted = cx.empty_like(OpId::CLONE, labels, labels.dtype);
    let mask = ops::compare_scalar(cx, OpId::NE, &shifted);
    let count = ops::sum(cx, &mask, &[], false);
    drop(mask);
    let divisor = ops::plain(cx, OpId::TO_COPY, &count, ScalarType::F32);
    drop(count);
    let gx = cx.empty_like(OpId::NONE, h, h.dtype);
    let gw = need_w.then(|| cx.empty_like(OpId::ZEROS_LIKE, w, w.dtype));
    let fixed = gx.nbytes() + 2 * gw.as_ref().map_or(0, |g| g.nbytes());
    let loss = cx.empty(OpId::ZEROS, Shape::new(&[]), ScalarType::F32);
    let each = rows.div_ceil(chunks(rows, vocab, fixed));
    let mut at = 0;
    while at < rows {
        let len = each.min(rows - at);
        at += len;
        let scores = Shape::new(&[len, vocab]);
        let make = |op, dtype| cx.empty(op, scores, dtype);
        let logits = make(OpId::MM, w.dtype);
        let products = 2 + u64::from(need_w);
        for _ in 0..products {
            cx.product_work(OpId::MM, w.dtype, [1, len, vocab, width]);
        }
        cx.gemm();
        let wide = (w.dtype != ScalarType::F32).then(|| make(OpId::TO_COPY, ScalarType::F32));
        let logp = make(OpId::LOG_SOFTMAX, ScalarType::F32);
        drop(wide);
        let grad = make(OpId::LOG_SOFTMAX_BACKWARD, ScalarType::F32);
        drop(logp);
        let low = (w.dtype != ScalarType::F32).then(|| make(OpId::TO_COPY, w.dtype));
        let part = cx.empty(OpId::MM, Shape::new(&[len, width]), w.dtype);
        let head = need_w.then(|| cx.empty(OpId::MM, w.shape, w.dtype));
        drop((logits, grad, low));
        drop(part);
        drop(head);
    }
    drop(divisor);
    drop(shifted);
    n.save(cx, &gx);
    match &gw {
        Some(g) => n.save(cx, g),
        None => n.skip(),
    }
    let mut out = [loss];
    n.finish_custom(cx, &mut out, Box::new(Backward));
    let [loss] = out;
    loss
}
