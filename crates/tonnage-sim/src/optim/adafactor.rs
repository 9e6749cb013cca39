//! Adafactor (transformers 5.17, and 4.57 the same: transformers/optimization.py, `Adafactor.step`).

use super::{Optimizer, State, merged, tagged, with_grad};
use crate::context::Cx;
use crate::kernels::ReduceOp;
use crate::ops::op::OpId;
use crate::ops::pointwise::{out2, plain};
use crate::ops::reduce::reduce_raw;
use crate::shape::Shape;
use crate::tensor::Tensor;
use tonnage_units::ScalarType::{self, BF16, F16, F32};

/// A row and a column of second moments for each matrix, a full one for each vector, all in fp32 for 16-bit parameters; the root mean
/// square of each parameter (one scalar on the device, renewed in every step).
pub(super) struct Adafactor {
    momentum: bool,
    exp_avg: Vec<Option<Tensor>>,
    row: Vec<Option<Tensor>>,
    col: Vec<Option<Tensor>>,
    exp_avg_sq: Vec<Option<Tensor>>,
    rms: Vec<Option<Tensor>>,
}

fn low(t: ScalarType) -> bool {
    matches!(t, F16 | BF16)
}

/// `tensor.norm(2) / tensor.numel() ** 0.5`.
fn rms(cx: &Cx, t: &Tensor) -> Tensor {
    let norm = reduce_raw(
        cx,
        OpId::NORM,
        ReduceOp::Norm,
        t,
        (1 << t.shape.ndim()) - 1,
        false,
        t.dtype,
    );
    plain(cx, OpId::DIV, &norm, t.dtype)
}

fn mean(cx: &Cx, t: &Tensor, dim: isize, keepdim: bool) -> Tensor {
    reduce_raw(
        cx,
        OpId::MEAN,
        ReduceOp::Mean,
        t,
        1 << t.shape.index(dim),
        keepdim,
        t.dtype,
    )
}

impl Adafactor {
    pub(super) fn new(momentum: bool, n: usize) -> Adafactor {
        let none = || vec![None; n];
        Adafactor {
            momentum,
            exp_avg: none(),
            row: none(),
            col: none(),
            exp_avg_sq: none(),
            rms: none(),
        }
    }

    fn init(&mut self, cx: &Cx, i: usize, grad: &Tensor) {
        if self.rms[i].is_some() {
            return;
        }
        if self.momentum {
            self.exp_avg[i] = Some(tagged(
                cx,
                cx.empty_like(OpId::ZEROS_LIKE, grad, grad.dtype),
            ));
        }
        let n = grad.shape.ndim() as isize;
        if n >= 2 {
            let state = |shape: Shape| Some(tagged(cx, cx.empty(OpId::TO_COPY, shape, grad.dtype)));
            self.row[i] = state(grad.shape.without(n - 1));
            self.col[i] = state(grad.shape.without(n - 2));
        } else {
            self.exp_avg_sq[i] = Some(tagged(
                cx,
                cx.empty_like(OpId::ZEROS_LIKE, grad, grad.dtype),
            ));
        }
    }

    /// `_approx_sq_grad`: the outer product of the row's and the column's factors.
    fn approx(&self, cx: &Cx, i: usize, grad: &Tensor) -> Option<Tensor> {
        let (row, col) = (self.row[i].as_ref()?, self.col[i].as_ref()?);
        let average = mean(cx, row, -1, true);
        let r = out2(cx, OpId::DIV, row, &average, row.dtype);
        drop(average);
        let c = plain(cx, OpId::RSQRT, col, col.dtype);
        let product = cx.empty(OpId::MUL, grad.shape, row.dtype);
        drop(r);
        drop(c);
        Some(product)
    }
}

impl Optimizer for Adafactor {
    fn step(&mut self, cx: &Cx, params: &[Tensor]) {
        // the names that outlive an iteration
        let (mut grad, mut data, mut update): (Option<Tensor>, Option<Tensor>, Option<Tensor>) =
            (None, None, None);
        for (i, p, g) in with_grad(params) {
            drop(grad.take());
            let g = if low(g.dtype) {
                cx.empty_like(OpId::TO_COPY, &g, F32)
            } else {
                g
            };
            grad = Some(g.clone());
            self.init(cx, i, &g);
            drop(data.take());
            let p = if low(p.dtype) {
                cx.empty_like(OpId::TO_COPY, p, F32)
            } else {
                p.detach()
            };
            data = Some(p.clone());
            let new = tagged(cx, rms(cx, &p));
            drop(self.rms[i].replace(new));

            let square = plain(cx, OpId::POW, &g, g.dtype);
            let shifted = plain(cx, OpId::ADD, &square, g.dtype);
            drop(square);
            drop(update.replace(shifted.clone()));
            if self.row[i].is_some() {
                drop(mean(cx, &shifted, -1, false));
                drop(mean(cx, &shifted, -2, false));
                drop(shifted);
                let next = self.approx(cx, i, &g);
                drop(std::mem::replace(&mut update, next));
            } else {
                drop(shifted);
                let next = self.exp_avg_sq[i]
                    .as_ref()
                    .map(|v| plain(cx, OpId::RSQRT, v, v.dtype));
                drop(std::mem::replace(&mut update, next));
            }
            if let Some(u) = &update {
                let r = rms(cx, u);
                let ratio = plain(cx, OpId::DIV, &r, r.dtype);
                drop(r);
                drop(ratio);
            }
            if self.momentum {
                drop(update.take()); // `update = exp_avg`
                update = self.exp_avg[i].clone();
            }
            if let Some(u) = &update {
                drop(plain(cx, OpId::NEG, u, u.dtype));
            }
        }
        drop(grad);
        drop(data);
        drop(update);
    }

    fn states(&self) -> Vec<State<'_>> {
        merged(&[
            ("exp_avg", &self.exp_avg),
            ("exp_avg_sq_row", &self.row),
            ("exp_avg_sq_col", &self.col),
            ("exp_avg_sq", &self.exp_avg_sq),
            ("RMS", &self.rms),
        ])
    }
}
