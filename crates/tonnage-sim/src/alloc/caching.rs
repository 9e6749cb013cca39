//! The allocator itself: requests and frees. What happens when the cache has nothing is in `release.rs`.

use super::config::{AllocatorConfig, MIN_BLOCK, MIN_LARGE_ALLOC, ONE_EB, SMALL_SIZE};
use super::expandable::ExpandableSegment;
use super::freeset::FreeSet;
use super::oom::OutOfMemory;
use super::stats::Stats;

pub(super) const NIL: u32 = u32::MAX;
pub(super) const SMALL: usize = 0;
pub(super) const LARGE: usize = 1;
/// Where addresses start when the caller gives none.
const FIRST_ADDRESS: u64 = 1 << 40;
/// Device memory assumed when no capacity is given: more than any machine has, and addresses cannot run out.
pub(super) const UNLIMITED: u64 = 1 << 50;

/// A device's memory in bytes: what it reports in all, and what is free for this process before the allocator takes any
/// (total less the context, libraries and other processes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub total: u64,
    pub free: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Free,
    Used,
    /// Address space of an expandable segment without memory behind it.
    Unmapped,
    /// An entry of the block table that is not in use.
    Spare,
}

/// A range of a segment. Blocks of a segment are a chain through `prev` and `next`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub addr: u64,
    pub size: u64,
    pub requested: u64,
    pub prev: u32,
    pub next: u32,
    /// The allocation that has it, when used.
    pub id: u32,
    /// Index of the expandable segment, or NIL.
    pub expandable: u32,
    /// The pool's search count when it came into the pool; its age is the searches since.
    pub since: u32,
    pub state: State,
    pub pool: u8,
}

impl Block {
    pub fn is_split(&self) -> bool {
        self.prev != NIL || self.next != NIL
    }
}

/// PyTorch's caching allocator for one device and one stream. See the module's description.
pub struct CachingAllocator {
    pub(super) config: AllocatorConfig,
    pub(super) capacity: Option<Capacity>,
    pub(super) device_total: u64,
    pub(super) device_free: u64,
    /// `per_process_memory_fraction` of the total, if that is less than all.
    pub(super) allowed: Option<u64>,
    /// Reserved bytes above which garbage collection starts, if it is on.
    pub(super) gc_above: Option<u64>,
    pub(super) max_split: u64,
    /// No setting that changes the search: the short way.
    plain: bool,
    round_512: bool,
    pub(super) blocks: Vec<Block>,
    spare: Vec<u32>,
    pub(super) free: [FreeSet; 2],
    pub(super) searches: [u32; 2],
    /// Unmapped blocks by address.
    pub(super) unmapped: [Vec<(u64, u32)>; 2],
    pub(super) expandable: Vec<ExpandableSegment>,
    live: Vec<u32>,
    pub(super) next_address: u64,
    pub(super) stats: Stats,
}

impl CachingAllocator {
    /// An allocator that holds nothing. Without a capacity the device has 1 PiB. A large segment size below 10 MiB and
    /// divisions that are no power of two, which [`AllocatorConfig::parse`] refuses, are taken as the next that it accepts.
    pub fn new(mut config: AllocatorConfig, capacity: Option<Capacity>) -> CachingAllocator {
        config.large_segment_size = config.large_segment_size.max(MIN_LARGE_ALLOC);
        for d in &mut config.roundup_power2_divisions {
            *d = (*d).min(1 << 50).next_power_of_two() * u64::from(*d > 0);
        }
        let share = |part: f64, of: u64| (part * of as f64) as u64;
        let fraction = config.per_process_memory_fraction;
        let allowed = capacity
            .filter(|_| fraction < 1.0)
            .map(|c| share(fraction, c.total));
        let gc_above = allowed
            .zip(config.garbage_collection_threshold)
            .map(|(a, t)| share(t, a));
        let max_split = config.max_split_size.unwrap_or(u64::MAX);
        CachingAllocator {
            device_total: capacity.map_or(UNLIMITED, |c| c.total),
            device_free: capacity.map_or(UNLIMITED, |c| c.free),
            plain: !config.expandable_segments && max_split == u64::MAX && gc_above.is_none(),
            round_512: config.roundup_power2_divisions.iter().all(|&d| d <= 1),
            capacity,
            allowed,
            gc_above,
            max_split,
            config,
            blocks: Vec::new(),
            spare: Vec::new(),
            free: [FreeSet::new(true), FreeSet::new(false)],
            searches: [0; 2],
            unmapped: [Vec::new(), Vec::new()],
            expandable: Vec::new(),
            live: Vec::new(),
            next_address: FIRST_ADDRESS,
            stats: Stats::default(),
        }
    }

    /// Back to the state after [`CachingAllocator::new`], keeping memory for speed.
    pub fn reset(&mut self) {
        self.device_free = self.capacity.map_or(UNLIMITED, |c| c.free);
        self.blocks.clear();
        self.spare.clear();
        self.free.iter_mut().for_each(FreeSet::clear);
        self.searches = [0; 2];
        self.unmapped.iter_mut().for_each(Vec::clear);
        self.expandable.clear();
        self.live.clear();
        self.next_address = FIRST_ADDRESS;
        self.stats = Stats::default();
    }

    /// The settings.
    pub fn config(&self) -> &AllocatorConfig {
        &self.config
    }

    /// The counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// `torch.cuda.reset_peak_memory_stats`: every peak becomes the current figure.
    pub fn reset_peaks(&mut self) {
        self.stats.reset_peaks();
    }

    pub(super) fn stats_mut(&mut self) -> &mut Stats {
        &mut self.stats
    }

    /// Puts the next new segment at `address` (a multiple of 512, not below a present segment's end), to replay a recording
    /// under its own addresses. Without this, segments follow one another.
    pub fn set_next_segment_address(&mut self, address: u64) {
        self.next_address = address;
    }

    /// Serves a request of `bytes` as allocation `id` and returns the bytes of the block it got. Ids are small numbers
    /// (a table is kept by id) and not in use; a request of 0 bytes takes no block, as in torch.
    ///
    /// # Errors
    /// [`OutOfMemory`] with the figures torch would print, after cached segments were given back in torch's order.
    #[inline]
    pub fn malloc(&mut self, id: u32, bytes: u64) -> Result<u64, OutOfMemory> {
        if bytes.wrapping_sub(1) >= ONE_EB - 1 {
            return if bytes == 0 {
                Ok(0)
            } else {
                Err(self.refuse_one_eb(bytes))
            };
        }
        let size = if self.round_512 {
            (bytes + MIN_BLOCK - 1) & !(MIN_BLOCK - 1)
        } else {
            self.config.round_size(bytes)
        };
        let pool = if size <= SMALL_SIZE { SMALL } else { LARGE };
        let found = if self.plain {
            self.free[pool].at_least(size)
        } else {
            self.find_cached(pool, size)
        };
        let i = match found {
            Some(p) => self.free[pool].take(p),
            None => self.grow(pool, size, bytes)?,
        };
        let b = self.blocks[i as usize];
        let rest = b.size - size;
        let split = if pool == SMALL || self.config.expandable_segments {
            rest >= MIN_BLOCK
        } else {
            rest > SMALL_SIZE && size < self.max_split
        };
        if split {
            let r = self.new_block(Block {
                addr: b.addr + size,
                size: rest,
                prev: i,
                ..b
            });
            if b.next != NIL {
                self.blocks[b.next as usize].prev = r;
            }
            let x = &mut self.blocks[i as usize];
            x.next = r;
            x.size = size;
            self.put_free(r);
        }
        let x = &mut self.blocks[i as usize];
        x.state = State::Used;
        x.requested = bytes;
        x.id = id;
        let got = x.size;
        let slot = id as usize;
        if self.live.len() <= slot {
            self.live.resize(slot + 1, NIL);
        }
        self.live[slot] = i;
        self.stats.allocated.add(got);
        self.stats.requested.add(bytes);
        if got >= self.max_split {
            self.stats.oversize_allocations.add(1);
        }
        Ok(got)
    }

    /// Ends allocation `id` and returns its block's bytes; `None` (and nothing happens) if `id` has no block.
    #[inline]
    pub fn free(&mut self, id: u32) -> Option<u64> {
        let slot = self.live.get_mut(id as usize)?;
        let i = std::mem::replace(slot, NIL);
        if i == NIL {
            return None;
        }
        let b = &mut self.blocks[i as usize];
        b.state = State::Free;
        let (size, requested) = (b.size, b.requested);
        b.requested = 0;
        self.stats.allocated.sub(size);
        self.stats.requested.sub(requested);
        if size >= self.max_split {
            self.stats.oversize_allocations.sub(1);
        }
        self.merge_around(i);
        self.put_free(i);
        Some(size)
    }

    /// Whether `id` has a block now.
    #[inline]
    pub fn is_live(&self, id: u32) -> bool {
        self.live.get(id as usize).is_some_and(|&i| i != NIL)
    }

    /// Start address and bytes of the block of `id`.
    pub fn block_of(&self, id: u32) -> Option<(u64, u64)> {
        let &i = self.live.get(id as usize)?;
        self.blocks.get(i as usize).map(|b| (b.addr, b.size))
    }

    /// The free block to take for a rounded size under any settings. (`get_free_block`.)
    fn find_cached(&mut self, pool: usize, size: u64) -> Option<super::freeset::Position> {
        if self.gc_above.is_some() {
            self.searches[pool] = self.searches[pool].wrapping_add(1);
        }
        let set = &self.free[pool];
        let mut p = set.at_least(size)?;
        if self.config.expandable_segments {
            // A block in front of unmapped space counts as large as it can grow, so that a later one may be the better fit.
            let grown = |p| {
                let b = &self.blocks[set.block(p) as usize];
                match self.blocks.get(b.next as usize) {
                    Some(n) if n.state == State::Unmapped => b.size + n.size,
                    _ => b.size,
                }
            };
            while let Some(next) = set.after(p).filter(|&next| grown(next) < grown(p)) {
                p = next;
            }
        }
        let found = self.blocks[set.block(p) as usize].size;
        let fits = if size < self.max_split {
            found < self.max_split
        } else {
            found < size.saturating_add(self.config.max_non_split_rounding_size)
        };
        fits.then_some(p)
    }

    #[inline]
    pub(super) fn new_block(&mut self, b: Block) -> u32 {
        if let Some(i) = self.spare.pop() {
            self.blocks[i as usize] = b;
            i
        } else {
            self.blocks.push(b);
            (self.blocks.len() - 1) as u32
        }
    }

    #[inline]
    pub(super) fn drop_block(&mut self, i: u32) {
        self.blocks[i as usize].state = State::Spare;
        self.spare.push(i);
    }

    /// Puts a free block into its pool.
    #[inline]
    pub(super) fn put_free(&mut self, i: u32) {
        let b = &mut self.blocks[i as usize];
        let pool = b.pool as usize;
        b.since = self.searches[pool];
        let (size, addr) = (b.size, b.addr);
        self.free[pool].insert(size, addr, i);
    }

    /// Takes a free block out of its pool.
    #[inline]
    pub(super) fn take_free(&mut self, i: u32) {
        let b = &self.blocks[i as usize];
        self.free[b.pool as usize].remove(b.size, b.addr);
    }

    /// Joins block `i` (in no pool) with neighbours of the same state, taking those out of their pool.
    #[inline]
    pub(super) fn merge_around(&mut self, i: u32) {
        let b = self.blocks[i as usize];
        if b.prev != NIL && self.blocks[b.prev as usize].state == b.state {
            let p = self.blocks[b.prev as usize];
            self.detach(b.prev);
            let x = &mut self.blocks[i as usize];
            x.addr = p.addr;
            x.size += p.size;
            x.prev = p.prev;
            if p.prev != NIL {
                self.blocks[p.prev as usize].next = i;
            }
            self.drop_block(b.prev);
        }
        if b.next != NIL && self.blocks[b.next as usize].state == b.state {
            let n = self.blocks[b.next as usize];
            self.detach(b.next);
            let x = &mut self.blocks[i as usize];
            x.size += n.size;
            x.next = n.next;
            if n.next != NIL {
                self.blocks[n.next as usize].prev = i;
            }
            self.drop_block(b.next);
        }
    }

    #[inline]
    fn detach(&mut self, i: u32) {
        if self.blocks[i as usize].state == State::Unmapped {
            self.take_unmapped(i);
        } else {
            self.take_free(i);
        }
    }
}
