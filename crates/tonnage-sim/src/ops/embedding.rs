//! Table lookup (torch 2.11, aten/src/ATen/native/Embedding.cpp, cuda/Embedding.cu).

use crate::autograd::Grads;
use crate::context::Cx;
use crate::kernels::embedding_dense_backward;
use crate::ops::op::OpId;
use crate::ops::view::reshape_raw;
use crate::shape::Shape;
use crate::tensor::Tensor;
use smallvec::{SmallVec, smallvec};

/// `F.embedding(ids, w)` with a dense gradient; keeps the ids.
pub fn embedding(cx: &Cx, ids: &Tensor, w: &Tensor) -> Tensor {
    let mut n = cx.node(OpId::EMBEDDING, &[w]);
    n.save(cx, ids);
    // weight.index_select(0, ids.reshape(-1)).view(...)
    let flat = (ids.shape.ndim() != 1).then(|| reshape_raw(cx, ids, Shape::new(&[ids.numel()])));
    let mut dims: SmallVec<[u64; 6]> = ids.shape.dims().iter().map(|d| *d as u64).collect();
    dims.push(w.size(1));
    let y = cx.empty(OpId::EMBEDDING, Shape::new(&dims), w.dtype);
    drop(flat);
    n.finish(cx, y, |cx, s, g| -> Grads {
        let g = g[0].take().expect("gradient");
        let ids = s.tensor(0);
        let table = s.inputs[0].shape;
        let contiguous = (g.is_contiguous(), ids.is_contiguous());
        let steps = cx.script(
            (
                ids.numel(),
                table.size(0),
                table.size(1),
                g.dtype,
                contiguous,
            ),
            |(n, rows, width, dtype, (g, ids)), card| {
                embedding_dense_backward(*n, *rows, *width, *dtype, *g, *ids, card)
            },
        );
        let dtype = g.dtype;
        let mut out = cx.play(OpId::EMBEDDING_BACKWARD, &steps, |_| {
            (table, table.contiguous_strides(), dtype)
        });
        smallvec![Some(out.remove(0))]
    })
}
