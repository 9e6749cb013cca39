//! The null CUDA device: a library loaded ahead of a program (`LD_PRELOAD`) that answers for the CUDA runtime, the
//! driver, the math libraries, NVML and NCCL, so that unmodified frameworks run all of their host code without a GPU.
//! The environment variables and the report are described in the crate's README.
//!
//! Linux on x86-64 with glibc; elsewhere the crate is empty but for its settings.

pub mod settings;

/// Devices of one machine.
pub const MAX_DEVICES: usize = 64;

/// Exported C functions by their own names.
#[allow(unused_macros)]
macro_rules! api {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $kind:ty),* $(,)?) -> $out:ty $body:block)*) => {$(
        $(#[$meta])*
        #[allow(missing_docs, clippy::too_many_arguments)]
        // SAFETY: the name is meant to stand in for the one of the CUDA libraries, in every process that preloads this.
        #[unsafe(no_mangle)]
        pub extern "C" fn $name($($arg: $kind),*) -> $out $body
    )*};
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod blas;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod compute;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod device_prop;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod dlopen;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod dnn;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod driver;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod fatbin;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod memory;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod missing;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod nccl;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod neighbours;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod nvml;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod report;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod rnn;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod rt_device;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod rt_launch;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod rt_memory;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod rt_stream;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod shadow;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod state;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod torch;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod types;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod vmm;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod wheels;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod world;
