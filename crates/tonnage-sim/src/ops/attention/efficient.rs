//! Memory-efficient attention (torch 2.11, transformers/cuda/attention.cu, attention_backward.cu, mem_eff_attention/kernel_backward.h).

use super::{call, head, lies_by_position, pad_last, wanted};
use crate::autograd::Grads;
use crate::context::Cx;
use crate::kernels::Steps;
use crate::ops::op::OpId;
use crate::ops::view::expand;
use crate::shape::{Shape, Strides};
use crate::tensor::Tensor;
use smallvec::SmallVec;
use tonnage_units::ScalarType::F32;

/// A mask whose rows do not all start at a multiple of 8 elements is copied with padded rows, then expanded to
/// (batch, heads, query length, key length) (attention.cpp, preprocess_mask).
fn aligned_mask(cx: &Cx, q: &Tensor, k: &Tensor, m: Tensor) -> Tensor {
    let n = m.shape.ndim();
    let aligned =
        m.strides()[..n - 1].iter().all(|s| s.is_multiple_of(8)) && m.strides()[n - 1] == 1;
    let full = Shape::new(&[q.size(0), q.size(1), q.size(2), k.size(2)]);
    let len = m.size(-1);
    if aligned {
        return expand(cx, &m, full);
    }
    let padded = pad_last(cx, &m);
    drop(m);
    let cut = head(cx, &padded, len);
    drop(padded);
    expand(cx, &cut, full)
}

/// A contiguous (batch, length, heads, size) seen as (batch, heads, length, size).
fn by_position(b: u64, h: u64, s: u64, d: u64) -> (Shape, Strides) {
    let mut st = Shape::new(&[b, s, h, d]).contiguous_strides();
    st.swap(1, 2);
    (Shape::new(&[b, h, s, d]), st)
}

/// The output is made as (batch, length, heads, size); logsumexp, rows padded to 32, only for training. Keeps mask, k, q, v,
/// logsumexp, output (the rng state is on the CPU).
pub(super) fn efficient(
    cx: &Cx,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<Tensor>,
    dropout: f64,
    train: bool,
) -> Tensor {
    let op = OpId::SDPA_EFFICIENT;
    let mask = mask.map(|m| aligned_mask(cx, q, k, m));
    let mut n = match &mask {
        Some(m) => cx.node(op, &[q, k, v, m]),
        None => cx.node(op, &[q, k, v]),
    };
    n.args([(dropout > 0.0) as u64, 0, 0, 0, 0, 0]);
    match &mask {
        Some(m) => n.save(cx, m),
        None => n.skip(),
    }
    for t in [k, q, v] {
        n.save(cx, t);
    }
    let (b, h, s, dv) = (q.size(0), q.size(1), q.size(2), v.size(3));
    let rows = Shape::new(&[b, h, s.next_multiple_of(32)]);
    let steps = call(q, k, dv, dropout).efficient_forward(train);
    let outputs = cx.kept(op, || {
        cx.attention_work(op, q, k.size(2), false);
        cx.play(op, &steps, |i| {
            if i == 0 {
                let (shape, st) = by_position(b, h, s, dv);
                (shape, st, q.dtype)
            } else {
                (rows, rows.contiguous_strides(), F32)
            }
        })
    });
    let mut outputs = outputs.into_iter();
    let y = outputs.next().expect("output");
    let lse = outputs.next();
    match &lse {
        Some(t) => n.save(cx, t),
        None => n.skip(),
    }
    n.save(cx, &y);
    drop(lse);
    n.finish(cx, y, |cx, s, g| -> Grads {
        let op = OpId::SDPA_EFFICIENT_BACKWARD;
        let g = g[0].as_ref().expect("gradient");
        let (k, q, v) = (s.tensor(1), s.tensor(2), s.tensor(3));
        let (b, h, len, d, dv) = (q.size(0), q.size(1), q.size(2), q.size(3), v.size(3));
        cx.attention_work(op, q, k.size(2), true);
        let copy = (!lies_by_position(g)).then(|| cx.raw(op, g.nbytes()));
        let mut grads: SmallVec<[Tensor; 4]> = SmallVec::new();
        for t in [q, k, v] {
            let (shape, st) = by_position(b, t.size(1), t.size(2), t.size(3));
            grads.push(cx.empty_strided(op, shape, st, t.dtype));
        }
        if s.need.get(3) == Some(&true) {
            // rows of the mask's gradient are padded to 16 elements
            let m = s.tensor(0);
            let t = cx.empty(
                op,
                m.shape.with(-1, m.size(-1).next_multiple_of(16)),
                m.dtype,
            );
            grads.push(t.alias(m.shape, t.strides()));
        }
        let mut delta = None;
        if q.dtype != F32 {
            delta = Some(cx.raw(op, b * h * len * 4));
        } else {
            // (gradient * output).sum(-1), then contiguous with the heads first
            let product = cx.raw(op, b * h * len * dv * 4);
            let sum = cx.raw(op, b * h * len * 4);
            if len > 1 && h > 1 {
                delta = Some(cx.raw(op, b * h * len * 4));
                drop(sum);
            } else {
                delta.replace(sum);
            }
            drop(product);
        }
        let steps = call(q, k, d.max(dv), s.args[0] as f64);
        let steps = cx.script(steps, |call, card| {
            Steps::block(call.efficient_workspace(card))
        });
        let workspace = cx.raw(op, steps.peak_temporary_bytes());
        cx.note_played(&steps, std::iter::once(workspace.id));
        drop(delta);
        drop(workspace);
        drop(copy);
        wanted(s, grads.into_iter().map(Some).collect())
    })
}
