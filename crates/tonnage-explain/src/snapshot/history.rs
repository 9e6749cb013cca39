//! The events of a device replayed on their own addresses: levels over time, the peak, and what was alive then.
//!
//! Events say what was asked for; what a block took is worked out by the allocator's rules of splitting and merging on the very addresses
//! of the recording (CUDACachingAllocator.cpp: a large free block is split when more than 1 MiB is left, a small or an expandable one when
//! 512 bytes are; neighbours merge when both are free). A trace is a ring: what was there before its first event is put there first.

use super::{Action, Event, Snapshot, State};
use rustc_hash::FxHashMap;
use std::rc::Rc;

const NONE: u32 = u32::MAX;
const SMALL: u64 = 2 << 20;

/// The three totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Level {
    pub allocated_bytes: u64,
    pub reserved_bytes: u64,
    pub requested_bytes: u64,
}

/// A block that is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    pub address: u64,
    pub size: u64,
    pub requested: u64,
    pub stack: u32,
    /// Its event, none where it was there before the trace.
    pub event: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Blk {
    addr: u64,
    size: u64,
    requested: u64,
    stack: u32,
    event: u32,
    prev: u32,
    next: u32,
    /// Handed out and not freed by the caller.
    live: bool,
    /// Free for others.
    free: bool,
    /// Split by the small rule.
    fine: bool,
}

/// What was there before the first event.
#[derive(Debug)]
struct Initial {
    segments: Vec<(u64, u64)>,
    blocks: Vec<Blk>,
    expandable: bool,
}

/// A replay.
pub struct History<'a> {
    snapshot: &'a Snapshot,
    device: u32,
    blocks: Vec<Blk>,
    spare: Vec<u32>,
    at: FxHashMap<u64, u32>,
    initial: Rc<Initial>,
    max_split: u64,
    /// Expandable segments: the address where a chain of pages ends, and where it begins.
    ranges: FxHashMap<u64, u64>,
    now: Level,
    /// Highest of each, at its own moment.
    pub peak: Level,
    /// The event after which most was allocated.
    pub peak_event: u64,
    /// Its time.
    pub peak_time_us: u64,
    /// Levels when most was allocated.
    pub at_peak: Level,
    /// Level at the end.
    pub end: Level,
    /// Nothing was there before the first event.
    pub complete: bool,
    /// The end of the replay is what the snapshot says is there: the sizes of all blocks are exact.
    pub verified: bool,
    /// Events that do not agree with the ones before them.
    pub odd: u64,
    /// (event, highest allocated, highest reserved) of parts of the trace.
    pub timeline: Vec<(u64, u64, u64)>,
    /// Times of the parts' ends.
    pub times: Vec<u64>,
    /// Out-of-memory events: (event, device's free bytes, size).
    pub ooms: Vec<(u64, u64, u64)>,
    /// How many events.
    pub events: u64,
}

fn setting(s: &Snapshot, key: &str) -> Option<u64> {
    s.settings
        .iter()
        .find(|(k, _)| k == key)
        .and_then(|(_, v)| v.parse().ok())
}

impl<'a> History<'a> {
    /// Replays all events of a device.
    pub fn of(snapshot: &'a Snapshot, device: u32) -> History<'a> {
        let mut h = History::start(snapshot, device, Rc::new(before(snapshot, device)));
        let n = snapshot.traces.get(device as usize).map_or(0, |r| r.len()) as u64;
        h.events = n;
        let part = n.div_ceil(1500).max(1);
        let (mut high, mut high_reserved) = (h.now.allocated_bytes, h.now.reserved_bytes);
        h.peak = h.now;
        h.at_peak = h.now;
        for (i, e) in snapshot.trace(device).enumerate() {
            let i = i as u64;
            h.apply(e, i);
            let l = h.now;
            h.peak.reserved_bytes = h.peak.reserved_bytes.max(l.reserved_bytes);
            h.peak.requested_bytes = h.peak.requested_bytes.max(l.requested_bytes);
            if l.allocated_bytes > h.peak.allocated_bytes {
                h.peak.allocated_bytes = l.allocated_bytes;
                h.peak_event = i;
                h.peak_time_us = e.time_us;
                h.at_peak = l;
            }
            high = high.max(l.allocated_bytes);
            high_reserved = high_reserved.max(l.reserved_bytes);
            if (i + 1).is_multiple_of(part) || i + 1 == n {
                h.timeline.push((i, high, high_reserved));
                h.times.push(e.time_us);
                (high, high_reserved) = (l.allocated_bytes, l.reserved_bytes);
            }
        }
        h.end = h.now;
        h.verified = h.agrees();
        h
    }

    /// What was alive when most was allocated.
    pub fn alive_at_peak(&self) -> Vec<Live> {
        let mut h = History::start(self.snapshot, self.device, self.initial.clone());
        for (i, e) in self
            .snapshot
            .trace(self.device)
            .enumerate()
            .take(self.peak_event as usize + 1)
        {
            h.apply(e, i as u64);
        }
        h.alive()
    }

    /// What is alive now.
    fn alive(&self) -> Vec<Live> {
        self.at
            .values()
            .map(|i| self.blocks[*i as usize])
            .filter(|b| b.live)
            .map(|b| Live {
                address: b.addr,
                size: b.size,
                requested: b.requested,
                stack: b.stack,
                event: (b.event != NONE).then_some(u64::from(b.event)),
            })
            .collect()
    }

    fn agrees(&self) -> bool {
        let mut n = 0;
        for s in self
            .snapshot
            .segments
            .iter()
            .filter(|s| s.device == self.device)
        {
            for b in &self.snapshot.blocks[s.blocks.clone()] {
                if b.state == State::Allocated {
                    n += 1;
                    let same = self.at.get(&b.address).map(|i| self.blocks[*i as usize]);
                    if !same.is_some_and(|t| t.live && t.size == b.size) {
                        return false;
                    }
                }
            }
        }
        self.at
            .values()
            .filter(|i| self.blocks[**i as usize].live)
            .count()
            == n
    }

    fn start(snapshot: &'a Snapshot, device: u32, initial: Rc<Initial>) -> History<'a> {
        let mut h = History {
            snapshot,
            device,
            blocks: Vec::new(),
            spare: Vec::new(),
            at: FxHashMap::default(),
            max_split: setting(snapshot, "max_split_size")
                .filter(|m| *m > 0)
                .unwrap_or(u64::MAX),
            ranges: FxHashMap::default(),
            now: Level::default(),
            peak: Level::default(),
            peak_event: 0,
            peak_time_us: 0,
            at_peak: Level::default(),
            end: Level::default(),
            complete: initial.segments.is_empty() && initial.blocks.is_empty(),
            verified: false,
            odd: 0,
            timeline: Vec::new(),
            times: Vec::new(),
            ooms: Vec::new(),
            events: 0,
            initial: initial.clone(),
        };
        h.place(&initial);
        h
    }
}

/// What the trace's first events find.
fn before(snapshot: &Snapshot, device: u32) -> Initial {
    // address -> bytes, of what an event ends that no event began
    let mut begun: FxHashMap<u64, ()> = FxHashMap::default();
    let mut mapped: FxHashMap<u64, u64> = FxHashMap::default();
    let mut old: Vec<(u64, u64, u32)> = Vec::new();
    let mut old_segments: Vec<(u64, u64)> = Vec::new();
    let mut expandable = false;
    for e in snapshot.trace(device) {
        match e.action {
            Action::Alloc => {
                begun.insert(e.addr, ());
            }
            Action::FreeRequested if begun.remove(&e.addr).is_none() => {
                old.push((e.addr, e.size, e.stack));
            }
            Action::SegmentAlloc => {
                mapped.insert(e.addr, e.size);
            }
            Action::SegmentFree if mapped.remove(&e.addr).is_none() => {
                old_segments.push((e.addr, e.size));
            }
            Action::SegmentMap => {
                expandable = true;
                mapped.insert(e.addr, e.size);
            }
            Action::SegmentUnmap => expandable = true,
            _ => {}
        }
    }
    let mut kept: Vec<Blk> = Vec::new();
    for s in snapshot.segments.iter().filter(|s| s.device == device) {
        // an expandable segment is mapped by several events
        let known = mapped.contains_key(&s.address) || (s.expandable && expandable);
        if !known {
            old_segments.push((s.address, s.total));
        }
        for b in &snapshot.blocks[s.blocks.clone()] {
            if b.state == State::Allocated && !begun.contains_key(&b.address) {
                kept.push(Blk {
                    addr: b.address,
                    size: b.size,
                    requested: b.requested,
                    stack: b.stack,
                    event: NONE,
                    prev: NONE,
                    next: NONE,
                    live: true,
                    free: false,
                    fine: s.small || s.expandable,
                });
            }
        }
    }
    kept.extend(old.iter().map(|(addr, size, stack)| Blk {
        addr: *addr,
        size: size.div_ceil(512).max(1).saturating_mul(512),
        requested: *size,
        stack: *stack,
        event: NONE,
        prev: NONE,
        next: NONE,
        live: true,
        free: false,
        fine: false,
    }));
    kept.sort_by_key(|b| b.addr);
    kept.dedup_by_key(|b| b.addr);
    old_segments.sort_unstable();
    Initial {
        segments: old_segments,
        blocks: kept,
        expandable,
    }
}

impl History<'_> {
    fn place(&mut self, initial: &Initial) {
        let segments = &initial.segments;
        for (addr, size) in segments {
            self.map(*addr, *size, *size == SMALL || initial.expandable);
        }
        // cut them out of the segments' free blocks
        for b in &initial.blocks {
            let i = segments.partition_point(|s| s.0 <= b.addr);
            let inside = i
                .checked_sub(1)
                .map(|i| segments[i])
                .filter(|s| b.addr < s.0.saturating_add(s.1));
            if let Some(s) = inside {
                self.cut(s.0, b.addr);
            }
            self.take(b.addr, b.size, b.requested, b.stack, NONE, Some(b.size));
        }
    }

    /// Splits the free block that begins at or before `addr` so that one begins at `addr`.
    fn cut(&mut self, segment: u64, addr: u64) {
        // the last block of the segment that begins at or before: the chain is walked from the segment's newest tail
        if self.at.contains_key(&addr) {
            return;
        }
        let Some(mut i) = self.at.get(&segment).copied() else {
            return;
        };
        while self.blocks[i as usize].next != NONE
            && self.blocks[self.blocks[i as usize].next as usize].addr <= addr
        {
            i = self.blocks[i as usize].next;
        }
        let b = self.blocks[i as usize];
        if b.free && addr < b.addr.saturating_add(b.size) {
            self.split(i, addr - b.addr);
        }
    }

    fn new_block(&mut self, b: Blk) -> u32 {
        let addr = b.addr;
        let i = match self.spare.pop() {
            Some(i) => {
                self.blocks[i as usize] = b;
                i
            }
            None => {
                self.blocks.push(b);
                self.blocks.len() as u32 - 1
            }
        };
        self.at.insert(addr, i);
        i
    }

    /// Leaves `size` bytes in block `i`; the rest becomes a free block behind it.
    fn split(&mut self, i: u32, size: u64) {
        let b = self.blocks[i as usize];
        let rest = self.new_block(Blk {
            addr: b.addr.saturating_add(size),
            size: b.size - size,
            requested: 0,
            stack: 0,
            event: NONE,
            prev: i,
            next: b.next,
            live: false,
            free: true,
            fine: b.fine,
        });
        if b.next != NONE {
            self.blocks[b.next as usize].prev = rest;
        }
        let b = &mut self.blocks[i as usize];
        b.next = rest;
        b.size = size;
    }

    fn map(&mut self, addr: u64, size: u64, fine: bool) {
        self.now.reserved_bytes = self.now.reserved_bytes.saturating_add(size);
        if self.at.contains_key(&addr) {
            self.odd += 1;
            return;
        }
        self.new_block(Blk {
            addr,
            size,
            requested: 0,
            stack: 0,
            event: NONE,
            prev: NONE,
            next: NONE,
            live: false,
            free: true,
            fine,
        });
    }

    /// Hands out `addr`. `exact`: the block's size is known.
    fn take(
        &mut self,
        addr: u64,
        rounded: u64,
        requested: u64,
        stack: u32,
        event: u32,
        exact: Option<u64>,
    ) {
        let i = match self.at.get(&addr) {
            Some(i) if self.blocks[*i as usize].free => {
                let i = *i;
                let b = self.blocks[i as usize];
                let want = exact.unwrap_or(rounded);
                let left = b.size.saturating_sub(want);
                let cut = match exact {
                    Some(_) => left > 0,
                    None if b.fine => left >= 512,
                    None => left > (1 << 20) && rounded < self.max_split,
                };
                if cut && b.size > want {
                    self.split(i, want);
                }
                i
            }
            Some(_) => {
                self.odd += 1;
                return;
            }
            // in no segment that is known
            None => {
                self.odd += u64::from(event != NONE);
                self.new_block(Blk {
                    addr,
                    size: rounded,
                    requested,
                    stack,
                    event,
                    prev: NONE,
                    next: NONE,
                    live: false,
                    free: true,
                    fine: false,
                })
            }
        };
        let b = &mut self.blocks[i as usize];
        b.live = true;
        b.free = false;
        b.requested = requested;
        b.stack = stack;
        b.event = event;
        self.now.allocated_bytes = self.now.allocated_bytes.saturating_add(b.size);
        self.now.requested_bytes = self.now.requested_bytes.saturating_add(requested);
    }

    fn absorb(&mut self, i: u32, gone: u32) {
        let g = self.blocks[gone as usize];
        self.at.remove(&g.addr);
        let b = &mut self.blocks[i as usize];
        b.size = b.size.saturating_add(g.size);
        b.next = g.next;
        if g.next != NONE {
            self.blocks[g.next as usize].prev = i;
        }
        self.spare.push(gone);
    }

    fn release(&mut self, addr: u64) {
        let Some(mut i) = self.at.get(&addr).copied() else {
            return;
        };
        if self.blocks[i as usize].live {
            self.drop_live(i);
        }
        self.blocks[i as usize].free = true;
        let Blk { prev, next, .. } = self.blocks[i as usize];
        if next != NONE && self.blocks[next as usize].free {
            self.absorb(i, next);
        }
        if prev != NONE && self.blocks[prev as usize].free {
            self.absorb(prev, i);
            i = prev;
        }
        let _ = i;
    }

    fn drop_live(&mut self, i: u32) {
        let b = &mut self.blocks[i as usize];
        b.live = false;
        self.now.allocated_bytes = self.now.allocated_bytes.saturating_sub(b.size);
        self.now.requested_bytes = self.now.requested_bytes.saturating_sub(b.requested);
    }

    fn unmap(&mut self, addr: u64, size: u64) {
        self.now.reserved_bytes = self.now.reserved_bytes.saturating_sub(size);
        let Some(i) = self.at.get(&addr).copied() else {
            return;
        };
        if self.blocks[i as usize].live {
            self.odd += 1;
            return;
        }
        if self.blocks[i as usize].size > size {
            self.split(i, size);
        }
        let Blk { prev, next, .. } = self.blocks[i as usize];
        self.at.remove(&addr);
        if prev != NONE {
            self.blocks[prev as usize].next = NONE;
        }
        if next != NONE {
            self.blocks[next as usize].prev = NONE;
        }
        self.spare.push(i);
    }

    /// A page range of an expandable segment: it joins the free neighbours that it touches.
    fn map_pages(&mut self, addr: u64, size: u64) {
        self.map(addr, size, true);
        let Some(i) = self.at.get(&addr).copied() else {
            return;
        };
        let after = self.at.get(&addr.saturating_add(size)).copied();
        if let Some(n) = after
            && n != i
            && self.blocks[n as usize].prev == NONE
        {
            self.blocks[i as usize].next = n;
            self.blocks[n as usize].prev = i;
        }
        // the neighbour ahead is the last of the chain that ended here
        let end = addr.saturating_add(size);
        let head = self.ranges.remove(&addr).unwrap_or(addr);
        self.ranges.insert(end, head);
        if head == addr {
            return;
        }
        let Some(mut p) = self.at.get(&head).copied() else {
            return;
        };
        while self.blocks[p as usize].next != NONE && self.blocks[p as usize].next != i {
            p = self.blocks[p as usize].next;
        }
        let tail = self.blocks[p as usize];
        if tail.addr.saturating_add(tail.size) != addr {
            return;
        }
        self.blocks[p as usize].next = i;
        self.blocks[i as usize].prev = p;
        if tail.free {
            self.absorb(p, i);
        }
    }

    fn apply(&mut self, e: &Event, i: u64) {
        match e.action {
            Action::Alloc => {
                let rounded = e.size.div_ceil(512).max(1).saturating_mul(512);
                self.take(e.addr, rounded, e.size, e.stack, i as u32, None);
            }
            Action::FreeRequested => match self.at.get(&e.addr).copied() {
                Some(b) if self.blocks[b as usize].live => self.drop_live(b),
                _ => self.odd += 1,
            },
            Action::FreeCompleted => self.release(e.addr),
            Action::SegmentAlloc => self.map(e.addr, e.size, e.size == SMALL),
            Action::SegmentFree => self.unmap(e.addr, e.size),
            Action::SegmentMap => self.map_pages(e.addr, e.size),
            Action::SegmentUnmap => self.unmap(e.addr, e.size),
            Action::Oom => {
                if self.ooms.len() < 1000 {
                    self.ooms.push((i, e.addr, e.size));
                }
            }
            Action::Snapshot | Action::Other => {}
        }
    }
}
