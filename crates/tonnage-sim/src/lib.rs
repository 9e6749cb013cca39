//! See the crate's description.

pub mod alloc;
pub mod kernels;
pub mod timeline;
