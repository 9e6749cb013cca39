//! Losses over classes (torch 2.11, aten/src/ATen/native/LossNLL.cpp, cuda/Loss.cu, cuda/SoftMax.cu).

use crate::autograd::Grads;
use crate::context::Cx;
use crate::ops::norm::softmax_kernel;
use crate::ops::op::OpId;
use crate::ops::pointwise::{add, compare_scalar, div, masked_fill_, mul_scalar, neg};
use crate::ops::reduce::sum;
use crate::ops::view::contiguous_raw;
use crate::shape::Shape;
use crate::tensor::Tensor;
use smallvec::smallvec;

/// How a loss is reduced over its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    Mean,
    Sum,
    None,
}

/// `log_softmax(x, dim, dtype=x.dtype)`: keeps its result; no cast, under autocast neither (the dtype is given).
pub fn log_softmax(cx: &Cx, x: &Tensor) -> Tensor {
    softmax_kernel(cx, OpId::LOG_SOFTMAX, x, x.dtype, |cx, s, g| -> Grads {
        let g = g[0].take().expect("gradient");
        let y = s.tensor(0);
        let gx = cx.empty(OpId::LOG_SOFTMAX_BACKWARD, y.shape, s.inputs[0].dtype);
        drop(contiguous_raw(cx, &g));
        smallvec![Some(gx)]
    })
}

/// `F.nll_loss(lp, target)` without class weights; fp32 under autocast. Keeps self, target, total_weight.
pub fn nll_loss(cx: &Cx, lp: &Tensor, target: &Tensor, reduction: Reduction) -> Tensor {
    let lp = cx.raise(lp);
    let mut n = cx.node(OpId::NLL_LOSS, &[&lp]);
    n.save(cx, &lp);
    n.save(cx, target);
    let shape = if reduction == Reduction::None {
        target.shape
    } else {
        Shape::new(&[])
    };
    let y = cx.empty(OpId::NLL_LOSS, shape, lp.dtype);
    let total = cx.empty(OpId::NLL_LOSS, Shape::new(&[]), lp.dtype);
    n.save(cx, &total);
    drop(total);
    n.finish(cx, y, |cx, s, _| -> Grads {
        let x = s.tensor(0);
        smallvec![Some(cx.empty(OpId::NLL_LOSS_BACKWARD, x.shape, x.dtype))]
    })
}

/// `F.cross_entropy(logits, target)` with class indices: log_softmax in the logits' dtype, then nll_loss.
pub fn cross_entropy(cx: &Cx, logits: &Tensor, target: &Tensor, reduction: Reduction) -> Tensor {
    let lp = log_softmax(cx, logits);
    nll_loss(cx, &lp, target, reduction)
}

/// `F.cross_entropy(logits, target, label_smoothing=e)`, e > 0 (LossNLL.cpp, cross_entropy_loss_label_smoothing), mean or sum.
/// Verified: the `spoter` traces.
pub fn cross_entropy_smoothed(
    cx: &Cx,
    logits: &Tensor,
    target: &Tensor,
    reduction: Reduction,
) -> Tensor {
    debug_assert!(
        reduction != Reduction::None,
        "label smoothing without reduction is not covered"
    );
    let lp = log_softmax(cx, logits);
    let nll = nll_loss(cx, &lp, target, reduction);
    let per_row = sum(cx, &lp, &[1], false);
    let smooth = neg(cx, &per_row);
    drop(per_row);
    let ignored = compare_scalar(cx, OpId::EQ, target);
    let smooth = masked_fill_(cx, smooth, &ignored);
    let ret = match reduction {
        Reduction::Mean => {
            // smooth_loss.sum() / ignore_mask.logical_not().sum(), operands from the last to the first
            let valid = compare_scalar(cx, OpId::BITWISE, &ignored);
            let count = sum(cx, &valid, &[], false);
            let total = sum(cx, &smooth, &[], false);
            let mean = div(cx, &total, &count);
            drop(total);
            drop(count);
            drop(valid);
            mean
        }
        _ => sum(cx, &smooth, &[], false),
    };
    // nllloss * (1 - e) + ret * (e / n_classes), from the last to the first too
    let b = mul_scalar(cx, &ret);
    let a = mul_scalar(cx, &nll);
    let y = add(cx, &a, &b);
    // temporaries, then locals, the last made first
    for t in [a, b, ret, ignored, smooth, nll, lp] {
        drop(t);
    }
    y
}
