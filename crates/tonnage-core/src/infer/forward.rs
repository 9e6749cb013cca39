//! One call of the model without gradients: all logits, and the cache it returns.

use crate::error::CoreError;
use crate::spec::Spec;
use crate::train::batch;
use std::rc::Rc;
use tonnage_model::arch::{Arch, BatchLayout, Output};
use tonnage_model::{Cache, CacheKind, Run};
use tonnage_sim::Cx;
use tonnage_sim::timeline::Phase;

/// Two calls, each with its own batch; the output is let go in between. Returns the bytes in managed memory (none).
pub fn forward(
    spec: &Spec,
    cx: &Cx,
    run: &Rc<Run>,
    arch: &dyn Arch,
    layout: Option<&BatchLayout>,
) -> Result<u64, CoreError> {
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
        let out = cx.with_grad(false, || {
            if run.options.use_cache && arch.generates() {
                *run.cache.borrow_mut() = Some(Rc::new(Cache::new(CacheKind::Dynamic)));
            }
            arch.forward(run, &b)
        });
        drop(b);
        let cache = run.cache.take();
        cx.mark(step, 0, Phase::Hold);
        release(out);
        drop(cache);
    }
    cx.mark(2, 0, Phase::End);
    drop(held);
    Ok(0)
}

/// An output object goes as a Python dict does.
fn release(out: Output) {
    let Output { loss, logits, rest } = out;
    drop(loss);
    drop(logits);
    rest.into_iter().for_each(drop);
}
