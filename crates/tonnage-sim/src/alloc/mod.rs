//! PyTorch's caching allocator, whole: what a sequence of requests and frees makes it hold, to the byte.
//!
//! [`CachingAllocator`] follows PyTorch 2.11 `c10/cuda/CUDACachingAllocator.cpp` (native backend, one device, one stream, no CUDA
//! graphs): rounding, small and large pool, segments, best fit, splitting and merging, oversize blocks, garbage collection,
//! expandable segments, and on a device with a [`Capacity`] the order of release, retry and refusal. Settings: [`AllocatorConfig`].
//!
//! Verified by `tests/alloc_traces.rs` (11 recorded jobs: every block size, all peaks), `tests/alloc_recorded.rs` (22 recordings
//! of the real allocator under its settings, with limits: every address, every total, the final block map, refusals to the
//! letter) and `tests/alloc_model.rs` (random sequences against a slow model).

mod caching;
mod config;
mod expandable;
mod freeset;
mod map;
mod oom;
mod release;
mod replay;
mod state;
mod stats;

pub use caching::{CachingAllocator, Capacity};
pub use config::{
    AllocatorConfig, ConfigError, LARGE_BUFFER, MIB, MIN_BLOCK, MIN_LARGE_ALLOC, ONE_EB,
    ROUND_LARGE, SMALL_BUFFER, SMALL_SIZE,
};
pub use map::{BlockInfo, BlockState, Fragmentation, MemoryMap, Pool, SegmentInfo};
pub use oom::{MessageContext, OutOfMemory, ProcessMemory, format_size};
pub use replay::{Peaks, Replay, ReplayError, replay};
pub use stats::{Stat, Stats};
