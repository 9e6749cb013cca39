//! Decisions from footprints: what fits and on which card, what to change and in which order, how long it takes, what it costs.

pub mod audit;
pub mod cards;
pub mod cost;
pub mod export;
pub mod plan;
pub mod report;
pub mod schedule;
pub mod time;
