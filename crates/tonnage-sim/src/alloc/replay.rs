//! Events through an allocator: peaks of all, and of each phase.

use super::caching::CachingAllocator;
use super::oom::OutOfMemory;
use crate::timeline::{Event, EventKind};

/// The three totals, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peaks {
    pub allocated: u64,
    pub reserved: u64,
    pub requested: u64,
}

impl Peaks {
    fn max(self, o: Peaks) -> Peaks {
        Peaks {
            allocated: self.allocated.max(o.allocated),
            reserved: self.reserved.max(o.reserved),
            requested: self.requested.max(o.requested),
        }
    }
}

/// What a replay saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replay {
    /// Highest of each over the whole replay (each at its own moment).
    pub peaks: Peaks,
    /// Highest of each from mark k to the next mark or the end; the level at the mark counts (as in torch after
    /// `reset_peak_memory_stats`).
    pub per_mark: Vec<Peaks>,
    /// Level of each at mark k.
    pub at_mark: Vec<Peaks>,
    /// Level of each at the end.
    pub end: Peaks,
}

/// Why a replay stopped. `event` is the index of the event; everything before it has been applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    #[error("event {event} (allocation {id}): {oom}")]
    OutOfMemory {
        event: usize,
        id: u32,
        oom: OutOfMemory,
        so_far: Box<Replay>,
    },
    #[error(
        "event {event} allocates number {id}, which is not free or beyond the number of events"
    )]
    BadAlloc { event: usize, id: u32 },
    #[error("event {event} frees number {id}, which is not allocated")]
    BadFree { event: usize, id: u32 },
    #[error("mark {mark} is at event {event}, before the mark before it or after the end")]
    BadMark { mark: usize, event: usize },
}

/// Applies `events` to `alloc`, which may already hold something. `marks` are ascending event indexes; mark k stands before
/// that event. The allocator's own peaks are those of the whole replay afterwards.
///
/// # Errors
/// [`ReplayError`]: memory ran out (with the peaks so far), or events or marks make no sense.
pub fn replay(
    events: &[Event],
    marks: &[usize],
    alloc: &mut CachingAllocator,
) -> Result<Replay, ReplayError> {
    let mut out = Replay::default();
    for (k, &at) in marks.iter().enumerate() {
        if at > events.len() || (k > 0 && at < marks[k - 1]) {
            return Err(ReplayError::BadMark { mark: k, event: at });
        }
    }
    alloc.reset_peaks();
    let mut start = 0;
    let mut result = Ok(());
    for k in 0..=marks.len() {
        let end = marks.get(k).copied().unwrap_or(events.len());
        result = window(events, start, end, alloc);
        let peak = peaks(alloc);
        out.peaks = out.peaks.max(peak);
        if k > 0 {
            out.per_mark.push(peak);
        }
        out.end = levels(alloc);
        if result.is_err() {
            break;
        }
        if k < marks.len() {
            out.at_mark.push(out.end);
            alloc.reset_peaks();
        }
        start = end;
    }
    let stats = alloc.stats_mut();
    stats.allocated.peak = out.peaks.allocated;
    stats.reserved.peak = out.peaks.reserved;
    stats.requested.peak = out.peaks.requested;
    match result {
        Ok(()) => Ok(out),
        Err(ReplayError::OutOfMemory { event, id, oom, .. }) => Err(ReplayError::OutOfMemory {
            event,
            id,
            oom,
            so_far: Box::new(out),
        }),
        Err(e) => Err(e),
    }
}

fn window(
    events: &[Event],
    start: usize,
    end: usize,
    alloc: &mut CachingAllocator,
) -> Result<(), ReplayError> {
    for (i, e) in events[start..end].iter().enumerate() {
        match e.kind() {
            EventKind::Alloc { id } => {
                if id as usize >= events.len() || alloc.is_live(id) {
                    return Err(ReplayError::BadAlloc {
                        event: start + i,
                        id,
                    });
                }
                if let Err(oom) = alloc.malloc(id, e.bytes) {
                    return Err(ReplayError::OutOfMemory {
                        event: start + i,
                        id,
                        oom,
                        so_far: Box::default(),
                    });
                }
            }
            EventKind::Free { id } => {
                if alloc.free(id).is_none() && e.bytes > 0 {
                    return Err(ReplayError::BadFree {
                        event: start + i,
                        id,
                    });
                }
            }
            EventKind::EmptyCache => alloc.empty_cache(),
        }
    }
    Ok(())
}

impl CachingAllocator {
    /// Highest of each so far, each at its own moment.
    pub fn peaks(&self) -> Peaks {
        peaks(self)
    }
}

fn peaks(alloc: &CachingAllocator) -> Peaks {
    let s = alloc.stats();
    Peaks {
        allocated: s.allocated.peak,
        reserved: s.reserved.peak,
        requested: s.requested.peak,
    }
}

fn levels(alloc: &CachingAllocator) -> Peaks {
    let s = alloc.stats();
    Peaks {
        allocated: s.allocated.current,
        reserved: s.reserved.current,
        requested: s.requested.current,
    }
}
