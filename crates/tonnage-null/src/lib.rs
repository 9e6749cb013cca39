//! The null CUDA device: a library loaded ahead of a program (`LD_PRELOAD`) that answers for the CUDA runtime, the
//! driver, the math libraries, NVML and NCCL, so that unmodified frameworks run all of their host code without a GPU.
//! The environment variables and the report are described in the crate's README.

pub mod settings;

/// Devices of one machine.
pub const MAX_DEVICES: usize = 64;
