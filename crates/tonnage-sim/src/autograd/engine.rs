//! The engine: nodes in the framework's order, gradients into buffers and leaves (torch 2.11, torch/csrc/autograd/engine.cpp,
//! input_buffer.cpp, accumulate_grad.h).

use super::{Edge, Grads, Kind, Leaf, Node, Saved, Slot, unlink};
use crate::context::{Accumulate, Cx};
use crate::ops::{self, op::OpId};
use crate::shape::Shape;
use crate::tensor::Tensor;
use smallvec::SmallVec;
use std::cell::RefCell;
use std::collections::BinaryHeap;
use std::rc::Rc;

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
