//! What grew between two snapshots of one run: `tonnage.explain/1`, kind `snapshot-diff`.

use super::category::Categories;
use super::report::{frames, listed};
use super::{Category, Snapshot};
use rustc_hash::FxHashMap;
use serde::Serialize;

/// A stack whose blocks grew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Candidate {
    pub bytes_before: u64,
    pub bytes_after: u64,
    pub blocks_before: u64,
    pub blocks_after: u64,
    pub category: Category,
    /// `file:line name`, innermost first.
    pub frames: Vec<String>,
    /// A leak is likely: more blocks than before, of a stack that is no optimizer's first step and no parameter.
    pub likely: bool,
}

impl Candidate {
    /// Bytes more than before.
    pub fn growth(&self) -> u64 {
        self.bytes_after.saturating_sub(self.bytes_before)
    }
}

/// The difference of two snapshots.
#[derive(Clone, Debug, Serialize)]
pub struct Diff {
    pub schema: &'static str,
    /// What this is: `snapshot-diff`.
    pub kind: &'static str,
    pub source: String,
    pub with: String,
    pub allocated_before: u64,
    pub allocated_after: u64,
    pub reserved_before: u64,
    pub reserved_after: u64,
    /// Those that grew, the largest first.
    pub candidates: Vec<Candidate>,
}

type Sums = FxHashMap<Vec<(String, u32, String)>, (u64, u64, u32, u64)>;

/// Bytes, blocks, a stack's number and a size, by the stack's frames: numbers differ between files.
fn sums(s: &Snapshot) -> Sums {
    let mut by_stack: FxHashMap<u32, (u64, u64, u64)> = FxHashMap::default();
    for device in s.devices() {
        for l in listed(s, device) {
            let e = by_stack.entry(l.stack).or_insert((0, 0, l.requested));
            e.0 = e.0.saturating_add(l.size);
            e.1 = e.1.saturating_add(1);
        }
    }
    let mut out = Sums::default();
    for (stack, (bytes, blocks, requested)) in by_stack {
        let key = s
            .stacks
            .get(stack)
            .iter()
            .map(|f| {
                let f = s.frames[*f as usize];
                let name = s.texts.get(f.name).to_string();
                // a script's own lines pass once: another loop around the same function is the same place
                let line = if name == "<module>" { 0 } else { f.line };
                (s.texts.get(f.file).to_string(), line, name)
            })
            .collect();
        let e = out.entry(key).or_insert((0, 0, stack, requested));
        e.0 = e.0.saturating_add(bytes);
        e.1 = e.1.saturating_add(blocks);
    }
    out
}

impl Diff {
    /// Of an earlier and a later snapshot.
    pub fn of(names: (&str, &str), before: &Snapshot, after: &Snapshot) -> Diff {
        let old = sums(before);
        let mut c = Categories::new(after);
        let mut candidates: Vec<Candidate> = sums(after)
            .into_iter()
            .filter_map(|(key, (bytes, blocks, stack, requested))| {
                let (b, n, ..) = old.get(&key).copied().unwrap_or((0, 0, 0, 0));
                if bytes <= b {
                    return None;
                }
                let category = c.of(after, stack, requested);
                let settled = matches!(
                    category,
                    Category::Parameters | Category::OptimizerState | Category::Workspace
                );
                Some(Candidate {
                    bytes_before: b,
                    bytes_after: bytes,
                    blocks_before: n,
                    blocks_after: blocks,
                    category,
                    frames: frames(after, stack),
                    likely: !settled && blocks > n && n > 0,
                })
            })
            .collect();
        candidates.sort_by(|a, b| {
            (b.likely, b.growth())
                .cmp(&(a.likely, a.growth()))
                .then_with(|| a.frames.cmp(&b.frames))
        });
        let total = |s: &Snapshot, f: fn(&super::Segment) -> u64| {
            s.segments.iter().map(f).fold(0u64, u64::saturating_add)
        };
        Diff {
            schema: crate::oom::log::SCHEMA,
            kind: "snapshot-diff",
            source: names.0.into(),
            with: names.1.into(),
            allocated_before: total(before, |g| g.allocated),
            allocated_after: total(after, |g| g.allocated),
            reserved_before: total(before, |g| g.total),
            reserved_after: total(after, |g| g.total),
            candidates,
        }
    }
}
