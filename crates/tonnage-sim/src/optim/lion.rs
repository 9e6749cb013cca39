//! Lion (lion-pytorch 0.2.3, lion_pytorch/lion_pytorch.py, `update_fn`).

use super::{Optimizer, State, merged, state_like, with_grad};
use crate::context::Cx;
use crate::ops::op::OpId;
use crate::tensor::Tensor;

/// One moment in the parameter's dtype.
pub(super) struct Lion {
    exp_avg: Vec<Option<Tensor>>,
}

impl Lion {
    pub(super) fn new(n: usize) -> Lion {
        Lion {
            exp_avg: vec![None; n],
        }
    }
}

impl Optimizer for Lion {
    fn step(&mut self, cx: &Cx, params: &[Tensor]) {
        for (i, p, g) in with_grad(params) {
            let m = self.exp_avg[i].get_or_insert_with(|| state_like(cx, p, p.dtype));
            // exp_avg.clone().mul_(beta1).add(grad, alpha=1 - beta1).sign_()
            let scaled = cx.empty_like(OpId::CLONE, m, m.dtype);
            let update = crate::ops::pointwise::out2(cx, OpId::ADD, &scaled, &g, m.dtype);
            drop(scaled);
            drop(update);
        }
    }

    fn states(&self) -> Vec<State<'_>> {
        merged(&[("exp_avg", &self.exp_avg)])
    }
}
