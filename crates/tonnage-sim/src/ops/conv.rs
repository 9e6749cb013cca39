//! Convolutions and memory formats (torch 2.11, aten/src/ATen/native/Convolution.cpp, cudnn/ConvShared.cpp,
//! cuda/DepthwiseConv2d.cu). cuDNN's own workspace is not known: 0, as on the null device.

use crate::autograd::Grads;
use crate::context::Cx;
use crate::kernels::{ReduceOp, convolution, native_depthwise};
use crate::ops::op::OpId;
use crate::ops::reduce::reduce_raw;
use crate::ops::view::{contiguous_raw, select_raw, unsqueeze_raw};
use crate::shape::{MAX_DIMS, Shape, Strides};
use crate::tensor::Tensor;
use smallvec::smallvec;

// ---- memory formats -------------------------------------------------------------------------------------------------------

/// Strides of a 4-dimensional tensor whose channels are the fastest dimension.
pub fn channels_last_strides(shape: &Shape) -> Strides {
    let mut st = [0; MAX_DIMS];
    let mut k = 1;
    for d in [1, 3, 2, 0] {
        st[d] = k;
        k *= u64::from(shape.dims()[d]).max(1);
    }
    st
}

/// `x.is_contiguous(memory_format=torch.channels_last)`.
pub fn is_channels_last(x: &Tensor) -> bool {
    let mut k = 1;
    x.shape.ndim() == 4
        && [1, 3, 2, 0].iter().all(|d| {
            let n = u64::from(x.shape.dims()[*d]);
            let fits = n == 1 || x.strides()[*d] == k;
            k *= n;
            fits
        })
}

/// `x.suggest_memory_format() == channels_last` (c10/core/MemoryFormat.h, is_channels_last_strides_2d_s4): what the strides of a
/// tensor with single rows or channels mean is decided by order, plain layout first.
pub fn suggests_channels_last(x: &Tensor) -> bool {
    if x.shape.ndim() != 4 || x.strides()[1] == 0 {
        return false;
    }
    let mut min = 0;
    for d in [1, 3, 2, 0] {
        let (n, s) = (u64::from(x.shape.dims()[d]), x.strides()[d]);
        if n == 0 || s < min || (d == 0 && min == x.strides()[1]) {
            return false;
        }
        min = if n > 1 { s * n } else { s };
    }
    true
}

/// `x.contiguous(memory_format)` without history: `x` itself where it has that format.
pub fn in_format(cx: &Cx, x: &Tensor, channels_last: bool) -> Tensor {
    if !channels_last {
        return contiguous_raw(cx, x);
    }
    if is_channels_last(x) {
        x.detach()
    } else {
        cx.empty_strided(
            OpId::CLONE,
            x.shape,
            channels_last_strides(&x.shape),
            x.dtype,
        )
    }
}

/// `torch.empty(shape, memory_format=...)`.
fn empty_in(cx: &Cx, op: OpId, shape: Shape, channels_last: bool, like: &Tensor) -> Tensor {
    let st = if channels_last {
        channels_last_strides(&shape)
    } else {
        shape.contiguous_strides()
    };
    cx.empty_strided(op, shape, st, like.dtype)
}

// ---- convolution ----------------------------------------------------------------------------------------------------------

/// `F.conv2d(x, w, bias, stride, padding, groups=groups)`: `x` [batch, channels, height, width], `w` [out, channels / groups, kernel, kernel].
/// Low precision under autocast. Keeps input and weight.
pub fn conv2d(
    cx: &Cx,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    stride: u64,
    padding: u64,
    groups: u64,
) -> Tensor {
    convolve(cx, x, w, bias, [stride, padding, groups])
}

/// `F.conv1d(x, w, bias, stride, padding, groups=groups)`: `x` [batch, channels, length], `w` [out, channels / groups, kernel]; computed as
/// a convolution of images one row high. As [`conv2d`] otherwise.
pub fn conv1d(
    cx: &Cx,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    stride: u64,
    padding: u64,
    groups: u64,
) -> Tensor {
    convolve(cx, x, w, bias, [stride, padding, groups])
}

/// One row high, where there is no height (`view4d`); inside the operator, so no view of autograd.
fn with_height(x: &Tensor) -> Tensor {
    if x.shape.ndim() == 4 {
        return x.detach();
    }
    Tensor {
        view: x.view,
        ..unsqueeze_raw(x, 2)
    }
}

/// Back to the dimensions of `like` (`view3d`).
fn as_before(y: Tensor, like: &Shape) -> Tensor {
    if like.ndim() == 4 {
        return y;
    }
    Tensor {
        view: y.view,
        ..select_raw(&y, 2)
    }
}

fn convolve(
    cx: &Cx,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    [stride, padding, groups]: [u64; 3],
) -> Tensor {
    let b = bias.map(|b| cx.lower(b));
    let w = cx.lower(w);
    let x = cx.lower(x);
    let none = x.detach();
    let mut n = cx.node(OpId::CONVOLUTION, &[&x, &w, b.as_ref().unwrap_or(&none)]);
    drop(none);
    n.args([stride, groups, 0, 0, 0, 0]);
    n.save(cx, &x);
    n.save(cx, &w);
    let flat = x.shape.ndim() == 3;
    // a permuted input of three dimensions is made plain first
    let plain = if flat {
        contiguous_raw(cx, &x)
    } else {
        x.detach()
    };
    let (x4, w4) = (with_height(&plain), with_height(&w));
    let last = suggests_channels_last(&x4) || suggests_channels_last(&w4);
    let size = |i: isize, pad: u64, stride: u64| {
        (x4.size(i) + 2 * pad).saturating_sub(w4.size(i)) / stride.max(1) + 1
    };
    let shape = Shape::new(&[
        x4.size(0),
        w4.size(0),
        if flat { 1 } else { size(2, padding, stride) },
        size(3, padding, stride),
    ]);
    let copy = |t: &Tensor| {
        let fits = if last {
            is_channels_last(t)
        } else {
            t.is_contiguous()
        };
        if fits { 0 } else { t.nbytes() }
    };
    let st = if last {
        channels_last_strides(&shape)
    } else {
        shape.contiguous_strides()
    };
    // each result element is a product over the weight's other elements
    let inner = w4.numel() / w4.size(0).max(1);
    let work = [
        1,
        shape.numel() / shape.size(1).max(1),
        shape.size(1),
        inner,
    ];
    cx.product_work(OpId::CONVOLUTION, x4.dtype, work);
    // the bias is added to the result in place
    let y = cx
        .play(
            OpId::CONVOLUTION,
            &convolution(copy(&x4), copy(&w4)),
            |_| (shape, st, x4.dtype),
        )
        .remove(0);
    drop(w4);
    drop(x4);
    drop(plain);
    let y = as_before(y, &x.shape);
    n.finish(cx, y, |cx, s, g| -> Grads {
        let g = g[0].take().expect("gradient");
        let plain = if g.shape.ndim() == 3 {
            contiguous_raw(cx, s.tensor(0))
        } else {
            s.tensor(0).detach()
        };
        let (x, w, g) = (
            with_height(&plain),
            with_height(s.tensor(1)),
            with_height(&g),
        );
        let last = suggests_channels_last(&x) || suggests_channels_last(&w);
        let size = [0, 1, 2, 3].map(|i| x.size(i));
        let own = w.size(0).is_multiple_of(size[1])
            && native_depthwise(size, s.args[1], w.size(3), s.args[0], x.dtype, last);
        let need = [s.need[0], s.need[1]];
        let work = [
            1,
            g.numel() / w.size(0).max(1),
            w.size(0),
            w.numel() / w.size(0).max(1),
        ];
        for _ in need.iter().filter(|n| **n) {
            cx.product_work(OpId::CONVOLUTION_BACKWARD, g.dtype, work);
        }
        let (gx, gw) = if own {
            depthwise_backward(cx, &g, &x, &w, need)
        } else {
            cudnn_backward(cx, &g, &x, &w, last, need)
        };
        let gb =
            s.need[2].then(|| reduce_raw(cx, OpId::SUM, ReduceOp::Sum, &g, 0b1101, false, g.dtype));
        let back = |t: Option<Tensor>| t.map(|t| as_before(t, &s.inputs[0].shape));
        let grads = smallvec![back(gx), back(gw), gb];
        drop(g);
        drop(w);
        drop(x);
        drop(plain);
        grads
    })
}

/// ConvShared.cpp, cudnn_convolution_backward: everything in the memory format of input or weight, gradients too.
fn cudnn_backward(
    cx: &Cx,
    g: &Tensor,
    x: &Tensor,
    w: &Tensor,
    last: bool,
    need: [bool; 2],
) -> (Option<Tensor>, Option<Tensor>) {
    let op = OpId::CONVOLUTION_BACKWARD;
    let xc = in_format(cx, x, last);
    let gc = in_format(cx, g, suggests_channels_last(&xc));
    let gx = need[0].then(|| {
        let last = suggests_channels_last(&gc) || suggests_channels_last(w);
        let y = empty_in(cx, op, x.shape, last, g);
        drop(in_format(cx, w, last));
        y
    });
    let gw = need[1].then(|| {
        let last = suggests_channels_last(&xc) || suggests_channels_last(&gc);
        let g2 = in_format(cx, &gc, last);
        let x2 = in_format(cx, &xc, last);
        let y = empty_in(cx, op, w.shape, last, g);
        drop(x2);
        drop(g2);
        y
    });
    drop(gc);
    drop(xc);
    (gx, gw)
}

/// The weight's gradient first, then the input's (DepthwiseConv2d.cu, conv_depthwise2d_backward_cuda).
fn depthwise_backward(
    cx: &Cx,
    g: &Tensor,
    x: &Tensor,
    w: &Tensor,
    need: [bool; 2],
) -> (Option<Tensor>, Option<Tensor>) {
    let op = OpId::CONVOLUTION_BACKWARD;
    let xc = contiguous_raw(cx, x);
    let gc = contiguous_raw(cx, g);
    let gw = need[1].then(|| cx.empty(op, w.shape, g.dtype));
    let gx = need[0].then(|| cx.empty(op, x.shape, g.dtype));
    drop(gc);
    drop(xc);
    (gx, gw)
}
