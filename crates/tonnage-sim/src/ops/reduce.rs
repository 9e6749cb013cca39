//! Sums and means (torch 2.11, aten/src/ATen/native/ReduceOps.cpp, cuda/Reduce.cuh; backward: torch/csrc/autograd/FunctionsManual.cpp).

use crate::autograd::{Form, Grads};
use crate::context::Cx;
use crate::kernels::{ReduceOp, Strided, reduce};
use crate::ops::op::OpId;
use crate::shape::{MAX_DIMS, Shape, Strides, view_strides};
use crate::tensor::Tensor;
use smallvec::{SmallVec, smallvec};
use tonnage_units::ScalarType;

/// A tensor as the kernel rules see it (every tensor here starts at its storage's start).
pub(crate) fn strided(t: &Tensor) -> Strided {
    let shape: SmallVec<[u64; MAX_DIMS]> = t.shape.dims().iter().map(|d| *d as u64).collect();
    Strided::new(&shape, &t.strides()[..shape.len()], 0)
}

/// One bit a reduced dimension; an empty list means all of them.
fn mask(shape: &Shape, dims: &[isize]) -> u64 {
    if dims.is_empty() {
        return (1 << shape.ndim()) - 1;
    }
    dims.iter().fold(0, |m, d| m | 1 << shape.index(*d))
}

/// The shape that is left when the dimensions in `bits` are reduced.
fn reduced_shape(shape: &Shape, bits: u64, keepdim: bool) -> Shape {
    let mut v: SmallVec<[u64; MAX_DIMS]> = SmallVec::new();
    for (i, d) in shape.dims().iter().enumerate() {
        if bits >> i & 1 == 0 {
            v.push(*d as u64);
        } else if keepdim {
            v.push(1);
        }
    }
    Shape::new(&v)
}

/// One reduction without history: the result, then the launcher's scratch.
pub(crate) fn reduce_raw(
    cx: &Cx,
    op: OpId,
    kind: ReduceOp,
    x: &Tensor,
    bits: u64,
    keepdim: bool,
    out: ScalarType,
) -> Tensor {
    let shape = reduced_shape(&x.shape, bits, keepdim);
    let steps = cx.script(
        (kind, strided(x), x.dtype, bits, keepdim, out),
        |(kind, x, dtype, bits, keepdim, out), card| {
            reduce(*kind, x, *dtype, *bits, *keepdim, *out, card)
        },
    );
    let mut y = cx.play(op, &steps, |_| (shape, shape.contiguous_strides(), out));
    y.remove(0)
}

/// `g`, of the reduced shape, expanded back to `to`: a view with stride 0 along the reduced dimensions.
fn expand_back(g: &Tensor, to: &Form, bits: u64, keepdim: bool) -> Tensor {
    let mut st: Strides = [0; MAX_DIMS];
    let mut k = 0;
    for (i, slot) in st.iter_mut().enumerate().take(to.shape.ndim()) {
        if bits >> i & 1 == 1 {
            k += keepdim as usize;
        } else {
            *slot = g.strides()[k];
            k += 1;
        }
    }
    g.alias(to.shape, st)
}

/// `x.sum(dims, keepdim)`; an empty `dims` sums everything. Autocast asks for an fp32 result (autocast_mode.h, fp32_set_opt_dtype).
pub fn sum(cx: &Cx, x: &Tensor, dims: &[isize], keepdim: bool) -> Tensor {
    let raised = cx.autocast_dtype().is_some() && x.dtype.is_float() && x.dtype != ScalarType::F64;
    let out = match x.dtype {
        _ if raised => ScalarType::F32,
        d if d.is_float() => d,
        _ => ScalarType::I64,
    };
    let bits = mask(&x.shape, dims);
    let mut n = cx.node(OpId::SUM, &[x]);
    n.args([bits, keepdim as u64, 0, 0, 0, 0]);
    let y = reduce_raw(cx, OpId::SUM, ReduceOp::Sum, x, bits, keepdim, out);
    n.finish(cx, y, |_, s, g| {
        let g = g[0].take().expect("gradient");
        smallvec![Some(expand_back(
            &g,
            &s.inputs[0],
            s.args[0],
            s.args[1] == 1
        ))]
    })
}

/// `x.all()` over everything.
pub fn all(cx: &Cx, x: &Tensor) -> Tensor {
    let bits = mask(&x.shape, &[]);
    reduce_raw(
        cx,
        OpId::ALL,
        ReduceOp::AnyAll,
        x,
        bits,
        false,
        ScalarType::Bool,
    )
}

/// `x.max()` over everything.
pub fn max(cx: &Cx, x: &Tensor) -> Tensor {
    let bits = mask(&x.shape, &[]);
    reduce_raw(cx, OpId::MAX, ReduceOp::Extreme, x, bits, false, x.dtype)
}

/// `torch.argmax(x, dim)`: int64.
pub fn argmax(cx: &Cx, x: &Tensor, dim: isize) -> Tensor {
    let bits = mask(&x.shape, &[dim]);
    let (kind, out) = (ReduceOp::ArgExtreme, ScalarType::I64);
    reduce_raw(cx, OpId::ARGMAX, kind, x, bits, false, out)
}

/// `x.mean(dims, keepdim)`; an empty `dims` takes everything. Backward: expanded view, then a division into a full tensor.
pub fn mean(cx: &Cx, x: &Tensor, dims: &[isize], keepdim: bool) -> Tensor {
    let bits = mask(&x.shape, dims);
    let mut n = cx.node(OpId::MEAN, &[x]);
    n.args([bits, keepdim as u64, 0, 0, 0, 0]);
    let y = reduce_raw(cx, OpId::MEAN, ReduceOp::Mean, x, bits, keepdim, x.dtype);
    n.finish(cx, y, |cx, s, g| -> Grads {
        let g = g[0].take().expect("gradient");
        let wide = expand_back(&g, &s.inputs[0], s.args[0], s.args[1] == 1);
        let y = cx.empty_like(OpId::DIV, &wide, wide.dtype);
        drop(wide);
        drop(g);
        smallvec![Some(y)]
    })
}

/// `torch.linalg.norm(x, dim)` (linalg_vector_norm) without history. Autocast asks for an fp32 result.
pub fn vector_norm(cx: &Cx, x: &Tensor, dims: &[isize]) -> Tensor {
    let raised = cx.autocast_dtype().is_some() && x.dtype.is_float() && x.dtype != ScalarType::F64;
    let out = if raised { ScalarType::F32 } else { x.dtype };
    reduce_raw(
        cx,
        OpId::NORM,
        ReduceOp::Norm,
        &x.detach(),
        mask(&x.shape, dims),
        false,
        out,
    )
}

/// `at::sum_to`: a broadcast gradient back to `shape`. Leading and size-1 dimensions go in one kernel, the result is viewed
/// (aten/src/ATen/ExpandUtils.h).
pub fn sum_to(cx: &Cx, t: &Tensor, shape: Shape) -> Tensor {
    let lead = t.shape.ndim() - shape.ndim();
    let mut bits = (1u64 << lead) - 1;
    for i in lead..t.shape.ndim() {
        if shape.dims()[i - lead] == 1 && t.shape.dims()[i] != 1 {
            bits |= 1 << i;
        }
    }
    let y = if bits == 0 {
        t.clone_no_edge()
    } else {
        reduce_raw(cx, OpId::SUM, ReduceOp::Sum, t, bits, true, t.dtype)
    };
    if lead == 0 {
        return y;
    }
    let st =
        view_strides(&y.shape, &y.strides(), &shape).unwrap_or_else(|| shape.contiguous_strides());
    y.alias(shape, st)
}
