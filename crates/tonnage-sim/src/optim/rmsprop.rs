//! RMSprop (torch 2.11, torch/optim/rmsprop.py: `_multi_tensor_rmsprop`).

use super::{List, Optimizer, State, foreach, group, merged, state_like, with_grad};
use crate::context::Cx;
use crate::tensor::Tensor;

/// A square average; with `momentum` and `centered` one more state each.
pub(super) struct RmsProp {
    momentum: bool,
    centered: bool,
    decay: bool,
    square_avg: Vec<Option<Tensor>>,
    momentum_buffer: Vec<Option<Tensor>>,
    grad_avg: Vec<Option<Tensor>>,
}

impl RmsProp {
    pub(super) fn new(momentum: bool, centered: bool, decay: bool, n: usize) -> RmsProp {
        let none = || vec![None; n];
        RmsProp {
            momentum,
            centered,
            decay,
            square_avg: none(),
            momentum_buffer: none(),
            grad_avg: none(),
        }
    }
}

impl Optimizer for RmsProp {
    fn step(&mut self, cx: &Cx, params: &[Tensor]) {
        let list = with_grad(params);
        for (i, p, _) in &list {
            if self.square_avg[*i].is_none() {
                self.square_avg[*i] = Some(state_like(cx, p, p.dtype));
                if self.momentum {
                    self.momentum_buffer[*i] = Some(state_like(cx, p, p.dtype));
                }
                if self.centered {
                    self.grad_avg[*i] = Some(state_like(cx, p, p.dtype));
                }
            }
        }
        let mut grads: Option<List> = None;
        let mut avg = List::default();
        for (_, members) in group(list.iter().map(|(_, p, _)| p.dtype)) {
            drop(grads.take()); // `grouped_grads` names the next group's gradients
            if self.decay {
                grads = Some(foreach(cx, members.iter().map(|k| &list[*k].2)));
            }
            avg = foreach(
                cx,
                members
                    .iter()
                    .filter_map(|k| self.square_avg[list[*k].0].as_ref()),
            );
        }
        drop(grads);
        drop(avg);
    }

    fn states(&self) -> Vec<State<'_>> {
        merged(&[
            ("square_avg", &self.square_avg),
            ("momentum_buffer", &self.momentum_buffer),
            ("grad_avg", &self.grad_avg),
        ])
    }
}
