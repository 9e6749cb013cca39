//! Elementwise operators and their gradients (torch 2.11, tools/autograd/derivatives.yaml and torch/csrc/autograd/FunctionsManual.cpp).
//!
//! In an expression such as `grad * (n * self.pow(n - 1))` the arguments of a call are evaluated last to first (the published builds
//! of the framework show this order in traces), and the temporaries die in reverse order of their construction.

use crate::autograd::{BackwardFn, Grads, Saved};
use crate::context::Cx;
use crate::ops::op::OpId;
use crate::shape::Shape;
use crate::tensor::Tensor;
use smallvec::smallvec;
use tonnage_units::ScalarType;
use tonnage_units::ScalarType::{Bool, F32, F64, I8, I16, I32, I64, U8};

// ---- without history ------------------------------------------------------------------------------------------------------

/// The dtype that holds both (torch 2.11, c10/core/ScalarType.cpp, promoteTypes).
pub fn promote_types(a: ScalarType, b: ScalarType) -> ScalarType {
    if a == b {
        return a;
    }
    match (a.is_float(), b.is_float()) {
        (true, false) => a,
        (false, true) => b,
        (true, true) => {
            if a == F64 || b == F64 {
                F64
            } else if a == F32 || b == F32 || a.size() == b.size() {
                F32 // also float16 with bfloat16
            } else if a.size() > b.size() {
                a
            } else {
                b
            }
        }
        (false, false) => match (a, b) {
            (Bool, x) | (x, Bool) => x,
            (I8, U8) | (U8, I8) => I16,
            _ => [I64, I32, I16]
                .into_iter()
                .find(|t| a == *t || b == *t)
                .unwrap_or(I16),
        },
    }
}

/// The dtype of an operator over two tensors: a 0-dimensional one counts only where it is of a higher category
/// (torch 2.11, aten/src/ATen/native/TypeProperties.cpp, result_type).
pub fn promote(a: &Tensor, b: &Tensor) -> ScalarType {
    if a.dtype == b.dtype {
        return a.dtype;
    }
    let category = |t: ScalarType| if t.is_float() { 2 } else { (t != Bool) as u8 };
    let (zero, full) = match (a.shape.ndim(), b.shape.ndim()) {
        (0, n) if n > 0 => (a, b),
        (n, 0) if n > 0 => (b, a),
        _ => return promote_types(a.dtype, b.dtype),
    };
    if category(full.dtype) >= category(zero.dtype) {
        full.dtype
    } else {
        promote_types(a.dtype, b.dtype)
    }
}

/// The result of an elementwise operator over `x`, without history.
#[inline]
pub fn plain(cx: &Cx, op: OpId, x: &Tensor, dtype: ScalarType) -> Tensor {
    cx.empty_like(op, x, dtype)
}

/// The result of an elementwise operator over two tensors (broadcast), without history.
#[inline]
pub fn out2(cx: &Cx, op: OpId, a: &Tensor, b: &Tensor, dtype: ScalarType) -> Tensor {
    let shape = a.shape.broadcast(&b.shape);
    cx.elementwise(op, shape, &[a, b], dtype)
}

/// The result of an elementwise operator over three tensors (broadcast), without history.
pub fn out3(cx: &Cx, op: OpId, t: [&Tensor; 3], dtype: ScalarType) -> Tensor {
    let shape = t[0].shape.broadcast(&t[1].shape).broadcast(&t[2].shape);
    cx.elementwise(op, shape, &t, dtype)
}

fn incoming(g: &Grads) -> &Tensor {
    g[0].as_ref()
        .expect("a node with one output runs with its gradient")
}

/// An operator of one input that saves nothing.
fn unary(cx: &Cx, op: OpId, x: &Tensor, f: BackwardFn) -> Tensor {
    let n = cx.node(op, &[x]);
    let y = plain(cx, op, x, x.dtype);
    n.finish(cx, y, f)
}

/// An operator of one input that saves the input.
fn unary_saving_input(cx: &Cx, op: OpId, x: &Tensor, f: BackwardFn) -> Tensor {
    let mut n = cx.node(op, &[x]);
    n.save(cx, x);
    let y = plain(cx, op, x, x.dtype);
    n.finish(cx, y, f)
}

/// An operator of one input that saves the result.
fn unary_saving_result(cx: &Cx, op: OpId, x: &Tensor, f: BackwardFn) -> Tensor {
    let mut n = cx.node(op, &[x]);
    let y = plain(cx, op, x, x.dtype);
    n.save(cx, &y);
    n.finish(cx, y, f)
}

/// A gradient that one kernel computes from the incoming one and saved tensor 0.
fn binary_grad(cx: &Cx, op: OpId, s: &Saved, g: &Grads) -> Grads {
    let (g, t) = (incoming(g), s.tensor(0));
    smallvec![Some(out2(cx, op, g, t, promote(g, t)))]
}

/// The gradient passes through (the engine still holds the incoming handle while it casts and reduces).
fn same(_: &Cx, _: &Saved, g: &mut Grads) -> Grads {
    smallvec![g[0].clone()]
}

// ---- copies ---------------------------------------------------------------------------------------------------------------

/// `x.to(dtype)`: `x` itself where it has that dtype (aten/src/ATen/native/TensorConversions.cpp, _to_copy).
pub fn to_dtype(cx: &Cx, x: &Tensor, dtype: ScalarType) -> Tensor {
    if x.dtype == dtype {
        return x.clone();
    }
    let n = if dtype.is_float() {
        cx.node(OpId::TO_COPY, &[x])
    } else {
        crate::autograd::NodeBuilder::none()
    };
    let y = plain(cx, OpId::TO_COPY, x, dtype);
    n.finish(cx, y, |cx, s, g| {
        let to = s.inputs[0].dtype;
        let g = incoming(g);
        smallvec![Some(if g.dtype == to {
            g.clone()
        } else {
            plain(cx, OpId::TO_COPY, g, to)
        })]
    })
}

/// `x.clone()`, keeping the layout.
pub fn clone(cx: &Cx, x: &Tensor) -> Tensor {
    unary(cx, OpId::CLONE, x, same)
}

// ---- arithmetic -----------------------------------------------------------------------------------------------------------

fn add_backward(_: &Cx, s: &Saved, g: &mut Grads) -> Grads {
    smallvec![
        s.need[0].then(|| incoming(g).clone()),
        s.need[1].then(|| incoming(g).clone())
    ]
}

/// `a + b`.
pub fn add(cx: &Cx, a: &Tensor, b: &Tensor) -> Tensor {
    let n = cx.node(OpId::ADD, &[a, b]);
    let y = out2(cx, OpId::ADD, a, b, promote(a, b));
    n.finish(cx, y, add_backward)
}

fn sub_backward(cx: &Cx, s: &Saved, g: &mut Grads) -> Grads {
    let g = incoming(g);
    let other = s.need[1].then(|| plain(cx, OpId::NEG, g, g.dtype));
    smallvec![s.need[0].then(|| g.clone()), other]
}

/// `a - b`.
pub fn sub(cx: &Cx, a: &Tensor, b: &Tensor) -> Tensor {
    let n = cx.node(OpId::SUB, &[a, b]);
    let y = out2(cx, OpId::SUB, a, b, promote(a, b));
    n.finish(cx, y, sub_backward)
}

/// `x + 1.0` (a number of Python does not change the dtype of a floating point tensor).
pub fn add_scalar(cx: &Cx, x: &Tensor) -> Tensor {
    unary(cx, OpId::ADD, x, same)
}

/// `1.0 - x`.
pub fn rsub_scalar(cx: &Cx, x: &Tensor) -> Tensor {
    unary(cx, OpId::SUB, x, |cx, _, g| {
        smallvec![Some(plain(cx, OpId::NEG, incoming(g), incoming(g).dtype))]
    })
}

fn mul_scalar_backward(cx: &Cx, _: &Saved, g: &mut Grads) -> Grads {
    smallvec![Some(plain(cx, OpId::MUL, incoming(g), incoming(g).dtype))]
}

fn div_scalar_backward(cx: &Cx, _: &Saved, g: &mut Grads) -> Grads {
    smallvec![Some(plain(cx, OpId::DIV, incoming(g), incoming(g).dtype))]
}

/// `x * 2.0`: the number is kept by the node, but holds no device memory.
pub fn mul_scalar(cx: &Cx, x: &Tensor) -> Tensor {
    unary(cx, OpId::MUL, x, mul_scalar_backward)
}

/// `x / 2.0`.
pub fn div_scalar(cx: &Cx, x: &Tensor) -> Tensor {
    unary(cx, OpId::DIV, x, div_scalar_backward)
}

/// `-x`.
pub fn neg(cx: &Cx, x: &Tensor) -> Tensor {
    unary(cx, OpId::NEG, x, |cx, _, g| {
        smallvec![Some(plain(cx, OpId::NEG, incoming(g), incoming(g).dtype))]
    })
}

fn mul_backward(cx: &Cx, s: &Saved, g: &mut Grads) -> Grads {
    let g = incoming(g);
    let times = |i: usize| out2(cx, OpId::MUL, g, s.tensor(i), promote(g, s.tensor(i)));
    let other = s.need[1].then(|| times(1));
    smallvec![s.need[0].then(|| times(0)), other]
}

/// `a * b`; keeps `b` where `a` wants a gradient and the other way round (slots: other, self).
pub fn mul(cx: &Cx, a: &Tensor, b: &Tensor) -> Tensor {
    let mut n = cx.node(OpId::MUL, &[a, b]);
    let (na, nb) = (n.need(0), n.need(1));
    n.save_if(cx, na, b);
    n.save_if(cx, nb, a);
    let y = out2(cx, OpId::MUL, a, b, promote(a, b));
    n.finish(cx, y, mul_backward)
}

/// `a / b` (FunctionsManual.cpp, div_tensor_self_backward and div_tensor_other_backward).
pub fn div(cx: &Cx, a: &Tensor, b: &Tensor) -> Tensor {
    let mut n = cx.node(OpId::DIV, &[a, b]);
    let nb = n.need(1);
    n.save(cx, b);
    n.save_if(cx, nb, a);
    let y = out2(cx, OpId::DIV, a, b, promote(a, b));
    n.finish(cx, y, |cx, s, g| {
        let (g, b) = (incoming(g), s.tensor(0));
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

/// `x.pow(number)`, an fp32 operator under autocast (FunctionsManual.cpp, pow_backward).
pub fn pow_scalar(cx: &Cx, x: &Tensor) -> Tensor {
    let x = &cx.raise(x);
    unary_saving_input(cx, OpId::POW, x, |cx, s, g| {
        let (g, x) = (incoming(g), s.tensor(0));
        let p = plain(cx, OpId::POW, x, x.dtype);
        let m = plain(cx, OpId::MUL, &p, p.dtype);
        let r = out2(cx, OpId::MUL, g, &m, promote(g, &m));
        drop(m);
        drop(p);
        smallvec![Some(r)]
    })
}

/// `x.rsqrt()`, an fp32 operator under autocast: gradient `-0.5 * grad * result.pow(3)`.
pub fn rsqrt(cx: &Cx, x: &Tensor) -> Tensor {
    let x = &cx.raise(x);
    unary_saving_result(cx, OpId::RSQRT, x, |cx, s, g| {
        let (g, y) = (incoming(g), s.tensor(0));
        let p = plain(cx, OpId::POW, y, y.dtype);
        let m = plain(cx, OpId::MUL, g, g.dtype);
        let r = out2(cx, OpId::MUL, &m, &p, promote(&m, &p));
        drop(m);
        drop(p);
        smallvec![Some(r)]
    })
}

/// `x.sqrt()`: gradient `grad / (2 * result)`.
pub fn sqrt(cx: &Cx, x: &Tensor) -> Tensor {
    unary_saving_result(cx, OpId::SQRT, x, |cx, s, g| {
        let (g, y) = (incoming(g), s.tensor(0));
        let m = plain(cx, OpId::MUL, y, y.dtype);
        let r = out2(cx, OpId::DIV, g, &m, promote(g, &m));
        drop(m);
        smallvec![Some(r)]
    })
}

/// `x.reciprocal()`, an fp32 operator under autocast: gradient `-grad * (result * result)`.
pub fn reciprocal(cx: &Cx, x: &Tensor) -> Tensor {
    let x = &cx.raise(x);
    unary_saving_result(cx, OpId::RECIPROCAL, x, |cx, s, g| {
        let (g, y) = (incoming(g), s.tensor(0));
        let q = plain(cx, OpId::MUL, y, y.dtype);
        let m = plain(cx, OpId::NEG, g, g.dtype);
        let r = out2(cx, OpId::MUL, &m, &q, promote(&m, &q));
        drop(m);
        drop(q);
        smallvec![Some(r)]
    })
}

/// `x.exp()`, an fp32 operator under autocast.
pub fn exp(cx: &Cx, x: &Tensor) -> Tensor {
    let x = &cx.raise(x);
    unary_saving_result(cx, OpId::EXP, x, |cx, s, g| {
        binary_grad(cx, OpId::MUL, s, g)
    })
}

/// `x.log()`, an fp32 operator under autocast.
pub fn log(cx: &Cx, x: &Tensor) -> Tensor {
    let x = &cx.raise(x);
    unary_saving_input(cx, OpId::LOG, x, |cx, s, g| {
        binary_grad(cx, OpId::DIV, s, g)
    })
}

/// `x.cos()`: gradient `grad * -self.sin()`.
pub fn cos(cx: &Cx, x: &Tensor) -> Tensor {
    unary_saving_input(cx, OpId::COS, x, |cx, s, g| {
        let (g, x) = (incoming(g), s.tensor(0));
        let a = plain(cx, OpId::SIN, x, x.dtype);
        let b = plain(cx, OpId::NEG, &a, a.dtype);
        let r = out2(cx, OpId::MUL, g, &b, promote(g, &b));
        drop(b);
        drop(a);
        smallvec![Some(r)]
    })
}

/// `x.sin()`: gradient `grad * self.cos()`.
pub fn sin(cx: &Cx, x: &Tensor) -> Tensor {
    unary_saving_input(cx, OpId::SIN, x, |cx, s, g| grad_times(cx, OpId::COS, s, g))
}

/// `x.abs()`: gradient `grad * self.sgn()`.
pub fn abs(cx: &Cx, x: &Tensor) -> Tensor {
    unary_saving_input(cx, OpId::ABS, x, |cx, s, g| grad_times(cx, OpId::SGN, s, g))
}

/// `grad * f(saved)`.
fn grad_times(cx: &Cx, f: OpId, s: &Saved, g: &Grads) -> Grads {
    let (g, x) = (incoming(g), s.tensor(0));
    let t = plain(cx, f, x, x.dtype);
    let r = out2(cx, OpId::MUL, g, &t, promote(g, &t));
    drop(t);
    smallvec![Some(r)]
}

// ---- activations ----------------------------------------------------------------------------------------------------------

/// `silu(x)`, keeps `x`.
pub fn silu(cx: &Cx, x: &Tensor) -> Tensor {
    unary_saving_input(cx, OpId::SILU, x, |cx, s, g| {
        binary_grad(cx, OpId::SILU_BACKWARD, s, g)
    })
}

/// `gelu(x)` (either approximation), keeps `x`.
pub fn gelu(cx: &Cx, x: &Tensor) -> Tensor {
    unary_saving_input(cx, OpId::GELU, x, |cx, s, g| {
        binary_grad(cx, OpId::GELU_BACKWARD, s, g)
    })
}

/// `x.tanh()`, keeps the result.
pub fn tanh(cx: &Cx, x: &Tensor) -> Tensor {
    unary_saving_result(cx, OpId::TANH, x, |cx, s, g| {
        binary_grad(cx, OpId::TANH_BACKWARD, s, g)
    })
}

/// `x.sigmoid()`, keeps the result.
pub fn sigmoid(cx: &Cx, x: &Tensor) -> Tensor {
    unary_saving_result(cx, OpId::SIGMOID, x, |cx, s, g| {
        binary_grad(cx, OpId::SIGMOID_BACKWARD, s, g)
    })
}

fn threshold_backward(cx: &Cx, s: &Saved, g: &mut Grads) -> Grads {
    let (g, y) = (incoming(g), s.tensor(0));
    // this kernel reads the result before the gradient, which decides the layout where the two differ
    smallvec![Some(out2(
        cx,
        OpId::THRESHOLD_BACKWARD,
        y,
        g,
        promote(y, g)
    ))]
}

/// `relu(x)`, keeps the result.
pub fn relu(cx: &Cx, x: &Tensor) -> Tensor {
    unary_saving_result(cx, OpId::RELU, x, threshold_backward)
}

/// `softplus(x)`, an fp32 operator under autocast, keeps `x`.
pub fn softplus(cx: &Cx, x: &Tensor) -> Tensor {
    let x = &cx.raise(x);
    unary_saving_input(cx, OpId::SOFTPLUS, x, |cx, s, g| {
        binary_grad(cx, OpId::SOFTPLUS_BACKWARD, s, g)
    })
}

/// `x.clamp(min, max)` with one or both bounds (FunctionsManual.cpp, clamp_backward).
pub fn clamp_scalar(cx: &Cx, x: &Tensor, min: bool, max: bool) -> Tensor {
    let mut n = cx.node(OpId::CLAMP, &[x]);
    n.args([(min && max) as u64, 0, 0, 0, 0, 0]);
    n.save(cx, x);
    let y = plain(cx, OpId::CLAMP, x, x.dtype);
    n.finish(cx, y, |cx, s, g| {
        let (g, x) = (incoming(g), s.tensor(0));
        let zero = cx.empty(OpId::SCALAR_TENSOR, Shape::new(&[]), g.dtype);
        let low = plain(cx, OpId::COMPARE, x, Bool);
        let high = (s.args[0] == 1).then(|| plain(cx, OpId::COMPARE, x, Bool));
        let r = out3(cx, OpId::WHERE, [&low, g, &zero], g.dtype);
        drop(high);
        drop(low);
        drop(zero);
        smallvec![Some(r)]
    })
}

/// `dropout(x, p)` in training: `x` itself for 0, else the mask and then the result
/// (torch 2.11, aten/src/ATen/native/cuda/Dropout.cu, dropout_cuda).
pub fn dropout(cx: &Cx, x: &Tensor, p: f64) -> Tensor {
    if p == 0.0 {
        return x.clone();
    }
    let mut n = cx.node(OpId::DROPOUT, &[x]);
    let mask = plain(cx, OpId::DROPOUT, x, Bool);
    let y = plain(cx, OpId::DROPOUT, x, x.dtype);
    n.save(cx, &mask);
    n.finish(cx, y, |cx, _, g| {
        smallvec![Some(plain(
            cx,
            OpId::DROPOUT_BACKWARD,
            incoming(g),
            incoming(g).dtype
        ))]
    })
}

// ---- selection ------------------------------------------------------------------------------------------------------------

fn masked_fill_backward(cx: &Cx, s: &Saved, g: &mut Grads) -> Grads {
    let (g, mask) = (incoming(g), s.tensor(0));
    smallvec![Some(cx.empty(
        OpId::MASKED_FILL,
        g.shape.broadcast(&mask.shape),
        g.dtype
    ))]
}

/// `x.masked_fill(mask, number)`: a contiguous clone of `x`, filled in place; keeps the mask
/// (torch 2.11, aten/src/ATen/native/TensorAdvancedIndexing.cpp, masked_fill).
pub fn masked_fill(cx: &Cx, x: &Tensor, mask: &Tensor) -> Tensor {
    let mut n = cx.node(OpId::MASKED_FILL, &[x]);
    n.save(cx, mask);
    let y = cx.empty(OpId::MASKED_FILL, x.shape.broadcast(&mask.shape), x.dtype);
    n.finish(cx, y, masked_fill_backward)
}

/// `torch.where(condition, a, b)`; each gradient makes a zero of the gradient's dtype first.
pub fn where_(cx: &Cx, condition: &Tensor, a: &Tensor, b: &Tensor) -> Tensor {
    let mut n = cx.node(OpId::WHERE, &[a, b]);
    n.save(cx, condition);
    let y = out3(cx, OpId::WHERE, [condition, a, b], promote(a, b));
    n.finish(cx, y, |cx, s, g| {
        let (g, c) = (incoming(g), s.tensor(0));
        let masked = |first: bool| {
            let zero = cx.empty(OpId::SCALAR_TENSOR, Shape::new(&[]), g.dtype);
            let t = if first { [c, g, &zero] } else { [c, &zero, g] };
            let r = out3(cx, OpId::WHERE, t, g.dtype);
            drop(zero);
            r
        };
        let other = s.need[1].then(|| masked(false));
        smallvec![s.need[0].then(|| masked(true)), other]
    })
}

/// A comparison or logical operator of a tensor with a number.
pub fn compare_scalar(cx: &Cx, op: OpId, x: &Tensor) -> Tensor {
    plain(cx, op, x, Bool)
}

/// A comparison or logical operator of two tensors.
pub fn compare(cx: &Cx, op: OpId, a: &Tensor, b: &Tensor) -> Tensor {
    out2(cx, op, a, b, Bool)
}

// ---- in place -------------------------------------------------------------------------------------------------------------

/// `a += b`: no memory; the result is `a` with new history.
pub fn add_(cx: &Cx, a: Tensor, b: &Tensor) -> Tensor {
    let n = cx.node(OpId::ADD, &[&a, b]);
    n.finish(cx, a, add_backward)
}

/// `a -= b`.
pub fn sub_(cx: &Cx, a: Tensor, b: &Tensor) -> Tensor {
    let n = cx.node(OpId::SUB, &[&a, b]);
    n.finish(cx, a, sub_backward)
}

/// `x += 1.0`.
pub fn add_scalar_(cx: &Cx, x: Tensor) -> Tensor {
    let n = cx.node(OpId::ADD, &[&x]);
    n.finish(cx, x, same)
}

/// `a *= b`. Keeps `b`; where `b` wants a gradient the old `a` is needed, so the framework refuses to run backward: `b` must not.
pub fn mul_(cx: &Cx, a: Tensor, b: &Tensor) -> Tensor {
    debug_assert!(
        !cx.grad_enabled() || !b.requires_grad(),
        "an in-place product overwrites what its gradient needs"
    );
    let mut n = cx.node(OpId::MUL, &[&a, b]);
    let need = n.need(0);
    n.save_if(cx, need, b);
    n.skip();
    n.finish(cx, a, mul_backward)
}

/// `x *= 2.0`.
pub fn mul_scalar_(cx: &Cx, x: Tensor) -> Tensor {
    let n = cx.node(OpId::MUL, &[&x]);
    n.finish(cx, x, mul_scalar_backward)
}

/// `x /= 2.0`.
pub fn div_scalar_(cx: &Cx, x: Tensor) -> Tensor {
    let n = cx.node(OpId::DIV, &[&x]);
    n.finish(cx, x, div_scalar_backward)
}

/// `relu_(x)`: keeps the result, which is `x`.
pub fn relu_(cx: &Cx, x: Tensor) -> Tensor {
    let mut n = cx.node(OpId::RELU, &[&x]);
    n.save(cx, &x);
    n.finish(cx, x, threshold_backward)
}

/// `x.masked_fill_(mask, number)`.
pub fn masked_fill_(cx: &Cx, x: Tensor, mask: &Tensor) -> Tensor {
    let mut n = cx.node(OpId::MASKED_FILL, &[&x]);
    n.save(cx, mask);
    n.finish(cx, x, masked_fill_backward)
}
