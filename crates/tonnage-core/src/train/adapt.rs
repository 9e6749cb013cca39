//! From an empty device to a model ready to train: load (packed or plain), k-bit preparation, adapters, frozen layers, what
//! checkpointing asks of the input embeddings.

use crate::error::CoreError;
use crate::spec::{Loop, Spec, Work};
use tonnage_model::Run;
use tonnage_model::adapt::lora::Base;
use tonnage_model::adapt::{Quant, freeze, kbit, lora, quant, target};
use tonnage_sim::Cx;
use tonnage_sim::checkpoint::Recompute;
use tonnage_sim::timeline::Phase;

/// A tensor's block: bytes rounded up to 512.
pub fn round(bytes: u64) -> u64 {
    bytes.div_ceil(512) * 512
}

/// Loads `run`'s model and applies the job's method; returns the parameters' elements before adapters (packed 4-bit weights count
/// as stored elements, as the framework does).
pub fn load(spec: &Spec, cx: &Cx, run: &mut Run) -> Result<u64, CoreError> {
    match spec.quant {
        Some(q) => quant::load(run, q, &spec.quant_scope),
        None => run.load_all(),
    }
    let mut count = 0;
    run.map_parameters(|t| count += t.numel());
    if let Some(f) = &spec.freeze {
        freeze::freeze_layers(run, f.layers, f.embeddings)?;
    }
    require_input_grads(spec, run);
    let Some(l) = &spec.lora else {
        return Ok(count);
    };
    if spec.quant.is_some() && spec.kbit_prepare {
        cx.mark(-1, 0, Phase::KbitPrepare);
        kbit::prepare(run);
    }
    cx.mark(-1, 0, Phase::Peft);
    lora::apply(run, l, |m, id| match spec.quant {
        Some(Quant::FourBit { compute, .. }) if m.is_replaced(id) => (Base::FourBit, Some(compute)),
        Some(Quant::Int8 { .. }) if m.is_replaced(id) => (Base::EightBit, None),
        _ => (
            Base::Dense,
            Some(m.weight(m.net.module(id).params[0].1).dtype),
        ),
    })?;
    Ok(count)
}

/// Checkpointing makes the embedding's output want a gradient, so that frozen weights do not cut the graph: always in
/// transformers 5; before, where the script asks for it (k-bit preparation does not if checkpointing is not reentrant, and the
/// Trainer does not).
fn require_input_grads(spec: &Spec, run: &mut Run) {
    let reentrant = spec
        .checkpoint
        .is_some_and(|c| c.how == Recompute::Reentrant);
    let asked = match spec.quant {
        Some(_) => spec.lora.is_some() && spec.kbit_prepare && reentrant,
        None => spec.lora.is_some() && spec.driver == Loop::Plain,
    };
    if spec.checkpoint.is_some()
        && spec.work == Work::Train
        && (asked || spec.stack.checkpointing_requires_input_grads())
    {
        let id = target::input_embedding(&run.net);
        run.require_input_grads(id);
    }
}

/// Bytes of all parameters, each in blocks of 512.
pub fn param_bytes(run: &mut Run) -> u64 {
    let mut n = 0;
    run.map_parameters(|t| n += round(t.nbytes()));
    n
}
