//! The loop of transformers' `Trainer` with accelerate underneath (transformers 5.17 and 4.57.6, src/transformers/trainer.py,
//! `_run_epoch` and `_inner_training_loop`; accelerate 1.15, accelerator.py, data_loader.py, utils/operations.py).
//!
//! One step: the batches of all its micro-batches come to the device, their items are counted, then each runs forward, backward and
//! the bookkeeping of the logged loss; the last one clips, steps and clears the gradients. What the two versions do differently:
//! 5.17 adds to the logged loss in place and forgets the last gradient norm before it clips, 4.57 makes a new tensor for each sum,
//! sums the counted items once more, and keeps the old norm until the new one exists
//! (cases `gpt2-small-trainer-fp32-adamw_fused-b4-s512` and its `-tf4.57.6` twin).

use super::repeat::Watch;
use super::{batch, groups};
use crate::error::CoreError;
use crate::spec::{Precision, Spec};
use std::rc::Rc;
use tonnage_model::Run;
use tonnage_model::arch::{Arch, Batch, Output};
use tonnage_sim::optim::{self, GradScaler, OptimizerKind};
use tonnage_sim::timeline::{Category, Phase};
use tonnage_sim::{Cx, OpId, ScalarType, Shape, Tensor, backward, ops};

fn scalar(cx: &Cx, op: OpId, dtype: ScalarType) -> Tensor {
    cx.empty(op, Shape::new(&[]), dtype)
}

/// Is `num_items_in_batch` passed to the model: does its `forward` take `**kwargs`? All models here do in 5.17; encoders with task heads
/// and encoder-decoders do not in 4.57.
fn counts_items(spec: &Spec) -> bool {
    spec.stack.transformers_5()
        || !matches!(
            spec.model_type.as_str(),
            "bert" | "roberta" | "distilbert" | "t5" | "whisper"
        )
}

/// Are labels counted from the second position on? In 5.17, where the class's name says that its loss is `ForCausalLMLoss`; GPT-2's
/// class (`GPT2LMHeadModel`) does not.
fn counts_shifted(spec: &Spec) -> bool {
    let other = [
        "gpt2",
        "bert",
        "roberta",
        "distilbert",
        "t5",
        "whisper",
        "vit",
    ];
    spec.stack.transformers_5() && !other.contains(&spec.model_type.as_str())
}

/// `_get_num_items_in_batch`: a sum of sums over the batches' labels that are not -100.
fn count_items(spec: &Spec, cx: &Cx, batches: &[Batch]) -> Option<Tensor> {
    if !counts_items(spec) {
        return None;
    }
    let mut total: Option<Tensor> = None;
    for b in batches {
        let labels = b.labels.as_ref()?;
        let seen = if counts_shifted(spec) {
            ops::slice(cx, labels, -1, 1, labels.size(-1) - 1)
        } else {
            labels.clone()
        };
        let not_ignored = ops::compare_scalar(cx, OpId::NE, &seen);
        let n = ops::sum(cx, &not_ignored, &[], false);
        drop(not_ignored);
        let sum = ops::plain(cx, OpId::ADD, &n, ScalarType::I64);
        drop(total.replace(sum));
        drop(n);
    }
    if !spec.stack.transformers_5() {
        let gathered = ops::sum(cx, total.as_ref()?, &[], false);
        drop(total.replace(gathered));
    }
    total
}

/// accelerate's `convert_outputs_to_fp32` around the model's forward: every 16-bit output gets an fp32 copy, then the old outputs go.
fn outputs_to_fp32(cx: &Cx, out: Output) -> Output {
    let copy = |t: &Tensor| {
        if t.dtype.size() == 2 {
            ops::to_dtype(cx, t, ScalarType::F32)
        } else {
            t.clone()
        }
    };
    let new = Output {
        loss: out.loss.as_ref().map(copy),
        logits: out.logits.as_ref().map(copy),
        rest: out.rest.iter().map(copy).collect(),
    };
    drop(out);
    new
}

/// The logged sum of losses.
struct Logged {
    sum: Tensor,
    in_place: bool,
    /// What the recording device answers to every question of one byte: yes, but for padded masks. So a loss "is" not a number there,
    /// and the mean of the earlier ones is added; on a real card the second question is asked and the loss itself is added. The
    /// difference is a block of 512 bytes between backward and clipping.
    answers_yes: bool,
}

impl Logged {
    fn add(&mut self, cx: &Cx, loss: &Tensor) {
        drop(ops::compare_scalar(cx, OpId::NE, loss)); // isnan
        if !self.answers_yes {
            let magnitude = ops::plain(cx, OpId::ABS, loss, loss.dtype); // isinf
            let infinite = ops::compare_scalar(cx, OpId::EQ, loss);
            drop(magnitude);
            drop(infinite);
        }
        let mean = self
            .answers_yes
            .then(|| ops::plain(cx, OpId::DIV, &self.sum, ScalarType::F32));
        if !self.in_place {
            let sum = ops::plain(cx, OpId::ADD, &self.sum, ScalarType::F32);
            drop(mean);
            self.sum = sum;
        }
    }
}

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
    let five = spec.stack.transformers_5();
    cx.mark(0, 0, Phase::Between);
    let params = run.trainable();
    let groups = groups::by_decay(run);
    let ordered = groups.params.concat();
    let mut opt = optim::create_grouped(kind, cx, &groups.params, &groups.embedding);
    drop(groups);
    let mut scaler =
        (spec.precision == Precision::Mixed(ScalarType::F16)).then(|| GradScaler::new(cx));
    let mut logged = Logged {
        sum: scalar(cx, OpId::FULL, ScalarType::F32),
        in_place: five,
        answers_yes: spec.mask != crate::spec::Mask::Padding,
    };
    let mut samples: Vec<Batch> = vec![];
    let mut items: Option<Tensor> = None;
    let mut inputs: Option<Batch> = None;
    let mut last_loss: Option<Tensor> = None;
    let mut norm: Option<Tensor> = None;
    for step in 0..spec.steps as i32 {
        let next: Vec<Batch> = (0..spec.accumulation)
            .map(|_| batch::make(spec, cx, arch.layout()))
            .collect();
        let counted = count_items(spec, cx, &next);
        drop_samples(std::mem::replace(&mut samples, next));
        drop(std::mem::replace(&mut items, counted));
        if let Some(w) = watch {
            w.step_begins();
        }
        for mb in 0..spec.accumulation {
            let b = samples[mb as usize].clone();
            if let Some(old) = inputs.replace(b.clone()) {
                batch::release(old);
            }
            let loss = forward(spec, cx, run, arch, &b, items.as_ref(), (step, mb))?;
            drop(b);
            cx.mark(step, mb, Phase::Backward);
            let divided = ops::div_scalar(cx, &loss); // by accelerate's own accumulation steps, 1
            match &mut scaler {
                Some(s) => {
                    let scaled = s.scale(cx, &divided);
                    backward(cx, &scaled);
                }
                None => backward(cx, &divided),
            }
            drop(divided);
            cx.mark(step, mb, Phase::Clip);
            drop(last_loss.replace(loss.detach()));
            drop(loss);
            if let Some(l) = &last_loss {
                logged.add(cx, l);
            }
            if let Some(w) = watch
                && mb + 1 < spec.accumulation
                && w.micro_batch_ended(cx, spec.accumulation - mb - 1)
            {
                w.cut = true;
                // the step's last micro-batch would have left its own batch behind
                inputs = samples.last().cloned();
                break;
            }
        }
        for p in &params {
            if let Some(g) = p.grad() {
                cx.tag(&g, Category::Gradients);
            }
        }
        // without a limit 5.17 takes the norm all the same
        if five || spec.clip.is_some() {
            if five {
                drop(norm.take());
            }
            if let Some(s) = &mut scaler {
                s.unscale(cx, &params);
            }
            let new = optim::clip_grad_norm(cx, &params);
            drop(std::mem::replace(&mut norm, new));
        }
        cx.mark(step, 0, Phase::Optimizer);
        match &mut scaler {
            Some(s) => {
                s.step(cx, &mut *opt, &ordered);
                s.update(cx);
            }
            None => opt.step(cx, &ordered),
        }
        cx.mark(step, 0, Phase::ZeroGrad);
        optim::zero_grad(cx, &params, true); // model.zero_grad(): in the model's order
        cx.mark(step + 1, 0, Phase::Between);
        drop(ops::mean(cx, &logged.sum, &[], false));
        if let Some(w) = watch
            && step + 1 < spec.steps as i32
            && w.step_ended(cx, spec.steps - step as u32 - 1)
        {
            w.cut = true;
            break;
        }
    }
    // the function's locals; in 4.57 the logged loss is one of them, in 5.17 the Trainer keeps it
    let kept = if five {
        drop(norm.take());
        Some(logged)
    } else {
        drop(logged);
        None
    };
    drop_samples(samples);
    drop(items);
    if let Some(b) = inputs {
        batch::release(b);
    }
    drop(last_loss);
    drop(norm);
    cx.mark(spec.steps as i32, 0, Phase::End);
    drop(kept);
    Ok(opt.managed_bytes())
}

/// A Python list of batches: the last goes first.
fn drop_samples(mut samples: Vec<Batch>) {
    while let Some(b) = samples.pop() {
        batch::release(b);
    }
}

/// `compute_loss` with the model wrapped by accelerate, and what `training_step` does to the loss before backward.
fn forward(
    spec: &Spec,
    cx: &Cx,
    run: &Rc<Run>,
    arch: &dyn Arch,
    b: &Batch,
    items: Option<&Tensor>,
    (step, mb): (i32, u32),
) -> Result<Tensor, CoreError> {
    cx.mark(step, mb, Phase::Forward);
    run.items.replace(items.cloned());
    let scope = spec
        .precision
        .autocast()
        .map(|d| cx.enter_autocast(Some(d)));
    let mut out = arch.forward(run, b);
    run.items.take();
    if let Some(old) = scope {
        cx.exit_autocast(old);
        out = outputs_to_fp32(cx, out);
    }
    let loss = out
        .loss
        .take()
        .ok_or_else(|| CoreError::Unsupported("training a model without a loss".into()))?;
    if items.is_none() {
        drop(out);
        return Ok(ops::div_scalar(cx, &loss)); // by the micro-batches of the step
    }
    let loss = ops::mul_scalar_(cx, loss); // by the number of processes
    drop(out);
    Ok(loss)
}
