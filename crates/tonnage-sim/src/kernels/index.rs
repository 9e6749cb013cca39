//! Sorting, prefix sums, `nonzero`, and accumulating writes through indices.
//!
//! `topk` over rows of fewer than 400 elements, `gather`, `scatter_`, `scatter_add_`, `index_add_`,
//! `index_select`, `index`, `masked_fill`, `histc` of int32, `one_hot` with a class count, `tril` and
//! `arange` allocate their result only (or nothing when in place). `native_dropout` allocates the mask
//! (result 1) before the output (result 0). `where` with a Python number makes a one-element tensor first.
//!
//! Source: PyTorch 2.11, `aten/src/ATen/native/cuda/Sort.cpp`, `ScanKernels.cpp`, `Nonzero.cu`,
//! `Indexing.cu` (`index_put_with_sort_kernel`). Verified: `tests/fixtures/kernels/index.jsonl`.
use super::{
    KernelDevice, ReduceOp, Steps, Strided, flag_sum_temp, inclusive_scan_temp,
    radix_sort_pairs_temp, reduce, select_temp,
};
use tonnage_units::ScalarType;

/// `sort` along the last dimension of rows of `width` elements (results 0 values, 1 indices), stable or
/// not, also `argsort` (where the values are a temporary). Rows longer than 4,096 are covered only
/// for one row of 4- or 8-byte elements: `None` otherwise.
pub fn sort(rows: u64, width: u64, dtype: ScalarType, dev: &KernelDevice) -> Option<Steps> {
    let mut s = Steps::outputs(2);
    if width <= 4096 {
        s.scratch(width * 8);
        return Some(s);
    }
    let key = dtype.size();
    if rows != 1 || key < 4 {
        return None;
    }
    let positions = s.alloc(width * 8);
    s.scratch(radix_sort_pairs_temp(width, key, key * 8, dev));
    s.free(positions);
    Some(s)
}

/// `topk` of `rows` rows of `width` elements: results 0 values, 1 indices. Long rows are shared by several blocks, whose buffers
/// are taken first to last and go last to first (`cuda/TensorTopK.cu`, `mbtopk`; cases `llama-tiny-generate-bf16-beams4`,
/// `-b40-beams2` and `-sample`).
pub fn topk(rows: u64, width: u64, dtype: ScalarType, dev: &KernelDevice) -> Steps {
    const THREADS: u64 = 256;
    let mut s = Steps::outputs(2);
    let shared = match rows {
        0..=20 => width >= 20_000,
        21..=40 => width >= 10_000,
        41..=80 => width >= 8_000,
        81..200 => width >= 5_000,
        200..800 => width >= 3_000,
        800..=4000 => width >= 800,
        _ => width >= 400,
    };
    if !shared {
        return s;
    }
    // six blocks of 256 threads with 40 registers each on a multiprocessor
    let threads = u64::from(dev.sm_count) * 6 * THREADS;
    let items = (rows * width).div_ceil(threads).clamp(4, 64);
    let blocks = rows * width.div_ceil(items * THREADS);
    let slots: Vec<_> = [
        rows * dtype.size(),
        rows * 8,
        rows * 8,
        blocks * 256 * 2,
        rows * 256 * 4,
        blocks * 4,
        blocks * 4,
    ]
    .into_iter()
    .map(|n| s.alloc(n))
    .collect();
    for _ in 0..2 {
        // by key: the keys before each tile lie behind the tiles' states
        s.scratch(inclusive_scan_temp(blocks, 4) + 256);
    }
    for slot in slots.into_iter().rev() {
        s.free(slot);
    }
    s
}

/// `cumsum` of `n` elements with result type `out`: `whole` is whether the summed dimension is the whole
/// tensor (then CUB scans it). fp16 and bf16 whole tensors are not covered: `None`.
pub fn cumsum(n: u64, input: ScalarType, out: ScalarType, whole: bool) -> Option<Steps> {
    let mut s = Steps::outputs(1);
    let cast = if input == out {
        None
    } else {
        s.alloc(n * out.size())
    };
    if whole {
        if out.size() < 4 {
            return None;
        }
        s.scratch(inclusive_scan_temp(n, out.size()));
    }
    s.free(cast);
    Some(s)
}

/// `nonzero` (also `where(condition)`) of `n` elements in `dims` dimensions of which `found` are not
/// zero: result 0 is `[found, dims]` int64 and is absent when it has no elements.
pub fn nonzero(n: u64, dims: u64, found: u64, dev: &KernelDevice) -> Steps {
    let mut s = Steps::new();
    let count = s.alloc(4);
    s.scratch(flag_sum_temp(n, dev));
    if found * dims > 0 {
        s.output(0);
    }
    s.scratch(select_temp(n, dev));
    s.free(count);
    s
}

/// `index_put_(accumulate=True)` with `indices` int64 index tensors of `n` elements each, in place; the
/// backward of indexing with tensors (`checked` false, after the zeros it writes into).
///
/// `slots` is how many places the indices can name (product of the indexed sizes), `checked` whether
/// their range is tested (a user's call). Values are contiguous.
pub fn index_put_accumulate(
    indices: u64,
    n: u64,
    slots: u64,
    checked: bool,
    dev: &KernelDevice,
) -> Steps {
    let mut s = Steps::new();
    let mut linear = None;
    for i in 0..indices {
        if checked {
            for _ in 0..2 {
                let x = Strided::contiguous(&[n]);
                let extreme = reduce(
                    ReduceOp::Extreme,
                    &x,
                    ScalarType::I64,
                    1,
                    false,
                    ScalarType::I64,
                    dev,
                );
                let value = s.inline(&extreme, &[8])[0];
                s.scratch(1);
                s.free(value);
            }
        }
        let wrapped = s.alloc(n * 8);
        let product = s.alloc(n * 8);
        s.free(wrapped);
        if i == 0 {
            linear = product;
        } else {
            s.free(product);
        }
    }
    let sorted = s.alloc(n * 8);
    let original = s.alloc(n * 8);
    let range = s.alloc(n * 8);
    let bits = u64::from(slots.saturating_sub(1).max(1).ilog2()) + 1;
    s.scratch(radix_sort_pairs_temp(n, 8, bits, dev));
    for slot in [range, original, sorted, linear] {
        s.free(slot);
    }
    s
}
