//! The graph allocator (llama.cpp v0.5.0, ggml/src/ggml-alloc.c, `ggml_gallocr_alloc_graph_impl`): one plan for each kind of buffer.

use super::cuda::alloc_size;
use super::graph::{Graph, Id, Op};
use super::sched::{Backends, Gpu, Placed};
use super::{Buft, pad};

/// A tensor that is held when a buffer is fullest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub label: &'static str,
    /// -1: no layer's.
    pub layer: i32,
    /// In the buffer, alignment included.
    pub bytes: u64,
}

/// What one kind of buffer needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub buft: Buft,
    /// The buffer's size: the highest end of any tensor.
    pub bytes: u64,
    /// What is held at the moment of the highest end.
    pub held: Vec<Held>,
    /// Holes between the held tensors then: `bytes` is their sum with the held.
    pub holes: u64,
}

/// Free blocks by address, the last one endless (`ggml_dyn_tallocr`).
struct Arena {
    align: u64,
    free: Vec<(u64, u64)>,
    highest: u64,
    /// What is allocated: offset, size, tensor.
    live: Vec<(u64, u64, Id)>,
    peak: Vec<(u64, u64, Id)>,
}

impl Arena {
    fn new(align: u64) -> Arena {
        Arena {
            align,
            free: vec![(0, u64::MAX / 2)],
            highest: 0,
            live: Vec::new(),
            peak: Vec::new(),
        }
    }

    fn take(&mut self, size: u64, id: Id) -> u64 {
        let size = pad(size, self.align);
        let last = self.free.len() - 1;
        let mut best: Option<usize> = None;
        for (i, block) in self.free[..last].iter().enumerate() {
            if block.1 >= size && best.is_none_or(|b| block.1 <= self.free[b].1) {
                best = Some(i);
            }
        }
        let at = best.unwrap_or(last);
        let offset = self.free[at].0;
        self.free[at].0 += size;
        self.free[at].1 = self.free[at].1.saturating_sub(size);
        if self.free[at].1 == 0 && at != last {
            self.free.remove(at);
        }
        self.live.push((offset, size, id));
        if offset.saturating_add(size) > self.highest {
            self.highest = offset.saturating_add(size);
            self.peak.clone_from(&self.live);
        }
        offset
    }

    fn give(&mut self, offset: u64, size: u64) {
        let size = pad(size, self.align);
        for i in 0..self.free.len() {
            let (o, n) = self.free[i];
            if o + n == offset {
                self.free[i].1 += size;
                if i + 1 < self.free.len() && o + n + size == self.free[i + 1].0 {
                    self.free[i].1 += self.free[i + 1].1;
                    self.free.remove(i + 1);
                }
                return;
            }
            if offset + size == o {
                self.free[i] = (offset, n + size);
                if i > 0 && self.free[i - 1].0 + self.free[i - 1].1 == offset {
                    self.free[i - 1].1 += n + size;
                    self.free.remove(i);
                }
                return;
            }
        }
        let at = self.free.partition_point(|b| b.0 < offset);
        self.free.insert(at, (offset, size));
    }

    /// The tensor at `offset` is gone; with `keep`, another one has its place.
    fn renamed(&mut self, offset: u64, keep: Option<(u64, Id)>) {
        let Some(i) = self.live.iter().position(|l| l.0 == offset && l.1 > 0) else {
            return;
        };
        match keep {
            Some((size, id)) => self.live[i] = (offset, size, id),
            None => {
                self.live.swap_remove(i);
            }
        }
    }
}

#[derive(Clone, Copy, Default)]
struct State {
    children: u32,
    views: u32,
    arena: usize,
    offset: u64,
    allocated: bool,
}

struct Galloc<'a> {
    g: &'a Graph,
    b: &'a Backends,
    state: Vec<State>,
    arenas: Vec<Arena>,
}

/// Replays the allocator: one plan for each backend, in their order.
pub fn plan(g: &Graph, placed: &Placed, b: &Backends) -> Vec<Plan> {
    let mut a = Galloc {
        g,
        b,
        state: vec![State::default(); g.tensors.len()],
        arenas: b
            .list
            .iter()
            .map(|x| Arena::new(x.buft.alignment()))
            .collect(),
    };
    for &(id, backend) in &placed.leafs {
        a.allocate(id, backend);
    }
    for &(id, backend) in &placed.nodes {
        let t = g.get(id);
        // a view without an operator is a dependency, not a use
        if let (Some(v), true) = (t.view, t.op != Op::None) {
            a.state[v as usize].views += 1;
        }
        if t.input {
            a.allocate(id, backend);
        }
        for &s in &t.src {
            a.state[s as usize].children += 1;
            if g.get(s).input {
                a.allocate(s, backend);
            }
        }
    }
    for &(id, backend) in &placed.nodes {
        for &s in &g.get(id).src {
            a.allocate(s, backend);
        }
        a.allocate(id, backend);
        for &s in &g.get(id).src {
            a.release(s);
        }
    }
    a.finish()
}

impl Galloc<'_> {
    fn size(&self, id: Id, arena: usize) -> u64 {
        let x = self.b.list[arena];
        let cc = match x.device {
            Some(Gpu::Cuda(_, cc)) => cc,
            _ => 0,
        };
        alloc_size(self.g, id, x.buft, cc)
    }

    fn allocate(&mut self, id: Id, arena: usize) {
        let t = self.g.get(id);
        if t.buft.is_some() || t.view.is_some() || self.state[id as usize].allocated {
            return;
        }
        self.state[id as usize].allocated = true;
        if t.op.in_place() {
            for &p in &t.src {
                let (parent, held) = (self.g.get(p), self.state[p as usize]);
                // views are never allocated themselves, so only whole tensors are written over
                let free =
                    held.allocated && !parent.output && held.children == 1 && held.views == 0;
                if !free || parent.ty != t.ty || parent.ne != t.ne || parent.nb != t.nb {
                    continue;
                }
                let s = &mut self.state[id as usize];
                (s.arena, s.offset) = (held.arena, held.offset);
                self.state[p as usize].allocated = false;
                let align = self.arenas[held.arena].align;
                let (old, new) = (
                    pad(self.size(p, held.arena), align),
                    pad(self.size(id, held.arena), align),
                );
                let arena = &mut self.arenas[held.arena];
                arena.renamed(held.offset, Some((new.min(old), id)));
                if old > new {
                    arena.give(held.offset + new, old - new);
                }
                return;
            }
        }
        let offset = {
            let size = self.size(id, arena);
            self.arenas[arena].take(size, id)
        };
        let s = &mut self.state[id as usize];
        (s.arena, s.offset) = (arena, offset);
    }

    /// A node that used `id` is done.
    fn release(&mut self, id: Id) {
        let s = &mut self.state[id as usize];
        s.children = s.children.saturating_sub(1);
        if s.children > 0 || s.views > 0 {
            return;
        }
        let (of, last) = match self.g.get(id).view {
            None => (id, true),
            Some(v) => {
                let root = &mut self.state[v as usize];
                root.views = root.views.saturating_sub(1);
                (v, root.views == 0 && root.children == 0)
            }
        };
        if last && self.state[of as usize].allocated {
            self.free(of);
        }
    }

    fn free(&mut self, id: Id) {
        if self.g.get(id).output {
            return;
        }
        let State { arena, offset, .. } = self.state[id as usize];
        let size = self.size(id, arena);
        self.arenas[arena].give(offset, size);
        self.arenas[arena].renamed(offset, None);
        self.state[id as usize].allocated = false;
    }

    fn finish(self) -> Vec<Plan> {
        let g = self.g;
        let plans = self.arenas.into_iter().zip(&self.b.list).map(|(a, b)| {
            let held: Vec<Held> = a
                .peak
                .iter()
                .filter(|h| h.1 > 0)
                .map(|&(_, bytes, id)| Held {
                    label: g.get(id).label,
                    layer: g.get(id).layer,
                    bytes,
                })
                .collect();
            let sum: u64 = held.iter().map(|h| h.bytes).sum();
            Plan {
                buft: b.buft,
                bytes: a.highest,
                holes: a.highest.saturating_sub(sum),
                held,
            }
        });
        plans.collect()
    }
}
