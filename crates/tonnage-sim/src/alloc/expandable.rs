//! Expandable segments: one range of addresses for each pool, mapped in pages from its start as needed, unmapped where free.
//! (`ExpandableSegment`, `find_expandable_block`, `map_block`, `unmap_block` in CUDACachingAllocator.cpp.)

use super::caching::{Block, CachingAllocator, NIL, SMALL, State};
use super::config::{ROUND_LARGE, SMALL_BUFFER};

/// A reserved range of addresses. Pages: 2 MiB for small blocks, `large_segment_size` for large ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExpandableSegment {
    pub base: u64,
    pub page: u64,
}

impl CachingAllocator {
    /// A free block of at least `size`, in no pool, at the lowest address where free and unmapped space together suffice; maps
    /// the pages that it needs. `None` if the device has no more; pages mapped before that stay, as in torch.
    pub(super) fn expand(&mut self, pool: usize, size: u64) -> Option<u32> {
        let mut i = match self.lowest_room(pool, size) {
            Some(i) => i,
            None => self.reserve_addresses(pool, size)?,
        };
        if self.blocks[i as usize].state == State::Unmapped
            && !self.map_pages(i, size.min(self.blocks[i as usize].size))
        {
            return None;
        }
        while self.blocks[i as usize].size < size {
            let b = self.blocks[i as usize];
            let rest = size - b.size;
            let room = self.blocks[b.next as usize].size;
            if !self.map_pages(b.next, rest.min(room)) {
                return None;
            }
            i = b.next;
        }
        self.take_free(i);
        Some(i)
    }

    /// First block, free or unmapped, of the lowest run of such blocks that holds `size` and has unmapped space.
    fn lowest_room(&self, pool: usize, size: u64) -> Option<u32> {
        let usable = |i: u32| {
            self.blocks
                .get(i as usize)
                .filter(|b| b.state != State::Used)
        };
        self.unmapped[pool].iter().find_map(|&(_, i)| {
            let prev = self.blocks[i as usize].prev;
            let first = if usable(prev).is_some() { prev } else { i };
            let (mut at, mut room) = (first, 0);
            while let Some(b) = usable(at).filter(|_| room < size) {
                room += b.size;
                at = b.next;
            }
            (room >= size).then_some(first)
        })
    }

    /// A new segment: addresses for 9/8 of the device's memory, nothing mapped. `None` if even that is too short for `size`.
    fn reserve_addresses(&mut self, pool: usize, size: u64) -> Option<u32> {
        let page = if pool == SMALL {
            SMALL_BUFFER
        } else {
            self.config.large_segment_size
        };
        let space = self
            .device_total
            .checked_add(self.device_total / 8)?
            .checked_next_multiple_of(page)?;
        let base = self.next_address;
        let after = base.checked_add(space.checked_next_multiple_of(ROUND_LARGE)?)?;
        if space < size {
            return None;
        }
        self.next_address = after;
        self.expandable.push(ExpandableSegment { base, page });
        let i = self.new_block(Block {
            addr: base,
            size: space,
            requested: 0,
            prev: NIL,
            next: NIL,
            id: NIL,
            expandable: (self.expandable.len() - 1) as u32,
            since: 0,
            state: State::Unmapped,
            pool: pool as u8,
        });
        self.put_unmapped(i);
        Some(i)
    }

    /// Maps the first `size` bytes of an unmapped block, rounded up to pages, joins them with free neighbours and puts the
    /// result (still block `i`) into the pool. False if the device has not that much.
    fn map_pages(&mut self, i: u32, size: u64) -> bool {
        let b = self.blocks[i as usize];
        let page = self.expandable[b.expandable as usize].page;
        let bytes = size.next_multiple_of(page);
        // The driver hands out pages one by one: what does not fit as a whole is taken back.
        let taken = bytes / page * page.next_multiple_of(ROUND_LARGE);
        if taken > self.device_free {
            return false;
        }
        self.device_free -= taken;
        self.take_unmapped(i);
        if bytes < b.size {
            let r = self.new_block(Block {
                addr: b.addr + bytes,
                size: b.size - bytes,
                prev: i,
                ..b
            });
            if b.next != NIL {
                self.blocks[b.next as usize].prev = r;
            }
            self.put_unmapped(r);
            self.blocks[i as usize].next = r;
        }
        let x = &mut self.blocks[i as usize];
        x.size = bytes;
        x.state = State::Free;
        self.merge_around(i);
        self.put_free(i);
        self.stats.reserved.add(bytes);
        self.stats.num_device_alloc += 1;
        true
    }

    /// Gives the whole pages inside a free block back; what sticks out at either end stays free. A segment with nothing mapped
    /// ends.
    pub(super) fn unmap_free_pages(&mut self, i: u32) {
        let b = self.blocks[i as usize];
        let page = self.expandable[b.expandable as usize].page;
        let (start, end) = self.whole_pages(&b);
        if start >= end {
            return;
        }
        self.take_free(i);
        if b.addr < start {
            let before = self.new_block(Block {
                size: start - b.addr,
                next: i,
                ..b
            });
            if b.prev != NIL {
                self.blocks[b.prev as usize].next = before;
            }
            self.blocks[i as usize].prev = before;
            self.put_free(before);
        }
        if end < b.addr + b.size {
            let after = self.new_block(Block {
                addr: end,
                size: b.addr + b.size - end,
                prev: i,
                ..b
            });
            if b.next != NIL {
                self.blocks[b.next as usize].prev = after;
            }
            self.blocks[i as usize].next = after;
            self.put_free(after);
        }
        let x = &mut self.blocks[i as usize];
        x.addr = start;
        x.size = end - start;
        x.state = State::Unmapped;
        self.merge_around(i);
        self.stats.reserved.sub(end - start);
        self.stats.num_device_free += 1;
        self.device_free += (end - start) / page * page.next_multiple_of(ROUND_LARGE);
        if self.blocks[i as usize].is_split() {
            self.put_unmapped(i);
        } else {
            self.drop_block(i);
        }
    }

    /// Start and end of the whole pages inside a block; nothing if start >= end.
    pub(super) fn whole_pages(&self, b: &Block) -> (u64, u64) {
        let ExpandableSegment { base, page } = self.expandable[b.expandable as usize];
        let start = base + (b.addr - base).next_multiple_of(page);
        (start, base + (b.addr + b.size - base) / page * page)
    }

    fn put_unmapped(&mut self, i: u32) {
        let Block { addr, pool, .. } = self.blocks[i as usize];
        let list = &mut self.unmapped[pool as usize];
        let at = list.partition_point(|x| x.0 < addr);
        list.insert(at, (addr, i));
    }

    pub(super) fn take_unmapped(&mut self, i: u32) {
        let Block { addr, pool, .. } = self.blocks[i as usize];
        let list = &mut self.unmapped[pool as usize];
        let at = list.partition_point(|x| x.0 < addr);
        if list.get(at).is_some_and(|x| x.1 == i) {
            list.remove(at);
        }
    }
}
