//! How long a step takes: work counted from the simulated operators, rates of the card, efficiencies fitted on published measurements.

mod work;

pub use work::{PassWork, StepWork, step_work};
