//! Adam and AdamW (torch 2.11, torch/optim/adam.py: `_init_group`, `_multi_tensor_adam`, `_fused_adam`, `_single_tensor_adam`).

use super::{
    Implementation, List, Optimizer, State, foreach, group, merged, state_like, tagged, with_grad,
};
use crate::context::Cx;
use crate::ops::op::OpId;
use crate::shape::Shape;
use crate::tensor::Tensor;
use tonnage_units::ScalarType;

/// Two moments in the parameter's dtype; fused: also `step`, one float on the device for each parameter.
pub(super) struct Adam {
    implementation: Implementation,
    amsgrad: bool,
    coupled_decay: bool,
    step: Vec<Option<Tensor>>,
    exp_avg: Vec<Option<Tensor>>,
    exp_avg_sq: Vec<Option<Tensor>>,
    max_exp_avg_sq: Vec<Option<Tensor>>,
}

impl Adam {
    pub(super) fn new(
        implementation: Implementation,
        amsgrad: bool,
        coupled_decay: bool,
        n: usize,
    ) -> Adam {
        let none = || vec![None; n];
        Adam {
            implementation,
            amsgrad,
            coupled_decay,
            step: none(),
            exp_avg: none(),
            exp_avg_sq: none(),
            max_exp_avg_sq: none(),
        }
    }

    fn init(&mut self, cx: &Cx, i: usize, p: &Tensor) {
        if self.exp_avg[i].is_some() {
            return;
        }
        if self.implementation == Implementation::Fused {
            self.step[i] = Some(tagged(
                cx,
                cx.empty(OpId::ZEROS, Shape::new(&[]), ScalarType::F32),
            ));
        }
        self.exp_avg[i] = Some(state_like(cx, p, p.dtype));
        self.exp_avg_sq[i] = Some(state_like(cx, p, p.dtype));
        if self.amsgrad {
            self.max_exp_avg_sq[i] = Some(state_like(cx, p, p.dtype));
        }
    }

    /// The table whose square root is taken.
    fn second_moment(&self, i: usize) -> Option<&Tensor> {
        if self.amsgrad {
            self.max_exp_avg_sq[i].as_ref()
        } else {
            self.exp_avg_sq[i].as_ref()
        }
    }

    fn multi_tensor(&self, cx: &Cx, list: &[(usize, &Tensor, Tensor)]) {
        let mut sqrt = List::default();
        for (_, members) in group(list.iter().map(|(_, p, _)| p.dtype)) {
            let decayed = self
                .coupled_decay
                .then(|| foreach(cx, members.iter().map(|k| &list[*k].2)));
            drop(decayed); // `del device_grads` once the moments are updated
            // the last group's list dies when its name is bound to this one
            sqrt = foreach(
                cx,
                members
                    .iter()
                    .filter_map(|k| self.second_moment(list[*k].0)),
            );
        }
        drop(sqrt);
    }

    fn single_tensor(&self, cx: &Cx, list: &[(usize, &Tensor, Tensor)]) {
        let (mut grad, mut denom): (Option<Tensor>, Option<Tensor>) = (None, None);
        for (i, p, g) in list {
            drop(grad.take()); // `grad = grads[i]`
            if self.coupled_decay {
                grad = Some(cx.empty_like(OpId::ADD, g, p.dtype));
            }
            if let Some(v) = self.second_moment(*i) {
                let sqrt = cx.empty_like(OpId::SQRT, v, v.dtype);
                let new = cx.empty_like(OpId::DIV, &sqrt, v.dtype);
                drop(sqrt);
                drop(denom.replace(new));
            }
        }
        drop(grad);
        drop(denom);
    }
}

impl Optimizer for Adam {
    fn step(&mut self, cx: &Cx, params: &[Tensor]) {
        let list = with_grad(params);
        for (i, p, _) in &list {
            self.init(cx, *i, p);
        }
        match self.implementation {
            Implementation::Fused => {}
            Implementation::Foreach => self.multi_tensor(cx, &list),
            Implementation::ForLoop => self.single_tensor(cx, &list),
        }
    }

    fn states(&self) -> Vec<State<'_>> {
        merged(&[
            ("step", &self.step),
            ("exp_avg", &self.exp_avg),
            ("exp_avg_sq", &self.exp_avg_sq),
            ("max_exp_avg_sq", &self.max_exp_avg_sq),
        ])
    }

    fn scales_gradients(&self) -> bool {
        self.implementation == Implementation::Fused
    }
}
