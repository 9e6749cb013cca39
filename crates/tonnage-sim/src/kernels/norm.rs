//! Layer, RMS, group and batch normalisation.
//!
//! Source: PyTorch 2.11, `aten/src/ATen/native/cuda/layer_norm_kernel.cu`, `group_norm_kernel.cu`,
//! `Normalization.{cu,cuh}`, `native/cudnn/BatchNorm.cpp`, `native/Normalization.cpp`.
//! Verified: `tests/fixtures/kernels/norm.jsonl`.
use super::{KernelDevice, ReduceOp, Slot, Steps, Strided, reduce_scratch};
use tonnage_units::ScalarType;

/// Whether the weight gradients of a layer or RMS norm go through partial sums: many rows, narrow.
fn partial_sums(rows: u64, width: u64, dev: &KernelDevice) -> bool {
    rows > 64 * 1024 && width / 32 < u64::from(dev.sm_count) / 2
}

/// The final `sum(0)` of partial weight gradients: the new result, then its scratch.
fn sum_partials(s: &mut Steps, i: u8, parts: u64, width: u64, dt: ScalarType, dev: &KernelDevice) {
    s.output(i);
    let x = Strided::contiguous(&[parts, width]);
    s.extend(
        &reduce_scratch(&x, 1, false, &ReduceOp::Sum.kernel(dt, dt), 1, dev),
        0,
    );
}

fn affine_backward(
    rows: u64,
    width: u64,
    dtype: ScalarType,
    results: &[Option<u8>],
    dev: &KernelDevice,
) -> Steps {
    let mut s = Steps::new();
    if let Some(i) = results[0] {
        s.output(i);
    }
    let wanted = results[1..].iter().flatten();
    if !partial_sums(rows, width, dev) {
        wanted.for_each(|&i| s.output(i));
        return s;
    }
    let columns = width.div_ceil(32);
    let parts = rows.div_ceil(32).min(64 * 1024 / 2 / columns);
    let wanted: Vec<u8> = wanted.copied().collect();
    let bytes = dtype.size();
    // the first results are thrown away when the sums replace them
    let first: Vec<Option<Slot>> = wanted.iter().map(|_| s.alloc(width * bytes)).collect();
    let blocks: Vec<Option<Slot>> = wanted
        .iter()
        .map(|_| s.alloc(parts * width * bytes))
        .collect();
    for (&i, &old) in wanted.iter().zip(&first) {
        sum_partials(&mut s, i, parts, width, dtype, dev);
        s.free(old);
    }
    for &b in blocks.iter().rev() {
        s.free(b);
    }
    s
}

/// `native_layer_norm_backward` of `[rows, width]`: results 0, 1, 2 are the gradients of input, weight
/// and bias, each made only if `mask` asks for it. Incoming gradient and input are contiguous.
pub fn layer_norm_backward(
    rows: u64,
    width: u64,
    dtype: ScalarType,
    mask: [bool; 3],
    dev: &KernelDevice,
) -> Steps {
    let r = [0, 1, 2].map(|i| mask[i as usize].then_some(i));
    affine_backward(rows, width, dtype, &r, dev)
}

/// `_fused_rms_norm_backward` of `[rows, width]`: results 0 and 1 are the gradients of input and weight.
pub fn rms_norm_backward(
    rows: u64,
    width: u64,
    dtype: ScalarType,
    mask: [bool; 2],
    dev: &KernelDevice,
) -> Steps {
    let r = [0, 1].map(|i| mask[i as usize].then_some(i));
    affine_backward(rows, width, dtype, &r, dev)
}

/// Bytes of an accumulated value.
fn acc(dtype: ScalarType) -> u64 {
    dtype.size().max(4)
}

/// `native_group_norm` of `[batch, channels, spatial]`: results output, mean, rstd (input's type).
/// `weight` is whether there is a weight or a bias.
pub fn group_norm(
    batch: u64,
    channels: u64,
    spatial: u64,
    dtype: ScalarType,
    weight: bool,
) -> Steps {
    let mut s = Steps::outputs(3);
    if spatial > 1 && weight {
        let a = s.alloc(batch * channels * acc(dtype));
        let b = s.alloc(batch * channels * acc(dtype));
        s.free(b);
        s.free(a);
    }
    s
}

/// `native_group_norm_backward` with a weight; `mask` as in [`layer_norm_backward`].
pub fn group_norm_backward(
    batch: u64,
    channels: u64,
    spatial: u64,
    groups: u64,
    dtype: ScalarType,
    mask: [bool; 3],
) -> Steps {
    let mut s = Steps::new();
    for i in 0..3 {
        if mask[i as usize] {
            s.output(i);
        }
    }
    let acc = acc(dtype);
    let ds = s.alloc(batch * channels * acc);
    let db = s.alloc(batch * channels * acc);
    if mask[0] {
        let c2 = s.alloc(batch * groups * acc);
        let c3 = s.alloc(batch * groups * acc);
        let c1 = if spatial == 1 {
            None
        } else {
            s.alloc(batch * channels * acc)
        };
        s.free(c3);
        s.free(c2);
        s.free(c1);
    }
    s.free(db);
    s.free(ds);
    s
}

/// A batch norm's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchNorm {
    /// Size of dimension 0.
    pub batch: u64,
    /// Size of dimension 1.
    pub channels: u64,
    /// Product of the sizes after dimension 1.
    pub spatial: u64,
    /// Number of dimensions.
    pub dims: u32,
    /// Input type.
    pub dtype: ScalarType,
    /// Type of weight, bias and running statistics.
    pub weight: ScalarType,
    /// Whether the channels are the fastest dimension (channels-last layout, or nothing after them).
    pub channels_last: bool,
}

impl BatchNorm {
    /// Whether `F.batch_norm` uses cuDNN (2.11, `_select_batch_norm_backend`); eps is at least 1e-5.
    pub fn uses_cudnn(&self, training: bool) -> bool {
        self.dtype != ScalarType::BF16
            && self.weight != ScalarType::BF16
            && (self.dtype != ScalarType::F16 || self.weight == ScalarType::F32)
            && self.dims >= 3
            && self.batch <= if training { 880_801 } else { 65_535 }
            && self.batch * self.channels * self.spatial < i32::MAX as u64
    }

    fn last(&self) -> bool {
        self.channels_last || self.spatial == 1
    }

    /// Grid of the channels-last reduction kernels.
    fn grid(&self) -> (u64, u64) {
        let last_pow2 = |n: u64| 1u64 << n.max(1).ilog2();
        let reduction = self.batch * self.spatial;
        let mut x = last_pow2(self.channels).min(32);
        let y = last_pow2(reduction.div_ceil(16)).min(512 / x);
        if x * y != 512 {
            x = last_pow2(self.channels).min(512 / y);
        }
        let grid_y = reduction.div_ceil(y * 16).min(128);
        (
            self.channels.div_ceil(x),
            if grid_y < 8 { 1 } else { grid_y },
        )
    }

    fn staging(&self, s: &mut Steps, values: u64) {
        let (grid_x, grid_y) = self.grid();
        if grid_y > 1 {
            let data = s.alloc(values * self.channels * grid_y * acc(self.dtype));
            let semaphores = s.alloc(grid_x * 4);
            s.free(semaphores);
            s.free(data);
        }
    }

    /// `_batch_norm_impl_index`: results output, saved mean, saved inverse deviation (the last two only
    /// where they have elements: not in cuDNN's evaluation).
    pub fn forward(&self, training: bool) -> Steps {
        if self.uses_cudnn(training) {
            return Steps::outputs(if training { 3 } else { 1 });
        }
        self.native_forward(training)
    }

    /// `native_batch_norm`: results as in [`BatchNorm::forward`].
    pub fn native_forward(&self, training: bool) -> Steps {
        let mut s = Steps::outputs(3);
        if training && self.last() {
            self.staging(&mut s, 4);
        }
        s
    }

    /// The backward of [`BatchNorm::forward`] in training, for all three gradients (input, weight, bias).
    pub fn backward(&self) -> Steps {
        if self.uses_cudnn(true) {
            return Steps::outputs(3);
        }
        self.native_backward()
    }

    /// `native_batch_norm_backward` in training, for all three gradients.
    pub fn native_backward(&self) -> Steps {
        if !self.last() {
            return Steps::outputs(3);
        }
        let mut s = Steps::new();
        let sum_dy = s.alloc(self.channels * acc(self.dtype));
        let sum_dy_xmu = s.alloc(self.channels * acc(self.dtype));
        s.output(1);
        s.output(2);
        self.staging(&mut s, 2);
        s.output(0);
        s.free(sum_dy_xmu);
        s.free(sum_dy);
        s
    }
}
