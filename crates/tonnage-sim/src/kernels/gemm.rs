//! Matrix products: workspaces, when the bias is fused (cuBLASLt), grouped products.
//!
//! Source: PyTorch 2.11, `aten/src/ATen/cuda/CublasHandlePool.cpp` (workspace sizes),
//! `native/cuda/Blas.cpp` (`addmm_out_cuda_impl`), `native/cuda/GroupMM.cu`.
//! Verified: `tests/fixtures/kernels/gemm.jsonl`.
//!
//! A workspace is made on a thread's first use of its library handle, *after* the product's result is
//! allocated, and lives until the end. The order is: copies of operands whose layout cuBLAS cannot take,
//! the result, the cuBLAS workspace, the cuBLASLt workspace. Every product, also one that cuBLASLt does,
//! makes the cuBLAS workspace first, because the handle comes with it. Beside the fused bias, `_scaled_mm`
//! uses cuBLASLt with its workspace (`_int_mm` without); `mm`, `bmm`, `baddbmm`, `mv`, `dot` never do.
use super::{KernelDevice, Slot, Steps};

/// Bytes of the cuBLAS workspace of one (handle, stream).
pub fn cublas_workspace(dev: &KernelDevice) -> u64 {
    match dev.capability.0 {
        9 | 10 => 32 << 20,
        _ => (4096 * 2 + 16 * 8) * 1024,
    }
}

/// Bytes of the cuBLASLt workspace of one (handle, stream).
pub const CUBLASLT_WORKSPACE: u64 = 1 << 20;

/// Whether `addmm(bias, [m, k], [k, n], beta, alpha)` (and so a linear layer with a bias) is done by
/// cuBLASLt with the bias in its epilogue: then the cuBLASLt workspace is needed.
///
/// `row_bias` is whether the bias is contiguous and of shape `[n]` or `[1, n]` (not `[m, n]` with m > 1,
/// not a scalar). `alpha` does not matter; nor does the type, as long as it is fp64, fp32, fp16 or bf16.
pub fn addmm_uses_lt(n: u64, k: u64, row_bias: bool, beta_is_one: bool) -> bool {
    row_bias && beta_is_one && n > 1 && k > 1
}

/// Temporaries of `_grouped_mm` (bf16) after its result: on sm90 the argument arrays of all groups and
/// the CUTLASS workspace (512 bytes for each multiprocessor, seen on cards with 132), else nothing.
/// Other types, and older cards, run one product for each group.
pub fn grouped_mm(groups: u64, bf16: bool, dev: &KernelDevice) -> Steps {
    let mut s = Steps::outputs(1);
    if dev.is_sm90() && bf16 {
        let pointers = groups.next_multiple_of(2) * 3 * 8;
        let args = s.alloc(pointers + groups * (12 + 3 * 8));
        let workspace: Option<Slot> = s.alloc(u64::from(dev.sm_count) * 512);
        s.free(workspace);
        s.free(args);
    }
    s
}
