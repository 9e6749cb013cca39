//! A hand-written training loop, as most scripts have it: batch, forward under autocast, backward, clip, step, zero_grad.

use super::batch;
use super::repeat::Watch;
use crate::error::CoreError;
use crate::spec::{Hold, Precision, Spec};
use std::rc::Rc;
use tonnage_model::Run;
use tonnage_model::arch::{Arch, Batch, Output};
use tonnage_sim::optim::{self, GradScaler, OptimizerKind};
use tonnage_sim::timeline::{Category, Phase};
use tonnage_sim::{Cx, ScalarType, Tensor, backward, ops};

/// Runs the loop; returns the optimizer's bytes in managed memory.
pub fn train(
    spec: &Spec,
    cx: &Cx,
    run: &Rc<Run>,
    arch: &dyn Arch,
    watch: &mut Option<Watch>,
) -> Result<u64, CoreError> {
    let kind: OptimizerKind = spec.optimizer.parse().map_err(|_| CoreError::Invalid {
        field: "optimizer".into(),
        problem: format!("unknown optimizer `{}`", spec.optimizer),
    })?;
    let params = run.trainable();
    let mut opt = optim::create(kind, cx, &params);
    let mut scaler =
        (spec.precision == Precision::Mixed(ScalarType::F16)).then(|| GradScaler::new(cx));
    let mut held_batch: Option<Batch> = None;
    let mut loss: Option<Tensor> = None;
    let mut held = Output::default();
    for step in 0..spec.steps as i32 {
        if let Some(w) = watch {
            w.step_begins();
        }
        for mb in 0..spec.accumulation {
            cx.mark(step, mb, Phase::Input);
            let b = batch::make(spec, cx, arch.layout());
            if let Some(old) = held_batch.replace(b.clone()) {
                batch::release(old);
            }
            cx.mark(step, mb, Phase::Forward);
            let scope = spec
                .precision
                .autocast()
                .map(|d| cx.enter_autocast(Some(d)));
            let mut out = arch.forward(run, &b);
            let new = out.loss.take();
            // `out, loss = ...`: the old output goes first, then the old loss
            drop(std::mem::replace(&mut held, out));
            if let Some(old) = std::mem::replace(&mut loss, new) {
                old.forget();
            }
            if spec.accumulation > 1
                && let Some(l) = &loss
            {
                let divided = ops::div_scalar(cx, l);
                // the output object still holds the undivided loss
                held.loss = loss.replace(divided);
            }
            if let Some(old) = scope {
                cx.exit_autocast(old);
            }
            if spec.hold == Hold::Loss {
                held = Output::default();
            }
            if spec.zero_grad_late && mb == 0 {
                cx.mark(step, mb, Phase::ZeroGrad);
                optim::zero_grad(cx, &params, spec.set_to_none);
            }
            cx.mark(step, mb, Phase::Backward);
            let l = loss
                .as_ref()
                .ok_or_else(|| CoreError::Unsupported("training a model without a loss".into()))?;
            match &mut scaler {
                Some(s) => {
                    let scaled = s.scale(cx, l);
                    backward(cx, &scaled);
                }
                None => backward(cx, l),
            }
            if let Some(w) = watch
                && mb + 1 < spec.accumulation
                && w.micro_batch_ended(cx, spec.accumulation - mb - 1)
            {
                w.cut = true;
                break;
            }
        }
        for p in &params {
            if let Some(g) = p.grad() {
                cx.tag(&g, Category::Gradients);
            }
        }
        if spec.clip.is_some() {
            cx.mark(step, 0, Phase::Clip);
            if let Some(s) = &mut scaler {
                s.unscale(cx, &params);
            }
            optim::clip_grad_norm(cx, &params);
        }
        cx.mark(step, 0, Phase::Optimizer);
        match &mut scaler {
            Some(s) => {
                s.step(cx, &mut *opt, &params);
                s.update(cx);
            }
            None => opt.step(cx, &params),
        }
        if !spec.zero_grad_late {
            cx.mark(step, 0, Phase::ZeroGrad);
            optim::zero_grad(cx, &params, spec.set_to_none);
        }
        if let Some(w) = watch
            && step + 1 < spec.steps as i32
            && w.step_ended(cx, spec.steps - step as u32 - 1)
        {
            w.cut = true;
            break;
        }
    }
    cx.mark(spec.steps as i32, 0, Phase::End);
    Ok(opt.managed_bytes())
}
