//! Optimizers, clipping, gradient scaling and `zero_grad`: what a step allocates, in the framework's order and with its lifetimes.
//!
//! [`create`] makes an optimizer over a list of parameters; [`Optimizer::step`] reads their gradients and plays one step. State tensors
//! are made where the framework makes them (in the first step, or in the constructor) and are tagged as optimizer state.
//! Python lists and tuples let their elements go from the last to the first; locals of a Python function die in the order of their
//! first assignment, and a rebound name frees its old value after the new one exists.
//! Verified event by event: `tests/fixtures/optim/` (PyTorch 2.11, bitsandbytes 0.50.2, transformers 5.17).

mod adafactor;
mod adagrad;
mod adam;
mod bnb;
mod clip;
mod groups;
mod kind;
mod lion;
mod muon;
mod rmsprop;
mod scaler;
mod sgd;
mod zero_grad;

pub use clip::clip_grad_norm;
pub use groups::create_grouped;
pub use kind::{Bnb, Implementation, OptimizerKind, UnknownOptimizer};
pub use scaler::GradScaler;
pub use zero_grad::zero_grad;

use crate::context::Cx;
use crate::ops::op::OpId;
use crate::tensor::Tensor;
use crate::timeline::Category;
use smallvec::SmallVec;
use tonnage_units::ScalarType;

/// One state tensor of an optimizer.
pub struct State<'a> {
    /// Index of the parameter in the list the optimizer was created with; tensors that all parameters share name the first user.
    pub parameter: usize,
    /// The framework's name of it (`exp_avg`, `momentum_buffer`, `state1`, ...).
    pub name: &'static str,
    pub tensor: &'a Tensor,
}

/// An optimizer at work on a fixed list of parameters.
pub trait Optimizer {
    /// `optimizer.step()`. `params` is the list that the optimizer was created with, in the same order; those without a gradient
    /// are skipped.
    fn step(&mut self, cx: &Cx, params: &[Tensor]);
    /// The state tensors in the allocator, in order of parameters.
    fn states(&self) -> Vec<State<'_>>;
    /// Bytes of states in managed memory, outside the allocator (paged optimizers).
    fn managed_bytes(&self) -> u64 {
        0
    }
    /// The kernel unscales the gradients and looks for infinities itself (`_step_supports_amp_scaling`): fused optimizers.
    fn scales_gradients(&self) -> bool {
        false
    }
}

/// Makes the optimizer `kind` over `params` (all that it is given: leave out frozen ones as the script does).
pub fn create(kind: OptimizerKind, cx: &Cx, params: &[Tensor]) -> Box<dyn Optimizer> {
    let n = params.len();
    match kind {
        OptimizerKind::Adam {
            implementation,
            amsgrad,
            coupled_decay,
        } => Box::new(adam::Adam::new(implementation, amsgrad, coupled_decay, n)),
        OptimizerKind::Sgd {
            implementation,
            momentum,
            decay,
        } => Box::new(sgd::Sgd::new(implementation, momentum, decay, n)),
        OptimizerKind::RmsProp {
            momentum,
            centered,
            decay,
        } => Box::new(rmsprop::RmsProp::new(momentum, centered, decay, n)),
        OptimizerKind::Adagrad { decay } => Box::new(adagrad::Adagrad::new(cx, decay, params)),
        OptimizerKind::Adafactor { momentum } => Box::new(adafactor::Adafactor::new(momentum, n)),
        OptimizerKind::Lion => Box::new(lion::Lion::new(n)),
        OptimizerKind::Muon => Box::new(muon::Muon::new(n)),
        OptimizerKind::Bnb {
            algorithm,
            eight_bit,
            paged,
        } => Box::new(bnb::Bnb8::new(algorithm, eight_bit, paged, n)),
    }
}

/// Parameters that have a gradient: their index, themselves, the gradient.
fn with_grad(params: &[Tensor]) -> Vec<(usize, &Tensor, Tensor)> {
    params
        .iter()
        .enumerate()
        .filter_map(|(i, p)| Some((i, p, p.grad()?)))
        .collect()
}

/// `_group_tensors_by_device_and_dtype` on one device: positions of each dtype, the dtype met last first. The groups are the nodes of a
/// C++ `unordered_map`, whose list grows at its head (torch 2.11, aten/src/ATen/native/ForeachUtils.h; case `adamw_foreach-mixed`).
fn group(dtypes: impl Iterator<Item = ScalarType>) -> SmallVec<[(ScalarType, Vec<usize>); 2]> {
    let mut groups: SmallVec<[(ScalarType, Vec<usize>); 2]> = SmallVec::new();
    for (i, t) in dtypes.enumerate() {
        match groups.iter_mut().find(|(d, _)| *d == t) {
            Some((_, g)) => g.push(i),
            None => groups.push((t, vec![i])),
        }
    }
    groups.reverse();
    groups
}

/// Temporaries of a list operator: a Python list, whose elements die from the last to the first.
#[derive(Default)]
struct List(Vec<Tensor>);

impl Drop for List {
    fn drop(&mut self) {
        while self.0.pop().is_some() {}
    }
}

/// An out-of-place foreach operator: one result for each tensor, in order.
fn foreach<'a>(cx: &Cx, inputs: impl Iterator<Item = &'a Tensor>) -> List {
    List(
        inputs
            .map(|t| cx.empty_like(OpId::FOREACH, t, t.dtype))
            .collect(),
    )
}

/// `torch.zeros_like(t, dtype=dtype)`, tagged as optimizer state.
fn state_like(cx: &Cx, t: &Tensor, dtype: ScalarType) -> Tensor {
    tagged(cx, cx.empty_like(OpId::ZEROS_LIKE, t, dtype))
}

fn tagged(cx: &Cx, t: Tensor) -> Tensor {
    cx.tag(&t, Category::OptimizerState);
    t
}

/// The entries of a per-parameter table as named states.
fn named<'a>(name: &'static str, table: &'a [Option<Tensor>]) -> impl Iterator<Item = State<'a>> {
    table.iter().enumerate().filter_map(move |(parameter, t)| {
        Some(State {
            parameter,
            name,
            tensor: t.as_ref()?,
        })
    })
}

/// Several tables of states, merged in order of parameters.
fn merged<'a>(tables: &[(&'static str, &'a [Option<Tensor>])]) -> Vec<State<'a>> {
    let mut v: Vec<State<'a>> = tables.iter().flat_map(|(name, t)| named(name, t)).collect();
    v.sort_by_key(|s| s.parameter);
    v
}
