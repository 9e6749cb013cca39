//! The allocator's counters, under torch's names (`torch.cuda.memory_stats`).

/// A quantity now and at its highest since the last reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    pub current: u64,
    pub peak: u64,
}

impl Stat {
    #[inline]
    pub(super) fn add(&mut self, n: u64) {
        self.current += n;
        self.peak = self.peak.max(self.current);
    }

    #[inline]
    pub(super) fn sub(&mut self, n: u64) {
        self.current -= n;
    }

    fn reset_peak(&mut self) {
        self.peak = self.current;
    }
}

/// `torch.cuda.memory_stats()`, the figures over both pools. Bytes, unless it says a number of things.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Blocks in use. With one stream `active_bytes` is the same figure: [`Stats::active`].
    pub allocated: Stat,
    /// Held from the device: segments, or mapped pages of expandable segments.
    pub reserved: Stat,
    /// Sizes asked for, without rounding or unsplit rest.
    pub requested: Stat,
    /// Number of segments; pages of expandable segments are not counted (as in torch).
    pub segments: Stat,
    /// Number of blocks in use of `max_split_size` or more.
    pub oversize_allocations: Stat,
    /// Number of segments of `max_split_size` or more.
    pub oversize_segments: Stat,
    /// Times the whole cache was released because the device had no more.
    pub num_alloc_retries: u64,
    /// Requests refused.
    pub num_ooms: u64,
    /// Segments and page ranges taken from the device so far.
    pub num_device_alloc: u64,
    /// Segments and page ranges given back so far.
    pub num_device_free: u64,
}

impl Stats {
    /// Bytes in blocks that are in use or wait for another stream; with one stream, as here, the allocated bytes.
    pub fn active(&self) -> Stat {
        self.allocated
    }

    pub(super) fn reset_peaks(&mut self) {
        for s in [
            &mut self.allocated,
            &mut self.reserved,
            &mut self.requested,
            &mut self.segments,
            &mut self.oversize_allocations,
            &mut self.oversize_segments,
        ] {
            s.reset_peak();
        }
    }
}
