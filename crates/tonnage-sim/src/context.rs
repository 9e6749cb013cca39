//! Where a simulation happens: event list, owner, grad mode, autocast, workspaces, recomputation.

use crate::asked::Asked;
use crate::autocast::Autocast;
use crate::autograd::Node;
use crate::checkpoint::{Hooks, Recompute};
use crate::kernels::Steps;
use crate::ops::op::OpId;
use crate::shape::{Shape, Strides};
use crate::tensor::{GHOST, Storage, Tensor};
use crate::timeline::{Category, Event, Mark, Phase, Tag, Timeline};
use smallvec::SmallVec;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use tonnage_units::ScalarType;

/// How two gradients that meet are added (torch 2.11, torch/csrc/autograd/input_buffer.cpp).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulate {
    /// In place where the buffer is the sole owner of a dense tensor: plain runs.
    InPlaceIfSole,
    /// Always into a new tensor: what runs traced through a dispatch mode show.
    OutOfPlace,
}

/// The device facts that allocations inside operators depend on.
#[derive(Clone, Copy, Debug)]
pub struct DeviceModel {
    pub kernel: crate::kernels::KernelDevice,
}

/// What holds memory for cuBLAS (aten/src/ATen/cuda/CublasHandlePool.cpp; verified by groundtruth/torch-versions.jsonl).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BlasWorkspaces {
    /// To torch 2.8: each thread keeps one for cuBLAS; cuBLASLt's is the product's own, while it runs (seen with 2.2.2 and 2.7.1;
    /// `crates/tonnage/tests/dry_run.rs`, the sign-language table).
    LtOfProduct,
    /// 2.9 to 2.11: each thread keeps one for cuBLAS and one for cuBLASLt, from the first product on.
    #[default]
    Apart,
    /// 2.12 to 2.14: cuBLASLt uses the one that is kept for cuBLAS (unified_cublas_and_lt_workspaces).
    Shared,
    /// From 2.15: every product has its own while it runs (isCUDABlasWorkspaceCachingEnabled).
    PerProduct,
}

impl BlasWorkspaces {
    /// What a version of torch does, by its first two numbers.
    pub fn of_torch(version: (u32, u32)) -> BlasWorkspaces {
        match version {
            v if v >= (2, 15) => BlasWorkspaces::PerProduct,
            v if v >= (2, 12) => BlasWorkspaces::Shared,
            v if v >= (2, 9) => BlasWorkspaces::Apart,
            _ => BlasWorkspaces::LtOfProduct,
        }
    }
}

/// Until the kernels module has a `blas` of its own: the cuBLAS workspace (CublasHandlePool.cpp, parseChosenWorkspaceSize).
fn workspace_bytes(rule: BlasWorkspaces, device: &crate::kernels::KernelDevice) -> u64 {
    let large = match rule {
        BlasWorkspaces::LtOfProduct | BlasWorkspaces::Apart => device.is_sm90(),
        _ => (9..=12).contains(&device.capability.0),
    };
    if large { 33_554_432 } else { 8_519_680 }
}

/// The cuBLASLt workspace, as above.
const LT_WORKSPACE_BYTES: u64 = 1 << 20;

pub struct CxInner {
    pub(crate) events: RefCell<Vec<Event>>,
    next_id: Cell<u32>,
    pub(crate) next_seq: Cell<u64>,
    owner: Cell<u32>,
    pub(crate) marks: RefCell<Vec<Mark>>,
    pub(crate) tags: RefCell<Vec<Tag>>,
    /// Nonzero while a recomputation has all it needs and unwinds: no events, no nodes.
    pub(crate) muted: Cell<bool>,
    /// Arithmetic is counted ([`crate::work`]).
    pub(crate) counting: Cell<bool>,
    pub(crate) work: RefCell<Vec<crate::work::OpWork>>,
    pub(crate) grad: Cell<bool>,
    pub(crate) backward_thread: Cell<bool>,
    workspaces: [RefCell<Option<Tensor>>; 2],
    lt_workspaces: [RefCell<Option<Tensor>>; 2],
    blas: Cell<BlasWorkspaces>,
    pub(crate) accumulate: Accumulate,
    pub(crate) device: DeviceModel,
    /// What is asked of the card, where it is noted.
    pub(crate) asked: RefCell<Option<Box<Asked>>>,
    pub(crate) autocast: RefCell<Autocast>,
    pub(crate) hooks: RefCell<Vec<Hooks>>,
    pub(crate) recompute: Cell<Recompute>,
    /// Used nodes, ready for the next operators.
    pub(crate) nodes: RefCell<Vec<Rc<Node>>>,
}

impl CxInner {
    #[inline]
    pub(crate) fn push_free(&self, id: u32, bytes: u64) {
        self.events.borrow_mut().push(Event::free(id, bytes));
    }
}

/// A simulation in progress; cheap to clone, all clones are the same simulation.
#[derive(Clone)]
pub struct Cx(pub(crate) Rc<CxInner>);

impl Cx {
    pub fn new(device: DeviceModel, accumulate: Accumulate) -> Cx {
        Cx(Rc::new(CxInner {
            events: RefCell::new(Vec::with_capacity(8192)),
            next_id: Cell::new(0),
            next_seq: Cell::new(0),
            owner: Cell::new(0),
            marks: RefCell::default(),
            tags: RefCell::default(),
            muted: Cell::new(false),
            counting: Cell::new(false),
            work: RefCell::default(),
            grad: Cell::new(true),
            backward_thread: Cell::new(false),
            workspaces: Default::default(),
            lt_workspaces: Default::default(),
            blas: Cell::default(),
            accumulate,
            device,
            asked: RefCell::default(),
            autocast: RefCell::default(),
            hooks: RefCell::default(),
            recompute: Cell::default(),
            nodes: RefCell::default(),
        }))
    }

    // ---- allocation -------------------------------------------------------------------------------------------------

    /// A block of `bytes`; zero bytes allocate nothing, as in the framework.
    #[inline]
    pub fn storage(&self, op: OpId, bytes: u64) -> Rc<Storage> {
        let id = if self.0.muted.get() || bytes == 0 {
            GHOST
        } else {
            let id = self.0.next_id.get();
            self.0.next_id.set(id + 1);
            self.0.events.borrow_mut().push(Event::alloc(
                id,
                bytes,
                self.0.owner.get() | op.0 as u32,
            ));
            id
        };
        Rc::new(Storage {
            id,
            bytes,
            cx: self.0.clone(),
        })
    }

    /// `torch.empty(shape, dtype)`, contiguous, without history.
    #[inline]
    pub fn empty(&self, op: OpId, shape: Shape, dtype: ScalarType) -> Tensor {
        let storage = self.storage(op, shape.numel() * dtype.size());
        Tensor::new(storage, shape, dtype)
    }

    /// A dense tensor with the given strides.
    #[inline]
    pub fn empty_strided(
        &self,
        op: OpId,
        shape: Shape,
        strides: crate::shape::Strides,
        dtype: ScalarType,
    ) -> Tensor {
        self.empty(op, shape, dtype).laid_out(shape, strides)
    }

    /// `torch.empty_like(x)` with another dtype: keeps the strides of a dense tensor, else the closest dense order.
    #[inline]
    pub fn empty_like(&self, op: OpId, x: &Tensor, dtype: ScalarType) -> Tensor {
        self.elementwise(op, x.shape, &[x], dtype)
    }

    /// The new result of an elementwise operator over operands broadcast to `shape`.
    #[inline]
    pub fn elementwise(&self, op: OpId, shape: Shape, of: &[&Tensor], dtype: ScalarType) -> Tensor {
        if of.iter().all(|t| t.layout().is_none()) {
            let full = |t: &&Tensor| t.shape == shape;
            // with a row-major operand of the full shape, row-major operands cannot reorder dimensions, unless by one of size 1
            let ones = shape.dims().iter().skip(1).any(|d| *d == 1);
            if of.iter().all(full) || (!ones && of.iter().any(full)) {
                return self.empty(op, shape, dtype);
            }
        }
        let st: SmallVec<[Strides; 3]> = of.iter().map(|t| t.strides()).collect();
        let operands: SmallVec<[(&Shape, &Strides); 3]> =
            of.iter().zip(&st).map(|(t, st)| (&t.shape, st)).collect();
        let st = crate::shape::elementwise_strides(&shape, &operands);
        self.empty_strided(op, shape, st, dtype)
    }

    /// An anonymous block (a kernel's temporary).
    #[inline]
    pub fn raw(&self, op: OpId, bytes: u64) -> Rc<Storage> {
        self.storage(op, bytes)
    }

    /// `torch.cuda.empty_cache()`.
    pub fn empty_cache(&self) {
        if !self.0.muted.get() {
            self.0.events.borrow_mut().push(Event::empty_cache());
        }
    }

    // ---- workspaces -------------------------------------------------------------------------------------------------

    /// Whose workspaces products use: said before the first one.
    pub fn set_blas_workspaces(&self, rule: BlasWorkspaces) {
        self.0.blas.set(rule);
    }

    /// A cuBLAS call: the (thread's handle, stream) workspace is made at its first use and stays, or is this product's own
    /// (aten/src/ATen/cuda/CublasHandlePool.cpp).
    #[inline]
    pub fn gemm(&self) {
        let rule = self.0.blas.get();
        let kept = &self.0.workspaces[self.0.backward_thread.get() as usize];
        if kept.borrow().is_none() && !self.0.muted.get() {
            let steps = self.script(rule, |rule, card| {
                Steps::block(workspace_bytes(*rule, card))
            });
            let bytes = steps.peak_temporary_bytes();
            let t = self.empty(OpId::WORKSPACE, Shape::new(&[bytes]), ScalarType::U8);
            self.note_played(&steps, std::iter::once(t.storage.id));
            self.tag(&t, Category::Workspace);
            if rule != BlasWorkspaces::PerProduct {
                *kept.borrow_mut() = Some(t);
            }
        }
    }

    /// A cuBLASLt call (addmm with a bias epilogue), with the handle of cuBLAS.
    #[inline]
    pub fn gemm_lt(&self) {
        let rule = self.0.blas.get();
        if rule != BlasWorkspaces::PerProduct {
            self.gemm();
        }
        let kept = &self.0.lt_workspaces[self.0.backward_thread.get() as usize];
        if rule != BlasWorkspaces::Shared && kept.borrow().is_none() && !self.0.muted.get() {
            let bytes = LT_WORKSPACE_BYTES;
            let t = self.empty(OpId::WORKSPACE, Shape::new(&[bytes]), ScalarType::U8);
            self.tag(&t, Category::Workspace);
            if rule == BlasWorkspaces::Apart {
                *kept.borrow_mut() = Some(t);
            }
        }
    }

    // ---- modes ------------------------------------------------------------------------------------------------------

    /// Is a graph being recorded?
    #[inline]
    pub fn grad_enabled(&self) -> bool {
        self.0.grad.get()
    }

    /// Runs `f` with gradient recording on or off, and restores the mode.
    pub fn with_grad<R>(&self, on: bool, f: impl FnOnce() -> R) -> R {
        let old = self.0.grad.replace(on);
        let r = f();
        self.0.grad.set(old);
        r
    }

    /// True after a recomputation got its last tensor, while the code around it unwinds.
    pub fn muted(&self) -> bool {
        self.0.muted.get()
    }

    // ---- attribution ------------------------------------------------------------------------------------------------

    /// The module that the following allocations belong to; returns the one before.
    #[inline]
    pub fn set_module(&self, module: u32) -> u32 {
        self.0.owner.replace(module << 12) >> 12
    }

    /// The module that allocations belong to now.
    #[inline]
    pub fn module(&self) -> u32 {
        self.0.owner.get() >> 12
    }

    /// From here on events belong to `phase` of `step`.
    pub fn mark(&self, step: i32, micro_batch: u32, phase: Phase) {
        let at = self.0.events.borrow().len();
        self.0.marks.borrow_mut().push(Mark {
            at,
            step,
            micro_batch,
            phase,
        });
    }

    /// The block that holds `t` is of `category`.
    pub fn tag(&self, t: &Tensor, category: Category) {
        if t.storage.id != GHOST {
            self.0.tags.borrow_mut().push(Tag {
                id: t.storage.id,
                category,
            });
        }
    }

    /// Events so far.
    pub fn event_count(&self) -> usize {
        self.0.events.borrow().len()
    }

    /// Allocations so far: the number of the next one.
    pub fn allocations(&self) -> u32 {
        self.0.next_id.get()
    }

    /// Reads the events from number `from` on.
    pub fn with_events<R>(&self, from: usize, f: impl FnOnce(&[Event]) -> R) -> R {
        f(&self.0.events.borrow()[from..])
    }

    /// Ends the simulation: what happened so far. Later frees (of tensors still held by the caller) are not part of it.
    pub fn take_timeline(&self) -> Timeline {
        Timeline {
            events: self.0.events.take(),
            marks: self.0.marks.take(),
            tags: self.0.tags.take(),
        }
    }

    /// Lets go of the workspaces, which otherwise keep the context alive.
    pub fn close(&self) {
        for w in self.0.workspaces.iter().chain(&self.0.lt_workspaces) {
            w.take();
        }
        self.0.autocast.take();
    }
}
