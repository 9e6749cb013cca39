//! `torch.amp.GradScaler` (torch 2.11, torch/amp/grad_scaler.py) for one optimizer, with the steps never skipped.

use super::Optimizer;
use crate::context::Cx;
use crate::ops::op::OpId;
use crate::ops::{self, pointwise::plain};
use crate::shape::Shape;
use crate::tensor::Tensor;
use tonnage_units::ScalarType::{self, F32, F64, I32};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Ready,
    Unscaled,
}

/// The scale, its growth tracker, and what the last check of gradients left.
pub struct GradScaler {
    scale: Option<Tensor>,
    growth_tracker: Option<Tensor>,
    stage: Stage,
    /// `found_inf_per_device`: lives until `update`.
    found_inf: Option<Tensor>,
}

fn scalar(cx: &Cx, op: OpId, dtype: ScalarType) -> Tensor {
    cx.empty(op, Shape::new(&[]), dtype)
}

impl GradScaler {
    /// Nothing is allocated before the first [`GradScaler::scale`].
    pub fn new(_: &Cx) -> GradScaler {
        GradScaler {
            scale: None,
            growth_tracker: None,
            stage: Stage::Ready,
            found_inf: None,
        }
    }

    /// `scaler.scale(loss)`: a product with history; the first call makes the scale and the growth tracker.
    pub fn scale(&mut self, cx: &Cx, loss: &Tensor) -> Tensor {
        let tracker = &mut self.growth_tracker;
        let scale = self.scale.get_or_insert_with(|| {
            let s = scalar(cx, OpId::FULL, F32);
            *tracker = Some(scalar(cx, OpId::FULL, I32));
            s
        });
        ops::mul(cx, loss, scale)
    }

    /// `_unscale_grads_`: per-device copies of both scalars where there is a gradient; the one of `found_inf` stays.
    fn check(&mut self, cx: &Cx, params: &[Tensor]) {
        if params.iter().all(|p| p.grad().is_none()) {
            return;
        }
        let found = scalar(cx, OpId::TO_COPY, F32);
        let inverse = scalar(cx, OpId::TO_COPY, F32);
        drop(inverse);
        self.found_inf = Some(found);
    }

    /// `scaler.unscale_(optimizer)`; does nothing if it was called since the last [`GradScaler::update`] or nothing was scaled yet
    /// (where the framework raises).
    pub fn unscale(&mut self, cx: &Cx, params: &[Tensor]) {
        if self.stage != Stage::Ready || self.scale.is_none() {
            return;
        }
        // self._scale.double().reciprocal().float()
        let double = scalar(cx, OpId::TO_COPY, F64);
        let reciprocal = plain(cx, OpId::RECIPROCAL, &double, F64);
        drop(double);
        let inverse = scalar(cx, OpId::TO_COPY, F32);
        drop(reciprocal);
        let found = scalar(cx, OpId::FULL, F32);
        self.check(cx, params);
        drop(inverse);
        drop(found);
        self.stage = Stage::Unscaled;
    }

    /// `scaler.step(optimizer)`: unscales where that was not done, then steps. Optimizers that scale by themselves get the scale and
    /// the found infinities instead.
    pub fn step(&mut self, cx: &Cx, optimizer: &mut dyn Optimizer, params: &[Tensor]) {
        if !optimizer.scales_gradients() {
            self.unscale(cx, params);
            optimizer.step(cx, params);
            return;
        }
        let ready = self.stage == Stage::Ready;
        if ready {
            // _check_inf_per_device
            let inverse = scalar(cx, OpId::FULL, F32);
            let found = scalar(cx, OpId::FULL, F32);
            self.check(cx, params);
            drop(inverse);
            drop(found);
        }
        let found = scalar(cx, OpId::ADD, F32); // sum([...]) starts from 0
        let scale = ready.then(|| scalar(cx, OpId::MUL, F32)); // scaler * 1
        optimizer.step(cx, params);
        drop(scale); // del optimizer.grad_scale
        drop(found);
    }

    /// `scaler.update()`: in place; forgets this step's infinities.
    pub fn update(&mut self, _: &Cx) {
        drop(self.found_inf.take());
        self.stage = Stage::Ready;
    }
}
