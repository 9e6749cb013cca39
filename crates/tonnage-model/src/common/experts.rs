//! Routed experts: what all mixtures of experts of transformers 5.x run, and the unrouted remains of 4.57's loops.

use crate::run::Run;
use tonnage_sim::{OpId, ScalarType, Shape, Tensor, ops};

/// The parameters of packed experts.
pub struct Packed<'a> {
    /// [E, 2I, D], transposed [E, D, 2I]
    pub gate_up: &'a Tensor,
    /// [E, D, I], transposed [E, I, D]
    pub down: &'a Tensor,
    /// [E, 2I] and [E, D]
    pub biases: Option<[&'a Tensor; 2]>,
    pub transposed: bool,
}

/// [`grouped_with`] for experts without biases whose gate is the activation `act` of the first half, times the second.
pub fn grouped(
    m: &Run,
    x: &Tensor,
    ids: &Tensor,
    weights: &Tensor,
    gate_up: &Tensor,
    down: &Tensor,
    act: impl Fn(&Tensor) -> Tensor,
) -> Tensor {
    let packed = Packed {
        gate_up,
        down,
        biases: None,
        transposed: false,
    };
    grouped_with(m, x, ids, weights, &packed, |out| gated(m, out, &act))
}

/// `grouped_mm_experts_forward` (transformers 5.17, src/transformers/integrations/moe.py) for `x` [T, D], int64 `ids` [T, k] and
/// `weights` [T, k]; `gate` makes [S, I] of [S, 2I].
/// Nothing here depends on where the router sends a token: all sizes follow from T * k
/// (cases `mixtral-mini-plain-bf16-adamw_foreach-b2-s512`, `gpt-oss-tiny-plain-bf16-eager`).
pub fn grouped_with(
    m: &Run,
    x: &Tensor,
    ids: &Tensor,
    weights: &Tensor,
    packed: &Packed,
    gate: impl Fn(&Tensor) -> Tensor,
) -> Tensor {
    if m.decoding.get() {
        return batched(m, x, ids, weights, packed, gate);
    }
    let cx = &m.cx;
    let (tokens, k, width) = (x.size(0), ids.size(1), x.size(1));
    let n = tokens * k;
    let sample_weights = ops::reshape(cx, weights, Shape::new(&[n]));
    let flat = ops::reshape(cx, ids, Shape::new(&[n]));
    let (sorted, perm) = ops::sort(cx, &flat);
    let rows = ops::plain(cx, OpId::DIV, &perm, ScalarType::I64);
    let selected = ops::index(cx, x, 0, &[&rows]);
    drop(rows);
    let weights_g = ops::index(cx, &sample_weights, 0, &[&perm]);
    let counted = ops::plain(cx, OpId::TO_COPY, &sorted, ScalarType::I32);
    let experts = packed.gate_up.size(0);
    let per_expert = cx.empty(OpId::HISTC, Shape::new(&[experts]), ScalarType::I32);
    let steps = tonnage_sim::kernels::cumsum(experts, ScalarType::I32, ScalarType::I32, true)
        .expect("an int32 cumsum is covered");
    let offsets = cx
        .play(OpId::CUMSUM, &steps, |_| {
            let s = per_expert.shape;
            (s, s.contiguous_strides(), ScalarType::I32)
        })
        .remove(0);
    let flags = ops::compare_scalar(cx, OpId::COMPARE, &sorted);
    let sentinel = ops::unsqueeze(cx, &flags, -1);
    drop(flags);
    let bias = |i: usize| packed.biases.map(|b| ops::index(cx, b[i], 0, &[&sorted]));
    let mut biases = bias(0);
    let selected = ops::masked_fill_(cx, selected, &sentinel);
    let product = |x: &Tensor, w: &Tensor, bias: Option<&Tensor>| {
        let x = ops::to_dtype(cx, x, w.dtype);
        let y = if packed.transposed {
            ops::grouped_mm(cx, &x, w, &offsets)
        } else {
            ops::grouped_mm(cx, &x, &ops::transpose(cx, w, -2, -1), &offsets)
        };
        match bias {
            Some(b) => ops::add_(cx, y, b),
            None => y,
        }
    };
    let mut out = product(&selected, packed.gate_up, biases.as_ref());
    out = ops::masked_fill(cx, &out, &sentinel);
    out = gate(&out);
    biases = bias(1);
    out = product(&out, packed.down, biases.as_ref());
    out = ops::masked_fill(cx, &out, &sentinel);
    let mut weighted = ops::mul(cx, &out, &ops::unsqueeze(cx, &weights_g, -1));
    let inverse = ops::plain(cx, OpId::ZEROS_LIKE, &perm, ScalarType::I64);
    drop(cx.empty(OpId::ARANGE, Shape::new(&[n]), ScalarType::I64));
    weighted = ops::index(cx, &weighted, 0, &[&inverse]);
    let wide = ops::view(cx, &weighted, Shape::new(&[tokens, k, width]));
    let sum = ops::sum(cx, &wide, &[1], false);
    drop(wide);
    let y = ops::to_dtype(cx, &sum, x.dtype);
    drop(sample_weights);
    drop(flat);
    drop(sorted);
    drop(perm);
    drop(selected);
    drop(weights_g);
    drop(counted);
    drop(per_expert);
    drop(offsets);
    drop(sentinel);
    drop(biases);
    drop(out);
    drop(weighted);
    drop(inverse);
    drop(sum);
    y
}

/// `batched_mm_experts_forward`, which `generate` runs after the prompt: each token's copy of the weights of its experts
/// (cases `mixtral-mini-generate-bf16-b4-s512-new32`, `gpt-oss-tiny-generate-bf16`).
fn batched(
    m: &Run,
    x: &Tensor,
    ids: &Tensor,
    weights: &Tensor,
    packed: &Packed,
    gate: impl Fn(&Tensor) -> Tensor,
) -> Tensor {
    let cx = &m.cx;
    let (tokens, k, width) = (x.size(0), ids.size(1), x.size(1));
    let n = tokens * k;
    let selected = cx.empty(OpId::INDEX, Shape::new(&[n, width]), x.dtype);
    let sample_weights = ops::reshape(cx, weights, Shape::new(&[n]));
    let mut experts = ops::reshape(cx, ids, Shape::new(&[n]));
    experts = ops::plain(cx, OpId::CLAMP, &experts, ScalarType::I64);
    let product = |x: &Tensor, w: &Tensor, bias: Option<&Tensor>| {
        let y = if packed.transposed {
            let y = ops::bmm(cx, &ops::unsqueeze(cx, x, 1), w);
            ops::squeeze(cx, &y, 1)
        } else {
            let y = ops::bmm(cx, w, &ops::unsqueeze(cx, x, -1));
            ops::squeeze(cx, &y, -1)
        };
        match bias {
            Some(b) => ops::add_(cx, y, b),
            None => y,
        }
    };
    let bias = |i: usize| packed.biases.map(|b| ops::index(cx, b[i], 0, &[&experts]));
    let mut chosen = ops::index(cx, packed.gate_up, 0, &[&experts]);
    let mut biases = bias(0);
    let mut out = product(&selected, &chosen, biases.as_ref());
    out = gate(&out);
    chosen = ops::index(cx, packed.down, 0, &[&experts]);
    biases = bias(1);
    out = product(&out, &chosen, biases.as_ref());
    let weighted = ops::mul(cx, &out, &ops::unsqueeze(cx, &sample_weights, -1));
    let wide = ops::view(cx, &weighted, Shape::new(&[tokens, k, width]));
    let sum = ops::sum(cx, &wide, &[1], false);
    drop(wide);
    let y = ops::to_dtype(cx, &sum, x.dtype);
    drop(selected);
    drop(sample_weights);
    drop(experts);
    drop(chosen);
    drop(biases);
    drop(out);
    drop(weighted);
    drop(sum);
    y
}

/// `_apply_gate`: the halves of `x` [n, 2I], the first through the activation, multiplied.
fn gated(m: &Run, x: &Tensor, act: impl Fn(&Tensor) -> Tensor) -> Tensor {
    let parts = ops::chunk(&m.cx, x, 2, -1);
    let (gate, up) = (parts[0].clone(), parts[1].clone());
    drop(parts);
    let a = act(&gate);
    let y = ops::mul(&m.cx, &a, &up);
    drop(a);
    y
}

/// 4.57's loop over the experts that were hit, on a device whose kernels do nothing: the router's choice is never written, no
/// expert counts as hit, and none runs. A recorded run without a GPU shows this and so does this model; on a real card each expert
/// that gets tokens adds its own activations and gradients
/// (case `mixtral-mini-plain-bf16-adamw_foreach-b2-s512-tf4.57.6`). `ids` is [T, k]; the result is the one-hot mask.
pub fn unrouted(m: &Run, ids: &Tensor, experts: u64) -> Tensor {
    let cx = &m.cx;
    let (t, k) = (ids.size(0), ids.size(1));
    let hot = cx.empty(OpId::ONE_HOT, Shape::new(&[t, k, experts]), ScalarType::I64);
    let mask = ops::permute(cx, &hot, &[2, 1, 0]);
    drop(hot);
    let counts = ops::sum(cx, &mask, &[-1, -2], false);
    let hit = ops::compare_scalar(cx, OpId::COMPARE, &counts);
    drop(counts);
    let steps = cx.script(experts, |n, card| {
        tonnage_sim::kernels::nonzero(*n, 1, 0, card)
    });
    cx.play(OpId::NE, &steps, |_| {
        (ids.shape, ids.strides(), ScalarType::I64)
    });
    drop(hit);
    mask
}

/// 4.57's loop over all experts of DeepSeek V3, on a device whose kernels do nothing: each is asked for its tokens and none has any
/// (case `deepseek-v3-tiny-plain-bf16-sdpa-tf4.57.6`; on a real card the experts add their own, as [`unrouted`] says). `x` [T, D],
/// `ids` [T, k]; the result is the sum's start in the dtype of `x`.
pub fn unreached(m: &Run, x: &Tensor, ids: &Tensor, dtype: ScalarType, experts: u64) -> Tensor {
    let cx = &m.cx;
    let (t, k) = (ids.size(0), ids.size(1));
    let out = ops::plain(cx, OpId::ZEROS_LIKE, x, dtype);
    let hot = cx.empty(OpId::ONE_HOT, Shape::new(&[t, k, experts]), ScalarType::I64);
    let steps = cx.script(t * k, |n, card| {
        tonnage_sim::kernels::nonzero(*n, 2, 0, card)
    });
    for _ in 0..experts {
        let chosen = cx.empty(OpId::NE, ids.shape, ScalarType::I64);
        cx.play(OpId::NE, &steps, |_| {
            (ids.shape, ids.strides(), ScalarType::I64)
        });
        drop(chosen);
    }
    let y = ops::to_dtype(cx, &out, x.dtype);
    drop(out);
    drop(hot);
    y
}
