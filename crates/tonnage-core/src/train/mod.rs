//! Runs a job on the simulator: load, steps, marks.

mod adapt;
pub(crate) mod batch;
mod described;
mod groups;
mod plain;
mod repeat;
mod trainer;

use crate::error::CoreError;
use crate::infer;
use crate::spec::{Loading, Loop, Mask, Precision, Spec, Work};
use repeat::Watch;
use std::rc::Rc;
use tonnage_model::adapt::{Quant, quant};
use tonnage_model::net::{Net, ParamSpec};
use tonnage_model::{Attention, Loss, Run, RunOptions};
use tonnage_sim::OpId;
use tonnage_sim::alloc::AllocatorConfig;
use tonnage_sim::asked::Asked;
use tonnage_sim::checkpoint::Recompute;
use tonnage_sim::context::{BlasWorkspaces, DeviceModel};
use tonnage_sim::timeline::{Phase, Timeline};
use tonnage_sim::work::OpWork;
use tonnage_sim::{Cx, ScalarType};

/// What a simulated job did.
pub struct Simulated {
    pub timeline: Timeline,
    /// Module paths by the owner's module number.
    pub modules: Vec<String>,
    /// Elements of all parameters; packed 4-bit weights count as stored elements.
    pub param_count: u64,
    pub trainable_count: u64,
    /// Bytes of parameters on the device, each rounded up to 512.
    pub param_bytes: u64,
    /// The same of buffers.
    pub buffer_bytes: u64,
    /// Optimizer state in managed memory, outside the allocator.
    pub managed_bytes: u64,
    /// The arithmetic of its operators, where it was asked for ([`simulate_counted`]).
    pub work: Vec<OpWork>,
    /// The job, where steps or micro-batches that only repeat others were left out ([`simulate_until_repeat`]).
    pub cut: Option<Box<Spec>>,
}

/// Architectures whose forward passes take a fused loss here.
const FUSED_LOSS: &[&str] = &[
    "llama", "mistral", "qwen2", "qwen3", "gpt_neox", "phi3", "gemma2", "mixtral",
];

/// Architectures whose attention goes through the library's interface for flash-attn here.
const FLASH_ATTENTION_2: [&str; 10] = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gpt_neox",
    "mixtral",
    "bert",
    "roberta",
    "distilbert",
    "vit",
];

/// Refuses what this engine would silently take for something else.
fn supported(spec: &Spec) -> Result<(), CoreError> {
    let no = |what: &str| {
        let with = format!("{what} with model_type `{}`", spec.model_type);
        Err(CoreError::Unsupported(with))
    };
    let model = spec.model_type.as_str();
    if spec.loss != Loss::Library && !FUSED_LOSS.contains(&model) {
        return no("the fused loss");
    }
    if model == "gpt_neox" && spec.loss == Loss::Liger {
        return no("liger-kernel (it has no patch for this family)");
    }
    if model == "gemma2" && !matches!(spec.loss, Loss::Library | Loss::Liger) {
        return no("this loss (it does not cap the logits)");
    }
    if spec.loss == Loss::Cut && !matches!(spec.precision, Precision::Pure(_)) {
        return no("cut cross entropy of 32-bit hidden states (it takes 16-bit ones)");
    }
    let reentrant = spec
        .checkpoint
        .is_some_and(|c| c.how == Recompute::Reentrant);
    if reentrant && matches!(model, "t5" | "whisper") {
        // a layer's biases and the encoder's states are arguments of the reentrant function, with gradients of their own
        return no("reentrant checkpointing");
    }
    if spec.attention == Attention::FlashAttention2 {
        if !FLASH_ATTENTION_2.contains(&model) {
            return no("flash_attention_2");
        }
        if spec.precision == Precision::Fp32 {
            return no("flash_attention_2 in fp32 (it takes 16-bit tensors)");
        }
        if spec.mask == Mask::Padding {
            return no("flash_attention_2 of padded batches");
        }
    }
    Ok(())
}

/// Runs `spec`, every step and micro-batch of it.
pub fn simulate(spec: &Spec) -> Result<Simulated, CoreError> {
    Ok(run(spec, None, Note::Nothing)?.0)
}

/// Runs `spec`, every step and micro-batch of it, and counts the arithmetic of its operators.
pub fn simulate_counted(spec: &Spec) -> Result<Simulated, CoreError> {
    Ok(run(spec, None, Note::Work)?.0)
}

/// Runs `spec` until its micro-batches and its steps repeat, memory layout under these allocator settings included: the figures are
/// those of the whole run, its later events are missing.
pub fn simulate_until_repeat(
    spec: &Spec,
    allocator: &AllocatorConfig,
) -> Result<Simulated, CoreError> {
    Ok(run(spec, Some(allocator), Note::Nothing)?.0)
}

/// As [`simulate_until_repeat`], with what the run asked its card: the runs of other cards follow from it, where nothing was left out.
pub fn simulate_noting(
    spec: &Spec,
    allocator: &AllocatorConfig,
) -> Result<(Simulated, Box<Asked>), CoreError> {
    let (sim, asked) = run(spec, Some(allocator), Note::Questions)?;
    Ok((sim, asked.unwrap_or_default()))
}

/// What is noted besides events.
#[derive(Clone, Copy, PartialEq)]
enum Note {
    Nothing,
    /// The arithmetic of operators.
    Work,
    /// What is asked of the card.
    Questions,
}

fn run(
    spec: &Spec,
    allocator: Option<&AllocatorConfig>,
    note: Note,
) -> Result<(Simulated, Option<Box<Asked>>), CoreError> {
    let built = spec.model()?;
    if let Some(layout) = built.arch.layout() {
        described::check(spec, layout, &built.net)?;
    }
    supported(spec)?;
    let cx = Cx::new(
        DeviceModel {
            kernel: spec.device,
        },
        spec.accumulate,
    );
    let torch = spec.stack.torch;
    cx.set_blas_workspaces(BlasWorkspaces::of_torch((torch.0, torch.1)));
    cx.count_work(note == Note::Work);
    if note == Note::Questions {
        cx.note_questions();
    }
    let options = RunOptions {
        dtype: spec.weights.unwrap_or(spec.precision.weights()),
        attention: spec.attention,
        training: spec.work == Work::Train,
        use_cache: spec.work != Work::Train && spec.use_cache,
        checkpoint: spec.checkpoint,
        loss: spec.loss,
        stack: spec.stack,
    };
    cx.mark(-1, 0, Phase::Load);
    if spec.loading == Loading::Warmup {
        // transformers' caching_allocator_warmup: one fp16 block of the model's bytes, given back at once
        drop(cx.raw(
            OpId::LOAD,
            warmup_bytes(spec, &built.net, options.dtype) / 2 * 2,
        ));
    }
    let mut run = Run::new(&cx, built.net, options);
    let param_count = adapt::load(spec, &cx, &mut run)?;
    let modules = run.net.modules.iter().map(|m| m.name.clone()).collect();
    let param_bytes = adapt::param_bytes(&mut run);
    let buffer_bytes = {
        let rebound = run.rebound.borrow();
        let rebound = rebound.values().map(|r| &r.tensor);
        let all = run.buffers.iter().flatten().chain(rebound);
        all.map(|b| adapt::round(b.nbytes())).sum()
    };
    let trainable_count = run.trainable().iter().map(|t| t.numel()).sum();
    let run = Rc::new(run);
    let mut watch = Watch::new(allocator, spec.steps, spec.accumulation);
    let managed_bytes = match (spec.work, spec.driver) {
        (Work::Train, Loop::Plain) => plain::train(spec, &cx, &run, &*built.arch, &mut watch)?,
        (Work::Train, Loop::Trainer) => trainer::train(spec, &cx, &run, &*built.arch, &mut watch)?,
        (Work::Forward, _) => infer::forward(spec, &cx, &run, &*built.arch, built.arch.layout())?,
        (Work::Generate(_), _) => infer::generate(spec, &cx, &run, &*built.arch)?,
    };
    let mut timeline = cx.take_timeline();
    // tear-down is not part of the job
    if let Some(end) = timeline.marks.iter().find(|m| m.phase == Phase::End) {
        timeline.events.truncate(end.at);
    }
    let simulated = Simulated {
        work: cx.take_work(),
        timeline,
        modules,
        param_count,
        trainable_count,
        param_bytes,
        buffer_bytes,
        managed_bytes,
        cut: watch.is_some_and(|w| w.cut).then(|| Box::new(spec.clone())),
    };
    Ok((simulated, cx.take_questions()))
}

/// Bytes that transformers reserves ahead of loading (5.17, modeling_utils.py, get_total_byte_count): a weight that is going to be
/// packed counts with its packed size (quantizer_bnb_4bit.py, quantizer_bnb_8bit.py, param_element_size).
fn warmup_bytes(spec: &Spec, net: &Net, dtype: ScalarType) -> u64 {
    let mut packed = vec![false; net.params.len()];
    if spec.quant.is_some() {
        for id in quant::replaced(net, &spec.quant_scope) {
            if let Some(p) = net.find(id, "weight") {
                packed[p.0 as usize] = true;
            }
        }
    }
    let param = |(p, packed): (&ParamSpec, &bool)| match (spec.quant, packed) {
        (Some(Quant::FourBit { .. }), true) => p.shape.numel() / 2,
        (Some(Quant::Int8 { .. }), true) => p.shape.numel(),
        _ => p.shape.numel() * p.dtype.unwrap_or(dtype).size(),
    };
    let buffers = net.modules.iter().flat_map(|m| &m.buffers);
    net.params.iter().zip(&packed).map(param).sum::<u64>()
        + buffers
            .map(|b| b.shape.numel() * b.dtype.unwrap_or(dtype).size())
            .sum::<u64>()
}

/// The scalar type of token ids.
pub(crate) const IDS: ScalarType = ScalarType::I64;
