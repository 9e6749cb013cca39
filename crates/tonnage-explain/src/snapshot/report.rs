//! What a snapshot says, as values: `tonnage.explain/1`, kind `snapshot`.

use super::category::Categories;
use super::history::{History, Level, Live};
use super::{Category, Snapshot, State};
use rustc_hash::FxHashMap;
use serde::Serialize;

/// Bytes of one category.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CategoryBytes {
    pub category: Category,
    pub bytes: u64,
    pub requested_bytes: u64,
    pub blocks: u64,
}

/// Blocks of one stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StackBytes {
    pub bytes: u64,
    pub blocks: u64,
    pub category: Category,
    /// `file:line name`, innermost first, those of PyTorch's own machinery left out where the user's own are there.
    pub frames: Vec<String>,
}

/// Where free memory lies.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Fragmentation {
    pub segments: u64,
    pub reserved_bytes: u64,
    pub allocated_bytes: u64,
    /// Freed, but another stream still uses it.
    pub pending_bytes: u64,
    pub free_bytes: u64,
    /// Of the free bytes those in wholly free segments: `empty_cache()` returns them.
    pub releasable_bytes: u64,
    /// Free bytes of private pools (CUDA graphs).
    pub private_bytes: u64,
    pub largest_free_bytes: u64,
    /// 1 - largest / free: 0 is one piece.
    pub fragmentation: f64,
}

/// One segment of the map.
#[derive(Clone, Debug, Serialize)]
pub struct SegmentRow {
    pub address: u64,
    pub bytes: u64,
    pub allocated_bytes: u64,
    pub largest_free_bytes: u64,
    pub small: bool,
    pub private_pool: bool,
    pub stream: u64,
    /// Runs of `a` (allocated), `p` (pending), `f` (free): [kind, bytes]. Left out of segments beyond the first thousand.
    pub runs: Vec<(char, u64)>,
}

/// The allocator when memory ran out, as the events say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OomEvent {
    pub event: u64,
    pub device_free_bytes: u64,
    pub bytes: u64,
}

/// One device.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceReport {
    pub device: u32,
    pub events: u64,
    /// The trace begins with the process: nothing was there before it.
    pub complete: bool,
    /// The replayed events end at the blocks that the snapshot lists, all of their sizes equal.
    pub verified: bool,
    /// Highest of each, at its own moment.
    pub peak: Level,
    pub peak_event: u64,
    pub peak_time_us: u64,
    /// Levels when most was allocated.
    pub at_peak: Level,
    /// Now: what the snapshot's segments add up to.
    pub end: Level,
    pub categories_at_peak: Vec<CategoryBytes>,
    pub stacks_at_peak: Vec<StackBytes>,
    pub categories_at_end: Vec<CategoryBytes>,
    pub stacks_at_end: Vec<StackBytes>,
    pub fragmentation: Fragmentation,
    pub ooms: Vec<OomEvent>,
    /// (event, highest allocated, highest reserved) of up to 1,500 parts of the trace.
    pub timeline: Vec<(u64, u64, u64)>,
    pub segments: Vec<SegmentRow>,
    /// The same requests under other settings.
    pub replays: Vec<super::replay::Outcome>,
}

/// A snapshot's report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub schema: &'static str,
    /// What this is: `snapshot`.
    pub kind: &'static str,
    pub source: String,
    pub file_bytes: u64,
    pub devices: Vec<DeviceReport>,
    pub settings: Vec<(String, String)>,
}

/// Sums blocks by category.
pub(super) fn categories<'b>(
    s: &Snapshot,
    c: &mut Categories,
    live: impl Iterator<Item = &'b Live>,
) -> Vec<CategoryBytes> {
    let mut sums: FxHashMap<Category, CategoryBytes> = FxHashMap::default();
    for l in live {
        let category = c.of(s, l.stack, l.requested);
        let e = sums.entry(category).or_insert(CategoryBytes {
            category,
            bytes: 0,
            requested_bytes: 0,
            blocks: 0,
        });
        e.bytes = e.bytes.saturating_add(l.size);
        e.requested_bytes = e.requested_bytes.saturating_add(l.requested);
        e.blocks = e.blocks.saturating_add(1);
    }
    Category::ALL
        .iter()
        .filter_map(|c| sums.remove(c))
        .collect()
}

/// The frames that are shown: up to eight, the user's first.
pub(super) fn frames(s: &Snapshot, stack: u32) -> Vec<String> {
    let all: Vec<String> = s.stack(stack).map(|f| f.1).collect();
    let own = |f: &&String| {
        let f = f.replace('\\', "/");
        ![
            "/torch/",
            "torch/nn/",
            "torch/_",
            "CUDACachingAllocator",
            "??",
            "<frozen",
        ]
        .iter()
        .any(|w| f.contains(w))
    };
    let mine: Vec<String> = all.iter().filter(own).take(8).cloned().collect();
    match mine.is_empty() {
        true => all.into_iter().take(8).collect(),
        false => {
            // the innermost says which operation
            let mut out: Vec<String> = all
                .first()
                .filter(|f| mine.first() != Some(f))
                .cloned()
                .into_iter()
                .collect();
            out.extend(mine);
            out.truncate(8);
            out
        }
    }
}

/// Sums blocks by stack and category; the `top` largest. Blocks without a frame (autograd's own threads) are of several categories.
pub(super) fn stacks<'b>(
    s: &Snapshot,
    c: &mut Categories,
    live: impl Iterator<Item = &'b Live>,
    top: usize,
) -> Vec<StackBytes> {
    let mut sums: FxHashMap<(u32, Category), (u64, u64)> = FxHashMap::default();
    for l in live {
        let category = c.of(s, l.stack, l.requested);
        let e = sums.entry((l.stack, category)).or_default();
        e.0 = e.0.saturating_add(l.size);
        e.1 = e.1.saturating_add(1);
    }
    let mut all: Vec<_> = sums.into_iter().collect();
    all.sort_unstable_by_key(|(key, (bytes, _))| (std::cmp::Reverse(*bytes), *key));
    all.truncate(top);
    all.into_iter()
        .map(|((stack, category), (bytes, blocks))| StackBytes {
            bytes,
            blocks,
            category,
            frames: frames(s, stack),
        })
        .collect()
}

/// The blocks that the snapshot lists as allocated.
pub fn listed(s: &Snapshot, device: u32) -> Vec<Live> {
    s.segments
        .iter()
        .filter(|g| g.device == device)
        .flat_map(|g| &s.blocks[g.blocks.clone()])
        .filter(|b| b.state == State::Allocated)
        .map(|b| Live {
            address: b.address,
            size: b.size,
            requested: b.requested,
            stack: b.stack,
            event: None,
        })
        .collect()
}

fn map(s: &Snapshot, device: u32) -> (Fragmentation, Vec<SegmentRow>, Level) {
    let mut f = Fragmentation::default();
    let mut rows = Vec::new();
    let mut requested = 0u64;
    for g in s.segments.iter().filter(|g| g.device == device) {
        let blocks = &s.blocks[g.blocks.clone()];
        let mut row = SegmentRow {
            address: g.address,
            bytes: g.total,
            allocated_bytes: 0,
            largest_free_bytes: 0,
            small: g.small,
            private_pool: g.pool != (0, 0),
            stream: g.stream,
            runs: Vec::new(),
        };
        let mut busy = false;
        let mut free = 0u64;
        for b in blocks {
            let kind = match b.state {
                State::Allocated => {
                    row.allocated_bytes = row.allocated_bytes.saturating_add(b.size);
                    requested = requested.saturating_add(b.requested);
                    'a'
                }
                State::Pending => {
                    f.pending_bytes = f.pending_bytes.saturating_add(b.size);
                    'p'
                }
                State::Inactive => {
                    free = free.saturating_add(b.size);
                    row.largest_free_bytes = row.largest_free_bytes.max(b.size);
                    'f'
                }
            };
            busy |= kind != 'f';
            if rows.len() < 1000 {
                match row.runs.last_mut() {
                    Some(r) if r.0 == kind => r.1 = r.1.saturating_add(b.size),
                    _ => row.runs.push((kind, b.size)),
                }
            }
        }
        f.segments = f.segments.saturating_add(1);
        f.reserved_bytes = f.reserved_bytes.saturating_add(g.total);
        f.allocated_bytes = f.allocated_bytes.saturating_add(row.allocated_bytes);
        f.free_bytes = f.free_bytes.saturating_add(free);
        if !busy {
            f.releasable_bytes = f.releasable_bytes.saturating_add(free);
        }
        if row.private_pool {
            f.private_bytes = f.private_bytes.saturating_add(free);
        }
        f.largest_free_bytes = f.largest_free_bytes.max(row.largest_free_bytes);
        rows.push(row);
    }
    if f.free_bytes > 0 {
        f.fragmentation = 1.0 - f.largest_free_bytes as f64 / f.free_bytes as f64;
    }
    let level = Level {
        allocated_bytes: f.allocated_bytes,
        reserved_bytes: f.reserved_bytes,
        requested_bytes: requested,
    };
    (f, rows, level)
}

impl Report {
    /// Of a snapshot; `top` stacks are listed.
    pub fn of(source: &str, s: &Snapshot, top: usize) -> Report {
        let mut c = Categories::new(s);
        let devices = s
            .devices()
            .into_iter()
            .map(|device| {
                let h = History::of(s, device);
                let alive = if h.events > 0 {
                    h.alive_at_peak()
                } else {
                    listed(s, device)
                };
                let now = listed(s, device);
                let (fragmentation, segments, end) = map(s, device);
                // without events the present is all there is
                let known = h.events > 0;
                DeviceReport {
                    device,
                    events: h.events,
                    complete: h.complete,
                    verified: h.verified,
                    peak: if known { h.peak } else { end },
                    peak_event: h.peak_event,
                    peak_time_us: h.peak_time_us,
                    at_peak: if known { h.at_peak } else { end },
                    end,
                    categories_at_peak: categories(s, &mut c, alive.iter()),
                    stacks_at_peak: stacks(s, &mut c, alive.iter(), top),
                    categories_at_end: categories(s, &mut c, now.iter()),
                    stacks_at_end: stacks(s, &mut c, now.iter(), top),
                    fragmentation,
                    ooms: h
                        .ooms
                        .iter()
                        .map(|(event, free, bytes)| OomEvent {
                            event: *event,
                            device_free_bytes: *free,
                            bytes: *bytes,
                        })
                        .collect(),
                    timeline: h.timeline,
                    segments,
                    replays: Vec::new(),
                }
            })
            .collect();
        Report {
            schema: crate::oom::log::SCHEMA,
            kind: "snapshot",
            source: source.into(),
            file_bytes: s.bytes,
            devices,
            settings: s.settings.clone(),
        }
    }
}
