//! A refused request, and the text PyTorch prints for it.

use super::config::ONE_EB;
use std::fmt;

/// The device had no more, after everything cached was given back. All figures in bytes, at that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub struct OutOfMemory {
    /// Asked for by the program.
    pub requested: u64,
    /// "Tried to allocate": the segment that would have been made.
    pub tried: u64,
    /// "total capacity of".
    pub total: u64,
    /// "of which ... is free".
    pub free: u64,
    /// "allowed", when the process is limited to a fraction of the device.
    pub allowed: Option<u64>,
    /// "allocated by PyTorch".
    pub allocated: u64,
    /// Allocated and "reserved by PyTorch but unallocated" together.
    pub reserved: u64,
}

/// A process on the device, as the driver lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessMemory {
    /// The process that ran out.
    This {
        bytes: u64,
    },
    Other {
        pid: u32,
        bytes: u64,
    },
}

/// What the message says that the allocator does not know.
#[derive(Clone, Copy, Debug, Default)]
pub struct MessageContext<'a> {
    /// Device index, "GPU 0".
    pub device: u32,
    /// In the driver's order. Empty where NVML does not list them (containers, WSL, the null device).
    pub processes: &'a [ProcessMemory],
    /// Bytes cached in private pools (CUDA graphs); torch counts them as allocated.
    pub private_pools: u64,
}

impl OutOfMemory {
    /// The text of `torch.OutOfMemoryError` in PyTorch 2.11 (`DeviceCachingAllocator::malloc`, `reportProcessMemoryInfo`).
    /// Verified letter by letter by `tests/alloc_recorded.rs` and, for the process list, `tests/alloc_config.rs`.
    pub fn message(&self, context: &MessageContext) -> String {
        use fmt::Write;
        if self.requested >= ONE_EB {
            return "CUDA out of memory. Tried to allocate more than 1EB memory.".into();
        }
        let mut s = format!(
            "CUDA out of memory. Tried to allocate {}. GPU {} has a total capacity of {} of which {} is free. ",
            format_size(self.tried),
            context.device,
            format_size(self.total),
            format_size(self.free)
        );
        for p in context.processes {
            let (who, bytes) = match *p {
                ProcessMemory::This { bytes } => (
                    "Including non-PyTorch memory, this process".to_owned(),
                    bytes,
                ),
                ProcessMemory::Other { pid, bytes } => (format!("Process {pid}"), bytes),
            };
            let _ = write!(s, "{who} has {} memory in use. ", format_size(bytes));
        }
        if let Some(allowed) = self.allowed {
            let _ = write!(s, "{} allowed; ", format_size(allowed));
        }
        let allocated = self.allocated + context.private_pools;
        let _ = write!(
            s,
            "Of the allocated memory {} is allocated by PyTorch, ",
            format_size(allocated)
        );
        if context.private_pools > 0 {
            let _ = write!(
                s,
                "with {} allocated in private pools (e.g., CUDA Graphs), ",
                format_size(context.private_pools)
            );
        }
        let _ = write!(
            s,
            "and {} is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try setting \
             PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See documentation for Memory Management  \
             (https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-cuda-alloc-conf)",
            format_size(self.reserved.saturating_sub(allocated))
        );
        s
    }
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.message(&MessageContext::default()))
    }
}

/// Bytes as torch's messages show them: `1024 bytes`, `1.50 KiB`, `20.00 MiB`, `79.25 GiB`; never larger units.
pub fn format_size(bytes: u64) -> String {
    let scaled = |unit: u64, name| format!("{:.2} {name}", bytes as f64 / unit as f64);
    if bytes <= 1 << 10 {
        format!("{bytes} bytes")
    } else if bytes <= 1 << 20 {
        scaled(1 << 10, "KiB")
    } else if bytes <= 1 << 30 {
        scaled(1 << 20, "MiB")
    } else {
        scaled(1 << 30, "GiB")
    }
}
