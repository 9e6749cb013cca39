//! The attention interfaces of transformers (5.17, src/transformers/integrations/sdpa_attention.py and the models' eager functions).

use crate::run::{Attention, Run};
use tonnage_sim::ops::{self, SdpaArgs};
use tonnage_sim::{ScalarType, Shape, Tensor};

/// `attention_interface(module, q, k, v, mask, dropout, scaling)` for q [B, H, S, d], k and v [B, K, S, d]; the result is
/// [B, S, H, d] contiguous. `is_causal` is the module's attribute.
pub fn attend(
    m: &Run,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    dropout: f64,
    is_causal: bool,
) -> Tensor {
    attend_with_weights(m, q, k, v, mask, dropout, is_causal).0
}

/// The same with what the caller's frame keeps beside the result: eager attention's probabilities [B, H, S, S].
pub fn attend_with_weights(
    m: &Run,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    dropout: f64,
    is_causal: bool,
) -> (Tensor, Option<Tensor>) {
    let cx = &m.cx;
    let groups = q.size(1) / k.size(1);
    let p = if m.training { dropout } else { 0.0 };
    if m.options.attention == Attention::Eager {
        let (o, w) = eager(m, q, k, v, mask, p, None);
        return (o, Some(w));
    }
    if m.options.attention == Attention::FlashAttention2 {
        return (flash(m, q, k, v, p), None);
    }
    let gqa = groups > 1 && mask.is_none();
    let repeated = (groups > 1 && !gqa).then(|| {
        let k2 = ops::repeat_kv(cx, k, groups);
        (k2, ops::repeat_kv(cx, v, groups))
    });
    let (k, v) = repeated.as_ref().map_or((k, v), |(k, v)| (k, v));
    let causal = q.size(2) > 1 && mask.is_none() && is_causal;
    let square = filled(m, q, k, v, causal);
    let (k, v) = square.as_ref().map_or((k, v), |(k, v)| (k, v));
    let args = SdpaArgs {
        mask: mask.cloned(),
        dropout: p,
        is_causal: causal,
        enable_gqa: gqa,
        scale_given: true,
    };
    let o = ops::sdpa(cx, q, k, v, &args);
    let o2 = ops::contiguous(cx, &ops::transpose(cx, &o, 1, 2));
    drop(square);
    drop(repeated);
    drop(o);
    (o2, None)
}

/// `flash_attention_forward` without padding (transformers 5.17, src/transformers/integrations/flash_attention.py and
/// modeling_flash_attention_utils.py): positions before heads; fp32 inputs are cast to autocast's type. No recorded run has it.
fn flash(m: &Run, q: &Tensor, k: &Tensor, v: &Tensor, dropout: f64) -> Tensor {
    let cx = &m.cx;
    let low = |x: &Tensor| {
        let t = ops::transpose(cx, x, 1, 2);
        match cx.autocast_dtype() {
            Some(d) if t.dtype == ScalarType::F32 => ops::to_dtype(cx, &t, d),
            _ => t,
        }
    };
    let (q, k, v) = (low(q), low(k), low(v));
    let o = ops::flash_attention_2(cx, &q, &k, &v, dropout);
    drop((q, k, v));
    ops::contiguous(cx, &o)
}

/// 5.x: of a static cache's keys and values those that the prompt filled, so that `is_causal` and the flash kernel go together
/// (case `llama-tiny-generate-bf16-static`).
pub fn filled(
    m: &Run,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    causal: bool,
) -> Option<(Tensor, Tensor)> {
    let (s, kv) = (q.size(2), k.size(2));
    (m.options.stack.transformers_5() && causal && kv > s).then(|| {
        let part = |t: &Tensor| ops::slice(&m.cx, t, 2, 0, s);
        (part(k), part(v))
    })
}

/// `eager_attention_forward`: scores, scaling, soft capping by `cap`, mask, fp32 softmax, dropout, context; the context and the
/// probabilities.
pub fn eager(
    m: &Run,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    p: f64,
    cap: Option<fn(&Run, Tensor) -> Tensor>,
) -> (Tensor, Tensor) {
    let cx = &m.cx;
    let groups = q.size(1) / k.size(1);
    let (k, v) = if groups > 1 {
        (ops::repeat_kv(cx, k, groups), ops::repeat_kv(cx, v, groups))
    } else {
        (k.clone(), v.clone())
    };
    let raw = ops::matmul(cx, q, &ops::transpose(cx, &k, 2, 3));
    let mut w = ops::mul_scalar(cx, &raw);
    drop(raw);
    if let Some(cap) = cap {
        w = cap(m, w);
    }
    if let Some(mask) = mask {
        w = ops::add(cx, &w, mask);
    }
    let soft = ops::softmax(cx, &w, Some(ScalarType::F32));
    w = ops::to_dtype(cx, &soft, q.dtype);
    drop(soft);
    w = ops::dropout(cx, &w, p);
    let o = ops::matmul(cx, &w, &v);
    let o2 = ops::contiguous(cx, &ops::transpose(cx, &o, 1, 2));
    drop(o);
    drop(k);
    drop(v);
    (o2, w)
}

/// The attention of encoders, over q, k and v [B, H, S, d] without a causal mask: the context [B, S, H, d] and, in eager attention,
/// the probabilities, which the caller's frames keep. `fp32` is whether the eager softmax runs in fp32 whatever the dtype.
pub fn bidirectional(
    m: &Run,
    qkv: [&Tensor; 3],
    mask: Option<&Tensor>,
    dropout: f64,
    fp32: bool,
) -> (Tensor, Option<Tensor>) {
    let [q, k, v] = qkv;
    if m.options.attention != Attention::Eager {
        return (attend(m, q, k, v, mask, dropout, false), None);
    }
    let cx = &m.cx;
    let raw = ops::matmul(cx, q, &ops::transpose(cx, k, 2, 3));
    let mut w = ops::mul_scalar(cx, &raw);
    drop(raw);
    if let Some(mask) = mask {
        w = ops::add(cx, &w, mask);
    }
    w = if fp32 {
        let soft = ops::softmax(cx, &w, Some(ScalarType::F32));
        ops::to_dtype(cx, &soft, q.dtype)
    } else {
        ops::softmax(cx, &w, None)
    };
    w = ops::dropout(cx, &w, if m.training { dropout } else { 0.0 });
    let o = ops::matmul(cx, &w, v);
    let o2 = ops::contiguous(cx, &ops::transpose(cx, &o, 1, 2));
    (o2, Some(w))
}

/// `linear(x).view(B, S, -1, head_dim).transpose(1, 2)`.
pub fn split_heads(m: &Run, linear: &crate::layers::Linear, x: &Tensor, head_dim: u64) -> Tensor {
    let y = linear.forward(m, x);
    let shape = Shape::new(&[y.size(0), y.size(1), y.size(2) / head_dim, head_dim]);
    let v = ops::view(&m.cx, &y, shape);
    ops::transpose(&m.cx, &v, 1, 2)
}
