//! The Vulkan backend puts independent nodes of a split side by side before they are allocated (llama.cpp v0.5.0,
//! ggml/src/ggml-vulkan/ggml-vulkan.cpp, `ggml_vk_graph_optimize`). Patterns that it fuses stay together.

use super::graph::{Graph, Id, Op};
use std::collections::HashSet;

/// How far a node is looked for.
const WINDOW: usize = 20;
/// How far a node that completes a pattern is looked for.
const REACH: usize = 15;

/// A kind of node in a pattern; all unary operators are one.
fn same(a: Op, b: Op) -> bool {
    matches!((a, b), (Op::Unary(_), Op::Unary(_))) || a == b
}

/// Routing of experts: what it reads lives until it is done.
fn routing_patterns() -> [Vec<Op>; 4] {
    use super::graph::Unary::Sigmoid;
    let norm = [Op::Reshape, Op::SumRows, Op::Clamp, Op::Div, Op::Reshape];
    let pick = [Op::Reshape, Op::Argsort, Op::View, Op::GetRows];
    let biased = [Op::Reshape, Op::Add, Op::Argsort, Op::View, Op::GetRows];
    [
        [&[Op::SoftMax][..], &pick, &norm].concat(),
        [&[Op::Unary(Sigmoid)][..], &biased, &norm].concat(),
        [&[Op::SoftMax][..], &pick].concat(),
        vec![
            Op::Argsort,
            Op::View,
            Op::GetRows,
            Op::Reshape,
            Op::SoftMax,
            Op::Reshape,
        ],
    ]
}

const FUSED: [&[Op]; 5] = [
    &[Op::RmsNorm, Op::Mul, Op::Add, Op::Mul],
    &[Op::RmsNorm, Op::Mul, Op::Add],
    &[Op::RmsNorm, Op::Mul, Op::Rope, Op::View, Op::SetRows],
    &[Op::RmsNorm, Op::View, Op::SetRows],
    &[Op::Rope, Op::View, Op::SetRows],
];

struct Reorder<'a> {
    g: &'a Graph,
    nodes: Vec<Id>,
    used: Vec<bool>,
    done: HashSet<Id>,
    order: Vec<Id>,
    first: usize,
}

/// The nodes of a split in their new order, and what is kept until which node.
pub fn reorder(g: &Graph, nodes: &[Id]) -> (Vec<Id>, Vec<(Id, Vec<Id>)>) {
    let mut r = Reorder {
        g,
        nodes: nodes.to_vec(),
        used: vec![false; nodes.len()],
        done: HashSet::new(),
        order: Vec::with_capacity(nodes.len()),
        first: 0,
    };
    let routing = routing_patterns();
    let mut keeps = Vec::new();
    while r.first < r.nodes.len() {
        if let Some(p) = routing.iter().find(|p| r.matches(p, r.first)) {
            keeps.push(r.kept(p.len()));
            r.keep(p.len());
            continue;
        }
        if let Some(p) = FUSED.iter().find(|p| r.matches(p, r.first)) {
            r.keep(p.len());
            continue;
        }
        let set = r.gather(&routing);
        for c in set {
            r.order.push(r.nodes[c]);
            r.done.insert(r.nodes[c]);
            r.used[c] = true;
        }
        r.advance();
    }
    (r.order, keeps)
}

impl Reorder<'_> {
    fn op(&self, i: usize) -> Op {
        self.g.get(self.nodes[i]).op
    }
    fn src(&self, i: usize, s: usize) -> Option<Id> {
        self.g.get(self.nodes[i]).src.get(s).copied()
    }
    fn empty(&self, i: usize) -> bool {
        self.op(i) == Op::None || self.op(i).is_view()
    }
    fn advance(&mut self) {
        while self.first < self.nodes.len() && self.used[self.first] {
            self.first += 1;
        }
    }
    fn matches(&self, pattern: &[Op], start: usize) -> bool {
        start + pattern.len() <= self.nodes.len()
            && pattern
                .iter()
                .enumerate()
                .all(|(j, op)| same(self.op(start + j), *op) && !self.used[start + j])
    }
    fn keep(&mut self, len: usize) {
        for i in self.first..self.first + len {
            self.order.push(self.nodes[i]);
            self.done.insert(self.nodes[i]);
            self.used[i] = true;
        }
        self.advance();
    }
    /// What a fused routing group reads from outside, until its last node.
    fn kept(&self, len: usize) -> (Id, Vec<Id>) {
        let group = &self.nodes[self.first..self.first + len];
        let mut last = self.first + len - 1;
        if last + 1 < self.nodes.len() && self.op(last + 1) == Op::Scale {
            last += 1;
        }
        let mut list = Vec::new();
        for (i, &n) in group.iter().enumerate() {
            for &s in &self.g.get(n).src {
                if !group[..i].contains(&s) && !list.contains(&s) {
                    list.push(s);
                }
            }
        }
        (self.nodes[last], list)
    }
    /// Whether `dst` must come after `src`: it reads it, or they share bytes.
    fn depends(&self, dst: usize, src: usize) -> bool {
        let (d, s) = (self.nodes[dst], self.nodes[src]);
        let (td, ts) = (self.g.get(d), self.g.get(s));
        if td.src.contains(&s) || self.g.root(d) == self.g.root(s) {
            return true;
        }
        if self.empty(dst) || self.empty(src) {
            return false;
        }
        td.src.iter().any(|x| self.g.root(*x) == self.g.root(s))
            || ts.src.iter().any(|x| self.g.root(*x) == self.g.root(d))
    }
    /// Nodes that may run with the first one that is left.
    fn gather(&mut self, routing: &[Vec<Op>]) -> Vec<usize> {
        let mut set = vec![self.first];
        let end = (self.first + WINDOW).min(self.nodes.len());
        for j in self.first + 1..end {
            let pattern = |r: &Self| {
                routing.iter().any(|p| r.matches(p, j)) || FUSED.iter().any(|p| r.matches(p, j))
            };
            if self.used[j] || self.empty(j) || pattern(self) {
                continue;
            }
            let last = set[set.len() - 1];
            let free = (self.first..j)
                .all(|c| self.used[c] || !self.depends(j, c) || self.fuses(c, j, last));
            if free {
                set.push(j);
                self.complete(j, &mut set);
            }
        }
        if self.op(set[set.len() - 1]) != Op::Add {
            for j in self.first + 1..end {
                if self.used[j] || !self.empty(j) {
                    continue;
                }
                let free = (self.first..j)
                    .all(|c| self.used[c] || !self.depends(j, c) || set.contains(&c));
                if free {
                    set.push(j);
                }
            }
        }
        set
    }
    /// `j` may follow `c` at once: the two are one kernel.
    fn fuses(&self, c: usize, j: usize, last: usize) -> bool {
        if c != last {
            return false;
        }
        let between = (c + 1..j).all(|v| self.used[v] || self.empty(v));
        match (self.op(c), self.op(j)) {
            (Op::RmsNorm | Op::Unary(_), Op::Mul) => between,
            (Op::MulMat | Op::Add | Op::SsmConv, Op::Add) => j == c + 1,
            (Op::MulMatId, Op::AddId | Op::Mul) => j == c + 1,
            (Op::SsmConv, Op::Unary(_)) => j == c + 1,
            _ => false,
        }
    }
    fn ready(&self, id: Id) -> bool {
        self.g.get(id).op == Op::None || self.done.contains(&id)
    }
    /// Pulls nodes forward that complete a pattern with `j`.
    fn complete(&mut self, j: usize, set: &mut Vec<usize>) {
        let end = (j + REACH).min(self.nodes.len());
        let id = self.nodes[j];
        let mut pull = |r: &mut Self, k: usize| {
            set.push(k);
            r.used[k] = true;
        };
        let before = self.op(j - 1);
        let mut rope = j;
        if self.op(j) == Op::Mul && before == Op::RmsNorm {
            let found = (j + 1..end).find(|&k| {
                let t = self.g.get(self.nodes[k]);
                t.op == Op::Rope
                    && t.src[0] == id
                    && t.src[1..].iter().all(|s| self.g.get(*s).op == Op::None)
            });
            if let Some(k) = found {
                rope = k;
                pull(self, k);
            }
        }
        let stores = matches!(self.op(rope), Op::Rope | Op::RmsNorm);
        if let Some((view, rows)) = self.stored(rope).filter(|_| stores) {
            pull(self, view);
            pull(self, rows);
        }
        let next = match (before, self.op(j)) {
            (Op::MulMatId, Op::AddId) => Some(Op::Mul),
            (Op::MulMat, Op::Add) => Some(Op::Add),
            (Op::SsmConv, Op::Add) => Some(Op::Unary(super::graph::Unary::Silu)),
            _ => None,
        };
        if let Some(op) = next {
            let found = (j + 1..end).find(|&k| {
                same(self.op(k), op)
                    && self.src(k, 0) == Some(id)
                    && self.src(k, 1).is_none_or(|s| self.ready(s))
            });
            if let Some(k) = found {
                pull(self, k);
            }
        }
    }
    /// The view and the store of a node into a cache, where nothing else uses it and nothing is in between.
    fn stored(&self, of: usize) -> Option<(usize, usize)> {
        let end = (of + REACH).min(self.nodes.len());
        let (mut view, mut rows) = (None, None);
        for k in of + 1..end {
            if self.used[k] {
                continue;
            }
            let from = self.src(k, 0);
            let stores = |v| self.op(k) == Op::SetRows && from == Some(self.nodes[v]);
            if view.is_none() && self.op(k) == Op::View && from == Some(self.nodes[of]) {
                view = Some(k);
            } else if view.is_some_and(stores) {
                rows = Some(k);
                break;
            }
        }
        let (view, rows) = (view?, rows?);
        let alone = |i: usize| {
            let id = self.nodes[i];
            self.g.uses[id as usize] == 1 && !self.g.get(id).output
        };
        let clear = (of + 1..rows)
            .all(|c| self.used[c] || c == view || self.empty(c) || !self.depends(rows, c));
        (alone(of) && alone(view) && clear).then_some((view, rows))
    }
}
