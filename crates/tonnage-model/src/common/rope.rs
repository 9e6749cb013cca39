//! Rotary position embeddings, whole and partial, and the frequencies that a long sequence replaces (transformers 5.17, src/transformers/models/llama/modeling_llama.py).

use crate::net::ModuleId;
use crate::run::{Rebound, Run};
use tonnage_sim::OpId;
use tonnage_sim::ops;
use tonnage_sim::{ScalarType, Shape, Tensor};

/// `LlamaRotaryEmbedding.forward`: cos and sin as [1, S, dim] in `dtype`; computed in fp32 without autocast or gradients.
pub fn tables(m: &Run, s: u64, dim: u64, dtype: ScalarType) -> (Tensor, Tensor) {
    tables_for(m, 1, s, dim, dtype)
}

/// The tables for position ids of `[b, s]`: [b, S, dim] (callers that generate pass a row of positions for each sequence).
pub fn tables_for(m: &Run, b: u64, s: u64, dim: u64, dtype: ScalarType) -> (Tensor, Tensor) {
    tables_of(m, b, s, dim, dtype, true)
}

/// The same as [b, S, dim / 2] (`GptOssRotaryEmbedding.forward`, which does not write the frequencies twice).
pub fn half_tables(m: &Run, b: u64, s: u64, dim: u64, dtype: ScalarType) -> (Tensor, Tensor) {
    tables_of(m, b, s, dim, dtype, false)
}

fn tables_of(
    m: &Run,
    b: u64,
    s: u64,
    dim: u64,
    dtype: ScalarType,
    twice: bool,
) -> (Tensor, Tensor) {
    let cx = &m.cx;
    cx.with_grad(false, || {
        let positions = cx.empty(OpId::TO_COPY, Shape::new(&[b, 1, s]), ScalarType::F32);
        let freqs = cx.empty(OpId::BMM, Shape::new(&[b, dim / 2, s]), ScalarType::F32);
        cx.gemm();
        let emb = if twice {
            cx.empty(OpId::CAT, Shape::new(&[b, s, dim]), ScalarType::F32)
        } else {
            ops::transpose(cx, &freqs, 1, 2)
        };
        let table = |op| {
            let raw = ops::plain(cx, op, &emb, ScalarType::F32);
            let scaled = ops::plain(cx, OpId::MUL, &raw, ScalarType::F32);
            drop(raw);
            scaled
        };
        let cos = table(OpId::COS);
        let sin = table(OpId::SIN);
        let out = (
            ops::to_dtype(cx, &cos, dtype),
            ops::to_dtype(cx, &sin, dtype),
        );
        drop(positions);
        drop(freqs);
        drop(emb);
        drop(cos);
        drop(sin);
        out
    })
}

/// `rotate_half(x)`.
pub fn rotate_half(m: &Run, x: &Tensor) -> Tensor {
    let cx = &m.cx;
    let half = x.size(-1) / 2;
    let x1 = ops::slice(cx, x, -1, 0, half);
    let x2 = ops::slice(cx, x, -1, half, half);
    let n = ops::neg(cx, &x2);
    let y = ops::cat(cx, &[&n, &x1], -1);
    drop(n);
    y
}

/// One of the two lines of `apply_rotary_pos_emb`: `(x * cos) + (rotate_half(x) * sin)`.
pub fn rotate(m: &Run, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Tensor {
    let cx = &m.cx;
    let a = ops::mul(cx, x, cos);
    let r = rotate_half(m, x);
    let b = ops::mul(cx, &r, sin);
    drop(r);
    let y = ops::add(cx, &a, &b);
    drop(a);
    drop(b);
    y
}

/// `apply_rotary_pos_emb(q, k, cos, sin)` for q, k [B, heads, S, dim].
pub fn apply(m: &Run, q: &Tensor, k: &Tensor, cos: &Tensor, sin: &Tensor) -> (Tensor, Tensor) {
    let cos = ops::unsqueeze(&m.cx, cos, 1);
    let sin = ops::unsqueeze(&m.cx, sin, 1);
    (rotate(m, q, &cos, &sin), rotate(m, k, &cos, &sin))
}

/// The form of `apply_rotary_pos_emb` that turns only the first `cos.size(-1)` channels, which may be all of them
/// (modeling_phi3.py and others that normalise nothing between).
pub fn apply_partial(
    m: &Run,
    q: &Tensor,
    k: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
) -> (Tensor, Tensor) {
    let cx = &m.cx;
    let cos = ops::unsqueeze(cx, cos, 1);
    let sin = ops::unsqueeze(cx, sin, 1);
    let r = cos.size(-1);
    let parts = |x: &Tensor| {
        let d = x.size(-1);
        (ops::slice(cx, x, -1, 0, r), ops::slice(cx, x, -1, r, d - r))
    };
    let (q_rot, q_pass) = parts(q);
    let (k_rot, k_pass) = parts(k);
    let join = |rot: &Tensor, pass: &Tensor| {
        let turned = rotate(m, rot, &cos, &sin);
        ops::cat(cx, &[&turned, pass], -1)
    };
    (join(&q_rot, &q_pass), join(&k_rot, &k_pass))
}

/// `longrope_frequency_update` (modeling_rope_utils.py, dynamic_rope_update) of the rotary module `id`, whose `inv_freq` is a rebound
/// buffer: past `original` positions the frequencies are computed, in 5.17 at each call, before that the original ones come back.
pub fn longrope_update(m: &Run, id: ModuleId, positions: &Tensor, dim: u64, original: u64) {
    let cx = &m.cx;
    let scalar = |op, dtype| cx.empty(op, Shape::new(&[]), dtype);
    let half = |op, dtype| cx.empty(op, Shape::new(&[dim / 2]), dtype);
    let length = {
        let last = ops::max(cx, positions);
        let n = scalar(OpId::ADD, last.dtype);
        drop(last);
        n
    };
    drop(scalar(OpId::COMPARE, ScalarType::Bool));
    let five = m.options.stack.transformers_5();
    let mut rebound = m.rebound.borrow_mut();
    let loaded = rebound.get(&id).is_some_and(|r| r.loaded);
    let tensor = if positions.size(-1) > original {
        (five || loaded).then(|| {
            let factors = half(OpId::TO_COPY, ScalarType::F32);
            let counted = half(OpId::ARANGE, ScalarType::I64);
            let float = half(OpId::TO_COPY, ScalarType::F32);
            drop(counted);
            let exponents = half(OpId::DIV, ScalarType::F32);
            drop(float);
            let powers = half(OpId::POW, ScalarType::F32);
            // the base, a number, as a tensor
            drop(scalar(OpId::POW, ScalarType::F64));
            let scaled = half(OpId::MUL, ScalarType::F32);
            drop(powers);
            let inverse = half(OpId::RECIPROCAL, ScalarType::F32);
            let out = half(OpId::MUL, ScalarType::F32);
            drop(scaled);
            drop(inverse);
            drop(factors);
            drop(exponents);
            out
        })
    } else {
        if five {
            // the original ones are a buffer too
            rebound.remove(&id);
        }
        (!five && loaded).then(|| half(OpId::TO_COPY, ScalarType::F32))
    };
    if let Some(tensor) = tensor {
        let loaded = false;
        rebound.insert(id, Rebound { tensor, loaded });
    }
    drop(length);
}
