//! What mixtures of experts use: `topk`, `sort`, grouped products (torch 2.11, aten/src/ATen/native/cuda/TensorTopK.cpp,
//! Sort.cpp, GroupedBlas.cpp; torch/csrc/autograd/FunctionsManual.cpp).

use crate::autograd::Grads;
use crate::context::{Accumulate, Cx};
use crate::kernels;
use crate::ops::op::OpId;
use crate::ops::pointwise::{out2, plain, promote};
use crate::shape::Shape;
use crate::tensor::Tensor;
use smallvec::smallvec;
use tonnage_units::ScalarType;

/// `torch.topk(x, k, dim=-1)`: values and int64 indices, which are kept.
pub fn topk(cx: &Cx, x: &Tensor, k: u64) -> (Tensor, Tensor) {
    let mut n = cx.node(OpId::TOPK, &[x]);
    let shape = x.shape.with(-1, k);
    let width = x.size(-1).max(1);
    let steps = cx.script(
        (x.numel() / width, width, x.dtype),
        |(n, width, dtype), card| kernels::topk(*n, *width, *dtype, card),
    );
    let mut ys = cx.play(OpId::TOPK, &steps, |i| {
        let dtype = if i == 0 { x.dtype } else { ScalarType::I64 };
        (shape, shape.contiguous_strides(), dtype)
    });
    let indices = ys.remove(1);
    let values = ys.remove(0);
    n.save(cx, &indices);
    let y = n.finish(cx, values, |cx, s, g| -> Grads {
        let to = s.inputs[0];
        let dtype = g[0].as_ref().map_or(to.dtype, |g| g.dtype);
        let zeros = cx.empty(OpId::ZEROS, to.shape, dtype);
        // `zeros.scatter_(...)`, out of place in a traced run
        smallvec![Some(if cx.0.accumulate == Accumulate::OutOfPlace {
            cx.empty(OpId::SCATTER, to.shape, dtype)
        } else {
            zeros
        })]
    });
    (y, indices)
}

/// `a /= b` where the gradient of `b` needs the old `a`, of which a clone is made.
pub fn div_(cx: &Cx, a: Tensor, b: &Tensor) -> Tensor {
    let mut n = cx.node(OpId::DIV, &[&a, b]);
    let old = n.need(1).then(|| plain(cx, OpId::CLONE, &a, a.dtype));
    n.save(cx, b);
    match &old {
        Some(old) => n.save(cx, old),
        None => n.skip(),
    }
    drop(old);
    n.finish(cx, a, |cx, s, g| -> Grads {
        let (g, b) = (g[0].as_ref().expect("gradient"), s.tensor(0));
        let other = s.need[1].then(|| {
            let a = s.tensor(1);
            let q = out2(cx, OpId::DIV, a, b, promote(a, b));
            let q2 = out2(cx, OpId::DIV, &q, b, promote(&q, b));
            let m = plain(cx, OpId::NEG, g, g.dtype);
            let r = out2(cx, OpId::MUL, &m, &q2, promote(&m, &q2));
            drop(m);
            drop(q2);
            drop(q);
            r
        });
        let own = s.need[0].then(|| out2(cx, OpId::DIV, g, b, promote(g, b)));
        smallvec![own, other]
    })
}

/// `torch.sort(x)` of a one-dimensional int64 tensor: values and indices.
pub fn sort(cx: &Cx, x: &Tensor) -> (Tensor, Tensor) {
    let steps = cx.script((x.numel(), x.dtype), |(n, dtype), card| {
        kernels::sort(1, *n, *dtype, card).expect("one row of int64 is covered")
    });
    let mut ys = cx.play(OpId::SORT, &steps, |i| {
        let dtype = if i == 0 { x.dtype } else { ScalarType::I64 };
        (x.shape, x.strides(), dtype)
    });
    let indices = ys.remove(1);
    (ys.remove(0), indices)
}

/// `F.grouped_mm(x, w, offs)`: `x` [S, in], `w` [groups, in, out] (also a transposed view), `offs` [groups]. Kept: mat2, offs,
/// self. Backward: the gradient of `w` first, in the layout of `w`.
pub fn grouped_mm(cx: &Cx, x: &Tensor, w: &Tensor, offs: &Tensor) -> Tensor {
    let mut n = cx.node(OpId::GROUPED_MM, &[x, w]);
    n.meta(w);
    let (need_x, need_w) = (n.need(0), n.need(1));
    n.save_if(cx, need_x, w);
    n.save(cx, offs);
    n.save_if(cx, need_w, x);
    cx.product_work(
        OpId::GROUPED_MM,
        x.dtype,
        [1, x.size(0), w.size(2), x.size(1)],
    );
    let y = product(cx, Shape::new(&[x.size(0), w.size(2)]), x.dtype, w.size(0));
    n.finish(cx, y, |cx, s, g| -> Grads {
        let g = g[0].take().expect("gradient");
        let (mx, mw) = (&s.inputs[0], &s.meta[0]);
        let groups = mw.shape.size(0);
        for _ in s.need.iter().filter(|n| **n) {
            cx.product_work(
                OpId::GROUPED_MM,
                g.dtype,
                [1, mx.shape.size(0), mw.shape.size(2), mx.shape.size(1)],
            );
        }
        let gw = s.need[1].then(|| {
            let mut st = mw.shape.contiguous_strides();
            let turned = mw.strides[1] == 1 && mw.strides[2] != 1;
            let t = product(cx, mw.shape, g.dtype, groups);
            if turned {
                (st[1], st[2]) = (1, mw.shape.size(1));
            }
            t.alias(mw.shape, st)
        });
        let gx = s.need[0].then(|| product(cx, mx.shape, g.dtype, groups));
        smallvec![gx, gw]
    })
}

fn product(cx: &Cx, shape: Shape, dtype: ScalarType, groups: u64) -> Tensor {
    let bf16 = dtype == ScalarType::BF16;
    let steps = cx.script((groups, bf16), |(groups, bf16), card| {
        kernels::grouped_mm(*groups, *bf16, card)
    });
    cx.play(OpId::GROUPED_MM, &steps, |_| {
        (shape, shape.contiguous_strides(), dtype)
    })
    .remove(0)
}
