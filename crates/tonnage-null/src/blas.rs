//! cuBLAS, cuBLASLt and cuFFT: the functions with answers. Products are done by rule (`compute`).

use crate::missing::{done, handle};
use crate::rt_memory::fill;
use crate::types::*;
use std::ffi::{CStr, c_char};

/// `cublasLtMatmulHeuristicResult_t`
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Heuristic {
    algorithm: [u64; 8],
    workspace: usize,
    state: i32,
    waves: f32,
    reserved: [i32; 4],
}

/// The name of a `cublasStatus_t` (cuBLAS documentation, 2.2.2).
fn status_text(status: i32) -> &'static CStr {
    match status {
        0 => c"CUBLAS_STATUS_SUCCESS",
        1 => c"CUBLAS_STATUS_NOT_INITIALIZED",
        3 => c"CUBLAS_STATUS_ALLOC_FAILED",
        7 => c"CUBLAS_STATUS_INVALID_VALUE",
        8 => c"CUBLAS_STATUS_ARCH_MISMATCH",
        11 => c"CUBLAS_STATUS_MAPPING_ERROR",
        13 => c"CUBLAS_STATUS_EXECUTION_FAILED",
        14 => c"CUBLAS_STATUS_INTERNAL_ERROR",
        15 => c"CUBLAS_STATUS_NOT_SUPPORTED",
        16 => c"CUBLAS_STATUS_LICENSE_ERROR",
        _ => c"unknown status",
    }
}

api! {
    fn cublasGetMathMode(_h: usize, mode: Out<i32>) -> i32 { mode.set(0); OK }
    fn cublasGetPointerMode_v2(_h: usize, mode: Out<i32>) -> i32 { mode.set(0); OK }
    fn cublasGetAtomicsMode(_h: usize, mode: Out<i32>) -> i32 { mode.set(0); OK }
    fn cublasGetStream_v2(_h: usize, stream: Out<usize>) -> i32 { stream.set(0); OK }
    fn cublasGetSmCountTarget(_h: usize, count: Out<i32>) -> i32 { count.set(0); OK }
    fn cublasGetVersion_v2(_h: usize, version: Out<i32>) -> i32 {
        version.set(crate::rt_device::runtime_version() / 1000 * 10000);
        OK
    }
    fn cublasGetMatrixAsync(rows: i32, columns: i32, size: i32, _a: usize, _lda: i32, b: usize, ldb: i32, _stream: usize) -> i32 {
        for column in 0..columns.max(0) as usize {
            fill(b + column * ldb as usize * size as usize, 0, rows.max(0) as usize * size as usize);
        }
        OK
    }
    fn cublasGetVectorAsync(n: i32, size: i32, _x: usize, _incx: i32, y: usize, incy: i32, _stream: usize) -> i32 {
        for i in 0..n.max(0) as usize {
            fill(y + i * incy as usize * size as usize, 0, size as usize);
        }
        OK
    }
    fn cublasLtMatmulAlgoGetHeuristic(_h: usize, _op: usize, _a: usize, _b: usize, _c: usize, _d: usize, _preference: usize, asked: i32, results: Out<Heuristic>, found: Out<i32>) -> i32 {
        // One algorithm, without workspace of its own: frameworks hand over the workspace that they hold anyway.
        if asked > 0 { results.set(Heuristic::default()) }
        found.set(asked.min(1));
        OK
    }
    fn cublasLtMatmulAlgoInit(_h: usize) -> i32 { OK }
    fn cublasLtMatmulAlgoCheck(_h: usize, _op: usize, _a: usize, _b: usize, _c: usize, _d: usize, _algorithm: usize, result: Out<Heuristic>) -> i32 {
        result.set(Heuristic::default());
        OK
    }
    // a program that links cuBLAS without PyTorch's wheels has no real library to ask for its texts
    fn cublasGetStatusString(status: i32) -> *const c_char { status_text(status).as_ptr() }
    fn cublasGetStatusName(status: i32) -> *const c_char { status_text(status).as_ptr() }
    fn cublasLtGetStatusString(status: i32) -> *const c_char { status_text(status).as_ptr() }
    fn cublasLtGetStatusName(status: i32) -> *const c_char { status_text(status).as_ptr() }
    fn cufftCreate(plan: Out<i32>) -> i32 { plan.set((handle() & 0x7fff_ffff) as i32); OK }
    fn cufftSetAutoAllocation(_plan: i32, _on: i32) -> i32 { OK }
    fn cufftXtExec(_plan: i32) -> i32 { done() }
}
