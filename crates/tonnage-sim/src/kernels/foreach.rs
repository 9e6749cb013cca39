//! Multi-tensor operators.
//!
//! In-place ones (`_foreach_mul_`, `_foreach_addcdiv_`, `_foreach_lerp_`, ..., fused AdamW) allocate nothing;
//! the others (`_foreach_sqrt`, `_foreach_add`, ...) one result a tensor, in order. `_foreach_norm` is here.
//! Source: PyTorch 2.11, `aten/src/ATen/native/cuda/ForeachReduceOp.cu`.
//! Verified: `tests/fixtures/kernels/foreach.jsonl`.
use tonnage_units::ScalarType;

/// Elements that one block of a multi-tensor kernel takes.
const CHUNK: u64 = 65_536;

/// Bytes of the partial norms that `_foreach_norm` allocates before its results (one scalar a tensor, in
/// the gradients' type) and frees after them. `numels` are the sizes of the tensors, all of type `dtype`.
pub fn foreach_norm_scratch(numels: impl IntoIterator<Item = u64>, dtype: ScalarType) -> u64 {
    let (mut tensors, mut chunks) = (0, 0);
    for n in numels {
        tensors += 1;
        chunks = chunks.max(n.div_ceil(CHUNK));
    }
    tensors * chunks * dtype.size().max(4)
}
