//! Rotary position embeddings (transformers 5.17, src/transformers/models/llama/modeling_llama.py).

use crate::run::Run;
use tonnage_sim::OpId;
use tonnage_sim::ops;
use tonnage_sim::{ScalarType, Shape, Tensor};

/// `LlamaRotaryEmbedding.forward`: cos and sin as [1, S, dim] in `dtype`; computed in fp32 without autocast or gradients.
pub fn tables(m: &Run, s: u64, dim: u64, dtype: ScalarType) -> (Tensor, Tensor) {
    let cx = &m.cx;
    cx.with_grad(false, || {
        let positions = cx.empty(OpId::TO_COPY, Shape::new(&[1, 1, s]), ScalarType::F32);
        let freqs = cx.empty(OpId::BMM, Shape::new(&[1, dim / 2, s]), ScalarType::F32);
        cx.gemm();
        let emb = cx.empty(OpId::CAT, Shape::new(&[1, s, dim]), ScalarType::F32);
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
