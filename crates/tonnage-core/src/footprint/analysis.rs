//! One pass of a timeline through the allocator: peaks of each phase, the instant of the highest, and what is alive then.

use crate::train::Simulated;
use tonnage_sim::OpId;
use tonnage_sim::alloc::{AllocatorConfig, CachingAllocator, Peaks};
use tonnage_sim::timeline::{Category, EventKind, Mark, Phase};

/// A block that is alive at the peak.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// Bytes that the allocator gave (the request rounded up).
    pub bytes: u64,
    /// Bytes asked for.
    pub requested: u64,
    pub module: u32,
    pub op: OpId,
    /// The mark of its birth and of its end; `None`: it outlives the run, or was born before the first mark.
    pub born: Option<Mark>,
    pub died: Option<Mark>,
    pub tag: Option<Category>,
}

/// The figures of one mark's interval.
#[derive(Clone, Copy, Debug)]
pub struct Interval {
    pub mark: Mark,
    pub peak: Peaks,
    /// At the end of the interval.
    pub end: Peaks,
}

/// A point of the curve of held memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    pub event: u32,
    pub allocated: u64,
    pub reserved: u64,
}

/// What an unlimited card's allocator does with a job.
#[derive(Clone, Debug)]
pub struct Analysis {
    /// Highest of each over the steps (reserved: loading included), each at its own moment.
    pub peak: Peaks,
    /// The event after which allocated is highest, and its mark.
    pub at_event: usize,
    pub at: Option<Mark>,
    /// The allocation that makes the peak.
    pub last: Option<Block>,
    pub alive: Vec<Block>,
    pub intervals: Vec<Interval>,
    /// At most [`CURVE`] points: the highest allocated of equal stretches of events.
    pub curve: Vec<Point>,
    pub events: usize,
}

/// Points of a curve.
pub const CURVE: usize = 400;

const NONE: u32 = u32::MAX;

/// Runs the allocator over what was simulated.
pub fn analyse(sim: &Simulated, config: &AllocatorConfig) -> Analysis {
    let t = &sim.timeline;
    let mut alloc = CachingAllocator::new(config.clone(), None);
    let ids = t
        .events
        .iter()
        .filter(|e| matches!(e.kind(), EventKind::Alloc { .. }))
        .count();
    let mut block = vec![0u64; ids];
    let mut born = vec![NONE; ids];
    let mut died = vec![NONE; ids];
    let mut owner = vec![0u32; ids];
    let mut asked = vec![0u64; ids];
    let stride = (t.events.len() / CURVE).max(1);
    let mut out = Analysis {
        peak: Peaks::default(),
        at_event: 0,
        at: None,
        last: None,
        alive: Vec::new(),
        intervals: Vec::with_capacity(t.marks.len()),
        curve: Vec::with_capacity(CURVE + 2),
        events: t.events.len(),
    };
    let mut next = 0;
    let mut now = Peaks::default();
    let mut high = Peaks::default();
    let mut top = Point {
        event: 0,
        allocated: 0,
        reserved: 0,
    };
    for (i, e) in t.events.iter().enumerate() {
        while t.marks.get(next).is_some_and(|m| m.at <= i) {
            close(&mut out, &t.marks, next, high, now);
            high = now;
            next += 1;
        }
        let mark = if next == 0 { NONE } else { next as u32 - 1 };
        match e.kind() {
            EventKind::Alloc { id } => {
                let k = id as usize;
                if k >= ids {
                    continue;
                }
                // an unlimited allocator refuses only what no card has
                block[k] = alloc.malloc(id, e.bytes).unwrap_or(0);
                (born[k], owner[k], asked[k]) = (mark, e.owner, e.bytes);
            }
            EventKind::Free { id } => {
                alloc.free(id);
                if let Some(d) = died.get_mut(id as usize) {
                    *d = mark;
                }
            }
            EventKind::EmptyCache => alloc.empty_cache(),
        }
        let s = alloc.stats();
        now = Peaks {
            allocated: s.allocated.current,
            reserved: s.reserved.current,
            requested: s.requested.current,
        };
        high = Peaks {
            allocated: high.allocated.max(now.allocated),
            reserved: high.reserved.max(now.reserved),
            requested: high.requested.max(now.requested),
        };
        let working = mark != NONE && t.marks[mark as usize].step >= 0;
        if working && now.allocated > out.peak.allocated {
            (out.peak.allocated, out.at_event, out.at) =
                (now.allocated, i, Some(t.marks[mark as usize]));
        }
        if working {
            out.peak.requested = out.peak.requested.max(now.requested);
        }
        out.peak.reserved = out.peak.reserved.max(now.reserved);
        if now.allocated >= top.allocated {
            top = Point {
                event: i as u32,
                allocated: now.allocated,
                reserved: now.reserved,
            };
        }
        if (i + 1) % stride == 0 {
            out.curve.push(top);
            top = Point {
                event: i as u32,
                allocated: now.allocated,
                reserved: now.reserved,
            };
        }
    }
    while next <= t.marks.len() {
        close(&mut out, &t.marks, next, high, now);
        high = now;
        next += 1;
    }
    let mut tags = vec![None; ids];
    for tag in &t.tags {
        if let Some(slot) = tags.get_mut(tag.id as usize) {
            // as the recorder does: the first name stays, only optimizer states rename
            if slot.is_none() || tag.category == Category::OptimizerState {
                *slot = Some(tag.category);
            }
        }
    }
    let mut alive = vec![false; ids];
    for e in t.events.iter().take(out.at_event + 1) {
        match e.kind() {
            EventKind::Alloc { id } => alive[id as usize] = true,
            EventKind::Free { id } => alive[id as usize] = false,
            EventKind::EmptyCache => {}
        }
    }
    let at = |m: u32| t.marks.get(m as usize).copied();
    let make = |k: usize| Block {
        bytes: block[k],
        requested: asked[k],
        module: owner[k] >> 12,
        op: OpId((owner[k] & 0xfff) as u16),
        born: at(born[k]),
        died: at(died[k]),
        tag: tags[k],
    };
    out.alive = (0..ids).filter(|k| alive[*k]).map(make).collect();
    out.last = match t.events.get(out.at_event).map(|e| e.kind()) {
        Some(EventKind::Alloc { id }) => Some(make(id as usize)),
        _ => None,
    };
    out
}

fn close(out: &mut Analysis, marks: &[Mark], next: usize, peak: Peaks, end: Peaks) {
    if next > 0 {
        out.intervals.push(Interval {
            mark: marks[next - 1],
            peak,
            end,
        });
    }
}

impl Analysis {
    /// Highest allocated while weights are loaded and the model is prepared.
    pub fn load_peak(&self) -> u64 {
        self.intervals
            .iter()
            .filter(|i| i.mark.step < 0)
            .map(|i| i.peak.allocated)
            .max()
            .unwrap_or(0)
    }

    /// Highest of each level by phase, in order of first appearance.
    pub fn by_phase(&self) -> Vec<(Phase, Peaks)> {
        let mut out: Vec<(Phase, Peaks)> = Vec::new();
        for i in self.intervals.iter().filter(|i| i.mark.phase != Phase::End) {
            match out.iter_mut().find(|(p, _)| *p == i.mark.phase) {
                Some((_, p)) => {
                    p.allocated = p.allocated.max(i.peak.allocated);
                    p.reserved = p.reserved.max(i.peak.reserved);
                    p.requested = p.requested.max(i.peak.requested);
                }
                None => out.push((i.mark.phase, i.peak)),
            }
        }
        out
    }
}
