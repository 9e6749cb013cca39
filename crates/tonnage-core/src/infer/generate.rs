//! `model.generate(ids, attention_mask=..., max_new_tokens=n)`
//! (transformers 5.17 and 4.57.6, src/transformers/generation/utils.py, `generate`).

use super::call::{Calls, Encoded, Kwargs};
use super::{beam, by_hand, sample, special};
use crate::error::CoreError;
use crate::spec::{CacheChoice, Mask, Spec, Work};
use crate::train::IDS;
use std::rc::Rc;
use tonnage_model::arch::{Arch, Caches};
use tonnage_model::{Attention, Cache, CacheKind, Run};
use tonnage_sim::timeline::{Category, Phase};
use tonnage_sim::{Cx, OpId, Tensor, ops};

/// Runs the prompt and the new tokens; returns the bytes in managed memory (none).
pub fn generate(spec: &Spec, cx: &Cx, run: &Rc<Run>, arch: &dyn Arch) -> Result<u64, CoreError> {
    let Work::Generate(how) = spec.work else {
        return Ok(0);
    };
    let unsupported = |what: String| Err(CoreError::Unsupported(what));
    match how.cache {
        CacheChoice::Dynamic | CacheChoice::Static => {}
        CacheChoice::Offloaded => {
            return unsupported(
                "an offloaded cache: its layers come back on a second stream, and the allocator's model has one".into(),
            );
        }
        CacheChoice::Quantized => {
            return unsupported(
                "a quantised cache: quanto compiles kernels of its own at the first use and HQQ searches until the values are good enough, so no run without a GPU shows their memory"
                    .into(),
            );
        }
    }
    let block = arch.by_hand();
    let halves = arch.encoder_decoder().is_some();
    if !arch.generates() && block.is_none() && !halves {
        return unsupported(format!("generation with model_type `{}`", spec.model_type));
    }
    if halves {
        let what = match () {
            () if !spec.stack.transformers_5() => "transformers 4",
            () if how.beams > 1 => "beams",
            () if how.cache != CacheChoice::Dynamic || !spec.use_cache => {
                "a cache that is not dynamic"
            }
            () if spec.mask == Mask::Padding => "padding",
            () => "",
        };
        if !what.is_empty() {
            return unsupported(format!(
                "generation of an encoder-decoder (`{}`) with {what}",
                spec.model_type
            ));
        }
    }
    if how.new == 0 || how.beams == 0 || spec.seq == 0 {
        return Err(CoreError::Invalid {
            field: "generate".into(),
            problem: "a prompt, new tokens and beams are at least 1".into(),
        });
    }
    if how.sample && how.beams > 1 {
        return unsupported("sampling with beams".into());
    }
    if how.eos && how.beams > 1 {
        return unsupported("an end token with beams".into());
    }
    let masked = spec.mask == Mask::Padding || spec.attention == Attention::Eager;
    if spec.model_type == "opt" && masked && !spec.stack.transformers_5() {
        return unsupported("generation of OPT with a mask in transformers 4".into());
    }
    let c = Calls {
        spec,
        how,
        cx,
        run,
        arch,
        five: spec.stack.transformers_5(),
        rows: spec.batch * how.beams,
        prompt: spec.seq,
    };
    if let Some(block) = block {
        if how.beams > 1 || how.eos {
            return unsupported(format!(
                "beams and end tokens with model_type `{}`",
                spec.model_type
            ));
        }
        cx.with_grad(false, || by_hand::run(&c, block));
        return Ok(0);
    }
    cx.with_grad(false, || c.generate());
    Ok(0)
}

/// Begin, end, padding, the decoder's first.
type Special = (Option<Tensor>, Option<Tensor>, Tensor, Option<Tensor>);

impl Calls<'_> {
    /// Everything from the prompt to the sequences.
    fn generate(&self) {
        let (cx, b, s) = (self.cx, self.spec.batch, self.prompt);
        cx.mark(0, 0, Phase::Input);
        let prompt = self.i64s(OpId::INPUT, &[b, s]);
        cx.tag(&prompt, Category::Inputs);
        let mask = self.i64s(OpId::ONES_LIKE, &[b, s]);
        let halves = self.arch.encoder_decoder();
        let (bos, eos, pad, start) = self.special_tokens(halves.is_some());
        if halves.is_none() {
            self.right_padding(b);
        }
        let encoded = halves.map(|h| Encoded {
            states: h.encode(self.run, &prompt, Some(&mask)),
            caches: Caches::dynamic(),
        });
        let first_ids = halves.map(|_| {
            let ones = self.i64s(OpId::FULL, &[b, 1]);
            let ids = self.i64s(OpId::MUL, &[b, 1]);
            drop(ones);
            ids
        });
        let own = encoded.as_ref().map(|e| e.caches.own.clone());
        let cache = self
            .spec
            .use_cache
            .then(|| own.unwrap_or_else(|| self.new_cache()));
        *self.run.cache.borrow_mut() = cache.clone();
        let mut positions = (self.five && halves.is_none()).then(|| self.positions(&mask));
        let mut ids = first_ids.unwrap_or_else(|| prompt.clone());
        let mut first = mask.clone();
        if self.how.beams > 1 {
            // `_expand_inputs_for_generation`
            let repeat = || self.i64s(OpId::INDEX, &[self.rows, s]);
            ids = repeat();
            first = repeat();
            positions = positions.map(|p| {
                let wide = repeat();
                drop(p);
                wide
            });
        }
        let kw = Kwargs {
            mask: first.clone(),
            positions: positions.clone(),
            cache_position: None,
            encoded: encoded.clone(),
        };
        let sequences = if self.how.beams > 1 {
            beam::search(self, kw, ids.clone())
        } else {
            sample::loop_(self, kw, ids.clone())
        };
        // the frame of `generate`
        drop(bos);
        drop(pad);
        drop(start);
        drop(first);
        drop(positions);
        drop(self.run.cache.take());
        if self.how.cache == CacheChoice::Dynamic || self.five {
            drop(cache);
            drop(encoded);
            drop(eos);
            drop(ids);
            drop(mask);
            cx.mark(1, 0, Phase::End);
        } else {
            // 4.57: the model keeps a static cache for its next call
            drop(eos);
            drop(ids);
            drop(mask);
            cx.mark(1, 0, Phase::End);
            drop(cache);
        }
        drop(sequences);
        drop(prompt);
    }

    fn new_cache(&self) -> Rc<Cache> {
        Rc::new(Cache::new(match self.how.cache {
            CacheChoice::Dynamic | CacheChoice::Offloaded | CacheChoice::Quantized => {
                CacheKind::Dynamic
            }
            CacheChoice::Static => CacheKind::Static {
                len: self.longest(),
            },
        }))
    }

    /// `_prepare_special_tokens`: begin, end (which the stopping criteria hold as well), padding, the decoder's first.
    fn special_tokens(&self, decoder: bool) -> Special {
        let one = || self.i64s(OpId::TO_COPY, &[]);
        let bos = special::has_bos(&self.spec.model_type, &self.spec.config).then(one);
        let eos = self.how.eos.then(one);
        let pad = one();
        let start = decoder.then(one);
        if self.how.eos {
            let cx = self.cx;
            let padded = self.isin(1);
            let any = ops::all(cx, &padded);
            drop(padded);
            drop(any);
            let negative = self.bools(OpId::COMPARE, &[1]);
            let any = ops::all(cx, &negative);
            drop(negative);
            drop(any);
        }
        (bos, eos, pad, start)
    }

    /// Is the last token of any sequence padding? 5.x asks the mask, and only for a batch; 4.57 compares with the token.
    fn right_padding(&self, b: u64) {
        if b == 1 {
            return;
        }
        let pads = self.bools(OpId::EQ, &[b]);
        if self.five {
            let any = ops::all(self.cx, &pads);
            drop(pads);
            drop(any);
        } else {
            let count = ops::sum(self.cx, &pads, &[], false);
            drop(pads);
            let some = ops::compare_scalar(self.cx, OpId::COMPARE, &count);
            drop(count);
            drop(some);
        }
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
    pub fn first_places(&self) -> Option<Tensor> {
        if self.five {
            return None;
        }
        let ones = self.i64s(OpId::FULL, &[self.prompt]);
        let sum = self.cumsum(&ones);
        drop(ones);
        Some(ops::plain(self.cx, OpId::SUB, &sum, IDS))
    }
}
