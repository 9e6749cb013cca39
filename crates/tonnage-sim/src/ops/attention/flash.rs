//! Flash attention (torch 2.11, transformers/cuda/attention.cu, attention_backward.cu, flash_attn/flash_api.cpp).

use super::{call, head, layout_like, lies_by_position, pad_last, wanted};
use crate::autograd::Grads;
use crate::context::Cx;
use crate::ops::op::OpId;
use crate::shape::Shape;
use crate::tensor::Tensor;
use tonnage_units::ScalarType::{F32, I64};

/// A head size that is no multiple of 8 is padded around the kernel, with nodes of their own (attention.cpp, pad_last_dim).
pub(super) fn flash(cx: &Cx, q: &Tensor, k: &Tensor, v: &Tensor, dropout: f64) -> Tensor {
    let d = q.size(3);
    if d.is_multiple_of(8) {
        return kernel(cx, q, k, v, dropout);
    }
    let q = pad_last(cx, q);
    let k = pad_last(cx, k);
    let v = pad_last(cx, v);
    let y = kernel(cx, &q, &k, &v, dropout);
    drop((q, k, v));
    head(cx, &y, d)
}

/// The output lies in memory as q does. Keeps k, q, v, logsumexp, output, rng state, an unused scalar.
fn kernel(cx: &Cx, q: &Tensor, k: &Tensor, v: &Tensor, dropout: f64) -> Tensor {
    let op = OpId::SDPA_FLASH;
    let mut n = cx.node(op, &[q, k, v]);
    n.args([(dropout > 0.0) as u64, 0, 0, 0, 0, 0]);
    for t in [k, q, v] {
        n.save(cx, t);
    }
    let st = layout_like(q, q.size(3));
    let rows = Shape::new(&[q.size(0), q.size(1), q.size(2)]);
    let steps = cx.script(call(q, k, q.size(3), dropout), |call, card| {
        call.flash_forward(card)
    });
    let outputs = cx.kept(op, || {
        cx.attention_work(op, q, k.size(2), false);
        cx.play(op, &steps, |i| match i {
            0 => (q.shape, st, q.dtype),
            1 => (rows, rows.contiguous_strides(), F32),
            _ => (
                Shape::new(&[4 - i as u64]),
                Shape::new(&[1]).contiguous_strides(),
                I64,
            ),
        })
    });
    let mut outputs = outputs.into_iter();
    let y = outputs.next().expect("output");
    let rest: smallvec::SmallVec<[Tensor; 4]> = outputs.collect();
    let [lse, rng, unused] = &rest[..] else {
        unreachable!("flash attention has four results")
    };
    for t in [lse, &y, rng, unused] {
        n.save(cx, t);
    }
    drop(rest);
    n.finish(cx, y, |cx, s, g| -> Grads {
        let g = g[0].as_ref().expect("gradient");
        let (k, q, v, out) = (s.tensor(0), s.tensor(1), s.tensor(2), s.tensor(4));
        cx.attention_work(OpId::SDPA_FLASH_BACKWARD, q, k.size(2), true);
        let steps = call(q, k, q.size(3), s.args[0] as f64)
            .flash_backward(!lies_by_position(g), !lies_by_position(out));
        let grads = cx.play(OpId::SDPA_FLASH_BACKWARD, &steps, |i| {
            let t = [q, k, v][i];
            (t.shape, layout_like(t, t.size(3)), t.dtype)
        });
        wanted(s, grads.into_iter().map(Some).collect())
    })
}
