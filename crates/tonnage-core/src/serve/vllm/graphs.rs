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
/// Layers after which segments repeat; no more are played.
const LAYERS: u64 = 4;

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

/// One forward of `t` tokens; hands back the hidden states. Buffers of Inductor's pieces come from `pieces`, those of the attention kernel from
/// `attention`; `between` runs before each piece (a capture empties the cache). Where the queries are as wide as the hidden states, an attention
/// writes into the storage of the down projection before it, which the residual sum has read.
fn forward(
    w: &Widths,
    t: u64,
    pieces: &Device,
    attention: &Device,
    whole: bool,
    between: &dyn Fn(),
) -> Tensor {
    let (h, q) = (2 * t * w.hidden, 2 * t * w.queries);
    between();
    let mut residual = pieces.tensor(h);
    let mut normed = pieces.tensor(h);
    let mut qkv = pieces.tensor(2 * t * w.qkv);
    let mut keys = pieces.tensor(2 * t * w.keys);
    let mut out = pieces.tensor(q);
    for left in (0..w.layers.clamp(1, LAYERS)).rev() {
        attend(w, t, attention, whole);
        drop(keys);
        drop(qkv);
        drop(normed);
        between();
        let projected = pieces.tensor(h);
        let norm = pieces.tensor(h);
        let gate_up = pieces.tensor(2 * t * w.gate_up);
        drop(norm);
        let act = pieces.tensor(2 * t * w.act);
        drop(gate_up);
        let mut down = pieces.tensor(h);
        drop(act);
        if left == 0 {
            drop((projected, out, residual));
            return down;
        }
        let sum = pieces.tensor(h);
        normed = pieces.tensor(h);
        drop(projected);
        qkv = pieces.tensor(2 * t * w.qkv);
        keys = pieces.tensor(2 * t * w.keys);
        if q != h {
            drop(down);
            down = pieces.tensor(q);
        }
        drop(std::mem::replace(&mut out, down));
        drop(std::mem::replace(&mut residual, sum));
    }
    residual
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
    let warm = |t: u64, full: bool| forward(w, t, &outside, &outside, full, &nothing);
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
        drop(forward(w, t, &pool, &outside, false, &empty));
    }
    let mut samples: Vec<i64> = Vec::new();
    for &t in whole.iter().take(2) {
        drop(warm(t, true));
        let before = (outside.reserved() + pool.reserved()) as i64;
        empty();
        drop(forward(w, t, &pool, &pool, true, &nothing));
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
