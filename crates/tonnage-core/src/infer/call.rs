//! What every way of generating shares: the inputs of a call, the call, and what is carried to the next one
//! (generation/utils.py: `prepare_inputs_for_generation`, `_update_model_kwargs_for_generation`).

use crate::spec::{CacheChoice, Generation, Mask, Spec};
use crate::train::IDS;
use std::rc::Rc;
use tonnage_model::arch::{Arch, Batch, Caches, Masks};
use tonnage_model::common::mask;
use tonnage_model::{Attention, Run};
use tonnage_sim::timeline::Phase;
use tonnage_sim::{Cx, OpId, ScalarType, Shape, Tensor, kernels, ops};

/// `model_kwargs`.
pub struct Kwargs {
    /// [rows, tokens so far]
    pub mask: Tensor,
    /// 5.x: [rows, tokens so far]; 4.57 makes its own from the mask at each step.
    pub positions: Option<Tensor>,
    /// 4.57: the new tokens' places.
    pub cache_position: Option<Tensor>,
    /// What an encoder has made of the prompt; `mask` is then its mask.
    pub encoded: Option<Encoded>,
}

/// An encoder's hidden states and the decoder's caches.
#[derive(Clone)]
pub struct Encoded {
    pub states: Tensor,
    pub caches: Caches,
}

impl Kwargs {
    /// The dict goes in the order of its insertion.
    pub fn release(self) {
        drop(self.mask);
        drop(self.positions);
        drop(self.cache_position);
        drop(self.encoded);
    }
}

/// `model_inputs` of one call, in the order in which the dict lets go of them.
#[derive(Default)]
pub struct Inputs {
    cache_position: Option<Tensor>,
    ids: Option<Tensor>,
    positions: Option<Tensor>,
    mask: Option<Tensor>,
    /// Of the sliding layers, where it is another one.
    sliding: Option<Tensor>,
    encoded: Option<Encoded>,
}

impl Drop for Inputs {
    fn drop(&mut self) {
        drop(self.cache_position.take());
        drop(self.ids.take());
        drop(self.positions.take());
        drop(self.mask.take());
        drop(self.sliding.take());
    }
}

/// A generation in progress.
pub struct Calls<'a> {
    pub spec: &'a Spec,
    pub how: Generation,
    pub cx: &'a Cx,
    pub run: &'a Rc<Run>,
    pub arch: &'a dyn Arch,
    /// transformers 5
    pub five: bool,
    /// Sequences of one call: batch times beams.
    pub rows: u64,
    /// The prompt's tokens.
    pub prompt: u64,
}

impl Calls<'_> {
    pub fn i64s(&self, op: OpId, dims: &[u64]) -> Tensor {
        self.cx.empty(op, Shape::new(dims), IDS)
    }

    pub fn bools(&self, op: OpId, dims: &[u64]) -> Tensor {
        self.cx.empty(op, Shape::new(dims), ScalarType::Bool)
    }

    pub fn f32s(&self, op: OpId, dims: &[u64]) -> Tensor {
        self.cx.empty(op, Shape::new(dims), ScalarType::F32)
    }

    /// Tokens that a static cache holds.
    pub fn longest(&self) -> u64 {
        self.prompt + self.how.new - 1
    }

    pub fn cumsum(&self, x: &Tensor) -> Tensor {
        let script = kernels::cumsum(x.numel(), x.dtype, IDS, x.size(-1) == x.numel())
            .expect("an int64 cumsum is covered");
        self.cx
            .play(OpId::CUMSUM, &script, |_| (x.shape, x.strides(), IDS))
            .remove(0)
    }

    /// The inputs of a call over `tokens` known tokens, of which the cache has seen `past`.
    pub fn prepare(&self, kw: &Kwargs, tokens: u64) -> Inputs {
        let cx = self.cx;
        if let Some(encoded) = &kw.encoded {
            let ids = self.i64s(OpId::CLONE, &[self.rows, tokens - self.run.past()]);
            return Inputs {
                cache_position: None,
                ids: Some(ids),
                positions: None,
                mask: Some(kw.mask.clone()),
                sliding: None,
                encoded: Some(encoded.clone()),
            };
        }
        let cached = self.run.cache().is_some();
        let s = if cached {
            tokens - self.run.past()
        } else {
            tokens
        };
        let mut picked = None;
        if !self.five && cached {
            // `cache_position[-1] >= input_ids.shape[1]`: no, unless the device computes nothing, as where most records were made
            drop(self.bools(OpId::COMPARE, &[]));
            if self.spec.mask == Mask::Padding && s < tokens {
                picked = Some(self.i64s(OpId::INDEX, &[self.rows, s]));
            }
        }
        let ids = self.i64s(OpId::CLONE, &[self.rows, s]);
        // a local to the end of the function
        let mut made = None;
        let positions = match &kw.positions {
            Some(p) if p.size(1) == s => Some(p.clone()),
            Some(_) => Some(self.i64s(OpId::CLONE, &[self.rows, s])),
            None => Some({
                let sum = self.cumsum(&kw.mask);
                let p = ops::plain(cx, OpId::SUB, &sum, IDS);
                drop(sum);
                drop(ops::compare_scalar(cx, OpId::EQ, &kw.mask));
                let p = made.insert(p);
                if cached {
                    self.i64s(OpId::CLONE, &[self.rows, s])
                } else {
                    p.clone()
                }
            }),
        };
        let (mask, sliding) = match self.how.cache {
            CacheChoice::Static if cached => self.fixed_masks(&kw.mask, s),
            _ => (Some(kw.mask.clone()), None),
        };
        drop(picked);
        drop(made);
        Inputs {
            cache_position: kw.cache_position.clone(),
            ids: Some(ids),
            positions,
            mask,
            sliding,
            encoded: None,
        }
    }

    /// A compilable cache gets its [rows, 1, S, held] masks ahead of the call (`create_masks_for_generate`): of full layers and of
    /// sliding ones, or the only one that the model needs. (The order of the two is that of a Python set of strings: any.)
    fn fixed_masks(&self, mask: &Tensor, s: u64) -> (Option<Tensor>, Option<Tensor>) {
        let Masks { full, window } = self.arch.masks();
        let first = full.then(|| self.fixed_mask(mask, s, None));
        let near = window.map(|w| self.fixed_mask(mask, s, Some(w)));
        match (first, near) {
            (Some(first), near) => (first, near.flatten()),
            (None, near) => (near.flatten(), None),
        }
    }

    /// One of them; none for a prompt that SDPA's `is_causal` covers (cases `llama-tiny-generate-bf16-static`,
    /// `mistral-tiny-generate-bf16-static-window`).
    fn fixed_mask(&self, mask: &Tensor, s: u64, window: Option<u64>) -> Option<Tensor> {
        let cx = self.cx;
        let past = self.run.past();
        // `get_mask_sizes` of the static layers
        let (kv, offset) = match window.map(|w| w.min(self.longest())) {
            None => (self.longest(), 0),
            Some(held) => {
                let kv = if past >= held {
                    held + s - 1
                } else {
                    held.max(past + s)
                };
                (kv, (past + 1).saturating_sub(held))
            }
        };
        let bools = ops::plain(cx, OpId::TO_COPY, mask, ScalarType::Bool);
        let reach = kv + offset;
        let padded = (mask.size(1) < reach).then(|| self.bools(OpId::PAD, &[self.rows, reach]));
        let eager = self.run.options.attention == Attention::Eager;
        if !eager && s > 1 && self.five {
            let all = padded.as_ref().unwrap_or(&bools);
            if all.size(1) > kv {
                mask::recent(self.run, self.rows, kv);
            }
            if window.is_none_or(|w| kv < w) {
                if s != kv {
                    mask::fast_all(self.run, &ops::slice(cx, all, 1, 0, s));
                    let rest = self.bools(OpId::BITWISE, &[self.rows, kv - s]);
                    mask::fast_all(self.run, &rest);
                } else {
                    mask::fast_all(self.run, all);
                }
                if self.spec.mask != Mask::Padding {
                    drop(padded);
                    drop(bools);
                    return None;
                }
            }
        }
        let span = mask::Span {
            q: s,
            kv,
            sliding: window.is_some(),
        };
        let mut out = mask::padding_mask_over(self.run, self.rows, span, padded);
        if eager {
            out = mask::additive(self.run, out, self.run.options.dtype);
        }
        drop(bools);
        Some(out)
    }

    /// One call of the model: its logits of the last position, [rows, 1, V].
    pub fn call(&self, inputs: &Inputs, first: bool) -> Option<Tensor> {
        let phase = if first { Phase::Prefill } else { Phase::Decode };
        self.cx.mark(0, 0, phase);
        let halves = self.arch.encoder_decoder();
        if let (Some(e), Some(halves), Some(ids)) = (&inputs.encoded, halves, &inputs.ids) {
            self.run.decoding.set(!first);
            let mask = inputs.mask.as_ref();
            return Some(halves.decode(self.run, ids, &e.states, mask, &e.caches));
        }
        let batch = Batch {
            input_ids: inputs.ids.clone(),
            attention_mask: inputs.mask.clone(),
            sliding_mask: inputs.sliding.clone(),
            position_ids: inputs.positions.clone(),
            padded: self.spec.mask == Mask::Padding,
            keep: Some(1),
            ..Batch::default()
        };
        self.run.decoding.set(self.five && !first);
        self.arch.forward(self.run, &batch).logits
    }

    /// The tensors of `model_kwargs` for one more token.
    pub fn update(&self, kw: &mut Kwargs) {
        if kw.encoded.is_some() {
            return;
        }
        let (cx, rows) = (self.cx, self.rows);
        // the old ones are locals to the end of the function
        let mut old = None;
        if let Some(p) = &kw.positions {
            let range = self.i64s(OpId::ARANGE, &[1]);
            let mut next = self.i64s(OpId::ADD, &[rows, 1]);
            drop(range);
            next = ops::plain(cx, OpId::ADD, &next, IDS);
            let joined = self.i64s(OpId::CAT, &[rows, p.size(1) + 1]);
            drop(next);
            old = kw.positions.replace(joined);
        }
        let ones = self.i64s(OpId::FULL, &[rows, 1]);
        let joined = self.i64s(OpId::CAT, &[rows, kw.mask.size(1) + 1]);
        drop(ones);
        let old_mask = std::mem::replace(&mut kw.mask, joined);
        if kw.cache_position.is_some() {
            let next = if self.run.cache().is_some() {
                self.i64s(OpId::ADD, &[1])
            } else {
                self.i64s(OpId::CAT, &[kw.mask.size(1)])
            };
            kw.cache_position = Some(next);
        }
        drop(old);
        drop(old_mask);
    }

    /// `outputs.logits[:, -1].to(copy=True, dtype=torch.float32)`.
    pub fn copied(&self, logits: &Option<Tensor>) -> Tensor {
        let vocab = logits.as_ref().map_or(0, |l| l.size(-1));
        self.f32s(OpId::TO_COPY, &[self.rows, vocab])
    }

    /// The stopping criteria over `n` sequences: `is_done | criterion(...)` for the length, then for the end token.
    pub fn stopped(&self, n: u64) -> Tensor {
        let none = self.bools(OpId::FULL, &[n]);
        let reached = self.bools(OpId::FULL, &[n]);
        let mut done = self.bools(OpId::BITWISE, &[n]);
        drop(reached);
        drop(none);
        if self.how.eos {
            let hit = self.isin(n);
            let any = self.five.then(|| self.bools(OpId::ANY, &[n]));
            let hit = if let Some(any) = any {
                drop(hit);
                any
            } else {
                hit
            };
            let either = self.bools(OpId::BITWISE, &[n]);
            drop(hit);
            done = either;
        }
        done
    }

    /// `torch.isin` of `n` elements in a short list.
    pub fn isin(&self, n: u64) -> Tensor {
        let out = self.bools(OpId::EQ, &[n]);
        let eq = self.bools(OpId::EQ, &[n]);
        let any = self.bools(OpId::ANY, &[n]);
        drop(any);
        drop(eq);
        out
    }
}
