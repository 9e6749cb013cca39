//! Muon (torch 2.11, torch/optim/_muon.py: `_single_tensor_muon`, `_zeropower_via_newtonschulz`).

use super::{Optimizer, State, merged, state_like, with_grad};
use crate::context::Cx;
use crate::kernels::ReduceOp;
use crate::ops::op::OpId;
use crate::ops::pointwise::plain;
use crate::ops::reduce::reduce_raw;
use crate::shape::Shape;
use crate::tensor::Tensor;
use tonnage_units::ScalarType::BF16;

/// Newton-Schulz iterations (`ns_steps`'s default).
const ITERATIONS: usize = 5;

/// A momentum buffer like each gradient. Parameters must be matrices, as the constructor demands; others are passed over.
pub(super) struct Muon {
    buffer: Vec<Option<Tensor>>,
}

impl Muon {
    pub(super) fn new(n: usize) -> Muon {
        Muon {
            buffer: vec![None; n],
        }
    }
}

/// A matrix product into a new [rows, cols] tensor.
fn product(cx: &Cx, op: OpId, rows: u64, cols: u64) -> Tensor {
    let y = cx.empty(op, Shape::new(&[rows, cols]), BF16);
    cx.gemm();
    y
}

/// `_zeropower_via_newtonschulz(update)` in bf16 on the matrix with the short side first.
fn zeropower(cx: &Cx, update: &Tensor) -> Tensor {
    let mut x = if update.dtype == BF16 {
        update.clone()
    } else {
        cx.empty_like(OpId::TO_COPY, update, BF16)
    };
    let (a, b) = (update.size(0), update.size(1));
    if a > b {
        let mut strides = x.strides();
        strides.swap(0, 1);
        x = x.alias(Shape::new(&[b, a]), strides);
    }
    let norm = reduce_raw(cx, OpId::NORM, ReduceOp::Norm, &x, 0b11, false, BF16);
    let clamped = plain(cx, OpId::CLAMP, &norm, BF16);
    drop(norm);
    drop(clamped);
    let (m, n) = (a.min(b), a.max(b));
    let (mut gram, mut gram_update): (Option<Tensor>, Option<Tensor>) = (None, None);
    for _ in 0..ITERATIONS {
        drop(gram.replace(product(cx, OpId::MM, m, m)));
        drop(gram_update.replace(product(cx, OpId::ADDMM, m, m)));
        x = product(cx, OpId::ADDMM, m, n);
    }
    drop(gram);
    drop(gram_update);
    x
}

impl Optimizer for Muon {
    fn step(&mut self, cx: &Cx, params: &[Tensor]) {
        let mut list = with_grad(params);
        list.retain(|(_, p, _)| p.shape.ndim() == 2);
        for (i, _, g) in &list {
            self.buffer[*i].get_or_insert_with(|| state_like(cx, g, g.dtype));
        }
        let mut update: Option<Tensor> = None;
        for (_, _, g) in &list {
            let mixed = cx.empty_like(OpId::LERP, g, g.dtype);
            drop(update.replace(mixed.clone()));
            let orthogonal = zeropower(cx, &mixed);
            drop(mixed);
            drop(update.replace(orthogonal));
        }
    }

    fn states(&self) -> Vec<State<'_>> {
        merged(&[("momentum_buffer", &self.buffer)])
    }
}
