//! Scaled dot product attention: which kernel runs, and what each keeps and allocates
//! (torch 2.11, aten/src/ATen/native/transformers/attention.cpp, cuda/sdp_utils.cpp, cuda/attention.cu, cuda/attention_backward.cu).
//! Verified: tests/attention.rs.

mod cudnn;
mod efficient;
mod fa2;
mod flash;
mod math;
mod select;

pub use fa2::flash_attention_2;
pub use select::{SdpaBackend, select_backend};

use crate::autograd::{Grads, Saved};
use crate::context::Cx;
use crate::kernels::{Attention, boolean_mask};
use crate::ops::op::OpId;
use crate::ops::view::{narrow, transpose_raw};
use crate::shape::{Strides, elementwise_strides};
use crate::tensor::Tensor;
use smallvec::smallvec;
use tonnage_units::ScalarType;

/// The arguments of `F.scaled_dot_product_attention` besides q, k, v.
#[derive(Clone, Default)]
pub struct SdpaArgs {
    /// A boolean or additive mask that broadcasts to (batch, heads, query length, key length).
    pub mask: Option<Tensor>,
    pub dropout: f64,
    pub is_causal: bool,
    /// Key and value heads may be fewer than query heads.
    pub enable_gqa: bool,
    /// A scale was passed; no backend allocates differently for it.
    pub scale_given: bool,
}

/// `F.scaled_dot_product_attention(q, k, v, ...)` with q, k, v (batch, heads, length, head size); on autocast's low-precision list
/// (the arguments are cast from the last to the first, the body runs without autocast).
pub fn sdpa(cx: &Cx, q: &Tensor, k: &Tensor, v: &Tensor, args: &SdpaArgs) -> Tensor {
    // locals die in reverse: q, k, v, mask, as the wrapper's arguments do
    let mask = args.mask.as_ref().map(|m| cx.lower(m));
    let v = cx.lower(v);
    let k = cx.lower(k);
    let q = cx.lower(q);
    let args = SdpaArgs {
        mask: mask.clone(),
        dropout: args.dropout,
        is_causal: args.is_causal,
        enable_gqa: args.enable_gqa,
        scale_given: args.scale_given,
    };
    if cx.autocast_dtype().is_none() {
        return dispatch(cx, &q, &k, &v, &args);
    }
    cx.autocast(None, || dispatch(cx, &q, &k, &v, &args))
}

fn dispatch(cx: &Cx, q: &Tensor, k: &Tensor, v: &Tensor, args: &SdpaArgs) -> Tensor {
    let wanted = cx.grad_enabled() && [q, k, v].iter().any(|t| t.requires_grad());
    let backend = select::chosen(cx, q, k, v, args, wanted);
    let mask = args.mask.as_ref().map(|m| additive(cx, m, q.dtype));
    match backend {
        SdpaBackend::Flash => flash::flash(cx, q, k, v, args.dropout),
        SdpaBackend::Efficient => efficient::efficient(cx, q, k, v, mask, args.dropout, wanted),
        SdpaBackend::Cudnn => cudnn::cudnn(cx, q, k, v, mask.as_ref(), args.dropout, wanted),
        SdpaBackend::Math => math::math(cx, q, k, v, mask.as_ref(), args),
    }
}

/// A boolean mask as numbers to add (attention.cpp, convert_boolean_attn_mask): a contiguous tensor of the mask's sizes.
fn additive(cx: &Cx, mask: &Tensor, dtype: ScalarType) -> Tensor {
    if mask.dtype != ScalarType::Bool {
        return mask.clone();
    }
    let shape = mask.shape;
    // `where` gives its result the layout of the mask
    let st = elementwise_strides(&shape, &[(&shape, &mask.strides())]);
    cx.play(OpId::WHERE, &boolean_mask(dtype), |_| (shape, st, dtype))
        .remove(0)
}

/// The call in the terms of the kernels module; `d` is the head size.
fn call(q: &Tensor, k: &Tensor, d: u64, dropout: f64) -> Attention {
    Attention {
        batch: q.size(0),
        heads: q.size(1),
        kv_heads: k.size(1),
        q_len: q.size(2),
        kv_len: k.size(2),
        head_dim: d,
        dtype: q.dtype,
        dropout: dropout > 0.0,
    }
}

/// The layout of `empty_like(x.transpose(1, 2)).transpose(1, 2)` with another last size.
fn layout_like(x: &Tensor, last: u64) -> Strides {
    let t = transpose_raw(x, 1, 2);
    let shape = t.shape.with(-1, last);
    let mut st = elementwise_strides(&shape, &[(&shape, &t.strides())]);
    st.swap(1, 2);
    st
}

/// Does it lie in memory as (batch, length, heads, head size)?
fn lies_by_position(x: &Tensor) -> bool {
    transpose_raw(x, 1, 2).is_contiguous()
}

/// Keeps the gradients of inputs that want one; the others die with the operator.
fn wanted(s: &Saved, mut grads: Grads) -> Grads {
    for (g, need) in grads.iter_mut().zip(&s.need) {
        if !need {
            *g = None;
        }
    }
    grads
}

/// `pad(x, (0, n))` up to the next multiple of 8 (a whole 8 where the size is one): contiguous; the gradient is a clone of the part that is kept
/// (aten/src/ATen/native/PadNd.cpp, constant_pad_nd).
fn pad_last(cx: &Cx, x: &Tensor) -> Tensor {
    let n = cx.node(OpId::PAD, &[x]);
    let y = cx.empty(OpId::PAD, x.shape.with(-1, x.size(-1) / 8 * 8 + 8), x.dtype);
    n.finish(cx, y, |cx, s, g| {
        let g = g[0].take().expect("gradient");
        let kept = g.alias(s.inputs[0].shape, g.strides());
        let y = cx.empty_like(OpId::PAD, &kept, g.dtype);
        smallvec![Some(y)]
    })
}

/// The first `len` elements of the last dimension.
fn head(cx: &Cx, x: &Tensor, len: u64) -> Tensor {
    narrow(cx, x, -1, 0, len)
}
