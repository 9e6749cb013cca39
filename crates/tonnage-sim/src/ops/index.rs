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
        let to = s.inputs[0];
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
        let steps = index_put_accumulate(count as u64, n, slots, traced, &cx.device().kernel);
        cx.play(OpId::INDEX, &steps, |_| (to.shape, to.strides, dtype));
        drop(zeros);
        smallvec![Some(y)]
    })
}
