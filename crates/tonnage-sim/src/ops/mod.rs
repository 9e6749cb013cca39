//! Operators: what each allocates forward and backward, in the framework's order (PyTorch 2.11).
//!
//! An operator starts its node, saves what the framework saves (in the order in which it is released), allocates its results and
//! temporaries in kernel order and closes the node with a non-capturing backward function. Reducing a broadcast gradient and casting
//! it to its input's dtype is the engine's work, not the operator's.

pub mod attention;
pub mod complex;
pub mod conv;
pub mod embedding;
pub mod image;
pub mod index;
pub mod loss;
pub mod matmul;
pub mod moe;
pub mod norm;
pub mod op;
pub mod play;
pub mod pointwise;
pub mod reduce;
pub mod view;

pub use attention::*;
pub use complex::*;
pub use conv::*;
pub use embedding::*;
pub use image::*;
pub use index::*;
pub use loss::*;
pub use matmul::*;
pub use moe::*;
pub use norm::*;
pub use pointwise::*;
pub use reduce::*;
pub use view::*;
