//! One call of the model without gradients: all logits, and the cache it returns.

use crate::error::CoreError;
use crate::spec::Spec;
use crate::train::batch;
use std::rc::Rc;
use tonnage_model::arch::{Arch, BatchLayout, Head, Output};
use tonnage_model::{Cache, CacheKind, Run};
use tonnage_sim::timeline::Phase;
use tonnage_sim::{Cx, OpId, Shape, Tensor, ops};

/// Two calls, each with its own batch; the output is let go in between. Returns the bytes in managed memory (none).
pub fn forward(
    spec: &Spec,
    cx: &Cx,
    run: &Rc<Run>,
    arch: &dyn Arch,
    layout: Option<&BatchLayout>,
) -> Result<u64, CoreError> {
    let decoder = spec.head == Head::SequenceClassification && arch.caches();
    let padding = spec.config.get("pad_token_id").is_some_and(|v| v.is_u64());
    if decoder && spec.batch > 1 && !padding {
        return Err(CoreError::Invalid {
            field: "pad_token_id".into(),
            problem: "a decoder that classifies more than one sequence needs one (transformers raises a ValueError)".into(),
        });
    }
    let mut held = None;
    for step in 0..2 {
        cx.mark(step, 0, Phase::Input);
        let mut b = batch::make(spec, cx, layout);
        if let Some(old) = held.replace(b.clone()) {
            batch::release(old);
        }
        // `b.pop("labels")`
        drop(b.labels.take());
        if let Some(h) = &mut held {
            drop(h.labels.take());
        }
        cx.mark(step, 0, Phase::Prefill);
        let mut out = cx.with_grad(false, || {
            if run.options.use_cache && arch.caches() {
                *run.cache.borrow_mut() = Some(Rc::new(Cache::new(CacheKind::Dynamic)));
            }
            arch.forward(run, &b)
        });
        drop(b);
        let mut cache = run.cache.take();
        if spec.head == Head::Embedding {
            let mean = cx.with_grad(false, || pooled(cx, out, cache.take()));
            out = Output {
                rest: vec![mean],
                ..Output::default()
            };
        }
        cx.mark(step, 0, Phase::Hold);
        release(out);
        drop(cache);
    }
    cx.mark(2, 0, Phase::End);
    drop(held);
    Ok(0)
}

/// The mean of the hidden states over the mask, normalised: sentence-transformers' usual pooling
/// (case `bert-tiny-forward-fp16-embedding`).
fn pooled(cx: &Cx, out: Output, cache: Option<Rc<Cache>>) -> Tensor {
    let h = &out.rest[0];
    let (b, s, d) = (h.size(0), h.size(1), h.size(2));
    let raw = |op, dims: &[u64]| cx.empty(op, Shape::new(dims), h.dtype);
    let wide = raw(OpId::TO_COPY, &[b, s, d]);
    let product = raw(OpId::MUL, &[b, s, d]);
    let total = ops::sum(cx, &product, &[1], false);
    drop(product);
    let count = ops::sum(cx, &wide, &[1], false);
    let least = raw(OpId::CLAMP, &[b, d]);
    drop(count);
    let mean = raw(OpId::DIV, &[b, d]);
    drop(total);
    drop(least);
    let norm = raw(OpId::NORM, &[b, 1]);
    let least = raw(OpId::CLAMP, &[b, 1]);
    drop(norm);
    let unit = raw(OpId::DIV, &[b, d]);
    drop(least);
    release(out);
    drop(cache);
    drop(wide);
    drop(mean);
    unit
}

/// An output object goes as a Python dict does.
fn release(out: Output) {
    let Output { loss, logits, rest } = out;
    drop(loss);
    drop(logits);
    rest.into_iter().for_each(drop);
}
