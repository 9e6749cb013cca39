//! Models: readers of configurations, the module tree with its tensors, and the forward pass of each architecture.
//!
//! The way of the data: `config.json -> arch::build -> Built { net, arch }`; [`Run::load`] puts the tree's tensors on a simulated
//! device, and [`Arch::forward`] executes one call of the model there.

pub mod adapt;
pub mod arch;
pub mod cache;
pub mod common;
pub mod count;
pub mod describe;
pub mod error;
pub mod layers;
pub mod net;
pub mod readers;
pub mod run;
pub mod stack;

pub use arch::{Arch, Batch, Built, Output};
pub use cache::{Cache, CacheKind};
pub use error::ModelError;
pub use net::{Kind, ModuleId, Net, NetBuilder, ParamId};
pub use run::{Attention, Loss, Run, RunOptions};
pub use stack::Stack;
