//! Scaled dot product attention: flash, memory-efficient, cuDNN, and pieces of the composed path.
//!
//! Source: PyTorch 2.11, `aten/src/ATen/native/transformers/cuda/attention.cu`, `attention_backward.cu`,
//! `flash_attn/flash_api.cpp`, `mem_eff_attention/kernel_backward.h` (workspace) and
//! `kernels/generate_kernels.py` (which tile sizes exist), `native/cudnn/MHA.cpp`,
//! `transformers/attention.cpp` (masks, `_safe_softmax`). Verified: `tests/fixtures/kernels/sdpa.jsonl`.
use super::{KernelDevice, ReduceOp, Steps, Strided, reduce_scratch};
use tonnage_units::ScalarType;

/// Shapes of one attention call: q `[batch, heads, q_len, head_dim]`, k and v `[batch, kv_heads, kv_len, ..]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attention {
    /// Batch.
    pub batch: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads (fewer than `heads` with grouped queries; flash and cuDNN only).
    pub kv_heads: u64,
    /// Query length.
    pub q_len: u64,
    /// Key length.
    pub kv_len: u64,
    /// Size of a head (flash: already padded to a multiple of 8).
    pub head_dim: u64,
    /// Type of q, k and v.
    pub dtype: ScalarType,
    /// Whether dropout is active.
    pub dropout: bool,
}

impl Attention {
    fn bh(&self) -> u64 {
        self.batch * self.heads
    }

    fn query_bytes(&self) -> u64 {
        self.bh() * self.q_len * self.head_dim * self.dtype.size()
    }

    /// Into how many parts the flash kernel splits the keys of one query block.
    pub(crate) fn flash_splits(&self, dev: &KernelDevice, heads: u64, q_len: u64) -> u64 {
        if self.dropout {
            return 1;
        }
        let block_n = match self.head_dim {
            0..=64 => 256,
            65..=128 => 128,
            _ => 64,
        };
        let n_blocks = self.kv_len.div_ceil(block_n);
        let work = self.batch * heads * q_len.div_ceil(64);
        let sms = u64::from(dev.sm_count) * 2;
        if work as f32 >= 0.8 * sms as f32 {
            return 1;
        }
        let most = 128.min(sms).min(n_blocks);
        let eligible = |n: u64| n == 1 || n_blocks.div_ceil(n) != n_blocks.div_ceil(n - 1);
        let efficiency = |n: u64| {
            let waves = (work * n) as f32 / sms as f32;
            waves / waves.ceil()
        };
        let candidates = || (1..=most).filter(|&n| eligible(n));
        let best = candidates().map(efficiency).fold(0.0, f32::max);
        candidates()
            .find(|&n| f64::from(efficiency(n)) >= 0.85 * f64::from(best))
            .unwrap_or(1)
    }

    /// `head_dim` as flash stores it in fp32 accumulators.
    pub(crate) fn flash_rounded_dim(&self) -> u64 {
        match self.head_dim {
            0..=128 => self.head_dim.next_multiple_of(32),
            129..=192 => 192,
            _ => 256,
        }
    }

    /// `_scaled_dot_product_flash_attention`: results 0 output, 1 logsumexp, 2 rng state, 3 an unused scalar.
    pub fn flash_forward(&self, dev: &KernelDevice) -> Steps {
        let mut s = Steps::new();
        // one query of grouped heads is turned into a query of group size for each key head
        let swap = self.q_len == 1 && self.heads > self.kv_heads && !self.dropout;
        let (heads, q_len) = if swap {
            (self.kv_heads, self.heads / self.kv_heads)
        } else {
            (self.heads, self.q_len)
        };
        s.output(0);
        s.output(1);
        let splits = self.flash_splits(dev, heads, q_len);
        let rows = splits * self.bh() * self.q_len;
        let mut parts = (None, None);
        if splits > 1 {
            parts = (
                s.alloc(rows * 4),
                s.alloc(rows * self.flash_rounded_dim() * 4),
            );
        }
        if self.dropout {
            let first = s.alloc(16);
            s.output(3);
            s.output(2);
            s.free(first);
        } else {
            s.output(2);
            s.output(3);
        }
        s.free(parts.0);
        s.free(parts.1);
        s
    }

    /// `_scaled_dot_product_flash_attention_backward`: results 0, 1, 2 are the gradients of q, k, v.
    ///
    /// `grad_copied` and `out_copied`: whether the incoming gradient and the saved output must be copied
    /// because they do not lie as `[batch, length, heads, head_dim]` in memory.
    pub fn flash_backward(&self, grad_copied: bool, out_copied: bool) -> Steps {
        let mut s = Steps::new();
        let copy =
            |s: &mut Steps, wanted: bool| wanted.then(|| s.alloc(self.query_bytes())).flatten();
        let grad = copy(&mut s, grad_copied);
        let out = copy(&mut s, out_copied);
        for i in 0..3 {
            s.output(i);
        }
        let rows = self.bh() * self.q_len.next_multiple_of(128);
        let softmax_d = s.alloc(rows * 4);
        let dq_accum = s.alloc(rows * self.flash_rounded_dim() * 4);
        let mut expanded = (None, None);
        if self.heads != self.kv_heads {
            let bytes = self.bh() * self.kv_len * self.head_dim * self.dtype.size();
            expanded = (s.alloc(bytes), s.alloc(bytes));
        }
        for slot in [expanded.1, expanded.0, dq_accum, softmax_d, out, grad] {
            s.free(slot);
        }
        s
    }

    fn half(&self) -> bool {
        self.dtype.size() == 2
    }

    /// `_scaled_dot_product_efficient_attention`: results 0 output, 1 logsumexp (rows padded to 32).
    /// `logsumexp` is false when nothing needs a gradient.
    pub fn efficient_forward(&self, logsumexp: bool) -> Steps {
        let mut s = Steps::outputs(if logsumexp { 2 } else { 1 });
        if self.half() && self.head_dim > 128 {
            s.scratch(self.bh() * self.q_len * self.head_dim * 4);
        }
        s
    }

    /// Tile of the backward kernel: query block, key block, and whether the gradients of k and v stay in
    /// registers until they are final.
    fn efficient_tile(&self, dev: &KernelDevice) -> (u64, u64, bool) {
        let (d, half) = (self.head_dim, self.half());
        match (d, half, dev.capability) {
            (0..=64, _, _) => (64, 64, true),
            (65..=128, true, (8, 0) | (9, _)) => (128, 128, true),
            (65..=96, true, (8, 6 | 9)) if !self.dropout => (128, 64, true),
            (65..=128, true, (7, _)) => (128, 64, true),
            (65..=128, true, _) => (64, 64, false),
            (_, true, _) => (128, 64, false),
            (_, false, (7, _) | (8, 6 | 9)) => (64, 64, true),
            (_, false, _) => (128, 64, true),
        }
    }

    /// Workspace of the memory-efficient backward kernel, bytes.
    pub fn efficient_workspace(&self, dev: &KernelDevice) -> u64 {
        let (bi, bj, in_registers) = self.efficient_tile(dev);
        let columns = self.head_dim.div_ceil(bj);
        let mut words = self.q_len.div_ceil(bi) * columns * (4 + bi * bj);
        if self.half() && !in_registers {
            // the keys are split over blocks, each with its own partial gradients of k and v
            let splits = self.kv_len.div_ceil(bj).min(200 / self.bh()).max(1);
            words += 2 * splits * bj * self.head_dim.next_multiple_of(bi);
        }
        self.bh() * words.next_multiple_of(4) * 4
    }

    /// `_scaled_dot_product_efficient_attention_backward`: results 0, 1, 2 are the gradients of q, k, v.
    /// `grad_copied` as in [`Attention::flash_backward`].
    pub fn efficient_backward(&self, grad_copied: bool, dev: &KernelDevice) -> Steps {
        let mut s = Steps::new();
        let grad = grad_copied.then(|| s.alloc(self.query_bytes())).flatten();
        for i in 0..3 {
            s.output(i);
        }
        let delta;
        let bytes = self.bh() * self.q_len * 4;
        if self.half() {
            delta = s.alloc(bytes);
        } else {
            // delta = (gradient * output).sum(-1), then made contiguous with the heads first
            let product = s.alloc(self.query_bytes());
            let sum = s.alloc(bytes);
            if self.q_len > 1 && self.heads > 1 {
                delta = s.alloc(bytes);
                s.free(sum);
            } else {
                delta = sum;
            }
            s.free(product);
        }
        let workspace = s.alloc(self.efficient_workspace(dev));
        s.free(delta);
        s.free(workspace);
        s.free(grad);
        s
    }

    /// `_scaled_dot_product_cudnn_attention`: results 0 output, 1 logsumexp, 2 seed, 3 offset
    /// (the plan's own workspace is not known: 0).
    pub fn cudnn_forward(&self) -> Steps {
        let mut s = Steps::new();
        for i in [2, 3, 0, 1] {
            s.output(i);
        }
        s
    }

    /// Its backward, results 0, 1, 2 are the gradients of q, k, v: a buffer of an fp32 query gradient and
    /// one fp32 value a row.
    pub fn cudnn_backward(&self) -> Steps {
        let mut s = Steps::outputs(3);
        let rows = self.bh() * self.q_len;
        s.scratch(rows * self.head_dim * 4 + rows * 4);
        s
    }
}

/// Bytes of the copy that memory-efficient attention makes of a mask `[.., kv_len]` whose row stride is
/// not a multiple of 8 elements; `rows` is the product of the mask's own sizes before the last.
pub fn padded_mask_bytes(rows: u64, kv_len: u64, dtype: ScalarType) -> u64 {
    rows * (kv_len + 8 - kv_len % 8) * dtype.size()
}

/// A boolean mask of `n` elements turned into an additive one (result 0) of type `dtype`.
pub fn boolean_mask(dtype: ScalarType) -> Steps {
    let mut s = Steps::new();
    let zero = s.alloc(dtype.size());
    let inf = s.alloc(dtype.size());
    s.output(0);
    s.free(inf);
    s.free(zero);
    s
}

/// `_safe_softmax` over the last dimension of `[rows, width]` without a graph: the softmax (result 0),
/// then rows that are all minus infinity are set to zero.
pub fn safe_softmax(rows: u64, width: u64, dtype: ScalarType, dev: &KernelDevice) -> Steps {
    let mut s = Steps::outputs(1);
    let masked = s.alloc(rows * width);
    let all = s.alloc(rows);
    let kernel = ReduceOp::AnyAll.kernel(ScalarType::Bool, ScalarType::Bool);
    let x = Strided::contiguous(&[rows, width]);
    s.extend(&reduce_scratch(&x, 2, true, &kernel, 1, dev), 0);
    let zero = s.alloc(dtype.size());
    s.free(zero);
    s.free(all);
    s.free(masked);
    s
}
