//! From addresses to blocks: which bytes a request really took. PyTorch's history names the address and the bytes asked for; the block is
//! found by keeping the free ranges of every segment and splitting as the allocator does. This holds for any number of streams and
//! pools, because a block is always the start of the free range that it was cut from.

use std::collections::{BTreeMap, HashMap};
use tonnage_sim::alloc::{AllocatorConfig, MIN_BLOCK, SMALL_SIZE};

/// The blocks of one device.
pub struct Tracker {
    config: AllocatorConfig,
    /// Start -> (end, grown piece by piece).
    segments: BTreeMap<u64, (u64, bool)>,
    /// Free ranges: start -> bytes.
    free: BTreeMap<u64, u64>,
    used: HashMap<u64, u64>,
}

impl Tracker {
    /// Nothing yet.
    pub fn new(config: AllocatorConfig) -> Tracker {
        Tracker {
            config,
            segments: BTreeMap::new(),
            free: BTreeMap::new(),
            used: HashMap::new(),
        }
    }

    fn segment_of(&self, address: u64) -> Option<(u64, u64, bool)> {
        let (start, (end, grown)) = self.segments.range(..=address).next_back()?;
        (address < *end).then_some((*start, *end, *grown))
    }

    /// A new segment, or (`grown`) memory mapped into an expandable one.
    pub fn segment(&mut self, address: u64, bytes: u64, grown: bool) {
        let (mut start, mut end) = (address, address + bytes);
        if grown {
            if let Some((s, (e, true))) = self
                .segments
                .range(..address)
                .next_back()
                .map(|(s, x)| (*s, *x))
                && e == address
            {
                self.segments.remove(&s);
                start = s;
            }
            if let Some((e, true)) = self.segments.remove(&end) {
                end = e;
            }
        }
        self.segments.insert(start, (end, grown));
        self.give_back(address, bytes);
    }

    /// Bytes of all segments.
    pub fn reserved(&self) -> u64 {
        self.segments
            .iter()
            .map(|(start, (end, _))| end - start)
            .sum()
    }

    /// A block of known size that is in use.
    pub fn hold(&mut self, address: u64, bytes: u64) {
        self.cut(address, bytes);
        self.used.insert(address, bytes);
    }

    /// Memory goes back to the driver.
    pub fn unsegment(&mut self, address: u64, bytes: u64) {
        if let Some((start, end, grown)) = self.segment_of(address) {
            self.segments.remove(&start);
            if start < address {
                self.segments.insert(start, (address, grown));
            }
            if address + bytes < end {
                self.segments.insert(address + bytes, (end, grown));
            }
        }
        self.cut(address, bytes);
    }

    /// A free range is no longer free.
    fn cut(&mut self, address: u64, bytes: u64) {
        let around = self.free.range(..=address).next_back();
        if let Some((s, n)) = around.map(|(s, n)| (*s, *n))
            && address + bytes <= s + n
        {
            self.free.remove(&s);
            if s < address {
                self.free.insert(s, address - s);
            }
            if address + bytes < s + n {
                self.free.insert(address + bytes, s + n - address - bytes);
            }
        }
    }

    /// A request of `bytes` got `address`: the bytes of its block. Where the range is not known (made before the recording began), the
    /// rounded request.
    pub fn alloc(&mut self, address: u64, bytes: u64) -> u64 {
        let size = self.config.round_size(bytes);
        let Some(room) = self.free.remove(&address) else {
            self.used.insert(address, size);
            return size;
        };
        let rest = room.saturating_sub(size);
        let grown = self.segment_of(address).is_some_and(|s| s.2);
        let split = if size <= SMALL_SIZE || grown {
            rest >= MIN_BLOCK
        } else {
            rest > SMALL_SIZE && self.config.max_split_size.is_none_or(|m| size < m)
        };
        let got = if split { size } else { room.max(size) };
        if split {
            self.free.insert(address + size, rest);
        }
        self.used.insert(address, got);
        got
    }

    /// The block at `address` can be used again.
    pub fn reusable(&mut self, address: u64) {
        if let Some(bytes) = self.used.remove(&address) {
            self.give_back(address, bytes);
        }
    }

    fn give_back(&mut self, address: u64, bytes: u64) {
        let Some((start, end, _)) = self.segment_of(address) else {
            return;
        };
        let (mut a, mut n) = (address, bytes);
        if let Some(next) = self.free.get(&(a + n)).copied()
            && a + n < end
        {
            self.free.remove(&(a + n));
            n += next;
        }
        let before = self.free.range(start..a).next_back().map(|(s, m)| (*s, *m));
        if let Some((s, m)) = before
            && s + m == a
        {
            self.free.remove(&s);
            (a, n) = (s, n + m);
        }
        self.free.insert(a, n);
    }
}
