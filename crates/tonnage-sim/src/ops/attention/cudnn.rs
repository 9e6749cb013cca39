//! cuDNN attention (torch 2.11, transformers/cuda/attention.cu, native/cudnn/MHA.cpp). The plans' own workspaces are not known: 0.

use super::{call, layout_like, wanted};
use crate::autograd::Grads;
use crate::context::Cx;
use crate::ops::op::OpId;
use crate::shape::{Shape, elementwise_strides};
use crate::tensor::Tensor;
use smallvec::smallvec;
use tonnage_units::ScalarType::{F32, I64};

/// Seed, offset, the output (it lies in memory as q does), and in training logsumexp. Keeps mask, k, q, v, logsumexp, output, offset, seed.
pub(super) fn cudnn(
    cx: &Cx,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    dropout: f64,
    train: bool,
) -> Tensor {
    let op = OpId::SDPA_CUDNN;
    let mut n = cx.node(op, &[q, k, v]);
    n.args([(dropout > 0.0) as u64, 0, 0, 0, 0, 0]);
    match mask {
        Some(m) => n.save(cx, m),
        None => n.skip(),
    }
    for t in [k, q, v] {
        n.save(cx, t);
    }
    let dv = v.size(3);
    let shape = q.shape.with(-1, dv);
    let st = if dv == q.size(3) && q.is_dense() {
        q.strides()
    } else {
        elementwise_strides(&shape, &[(&shape, &q.strides())])
    };
    let rows = Shape::new(&[q.size(0), q.size(1), q.size(2)]);
    let mut results = cx.kept(op, || {
        cx.attention_work(op, q, k.size(2), false);
        let seed = cx.empty(op, Shape::new(&[]), I64);
        let offset = cx.empty(op, Shape::new(&[]), I64);
        let y = cx.empty_strided(op, shape, st, q.dtype);
        let mut r = smallvec![seed, offset, y];
        r.extend(train.then(|| cx.empty(op, rows, F32)));
        r
    });
    let lse = train.then(|| results.pop()).flatten();
    let (seed, offset, y) = {
        let mut r = results.into_iter();
        let mut next = || r.next().expect("cuDNN attention has three results");
        (next(), next(), next())
    };
    match &lse {
        Some(t) => n.save(cx, t),
        None => n.skip(),
    }
    for t in [&y, &offset, &seed] {
        n.save(cx, t);
    }
    drop(lse);
    drop(seed);
    drop(offset);
    n.finish(cx, y, |cx, s, g| -> Grads {
        let op = OpId::SDPA_CUDNN_BACKWARD;
        let g = g[0].as_ref().expect("gradient");
        let (k, q, v) = (s.tensor(1), s.tensor(2), s.tensor(3));
        cx.attention_work(op, q, k.size(2), true);
        // an expanded gradient is copied
        let copy = (g.strides()[3] != 1).then(|| cx.raw(op, g.nbytes()));
        let steps = call(q, k, q.size(3), s.args[0] as f64).cudnn_backward();
        let grads = cx.play(op, &steps, |i| {
            let t = [q, k, v][i];
            (t.shape, layout_like(t, t.size(3)), t.dtype)
        });
        drop(copy);
        wanted(s, grads.into_iter().map(Some).collect())
    })
}
