//! A trace through our allocator, under other settings or on another card. The requests stay as they were recorded: a card with other
//! kernels, or with less memory for a framework that looks at it, could make others.

use crate::trace::{Event, Figures, Trace};
use std::collections::{BTreeMap, HashMap, HashSet};
use tonnage_sim::alloc::{AllocatorConfig, CachingAllocator, Capacity, OutOfMemory};

/// What happened.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Highest of each (where memory ran out: until then).
    pub peak: Figures,
    /// At the end.
    pub end: Figures,
    /// Cached blocks were given back to make room.
    pub retries: u64,
    /// The event at which memory ran out.
    pub failed: Option<(usize, OutOfMemory)>,
    /// Blocks that the recording gives another size than this replay; zero under the recorded settings.
    pub blocks_differ: usize,
    /// More than one stream allocates, so the limit could not be applied: `failed` says only whether the peak is above it.
    pub streams: usize,
}

/// Runs a trace through the allocator. Every stream has pools of its own, as in the framework.
pub fn replay(t: &Trace, config: &AllocatorConfig, capacity: Option<Capacity>) -> Outcome {
    let streams = t.streams();
    let limited = capacity.filter(|_| streams <= 1);
    let mut pools: BTreeMap<u64, CachingAllocator> = BTreeMap::new();
    let mut home: HashMap<u32, u64> = HashMap::new();
    // blocks that come back later than their tensor's end
    let later: HashSet<u32> = t
        .events
        .iter()
        .filter_map(|e| match e {
            Event::Reusable { id } => Some(*id),
            _ => None,
        })
        .collect();
    let mut sizes: HashMap<u32, (u64, u64)> = HashMap::new();
    let mut out = Outcome {
        peak: Figures::default(),
        end: Figures::default(),
        retries: 0,
        failed: None,
        blocks_differ: 0,
        streams,
    };
    let mut now = Figures::default();
    let mut released = false;
    for (i, e) in t.events.iter().enumerate() {
        match *e {
            Event::Alloc {
                id,
                requested,
                block,
                stream,
                ..
            } => {
                released = false;
                let pool = pools
                    .entry(stream)
                    .or_insert_with(|| CachingAllocator::new(config.clone(), limited));
                match pool.malloc(id, requested) {
                    Ok(got) => {
                        out.blocks_differ += usize::from(got != block);
                        now.allocated += got;
                        now.requested += requested;
                        sizes.insert(id, (got, requested));
                        home.insert(id, stream);
                    }
                    Err(oom) => {
                        out.failed = Some((i, oom));
                        break;
                    }
                }
            }
            Event::Free { id, .. } => {
                if let Some((b, r)) = sizes.remove(&id) {
                    now.allocated -= b;
                    now.requested -= r;
                }
                if !later.contains(&id)
                    && let Some(p) = home.remove(&id).and_then(|s| pools.get_mut(&s))
                {
                    p.free(id);
                }
            }
            Event::Reusable { id } => {
                if let Some(p) = home.remove(&id).and_then(|s| pools.get_mut(&s)) {
                    p.free(id);
                }
            }
            // one `empty_cache` for a run of them
            Event::SegmentFree { asked: true, .. } if !released => {
                released = true;
                pools.values_mut().for_each(CachingAllocator::empty_cache);
            }
            Event::SegmentFree { .. } | Event::SegmentAlloc { .. } => {}
        }
        now.reserved = pools.values().map(|p| p.stats().reserved.current).sum();
        // what a request reserved and gave back again is in the pool's own peak
        let own = pools.values().map(|p| p.stats().reserved.peak).max();
        out.peak = out.peak.max(now);
        if pools.len() == 1 {
            out.peak.reserved = out.peak.reserved.max(own.unwrap_or(0));
        }
    }
    out.end = now;
    out.retries = pools.values().map(|p| p.stats().num_alloc_retries).sum();
    out
}
