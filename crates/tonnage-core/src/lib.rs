//! The library: a job to its memory footprint.
//!
//! `Spec -> simulate -> Timeline -> allocator -> Footprint`; everything else reads footprints.

pub mod error;
pub mod spec;
pub mod train;
pub mod validate;

pub use error::CoreError;
pub use spec::Spec;
pub use train::{Simulated, simulate};
