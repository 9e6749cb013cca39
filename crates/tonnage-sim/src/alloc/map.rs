//! What the allocator holds, segment by segment: for reports, and for comparing with `torch.cuda.memory._snapshot()`.

use super::caching::{CachingAllocator, LARGE, NIL, SMALL, State};

/// Which requests a segment serves: rounded sizes up to 1 MiB, or above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pool {
    Small,
    Large,
}

/// Whether a block is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockState {
    /// By this allocation.
    Used {
        id: u32,
    },
    Free,
}

/// A block of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    pub address: u64,
    pub bytes: u64,
    /// Bytes asked for; 0 when free.
    pub requested: u64,
    pub state: BlockState,
}

/// A segment, or a contiguous mapped range of an expandable segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    pub address: u64,
    pub bytes: u64,
    pub pool: Pool,
    pub expandable: bool,
    /// In address order, without gaps.
    pub blocks: Vec<BlockInfo>,
}

/// Segments in address order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryMap {
    pub segments: Vec<SegmentInfo>,
}

/// Reserved memory that is not in use, and what it is good for. Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fragmentation {
    pub reserved: u64,
    pub allocated: u64,
    pub requested: u64,
    /// All free blocks.
    pub free: u64,
    pub free_blocks: u64,
    /// The largest request that the cache can serve (of any pool).
    pub largest_free_block: u64,
    /// Free blocks in segments that other blocks keep from being released; torch's `inactive_split_bytes`. Like torch, this
    /// leaves out expandable segments, whose free pages can always be released.
    pub inactive_split: u64,
    pub inactive_split_blocks: u64,
    /// Bytes that `empty_cache` would give back.
    pub releasable: u64,
}

impl CachingAllocator {
    /// Every segment and block. Takes time proportional to their number.
    pub fn map(&self) -> MemoryMap {
        let mut heads: Vec<u32> = (0..self.blocks.len() as u32)
            .filter(|&i| {
                let b = &self.blocks[i as usize];
                let mapped = matches!(b.state, State::Free | State::Used);
                mapped && (b.prev == NIL || self.blocks[b.prev as usize].state == State::Unmapped)
            })
            .collect();
        heads.sort_unstable_by_key(|&i| self.blocks[i as usize].addr);
        let segments = heads.into_iter().map(|head| {
            let first = &self.blocks[head as usize];
            let mut blocks = Vec::new();
            let mut at = head;
            while let Some(b) = self
                .blocks
                .get(at as usize)
                .filter(|b| b.state != State::Unmapped)
            {
                let state = if b.state == State::Used {
                    BlockState::Used { id: b.id }
                } else {
                    BlockState::Free
                };
                blocks.push(BlockInfo {
                    address: b.addr,
                    bytes: b.size,
                    requested: b.requested,
                    state,
                });
                at = b.next;
            }
            SegmentInfo {
                address: first.addr,
                bytes: blocks.iter().map(|b| b.bytes).sum(),
                pool: if usize::from(first.pool) == SMALL {
                    Pool::Small
                } else {
                    Pool::Large
                },
                expandable: first.expandable != NIL,
                blocks,
            }
        });
        MemoryMap {
            segments: segments.collect(),
        }
    }

    /// The figures of [`Fragmentation`] now. Takes time proportional to the number of blocks.
    pub fn fragmentation(&self) -> Fragmentation {
        let mut f = Fragmentation {
            reserved: self.stats.reserved.current,
            allocated: self.stats.allocated.current,
            requested: self.stats.requested.current,
            ..Fragmentation::default()
        };
        for i in [SMALL, LARGE]
            .into_iter()
            .flat_map(|p| self.free[p].sorted())
        {
            let b = &self.blocks[i as usize];
            f.free += b.size;
            f.free_blocks += 1;
            f.largest_free_block = f.largest_free_block.max(b.size);
            if b.expandable != NIL {
                let (start, end) = self.whole_pages(b);
                f.releasable += end.saturating_sub(start);
            } else if b.is_split() {
                f.inactive_split += b.size;
                f.inactive_split_blocks += 1;
            } else {
                f.releasable += b.size;
            }
        }
        f
    }
}
