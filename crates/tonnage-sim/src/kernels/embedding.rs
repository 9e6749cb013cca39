//! `embedding_dense_backward`.
use super::{KernelDevice, Steps, exclusive_scan_temp, radix_sort_pairs_temp, unique_by_key_temp};
use tonnage_units::ScalarType;

/// The gradient of an embedding table `[rows, width]` for `indices` int64 indices.
///
/// Up to 3,072 indices one kernel does it; more are sorted and summed by segments. `grad_contiguous` is
/// whether the incoming gradient is contiguous (else it is copied first), `indices_contiguous` the same of the
/// indices (else a copy: BERT's expanded token types). `padding_idx` changes nothing; `scale_grad_by_freq` is not covered. Result 0: the table's gradient.
///
/// Source: PyTorch 2.11, `aten/src/ATen/native/cuda/{Embedding,EmbeddingBackwardKernel}.cu`.
/// Verified: `tests/fixtures/kernels/embedding.jsonl`.
pub fn embedding_dense_backward(
    indices: u64,
    rows: u64,
    width: u64,
    dtype: ScalarType,
    grad_contiguous: bool,
    indices_contiguous: bool,
    dev: &KernelDevice,
) -> Steps {
    let mut s = Steps::new();
    let copy = if grad_contiguous {
        None
    } else {
        s.alloc(indices * width * dtype.size())
    };
    let dense_indices = |s: &mut Steps| {
        if indices_contiguous {
            None
        } else {
            s.alloc(indices * 8)
        }
    };
    if indices <= 3072 {
        let dense = dense_indices(&mut s);
        s.output(0);
        s.free(dense);
        s.free(copy);
        return s;
    }
    const ROWS_PER_PARTIAL: u64 = 10;
    let segments = indices.min(rows);
    let partials = indices / ROWS_PER_PARTIAL + segments;
    let sorted = s.alloc(indices * 8);
    let original = s.alloc(indices * 8);
    let dense = dense_indices(&mut s);
    let range = s.alloc(indices * 8);
    s.scratch(radix_sort_pairs_temp(indices, 8, 64, dev));
    s.free(range);
    s.output(0);
    let segment_offsets = s.alloc(indices * 8);
    let num_segments = s.alloc(8);
    let unique_keys = s.alloc(indices * 8);
    s.scratch(unique_by_key_temp(indices, dev));
    s.free(unique_keys);
    let per_segment = s.alloc(segments * 8);
    let per_segment_offset = s.alloc(segments * 8);
    s.scratch(exclusive_scan_temp(segments));
    let num_partials = s.alloc(8);
    let partial_offset = s.alloc(partials * 8);
    // small tables, used often, are summed with atomics: a row number per partial sum, fp32 sums
    let atomic = rows < 4 * u64::from(dev.sm_count) && rows * 30 <= indices;
    let (sums, wide);
    if atomic {
        sums = s.alloc(partials * 8);
        wide = if dtype.size() < 4 {
            s.alloc(rows * width * 4)
        } else {
            None
        };
    } else {
        sums = s.alloc(partials * width * dtype.size().max(4));
        wide = None;
    }
    for slot in [
        wide,
        sums,
        partial_offset,
        num_partials,
        per_segment_offset,
        per_segment,
        num_segments,
        segment_offsets,
        dense,
        original,
        sorted,
        copy,
    ] {
        s.free(slot);
    }
    s
}
