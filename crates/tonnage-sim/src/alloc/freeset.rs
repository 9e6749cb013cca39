//! The free blocks of one pool, ordered by (size, address), with a fast "smallest block that fits, lowest address first".

/// A free block: where it is and its index in the allocator's block table.
#[derive(Clone, Copy, Debug)]
struct Entry {
    size: u64,
    addr: u64,
    block: u32,
}

impl Entry {
    #[inline]
    fn key(&self) -> (u64, u64) {
        (self.size, self.addr)
    }
}

/// Where an entry stands; valid until the set changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    class: usize,
    at: usize,
}

const WORDS: usize = 65;
/// Size classes of the small pool: exact multiples of 512 up to 2 MiB, then one for all above (expandable segments only).
const EXACT: usize = 4096;

/// Blocks in size classes (each sorted descending, so that the best fit is popped from the end) under a two-level bitmap.
pub(super) struct FreeSet {
    bins: Vec<Vec<Entry>>,
    words: [u64; WORDS],
    summary: u128,
    exact: bool,
}

impl FreeSet {
    /// `small`: the pool of requests up to 1 MiB.
    pub fn new(small: bool) -> FreeSet {
        let classes = if small { EXACT + 1 } else { 2048 };
        FreeSet {
            bins: vec![Vec::new(); classes],
            words: [0; WORDS],
            summary: 0,
            exact: small,
        }
    }

    /// Empties the set, keeping its memory.
    pub fn clear(&mut self) {
        while self.summary != 0 {
            let w = self.summary.trailing_zeros() as usize;
            while self.words[w] != 0 {
                let c = w << 6 | self.words[w].trailing_zeros() as usize;
                self.bins[c].clear();
                self.words[w] &= self.words[w] - 1;
            }
            self.summary &= self.summary - 1;
        }
    }

    /// Monotonic in `size`; `size` >= 512. Large pool: 32 classes in each octave.
    #[inline]
    fn class(&self, size: u64) -> usize {
        if self.exact {
            ((size >> 9) as usize).min(EXACT)
        } else {
            let e = size.ilog2() as usize;
            ((e - 9) << 5 | ((size >> (e - 5)) & 31) as usize).min(2047)
        }
    }

    #[inline]
    pub fn insert(&mut self, size: u64, addr: u64, block: u32) {
        let c = self.class(size);
        let bin = &mut self.bins[c];
        let at = bin.partition_point(|e| e.key() > (size, addr));
        bin.insert(at, Entry { size, addr, block });
        self.words[c >> 6] |= 1 << (c & 63);
        self.summary |= 1 << (c >> 6);
    }

    /// Takes out the block with exactly this size and address; does nothing if there is none.
    #[inline]
    pub fn remove(&mut self, size: u64, addr: u64) {
        let class = self.class(size);
        let bin = &self.bins[class];
        let at = bin.partition_point(|e| e.key() > (size, addr));
        if bin.get(at).is_some_and(|e| e.key() == (size, addr)) {
            self.take(Position { class, at });
        }
    }

    #[inline]
    pub fn take(&mut self, p: Position) -> u32 {
        let e = self.bins[p.class].remove(p.at);
        if self.bins[p.class].is_empty() {
            let w = p.class >> 6;
            self.words[w] &= !(1 << (p.class & 63));
            if self.words[w] == 0 {
                self.summary &= !(1 << w);
            }
        }
        e.block
    }

    #[inline]
    pub fn block(&self, p: Position) -> u32 {
        self.bins[p.class][p.at].block
    }

    /// First entry in order with size >= `size`.
    #[inline]
    pub fn at_least(&self, size: u64) -> Option<Position> {
        let c = self.class(size);
        let fitting = self.bins[c].partition_point(|e| e.size >= size);
        if fitting > 0 {
            return Some(Position {
                class: c,
                at: fitting - 1,
            });
        }
        self.first_from(c + 1)
    }

    /// The entry after `p` in order.
    pub fn after(&self, p: Position) -> Option<Position> {
        if p.at > 0 {
            return Some(Position {
                class: p.class,
                at: p.at - 1,
            });
        }
        self.first_from(p.class + 1)
    }

    #[inline]
    fn first_from(&self, class: usize) -> Option<Position> {
        let mut w = class >> 6;
        if w >= WORDS {
            return None;
        }
        let mut bits = self.words[w] & (!0 << (class & 63));
        if bits == 0 {
            let later = self.summary & (!0u128 << (w + 1));
            if later == 0 {
                return None;
            }
            w = later.trailing_zeros() as usize;
            bits = self.words[w];
        }
        let class = w << 6 | bits.trailing_zeros() as usize;
        Some(Position {
            class,
            at: self.bins[class].len() - 1,
        })
    }

    /// Blocks in order: smallest first, lowest address first among equals.
    pub fn sorted(&self) -> Vec<u32> {
        let mut out = Vec::new();
        let mut summary = self.summary;
        while summary != 0 {
            let w = summary.trailing_zeros() as usize;
            summary &= summary - 1;
            let mut bits = self.words[w];
            while bits != 0 {
                out.extend(
                    self.bins[w << 6 | bits.trailing_zeros() as usize]
                        .iter()
                        .rev()
                        .map(|e| e.block),
                );
                bits &= bits - 1;
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn same_order_as_a_sorted_set(small: bool, ops in prop::collection::vec((0u8..3, 0u64..40, 1u64..6000, 0u32..30), 1..200)) {
            let mut set = FreeSet::new(small);
            let mut model = BTreeSet::new();
            for (op, addr, units, shift) in ops {
                let size = (units << (shift / 2)) << 9;
                match op {
                    0 | 1 if model.iter().all(|&(_, a)| a != addr) => {
                        model.insert((size, addr));
                        set.insert(size, addr, addr as u32);
                    }
                    _ => if let Some(&(s, a)) = model.range((size, 0)..).next() {
                        let p = set.at_least(size).unwrap();
                        prop_assert_eq!(set.block(p), a as u32);
                        let next = model.range((s, a)..).nth(1).map(|x| x.1 as u32);
                        prop_assert_eq!(set.after(p).map(|p| set.block(p)), next);
                        if op == 2 { set.take(p); } else { set.remove(s, a); }
                        model.remove(&(s, a));
                    } else {
                        prop_assert!(set.at_least(size).is_none());
                    }
                }
                prop_assert_eq!(set.sorted(), model.iter().map(|x| x.1 as u32).collect::<Vec<_>>());
            }
            set.clear();
            prop_assert!(set.sorted().is_empty() && set.at_least(512).is_none());
        }
    }
}
