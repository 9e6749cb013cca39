//! Softmax and losses.
//!
//! `_softmax`, `_log_softmax`, `_log_softmax_backward_data`, `nll_loss_forward` (results loss, total weight)
//! and `nll_loss_backward` allocate their results only; the others are here.
//! Source: PyTorch 2.11, `aten/src/ATen/native/cuda/SoftMax.cu`, `native/Loss.cpp`.
//! Verified: `tests/fixtures/kernels/loss.jsonl`.
use super::{KernelDevice, ReduceOp, Steps, Strided, reduce, reduce_into};
use tonnage_units::ScalarType;

/// How a loss is reduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// Not at all.
    None,
    /// Mean.
    Mean,
    /// Sum.
    Sum,
}

/// `_softmax_backward_data` (result 0): the product of gradient and output is a temporary of the
/// output's type and shape.
pub fn softmax_backward(output_bytes: u64) -> Steps {
    let mut s = Steps::outputs(1);
    s.scratch(output_bytes);
    s
}

impl Reduction {
    fn op(self) -> Option<ReduceOp> {
        match self {
            Reduction::None => None,
            Reduction::Mean => Some(ReduceOp::Mean),
            Reduction::Sum => Some(ReduceOp::Sum),
        }
    }
}

/// `mse_loss` and `smooth_l1_loss` over `n` elements. **The storage of result 0 has `n` elements also
/// when the loss is reduced**: the operator's meta function sizes it for the unreduced loss, and the
/// scalar keeps that storage.
pub fn pointwise_loss(n: u64, dtype: ScalarType, how: Reduction, dev: &KernelDevice) -> Steps {
    let mut s = Steps::outputs(1);
    if let Some(op) = how.op() {
        let unreduced = s.alloc(n * dtype.size());
        let x = Strided::contiguous(&[n]);
        s.extend(&reduce_into(op, &x, dtype, 1, false, dtype, dev), 0);
        s.free(unreduced);
    }
    s
}

/// `binary_cross_entropy_with_logits` without weights over `n` elements.
pub fn bce_with_logits(n: u64, dtype: ScalarType, how: Reduction, dev: &KernelDevice) -> Steps {
    let mut s = Steps::new();
    let log_sigmoid = s.alloc(n * dtype.size());
    let Some(op) = how.op() else {
        s.output(0);
        s.free(log_sigmoid);
        return s;
    };
    let loss = s.alloc(n * dtype.size());
    let x = Strided::contiguous(&[n]);
    s.extend(&reduce(op, &x, dtype, 1, false, dtype, dev), 0);
    s.free(loss);
    s.free(log_sigmoid);
    s
}
