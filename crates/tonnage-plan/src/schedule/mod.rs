//! Dynamic batching: a batch for every length under a budget, and schedules over length ramps.

mod ramp;
pub mod text;

pub use ramp::{Length, Rule, Schedule, schedule};
