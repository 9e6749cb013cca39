//! Complex products; a complex tensor stands as an fp32 one with pairs in its last dimension, which has the same bytes.

use crate::autograd::Grads;
use crate::context::Cx;
use crate::ops::op::OpId;
use crate::ops::pointwise::out2;
use crate::ops::view::contiguous_raw;
use crate::tensor::Tensor;
use smallvec::smallvec;

/// `view_as_real(view_as_complex(x) * y)` with a constant `y`, which is kept. Backward the gradient is made contiguous to be read as
/// complex numbers, and the conjugate of `y` is written out before the product (torch 2.11,
/// torch/csrc/autograd/FunctionsManual.cpp, mul_tensor_backward; aten/src/ATen/ConjugateFallback.cpp;
/// case `deepseek-v2-tiny-plain-bf16-sdpa`).
pub fn mul_complex(cx: &Cx, x: &Tensor, y: &Tensor) -> Tensor {
    let mut n = cx.node(OpId::MUL, &[x]);
    n.save(cx, y);
    let out = out2(cx, OpId::MUL, x, y, x.dtype);
    let product = n.finish(cx, out, |cx, s, g| -> Grads {
        let (g, y) = (g[0].as_ref().expect("gradient"), s.tensor(0));
        let conjugate = cx.empty(OpId::CLONE, y.shape, y.dtype);
        let product = out2(cx, OpId::MUL, g, &conjugate, g.dtype);
        drop(conjugate);
        smallvec![Some(product)]
    });
    let n = cx.node(OpId::VIEW, &[&product]);
    let real = product.alias(product.shape, product.strides());
    n.finish(cx, real, |cx, _, g| -> Grads {
        smallvec![g[0].as_ref().map(|g| contiguous_raw(cx, g))]
    })
}
