//! The flash-attn package's own function (flash-attn 2.8.3, flash_attn/flash_attn_interface.py `FlashAttnFunc`,
//! csrc/flash_attn/flash_api.cpp `mha_fwd` and `mha_bwd`). Written from the source: no recorded run has it.

use super::wanted;
use crate::autograd::Grads;
use crate::context::Cx;
use crate::kernels::Attention;
use crate::ops::op::OpId;
use crate::shape::Shape;
use crate::tensor::Tensor;
use tonnage_units::ScalarType::{F32, I64};

fn call(q: &Tensor, k: &Tensor, dropout: bool) -> Attention {
    Attention {
        batch: q.size(0),
        q_len: q.size(1),
        heads: q.size(2),
        kv_len: k.size(1),
        kv_heads: k.size(2),
        head_dim: q.size(3),
        dtype: q.dtype,
        dropout,
    }
}

/// `F.pad` of the head size up to a multiple of 8.
fn padded(cx: &Cx, x: &Tensor) -> Tensor {
    if x.size(3).is_multiple_of(8) {
        return x.clone_no_edge();
    }
    let d = x.size(3).next_multiple_of(8);
    cx.empty(OpId::PAD, x.shape.with(-1, d), x.dtype)
}

/// `flash_attn_func(q, k, v, dropout)` for q [B, S, H, d], k and v [B, S, K, d] in 16 bits; the result is [B, S, H, d]. Keeps q, k, v
/// and the output (all with padded heads), logsumexp, rng state.
pub fn flash_attention_2(cx: &Cx, q: &Tensor, k: &Tensor, v: &Tensor, dropout: f64) -> Tensor {
    let op = OpId::FLASH_ATTN;
    let mut n = cx.node(op, &[q, k, v]);
    let d = q.size(3);
    n.args([(dropout > 0.0) as u64, d, 0, 0, 0, 0]);
    let (q, k, v) = (padded(cx, q), padded(cx, k), padded(cx, v));
    let how = call(&q, &k, dropout > 0.0);
    cx.attention_work(op, &q, how.kv_len, false);
    let y = cx.empty_like(op, &q, q.dtype);
    let lse = cx.empty(op, Shape::new(&[how.batch, how.heads, how.q_len]), F32);
    let splits = cx.choice(how, |how, card| {
        how.flash_splits(card, how.heads, how.q_len)
    });
    let rows = splits * how.batch * how.heads * how.q_len * 4;
    let parts = (splits > 1).then(|| {
        let lse = cx.raw(op, rows);
        (lse, cx.raw(op, rows * how.flash_rounded_dim()))
    });
    let rng = cx.empty(op, Shape::new(&[2]), I64);
    drop(parts);
    for t in [&q, &k, &v, &y, &lse, &rng] {
        n.save(cx, t);
    }
    drop((q, k, v));
    drop(lse);
    drop(rng);
    let y = if y.size(3) == d {
        y
    } else {
        y.alias(y.shape.with(-1, d), y.strides())
    };
    n.finish(cx, y, |cx, s, g| -> Grads {
        let op = OpId::FLASH_ATTN_BACKWARD;
        let g = g[0].as_ref().expect("gradient");
        let (q, k, v) = (s.tensor(0), s.tensor(1), s.tensor(2));
        let how = call(q, k, s.args[0] == 1);
        cx.attention_work(op, q, how.kv_len, true);
        let grads: Vec<Tensor> = [q, k, v]
            .iter()
            .map(|t| cx.empty_like(op, t, t.dtype))
            .collect();
        let dout = padded(cx, g);
        let rows = how.batch * how.heads * how.q_len.next_multiple_of(128) * 4;
        let softmax_d = cx.raw(op, rows);
        let dq_accum = cx.raw(op, rows * how.flash_rounded_dim());
        // as many key heads as query heads, summed at the end
        let expanded = (how.heads != how.kv_heads).then(|| {
            let bytes = how.batch * how.kv_len * how.heads * how.head_dim * how.dtype.size();
            (cx.raw(op, bytes), cx.raw(op, bytes))
        });
        drop(expanded);
        drop(dq_accum);
        drop(softmax_d);
        drop(dout);
        let cut = |t: Tensor| {
            let shape = t.shape.with(-1, s.args[1]);
            if t.shape == shape {
                t
            } else {
                t.alias(shape, t.strides())
            }
        };
        wanted(s, grads.into_iter().map(|t| Some(cut(t))).collect())
    })
}
