//! The properties of a GPU that decide how launchers size their scratch buffers.

/// A GPU as kernel launchers see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KernelDevice {
    /// Streaming multiprocessors.
    pub sm_count: u32,
    /// `maxThreadsPerMultiProcessor`.
    pub max_threads_per_sm: u32,
    /// `maxThreadsPerBlock`.
    pub max_threads_per_block: u32,
    /// Compute capability, major then minor.
    pub capability: (u8, u8),
}

impl KernelDevice {
    /// NVIDIA H100 SXM.
    pub const H100: Self = Self::new(132, 2048, (9, 0));
    /// NVIDIA H200: as the H100.
    pub const H200: Self = Self::new(132, 2048, (9, 0));
    /// NVIDIA A100.
    pub const A100: Self = Self::new(108, 2048, (8, 0));
    /// GeForce RTX 4090.
    pub const RTX4090: Self = Self::new(128, 1536, (8, 9));
    /// GeForce RTX 3090.
    pub const RTX3090: Self = Self::new(82, 1536, (8, 6));
    /// Tesla T4.
    pub const T4: Self = Self::new(40, 1024, (7, 5));

    /// A device with the usual 1,024 threads a block.
    pub const fn new(sm_count: u32, max_threads_per_sm: u32, capability: (u8, u8)) -> Self {
        Self {
            sm_count,
            max_threads_per_sm,
            max_threads_per_block: 1024,
            capability,
        }
    }

    /// Compute capability 9.0 (Hopper data centre cards).
    pub const fn is_sm90(&self) -> bool {
        self.capability.0 == 9 && self.capability.1 == 0
    }
}
