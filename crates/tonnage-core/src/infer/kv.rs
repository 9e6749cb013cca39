//! How large the key/value cache of a model is.

use crate::error::CoreError;
use crate::spec::Spec;
use std::rc::Rc;
use tonnage_model::arch::Batch;
use tonnage_model::{Cache, CacheKind, Run, RunOptions};
use tonnage_sim::context::DeviceModel;
use tonnage_sim::{Cx, OpId, ScalarType, Shape};

/// Bytes of keys and values that a growing cache holds after `tokens` tokens of each of `batch` sequences, in the type that the
/// job computes in: asked of one forward call on shapes, not of a formula. Sliding layers hold their window only.
///
/// # Errors
/// An architecture that is not known, or that generates nothing.
pub fn kv_cache_bytes(spec: &Spec, batch: u64, tokens: u64) -> Result<u64, CoreError> {
    let built = spec.model()?;
    if !built.arch.generates() {
        return Err(CoreError::Unsupported(format!(
            "a key/value cache with model_type `{}`",
            spec.model_type
        )));
    }
    let kernel = spec.device;
    let cx = Cx::new(DeviceModel { kernel }, spec.accumulate);
    let options = RunOptions {
        dtype: spec.weights.unwrap_or(spec.precision.weights()),
        attention: spec.attention,
        training: false,
        use_cache: true,
        checkpoint: None,
        loss: spec.loss,
        stack: spec.stack,
    };
    let run = Rc::new(Run::load(&cx, built.net, options));
    let cache = Rc::new(Cache::new(CacheKind::Dynamic));
    *run.cache.borrow_mut() = Some(cache.clone());
    let call = Batch {
        input_ids: Some(cx.empty(OpId::INPUT, Shape::new(&[batch, tokens]), ScalarType::I64)),
        keep: Some(1),
        ..Batch::default()
    };
    let scope = spec
        .precision
        .autocast()
        .map(|d| cx.enter_autocast(Some(d)));
    cx.with_grad(false, || drop(built.arch.forward(&run, &call)));
    if let Some(old) = scope {
        cx.exit_autocast(old);
    }
    run.cache.take();
    let bytes = cache.bytes();
    cx.close();
    Ok(bytes)
}
