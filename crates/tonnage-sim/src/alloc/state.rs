//! A fingerprint of the allocator's state, to see that it repeats from step to step.

use super::caching::{CachingAllocator, NIL, State};

/// One round of a 64-bit mixing hash (the finaliser of SplitMix64), chained.
fn mix(h: u64, x: u64) -> u64 {
    let mut z = (h ^ x).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl CachingAllocator {
    /// Fingerprint of the block map: for every segment, in address order, its pool and each block's place in it, size, requested
    /// bytes and whether it is used; plus the ages of cached blocks when garbage collection is on, and what the device has left.
    ///
    /// **Equal fingerprints** (up to a chance of 2^-64) mean: the same segments in the same order with the same blocks, hence
    /// the same current figures, and *the same answer to any further sequence of requests and frees, if that sequence frees
    /// blocks at the same places*. Absolute addresses, peaks, counters and ids do not count: a segment released and made again
    /// at a higher address but in the same order is the same state.
    ///
    /// Places, not ids: two runs with equal maps in which tensors X and Y of one size have changed places are equal here, and
    /// differ later when X is freed first. To exclude that, use [`CachingAllocator::state_hash_by`] with a name for each
    /// allocation that is the same in every step (for example its owner and its position in the step).
    pub fn state_hash(&self) -> u64 {
        self.state_hash_by(|_| 0)
    }

    /// Like [`CachingAllocator::state_hash`], with `role(id)` of each live allocation taken in. If two states are equal under
    /// roles that name the same tensor in both, then continuing both with the same events (ids matched by role) gives the same
    /// block sizes, figures and refusals for ever.
    pub fn state_hash_by(&self, role: impl Fn(u32) -> u64) -> u64 {
        let mut heads: Vec<u32> = (0..self.blocks.len() as u32)
            .filter(|&i| {
                let b = &self.blocks[i as usize];
                b.state != State::Spare && b.prev == NIL
            })
            .collect();
        heads.sort_unstable_by_key(|&i| self.blocks[i as usize].addr);
        let mut h = mix(
            heads.len() as u64,
            if self.capacity.is_some() {
                self.device_free
            } else {
                0
            },
        );
        for head in heads {
            let base = self.blocks[head as usize].addr;
            let first = &self.blocks[head as usize];
            h = mix(
                h,
                u64::from(first.pool) << 1 | u64::from(first.expandable != NIL),
            );
            let mut at = head;
            while let Some(b) = self.blocks.get(at as usize) {
                h = mix(mix(h, b.addr - base), b.size << 2 | b.state as u64);
                if b.state == State::Used {
                    h = mix(mix(h, b.requested), role(b.id));
                } else if b.state == State::Free && self.gc_above.is_some() {
                    h = mix(
                        h,
                        u64::from(self.searches[usize::from(b.pool)].wrapping_sub(b.since)),
                    );
                }
                at = b.next;
            }
        }
        h
    }
}
