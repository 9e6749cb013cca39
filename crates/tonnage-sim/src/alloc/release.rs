//! When the cache has nothing that fits: garbage collection, new segments, giving segments back, retry, refusal.
//! (`malloc` after `get_free_block`, `alloc_block`, `release_*`, `garbage_collect_cached_blocks` in CUDACachingAllocator.cpp.)

use super::caching::{Block, CachingAllocator, LARGE, NIL, SMALL, State};
use super::config::ROUND_LARGE;
use super::oom::OutOfMemory;

impl CachingAllocator {
    /// A free block of at least `size` that is in no pool, from the device.
    #[cold]
    pub(super) fn grow(
        &mut self,
        pool: usize,
        size: u64,
        requested: u64,
    ) -> Result<u32, OutOfMemory> {
        self.collect_garbage();
        let segment = self.config.segment_size(size);
        if let Some(i) = self.new_segment(pool, size, segment) {
            return Ok(i);
        }
        if self.release_oversize(pool, size)
            && let Some(i) = self.new_segment(pool, size, segment)
        {
            return Ok(i);
        }
        self.empty_cache();
        self.stats.num_alloc_retries += 1;
        if let Some(i) = self.new_segment(pool, size, segment) {
            return Ok(i);
        }
        self.stats.num_ooms += 1;
        Err(self.refusal(requested, segment))
    }

    #[cold]
    pub(super) fn refuse_one_eb(&mut self, requested: u64) -> OutOfMemory {
        self.refusal(requested, requested)
    }

    fn refusal(&self, requested: u64, tried: u64) -> OutOfMemory {
        OutOfMemory {
            requested,
            tried,
            total: self.device_total,
            free: self.device_free,
            allowed: self.allowed,
            allocated: self.stats.allocated.current,
            reserved: self.stats.reserved.current,
        }
    }

    /// Memory from the device for a rounded size: a segment, or pages of an expandable one. (`alloc_block`.)
    fn new_segment(&mut self, pool: usize, size: u64, segment: u64) -> Option<u32> {
        if self
            .allowed
            .is_some_and(|a| self.stats.reserved.current.saturating_add(segment) > a)
        {
            return None;
        }
        if self.config.expandable_segments {
            return self.expand(pool, size);
        }
        let taken = segment.checked_next_multiple_of(ROUND_LARGE)?;
        let after = self.next_address.checked_add(taken)?;
        if taken > self.device_free {
            return None;
        }
        self.device_free -= taken;
        self.stats.reserved.add(segment);
        self.stats.segments.add(1);
        self.stats.num_device_alloc += 1;
        if segment >= self.max_split {
            self.stats.oversize_segments.add(1);
        }
        let addr = std::mem::replace(&mut self.next_address, after);
        Some(self.new_block(Block {
            addr,
            size: segment,
            requested: 0,
            prev: NIL,
            next: NIL,
            id: NIL,
            expandable: NIL,
            since: 0,
            state: State::Free,
            pool: pool as u8,
        }))
    }

    /// Gives a wholly free segment back to the device.
    fn release_segment(&mut self, i: u32) {
        self.take_free(i);
        let size = self.blocks[i as usize].size;
        self.drop_block(i);
        self.device_free += size.next_multiple_of(ROUND_LARGE);
        self.stats.reserved.sub(size);
        self.stats.segments.sub(1);
        self.stats.num_device_free += 1;
        if size >= self.max_split {
            self.stats.oversize_segments.sub(1);
        }
    }

    /// `torch.cuda.empty_cache()`: every wholly free segment, and every wholly free page of expandable segments, goes back.
    pub fn empty_cache(&mut self) {
        for pool in [LARGE, SMALL] {
            for i in self.free[pool].sorted() {
                let b = &self.blocks[i as usize];
                if b.expandable != NIL {
                    self.unmap_free_pages(i);
                } else if !b.is_split() {
                    self.release_segment(i);
                }
            }
        }
    }

    /// Frees one cached oversize block that is large enough, or several, largest first, until their sum is. False if oversize
    /// blocks do not exist or do not suffice (what was freed stays freed). (`release_available_cached_blocks`.)
    fn release_oversize(&mut self, pool: usize, size: u64) -> bool {
        if self.max_split == u64::MAX || self.config.expandable_segments {
            return false;
        }
        let wanted = size.max(self.max_split);
        let cached = self.free[pool].sorted();
        let fitting = cached.partition_point(|&i| self.blocks[i as usize].size < wanted);
        if let Some(&i) = cached.get(fitting) {
            self.release_segment(i);
            return true;
        }
        let mut released = 0;
        for &i in cached.iter().rev() {
            let size = self.blocks[i as usize].size;
            if released >= wanted || size < self.max_split {
                break;
            }
            released += size;
            self.release_segment(i);
        }
        released >= wanted
    }

    /// Frees cached segments of the large pool that were not reused for longer than the average, until enough is reclaimed.
    fn collect_garbage(&mut self) {
        let Some(above) = self.gc_above else { return };
        let reserved = self.stats.reserved.current;
        if reserved <= above {
            return;
        }
        let target = reserved - above;
        let now = self.searches[LARGE];
        let age = |b: &Block| u64::from(now.wrapping_sub(b.since));
        // Torch counts the age of unsplit expandable blocks too, but never frees those.
        let mut old: Vec<u32> = self.free[LARGE].sorted();
        old.retain(|&i| !self.blocks[i as usize].is_split());
        let mut total_age: u64 = old.iter().map(|&i| age(&self.blocks[i as usize])).sum();
        let mut count = old.len();
        let (mut reclaimed, mut progress) = (0, true);
        while reclaimed < target && progress && count > 0 {
            let limit = total_age as f64 / count as f64;
            progress = false;
            let mut kept = Vec::new();
            for i in old {
                let b = self.blocks[i as usize];
                if b.expandable == NIL && age(&b) as f64 >= limit {
                    progress = true;
                    reclaimed += b.size;
                    total_age -= age(&b);
                    count -= 1;
                    self.release_segment(i);
                } else {
                    kept.push(i);
                }
            }
            old = kept;
        }
    }
}
