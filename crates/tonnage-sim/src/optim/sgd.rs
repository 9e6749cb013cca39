//! SGD (torch 2.11, torch/optim/sgd.py: `_multi_tensor_sgd`, `_fused_sgd`, `_single_tensor_sgd`).

use super::{Implementation, List, Optimizer, State, foreach, group, merged, tagged, with_grad};
use crate::context::Cx;
use crate::ops::op::OpId;
use crate::tensor::Tensor;

/// Without momentum no state; with it one buffer like each gradient, made in the first step.
pub(super) struct Sgd {
    implementation: Implementation,
    momentum: bool,
    decay: bool,
    buffer: Vec<Option<Tensor>>,
}

impl Sgd {
    pub(super) fn new(
        implementation: Implementation,
        momentum: bool,
        decay: bool,
        n: usize,
    ) -> Sgd {
        Sgd {
            implementation,
            momentum,
            decay,
            buffer: vec![None; n],
        }
    }

    /// `grad.detach().clone()` (or `empty_like`) where there is no buffer yet.
    fn init(&mut self, cx: &Cx, i: usize, grad: &Tensor) {
        if self.momentum && self.buffer[i].is_none() {
            self.buffer[i] = Some(tagged(cx, cx.empty_like(OpId::CLONE, grad, grad.dtype)));
        }
    }
}

impl Optimizer for Sgd {
    fn step(&mut self, cx: &Cx, params: &[Tensor]) {
        let list = with_grad(params);
        match self.implementation {
            Implementation::Fused => {
                for (i, _, g) in &list {
                    self.init(cx, *i, g);
                }
            }
            Implementation::Foreach => {
                let mut decayed: Option<List> = None;
                for (_, members) in group(list.iter().map(|(_, p, _)| p.dtype)) {
                    drop(decayed.take()); // `device_grads` names the next group's gradients
                    if self.decay {
                        decayed = Some(foreach(cx, members.iter().map(|k| &list[*k].2)));
                    }
                    if self.momentum {
                        for k in &members {
                            self.init(cx, list[*k].0, &list[*k].2);
                        }
                        drop(decayed.take()); // `device_grads = bufs`
                    }
                }
            }
            Implementation::ForLoop => {
                let mut grad: Option<Tensor> = None;
                for (i, p, g) in &list {
                    drop(grad.take()); // `grad = grads[i]`
                    if self.decay {
                        grad = Some(cx.empty_like(OpId::ADD, g, p.dtype));
                    }
                    if self.momentum {
                        self.init(cx, *i, g);
                        drop(grad.take()); // `grad = buf`
                    }
                }
            }
        }
    }

    fn states(&self) -> Vec<State<'_>> {
        merged(&[("momentum_buffer", &self.buffer)])
    }

    fn scales_gradients(&self) -> bool {
        self.implementation == Implementation::Fused
    }
}
