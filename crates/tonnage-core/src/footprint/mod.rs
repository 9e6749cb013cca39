//! The result of every question: what is held at the highest moment, by whom, when, and on what assumptions.

pub mod advice;
pub mod analysis;
mod build;
pub mod classify;
mod peaks;
mod swings;
pub mod wheels;

pub use build::{Estimate, Options, estimate};
pub use classify::Component;
pub use peaks::component_peaks;

use crate::doc::Diagnostic;
use crate::job::Assumption;
use crate::verdict::Verdict;
use serde::Serialize;

/// The version of the JSON form; changes with every change that could break a reader.
pub const SCHEMA: &str = "tonnage.footprint/1";

/// A level's peak in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Range {
    pub low: u64,
    pub expected: u64,
    pub high: u64,
}

/// The three levels (DESIGN section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Levels {
    /// Live tensors.
    pub allocated: Range,
    /// Held by the allocator.
    pub reserved: Range,
    /// What the driver reports for the process.
    pub device: Range,
}

/// What makes a range wide.
#[derive(Clone, Debug, Serialize)]
pub struct Swing {
    /// The setting, or `device_context`, `libraries`.
    pub key: String,
    pub why: String,
    pub expected: String,
    /// The alternatives with what they change.
    pub alternatives: Vec<Alternative>,
    /// Width of the device level that this alone makes.
    pub width_bytes: u64,
    /// Its part of the widths of all swings, in percent.
    pub share_pct: f64,
}

/// Another value of an uncertain setting.
#[derive(Clone, Debug, Serialize)]
pub struct Alternative {
    pub value: String,
    /// Peaks with it; absent where it cannot be simulated.
    pub allocated_bytes: Option<u64>,
    pub reserved_bytes: Option<u64>,
    pub unsupported: Option<String>,
}

/// When and where the peak is.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Instant {
    pub step: i32,
    pub micro_batch: u32,
    pub phase: String,
    /// Module and operator of the allocation that makes the peak.
    pub module: String,
    pub op: String,
    pub bytes: u64,
    /// Its number among the events.
    pub event: usize,
    /// The line of the user's program that asked for it; known for recorded runs.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
}

/// A line of the sum.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    pub component: Component,
    pub bytes: u64,
    /// Blocks that it is made of.
    pub count: u64,
    /// Which level it enters: `allocated`, `reserved` or `device`.
    pub level: &'static str,
}

/// A module pattern's share of the peak.
#[derive(Clone, Debug, Serialize)]
pub struct ModuleLine {
    pub module: String,
    pub bytes: u64,
    pub components: Vec<(Component, u64)>,
}

/// Tensors of one kind: same component, module pattern, operator, phase and size.
#[derive(Clone, Debug, Serialize)]
pub struct TensorGroup {
    pub component: Component,
    pub module: String,
    pub op: String,
    pub phase: String,
    pub bytes_each: u64,
    pub count: u64,
    pub bytes: u64,
    /// The line of the user's program that made them; known for recorded runs.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
}

/// A phase's peaks.
#[derive(Clone, Debug, Serialize)]
pub struct PhasePeak {
    pub phase: String,
    pub allocated_bytes: u64,
    pub reserved_bytes: u64,
}

/// An interval of the timeline.
#[derive(Clone, Debug, Serialize)]
pub struct Interval {
    pub step: i32,
    pub micro_batch: u32,
    pub phase: &'static str,
    pub at_event: usize,
    pub peak_allocated_bytes: u64,
    pub end_allocated_bytes: u64,
    pub peak_reserved_bytes: u64,
}

/// Held memory over the run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Timeline {
    pub events: usize,
    pub intervals: Vec<Interval>,
    /// `[event, allocated, reserved]`: the highest of equal stretches of events.
    pub curve: Vec<(u32, u64, u64)>,
}

/// The keys and values of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct KvCache {
    /// Of one sequence, while no layer's window is full.
    pub bytes_per_token: u64,
    /// Batch times beams.
    pub sequences: u64,
    /// Prompt and new tokens.
    pub tokens: u64,
    /// Of all sequences with all tokens.
    pub bytes: u64,
}

/// The model as counted.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ModelCounts {
    pub model_type: String,
    /// Elements of all parameters, adapters included; packed weights count as stored.
    pub param_count: u64,
    /// Parameters of the base model as its configuration says, unpacked, without adapters.
    pub base_param_count: u64,
    pub trainable_count: u64,
    /// Blocks of 512 bytes.
    pub param_bytes: u64,
    pub buffer_bytes: u64,
    /// Optimizer state in managed memory, outside the allocator's figures.
    pub managed_bytes: u64,
    /// Modules with parameters that a quantiser leaves as they are (`model.layers.*.input_layernorm`).
    pub unquantised: Vec<String>,
}

/// An edit and what it would save.
#[derive(Clone, Debug, Serialize)]
pub struct Advice {
    pub edit: String,
    /// The flags that make it.
    pub flags: String,
    /// Reserved bytes less than now (negative: more).
    pub saves_bytes: i64,
    /// Does the optimizer step see the same samples?
    pub keeps_effective_batch: bool,
    /// What it costs, in words.
    pub cost: String,
    /// The verdict on the first card asked about, with the edit.
    pub outcome: Option<&'static str>,
}

/// One row of verdicts: a card, and the job's cases on it.
#[derive(Clone, Debug, Serialize)]
pub struct VerdictRow {
    pub gpu: String,
    /// (case, verdict); the first case is the expected one.
    pub cases: Vec<(String, Verdict)>,
}

/// A job's footprint.
#[derive(Clone, Debug, Serialize)]
pub struct Footprint {
    pub schema: &'static str,
    pub job: String,
    pub source: String,
    pub format: String,
    /// The card whose kernels and context are meant, and whether somebody named it.
    pub gpu: String,
    pub gpu_stated: bool,
    pub model: ModelCounts,
    pub micro_batch_size: u64,
    pub gradient_accumulation_steps: u64,
    pub effective_batch: u64,
    pub seq_len: u64,
    pub peak: Levels,
    pub uncertainties: Vec<Swing>,
    pub instant: Instant,
    /// Adds up to the expected device peak, to the byte.
    pub components: Vec<Line>,
    /// Adds up to the expected allocated peak, to the byte.
    pub modules: Vec<ModuleLine>,
    pub tensors: Vec<TensorGroup>,
    pub phases: Vec<PhasePeak>,
    pub timeline: Timeline,
    /// Of generations with a cache.
    pub kv_cache: Option<KvCache>,
    pub assumptions: Vec<Assumption>,
    pub verdicts: Vec<VerdictRow>,
    pub advice: Vec<Advice>,
    pub unsupported: Vec<String>,
    pub notes: Vec<Diagnostic>,
}

impl Footprint {
    /// Bytes of a component at the peak.
    pub fn component(&self, c: Component) -> u64 {
        self.components
            .iter()
            .filter(|l| l.component == c)
            .map(|l| l.bytes)
            .sum()
    }
    /// The verdict that decides the exit status: the expected case on the card that was asked about.
    pub fn decisive(&self) -> Option<&Verdict> {
        if !self.gpu_stated {
            return None;
        }
        self.verdicts
            .iter()
            .find(|r| r.gpu == self.gpu)
            .and_then(|r| r.cases.first())
            .map(|c| &c.1)
    }
}
