//! The recorded requests through our model of the allocator, under other settings or on a smaller device.

use super::{Action, Snapshot, history::Level};
use rustc_hash::FxHashMap;
use serde::Serialize;
use std::collections::BTreeMap;
use tonnage_sim::alloc::{AllocatorConfig, CachingAllocator, Capacity};

/// What would have happened.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The settings, as `PYTORCH_CUDA_ALLOC_CONF` takes them; empty: the defaults.
    pub settings: String,
    pub peak: Level,
    pub end: Level,
    /// Cached blocks were returned to make room.
    pub retries: u64,
    /// The event at which memory ran out.
    pub failed_event: Option<u64>,
}

/// Replays a device's requests; what was there before the trace is requested first. Every stream has pools of its own; a limit is applied
/// where there is one stream.
pub fn replay(
    s: &Snapshot,
    device: u32,
    settings: &str,
    config: &AllocatorConfig,
    capacity: Option<Capacity>,
) -> Outcome {
    let mut pools: BTreeMap<u64, CachingAllocator> = BTreeMap::new();
    let mut id_of: FxHashMap<u64, (u32, u64, u64, u64)> = FxHashMap::default();
    let mut spare: Vec<u32> = Vec::new();
    let mut next = 0u32;
    let mut out = Outcome {
        settings: settings.into(),
        peak: Level::default(),
        end: Level::default(),
        retries: 0,
        failed_event: None,
    };
    let one = {
        let mut streams = s
            .trace(device)
            .filter(|e| e.action == Action::Alloc)
            .map(|e| e.stream);
        let first = streams.next();
        streams.all(|x| Some(x) == first)
    };
    let limit = capacity.filter(|_| one);
    let mut now = Level::default();
    // what the trace frees without having made it, and what is there at the end without an event
    let mut made: FxHashMap<u64, ()> = FxHashMap::default();
    let mut first: Vec<(u64, u64, u64)> = Vec::new();
    for e in s.trace(device) {
        match e.action {
            Action::Alloc => {
                made.insert(e.addr, ());
            }
            Action::FreeRequested if made.remove(&e.addr).is_none() => {
                first.push((e.addr, e.size, e.stream))
            }
            _ => {}
        }
    }
    for g in s.segments.iter().filter(|g| g.device == device) {
        for b in &s.blocks[g.blocks.clone()] {
            if b.state == super::State::Allocated && !made.contains_key(&b.address) {
                first.push((b.address, b.requested, g.stream));
            }
        }
    }
    let before = first.len() as u64;
    let early = first
        .into_iter()
        .map(|(addr, size, stream)| (Action::Alloc, addr, size, stream));
    let events = s
        .trace(device)
        .map(|e| (e.action, e.addr, e.size, e.stream));
    let mut released = false;
    for (i, (action, addr, size, stream)) in early.chain(events).enumerate() {
        let mut touched = None;
        match action {
            Action::Alloc => {
                released = false;
                let pool = pools
                    .entry(stream)
                    .or_insert_with(|| CachingAllocator::new(config.clone(), limit));
                let id = spare.pop().unwrap_or_else(|| {
                    next += 1;
                    next - 1
                });
                if id_of.contains_key(&addr) {
                    spare.push(id);
                    continue;
                }
                match pool.malloc(id, size) {
                    Ok(got) => {
                        now.allocated_bytes += got;
                        now.requested_bytes += size;
                        id_of.insert(addr, (id, got, size, stream));
                        touched = Some(stream);
                    }
                    Err(_) => {
                        out.failed_event = Some((i as u64).saturating_sub(before));
                        break;
                    }
                }
            }
            Action::FreeRequested => {
                if let Some((_, got, asked, _)) = id_of.get(&addr) {
                    now.allocated_bytes -= got;
                    now.requested_bytes -= asked;
                }
            }
            Action::FreeCompleted => {
                if let Some((id, _, _, stream)) = id_of.remove(&addr)
                    && let Some(p) = pools.get_mut(&stream)
                {
                    p.free(id);
                    spare.push(id);
                }
            }
            // one `empty_cache` for a run of them
            Action::SegmentFree if !released => {
                released = true;
                pools.values_mut().for_each(CachingAllocator::empty_cache);
                touched = Some(stream);
            }
            _ => {}
        }
        if touched.is_some() {
            now.reserved_bytes = pools.values().map(|p| p.stats().reserved.current).sum();
            out.peak.allocated_bytes = out.peak.allocated_bytes.max(now.allocated_bytes);
            out.peak.requested_bytes = out.peak.requested_bytes.max(now.requested_bytes);
            out.peak.reserved_bytes = out.peak.reserved_bytes.max(now.reserved_bytes);
        }
    }
    out.end = now;
    out.retries = pools.values().map(|p| p.stats().num_alloc_retries).sum();
    out
}
