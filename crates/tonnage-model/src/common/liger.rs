//! Liger's fused linear cross entropy: the logits exist a chunk of tokens at a time, and the gradients are computed in the forward
//! (liger-kernel 0.8.5, src/liger_kernel/ops/fused_linear_cross_entropy.py; case `qwen2-tiny-plain-bf16-liger` and its siblings).

use crate::run::Run;
use tonnage_sim::autograd::{CustomBackward, Grads, Saved};
use tonnage_sim::ops;
use tonnage_sim::{Cx, OpId, ScalarType, Shape, Tensor};

struct Backward;

impl CustomBackward for Backward {
    /// Checks on the device that the incoming gradient is 1 (the recordings answer yes), then hands out what the forward computed.
    fn backward(&self, cx: &Cx, s: &Saved, _: &mut Grads) -> Grads {
        let scalar = |op, dtype| cx.empty(op, Shape::new(&[]), dtype);
        let one = scalar(OpId::SCALAR_TENSOR, ScalarType::F32);
        let eq = scalar(OpId::EQ, ScalarType::Bool);
        let all = scalar(OpId::ALL, ScalarType::Bool);
        drop(all);
        drop(eq);
        drop(one);
        s.all().map(|t| t.cloned()).collect()
    }
}

fn slice_rows(cx: &Cx, x: &Tensor, from: u64, rows: u64) -> Tensor {
    ops::narrow(cx, x, 0, from, rows)
}

/// The loss of hidden states `h` [B, S, H] and a head `w` [V, H] for labels [B, S].
pub fn causal_lm(m: &Run, h: &Tensor, w: &Tensor, labels: &Tensor) -> Tensor {
    let cx = &m.cx;
    let (b, s, width) = (h.size(0), h.size(1), h.size(2));
    let rows = b * s;
    let padded = cx.empty(OpId::PAD, Shape::new(&[b, s + 1]), ScalarType::I64);
    debug_assert_eq!(labels.numel(), rows);
    let shifted = ops::contiguous(cx, &ops::slice(cx, &padded, 1, 1, s));
    let x = ops::view(cx, h, Shape::new(&[rows, width]));
    let target = ops::view(cx, &shifted, Shape::new(&[rows]));
    drop(shifted);
    let loss = function(cx, &x, w, &target);
    let loss = match &*m.items.borrow() {
        None => loss,
        Some(items) => ops::div(cx, &loss, items),
    };
    drop(x);
    drop(padded);
    drop(target);
    loss
}

/// `LigerFusedLinearCrossEntropyFunction.apply(x, w, target)`.
fn function(cx: &Cx, x: &Tensor, w: &Tensor, target: &Tensor) -> Tensor {
    let mut n = cx.node(OpId::NLL_LOSS, &[x, w]);
    let (need_x, need_w) = (n.need(0), n.need(1));
    let (loss, gx, gw) = cx.with_grad(false, || forward(cx, x, w, target, need_x, need_w));
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

fn forward(
    cx: &Cx,
    x: &Tensor,
    w: &Tensor,
    target: &Tensor,
    need_x: bool,
    need_w: bool,
) -> (Tensor, Tensor, Option<Tensor>) {
    let (rows, width, vocab) = (x.size(0), x.size(1), w.size(0));
    // transient logits of about one input's size
    let factor = vocab.div_ceil(width);
    let chunk = rows.div_ceil(factor).next_power_of_two().min(rows);
    let gx = cx.empty_like(OpId::ZEROS_LIKE, x, x.dtype);
    let gw = (need_x && need_w).then(|| cx.empty_like(OpId::ZEROS_LIKE, w, w.dtype));
    let losses = cx.empty(OpId::ZEROS, Shape::new(&[rows]), ScalarType::F32);
    let mask = ops::compare_scalar(cx, OpId::NE, target);
    drop(ops::sum(cx, &mask, &[], false));
    let low = cx.autocast_dtype();
    let out_argument = x.dtype == w.dtype && low.is_none_or(|d| d == x.dtype);
    let storage = out_argument.then(|| cx.empty(OpId::NONE, Shape::new(&[chunk, vocab]), x.dtype));
    let mut at = 0;
    while at < rows {
        let len = chunk.min(rows - at);
        let part = slice_rows(cx, x, at, len);
        let logits = match &storage {
            Some(s) => {
                cx.product_work(OpId::MM, x.dtype, [1, len, vocab, width]);
                cx.gemm();
                slice_rows(cx, s, 0, len)
            }
            None => ops::matmul(cx, &part, &ops::transpose(cx, w, 0, 1)),
        };
        if need_x {
            if out_argument {
                cx.product_work(OpId::MM, x.dtype, [1, len, width, vocab]);
                cx.gemm();
            } else {
                drop(ops::matmul(cx, &logits, w));
            }
        }
        if let Some(gw) = &gw {
            let half = matches!(logits.dtype, ScalarType::F16 | ScalarType::BF16);
            if cx.choice((), |(), card| u64::from(card.capability.0 >= 8)) == 1
                && half
                && (gw.dtype == ScalarType::F32 || gw.dtype == logits.dtype)
            {
                let aligned = ops::to_dtype(cx, &part, logits.dtype);
                cx.product_work(OpId::MM, logits.dtype, [1, vocab, width, len]);
                cx.gemm();
                drop(aligned);
            } else {
                let t = ops::transpose(cx, &logits, 0, 1);
                let product = ops::mm(cx, &t, &part);
                let wide = ops::to_dtype(cx, &product, ScalarType::F32);
                drop(product);
                drop(wide);
            }
        }
        at += len;
    }
    drop(storage);
    let loss = ops::sum(cx, &losses, &[], false);
    // gradients are cast back to their parameters' dtype: here they have it
    drop(mask);
    drop(losses);
    (loss, gx, gw)
}
