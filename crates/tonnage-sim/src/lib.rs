//! The simulator: shape-only tensors that own their storage, autograd, operators, and the allocator that replays what they did.
//!
//! A tensor handle keeps its [`Storage`] alive; when the last handle goes, the storage pushes a free event. So a forward pass
//! written on these tensors produces, in order, the allocations and frees that the framework's own pass would produce.
//!
//! Layers inside: [`shape`] and [`tensor`] (what a tensor is), [`context`] (where events go: grad mode, autocast, workspaces, owner),
//! [`autograd`] (nodes, saved tensors, the engine's order), [`checkpoint`] (recomputation), [`ops`] (operators), [`timeline`] (the result).

pub mod alloc;
pub mod asked;
pub mod autocast;
pub mod autograd;
pub mod checkpoint;
pub mod context;
pub mod kernels;
pub mod ops;
pub mod optim;
pub mod shape;
pub mod tensor;
pub mod timeline;
pub mod work;

pub use autograd::{Edge, Grads, Node, NodeBuilder, Saved, backward};
pub use context::{Accumulate, Cx, DeviceModel};
pub use ops::op::OpId;
pub use shape::Shape;
pub use tensor::{Storage, Tensor};
pub use timeline::{Event, EventKind, Timeline};
pub use tonnage_units::ScalarType;
