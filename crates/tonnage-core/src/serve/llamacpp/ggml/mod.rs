//! ggml as far as memory goes: tensors with shapes and strides, the compute graph, the scheduler that places nodes on backends and
//! splits the graph, and the graph allocator.
//!
//! Rules: llama.cpp v0.5.0, ggml/src/{ggml.c, ggml-backend.cpp, ggml-alloc.c} and ggml-cuda/. Verified against the recorded graphs in
//! groundtruth/llamacpp-graphs (tests/llamacpp_graphs.rs) and the compute buffers of groundtruth/llamacpp-dev.jsonl.

pub mod cuda;
pub mod galloc;
pub mod graph;
pub mod ops;
pub mod pool;
pub mod reorder;
pub mod sched;
pub mod vulkan;

pub use galloc::{Held, Plan};
pub use graph::{Graph, Id, Op, Tensor, Unary};
pub use sched::{Backend, Backends, Gpu, Split};

/// A kind of memory that a buffer is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Buft {
    /// Device memory, by number of the device.
    Cuda(u8),
    /// Device memory of a Vulkan device.
    Vulkan(u8),
    /// Pinned host memory of a CUDA build.
    CudaHost,
    /// The same of a Vulkan build.
    VulkanHost,
    /// Plain host memory.
    Cpu,
    /// The file mapped into memory.
    CpuMapped,
    /// Weights in a layout of the CPU backend's own.
    CpuRepack,
}

impl Buft {
    /// The engine's name of it: `CUDA0`, `CUDA_Host`.
    pub fn name(self) -> String {
        match self {
            Buft::Cuda(i) => format!("CUDA{i}"),
            Buft::Vulkan(i) => format!("Vulkan{i}"),
            Buft::CudaHost => "CUDA_Host".into(),
            Buft::VulkanHost => "Vulkan_Host".into(),
            Buft::Cpu => "CPU".into(),
            Buft::CpuMapped => "CPU_Mapped".into(),
            Buft::CpuRepack => "CPU_REPACK".into(),
        }
    }
    /// Memory that the CPU reads as it is (`ggml_backend_buffer_is_host`).
    pub fn is_host(self) -> bool {
        matches!(
            self,
            Buft::CudaHost | Buft::VulkanHost | Buft::Cpu | Buft::CpuMapped
        )
    }
    /// On a device.
    pub fn is_device(self) -> bool {
        matches!(self, Buft::Cuda(_) | Buft::Vulkan(_))
    }
    /// Number of the device.
    pub fn device(self) -> Option<u8> {
        match self {
            Buft::Cuda(i) | Buft::Vulkan(i) => Some(i),
            _ => None,
        }
    }
    /// Tensors begin at multiples of it. Vulkan: what Mesa's software device says.
    pub fn alignment(self) -> u64 {
        match self {
            Buft::Cuda(_) => 128,
            Buft::Vulkan(_) => 16,
            Buft::VulkanHost => 64,
            _ => 32,
        }
    }
}

/// `n` up to a multiple of `to`.
pub(crate) fn pad(n: u64, to: u64) -> u64 {
    n.div_ceil(to).saturating_mul(to)
}
