//! Nodes, saved tensors, and the engine with the framework's own order
//! (torch 2.11, torch/csrc/autograd/engine.cpp, saved_variable.cpp, input_buffer.cpp, accumulate_grad.h).

mod engine;

pub use engine::{backward, backward_with};

use crate::checkpoint::{Handle, Packed};
use crate::context::Cx;
use crate::ops::op::OpId;
use crate::shape::{Shape, Strides};
use crate::tensor::{Storage, Tensor};
use smallvec::SmallVec;
use std::cell::{Cell, Ref, RefCell};
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
