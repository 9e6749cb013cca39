//! Batch normalisation and pooling of images (torch 2.11, aten/src/ATen/native/Normalization.cpp, cudnn/BatchNorm.cpp,
//! cuda/DilatedMaxPool2d.cu, AdaptiveAveragePooling.cpp).

use crate::autograd::Grads;
use crate::context::Cx;
use crate::kernels::BatchNorm;
use crate::ops::conv::{channels_last_strides, in_format, suggests_channels_last};
use crate::ops::op::OpId;
use crate::ops::reduce::mean;
use crate::shape::{Shape, Strides};
use crate::tensor::Tensor;
use smallvec::smallvec;
use tonnage_units::ScalarType;

/// The layout of an image tensor of `shape` in one of the two memory formats.
fn layout(shape: &Shape, channels_last: bool) -> Strides {
    if channels_last {
        channels_last_strides(shape)
    } else {
        shape.contiguous_strides()
    }
}

fn describe(x: &Tensor, weight: ScalarType, channels_last: bool) -> BatchNorm {
    BatchNorm {
        batch: x.size(0),
        channels: x.size(1),
        spatial: x.numel() / (x.size(0) * x.size(1)).max(1),
        dims: x.shape.ndim() as u32,
        dtype: x.dtype,
        weight,
        channels_last,
    }
}

/// `F.batch_norm(x, running_mean, running_var, w, b, training)`; keeps input, running statistics, weight, and in training the
/// saved statistics. The reserve of cuDNN is not known: 0.
pub fn batch_norm(
    cx: &Cx,
    x: &Tensor,
    w: &Tensor,
    b: &Tensor,
    running: [&Tensor; 2],
    training: bool,
) -> Tensor {
    let op = OpId::BATCH_NORM;
    let mut n = cx.node(op, &[x, w, b]);
    n.args([training as u64, 0, 0, 0, 0, 0]);
    for t in [x, running[0], running[1], w] {
        n.save(cx, t);
    }
    let last = suggests_channels_last(x);
    let xc = in_format(cx, x, last);
    let statistic = Shape::new(&[x.size(1)]);
    let dtype = if x.dtype == ScalarType::F64 {
        ScalarType::F64
    } else {
        ScalarType::F32
    };
    let steps = describe(x, w.dtype, last).forward(training);
    let mut out = cx.play(op, &steps, |i| match i {
        0 => (x.shape, layout(&x.shape, last), x.dtype),
        _ => (statistic, statistic.contiguous_strides(), dtype),
    });
    drop(xc);
    for t in out.iter().skip(1) {
        n.save(cx, t);
    }
    let y = out.remove(0);
    drop(out);
    n.finish(cx, y, |cx, s, g| -> Grads {
        let op = OpId::BATCH_NORM_BACKWARD;
        let (x, w) = (s.tensor(0), s.tensor(3));
        let last = suggests_channels_last(x);
        let g = g[0].take().expect("gradient");
        let gc = in_format(cx, &g, last);
        let steps = describe(x, w.dtype, last).backward();
        let mut out = cx.play(op, &steps, |i| match i {
            0 => (x.shape, layout(&x.shape, last), x.dtype),
            _ => (w.shape, w.strides(), w.dtype),
        });
        drop(gc);
        s.need
            .iter()
            .map(|need| {
                let t = out.remove(0);
                need.then_some(t)
            })
            .collect()
    })
}

/// `F.max_pool2d(x, kernel, stride, padding)`: the result, and indices that are kept with the input.
pub fn max_pool2d(cx: &Cx, x: &Tensor, kernel: u64, stride: u64, padding: u64) -> Tensor {
    let op = OpId::MAX_POOL;
    let mut n = cx.node(op, &[x]);
    n.save(cx, x);
    let last = suggests_channels_last(x);
    let size = |i: isize| (x.size(i) + 2 * padding).saturating_sub(kernel) / stride.max(1) + 1;
    let shape = Shape::new(&[x.size(0), x.size(1), size(2), size(3)]);
    let y = cx.empty_strided(op, shape, layout(&shape, last), x.dtype);
    let indices = cx.empty_strided(op, shape, layout(&shape, last), ScalarType::I64);
    drop(in_format(cx, x, last));
    n.save(cx, &indices);
    drop(indices);
    n.finish(cx, y, |cx, s, g| -> Grads {
        let x = s.tensor(0);
        let last = suggests_channels_last(x);
        let y = cx.empty_strided(
            OpId::MAX_POOL_BACKWARD,
            x.shape,
            layout(&x.shape, last),
            x.dtype,
        );
        drop(g[0].as_ref().map(|g| in_format(cx, g, last)));
        smallvec![Some(y)]
    })
}

/// `F.adaptive_avg_pool2d(x, 1)`: the mean over height and width; for a channels-last input with strides that say so.
pub fn global_avg_pool2d(cx: &Cx, x: &Tensor) -> Tensor {
    let y = mean(cx, x, &[-1, -2], true);
    if !suggests_channels_last(x) {
        return y;
    }
    let c = y.size(1);
    // out.as_strided((n, c, 1, 1), (c, 1, c, c))
    let mut n = cx.node(OpId::VIEW, &[&y]);
    n.meta(&y);
    let st = [c, 1, c, c, 0, 0];
    n.finish(cx, y.alias(y.shape, st), |cx, s, g| -> Grads {
        let g = g[0].take().expect("gradient");
        // FunctionsManual.cpp, as_strided_backward: zeros of the storage's size, filled through the output's strides
        let m = &s.meta[0];
        let base = cx.empty(OpId::ZEROS, Shape::new(&[m.shape.numel()]), g.dtype);
        smallvec![Some(base.alias(m.shape, m.strides))]
    })
}
