//! Normalisations and softmax (torch 2.11, aten/src/ATen/native/cuda/layer_norm_kernel.cu, SoftMax.cu).

use crate::autograd::{BackwardFn, Grads};
use crate::context::Cx;
use crate::kernels::ReduceOp;
use crate::ops;
use crate::ops::op::OpId;
use crate::ops::reduce::reduce_raw;
use crate::ops::view::contiguous_raw;
use crate::shape::{Shape, elementwise_strides};
use crate::tensor::Tensor;
use smallvec::smallvec;
use tonnage_units::ScalarType;

/// The dtype that statistics are kept in (`toAccumulateType` on CUDA).
fn statistics(x: &Tensor) -> ScalarType {
    if x.dtype == ScalarType::F64 {
        ScalarType::F64
    } else {
        ScalarType::F32
    }
}

/// Rows of `x` when the trailing dimensions make up `width` elements.
fn rows(x: &Tensor, width: u64) -> u64 {
    x.numel().checked_div(width).unwrap_or(0)
}

/// `F.layer_norm(x, w.shape, w, b)`; without a weight the last dimension is normalised. fp32 under autocast.
/// Kept, in release order: bias, input (as given), weight, mean, rstd.
pub fn layer_norm(cx: &Cx, x: &Tensor, w: Option<&Tensor>, b: Option<&Tensor>) -> Tensor {
    let x = cx.raise(x);
    let w = w.map(|w| cx.raise(w));
    let b = b.map(|b| cx.raise(b));
    let width = w.as_ref().map_or(x.size(-1), |w| w.numel());
    let none = x.detach();
    let mut n = cx.node(
        OpId::LAYER_NORM,
        &[&x, w.as_ref().unwrap_or(&none), b.as_ref().unwrap_or(&none)],
    );
    drop(none);
    for t in [b.as_ref(), Some(&x), w.as_ref()] {
        match t {
            Some(t) => n.save(cx, t),
            None => n.skip(),
        }
    }
    let xc = contiguous_raw(cx, &x);
    let y = cx.empty(OpId::LAYER_NORM, x.shape, x.dtype);
    let stat = Shape::new(&[rows(&x, width)]);
    let mean = cx.empty(OpId::LAYER_NORM, stat, statistics(&x));
    let rstd = cx.empty(OpId::LAYER_NORM, stat, statistics(&x));
    n.save(cx, &mean);
    n.save(cx, &rstd);
    drop(xc);
    drop(mean);
    drop(rstd);
    n.finish(cx, y, |cx, s, g| -> Grads {
        let g = g[0].take().expect("gradient");
        let x = s.tensor(1);
        let gc = contiguous_raw(cx, &g);
        let xc = contiguous_raw(cx, x);
        let op = OpId::LAYER_NORM_BACKWARD;
        let gx = s.need[0].then(|| cx.empty(op, x.shape, x.dtype));
        let mut gw = s.need[1].then(|| cx.empty(op, s.inputs[1].shape, s.inputs[1].dtype));
        let mut gb = s.need[2].then(|| cx.empty(op, s.inputs[2].shape, s.inputs[2].dtype));
        let width = s.get(2).map_or(x.size(-1), |w| w.numel());
        gamma_beta(cx, op, rows(x, width), width, &mut gw, &mut gb);
        drop(xc);
        drop(gc);
        smallvec![gx, gw, gb]
    })
}

/// `F.rms_norm(x, w.shape, w)` by its fused kernel (`_fused_rms_norm`, layer_norm_kernel.cu). fp32 under autocast. Kept: input, weight, rstd.
/// A weight of another dtype takes the composed path in the framework, which is not this function.
pub fn rms_norm(cx: &Cx, x: &Tensor, w: Option<&Tensor>) -> Tensor {
    let x = &cx.raise(x);
    let w = w.map(|w| cx.raise(w));
    let w = w.as_ref();
    let width = w.map_or(x.size(-1), |w| w.numel());
    let none = x.detach();
    let mut n = cx.node(OpId::RMS_NORM, &[x, w.unwrap_or(&none)]);
    drop(none);
    n.save(cx, x);
    match w {
        Some(w) => n.save(cx, w),
        None => n.skip(),
    }
    let xc = contiguous_raw(cx, x);
    let y = cx.empty(OpId::RMS_NORM, x.shape, x.dtype);
    let rstd = cx.empty(OpId::RMS_NORM, Shape::new(&[rows(x, width)]), statistics(x));
    n.save(cx, &rstd);
    drop(xc);
    drop(rstd);
    n.finish(cx, y, |cx, s, g| -> Grads {
        let g = g[0].take().expect("gradient");
        let x = s.tensor(0);
        let gc = contiguous_raw(cx, &g);
        let xc = contiguous_raw(cx, x);
        let op = OpId::RMS_NORM_BACKWARD;
        let gx = s.need[0].then(|| cx.empty(op, x.shape, x.dtype));
        let mut gw = s.need[1].then(|| cx.empty(op, s.inputs[1].shape, s.inputs[1].dtype));
        let width = s.get(1).map_or(x.size(-1), |w| w.numel());
        gamma_beta(cx, op, rows(x, width), width, &mut gw, &mut None);
        drop(xc);
        drop(gc);
        smallvec![gx, gw]
    })
}

/// CALL SITE for the kernels module (it has no rule yet): partial sums of the weight's and bias's gradient.
/// Many short rows are summed in two passes (layer_norm_kernel.cu, LaunchGammaBetaBackwardCUDAKernel): a block of partials a
/// gradient, then `sum(0)` into a new tensor that replaces the one made before. Read from source, not compared with a trace.
fn gamma_beta(cx: &Cx, op: OpId, m: u64, n: u64, gw: &mut Option<Tensor>, gb: &mut Option<Tensor>) {
    const WARP: u64 = 32;
    // not many rows, or enough columns for half of the multiprocessors
    if m <= 64 * 1024
        || cx.choice(n / WARP, |n, card| {
            u64::from(*n >= u64::from(card.sm_count) / 2)
        }) == 1
    {
        return;
    }
    let columns = n.div_ceil(WARP);
    let blocks = m.div_ceil(WARP).min(32 * 1024 / columns);
    let partial = |t: &Option<Tensor>| {
        t.as_ref()
            .map(|t| cx.empty(op, Shape::new(&[blocks, n]), t.dtype))
    };
    let pw = partial(gw);
    let pb = partial(gb);
    for (p, t) in [(&pw, gw), (&pb, gb)] {
        if let (Some(p), Some(t)) = (p, t) {
            let sum = reduce_raw(cx, OpId::SUM, ReduceOp::Sum, p, 1, false, p.dtype);
            let shape = t.shape;
            *t = if shape.ndim() == 1 {
                sum
            } else {
                sum.alias(shape, shape.contiguous_strides())
            };
        }
    }
    drop(pb);
    drop(pw);
}

/// A softmax kernel: the result, then a copy of an input that is not contiguous, which dies at once. Keeps its result.
pub(crate) fn softmax_kernel(
    cx: &Cx,
    op: OpId,
    x: &Tensor,
    out: ScalarType,
    backward: BackwardFn,
) -> Tensor {
    let mut n = cx.node(op, &[x]);
    let y = cx.empty(op, x.shape, out);
    drop(contiguous_raw(cx, x));
    n.save(cx, &y);
    n.finish(cx, y, backward)
}

/// `softmax(x, dim, dtype)` (SoftMax.cpp): fp16 to fp32 happens in the kernel, every other change by a cast before it.
/// Autocast sets the dtype to fp32 where none is given. The dimension changes nothing.
pub fn softmax(cx: &Cx, x: &Tensor, dtype: Option<ScalarType>) -> Tensor {
    let eligible = x.dtype.is_float() && x.dtype != ScalarType::F64;
    let dtype = match dtype {
        None if cx.autocast_dtype().is_some() && eligible => ScalarType::F32,
        None => x.dtype,
        Some(d) => d,
    };
    let inside = x.dtype == dtype || (x.dtype == ScalarType::F16 && dtype == ScalarType::F32);
    let x = if inside {
        x.clone()
    } else {
        ops::to_dtype(cx, x, dtype)
    };
    softmax_kernel(cx, OpId::SOFTMAX, &x, dtype, |cx, s, g| -> Grads {
        let g = g[0].take().expect("gradient");
        let y = s.tensor(0);
        let gx = cx.empty(OpId::SOFTMAX_BACKWARD, y.shape, s.inputs[0].dtype);
        // Tensor tmp = grad * output
        let st = elementwise_strides(
            &y.shape,
            &[(&g.shape, &g.strides()), (&y.shape, &y.strides())],
        );
        let tmp = cx.empty_strided(OpId::SOFTMAX_BACKWARD, y.shape, st, g.dtype);
        drop(contiguous_raw(cx, &tmp));
        drop(tmp);
        smallvec![Some(gx)]
    })
}
