//! What each component holds at its own highest moment: documents name parts that are never alive together.

use super::analysis::Block;
use super::classify::{Component, Modules, component};
use crate::train::Simulated;
use std::collections::BTreeMap;
use tonnage_sim::OpId;
use tonnage_sim::timeline::{Category, EventKind};

const NONE: u32 = u32::MAX;

/// Bytes of each component at the component's own peak over the run, in blocks of 512 bytes as the allocator rounds requests. They do not add up to a
/// peak: gradients may be gone before the activations of the next step are there.
pub fn component_peaks(sim: &Simulated) -> BTreeMap<Component, u64> {
    let t = &sim.timeline;
    let modules = Modules::of(&sim.modules);
    let mut blocks: Vec<(u64, u32, u32, u32)> = Vec::new(); // bytes, owner, born, died
    let mut next = 0;
    for (i, e) in t.events.iter().enumerate() {
        while t.marks.get(next).is_some_and(|m| m.at <= i) {
            next += 1;
        }
        let mark = if next == 0 { NONE } else { next as u32 - 1 };
        match e.kind() {
            EventKind::Alloc { id } => {
                let k = id as usize;
                if blocks.len() <= k {
                    blocks.resize(k + 1, (0, 0, NONE, NONE));
                }
                blocks[k] = (e.bytes, e.owner, mark, NONE);
            }
            EventKind::Free { id } => {
                if let Some(b) = blocks.get_mut(id as usize) {
                    b.3 = mark;
                }
            }
            EventKind::EmptyCache => {}
        }
    }
    let mut tags = vec![None; blocks.len()];
    for tag in &t.tags {
        if let Some(slot) = tags.get_mut(tag.id as usize)
            && (slot.is_none() || tag.category == Category::OptimizerState)
        {
            *slot = Some(tag.category);
        }
    }
    let at = |m: u32| t.marks.get(m as usize).copied();
    let kinds: Vec<(Component, u64)> = blocks
        .iter()
        .zip(&tags)
        .map(|(&(requested, owner, born, died), tag)| {
            let bytes = requested.div_ceil(512) * 512;
            let b = Block {
                bytes,
                requested,
                module: owner >> 12,
                op: OpId((owner & 0xfff) as u16),
                born: at(born),
                died: at(died),
                tag: *tag,
            };
            (component(&b, &modules), bytes)
        })
        .collect();
    let mut now: BTreeMap<Component, u64> = BTreeMap::new();
    let mut peak: BTreeMap<Component, u64> = BTreeMap::new();
    for e in &t.events {
        match e.kind() {
            EventKind::Alloc { id } => {
                let (c, bytes) = kinds[id as usize];
                let n = now.entry(c).or_default();
                *n += bytes;
                let p = peak.entry(c).or_default();
                *p = (*p).max(*n);
            }
            EventKind::Free { id } => {
                let (c, bytes) = kinds[id as usize];
                *now.entry(c).or_default() -= bytes;
            }
            EventKind::EmptyCache => {}
        }
    }
    peak
}
