//! Gradient checkpointing: forward again inside backward (torch 2.11, torch/utils/checkpoint.py).

use crate::context::Cx;
use crate::tensor::Tensor;
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use tonnage_units::ScalarType;

type Recompute = Box<dyn Fn(&Cx, &[Tensor]) -> Tensor>;

/// One checkpointed call: its inputs, how to run it again, and what the last run saved.
pub struct Frame {
    run: Recompute,
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

pub(crate) struct Key {
    frame: Rc<Frame>,
    index: u32,
}

impl Handle {
    pub(crate) fn clone_key(&self) -> Key {
        Key {
            frame: self.frame.clone(),
            index: self.index,
        }
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

    /// `torch.utils.checkpoint.checkpoint(run, *inputs, use_reentrant=False)`: nothing inside is kept but the inputs; the first
    /// saved tensor that backward asks for runs it again up to the last saved one.
    pub fn checkpoint(
        &self,
        inputs: Vec<Tensor>,
        run: impl Fn(&Cx, &[Tensor]) -> Tensor + 'static,
    ) -> Tensor {
        if !self.grad_enabled() {
            return run(self, &inputs);
        }
        let frame = Rc::new(Frame {
            run: Box::new(run),
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
}

impl Key {
    pub(crate) fn unpack(self, cx: &Cx) -> Option<Tensor> {
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
