//! Stops a loop whose micro-batches or steps only repeat themselves.
//!
//! A stretch of the loop repeats the one before when its events are the same with every allocation renumbered by the same amount.
//! The memory repeats with period P when the last P stretches did that and the allocator (no limit) holds the same blocks at the same
//! addresses as P stretches ago, under the same renumbering. Often P is 2: what a variable holds until its successor exists changes
//! places with it. The loop's own variables are what it allocates and frees, so what follows is the same again: peaks, levels and
//! block layout (`tests/repeat.rs` compares with runs of full length). What is left out is a multiple of P, so that the end is the
//! end of the whole run. Under a limit the allocator may give segments back and so leave this path: [`crate::verdict`] then looks at
//! the whole run.

use tonnage_sim::Cx;
use tonnage_sim::alloc::{AllocatorConfig, BlockState, CachingAllocator, MemoryMap};
use tonnage_sim::timeline::EventKind;

/// The end of a stretch.
struct End {
    event: usize,
    /// Allocations so far.
    ids: u32,
    /// The stretch repeats the one before.
    repeats: bool,
    map: MemoryMap,
}

/// Watches one loop: its steps, and the micro-batches of the current step.
pub struct Watch {
    alloc: CachingAllocator,
    fed: usize,
    steps: Option<Vec<End>>,
    micro_batches: Option<Vec<End>>,
    /// A stretch was left out.
    pub cut: bool,
}

/// The longest period that is looked for.
const LONGEST: usize = 4;

/// Fewer stretches than this cannot be cut: the first differs, the second is the pattern, the third shows that it repeats.
const LEAST: u32 = 3;

impl Watch {
    /// `None` where there is nothing to gain.
    pub fn new(config: Option<&AllocatorConfig>, steps: u32, accumulation: u32) -> Option<Watch> {
        let (by_step, by_micro_batch) = (steps > LEAST, accumulation > LEAST);
        let config = config.filter(|_| by_step || by_micro_batch)?;
        Some(Watch {
            alloc: CachingAllocator::new(config.clone(), None),
            fed: 0,
            steps: by_step.then(Vec::new),
            micro_batches: by_micro_batch.then(Vec::new),
            cut: false,
        })
    }

    /// A step begins.
    pub fn step_begins(&mut self) {
        if let Some(m) = &mut self.micro_batches {
            m.clear();
        }
    }

    /// A micro-batch ended: do the `left` others of this step only repeat?
    pub fn micro_batch_ended(&mut self, cx: &Cx, left: u32) -> bool {
        let Some(mut ends) = self.micro_batches.take() else {
            return false;
        };
        let repeats = self.ended(cx, &mut ends, left);
        self.micro_batches = Some(ends);
        repeats
    }

    /// A step ended: do the `left` others only repeat?
    pub fn step_ended(&mut self, cx: &Cx, left: u32) -> bool {
        let Some(mut ends) = self.steps.take() else {
            return false;
        };
        let repeats = self.ended(cx, &mut ends, left);
        self.steps = Some(ends);
        repeats
    }

    fn ended(&mut self, cx: &Cx, ends: &mut Vec<End>, left: u32) -> bool {
        self.feed(cx);
        let (event, ids) = (self.fed, cx.allocations());
        let repeats = match ends.as_slice() {
            [.., a, b] => {
                ids - b.ids == b.ids - a.ids
                    && event - b.event == b.event - a.event
                    && cx.with_events(a.event, |e| {
                        let (first, second) = e.split_at(b.event - a.event);
                        let by = ids - b.ids;
                        first
                            .iter()
                            .zip(second)
                            .all(|(x, y)| x.renumbered(by) == *y)
                    })
            }
            _ => false,
        };
        ends.push(End {
            event,
            ids,
            repeats,
            map: self.alloc.map(),
        });
        let last = ends.len() - 1;
        let by = |p: usize| ids - ends[last - p].ids;
        let run = ends.iter().rev().take_while(|e| e.repeats).count();
        (1..=run.min(LONGEST)).any(|p| {
            left.is_multiple_of(p as u32)
                && same_map(
                    &ends[last - p].map,
                    &ends[last].map,
                    ends[last - p - 1].ids,
                    by(p),
                )
        })
    }

    fn feed(&mut self, cx: &Cx) {
        let alloc = &mut self.alloc;
        self.fed += cx.with_events(self.fed, |events| {
            for e in events {
                match e.kind() {
                    // an allocator without a limit refuses only what no card has
                    EventKind::Alloc { id } => drop(alloc.malloc(id, e.bytes)),
                    EventKind::Free { id } => drop(alloc.free(id)),
                    EventKind::EmptyCache => alloc.empty_cache(),
                }
            }
            events.len()
        });
    }
}

/// The same blocks at the same addresses, where allocations from number `first` on are renumbered by `by`.
fn same_map(a: &MemoryMap, b: &MemoryMap, first: u32, by: u32) -> bool {
    let same_state = |x: BlockState, y: BlockState| match (x, y) {
        (BlockState::Used { id: x }, BlockState::Used { id: y }) => {
            y == if x < first { x } else { x + by }
        }
        (x, y) => x == y,
    };
    a.segments.len() == b.segments.len()
        && a.segments.iter().zip(&b.segments).all(|(s, t)| {
            (s.address, s.bytes, s.pool, s.blocks.len())
                == (t.address, t.bytes, t.pool, t.blocks.len())
                && s.blocks.iter().zip(&t.blocks).all(|(x, y)| {
                    (x.address, x.bytes, x.requested) == (y.address, y.bytes, y.requested)
                        && same_state(x.state, y.state)
                })
        })
}
