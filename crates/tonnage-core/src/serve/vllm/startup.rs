//! From a model and vLLM's knobs to its KV pool: load, profile run, and the subtraction (vLLM 0.33.0, `v1/worker/gpu_worker.py`,
//! `v1/worker/utils.py`).

use super::device::Device;
use super::graphs::{self, Widths};
use super::kv::{self, Group, Pool, Refusal, Request};
use super::layers::Scheduling;
use super::model::{Family, Model, Weights};
use super::profile::{Left, Profile};
use super::runner;
use super::weights::Loader;
use crate::error::CoreError;
use serde::Serialize;

/// vLLM's knobs under its own names, resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub max_model_len: u64,
    pub max_num_batched_tokens: u64,
    pub max_num_seqs: u64,
    pub gpu_memory_utilization: f64,
    pub tensor_parallel_size: u64,
    pub block_size: Option<u64>,
    /// Bytes of one cached element: 2, or 1 for fp8.
    pub kv_bytes: u64,
    pub enable_prefix_caching: bool,
    pub enforce_eager: bool,
    /// Whether Inductor has compiled this model before on this machine. In a new container it has not.
    pub inductor_cache_warm: bool,
    /// `--kv-cache-memory-bytes`: the pool is given, nothing is subtracted.
    pub kv_cache_memory_bytes: Option<u64>,
}

/// The card.
#[derive(Clone, Copy, Debug)]
pub struct Card {
    /// What the driver reports as total and as free before the first snapshot, in bytes.
    pub total: u64,
    pub free: u64,
    /// Compute capability 9: a larger cuBLAS workspace, other attention kernels.
    pub hopper: bool,
    /// fp8 arithmetic (compute capability 8.9 on).
    pub fp8: bool,
    /// Streaming multiprocessors; some kernels take space for each.
    pub multiprocessors: u64,
}

/// What the start-up found. Bytes of one rank.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Startup {
    pub requested_memory: u64,
    /// "Model loading took".
    pub weights_bytes: u64,
    /// Parameters and buffers without rounding.
    pub param_and_buffer_bytes: u64,
    /// Weights, buffers and workspaces that stay.
    pub total_consumed: u64,
    /// Head room for the forward pass or the sampler.
    pub profile_peak_activation_bytes: u64,
    pub cudagraph_memory_estimate: u64,
    /// May be negative: then vLLM refuses.
    pub available_kv_bytes: i64,
}

/// The groups of a model's layers under these settings.
pub fn groups(m: &Model, s: &Settings, hopper: bool) -> Vec<Group> {
    let scheduling = Scheduling {
        max_model_len: s.max_model_len,
        prefix_caching: s.enable_prefix_caching,
        hopper,
    };
    let caches = m.caches(
        s.tensor_parallel_size.max(1),
        s.kv_bytes,
        s.block_size,
        &scheduling,
    );
    kv::groups(&caches)
}

/// What one request may ask of the pool: asynchronous scheduling keeps two batches in flight.
pub fn request(s: &Settings) -> Request {
    Request {
        max_model_len: s.max_model_len,
        in_flight: 2 * s.max_num_batched_tokens,
    }
}

/// The pool, or vLLM's refusal.
pub fn pool(m: &Model, s: &Settings, card: &Card, available: i64) -> Result<Pool, Refusal> {
    let requested = requested(s, card);
    kv::plan(
        &groups(m, s, card.hopper),
        available,
        requested,
        &request(s),
    )
}

/// What a start-up comes to: vLLM asks first whether the memory that it was promised is free, then the load and the profile run must
/// fit on the device, and only then the pool is divided.
pub fn outcome(m: &Model, s: &Settings, card: &Card, up: &Startup) -> Result<Pool, Refusal> {
    if s.kv_cache_memory_bytes.is_none() && up.requested_memory > card.free {
        return Err(Refusal::NotFree {
            free: card.free,
            requested: up.requested_memory,
        });
    }
    let needed = up.total_consumed + up.profile_peak_activation_bytes;
    if needed > card.free {
        return Err(Refusal::OutOfMemory {
            needed,
            free: card.free,
        });
    }
    pool(m, s, card, up.available_kv_bytes)
}

/// `ceil(total * gpu_memory_utilization)`.
pub fn requested(s: &Settings, card: &Card) -> u64 {
    (card.total as f64 * s.gpu_memory_utilization).ceil() as u64
}

/// Widths of a layer for the graphs' capture.
fn widths(m: &Model, tp: u64, hopper: bool) -> Widths {
    let heads = (m.heads / tp).max(1);
    let keys = (m.kv_heads / tp).max(1) * m.head_dim;
    let queries = heads * m.head_dim;
    let inner = if m.moe.is_some() {
        // experts' buffers lie in a workspace that is there before
        0
    } else {
        m.intermediate / tp
    };
    Widths {
        hidden: m.hidden,
        qkv: queries + 2 * keys,
        queries,
        keys,
        heads,
        gate_up: 2 * inner,
        act: inner,
        layers: m.layers,
        experts: m.moe.map(|e| (e.experts, e.top_k)),
        hopper,
    }
}

/// Whether what Inductor's pieces hold is known: 16-bit decoders of the plain kind on one rank. Of others the eager forward is played.
fn compiles(m: &Model, tp: u64) -> bool {
    use Family::*;
    tp == 1
        && m.weights == Ok(Weights::Half)
        && matches!(m.family, Llama | Phi3 | Qwen2 | Qwen3 | Qwen3Moe | Mixtral)
}

/// Loads and profiles.
///
/// # Errors
/// A family or a format whose start-up run is not simulated, by name.
pub fn start(m: &Model, s: &Settings, card: &Card) -> Result<Startup, CoreError> {
    m.runs()?;
    let tp = s.tensor_parallel_size.max(1);
    let (n, v, t) = (s.max_num_seqs, m.vocab, s.max_num_batched_tokens);
    let d = Device::new();
    // cuBLAS's workspace, and the runner's small buffers
    let cublas = if card.hopper { 32 << 20 } else { 8_519_680 };
    let workspace = d.tensor(cublas);
    let before = d.reserved();
    let buffers = runner::buffers(&d, n, t);
    let mut loader = Loader::new(&d, m, tp);
    loader.machete = card.hopper;
    loader.fp8 = card.fp8;
    if s.kv_bytes == 1 && !card.hopper {
        loader.counters = Some(4 * t * m.heads / tp);
    }
    let start = d.allocated();
    loader.load();
    let weights_bytes = d.allocated() - start;
    let param_and_buffer_bytes = loader.bytes;
    let state = runner::sampler_state(&d, n, v);
    // request state of hybrids (`model_states/mamba_hybrid.py`)
    let hybrid: Vec<_> = (0..4)
        .filter(|_| m.family == Family::NemotronH)
        .map(|_| d.tensor(4 * n))
        .collect();
    d.empty_cache();
    d.reset_peaks();
    let left = Left::default();
    if let Some(at) = loader.wide_rope {
        *left.table.borrow_mut() = loader.take(at);
    }
    let compiled = (!s.enforce_eager && compiles(m, tp)).then(|| widths(m, tp, card.hopper));
    let profile = Profile {
        compiled,
        autotunes: !s.enforce_eager && !s.inductor_cache_warm,
        device: &d,
        m,
        tp,
        tokens: t,
        requests: n.min(t),
        max_requests: n,
        max_model_len: s.max_model_len,
        block_size: s.block_size.unwrap_or(16),
        hopper: card.hopper,
        fp8: card.fp8,
        multiprocessors: card.multiprocessors,
        left: &left,
    };
    profile.run();
    let headroom = d.peak().saturating_sub(d.allocated());
    d.empty_cache();
    let consumed = d.reserved().saturating_sub(before);
    drop((left, hybrid, state, loader, buffers, workspace));
    let requested = requested(s, card);
    let graphs = if s.enforce_eager {
        0
    } else {
        graphs::estimate(&widths(m, tp, card.hopper), n, cublas)
    };
    Ok(Startup {
        requested_memory: requested,
        weights_bytes,
        param_and_buffer_bytes,
        total_consumed: consumed,
        profile_peak_activation_bytes: headroom,
        cudagraph_memory_estimate: graphs,
        available_kv_bytes: match s.kv_cache_memory_bytes {
            Some(b) => b as i64,
            None => requested as i64 - (consumed + headroom + graphs) as i64,
        },
    })
}
