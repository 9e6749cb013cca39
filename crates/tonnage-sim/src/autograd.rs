//! Nodes, saved tensors, and the engine with the framework's own order
//! (torch 2.11, torch/csrc/autograd/engine.cpp, saved_variable.cpp, input_buffer.cpp, accumulate_grad.h).

use crate::checkpoint::{Handle, Packed};
use crate::context::{Accumulate, Cx};
use crate::ops::{self, op::OpId};
use crate::shape::{Shape, Strides};
use crate::tensor::{Storage, Tensor};
use smallvec::SmallVec;
use std::cell::{Cell, Ref, RefCell};
use std::collections::BinaryHeap;
use std::rc::Rc;
use tonnage_units::ScalarType;

/// Output `output` of `node`: where a gradient of a tensor goes.
#[derive(Clone)]
pub struct Edge {
    pub node: Rc<Node>,
    pub output: u32,
}

/// Gradients in the order of a node's outputs (incoming) or inputs (returned).
pub type Grads = SmallVec<[Option<Tensor>; 3]>;

/// Numbers an operator keeps for its backward (sizes, flags).
pub type Args = [u64; 6];

/// What a backward function reads: the node's numbers and shapes (it dereferences to [`Node`]), its saved tensors (those of a
/// checkpointed region made again), and which inputs want gradients.
pub struct Saved<'a> {
    node: &'a Node,
    slots: Ref<'a, Slots>,
    /// Recomputed tensors by slot; empty where nothing was recomputed.
    redone: SmallVec<[Option<Tensor>; 2]>,
    pub need: SmallVec<[bool; 8]>,
    /// The blocks of the incoming gradients, which the engine keeps through the call.
    incoming: RefCell<Held>,
}

type Slots = SmallVec<[Slot; 2]>;
type Held = SmallVec<[Option<Rc<Storage>>; 3]>;

impl std::ops::Deref for Saved<'_> {
    type Target = Node;
    #[inline]
    fn deref(&self) -> &Node {
        self.node
    }
}

impl Saved<'_> {
    /// For an operator that stands for two nodes: the first one is done and hands `g` to the second, whose incoming gradient 0 it is
    /// (the old one goes now, unless something else holds it).
    pub fn hand_over(&self, g: &Tensor) {
        let old = self.incoming.borrow_mut()[0].replace(g.storage.clone());
        drop(old);
    }
    /// The end of the generated `apply`: its unpacked locals die in reverse order (those that the node itself keeps live on).
    fn finish(mut self) {
        while let Some(t) = self.redone.pop() {
            drop(t);
        }
    }
    /// Saved tensor `i`, if it was kept.
    #[inline]
    pub fn get(&self, i: usize) -> Option<&Tensor> {
        match self.slots.get(i)? {
            Slot::Empty => None,
            Slot::Kept(t) => Some(t),
            Slot::Recompute(_) => self.redone.get(i)?.as_ref(),
        }
    }
    /// Every slot.
    pub fn all(&self) -> impl Iterator<Item = Option<&Tensor>> {
        (0..self.slots.len()).map(|i| self.get(i))
    }
    /// Saved tensor `i`; a bug of the operator if it was not kept.
    #[inline]
    pub fn tensor(&self, i: usize) -> &Tensor {
        self.get(i)
            .expect("operator reads a tensor that it did not save")
    }
}

/// Shape, strides and dtype without storage.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    pub shape: Shape,
    pub strides: crate::shape::Strides,
    pub dtype: ScalarType,
}

/// Shape and dtype of a node's input or output.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    pub shape: Shape,
    pub dtype: ScalarType,
}

impl Tensor {
    #[inline]
    fn form(&self) -> Form {
        Form {
            shape: self.shape,
            dtype: self.dtype,
        }
    }
    /// Shape, strides and dtype.
    #[inline]
    pub fn meta(&self) -> Meta {
        Meta {
            shape: self.shape,
            strides: self.strides(),
            dtype: self.dtype,
        }
    }
}

/// The backward of an operator: takes the gradients of its outputs (owned, it may drop or move them), returns those of its inputs.
pub type BackwardFn = fn(&Cx, &Saved, &mut Grads) -> Grads;

/// A backward that is more than an operator's (a custom autograd function).
pub trait CustomBackward {
    fn backward(&self, cx: &Cx, saved: &Saved, grads: &mut Grads) -> Grads;
    /// The node's saved tensors are released: drop what the function object itself keeps.
    fn release(&self) {}
}

enum Kind {
    Operator(BackwardFn),
    Custom(Box<dyn CustomBackward>),
    Accumulate(Box<Leaf>),
    /// Not finished yet, or back in the pool.
    Blank,
}

/// What AccumulateGrad works on.
struct Leaf {
    /// The tensor's strides where they are not row-major.
    layout: Option<Rc<Strides>>,
    /// The tensor's `.grad`.
    grad: RefCell<Option<Tensor>>,
}

pub(crate) enum Slot {
    Empty,
    Kept(Tensor),
    Recompute(Handle),
}

/// A node of the graph. Nodes are made in place and go back to the context's pool when backward has used them.
#[repr(C)] // what the engine reads of nodes that wait their turn stands together
pub struct Node {
    seq: u64,
    deps: Cell<u32>,
    pub op: OpId,
    module: u32,
    kind: Kind,
    /// Its outputs.
    pub outputs: SmallVec<[Form; 1]>,
    next: SmallVec<[Option<Edge>; 3]>,
    buffer: RefCell<SmallVec<[Option<Tensor>; 1]>>,
    saved: RefCell<Slots>,
    /// The node's inputs, as recorded at forward.
    pub inputs: SmallVec<[Form; 3]>,
    /// Numbers that the operator keeps.
    pub args: Args,
    /// Layouts that the operator keeps.
    pub meta: Vec<Meta>,
}

/// function.cpp, deleteNode: the nodes that only this one holds go with it, the last edge first. A deep graph would recurse once a
/// node: take it apart iteratively.
fn unlink(next: &mut SmallVec<[Option<Edge>; 3]>) {
    let mut stack: SmallVec<[Edge; 8]> = next.drain(..).flatten().collect();
    while let Some(mut e) = stack.pop() {
        if let Some(n) = Rc::get_mut(&mut e.node) {
            stack.extend(n.next.drain(..).flatten());
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // own saved tensors first
        for s in self.saved.get_mut().drain(..) {
            drop(s);
        }
        if !self.next.is_empty() {
            unlink(&mut self.next);
        }
    }
}

/// A node under construction: made before the kernel runs (its sequence number and its saved inputs come first), closed with its outputs.
pub struct NodeBuilder(Option<Rc<Node>>);

impl NodeBuilder {
    /// No node: no input wants a gradient, or recording is off.
    pub fn none() -> NodeBuilder {
        NodeBuilder(None)
    }
    #[inline]
    fn node(&mut self) -> Option<&mut Node> {
        self.0.as_mut().and_then(Rc::get_mut)
    }
    /// Will there be a node?
    #[inline]
    pub fn active(&self) -> bool {
        self.0.is_some()
    }
    /// Does input `i` want a gradient (in a recorded graph)?
    #[inline]
    pub fn need(&self, i: usize) -> bool {
        self.0.as_ref().is_some_and(|n| n.next[i].is_some())
    }
    /// Keeps `t` for backward in the next slot. Slots are released in order: use torch's order (inputs by name, then outputs).
    #[inline]
    pub fn save(&mut self, cx: &Cx, t: &Tensor) {
        if let Some(n) = self.node() {
            let s = match cx.pack(t) {
                Packed::Plain => Slot::Kept(t.clone_no_edge()),
                Packed::Handle(h) => Slot::Recompute(h),
                Packed::Muted => Slot::Empty,
            };
            n.saved.get_mut().push(s);
        }
    }
    /// Keeps `t` if `wanted`, else leaves the slot empty.
    #[inline]
    pub fn save_if(&mut self, cx: &Cx, wanted: bool, t: &Tensor) {
        if wanted {
            self.save(cx, t);
        } else {
            self.skip();
        }
    }
    /// An empty slot.
    #[inline]
    pub fn skip(&mut self) {
        if let Some(n) = self.node() {
            n.saved.get_mut().push(Slot::Empty);
        }
    }
    #[inline]
    pub fn args(&mut self, a: Args) {
        if let Some(n) = self.node() {
            n.args = a;
        }
    }
    /// Keeps a tensor's shape, strides and dtype (not its data).
    #[inline]
    pub fn meta(&mut self, t: &Tensor) {
        if let Some(n) = self.node() {
            n.meta.push(t.meta());
        }
    }
    /// The finished operator with one output.
    #[inline]
    pub fn finish(self, cx: &Cx, mut y: Tensor, f: BackwardFn) -> Tensor {
        if let Some(mut node) = self.close(cx) {
            if let Some(n) = Rc::get_mut(&mut node) {
                n.kind = Kind::Operator(f);
                n.outputs.push(y.form());
            }
            y.edge = Some(Edge { node, output: 0 });
        }
        y
    }
    /// The finished operator with several outputs; `track[i]` false leaves output `i` without history.
    pub fn finish_many(self, cx: &Cx, ys: &mut [Tensor], f: BackwardFn) {
        self.finish_kind(cx, ys, Kind::Operator(f));
    }
    /// A finished custom function.
    pub fn finish_custom(self, cx: &Cx, ys: &mut [Tensor], f: Box<dyn CustomBackward>) {
        self.finish_kind(cx, ys, Kind::Custom(f));
    }
    fn finish_kind(self, cx: &Cx, ys: &mut [Tensor], kind: Kind) {
        if let Some(mut node) = self.close(cx) {
            if let Some(n) = Rc::get_mut(&mut node) {
                n.kind = kind;
                n.outputs.extend(ys.iter().map(|y| y.form()));
            }
            for (i, y) in ys.iter_mut().enumerate() {
                if y.dtype.is_float() {
                    y.edge = Some(Edge {
                        node: node.clone(),
                        output: i as u32,
                    });
                }
            }
        }
    }
    /// The node, unless the code around it only unwinds.
    #[inline]
    fn close(self, cx: &Cx) -> Option<Rc<Node>> {
        let mut node = self.0?;
        let n = Rc::get_mut(&mut node)?;
        if cx.0.muted.get() {
            n.next.clear();
            return None;
        }
        n.module = cx.module();
        Some(node)
    }
}

impl Node {
    fn blank() -> Node {
        Node {
            op: OpId::ACCUMULATE,
            seq: u64::MAX,
            module: 0,
            deps: Cell::new(0),
            kind: Kind::Blank,
            args: [0; 6],
            meta: Vec::new(),
            inputs: SmallVec::new(),
            outputs: SmallVec::new(),
            next: SmallVec::new(),
            saved: RefCell::default(),
            buffer: RefCell::default(),
        }
    }
}

impl Cx {
    /// Starts a node for an operator with these differentiable inputs, in the order of its edges.
    #[inline]
    pub fn node(&self, op: OpId, inputs: &[&Tensor]) -> NodeBuilder {
        if !self.0.grad.get() || self.0.muted.get() || inputs.iter().all(|t| t.edge.is_none()) {
            return NodeBuilder(None);
        }
        let seq = self.0.next_seq.get();
        self.0.next_seq.set(seq + 1);
        let mut node = match self.0.nodes.borrow_mut().pop() {
            Some(n) => n,
            None => Rc::new(Node::blank()),
        };
        if let Some(n) = Rc::get_mut(&mut node) {
            n.op = op;
            n.seq = seq;
            for t in inputs {
                n.next.push(t.edge.clone());
                n.inputs.push(t.form());
            }
        }
        NodeBuilder(Some(node))
    }

    /// `t.requires_grad_()` on an activation: the graph keeps its data as long as a consumer's node points to it.
    pub fn require_grad_kept(&self, t: Tensor) -> Tensor {
        let data = t.clone_no_edge();
        let t = self.require_grad(t);
        if let Some(e) = &t.edge {
            e.node.saved.borrow_mut().push(Slot::Kept(data));
        }
        t
    }

    /// Makes `t` a leaf that wants a gradient.
    pub fn require_grad(&self, mut t: Tensor) -> Tensor {
        let mut node = Node::blank();
        node.module = self.module();
        node.kind = Kind::Accumulate(Box::new(Leaf {
            layout: t.layout().cloned(),
            grad: RefCell::new(None),
        }));
        node.outputs.push(t.form());
        let node = Rc::new(node);
        t.leaf = true;
        t.edge = Some(Edge { node, output: 0 });
        t
    }
}

impl Tensor {
    #[inline]
    fn grad_slot(&self) -> Option<&RefCell<Option<Tensor>>> {
        match &self.edge.as_ref().filter(|_| self.leaf)?.node.kind {
            Kind::Accumulate(l) => Some(&l.grad),
            _ => None,
        }
    }
    /// A leaf's gradient, if it has one now.
    pub fn grad(&self) -> Option<Tensor> {
        self.grad_slot()?.borrow().clone()
    }
    /// Calls `f` with a leaf's gradient, if it has one now.
    #[inline]
    pub fn with_grad<R>(&self, f: impl FnOnce(&Tensor) -> R) -> Option<R> {
        self.grad_slot()?.borrow().as_ref().map(f)
    }
    /// The last reference goes: its history first, then its storage (c10/core/TensorImpl.cpp, release_resources).
    pub fn forget(self) {
        let Tensor { storage, edge, .. } = self;
        drop(edge);
        drop(storage);
    }
    /// Gives a leaf this gradient (`p.grad = g`).
    pub fn set_grad(&self, g: Tensor) {
        let old = self.grad_slot().and_then(|s| s.borrow_mut().replace(g));
        drop(old);
    }
    /// Takes a leaf's gradient away (`p.grad = None`).
    pub fn take_grad(&self) -> Option<Tensor> {
        self.grad_slot()?.borrow_mut().take()
    }
}

struct Ready(Rc<Node>);
impl PartialEq for Ready {
    fn eq(&self, o: &Ready) -> bool {
        self.0.seq == o.0.seq
    }
}
impl Eq for Ready {}
impl PartialOrd for Ready {
    fn partial_cmp(&self, o: &Ready) -> Option<std::cmp::Ordering> {
        Some(self.cmp(o))
    }
}
impl Ord for Ready {
    fn cmp(&self, o: &Ready) -> std::cmp::Ordering {
        self.0.seq.cmp(&o.0.seq)
    }
}

/// `loss.backward()`: makes the root gradient (which lives to the end) and runs the engine.
pub fn backward(cx: &Cx, loss: &Tensor) {
    let seed = cx.empty_like(OpId::ONES_LIKE, loss, loss.dtype);
    backward_with(cx, loss, seed);
}

/// `torch.autograd.backward(y, grad)`. May be called from inside a node's backward.
pub fn backward_with(cx: &Cx, y: &Tensor, seed: Tensor) {
    let Some(root) = y.edge.clone() else { return };
    let mut stack: Vec<&Node> = Vec::with_capacity(64);
    stack.push(&root.node);
    while let Some(n) = stack.pop() {
        for e in n.next.iter().flatten() {
            let d = e.node.deps.get();
            e.node.deps.set(d + 1);
            if d == 0 {
                stack.push(&e.node);
            }
        }
    }
    let thread = cx.0.backward_thread.replace(true);
    let grad = cx.0.grad.replace(false);
    let module = cx.module();
    put(cx, &root, seed.clone());
    let mut queue = BinaryHeap::with_capacity(64);
    queue.push(Ready(root.node));
    while let Some(Ready(mut n)) = queue.pop() {
        let mut grads: Grads = n.buffer.borrow_mut().drain(..).collect();
        cx.set_module(n.module);
        if let Kind::Accumulate(leaf) = &n.kind {
            accumulate_grad(cx, leaf, &n.outputs[0].shape, grads[0].take());
            continue;
        }
        let saved = n.unpack(cx);
        // the incoming gradients outlive the call whatever it does with its handles
        saved
            .incoming
            .borrow_mut()
            .extend(grads.iter().map(|g| g.as_ref().map(|t| t.storage.clone())));
        let mut outs = match &n.kind {
            Kind::Operator(f) => f(cx, &saved, &mut grads),
            Kind::Custom(c) => c.backward(cx, &saved, &mut grads),
            Kind::Accumulate(_) | Kind::Blank => unreachable!("handled above, or never finished"),
        };
        let mut held = saved.incoming.take();
        saved.finish();
        n.validate(cx, &mut outs);
        // first to last, as a C++ vector's elements go (SmallVec::clear would go backwards)
        drop(grads);
        for g in held.iter_mut() {
            drop(g.take());
        }
        n.release();
        for (i, e) in n.next.iter().enumerate() {
            let Some(e) = e else { continue };
            if let Some(g) = outs.get_mut(i).and_then(|g| g.take()) {
                put(cx, e, g);
            }
            let d = e.node.deps.get() - 1;
            e.node.deps.set(d);
            if d == 0 {
                queue.push(Ready(e.node.clone()));
            }
        }
        // gradients that nothing wanted, then the node itself
        drop(outs);
        if let Some(m) = Rc::get_mut(&mut n) {
            m.recycle();
            cx.0.nodes.borrow_mut().push(n);
        }
    }
    cx.set_module(module);
    cx.0.grad.set(grad);
    cx.0.backward_thread.set(thread);
    drop(seed);
}

/// Adds a gradient to a node's input buffer (input_buffer.cpp, accumulate).
fn put(cx: &Cx, e: &Edge, g: Tensor) {
    let mut b = e.node.buffer.borrow_mut();
    if b.is_empty() {
        b.resize(e.node.outputs.len(), None);
    }
    let slot = &mut b[e.output as usize];
    match slot {
        None => *slot = Some(g),
        Some(old) => {
            let in_place =
                cx.0.accumulate == Accumulate::InPlaceIfSole && old.sole_owner() && old.is_dense();
            if in_place {
                drop(g);
            } else {
                let sum = cx.elementwise(OpId::ADD, old.shape, &[old, &g], old.dtype);
                *slot = Some(sum);
                drop(g);
            }
        }
    }
}

/// accumulate_grad.h, AccumulateGrad::accumulateGrad: steal the buffer where nobody else has it and its layout is the leaf's.
fn accumulate_grad(cx: &Cx, leaf: &Leaf, shape: &Shape, g: Option<Tensor>) {
    let Some(g) = g else { return };
    let mut slot = leaf.grad.borrow_mut();
    if slot.is_some() {
        drop(g); // added in place
        return;
    }
    let own = match &leaf.layout {
        None => shape.contiguous_strides(),
        Some(st) => **st,
    };
    let obeys = if leaf.layout.is_none() && g.layout().is_none() {
        true
    } else if crate::shape::is_non_overlapping_and_dense(shape, &own) {
        crate::shape::same_strides(shape, &own, &g.strides())
    } else {
        g.is_contiguous()
    };
    let shared = Rc::strong_count(&g.storage) > 1 && !g.view;
    *slot = Some(if obeys && !shared {
        g
    } else {
        let c = cx.empty_strided(OpId::CLONE, *shape, own, g.dtype);
        drop(g);
        c
    });
}

impl Node {
    #[inline]
    fn unpack(&self, cx: &Cx) -> Saved<'_> {
        let slots = self.saved.borrow();
        let mut redone: SmallVec<[Option<Tensor>; 2]> = SmallVec::new();
        if slots.iter().any(|s| matches!(s, Slot::Recompute(_))) {
            for s in slots.iter() {
                redone.push(match s {
                    Slot::Recompute(h) => h.unpack(cx),
                    _ => None,
                });
            }
        }
        Saved {
            node: self,
            slots,
            redone,
            need: self.next.iter().map(|e| e.is_some()).collect(),
            incoming: RefCell::default(),
        }
    }

    /// Reduces broadcast gradients to the input's shape and casts them to its dtype (engine.cpp, validate_outputs).
    #[inline]
    fn validate(&self, cx: &Cx, outs: &mut Grads) {
        for (i, g) in outs.iter_mut().enumerate() {
            let Some(Some(e)) = self.next.get(i) else {
                continue;
            };
            let want = &e.node.outputs[e.output as usize];
            if let Some(t) = g
                && t.shape != want.shape
            {
                let s = ops::sum_to(cx, t, want.shape);
                *g = Some(s);
            }
            if let Some(t) = g
                && t.dtype != want.dtype
            {
                let c = cx.empty_like(OpId::TO_COPY, t, want.dtype);
                *g = Some(c);
            }
        }
    }

    fn release(&self) {
        for s in self.saved.borrow_mut().drain(..) {
            drop(s);
        }
        if let Kind::Custom(c) = &self.kind {
            c.release();
        }
    }

    /// Ready for another operator, as after [`Node::blank`].
    fn recycle(&mut self) {
        unlink(&mut self.next);
        self.kind = Kind::Blank;
        self.args = [0; 6];
        self.meta.clear();
        self.inputs.clear();
        self.outputs.clear();
        self.buffer.get_mut().clear();
    }
}
