//! The library: a job to its memory footprint.
//!
//! `file or flags -> Job -> Spec -> simulate -> Timeline -> allocator -> Footprint`; everything else reads footprints.

pub mod agi2_compat;
pub mod doc;
pub mod error;
pub mod fit;
pub mod footprint;
pub mod import;
pub mod infer;
pub mod job;
pub mod serve;
pub mod spec;
pub mod train;
pub mod validate;
pub mod verdict;
pub mod verified;
pub mod workers;

pub use doc::Diagnostic;
pub use error::CoreError;
pub use footprint::{Footprint, estimate};
pub use job::Job;
pub use spec::Spec;
pub use train::{Simulated, simulate, simulate_counted, simulate_noting, simulate_until_repeat};
