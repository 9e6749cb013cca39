//! What vLLM puts aside for its CUDA graphs: the capture that it makes to find out (vLLM 0.33.0, `v1/worker/gpu/cudagraph_utils.py`,
//! `profile_cudagraph_memory`), played through PyTorch's allocator.
//!
//! Every size is captured piecewise, the largest first, each after a warm-up outside the graphs; then the two largest sizes that decode alone
//! are captured whole. Graphs have a memory pool of their own, which keeps every segment. The buffers of a layer are those of Inductor's code
//! between two attentions, read from a recorded capture (Qwen2.5-7B on an A100; record vllm-269).

use super::device::{Device, Tensor};

/// Least that vLLM counts for each whole graph (`_MIN_PER_GRAPH_BYTES`).
const FLOOR: i64 = 1 << 20;
/// Splits of the keys that vLLM has FlashAttention 3 prepare for where graphs are captured whole
/// (`flash_attn_max_num_splits_for_cuda_graph`).
const SPLITS: u64 = 32;

/// Widths of one rank's layer, in elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Widths {
    pub hidden: u64,
    /// Queries, keys and values together.
    pub qkv: u64,
    pub queries: u64,
    pub keys: u64,
    pub heads: u64,
    /// Gate and up projections together.
    pub gate_up: u64,
    pub act: u64,
    pub layers: u64,
    /// Experts and how many of them a token takes, where the layers are mixtures.
    pub experts: Option<(u64, u64)>,
    /// FlashAttention 3 runs: compute capability 9.
    pub hopper: bool,
}

/// What the attention kernel takes for `t` tokens and gives back at once. Before Hopper (FlashAttention 2): positions, for single queries the heads of
/// a group side by side, softmax statistics. On Hopper (FlashAttention 3, `hopper/flash_api.cpp`, `mha_fwd`): statistics, then outputs and statistics of
/// every split in fp32, whether or not this forward is captured whole.
fn attend(w: &Widths, t: u64, on: &Device, whole: bool) {
    if w.hopper {
        let _statistics = on.tensor(4 * t * w.heads);
        let _outputs = on.tensor(4 * SPLITS * t * w.queries);
        let _of_splits = on.tensor(4 * SPLITS * t * w.heads);
    } else {
        let q = 2 * t * w.queries;
        let _positions = on.tensor(4 * (t + 1));
        let _swapped = whole.then(|| (on.tensor(q), on.tensor(q)));
        let _statistics = on.tensor(4 * t * w.heads);
    }
}

/// Sizes that are captured piecewise, the largest first.
pub(super) fn sizes(max_num_seqs: u64) -> Vec<u64> {
    let most = (2 * max_num_seqs).min(512);
    let mut all: Vec<u64> = [1, 2, 4]
        .into_iter()
        .chain((8..=256).step_by(8))
        .chain((272..=512).step_by(16))
        .filter(|n| *n <= most)
        .collect();
    all.reverse();
    all
}

/// Where a compiled forward plays.
pub(super) struct Play<'a> {
    /// Buffers of Inductor's pieces.
    pub pieces: &'a Device,
    /// The attention kernel's own; none before there is a cache, as in the profile run.
    pub attention: Option<&'a Device>,
    /// Captured whole: single queries.
    pub whole: bool,
    /// Runs before each piece (a capture empties the cache).
    pub between: &'a dyn Fn(),
    /// Experts in place of the two projections.
    pub experts: Option<&'a dyn Fn() -> Tensor>,
}

/// What Inductor's pieces between two attentions hold during one forward of `t` tokens; hands back the hidden states. Where the queries are as wide as the
/// hidden states, the turned queries take the norm's storage, and an attention writes into that of the down projection before it, which the residual sum
/// has read. After experts, residual and norm are written in place (Qwen3-30B-A3B on an H100).
pub(super) fn forward(w: &Widths, t: u64, p: &Play) -> Tensor {
    let (h, q) = (2 * t * w.hidden, 2 * t * w.queries);
    let new = |bytes: u64| p.pieces.tensor(bytes);
    let turned = |normed: Tensor| {
        if q == h {
            return normed;
        }
        drop(normed);
        new(q)
    };
    (p.between)();
    let mut residual = new(h);
    let normed = new(h);
    let mut qkv = new(2 * t * w.qkv);
    let mut queries = turned(normed);
    let mut keys = new(2 * t * w.keys);
    let mut out = new(q);
    for left in (0..w.layers.max(1)).rev() {
        if let Some(on) = p.attention {
            attend(w, t, on, p.whole);
        }
        drop(keys);
        drop(qkv);
        drop(queries);
        (p.between)();
        let projected = new(h);
        let norm = new(h);
        let (sum, normed, spare) = if let Some(experts) = p.experts {
            let sum = new(h);
            let routed = experts();
            drop(projected);
            (sum, norm, routed)
        } else {
            let gate_up = new(2 * t * w.gate_up);
            drop(norm);
            let act = new(2 * t * w.act);
            drop(gate_up);
            let down = new(h);
            drop(act);
            if left == 0 {
                drop((projected, out, residual));
                return down;
            }
            let sum = new(h);
            let normed = new(h);
            drop(projected);
            (sum, normed, down)
        };
        let spare = (q == h).then_some(spare);
        if left == 0 {
            drop((sum, spare, out, residual));
            return normed;
        }
        qkv = new(2 * t * w.qkv);
        queries = turned(normed);
        keys = new(2 * t * w.keys);
        let next = spare.unwrap_or_else(|| new(q));
        drop(std::mem::replace(&mut out, next));
        drop(std::mem::replace(&mut residual, sum));
    }
    residual
}

/// Experts of a capture: router, the chosen ones with their weights, the sum; the products lie in a workspace that is there before.
fn routed(w: &Widths, (experts, chosen): (u64, u64), t: u64, on: &Device) -> Tensor {
    let _logits = on.tensor(2 * t * experts);
    let _chosen = (on.tensor(4 * t * chosen), on.tensor(4 * t * chosen));
    drop(on.tensor(4 * t * chosen));
    let out = on.tensor(2 * t * w.hidden);
    let slots = t * chosen + experts * 127;
    let _aligned = (
        on.tensor(4 * slots),
        on.tensor(4 * slots.div_ceil(128)),
        on.tensor(4),
    );
    drop(on.tensor(4 * (experts + 1)));
    out
}

/// `cudagraph_memory_estimate`. `workspace`: cuBLAS's for the stream of the captures.
pub(super) fn estimate(w: &Widths, max_num_seqs: u64, workspace: u64) -> u64 {
    let piecewise = sizes(max_num_seqs);
    let whole: Vec<u64> = piecewise
        .iter()
        .copied()
        .filter(|t| *t <= max_num_seqs)
        .collect();
    let (outside, pool) = (Device::plain(), Device::plain());
    let empty = || outside.empty_cache();
    let nothing = || ();
    let play = |t: u64, pieces: &Device, attention: &Device, whole: bool, between: &dyn Fn()| {
        let experts = w.experts.map(|e| move || routed(w, e, t, pieces));
        let p = Play {
            pieces,
            attention: Some(attention),
            whole,
            between,
            experts: experts.as_ref().map(|f| f as &dyn Fn() -> Tensor),
        };
        forward(w, t, &p)
    };
    let warm = |t: u64, full: bool| play(t, &outside, &outside, full, &nothing);
    // cuBLAS's workspace of the stream, and after the first warm-up the hidden states' buffer: both outlive the captures
    let top = piecewise.first().copied().unwrap_or(1);
    let workspace = outside.tensor(workspace);
    let first = warm(top, false);
    let hidden = outside.tensor(2 * top * w.hidden);
    drop(first);
    for &t in &piecewise {
        if t != top {
            drop(warm(t, false));
        }
        empty();
        drop(play(t, &pool, &outside, false, &empty));
    }
    let mut samples: Vec<i64> = Vec::new();
    for &t in whole.iter().take(2) {
        drop(warm(t, true));
        let before = (outside.reserved() + pool.reserved()) as i64;
        empty();
        drop(play(t, &pool, &pool, true, &nothing));
        samples.push((outside.reserved() + pool.reserved()) as i64 - before);
    }
    let measured = (outside.reserved() + pool.reserved()) as i64;
    drop((workspace, hidden));
    let each = samples.get(1).map_or(0, |s| (*s).max(FLOOR));
    let full = match samples.first() {
        None => 0,
        Some(first) => first + (whole.len() as i64 - 1) * each,
    };
    (measured - samples.iter().sum::<i64>() + full).max(0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const A100: u64 = 8_519_680;

    fn dense(hidden: u64, inner: u64, heads: u64, kv: u64, layers: u64) -> Widths {
        Widths {
            hidden,
            qkv: (heads + 2 * kv) * 128,
            queries: heads * 128,
            keys: kv * 128,
            heads,
            gate_up: 2 * inner,
            act: inner,
            layers,
            experts: None,
            hopper: false,
        }
    }

    #[test]
    fn recorded_estimates_before_hopper_are_met_to_the_byte() {
        // records vllm-269, vllm-256, vllm-259: Qwen2.5-7B and Llama-3.1-8B on an A100, Qwen3-8B on an L40S
        for (w, recorded) in [
            (dense(3584, 18944, 28, 4, 28), 190_840_832),
            (dense(4096, 14336, 32, 8, 32), 188_743_680),
            (dense(4096, 12288, 32, 8, 36), 159_383_552),
        ] {
            assert_eq!(estimate(&w, 256, A100), recorded);
        }
    }

    #[test]
    fn recorded_estimates_on_hopper_are_met_to_the_byte() {
        // records vllm-242, vllm-244: Qwen2.5-7B with 64 sequences, Qwen3-8B
        for (w, sequences, recorded) in [
            (dense(3584, 18944, 28, 4, 28), 64, 136_314_880),
            (dense(4096, 12288, 32, 8, 36), 256, 436_207_616),
        ] {
            let w = Widths { hopper: true, ..w };
            assert_eq!(estimate(&w, sequences, 32 << 20), recorded);
        }
    }

    #[test]
    fn sizes_are_those_of_the_records() {
        assert_eq!(sizes(256).len(), 51);
        assert_eq!(sizes(64).len(), 19);
        assert_eq!(sizes(64)[0], 128);
        assert_eq!(sizes(1), [2, 1]);
    }
}
