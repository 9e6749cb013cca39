//! Convolutions through cuDNN (whose plans' own workspace is not known: 0) and pooling.
//!
//! `max_pool2d_with_indices` (results output, int64 indices), `avg_pool2d`, `adaptive_avg_pool2d` to more
//! than one cell, and their backwards allocate their results only; `adaptive_avg_pool2d` to one cell is
//! `mean` over the last two dimensions.
//!
//! Source: PyTorch 2.11, `aten/src/ATen/native/Convolution.cpp`, `cudnn/ConvShared.cpp`,
//! `cuda/DepthwiseConv2d.cu`. Verified: `tests/fixtures/kernels/conv.jsonl`.
use super::{KernelDevice, ReduceOp, Steps, Strided, reduce};
use tonnage_units::ScalarType;

/// `convolution` (result 0). Where the input or the weight is channels-last the convolution is, and the
/// other one is copied: `input_copy` and `weight_copy` are the bytes of these copies (0: none; a 1x1
/// weight is in both formats at once).
pub fn convolution(input_copy: u64, weight_copy: u64) -> Steps {
    let mut s = Steps::new();
    let x = s.alloc(input_copy);
    s.output(0);
    let w = s.alloc(weight_copy);
    s.free(w);
    s.free(x);
    s
}

/// Whether a convolution runs PyTorch's own depthwise kernels and not cuDNN: one group a channel, and
/// for 16-bit types no shape that cuDNN is preferred for. `input` is `[batch, channels, height, width]`,
/// kernel and stride are square here (`kernel`, `stride`), dilation is 1.
pub fn native_depthwise(
    input: [u64; 4],
    groups: u64,
    kernel: u64,
    stride: u64,
    dtype: ScalarType,
    channels_last: bool,
) -> bool {
    let [batch, channels, _, width] = input;
    if groups == 1 || groups != channels || channels_last {
        return false;
    }
    if dtype != ScalarType::F16 {
        return true;
    }
    let strided = || match (batch, kernel) {
        (1, 1) => width <= 28,
        (1, _) => true,
        (_, 1) => batch <= 16 && channels >= 128 && width <= 7,
        _ => channels >= 512 || (channels >= 256 && width >= 28),
    };
    let cudnn = matches!(kernel, 1 | 3 | 5)
        && channels >= 32
        && width >= 7
        && (stride == 1 || (stride == 2 && strided()));
    !cudnn
}

/// `convolution_backward`: results 0, 1, 2 are the gradients of input, weight, bias, made as `mask` asks.
///
/// `grad` is the incoming gradient `[batch, channels, ...]`, `grad_copied` whether its memory format is not
/// the convolution's; `depthwise` as [`native_depthwise`] says.
pub fn convolution_backward(
    grad: &Strided,
    dtype: ScalarType,
    grad_copied: bool,
    depthwise: bool,
    mask: [bool; 3],
    dev: &KernelDevice,
) -> Steps {
    let mut s = Steps::new();
    let copy = grad_copied
        .then(|| s.alloc(grad.numel() * dtype.size()))
        .flatten();
    for i in if depthwise { [1, 0] } else { [0, 1] } {
        if mask[i as usize] {
            s.output(i);
        }
    }
    s.free(copy);
    if mask[2] {
        let all = (1 << grad.shape.len()) - 1;
        let bias = reduce(ReduceOp::Sum, grad, dtype, all & !2, false, dtype, dev);
        s.extend(&bias, 2);
    }
    s
}
