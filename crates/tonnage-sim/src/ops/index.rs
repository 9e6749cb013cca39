//! Reading rows through index tensors (torch 2.11, aten/src/ATen/native/TensorAdvancedIndexing.cpp, cuda/Indexing.cu).

use crate::autograd::Grads;
use crate::context::{Accumulate, Cx};
use crate::kernels::index_put_accumulate;
use crate::ops::op::OpId;
use crate::shape::Shape;
use crate::tensor::Tensor;
use smallvec::{SmallVec, smallvec};
use tonnage_units::ScalarType;

/// The device copy of a Python list of `n` integers used as an index.
pub fn index_list(cx: &Cx, n: u64) -> Tensor {
    cx.empty(OpId::TO_COPY, Shape::new(&[n]), ScalarType::I64)
}

/// `x[..., indices, ...]` with the one-dimensional int64 tensors `indices` at the neighbouring dimensions from `dim` on; keeps
/// the indices, in order.
pub fn index(cx: &Cx, x: &Tensor, dim: isize, indices: &[&Tensor]) -> Tensor {
    let k = x.shape.index(dim);
    let n = indices[0].numel();
    let mut node = cx.node(OpId::INDEX, &[x]);
    node.meta(x);
    node.args([k as u64, n, indices.len() as u64, 0, 0, 0]);
    for i in indices {
        node.save(cx, i);
    }
    let d = x.shape.dims();
    let mut dims: SmallVec<[u64; 6]> = d[..k].iter().map(|d| *d as u64).collect();
    dims.push(n);
    dims.extend(d[k + indices.len()..].iter().map(|d| *d as u64));
    let y = cx.empty(OpId::INDEX, Shape::new(&dims), x.dtype);
    node.finish(cx, y, |cx, s, g| -> Grads {
        // zeros, and the gradient added into them; a traced run does so out of place and tests the indices' range
        let to = s.meta[0];
        let dtype = g[0].as_ref().map_or(to.dtype, |g| g.dtype);
        let (k, n, count) = (s.args[0] as usize, s.args[1], s.args[2] as usize);
        let slots = to.shape.dims()[k..k + count]
            .iter()
            .map(|d| *d as u64)
            .product();
        let traced = cx.0.accumulate == Accumulate::OutOfPlace;
        let zeros = cx.empty(OpId::ZEROS, to.shape, dtype);
        let y = if traced {
            cx.empty(OpId::INDEX, to.shape, dtype)
        } else {
            zeros.clone()
        };
        let steps = cx.script((count as u64, n, slots, traced), |a, card| {
            index_put_accumulate(a.0, a.1, a.2, a.3, card)
        });
        cx.play(OpId::INDEX, &steps, |_| (to.shape, to.strides, dtype));
        drop(zeros);
        smallvec![Some(y)]
    })
}

/// `x.gather(dim, index)`; keeps the index. Its gradient is added into zeros, in a traced run out of place
/// (torch/csrc/autograd/FunctionsManual.cpp, gather_backward of aten; case `deepseek-v3-tiny-plain-bf16-sdpa`).
pub fn gather(cx: &Cx, x: &Tensor, index: &Tensor) -> Tensor {
    let mut n = cx.node(OpId::GATHER, &[x]);
    n.save(cx, index);
    let y = cx.empty(OpId::GATHER, index.shape, x.dtype);
    n.finish(cx, y, |cx, s, g| -> Grads {
        let to = s.inputs[0];
        let dtype = g[0].as_ref().map_or(to.dtype, |g| g.dtype);
        let zeros = cx.empty(OpId::ZEROS, to.shape, dtype);
        smallvec![Some(if cx.0.accumulate == Accumulate::OutOfPlace {
            cx.empty(OpId::SCATTER, to.shape, dtype)
        } else {
            zeros
        })]
    })
}

/// `zeros.scatter_(1, index, source)`; keeps the index (case `gpt-oss-tiny-plain-bf16-eager-tf4.57.6`).
pub fn scatter_(cx: &Cx, zeros: Tensor, index: &Tensor, source: &Tensor) -> Tensor {
    let mut n = cx.node(OpId::SCATTER, &[source]);
    n.save(cx, index);
    n.finish(cx, zeros, |cx, s, g| -> Grads {
        let dtype = g[0].as_ref().map_or(s.inputs[0].dtype, |g| g.dtype);
        smallvec![Some(cx.empty(OpId::GATHER, s.inputs[0].shape, dtype))]
    })
}

/// `x.max(dim=-1, keepdim=True)`: values and int64 indices, which are kept (FunctionsManual.cpp,
/// value_selecting_reduction_backward).
pub fn max_last(cx: &Cx, x: &Tensor) -> (Tensor, Tensor) {
    crate::ops::topk(cx, x, 1)
}

/// `base[..., a:b].copy_(source)`: `base` with the history of the copy (torch 2.11, torch/csrc/autograd/functions/tensor.cpp,
/// CopySlices and CopyBackwards; case `deepseek-v3-tiny-plain-bf16-sdpa`).
pub fn copy_into(cx: &Cx, base: Tensor, source: &Tensor) -> Tensor {
    let n = cx.node(OpId::CLONE, &[&base, source]);
    n.finish(cx, base, |cx, s, g| -> Grads {
        let g = g[0].as_ref().expect("gradient");
        let (to, from) = (s.inputs[0], s.inputs[1]);
        let whole = cx.empty(OpId::CLONE, to.shape, g.dtype);
        let part = cx.empty(OpId::CLONE, from.shape, g.dtype);
        let zeros = s.need[0].then(|| cx.empty(OpId::ZEROS_LIKE, from.shape, g.dtype));
        let own = s.need[1].then(|| to_dtype_raw(cx, &part, from.dtype));
        drop(part);
        drop(zeros);
        smallvec![s.need[0].then_some(whole), own]
    })
}

fn to_dtype_raw(cx: &Cx, x: &Tensor, dtype: ScalarType) -> Tensor {
    if x.dtype == dtype {
        x.clone()
    } else {
        cx.empty(OpId::TO_COPY, x.shape, dtype)
    }
}
