//! Gradient checkpointing: forward again inside backward (torch 2.11, torch/utils/checkpoint.py).

use crate::autograd::{CustomBackward, Grads, Saved, backward_with};
use crate::context::{Accumulate, Cx};
use crate::ops::op::OpId;
use crate::tensor::Tensor;
use smallvec::SmallVec;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use tonnage_units::ScalarType;

/// How a checkpointed call is run again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recompute {
    /// `use_reentrant=False`: at the first saved tensor that backward asks for, up to the last one.
    #[default]
    NonReentrant,
    /// `use_reentrant=True`: a custom function that runs forward without a graph, and in backward forward and backward again.
    Reentrant,
    /// Non-reentrant, with the results of matrix products and attention kept (`create_selective_checkpoint_contexts` with the list
    /// of [`KEPT`]).
    Selective,
}

/// The operators whose results selective checkpointing keeps: `aten.mm`, `addmm`, `bmm`, `baddbmm` and the fused attentions.
pub const KEPT: [OpId; 7] = [
    OpId::MM,
    OpId::ADDMM,
    OpId::BMM,
    OpId::BADDBMM,
    OpId::SDPA_FLASH,
    OpId::SDPA_EFFICIENT,
    OpId::SDPA_CUDNN,
];

/// Which layers are checkpointed, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpointing {
    /// Layers 0, n, 2n, ... (`every_n_layers` of transformers 5.17, modeling_utils.py).
    pub every: u32,
    pub how: Recompute,
}

impl Default for Checkpointing {
    fn default() -> Checkpointing {
        Checkpointing {
            every: 1,
            how: Recompute::NonReentrant,
        }
    }
}

type Run = Box<dyn Fn(&Cx, &[Tensor]) -> Tensor>;
type Results = SmallVec<[Tensor; 4]>;
type ByOperator = Vec<(OpId, VecDeque<Results>)>;

/// One checkpointed call: its inputs, how to run it again, and what the last run saved.
pub struct Frame {
    /// Selective: results by operator, in the order of their calls; what the second run did not ask for goes first.
    kept: Option<RefCell<ByOperator>>,
    run: Run,
    inputs: Vec<Tensor>,
    autocast: Option<ScalarType>,
    module: u32,
    /// Tensors saved in the original forward.
    count: Cell<u32>,
    /// Tensors saved so far in the recomputation.
    redone: Cell<u32>,
    done: Cell<bool>,
    tensors: RefCell<Vec<Option<Tensor>>>,
    dead: RefCell<Vec<bool>>,
}

/// A saved tensor's place in a frame; keeps the frame (and so its inputs) alive, as the saved-tensor hook does.
pub struct Handle {
    frame: Rc<Frame>,
    index: u32,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let i = self.index as usize;
        let t = {
            let mut dead = self.frame.dead.borrow_mut();
            dead[i] = true;
            self.frame
                .tensors
                .borrow_mut()
                .get_mut(i)
                .and_then(|t| t.take())
        };
        drop(t);
    }
}

/// What the innermost saved-tensor hook does with a tensor.
pub(crate) enum Hooks {
    Record(Rc<Frame>),
    Redo(Weak<Frame>),
}

pub(crate) enum Packed {
    Plain,
    Handle(Handle),
    Muted,
}

impl Cx {
    pub(crate) fn pack(&self, t: &Tensor) -> Packed {
        if self.0.muted.get() {
            return Packed::Muted;
        }
        let hooks = self.0.hooks.borrow();
        match hooks.last() {
            None => Packed::Plain,
            Some(Hooks::Record(f)) => {
                let index = f.count.get();
                f.count.set(index + 1);
                f.dead.borrow_mut().push(false);
                Packed::Handle(Handle {
                    frame: f.clone(),
                    index,
                })
            }
            Some(Hooks::Redo(w)) => {
                let Some(f) = w.upgrade() else {
                    return Packed::Plain;
                };
                let i = f.redone.get();
                f.redone.set(i + 1);
                if i < f.count.get() {
                    if !f.dead.borrow()[i as usize] {
                        f.tensors.borrow_mut()[i as usize] = Some(t.clone_no_edge());
                    }
                    if i + 1 == f.count.get() {
                        // early stop: the framework raises out of the recomputation here, before the operator's kernel runs
                        self.0.muted.set(true);
                        return Packed::Muted;
                    }
                }
                Packed::Plain
            }
        }
    }

    /// `torch.utils.checkpoint.checkpoint(run, *inputs)`, as the simulation's mode says: nothing inside is kept but the inputs.
    pub fn checkpoint(
        &self,
        inputs: Vec<Tensor>,
        run: impl Fn(&Cx, &[Tensor]) -> Tensor + 'static,
    ) -> Tensor {
        if !self.grad_enabled() {
            return run(self, &inputs);
        }
        let how = self.0.recompute.get();
        if how == Recompute::Reentrant {
            return self.checkpoint_reentrant(inputs, Box::new(run));
        }
        let frame = Rc::new(Frame {
            run: Box::new(run),
            kept: (how == Recompute::Selective).then(RefCell::default),
            inputs,
            autocast: self.autocast_dtype(),
            module: self.module(),
            count: Cell::new(0),
            redone: Cell::new(0),
            done: Cell::new(false),
            tensors: RefCell::default(),
            dead: RefCell::default(),
        });
        self.0.hooks.borrow_mut().push(Hooks::Record(frame.clone()));
        let y = (frame.run)(self, &frame.inputs);
        self.0.hooks.borrow_mut().pop();
        y
    }

    /// How `checkpoint` runs its calls again from here on.
    pub fn set_recompute(&self, how: Recompute) {
        self.0.recompute.set(how);
    }

    /// `CheckpointFunction`: the node keeps the inputs; the function object, and with it what `run` captured, lives as long as the
    /// graph does.
    fn checkpoint_reentrant(&self, inputs: Vec<Tensor>, run: Run) -> Tensor {
        let mut n = self.node(OpId::CHECKPOINT, &inputs.iter().collect::<Vec<_>>());
        for t in &inputs {
            n.save(self, t);
        }
        let f = Reentrant {
            wanted: inputs.iter().map(|t| t.requires_grad()).collect(),
            autocast: self.autocast_dtype(),
            module: self.module(),
            run,
        };
        let mut y = [self.with_grad(false, || (f.run)(self, &inputs))];
        drop(inputs);
        n.finish_custom(self, &mut y, Box::new(f));
        let [y] = y;
        y
    }

    /// The frame of a selective checkpoint that is running now, and whether for the second time.
    fn selective(&self) -> Option<(Rc<Frame>, bool)> {
        let (frame, again) = match self.0.hooks.borrow().last()? {
            Hooks::Record(f) => (f.clone(), false),
            Hooks::Redo(w) => (w.upgrade()?, true),
        };
        frame.kept.is_some().then_some((frame, again))
    }

    /// Does a dispatch mode see every operator now: a tracing one, or the one that selective checkpointing installs? Composite
    /// operators then avoid in-place forms (TensorSubclassLikeUtils.h).
    pub(crate) fn dispatch_mode(&self) -> bool {
        self.0.accumulate == Accumulate::OutOfPlace || self.selective().is_some()
    }

    /// The results of an operator's kernel, which selective checkpointing keeps from the first run to the second.
    #[inline]
    pub(crate) fn kept(&self, op: OpId, kernel: impl FnOnce() -> Results) -> Results {
        if self.0.recompute.get() != Recompute::Selective || self.muted() || !KEPT.contains(&op) {
            return kernel();
        }
        let Some((frame, again)) = self.selective() else {
            return kernel();
        };
        let Some(kept) = &frame.kept else {
            return kernel();
        };
        if again {
            let mut kept = kept.borrow_mut();
            let list = kept.iter_mut().find(|(o, _)| *o == op);
            return list
                .and_then(|(_, list)| list.pop_front())
                .expect("the second run calls what the first did");
        }
        let results = kernel();
        let copies = results.iter().map(Tensor::clone_no_edge).collect();
        let mut kept = kept.borrow_mut();
        match kept.iter_mut().find(|(o, _)| *o == op) {
            Some((_, list)) => list.push_back(copies),
            None => kept.push((op, VecDeque::from([copies]))),
        }
        results
    }
}

/// The function object of a reentrant checkpoint.
struct Reentrant {
    run: Run,
    /// Of each input: does it want a gradient?
    wanted: SmallVec<[bool; 4]>,
    autocast: Option<ScalarType>,
    module: u32,
}

impl CustomBackward for Reentrant {
    fn backward(&self, cx: &Cx, saved: &Saved, grads: &mut Grads) -> Grads {
        let inputs: Vec<Tensor> = self
            .wanted
            .iter()
            .enumerate()
            .map(|(i, wanted)| {
                let t = saved.tensor(i).detach();
                if *wanted { cx.require_grad(t) } else { t }
            })
            .collect();
        let module = cx.set_module(self.module);
        let cast = cx.enter_autocast(self.autocast);
        let y = cx.with_grad(true, || (self.run)(cx, &inputs));
        cx.exit_autocast(cast);
        cx.set_module(module);
        if let Some(g) = &grads[0] {
            backward_with(cx, &y, g.clone());
        }
        let found = inputs.iter().map(Tensor::grad).collect();
        // the frame's locals in the order of their first assignment
        for t in inputs {
            drop(t);
        }
        drop(y);
        found
    }
}

impl Handle {
    /// The saved tensor; the first one of its frame runs the checkpointed code again.
    pub(crate) fn unpack(&self, cx: &Cx) -> Option<Tensor> {
        let f = &self.frame;
        if !f.done.get() {
            f.redone.set(0);
            *f.tensors.borrow_mut() = vec![None; f.count.get() as usize];
            cx.0.hooks.borrow_mut().push(Hooks::Redo(Rc::downgrade(f)));
            let module = cx.set_module(f.module);
            let grad = cx.0.grad.replace(true);
            let cast = cx.enter_autocast(f.autocast);
            let y = (f.run)(cx, &f.inputs);
            drop(y);
            cx.exit_autocast(cast);
            cx.0.muted.set(false);
            cx.0.grad.set(grad);
            cx.set_module(module);
            cx.0.hooks.borrow_mut().pop();
            f.done.set(true);
        }
        // the graph is not retained: the frame forgets a tensor once it is handed out
        f.tensors.borrow_mut()[self.index as usize].take()
    }
}
