//! What single CUDA operators of PyTorch 2.11 allocate besides their results, as pure functions.
//!
//! Every function here answers one question: *in which order does this operator ask the caching
//! allocator for which bytes, and when does it give them back?* The answer is a [`Steps`] list, which
//! the simulator plays. Rules are read from the launchers in `aten/src/ATen/native/cuda` (named at each
//! function) and compared with recorded traces of the real launchers in `tests/kernels.rs`, whose data
//! `tools/record_kernels.py` makes.
mod conv;
mod cub;
mod device;
mod embedding;
mod foreach;
mod gemm;
mod index;
mod iter;
mod loss;
mod norm;
mod reduce;
mod sdpa;
mod steps;

pub use conv::{convolution, convolution_backward, native_depthwise};
pub use cub::{
    exclusive_scan_temp, flag_sum_temp, inclusive_scan_temp, radix_sort_pairs_temp,
    radix_sort_tile, scan_temp, select_temp, unique_by_key_temp,
};
pub use device::KernelDevice;
pub use embedding::embedding_dense_backward;
pub use foreach::foreach_norm_scratch;
pub use gemm::{CUBLASLT_WORKSPACE, addmm_uses_lt, cublas_workspace, grouped_mm};
pub use index::{cumsum, index_put_accumulate, nonzero, sort, topk};
pub use iter::Strided;
pub use loss::{Reduction, bce_with_logits, pointwise_loss, softmax_backward};
pub use norm::{
    BatchNorm, group_norm, group_norm_backward, layer_norm_backward, rms_norm_backward,
};
pub use reduce::{ReduceKernel, ReduceOp, reduce, reduce_into, reduce_scratch};
pub use sdpa::{Attention, boolean_mask, padded_mask_bytes, safe_softmax};
pub use steps::{Slot, Step, Steps};
