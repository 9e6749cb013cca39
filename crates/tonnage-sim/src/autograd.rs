//! Nodes, saved tensors, and the engine with the framework's own order
//! (torch 2.11, torch/csrc/autograd/engine.cpp, saved_variable.cpp, input_buffer.cpp, accumulate_grad.h).

use crate::checkpoint::{Handle, Packed};
use crate::context::{Accumulate, Cx};
use crate::ops::{self, op::OpId};
use crate::shape::Shape;
use crate::tensor::Tensor;
use smallvec::SmallVec;
use std::cell::{Cell, RefCell};
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

/// What a backward function reads: unpacked saved tensors (absent where not kept), which inputs want gradients, numbers and shapes.
pub struct Saved {
    pub t: SmallVec<[Option<Tensor>; 4]>,
    pub need: SmallVec<[bool; 4]>,
    pub args: Args,
    pub meta: SmallVec<[Meta; 2]>,
    /// Shapes of the node's inputs, as recorded at forward.
    pub inputs: SmallVec<[Meta; 3]>,
    /// The incoming gradients as the engine keeps them through the call.
    incoming: RefCell<Grads>,
}

impl Saved {
    /// For an operator that stands for two nodes: the first one is done and hands `g` to the second, whose incoming gradient 0 it is
    /// (the old one goes now, unless something else holds it).
    pub fn hand_over(&self, g: &Tensor) {
        let old = self.incoming.borrow_mut()[0].replace(g.clone());
        drop(old);
    }
    /// The end of the generated `apply`: its unpacked locals die in reverse order.
    fn finish(mut self) {
        while let Some(t) = self.t.pop() {
            drop(t);
        }
    }
    /// Saved tensor `i`; a bug of the operator if it was not kept.
    #[inline]
    pub fn tensor(&self, i: usize) -> &Tensor {
        self.t[i]
            .as_ref()
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

impl Tensor {
    /// Shape, strides and dtype.
    #[inline]
    pub fn meta(&self) -> Meta {
        Meta {
            shape: self.shape,
            strides: self.strides,
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
    Accumulate,
}

pub(crate) enum Slot {
    Empty,
    Kept(Tensor),
    Recompute(Handle),
}

/// A node of the graph.
pub struct Node {
    pub op: OpId,
    seq: u64,
    module: u32,
    kind: Kind,
    saved: RefCell<SmallVec<[Slot; 4]>>,
    args: Args,
    meta: SmallVec<[Meta; 2]>,
    inputs: SmallVec<[Meta; 3]>,
    next: RefCell<SmallVec<[Option<Edge>; 3]>>,
    outputs: RefCell<SmallVec<[Meta; 1]>>,
    deps: Cell<u32>,
    buffer: RefCell<SmallVec<[Option<Tensor>; 1]>>,
    /// AccumulateGrad: the leaf's `.grad`.
    pub grad: RefCell<Option<Tensor>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        // function.cpp, deleteNode: own saved tensors first, then the nodes that only this one holds, the last edge first.
        // A deep graph would recurse once a node: take it apart iteratively.
        for s in self.saved.get_mut().drain(..) {
            drop(s);
        }
        let mut stack: SmallVec<[Edge; 8]> = self.next.get_mut().drain(..).flatten().collect();
        while let Some(e) = stack.pop() {
            if let Some(mut n) = Rc::into_inner(e.node) {
                stack.extend(n.next.get_mut().drain(..).flatten());
            }
        }
    }
}

/// A node under construction: made before the kernel runs (its sequence number and its saved inputs come first), closed with its outputs.
pub struct NodeBuilder(Option<Pending>);

struct Pending {
    op: OpId,
    seq: u64,
    next: SmallVec<[Option<Edge>; 3]>,
    inputs: SmallVec<[Meta; 3]>,
    saved: SmallVec<[Slot; 4]>,
    args: Args,
    meta: SmallVec<[Meta; 2]>,
}

impl NodeBuilder {
    /// No node: no input wants a gradient, or recording is off.
    pub fn none() -> NodeBuilder {
        NodeBuilder(None)
    }
    /// Will there be a node?
    #[inline]
    pub fn active(&self) -> bool {
        self.0.is_some()
    }
    /// Does input `i` want a gradient (in a recorded graph)?
    #[inline]
    pub fn need(&self, i: usize) -> bool {
        self.0.as_ref().is_some_and(|p| p.next[i].is_some())
    }
    /// Keeps `t` for backward in the next slot. Slots are released in order: use torch's order (inputs by name, then outputs).
    #[inline]
    pub fn save(&mut self, cx: &Cx, t: &Tensor) {
        if let Some(p) = &mut self.0 {
            let s = match cx.pack(t) {
                Packed::Plain => Slot::Kept(t.clone_no_edge()),
                Packed::Handle(h) => Slot::Recompute(h),
                Packed::Muted => Slot::Empty,
            };
            p.saved.push(s);
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
        if let Some(p) = &mut self.0 {
            p.saved.push(Slot::Empty);
        }
    }
    #[inline]
    pub fn args(&mut self, a: Args) {
        if let Some(p) = &mut self.0 {
            p.args = a;
        }
    }
    /// Keeps a tensor's shape, strides and dtype (not its data).
    #[inline]
    pub fn meta(&mut self, t: &Tensor) {
        if let Some(p) = &mut self.0 {
            p.meta.push(t.meta());
        }
    }
    /// The finished operator with one output.
    #[inline]
    pub fn finish(self, cx: &Cx, mut y: Tensor, f: BackwardFn) -> Tensor {
        if let Some(p) = self.0
            && !cx.0.muted.get()
        {
            let node = p.into_node(cx, Kind::Operator(f), SmallVec::from_buf([y.meta()]));
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
        if let Some(p) = self.0
            && !cx.0.muted.get()
        {
            let node = p.into_node(cx, kind, ys.iter().map(|y| y.meta()).collect());
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
}

impl Pending {
    #[inline]
    fn into_node(self, cx: &Cx, kind: Kind, outputs: SmallVec<[Meta; 1]>) -> Rc<Node> {
        Rc::new(Node {
            op: self.op,
            seq: self.seq,
            module: cx.module(),
            kind,
            saved: RefCell::new(self.saved),
            args: self.args,
            meta: self.meta,
            inputs: self.inputs,
            next: RefCell::new(self.next),
            outputs: RefCell::new(outputs),
            deps: Cell::new(0),
            buffer: RefCell::default(),
            grad: RefCell::new(None),
        })
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
        NodeBuilder(Some(Pending {
            op,
            seq,
            next: inputs.iter().map(|t| t.edge.clone()).collect(),
            inputs: inputs.iter().map(|t| t.meta()).collect(),
            saved: SmallVec::new(),
            args: [0; 6],
            meta: SmallVec::new(),
        }))
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
        let node = Rc::new(Node {
            op: OpId::ACCUMULATE,
            seq: u64::MAX,
            module: self.module(),
            kind: Kind::Accumulate,
            saved: RefCell::default(),
            args: [0; 6],
            meta: SmallVec::new(),
            inputs: SmallVec::new(),
            next: RefCell::default(),
            outputs: RefCell::new(SmallVec::from_buf([t.meta()])),
            deps: Cell::new(0),
            buffer: RefCell::default(),
            grad: RefCell::new(None),
        });
        t.leaf = true;
        t.edge = Some(Edge { node, output: 0 });
        t
    }
}

impl Tensor {
    /// A leaf's gradient, if it has one now.
    pub fn grad(&self) -> Option<Tensor> {
        let e = self.edge.as_ref()?;
        self.leaf.then(|| e.node.grad.borrow().clone()).flatten()
    }
    /// The last reference goes: its history first, then its storage (c10/core/TensorImpl.cpp, release_resources).
    pub fn forget(self) {
        let Tensor { storage, edge, .. } = self;
        drop(edge);
        drop(storage);
    }
    /// Takes a leaf's gradient away (`p.grad = None`).
    pub fn take_grad(&self) -> Option<Tensor> {
        let e = self.edge.as_ref()?;
        if self.leaf {
            e.node.grad.borrow_mut().take()
        } else {
            None
        }
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
    let mut stack: Vec<Rc<Node>> = vec![root.node.clone()];
    while let Some(n) = stack.pop() {
        for e in n.next.borrow().iter().flatten() {
            let d = e.node.deps.get();
            e.node.deps.set(d + 1);
            if d == 0 {
                stack.push(e.node.clone());
            }
        }
    }
    let thread = cx.0.backward_thread.replace(true);
    let grad = cx.0.grad.replace(false);
    let module = cx.module();
    put(cx, &root, seed.clone());
    let mut queue = BinaryHeap::with_capacity(64);
    queue.push(Ready(root.node));
    while let Some(Ready(n)) = queue.pop() {
        let mut grads: Grads = n.buffer.borrow_mut().drain(..).collect();
        cx.set_module(n.module);
        if let Kind::Accumulate = n.kind {
            accumulate_grad(cx, &n, grads[0].take());
            continue;
        }
        let saved = n.unpack(cx);
        // the incoming gradients outlive the call whatever it does with its handles
        *saved.incoming.borrow_mut() = grads.clone();
        let mut outs = match &n.kind {
            Kind::Operator(f) => f(cx, &saved, &mut grads),
            Kind::Custom(c) => c.backward(cx, &saved, &mut grads),
            Kind::Accumulate => unreachable!(),
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
        let next = n.next.borrow();
        for (i, e) in next.iter().enumerate() {
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
        b.resize(e.node.outputs.borrow().len(), None);
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
                let st = crate::shape::elementwise_strides(
                    &old.shape,
                    &[(&old.shape, &old.strides), (&g.shape, &g.strides)],
                );
                let sum = cx.empty_strided(OpId::ADD, old.shape, st, old.dtype);
                *slot = Some(sum);
                drop(g);
            }
        }
    }
}

/// accumulate_grad.h, AccumulateGrad::accumulateGrad: steal the buffer where nobody else has it and its layout is the leaf's.
fn accumulate_grad(cx: &Cx, n: &Node, g: Option<Tensor>) {
    let Some(g) = g else { return };
    let mut slot = n.grad.borrow_mut();
    if slot.is_some() {
        drop(g); // added in place
        return;
    }
    let leaf = n.outputs.borrow()[0];
    let obeys = if crate::shape::is_non_overlapping_and_dense(&leaf.shape, &leaf.strides) {
        crate::shape::same_strides(&leaf.shape, &leaf.strides, &g.strides)
    } else {
        g.is_contiguous()
    };
    let shared = std::rc::Rc::strong_count(&g.storage) > 1 && !g.view;
    *slot = Some(if obeys && !shared {
        g
    } else {
        let c = cx.empty_strided(OpId::CLONE, leaf.shape, leaf.strides, g.dtype);
        drop(g);
        c
    });
}

impl Node {
    fn unpack(&self, cx: &Cx) -> Saved {
        let n = self.saved.borrow().len();
        let mut t: SmallVec<[Option<Tensor>; 4]> = SmallVec::with_capacity(n);
        for i in 0..n {
            let frame = match &self.saved.borrow()[i] {
                Slot::Empty => {
                    t.push(None);
                    continue;
                }
                Slot::Kept(x) => {
                    t.push(Some(x.clone()));
                    continue;
                }
                Slot::Recompute(h) => h.clone_key(),
            };
            t.push(frame.unpack(cx));
        }
        Saved {
            incoming: RefCell::default(),
            t,
            need: self.next.borrow().iter().map(|e| e.is_some()).collect(),
            args: self.args,
            meta: self.meta.clone(),
            inputs: self.inputs.clone(),
        }
    }

    /// Reduces broadcast gradients to the input's shape and casts them to its dtype (engine.cpp, validate_outputs).
    fn validate(&self, cx: &Cx, outs: &mut Grads) {
        let next = self.next.borrow();
        for (i, g) in outs.iter_mut().enumerate() {
            let Some(Some(e)) = next.get(i) else { continue };
            let want = e.node.outputs.borrow()[e.output as usize];
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
        let slots = std::mem::take(&mut *self.saved.borrow_mut());
        for s in slots {
            drop(s);
        }
        if let Kind::Custom(c) = &self.kind {
            c.release();
        }
    }
}
