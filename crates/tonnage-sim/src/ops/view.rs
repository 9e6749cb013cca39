//! Views, copies that change the layout, and joins (torch 2.11, aten/src/ATen/native/TensorShape.cpp).

use crate::autograd::Grads;
use crate::context::Cx;
use crate::ops::op::OpId;
use crate::ops::sum_to;
use crate::shape::{MAX_DIMS, Shape, view_strides};
use crate::tensor::Tensor;
use smallvec::{SmallVec, smallvec};
use tonnage_units::ScalarType;

// ---- without history ------------------------------------------------------------------------------------------------------

/// `x.reshape(shape)` without history: a view where the strides allow it, else a contiguous copy (which is no view).
pub fn reshape_raw(cx: &Cx, x: &Tensor, shape: Shape) -> Tensor {
    debug_assert_eq!(
        x.numel(),
        shape.numel(),
        "reshape of {x:?} to {:?}",
        shape.dims()
    );
    x.viewed(shape)
        .unwrap_or_else(|| cx.empty(OpId::CLONE, shape, x.dtype))
}

/// `x.contiguous()` without history: `x` itself where it is contiguous.
pub fn contiguous_raw(cx: &Cx, x: &Tensor) -> Tensor {
    if x.is_contiguous() {
        x.detach()
    } else {
        cx.empty(OpId::CLONE, x.shape, x.dtype)
    }
}

/// `x.transpose(a, b)` without history.
pub fn transpose_raw(x: &Tensor, a: isize, b: isize) -> Tensor {
    let (a, b) = (x.shape.index(a), x.shape.index(b));
    let (mut order, n) = identity(x.shape.ndim());
    order.swap(a, b);
    permute_raw(x, &order[..n])
}

/// `x.permute(order)` without history.
pub fn permute_raw(x: &Tensor, order: &[usize]) -> Tensor {
    let mut d = [0u64; MAX_DIMS];
    let mut st = [0u64; MAX_DIMS];
    let of = x.strides();
    for (i, k) in order.iter().enumerate() {
        d[i] = x.shape.dims()[*k] as u64;
        st[i] = of[*k];
    }
    x.alias(Shape::new(&d[..order.len()]), st)
}

fn identity(n: usize) -> ([usize; MAX_DIMS], usize) {
    let mut o = [0; MAX_DIMS];
    for (i, k) in o.iter_mut().enumerate() {
        *k = i;
    }
    (o, n)
}

fn narrow_raw(x: &Tensor, dim: usize, len: u64) -> Tensor {
    x.alias(x.shape.with(dim as isize, len), x.strides())
}

pub(crate) fn select_raw(x: &Tensor, dim: usize) -> Tensor {
    let mut st = x.strides();
    st.copy_within(dim + 1.., dim);
    x.alias(x.shape.without(dim as isize), st)
}

pub(crate) fn unsqueeze_raw(x: &Tensor, dim: usize) -> Tensor {
    let mut st = x.strides();
    let s = if dim < x.shape.ndim() {
        x.shape.dims()[dim] as u64 * x.strides()[dim]
    } else {
        1
    };
    st.copy_within(dim..MAX_DIMS - 1, dim + 1);
    st[dim] = s;
    x.alias(x.shape.insert(dim, 1), st)
}

/// A new contiguous tensor for a list joined along an existing dimension.
fn cat_raw(cx: &Cx, op: OpId, xs: &[&Tensor], dim: usize) -> Tensor {
    let total = xs.iter().map(|x| x.shape.dims()[dim] as u64).sum();
    cx.empty(op, xs[0].shape.with(dim as isize, total), joined_dtype(xs))
}

fn joined_dtype(xs: &[&Tensor]) -> ScalarType {
    xs.iter().skip(1).fold(xs[0].dtype, |d, x| {
        crate::ops::pointwise::promote_types(d, x.dtype)
    })
}

/// The gradient of a view that only changed the sizes.
fn reshape_backward(cx: &Cx, to: Shape, grads: &Grads) -> Grads {
    smallvec![grads[0].as_ref().map(|g| reshape_raw(cx, g, to))]
}

// ---- views ----------------------------------------------------------------------------------------------------------------

/// `x.view(shape)`; the strides must allow it.
pub fn view(cx: &Cx, x: &Tensor, shape: Shape) -> Tensor {
    debug_assert_eq!(
        x.numel(),
        shape.numel(),
        "view of {x:?} as {:?}",
        shape.dims()
    );
    let y = x.viewed(shape);
    debug_assert!(
        y.is_some(),
        "view of {x:?} (strides {:?}) as {:?}",
        x.strides(),
        shape.dims()
    );
    let n = cx.node(OpId::VIEW, &[x]);
    let y = y.unwrap_or_else(|| x.alias_contiguous(shape));
    n.finish(cx, y, |cx, s, g| reshape_backward(cx, s.inputs[0].shape, g))
}

/// `torch._unsafe_view(x, shape)`: as [`view`], but the result counts as no view of `x`.
pub fn unsafe_view(cx: &Cx, x: &Tensor, shape: Shape) -> Tensor {
    debug_assert_eq!(
        x.numel(),
        shape.numel(),
        "view of {x:?} as {:?}",
        shape.dims()
    );
    let n = cx.node(OpId::VIEW, &[x]);
    let mut y = x.viewed(shape).unwrap_or_else(|| x.alias_contiguous(shape));
    y.view = x.view;
    n.finish(cx, y, |cx, s, g| reshape_backward(cx, s.inputs[0].shape, g))
}

/// `x.reshape(shape)`: a view, or a contiguous clone with an unsafe view of it.
pub fn reshape(cx: &Cx, x: &Tensor, shape: Shape) -> Tensor {
    if x.layout()
        .is_none_or(|st| view_strides(&x.shape, st, &shape).is_some())
    {
        return view(cx, x, shape);
    }
    let c = clone_contiguous(cx, x);
    unsafe_view(cx, &c, shape)
}

/// `x.flatten(start, end)`, both included.
pub fn flatten(cx: &Cx, x: &Tensor, start: isize, end: isize) -> Tensor {
    let (a, b) = (x.shape.index(start), x.shape.index(end));
    if a == b {
        return x.clone();
    }
    let d = x.shape.dims();
    let mut v: SmallVec<[u64; MAX_DIMS]> = d[..a].iter().map(|d| *d as u64).collect();
    v.push(d[a..=b].iter().map(|d| *d as u64).product());
    v.extend(d[b + 1..].iter().map(|d| *d as u64));
    reshape(cx, x, Shape::new(&v))
}

/// `x.clone(memory_format=torch.contiguous_format)`.
pub fn clone_contiguous(cx: &Cx, x: &Tensor) -> Tensor {
    let n = cx.node(OpId::CLONE, &[x]);
    let y = cx.empty(OpId::CLONE, x.shape, x.dtype);
    n.finish(cx, y, |_, _, g| smallvec![g[0].clone()])
}

/// `x.contiguous()`: `x` itself, or a copy.
pub fn contiguous(cx: &Cx, x: &Tensor) -> Tensor {
    if x.is_contiguous() {
        x.clone()
    } else {
        clone_contiguous(cx, x)
    }
}

/// A view of everything, as indexing with full slices gives.
pub fn alias(cx: &Cx, x: &Tensor) -> Tensor {
    let n = cx.node(OpId::VIEW, &[x]);
    n.finish(cx, x.alias(x.shape, x.strides()), |_, _, g| {
        smallvec![g[0].clone()]
    })
}

/// `x.transpose(a, b)`.
pub fn transpose(cx: &Cx, x: &Tensor, a: isize, b: isize) -> Tensor {
    let mut n = cx.node(OpId::TRANSPOSE, &[x]);
    n.args([x.shape.index(a) as u64, x.shape.index(b) as u64, 0, 0, 0, 0]);
    n.finish(cx, transpose_raw(x, a, b), |_, s, g| {
        let (a, b) = (s.args[0] as isize, s.args[1] as isize);
        smallvec![g[0].as_ref().map(|g| transpose_raw(g, a, b))]
    })
}

/// `x.permute(order)`.
pub fn permute(cx: &Cx, x: &Tensor, order: &[usize]) -> Tensor {
    let mut n = cx.node(OpId::PERMUTE, &[x]);
    let mut inverse = [0u64; 6];
    for (i, k) in order.iter().enumerate() {
        inverse[*k] = i as u64;
    }
    n.args(inverse);
    n.finish(cx, permute_raw(x, order), |_, s, g| {
        smallvec![g[0].as_ref().map(|g| {
            let inverse: SmallVec<[usize; MAX_DIMS]> = s.args[..g.shape.ndim()]
                .iter()
                .map(|i| *i as usize)
                .collect();
            permute_raw(g, &inverse)
        })]
    })
}

/// `x.narrow(dim, start, len)`: also a node where it takes everything. Its gradient is one tensor of zeros of the full size.
pub fn narrow(cx: &Cx, x: &Tensor, dim: isize, _start: u64, len: u64) -> Tensor {
    debug_assert!(
        _start + len <= x.size(dim),
        "narrow {_start}+{len} of {x:?}"
    );
    let n = cx.node(OpId::SLICE, &[x]);
    n.finish(cx, narrow_raw(x, x.shape.index(dim), len), |cx, s, g| {
        smallvec![
            g[0].as_ref()
                .map(|g| cx.empty(OpId::SLICE_BACKWARD, s.inputs[0].shape, g.dtype))
        ]
    })
}

/// `x[..., start::step]` on the last dimension, whose size is a multiple of `step`.
pub fn every(cx: &Cx, x: &Tensor, step: u64) -> Tensor {
    let n = cx.node(OpId::SLICE, &[x]);
    let last = x.shape.ndim() - 1;
    let mut st = x.strides();
    st[last] *= step;
    let y = x.alias(x.shape.with(-1, x.size(-1) / step), st);
    n.finish(cx, y, |cx, s, g| {
        smallvec![
            g[0].as_ref()
                .map(|g| cx.empty(OpId::SLICE_BACKWARD, s.inputs[0].shape, g.dtype))
        ]
    })
}

/// `x[..., start:start+len]` on dimension `dim`: Python's indexing leaves out a slice that takes everything
/// (torch 2.11, aten/src/ATen/TensorIndexing.h, applySlice) and gives an alias.
pub fn slice(cx: &Cx, x: &Tensor, dim: isize, start: u64, len: u64) -> Tensor {
    if start == 0 && len == x.size(dim) {
        alias(cx, x)
    } else {
        narrow(cx, x, dim, start, len)
    }
}

/// `x.select(dim, i)`, of which the index does not matter.
pub fn select(cx: &Cx, x: &Tensor, dim: isize) -> Tensor {
    let n = cx.node(OpId::SELECT, &[x]);
    n.finish(cx, select_raw(x, x.shape.index(dim)), |cx, s, g| {
        smallvec![g[0].as_ref().map(|g| cx.empty(
            OpId::SELECT_BACKWARD,
            s.inputs[0].shape,
            g.dtype
        ))]
    })
}

/// `x.unsqueeze(dim)`; negative `dim` counts from the new end.
pub fn unsqueeze(cx: &Cx, x: &Tensor, dim: isize) -> Tensor {
    let k = if dim < 0 {
        (dim + x.shape.ndim() as isize + 1) as usize
    } else {
        dim as usize
    };
    let mut n = cx.node(OpId::UNSQUEEZE, &[x]);
    n.args([k as u64, 0, 0, 0, 0, 0]);
    n.finish(cx, unsqueeze_raw(x, k), |_, s, g| {
        smallvec![g[0].as_ref().map(|g| select_raw(g, s.args[0] as usize))]
    })
}

/// `x.squeeze(dim)`; a dimension that is not 1 stays, but the result is a view all the same.
pub fn squeeze(cx: &Cx, x: &Tensor, dim: isize) -> Tensor {
    let k = x.shape.index(dim);
    if x.shape.dims()[k] != 1 {
        return alias(cx, x);
    }
    let mut n = cx.node(OpId::SQUEEZE, &[x]);
    n.args([k as u64, 0, 0, 0, 0, 0]);
    n.finish(cx, select_raw(x, k), |_, s, g| {
        smallvec![g[0].as_ref().map(|g| unsqueeze_raw(g, s.args[0] as usize))]
    })
}

/// `x.expand(shape)` (torch 2.11, aten/src/ATen/ExpandUtils.cpp, inferExpandGeometry).
pub fn expand(cx: &Cx, x: &Tensor, shape: Shape) -> Tensor {
    let n = cx.node(OpId::EXPAND, &[x]);
    n.finish(cx, expand_raw(x, shape), |cx, s, g| {
        smallvec![g[0].as_ref().map(|g| if g.shape == s.inputs[0].shape {
            g.clone()
        } else {
            sum_to(cx, g, s.inputs[0].shape)
        })]
    })
}

/// `x.expand(shape)` without history.
pub fn expand_raw(x: &Tensor, shape: Shape) -> Tensor {
    let (n, m) = (shape.ndim(), x.shape.ndim());
    let mut st = [0u64; MAX_DIMS];
    for i in (0..n).rev() {
        let to = shape.dims()[i] as u64;
        let (size, stride) = if i + m >= n {
            (x.shape.dims()[i + m - n] as u64, x.strides()[i + m - n])
        } else {
            (
                1,
                if i + 1 < n {
                    shape.dims()[i + 1] as u64 * st[i + 1]
                } else {
                    1
                },
            )
        };
        debug_assert!(
            size == to || size == 1,
            "expand {x:?} to {:?}",
            shape.dims()
        );
        st[i] = if size == to { stride } else { 0 };
    }
    x.alias(shape, st)
}

// ---- lists ----------------------------------------------------------------------------------------------------------------

/// `x.split(sizes, dim)`; the gradient joins the pieces' gradients, with zeros for pieces that got none
/// (torch 2.11, torch/csrc/autograd/FunctionsManual.cpp, split_with_sizes_backward).
pub fn split(cx: &Cx, x: &Tensor, sizes: &[u64], dim: isize) -> SmallVec<[Tensor; 4]> {
    let k = x.shape.index(dim);
    debug_assert_eq!(
        sizes.iter().sum::<u64>(),
        x.size(dim),
        "split of {x:?} into {sizes:?}"
    );
    let mut n = cx.node(OpId::SPLIT, &[x]);
    n.args([k as u64, 0, 0, 0, 0, 0]);
    let mut ys: SmallVec<[Tensor; 4]> = sizes.iter().map(|len| narrow_raw(x, k, *len)).collect();
    n.finish_many(cx, &mut ys, |cx, s, g| {
        let dtype = s.inputs[0].dtype;
        let mut zeros: SmallVec<[Tensor; 4]> = SmallVec::new();
        for (g, m) in g.iter().zip(&s.outputs) {
            if g.is_none() {
                zeros.push(cx.empty(OpId::ZEROS, m.shape, dtype));
            }
        }
        let first = g.iter().flatten().next();
        let dtype = first.map_or(dtype, |g| g.dtype);
        let joined = cx.empty(OpId::CAT, s.inputs[0].shape, dtype);
        zeros.into_iter().for_each(drop);
        smallvec![Some(joined)]
    });
    ys
}

/// `x.chunk(n, dim)`.
pub fn chunk(cx: &Cx, x: &Tensor, n: u64, dim: isize) -> SmallVec<[Tensor; 4]> {
    let total = x.size(dim);
    let each = total.div_ceil(n.max(1)).max(1);
    let mut sizes: SmallVec<[u64; 4]> = SmallVec::new();
    let mut left = total;
    while left > 0 {
        sizes.push(each.min(left));
        left -= each.min(left);
    }
    split(cx, x, &sizes, dim)
}

/// `x.unbind(dim)`; the gradient stacks the pieces' gradients (FunctionsManual.cpp, unbind_backward: one zero for each missing one).
pub fn unbind(cx: &Cx, x: &Tensor, dim: isize) -> SmallVec<[Tensor; 4]> {
    let k = x.shape.index(dim);
    let n = cx.node(OpId::UNBIND, &[x]);
    let mut ys: SmallVec<[Tensor; 4]> = (0..x.size(dim)).map(|_| select_raw(x, k)).collect();
    n.finish_many(cx, &mut ys, |cx, s, g| {
        let Some(dtype) = g.iter().flatten().next().map(|g| g.dtype) else {
            return smallvec![None];
        };
        let zeros: SmallVec<[Tensor; 4]> = g
            .iter()
            .filter(|g| g.is_none())
            .map(|_| cx.empty(OpId::ZEROS, Shape::new(&[]), dtype))
            .collect();
        let y = cx.empty(OpId::STACK, s.inputs[0].shape, dtype);
        zeros.into_iter().for_each(drop);
        smallvec![Some(y)]
    });
    ys
}

/// `torch.cat(xs, dim)`: contiguous; the gradients are narrowed views of the incoming one.
pub fn cat(cx: &Cx, xs: &[&Tensor], dim: isize) -> Tensor {
    let k = xs[0].shape.index(dim);
    let mut n = cx.node(OpId::CAT, xs);
    n.args([k as u64, 0, 0, 0, 0, 0]);
    let y = cat_raw(cx, OpId::CAT, xs, k);
    n.finish(cx, y, |_, s, g| {
        let Some(g) = &g[0] else {
            return smallvec![None];
        };
        let k = s.args[0] as usize;
        s.inputs
            .iter()
            .zip(&s.need)
            .map(|(m, need)| need.then(|| narrow_raw(g, k, m.shape.dims()[k] as u64)))
            .collect()
    })
}

/// `torch.stack(xs, dim)`; the gradients are views of the incoming one.
pub fn stack(cx: &Cx, xs: &[&Tensor], dim: isize) -> Tensor {
    let k = if dim < 0 {
        (dim + xs[0].shape.ndim() as isize + 1) as usize
    } else {
        dim as usize
    };
    let mut n = cx.node(OpId::STACK, xs);
    n.args([k as u64, 0, 0, 0, 0, 0]);
    let y = cx.empty(
        OpId::STACK,
        xs[0].shape.insert(k, xs.len() as u64),
        joined_dtype(xs),
    );
    n.finish(cx, y, |_, s, g| {
        let Some(g) = &g[0] else {
            return smallvec![None];
        };
        s.need
            .iter()
            .map(|need| need.then(|| select_raw(g, s.args[0] as usize)))
            .collect()
    })
}

/// Repeats each key/value head `n` times, (batch, heads, length, size) -> (batch, heads * n, length, size), as the models of
/// transformers do in eager attention: itself for 1, else unsqueeze, expand, reshape.
pub fn repeat_kv(cx: &Cx, x: &Tensor, n: u64) -> Tensor {
    if n == 1 {
        return x.clone();
    }
    let (b, h, l, d) = (x.size(0), x.size(1), x.size(2), x.size(3));
    let u = unsqueeze(cx, x, 2);
    let e = expand(cx, &u, Shape::new(&[b, h, n, l, d]));
    drop(u);
    reshape(cx, &e, Shape::new(&[b, h * n, l, d]))
}
