//! The work of a job's step, summed from the simulated operators.

use serde::Serialize;
use tonnage_core::spec::{Precision, Spec, Work};
use tonnage_core::{CoreError, Simulated, simulate_counted};
use tonnage_sim::OpId;
use tonnage_sim::timeline::{Category, EventKind, Phase};
use tonnage_sim::work::WorkKind;
use tonnage_units::ScalarType;

/// Work of one kind of call, in operations and bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PassWork {
    /// Operations of matrix products by operand type (`f32`, `bf16`, `i8`, ...).
    pub products: Vec<(String, f64)>,
    /// Bytes that the products read and write at least.
    pub product_bytes: f64,
    /// Operations of fused attention; of a causal mask only the half that is computed.
    pub attention_flops: f64,
    /// Bytes that pointwise operators, normalisations, copies and reductions read and write.
    pub pointwise_bytes: f64,
    /// Bytes read and written to unpack quantised weights.
    pub unpack_bytes: f64,
    /// Operators that launched a kernel at least.
    pub kernels: u64,
}

impl PassWork {
    /// Operations of all products.
    pub fn product_flops(&self) -> f64 {
        self.products.iter().map(|p| p.1).sum()
    }
    fn add_product(&mut self, dtype: ScalarType, flops: f64) {
        let name = dtype.to_string();
        match self.products.iter_mut().find(|p| p.0 == name) {
            Some(p) => p.1 += flops,
            None => self.products.push((name, flops)),
        }
    }
    fn times(mut self, by: f64) -> PassWork {
        for p in &mut self.products {
            p.1 *= by;
        }
        self.product_bytes *= by;
        self.attention_flops *= by;
        self.pointwise_bytes *= by;
        self.unpack_bytes *= by;
        self.kernels = (self.kernels as f64 * by).round() as u64;
        self
    }
}

/// Work of one optimizer step, or of one generation.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StepWork {
    /// One micro-batch: forward and backward (training), the call (forward), the prompt (generation).
    pub pass: PassWork,
    /// How many of them a step has.
    pub passes: u64,
    /// One new token (generation only), at the middle of the answer.
    pub token: Option<PassWork>,
    /// New tokens.
    pub new_tokens: u64,
    /// Bytes that the optimizer reads and writes.
    pub optimizer_bytes: f64,
    /// Positions of a micro-batch (or of the prompt).
    pub tokens: u64,
    pub sequences: u64,
}

impl StepWork {
    /// Positions of a step: those of all micro-batches, or the new tokens of all sequences.
    pub fn tokens_per_step(&self) -> u64 {
        match self.token {
            Some(_) => self.new_tokens * self.sequences,
            None => self.tokens * self.passes,
        }
    }
    /// Operations of a step.
    pub fn flops(&self) -> f64 {
        let of = |p: &PassWork| p.product_flops() + p.attention_flops;
        of(&self.pass) * self.passes as f64
            + self.token.as_ref().map_or(0.0, of) * self.new_tokens as f64
    }
}

/// Encoders: their attention looks both ways.
const BOTH_WAYS: &[&str] = &["bert", "roberta", "distilbert", "vit", "timm", "spoter"];

/// Operators whose results are made by products, attention, loading: not pointwise.
const OTHER: &[OpId] = &[
    OpId::WORKSPACE,
    OpId::LOAD,
    OpId::INPUT,
    OpId::OPTIMIZER,
    OpId::FOREACH,
    OpId::MM,
    OpId::ADDMM,
    OpId::BMM,
    OpId::BADDBMM,
    OpId::GROUPED_MM,
    OpId::GEMM_4BIT,
    OpId::DEQUANTIZE,
    OpId::INT8_MM,
    OpId::SDPA_FLASH,
    OpId::SDPA_FLASH_BACKWARD,
    OpId::SDPA_EFFICIENT,
    OpId::SDPA_EFFICIENT_BACKWARD,
    OpId::SDPA_CUDNN,
    OpId::SDPA_CUDNN_BACKWARD,
    OpId::FLASH_ATTN,
    OpId::FLASH_ATTN_BACKWARD,
    OpId::CONVOLUTION,
    OpId::CONVOLUTION_BACKWARD,
];

/// Operators with two operands of their result's size.
const TWO_OPERANDS: &[OpId] = &[
    OpId::ADD,
    OpId::SUB,
    OpId::MUL,
    OpId::DIV,
    OpId::TANH_BACKWARD,
    OpId::SIGMOID_BACKWARD,
    OpId::SILU_BACKWARD,
    OpId::GELU_BACKWARD,
    OpId::THRESHOLD_BACKWARD,
    OpId::SOFTPLUS_BACKWARD,
    OpId::LAYER_NORM_BACKWARD,
    OpId::RMS_NORM_BACKWARD,
    OpId::SOFTMAX_BACKWARD,
    OpId::LOG_SOFTMAX_BACKWARD,
    OpId::DROPOUT_BACKWARD,
    OpId::WHERE,
];

/// The work between two marks. Bytes of pointwise operators are those of their results and of operands of the result's size; what is
/// done in place, and the operand of a reduction, are not seen: a lower bound.
fn between(sim: &Simulated, causal: f64, from: usize, to: usize) -> PassWork {
    let mut w = PassWork::default();
    let first = sim.work.partition_point(|x| x.at < from);
    for x in sim.work[first..]
        .iter()
        .take_while(|x| x.at < to.max(from + 1))
    {
        w.kernels += 1;
        match x.kind {
            WorkKind::Product => {
                w.add_product(x.dtype, x.flops as f64);
                w.product_bytes += x.bytes as f64;
            }
            WorkKind::Attention => w.attention_flops += x.flops as f64 * causal,
            WorkKind::Unpack => w.unpack_bytes += x.bytes as f64,
        }
    }
    for e in &sim.timeline.events[from..to] {
        if let EventKind::Alloc { .. } = e.kind() {
            let op = OpId((e.owner & 0xfff) as u16);
            if !OTHER.contains(&op) {
                let moved = if TWO_OPERANDS.contains(&op) { 3 } else { 2 };
                w.pointwise_bytes += (moved * e.bytes) as f64;
                w.kernels += 1;
            }
        }
    }
    w
}

/// The work of a step of `spec`: the second step of a simulation of two (the first differs), its micro-batch as often as the job says.
///
/// # Errors
/// The job cannot be simulated.
pub fn step_work(spec: &Spec) -> Result<StepWork, CoreError> {
    let mut short = spec.clone();
    short.steps = 2;
    short.accumulation = 1;
    Ok(work_of(&simulate_counted(&short)?, spec, 1))
}

/// The work of a step of `spec`, where `sim` is a counted run of it with `accumulation` micro-batches a step.
pub fn work_of(sim: &Simulated, spec: &Spec, accumulation: u32) -> StepWork {
    let causal = if BOTH_WAYS.contains(&spec.model_type.as_str()) || spec.seq == 0 {
        1.0
    } else {
        0.5
    };
    let marks = &sim.timeline.marks;
    let end = sim.timeline.events.len();
    let spans = |phase: Phase, step: Option<i32>| {
        marks.iter().enumerate().filter_map(move |(i, m)| {
            let to = marks.get(i + 1).map_or(end, |n| n.at.min(end));
            (m.phase == phase && step.is_none_or(|s| m.step == s)).then_some((m.at.min(end), to))
        })
    };
    let sum = |phases: &[Phase], step: Option<i32>| {
        let all = phases.iter().flat_map(|p| spans(*p, step));
        let mut from_to: Vec<_> = all.collect();
        from_to.sort_unstable();
        from_to.iter().fold(PassWork::default(), |mut a, (f, t)| {
            let w = between(sim, causal, *f, *t);
            for (name, flops) in w.products {
                match a.products.iter_mut().find(|p| p.0 == name) {
                    Some(p) => p.1 += flops,
                    None => a.products.push((name, flops)),
                }
            }
            a.product_bytes += w.product_bytes;
            a.attention_flops += w.attention_flops;
            a.pointwise_bytes += w.pointwise_bytes;
            a.unpack_bytes += w.unpack_bytes;
            a.kernels += w.kernels;
            a
        })
    };
    let seq = if spec.seq == 0 { 1 } else { spec.seq };
    let mut out = StepWork {
        tokens: spec.batch * seq,
        sequences: spec.batch,
        passes: 1,
        ..StepWork::default()
    };
    match spec.work {
        Work::Train => {
            let backward = marks.iter().filter(|m| m.phase == Phase::Backward);
            let last = backward.map(|m| m.step).max().unwrap_or(0);
            let all = sum(&[Phase::Forward, Phase::Backward], Some(last));
            out.pass = all.times(1.0 / f64::from(accumulation.max(1)));
            out.passes = u64::from(spec.accumulation.max(1));
            out.optimizer_bytes = optimizer_bytes(sim, spec);
        }
        Work::Forward => out.pass = sum(&[Phase::Forward], None),
        Work::Generate(g) => {
            out.pass = sum(&[Phase::Prefill], None);
            let decode = sum(&[Phase::Decode], None);
            out.new_tokens = g.new;
            let steps = g.new.saturating_sub(1).max(1) as f64;
            // decoding attends to everything before it: nothing is masked
            out.token = Some(decode.times(1.0 / steps));
        }
    }
    out
}

/// Reads and writes of one optimizer step: weights and states both ways, gradients once; for mixed precision the fp32 weights.
fn optimizer_bytes(sim: &Simulated, spec: &Spec) -> f64 {
    let tagged = |c: Category| {
        let ids: std::collections::BTreeSet<u32> = sim
            .timeline
            .tags
            .iter()
            .filter(|t| t.category == c)
            .map(|t| t.id)
            .collect();
        sim.timeline
            .events
            .iter()
            .filter_map(|e| match e.kind() {
                EventKind::Alloc { id } if ids.contains(&id) => Some(e.bytes),
                _ => None,
            })
            .sum::<u64>()
    };
    let states = tagged(Category::OptimizerState) + sim.managed_bytes;
    let weight = match spec.precision {
        Precision::Pure(d) if spec.lora.is_none() => d.size(),
        _ => 4,
    };
    (3 * sim.trainable_count * weight + 2 * states) as f64
}

impl StepWork {
    /// The straight line through `self` (at 0) and `other` (at 1), at `x`. Exact where the work is affine in what differs, as it is in
    /// batch and in identical layers.
    pub fn towards(&self, other: &StepWork, x: f64) -> StepWork {
        let pass = |a: &PassWork, b: &PassWork| {
            let f = |p: f64, q: f64| (p + (q - p) * x).max(0.0);
            PassWork {
                products: a
                    .products
                    .iter()
                    .map(|(name, p)| {
                        let q = b.products.iter().find(|o| o.0 == *name).map_or(*p, |o| o.1);
                        (name.clone(), f(*p, q))
                    })
                    .collect(),
                product_bytes: f(a.product_bytes, b.product_bytes),
                attention_flops: f(a.attention_flops, b.attention_flops),
                pointwise_bytes: f(a.pointwise_bytes, b.pointwise_bytes),
                unpack_bytes: f(a.unpack_bytes, b.unpack_bytes),
                kernels: f(a.kernels as f64, b.kernels as f64).round() as u64,
            }
        };
        StepWork {
            pass: pass(&self.pass, &other.pass),
            token: match (&self.token, &other.token) {
                (Some(a), Some(b)) => Some(pass(a, b)),
                _ => None,
            },
            optimizer_bytes: self.optimizer_bytes
                + (other.optimizer_bytes - self.optimizer_bytes) * x,
            ..self.clone()
        }
    }
}
