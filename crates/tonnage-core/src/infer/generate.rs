//! `model.generate(ids, attention_mask=..., max_new_tokens=n, do_sample=False)`
//! (transformers 5.17 and 4.57.6, src/transformers/generation/utils.py, `generate`, `_prefill`, `_sample`).

use super::special;
use crate::error::CoreError;
use crate::spec::{Mask, Spec, Work};
use crate::train::IDS;
use std::rc::Rc;
use tonnage_model::arch::{Arch, Batch};
use tonnage_model::{Cache, CacheKind, Run};
use tonnage_sim::timeline::{Category, Phase};
use tonnage_sim::{Cx, OpId, ScalarType, Shape, Tensor, kernels, ops};

/// The tensors of `model_kwargs` and the loop's locals.
struct State {
    /// [B, tokens so far]
    ids: Tensor,
    mask: Tensor,
    /// 5.x: [B, tokens so far]; 4.57 makes its own from the mask at each step.
    positions: Option<Tensor>,
    /// 4.57: the new tokens' places.
    cache_position: Option<Tensor>,
    unfinished: Tensor,
    /// 4.57: `this_peer_finished` is a tensor.
    finished: Option<Tensor>,
    scores: Option<Tensor>,
    next: Option<Tensor>,
    inputs: Inputs,
}

/// `model_inputs` of one call, in the order in which the dict lets go of them.
#[derive(Default)]
struct Inputs {
    cache_position: Option<Tensor>,
    ids: Option<Tensor>,
    positions: Option<Tensor>,
    mask: Option<Tensor>,
}

impl Drop for Inputs {
    fn drop(&mut self) {
        drop(self.cache_position.take());
        drop(self.ids.take());
        drop(self.positions.take());
        drop(self.mask.take());
    }
}

/// The generation in progress.
struct Generation<'a> {
    spec: &'a Spec,
    cx: &'a Cx,
    run: &'a Rc<Run>,
    arch: &'a dyn Arch,
    five: bool,
}

/// Runs the prompt and the new tokens; returns the bytes in managed memory (none).
pub fn generate(spec: &Spec, cx: &Cx, run: &Rc<Run>, arch: &dyn Arch) -> Result<u64, CoreError> {
    let Work::Generate { new } = spec.work else {
        return Ok(0);
    };
    if !arch.generates() {
        return Err(CoreError::Unsupported(format!(
            "generation with model_type `{}`",
            spec.model_type
        )));
    }
    let g = Generation {
        spec,
        cx,
        run,
        arch,
        five: spec.stack.transformers_5(),
    };
    cx.with_grad(false, || g.generate(new));
    Ok(0)
}

impl Generation<'_> {
    fn i64s(&self, op: OpId, dims: &[u64]) -> Tensor {
        self.cx.empty(op, Shape::new(dims), IDS)
    }

    fn bools(&self, op: OpId, dims: &[u64]) -> Tensor {
        self.cx.empty(op, Shape::new(dims), ScalarType::Bool)
    }

    fn generate(&self, new: u64) {
        let (cx, b, s) = (self.cx, self.spec.batch, self.spec.seq);
        cx.mark(0, 0, Phase::Input);
        let prompt = self.i64s(OpId::INPUT, &[b, s]);
        cx.tag(&prompt, Category::Inputs);
        let mask = self.i64s(OpId::ONES_LIKE, &[b, s]);
        let bos = special::has_bos(&self.spec.model_type, &self.spec.config)
            .then(|| self.i64s(OpId::TO_COPY, &[]));
        let pad = self.i64s(OpId::TO_COPY, &[]);
        self.right_padding(b);
        let cache = self
            .spec
            .use_cache
            .then(|| Rc::new(Cache::new(CacheKind::Dynamic)));
        *self.run.cache.borrow_mut() = cache.clone();
        let positions = self.five.then(|| self.positions(&mask));
        let unfinished = self.i64s(OpId::FULL, &[b]);
        let cache_position = (!self.five).then(|| self.first_places(s));
        let mut st = State {
            ids: prompt.clone(),
            mask: mask.clone(),
            positions: positions.clone(),
            cache_position,
            unfinished,
            finished: None,
            scores: None,
            next: None,
            inputs: Inputs::default(),
        };
        for i in 0..new {
            self.step(&mut st, i);
        }
        // the frame of `_sample`, then that of `generate`; the sequences are returned
        let sequences = st.ids.clone();
        self.end(st);
        drop(bos);
        drop(pad);
        drop(positions);
        drop(self.run.cache.take());
        drop(cache);
        drop(mask);
        cx.mark(1, 0, Phase::End);
        drop(sequences);
        drop(prompt);
    }

    /// Is the last token of any sequence padding? 5.x asks the mask, and only for a batch; 4.57 compares with the token.
    fn right_padding(&self, b: u64) {
        if b == 1 {
            return;
        }
        if self.five {
            let pads = self.bools(OpId::EQ, &[b]);
            let any = ops::all(self.cx, &pads);
            drop(pads);
            drop(any);
        } else {
            let pads = self.bools(OpId::EQ, &[b]);
            let count = ops::sum(self.cx, &pads, &[], false);
            drop(pads);
            let some = ops::compare_scalar(self.cx, OpId::COMPARE, &count);
            drop(count);
            drop(some);
        }
    }

    fn cumsum(&self, x: &Tensor) -> Tensor {
        let script = kernels::cumsum(x.numel(), x.dtype, IDS, x.size(-1) == x.numel())
            .expect("an int64 cumsum is covered");
        self.cx
            .play(OpId::CUMSUM, &script, |_| (x.shape, x.strides(), IDS))
            .remove(0)
    }

    /// 5.x, `_prepare_position_ids_for_generation`.
    fn positions(&self, mask: &Tensor) -> Tensor {
        let cx = self.cx;
        let mut p = self.cumsum(mask);
        p = ops::plain(cx, OpId::SUB, &p, IDS);
        let pads = ops::compare_scalar(cx, OpId::EQ, mask);
        let filled = ops::plain(cx, OpId::MASKED_FILL, &p, IDS);
        drop(pads);
        drop(p);
        filled
    }

    /// 4.57, `_get_initial_cache_position`: `ones(S).cumsum(0) - 1`.
    fn first_places(&self, s: u64) -> Tensor {
        let ones = self.i64s(OpId::FULL, &[s]);
        let sum = self.cumsum(&ones);
        drop(ones);
        ops::plain(self.cx, OpId::SUB, &sum, IDS)
    }

    /// `prepare_inputs_for_generation`.
    fn prepare(&self, st: &State, first: bool) -> Inputs {
        let cx = self.cx;
        let b = self.spec.batch;
        let cached = self.run.cache().is_some();
        let s = if first || !cached { st.ids.size(1) } else { 1 };
        if !self.five && cached {
            // `cache_position[-1] >= input_ids.shape[1]`
            drop(self.bools(OpId::COMPARE, &[]));
        }
        let ids = self.i64s(OpId::CLONE, &[b, s]);
        let positions = match &st.positions {
            Some(p) if p.size(1) == s => Some(p.clone()),
            Some(_) => Some(self.i64s(OpId::CLONE, &[b, s])),
            None => Some({
                let sum = self.cumsum(&st.mask);
                let p = ops::plain(cx, OpId::SUB, &sum, IDS);
                drop(sum);
                drop(ops::compare_scalar(cx, OpId::EQ, &st.mask));
                if cached {
                    let part = self.i64s(OpId::CLONE, &[b, s]);
                    drop(p);
                    part
                } else {
                    p
                }
            }),
        };
        Inputs {
            cache_position: st.cache_position.clone(),
            ids: Some(ids),
            positions,
            mask: Some(st.mask.clone()),
        }
    }

    fn step(&self, st: &mut State, i: u64) {
        let (cx, b) = (self.cx, self.spec.batch);
        let new = self.prepare(st, i == 0);
        if i == 1 && self.five {
            // the inputs of the first call were locals of `_prefill`
            st.inputs = Inputs::default();
        }
        st.inputs = new;
        cx.mark(
            0,
            0,
            if i == 0 {
                Phase::Prefill
            } else {
                Phase::Decode
            },
        );
        let batch = Batch {
            input_ids: st.inputs.ids.clone(),
            attention_mask: st.inputs.mask.clone(),
            position_ids: st.inputs.positions.clone(),
            padded: self.spec.mask == Mask::Padding,
            keep: Some(1),
            ..Batch::default()
        };
        self.run.decoding.set(self.five && i > 0);
        let out = self.arch.forward(self.run, &batch);
        drop(batch);
        if i == 0 && self.five {
            st.inputs = Inputs::default();
        }
        self.update(st);
        let logits = out.logits;
        let vocab = logits.as_ref().map_or(0, |l| l.size(-1));
        let scores = cx.empty(OpId::TO_COPY, Shape::new(&[b, vocab]), ScalarType::F32);
        // `next_token_logits` and `next_token_scores` are one tensor without processors
        st.scores = Some(scores);
        let next = st.scores.as_ref().map(|s| ops::argmax(cx, s, -1));
        st.next = next;
        let len = st.ids.size(1);
        let ids = self.i64s(OpId::CAT, &[b, len + 1]);
        st.ids = ids;
        self.stop(st);
        drop(logits);
    }

    /// `_update_model_kwargs_for_generation`.
    fn update(&self, st: &mut State) {
        let (cx, b) = (self.cx, self.spec.batch);
        // the old ones are locals to the end of the function
        let mut old = None;
        if let Some(p) = &st.positions {
            let range = self.i64s(OpId::ARANGE, &[1]);
            let mut next = self.i64s(OpId::ADD, &[b, 1]);
            drop(range);
            next = ops::plain(cx, OpId::ADD, &next, IDS);
            let joined = self.i64s(OpId::CAT, &[b, p.size(1) + 1]);
            drop(next);
            old = st.positions.replace(joined);
        }
        let ones = self.i64s(OpId::FULL, &[b, 1]);
        let joined = self.i64s(OpId::CAT, &[b, st.mask.size(1) + 1]);
        drop(ones);
        let old_mask = std::mem::replace(&mut st.mask, joined);
        drop(old);
        drop(old_mask);
        if st.cache_position.is_some() {
            let next = if self.run.cache().is_some() {
                self.i64s(OpId::ADD, &[1])
            } else {
                self.i64s(OpId::CAT, &[st.mask.size(1)])
            };
            st.cache_position = Some(next);
        }
    }

    /// The stopping criteria: `is_done | criteria(...)`, then who is left.
    fn stop(&self, st: &mut State) {
        let b = self.spec.batch;
        let done = self.bools(OpId::FULL, &[b]);
        let reached = self.bools(OpId::FULL, &[b]);
        let either = self.bools(OpId::BITWISE, &[b]);
        drop(reached);
        drop(done);
        let not = self.bools(OpId::BITWISE, &[b]);
        drop(either);
        let left = self.i64s(OpId::BITWISE, &[b]);
        drop(not);
        st.unfinished = left;
        let max = ops::max(self.cx, &st.unfinished);
        let zero = self.bools(OpId::EQ, &[]);
        drop(max);
        // 5.x takes the answer to the host
        st.finished = (!self.five).then_some(zero);
    }

    /// The locals of `_sample` die in the order of their first assignment.
    fn end(&self, st: State) {
        let State {
            ids,
            mask,
            positions,
            cache_position,
            unfinished,
            finished,
            scores,
            next,
            inputs,
        } = st;
        drop(ids);
        drop(mask);
        drop(positions);
        drop(cache_position);
        drop(finished);
        drop(unfinished);
        drop(inputs);
        drop(scores);
        drop(next);
    }
}
