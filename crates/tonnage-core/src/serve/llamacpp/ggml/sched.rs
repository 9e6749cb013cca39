//! The scheduler: which backend runs a node, where the graph is split, what is copied (llama.cpp v0.5.0, ggml/src/ggml-backend.cpp,
//! `ggml_backend_sched_split_graph`; its passes keep their numbers here).

use super::Buft;
use super::graph::{Graph, Id, Op, Tensor};
use super::reorder::reorder;
use super::{cuda, vulkan};
use std::collections::HashMap;

/// One backend: what it is and where it puts what it computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Buffers of its compute tensors.
    pub buft: Buft,
    /// None: the CPU.
    pub device: Option<Gpu>,
}

/// What decides which nodes a device runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gpu {
    /// Device number and compute capability (890 for 8.9).
    Cuda(u8, u32),
    /// Bytes that it binds at once.
    Vulkan(u64),
}

impl Backend {
    /// Whether it reads memory of that kind.
    pub fn reads(&self, buft: Buft) -> bool {
        match self.device {
            Some(_) => buft == self.buft,
            None => !buft.is_device(),
        }
    }
    /// Whether it runs the node (`ggml_backend_supports_op`).
    pub fn supports(&self, g: &Graph, id: Id) -> bool {
        match self.device {
            Some(Gpu::Cuda(i, cc)) => return cuda::supports(g, id, i, cc),
            Some(Gpu::Vulkan(most)) => return vulkan::supports(g, id, most),
            None => {}
        }
        let t = g.get(id);
        if t.op == Op::None || t.op.is_view() {
            return true;
        }
        // repacked weights are read by products only
        let packed = |s: &Id| g.get(*s).buft == Some(Buft::CpuRepack);
        if t.src.iter().take(4).any(packed) {
            return matches!(t.op, Op::MulMat | Op::MulMatId) && packed(&t.src[0]);
        }
        true
    }
}

/// All backends in order of priority, the CPU last; settings of the scheduler.
#[derive(Clone, Debug)]
pub struct Backends {
    pub list: Vec<Backend>,
    /// Run large ops on a device although their weights are on the host.
    pub op_offload: bool,
    /// Copies of each input: 4 with pipeline parallelism, otherwise 1.
    pub copies: usize,
}

impl Backends {
    fn cpu(&self) -> usize {
        self.list.len() - 1
    }
}

/// A stretch of the graph that one backend runs.
#[derive(Clone, Debug)]
pub struct Split {
    pub backend: usize,
    pub start: usize,
    pub end: usize,
    /// Tensors that are copied in before.
    pub inputs: Vec<Id>,
}

/// The graph as the allocator gets it.
#[derive(Clone, Debug, Default)]
pub struct Placed {
    pub nodes: Vec<(Id, usize)>,
    pub leafs: Vec<(Id, usize)>,
    pub splits: Vec<Split>,
    /// Backend of each original tensor.
    pub backend_of: Vec<Option<usize>>,
}

struct Sched<'a> {
    g: &'a mut Graph,
    b: &'a Backends,
    of: Vec<Option<usize>>,
    /// (tensor, backend) to its copies.
    copies: HashMap<(Id, usize), Vec<Id>>,
}

/// Places, splits and copies. Sources of nodes in `g` are replaced by their copies.
pub fn split(g: &mut Graph, b: &Backends) -> Placed {
    let mut s = Sched {
        of: vec![None; g.tensors.len()],
        g,
        b,
        copies: HashMap::new(),
    };
    for i in 0..s.g.wished.len() {
        let (id, backend) = s.g.wished[i];
        s.of[id as usize] = Some(backend);
    }
    s.assign();
    s.expand();
    s.upgrade();
    s.follow();
    let (splits, inputs) = s.cut();
    s.lay_out(splits, inputs)
}

impl Sched<'_> {
    fn of(&self, id: Id) -> Option<usize> {
        self.of[id as usize]
    }

    /// The first backend that reads `buft` and runs `op`.
    fn for_buffer(&self, buft: Buft, op: Id) -> Option<usize> {
        self.b
            .list
            .iter()
            .position(|x| x.reads(buft) && x.supports(self.g, op))
    }

    /// `ggml_backend_sched_backend_id_from_cur`.
    fn current(&self, id: Id) -> Option<usize> {
        if let Some(buft) = self.g.place(id) {
            return self.for_buffer(buft, id);
        }
        let t = self.g.get(id);
        if t.input {
            return Some(self.b.cpu());
        }
        // tensors too small to decide: rope factors, attention sinks
        if matches!(t.op, Op::Rope | Op::FlashAttn) {
            return None;
        }
        for &s in &t.src {
            let w = self.g.get(s);
            let (true, Some(buft)) = (w.weight, w.buft) else {
                continue;
            };
            let at = self.for_buffer(buft, id);
            if self.b.op_offload && at == Some(self.b.cpu()) && buft.is_host() {
                let taker = self.b.list[..self.b.cpu()]
                    .iter()
                    .position(|x| x.supports(self.g, id) && cuda::wants(t));
                if taker.is_some() {
                    return taker;
                }
            }
            return at;
        }
        None
    }

    /// Pass 1: nodes whose place follows from buffers.
    fn assign(&mut self) {
        for i in 0..self.g.leafs.len() + self.g.nodes.len() {
            let id = match self.g.leafs.get(i) {
                Some(leaf) => *leaf,
                None => self.g.nodes[i - self.g.leafs.len()],
            };
            if self.of(id).is_none() {
                self.of[id as usize] = self.current(id);
            }
        }
    }

    /// Pass 2: neighbours get the same backend, devices first.
    fn expand(&mut self) {
        let n = self.g.nodes.len();
        for (device_only, down) in [(true, true), (true, false), (false, true), (false, false)] {
            let mut current = None;
            for k in 0..n {
                let id = self.g.nodes[if down { k } else { n - 1 - k }];
                if self.g.get(id).op.is_view() {
                    continue;
                }
                match (self.of(id), current) {
                    (Some(b), _) => {
                        current = (!device_only || b != self.b.cpu()).then_some(b);
                    }
                    (None, Some(b)) => {
                        if self.b.list[b].supports(self.g, id) {
                            self.of[id as usize] = Some(b);
                        }
                    }
                    (None, None) => {}
                }
            }
        }
    }

    /// Whether the backend can read the tensor where it is or will be (`ggml_backend_sched_buffer_supported`).
    fn readable(&self, id: Id, backend: usize) -> bool {
        let buft = self.g.place(id).or_else(|| {
            let at = self.of(id).or_else(|| self.of(self.g.root(id)))?;
            Some(self.b.list[at].buft)
        });
        buft.is_some_and(|x| self.b.list[backend].reads(x))
    }

    /// Pass 3: nodes without a backend go where most sources are.
    fn upgrade(&mut self) {
        for i in 0..self.g.nodes.len() {
            let id = self.g.nodes[i];
            if self.g.get(id).op.is_view() || self.of(id).is_some() {
                // no two backends share a kind of buffer here, so nothing is upgraded
                continue;
            }
            let mut best: Option<(usize, usize)> = None;
            for b in 0..self.b.list.len() {
                if !self.b.list[b].supports(self.g, id) {
                    continue;
                }
                let known = |s: &&Id| {
                    let t = self.g.get(**s);
                    let placed =
                        self.of(**s).is_some() || t.view.is_some_and(|v| self.of(v).is_some());
                    placed && self.readable(**s, b)
                };
                let n = self.g.get(id).src.iter().filter(known).count();
                if best.is_none_or(|(most, _)| n > most) {
                    best = Some((n, b));
                }
            }
            self.of[id as usize] = best.map(|x| x.1);
        }
    }

    /// Pass 4: views and the sources that are left.
    fn follow(&mut self) {
        for i in 0..self.g.nodes.len() {
            let id = self.g.nodes[i];
            if let (Some(v), None) = (self.g.get(id).view, self.of(id)) {
                self.of[id as usize] = self.of(v);
            }
            for j in 0..self.g.get(id).src.len() {
                let s = self.g.get(id).src[j];
                if self.of(s).is_none() {
                    self.of[s as usize] = match self.g.get(s).view {
                        Some(v) => self.of(v),
                        None => self.of(id),
                    };
                }
            }
            if self.of(id).is_none() {
                let first = self.b.list.iter().position(|b| b.supports(self.g, id));
                self.of[id as usize] = Some(first.unwrap_or(self.b.cpu()));
            }
        }
    }

    /// Pass 5: splits and their inputs. With several copies, the inputs of the graph that are used have them too, on their own backend
    /// (v0.5.0; later versions copy unused inputs as well).
    fn cut(&mut self) -> (Vec<Split>, Vec<(Id, usize)>) {
        let mut inputs = Vec::new();
        let n = self.g.nodes.len();
        let cpu = self.b.cpu();
        let mut i = 0;
        while i < n && self.g.get(self.g.nodes[i]).op.is_view() {
            i += 1;
        }
        let mut now = Split {
            backend: self
                .g
                .nodes
                .get(i)
                .map_or(cpu, |x| self.of(*x).unwrap_or(cpu)),
            start: 0,
            end: n,
            inputs: Vec::new(),
        };
        let mut out = Vec::new();
        for i in i..n {
            let id = self.g.nodes[i];
            if self.g.get(id).op.is_view() {
                continue;
            }
            let backend = self.of(id).unwrap_or(cpu);
            // a weight to be copied begins a split of its own, so that the one before it can be freed
            let fresh = backend == now.backend
                && !now.inputs.is_empty()
                && self.g.get(id).src.iter().any(|&s| {
                    let w = self.g.get(s);
                    w.weight && self.of(s) != Some(backend) && !self.readable(s, backend)
                });
            if backend != now.backend || fresh {
                now.end = i;
                let next = Split {
                    backend,
                    start: i,
                    end: n,
                    inputs: Vec::new(),
                };
                out.push(std::mem::replace(&mut now, next));
            }
            for j in 0..self.g.get(id).src.len() {
                let s = self.g.get(id).src[j];
                let own = self.of(s).unwrap_or(cpu);
                if self.b.copies > 1 && self.g.get(s).input && !self.copies.contains_key(&(s, own))
                {
                    self.copy(s, own, 1);
                    self.g.get_mut(s).output = true;
                    inputs.push((s, own));
                }
                if own == backend || self.readable(s, backend) {
                    continue;
                }
                if !self.copies.contains_key(&(s, backend)) {
                    self.copy(s, backend, 0);
                    now.inputs.push(s);
                }
                let copy = self.copies[&(s, backend)][0];
                self.g.get_mut(id).src[j] = copy;
            }
        }
        out.push(now);
        (out, inputs)
    }

    /// Makes the copies of a tensor on a backend; those before `from` are the tensor itself.
    fn copy(&mut self, s: Id, backend: usize, from: usize) {
        let mut list = vec![s; from];
        for _ in from..self.b.copies {
            let t = Tensor {
                op: Op::None,
                src: Vec::new(),
                view: None,
                buft: None,
                weight: false,
                input: self.b.copies > 1,
                output: self.b.copies > 1,
                ..self.g.get(s).clone()
            };
            list.push(self.g.push(t));
            self.of.push(Some(backend));
        }
        self.copies.insert((s, backend), list);
    }

    /// The graph copy: inputs of each split before its nodes, what fusion keeps after the node that it waits for.
    fn lay_out(mut self, splits: Vec<Split>, inputs: Vec<(Id, usize)>) -> Placed {
        let mut keeps: HashMap<Id, Vec<Id>> = HashMap::new();
        for s in &splits {
            let kept = match self.b.list[s.backend].device {
                Some(Gpu::Cuda(..)) => cuda::fusion_keeps(self.g, s.start..s.end),
                Some(Gpu::Vulkan(_)) => {
                    let (order, kept) = reorder(self.g, &self.g.nodes[s.start..s.end]);
                    self.g.nodes[s.start..s.end].copy_from_slice(&order);
                    kept
                }
                None => continue,
            };
            for (until, what) in kept {
                let list = keeps.entry(until).or_default();
                for w in what {
                    if !list.contains(&w) {
                        list.push(w);
                    }
                }
            }
        }
        let mut nodes = Vec::new();
        for s in &splits {
            for &input in &s.inputs {
                let dep = self.dependency(&[input]);
                let at = self.of(input).unwrap_or(self.b.cpu());
                nodes.push((dep, at));
                nodes.push((self.copies[&(input, s.backend)][0], s.backend));
            }
            for i in s.start..s.end {
                let id = self.g.nodes[i];
                nodes.push((id, self.of(id).unwrap_or(self.b.cpu())));
                // GGML_MAX_SRC sources to a dependency
                for group in keeps.remove(&id).unwrap_or_default().chunks(10) {
                    let dep = self.dependency(group);
                    nodes.push((dep, s.backend));
                }
            }
        }
        let mut leafs = Vec::new();
        for (id, backend) in inputs {
            leafs.extend(self.copies[&(id, backend)].iter().map(|c| (*c, backend)));
        }
        if self.b.copies > 1 {
            for s in &splits {
                for &id in &s.inputs {
                    let list = &self.copies[&(id, s.backend)];
                    leafs.extend(list.iter().map(|c| (*c, s.backend)));
                }
            }
        }
        for &leaf in &self.g.leafs {
            leafs.push((leaf, self.of(leaf).unwrap_or(self.b.cpu())));
        }
        Placed {
            nodes,
            leafs,
            splits,
            backend_of: self.of,
        }
    }

    /// A view without an operator whose sources live until it.
    fn dependency(&mut self, of: &[Id]) -> Id {
        let (ne, nb) = (self.g.get(of[0]).ne, self.g.get(of[0]).nb);
        let dep = self.g.view_of(Op::None, of[0], ne, nb, of);
        self.of.push(None);
        dep
    }
}
