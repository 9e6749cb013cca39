//! Attention of composed operators (torch 2.11, transformers/attention.cpp, _scaled_dot_product_attention_math).

use super::{SdpaArgs, additive};
use crate::autograd::Grads;
use crate::context::Cx;
use crate::kernels::safe_softmax as safe_softmax_steps;
use crate::ops::matmul::batched;
use crate::ops::op::OpId;
use crate::ops::{
    add, add_, clone_contiguous, dropout, expand, flatten, mul_scalar, to_dtype, transpose,
    unsqueeze,
};
use crate::shape::Shape;
use crate::tensor::Tensor;
use smallvec::smallvec;
use tonnage_units::ScalarType::{BF16, Bool, F16, F32};

/// 16-bit inputs are computed in fp32, and the result and the probabilities cast back. `mask` is additive.
pub(super) fn math(
    cx: &Cx,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    args: &SdpaArgs,
) -> Tensor {
    let origin = q.dtype;
    let exact = |t: &Tensor| {
        if matches!(t.dtype, F16 | BF16) {
            to_dtype(cx, t, F32)
        } else {
            t.clone()
        }
    };
    let q_acc = exact(q);
    let k_acc = exact(k);
    let v_acc = exact(v);
    let query = mul_scalar(cx, &q_acc);
    let mask = if args.is_causal {
        Some(causal_mask(cx, &query, k_acc.size(-2)))
    } else {
        mask.cloned()
    };
    let (key, value) = if args.enable_gqa {
        let key = repeat_heads(cx, &k_acc, query.size(-3));
        let value = repeat_heads(cx, &v_acc, query.size(-3));
        (key, value)
    } else {
        (k_acc.clone(), v_acc.clone())
    };
    let mut attn = {
        let scaled = mul_scalar(cx, &transpose(cx, &key, -2, -1));
        batched(cx, &query, &scaled)
    };
    if let Some(m) = &mask {
        // `attn.add_(mask)`; out of place where a dispatch mode watches
        attn = if cx.dispatch_mode() {
            add(cx, &attn, m)
        } else {
            add_(cx, attn, m)
        };
    }
    attn = safe_softmax(cx, &attn);
    attn = dropout(cx, &attn, args.dropout);
    // the probabilities are a second result, which the caller drops: cast first, gone last
    let probabilities = to_dtype_if(cx, &attn, origin);
    let y = {
        let y = batched(cx, &attn, &value);
        to_dtype_if(cx, &y, origin)
    };
    for t in [
        Some(attn),
        Some(key),
        Some(value),
        Some(query),
        mask,
        Some(v_acc),
        Some(k_acc),
        Some(q_acc),
    ] {
        drop(t);
    }
    drop(probabilities);
    y
}

fn to_dtype_if(cx: &Cx, x: &Tensor, dtype: tonnage_units::ScalarType) -> Tensor {
    if x.dtype == dtype {
        x.clone()
    } else {
        to_dtype(cx, x, dtype)
    }
}

/// `ones(L, S, bool).tril()` as numbers to add.
fn causal_mask(cx: &Cx, query: &Tensor, kv_len: u64) -> Tensor {
    let shape = Shape::new(&[query.size(-2), kv_len]);
    let ones = cx.empty(OpId::FULL, shape, Bool);
    let lower = cx.empty(OpId::SDPA_MATH, shape, Bool);
    drop(ones);
    additive(cx, &lower, query.dtype)
}

/// `x.repeat_interleave(heads / x.size(-3), -3)`, or `x` itself.
fn repeat_heads(cx: &Cx, x: &Tensor, heads: u64) -> Tensor {
    let n = heads / x.size(-3);
    if n == 1 {
        return x.clone();
    }
    let dim = x.shape.index(-3);
    let u = unsqueeze(cx, x, dim as isize + 1);
    let e = expand(cx, &u, u.shape.with(dim as isize + 1, n));
    drop(u);
    let c = clone_contiguous(cx, &e);
    drop(e);
    flatten(cx, &c, dim as isize, dim as isize + 1)
}

/// Softmax over the last dimension with zeros for rows that are masked out altogether; keeps its result.
fn safe_softmax(cx: &Cx, x: &Tensor) -> Tensor {
    let op = OpId::SOFTMAX;
    let mut n = cx.node(op, &[x]);
    let width = x.size(-1);
    let rows = x.numel().checked_div(width).unwrap_or(0);
    let steps = cx.script((rows, width, x.dtype), |(rows, width, dtype), card| {
        safe_softmax_steps(*rows, *width, *dtype, card)
    });
    let y = cx
        .play(op, &steps, |_| {
            (x.shape, x.shape.contiguous_strides(), x.dtype)
        })
        .remove(0);
    n.save(cx, &y);
    n.finish(cx, y, |cx, s, _| -> Grads {
        let y = s.tensor(0);
        let g = cx.empty(OpId::SOFTMAX_BACKWARD, y.shape, y.dtype);
        drop(cx.raw(OpId::SOFTMAX_BACKWARD, y.nbytes()));
        smallvec![Some(g)]
    })
}
