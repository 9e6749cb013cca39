//! The answer about a serving engine: every byte with its place and its owner, the cache in tokens, a verdict for the card.
//!
//! One shape for all engines; `docs/schema/serving-1.json` is its schema.

use crate::verdict::{Device, Outcome};
use serde::Serialize;

/// The version of the JSON form; changes with every change that could break a reader.
pub const SCHEMA: &str = "tonnage.serving/1";

/// What bytes are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Component {
    Weights,
    KvCache,
    RecurrentState,
    /// The graph's activations and copies (llama.cpp).
    Compute,
    /// Logits and embeddings handed to the caller.
    Output,
    /// Scratch that the kernels take beside the graph (llama.cpp's pool).
    Pool,
    /// cuBLAS.
    LibraryWorkspace,
    /// Buffers of sampler and runner that stay (vLLM).
    Runner,
    /// Head room for the largest batch (vLLM's profile run).
    Activations,
    CudaGraphs,
    /// The process's CUDA context.
    DeviceContext,
}

impl Component {
    /// As a row of a table.
    pub fn title(self) -> &'static str {
        match self {
            Component::Weights => "weights",
            Component::KvCache => "KV cache",
            Component::RecurrentState => "recurrent state",
            Component::Compute => "compute buffer",
            Component::Output => "logits and embeddings",
            Component::Pool => "kernels' scratch",
            Component::LibraryWorkspace => "cuBLAS workspace",
            Component::Runner => "runner and sampler",
            Component::Activations => "activations' head room",
            Component::CudaGraphs => "CUDA graphs",
            Component::DeviceContext => "CUDA context",
        }
    }
}

/// A share of a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// A tensor's name with `*` for the layer, or a stretch of the graph.
    pub name: String,
    pub count: u64,
    pub bytes: u64,
}

/// Bytes of one component in one kind of memory. The parts, where there are any, sum to the bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// The number of the device; none: the host.
    pub device: Option<u8>,
    /// The engine's name of the memory: `CUDA0`, `CPU_Mapped`.
    pub buffer: String,
    pub component: Component,
    pub bytes: u64,
    /// Bounds, where the figure is a range; else both are `bytes`.
    pub low_bytes: u64,
    pub high_bytes: u64,
    pub parts: Vec<Part>,
}

/// All lines of one device, or of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Total {
    pub device: Option<u8>,
    pub bytes: u64,
    pub low_bytes: u64,
    pub high_bytes: u64,
}

/// The cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cache {
    /// Bytes that one more token of one sequence takes in all layers that keep every token; of all devices.
    pub bytes_per_token: u64,
    /// Tokens that one sequence may have.
    pub context_len: u64,
    /// Sequences (llama.cpp: slots).
    pub sequences: u64,
    /// Bytes of the cache on all devices and the host.
    pub bytes: u64,
    /// What vLLM finds for its pool; negative: nothing is left.
    pub budget_bytes: Option<i64>,
    pub block_bytes: Option<u64>,
    pub blocks: Option<u64>,
    /// Tokens in all.
    pub tokens: u64,
    /// Requests of `context_len` tokens at once.
    pub max_concurrency: Option<f64>,
}

/// A setting, with where its value is from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Chosen {
    pub name: String,
    pub value: String,
    /// `given`, or the reason for the default.
    pub from: String,
}

/// Does it fit?
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fit {
    pub gpu: String,
    pub name: String,
    pub device: u8,
    pub outcome: Outcome,
    /// What CUDA calls the card's total.
    pub usable_bytes: u64,
    pub needed_bytes: u64,
    /// Usable less needed; negative: short of so much.
    pub margin_bytes: i64,
    pub why: String,
}

impl Fit {
    /// `needed` bytes on the `index`th device of the answer, held against what CUDA gives of a card.
    pub(crate) fn on(
        card: &Device,
        index: u8,
        needed: u64,
        outcome: Outcome,
        why: impl Into<String>,
    ) -> Fit {
        let usable = card.left();
        Fit {
            gpu: card.gpu.id.clone(),
            name: card.gpu.name.clone(),
            device: index,
            outcome,
            usable_bytes: usable,
            needed_bytes: needed,
            margin_bytes: i64::try_from(i128::from(usable) - i128::from(needed))
                .unwrap_or(i64::MIN),
            why: why.into(),
        }
    }
}

/// What the engine says no with, and what would help.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Refused {
    pub message: String,
    /// Each alone is enough; verified by the same estimate.
    pub remedies: Vec<Remedy>,
}

/// A change that would do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Remedy {
    /// The flags.
    pub flags: String,
    pub effect: String,
}

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub struct Serving {
    pub schema: &'static str,
    pub engine: &'static str,
    /// The version whose rules these are.
    pub engine_version: &'static str,
    pub model: String,
    pub lines: Vec<Line>,
    pub totals: Vec<Total>,
    pub cache: Cache,
    pub settings: Vec<Chosen>,
    /// Flags of the command line that do not change memory.
    pub not_memory: Vec<String>,
    pub fits: Vec<Fit>,
    pub refused: Option<Refused>,
    /// The command that starts it so.
    pub launch: String,
    pub notes: Vec<String>,
}

impl Serving {
    /// The worst of the cards; none: no card was asked about and nothing is refused.
    pub fn outcome(&self) -> Option<Outcome> {
        if self.refused.is_some() {
            return Some(Outcome::No);
        }
        self.fits.iter().map(|f| f.outcome).max()
    }
    /// Bytes of a component on a device (none: on the host).
    pub fn bytes(&self, device: Option<u8>, component: Component) -> u64 {
        let here = |l: &&Line| l.device == device && l.component == component;
        self.lines.iter().filter(here).map(|l| l.bytes).sum()
    }
    /// Bytes on a device (none: on the host).
    pub fn total(&self, device: Option<u8>) -> u64 {
        let here = self.totals.iter().find(|t| t.device == device);
        here.map_or(0, |t| t.bytes)
    }
}

/// The sums of lines, devices first.
pub(crate) fn totals(lines: &[Line]) -> Vec<Total> {
    let mut out: Vec<Total> = Vec::new();
    for l in lines {
        let i = out
            .iter()
            .position(|t| t.device == l.device)
            .unwrap_or_else(|| {
                out.push(Total {
                    device: l.device,
                    bytes: 0,
                    low_bytes: 0,
                    high_bytes: 0,
                });
                out.len() - 1
            });
        out[i].bytes += l.bytes;
        out[i].low_bytes += l.low_bytes;
        out[i].high_bytes += l.high_bytes;
    }
    out.sort_by_key(|t| (t.device.is_none(), t.device));
    out
}

/// `what` for one figure without a range.
pub(crate) fn exact(
    device: Option<u8>,
    buffer: impl Into<String>,
    component: Component,
    bytes: u64,
    parts: Vec<Part>,
) -> Line {
    Line {
        device,
        buffer: buffer.into(),
        component,
        bytes,
        low_bytes: bytes,
        high_bytes: bytes,
        parts,
    }
}

/// The CUDA context of a rank on a card of this kind, with its range.
pub(crate) fn driver(rank: u8, card: &Device) -> Line {
    let c = &card.overhead.context;
    Line {
        low_bytes: c.low,
        high_bytes: c.high,
        ..exact(
            Some(rank),
            "driver",
            Component::DeviceContext,
            c.expected,
            vec![],
        )
    }
}
