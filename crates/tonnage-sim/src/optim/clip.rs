//! `torch.nn.utils.clip_grad_norm_` (torch 2.11, torch/nn/utils/clip_grad.py, aten/src/ATen/native/cuda/ForeachReduceOp.cu).

use super::{List, group};
use crate::context::Cx;
use crate::kernels::{ReduceOp, foreach_norm_scratch};
use crate::ops::op::OpId;
use crate::ops::pointwise::{plain, promote_types};
use crate::ops::reduce::reduce_raw;
use crate::shape::Shape;
use crate::tensor::Tensor;

/// `torch._foreach_norm`: partial sums of every chunk (fp32 for 16-bit gradients), one scalar each, then the partial sums die.
fn foreach_norm(cx: &Cx, grads: &[&Tensor], norms: &mut Vec<Tensor>) {
    let dtype = grads[0].dtype;
    let partial = cx.raw(
        OpId::FOREACH,
        foreach_norm_scratch(grads.iter().map(|g| g.numel()), dtype),
    );
    for _ in grads {
        norms.push(cx.empty(OpId::FOREACH, Shape::new(&[]), dtype));
    }
    drop(partial);
}

/// `clip_grad_norm_(params, max_norm)`: the gradients change in place; returns the total norm (None where there is no gradient), which
/// dies with the caller's name for it.
pub fn clip_grad_norm(cx: &Cx, params: &[Tensor]) -> Option<Tensor> {
    let grads: Vec<Tensor> = params.iter().filter_map(|p| p.grad()).collect();
    let dtype = grads.iter().map(|g| g.dtype).reduce(promote_types)?;
    let mut norms = List::default();
    for (_, members) in group(grads.iter().map(|g| g.dtype)) {
        let members: Vec<&Tensor> = members.into_iter().map(|k| &grads[k]).collect();
        foreach_norm(cx, &members, &mut norms.0);
    }
    let stacked = cx.empty(OpId::STACK, Shape::new(&[norms.0.len() as u64]), dtype);
    let total = reduce_raw(cx, OpId::NORM, ReduceOp::Norm, &stacked, 1, false, dtype);
    drop(stacked);
    drop(norms);
    // max_norm / (total_norm + 1e-6): a reciprocal, then a product
    let sum = plain(cx, OpId::ADD, &total, dtype);
    let reciprocal = plain(cx, OpId::RECIPROCAL, &sum, dtype);
    let coef = plain(cx, OpId::MUL, &reciprocal, dtype);
    drop(reciprocal);
    drop(sum);
    let clamped = plain(cx, OpId::CLAMP, &coef, dtype);
    drop(coef);
    drop(clamped);
    Some(total)
}
