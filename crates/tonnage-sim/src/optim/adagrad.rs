//! Adagrad (torch 2.11, torch/optim/adagrad.py: `__init__`, `_multi_tensor_adagrad`).

use super::{List, Optimizer, State, foreach, group, merged, state_like, with_grad};
use crate::context::Cx;
use crate::tensor::Tensor;

/// A sum of squares for every parameter, made in the constructor.
pub(super) struct Adagrad {
    decay: bool,
    sum: Vec<Option<Tensor>>,
}

impl Adagrad {
    pub(super) fn new(cx: &Cx, decay: bool, params: &[Tensor]) -> Adagrad {
        Adagrad {
            decay,
            sum: params
                .iter()
                .map(|p| Some(state_like(cx, p, p.dtype)))
                .collect(),
        }
    }
}

impl Optimizer for Adagrad {
    fn step(&mut self, cx: &Cx, params: &[Tensor]) {
        let list = with_grad(params);
        let (mut std, mut numerator) = (List::default(), List::default());
        for (_, members) in group(list.iter().map(|(_, p, _)| p.dtype)) {
            // with decay the numerator is the decayed gradients, made before the root; without it a list of its own, made after.
            // Either way the name is rebound last
            let decayed = self
                .decay
                .then(|| foreach(cx, members.iter().map(|k| &list[*k].2)));
            std = foreach(
                cx,
                members.iter().filter_map(|k| self.sum[list[*k].0].as_ref()),
            );
            numerator = decayed.unwrap_or_else(|| foreach(cx, members.iter().map(|k| &list[*k].2)));
        }
        drop(std);
        drop(numerator);
    }

    fn states(&self) -> Vec<State<'_>> {
        merged(&[("sum", &self.sum)])
    }
}
