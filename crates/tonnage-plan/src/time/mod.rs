//! How long a step takes: work counted from the simulated operators, rates of the card, efficiencies fitted on published measurements.

pub mod card;
pub mod efficiency;
pub mod fit;
mod job;
pub mod published;
pub mod shape;
mod work;

pub use card::Card;
pub use efficiency::{Efficiencies, Fitted, Spread};
pub use job::{Part, Span, StepTime, time_of};
pub use shape::ModelShape;
pub use work::{PassWork, StepWork, step_work, work_of};
