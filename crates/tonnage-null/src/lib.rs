//! The null CUDA device: a library loaded ahead of a program (`LD_PRELOAD`) that answers for the CUDA runtime, the
//! driver, the math libraries, NVML and NCCL, so that unmodified frameworks run all of their host code without a GPU.
//! The environment variables and the report are described in the crate's README.
//!
//! Linux on x86-64 with glibc; elsewhere the crate is empty but for its settings.

pub mod settings;

/// Devices of one machine.
pub const MAX_DEVICES: usize = 64;

/// Exported C functions by their own names.
macro_rules! api {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $kind:ty),* $(,)?) -> $out:ty $body:block)*) => {$(
        $(#[$meta])*
        #[allow(missing_docs, clippy::too_many_arguments)]
        // SAFETY: the name is meant to stand in for the one of the CUDA libraries, in every process that preloads this.
        #[unsafe(no_mangle)]
        pub extern "C" fn $name($($arg: $kind),*) -> $out $body
    )*};
}

#[cfg(target_os = "linux")]
pub mod blas;
#[cfg(target_os = "linux")]
pub mod compute;
#[cfg(target_os = "linux")]
pub mod device_prop;
#[cfg(target_os = "linux")]
pub mod dlopen;
#[cfg(target_os = "linux")]
pub mod dnn;
#[cfg(target_os = "linux")]
pub mod driver;
#[cfg(target_os = "linux")]
pub mod fatbin;
#[cfg(target_os = "linux")]
pub mod memory;
#[cfg(target_os = "linux")]
pub mod missing;
#[cfg(target_os = "linux")]
pub mod nccl;
#[cfg(target_os = "linux")]
pub mod neighbours;
#[cfg(target_os = "linux")]
pub mod nvml;
#[cfg(target_os = "linux")]
pub mod report;
#[cfg(target_os = "linux")]
pub mod rt_device;
#[cfg(target_os = "linux")]
pub mod rt_launch;
#[cfg(target_os = "linux")]
pub mod rt_memory;
#[cfg(target_os = "linux")]
pub mod rt_stream;
#[cfg(target_os = "linux")]
pub mod shadow;
#[cfg(target_os = "linux")]
pub mod state;
#[cfg(target_os = "linux")]
pub mod torch;
#[cfg(target_os = "linux")]
pub mod types;
#[cfg(target_os = "linux")]
pub mod vmm;
#[cfg(target_os = "linux")]
pub mod wheels;
#[cfg(target_os = "linux")]
pub mod world;
