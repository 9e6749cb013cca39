//! vLLM: how much KV cache it finds at start-up, in tokens and requests, or why it refuses (vLLM 0.33.0, Model Runner V2).
//!
//! `config.json -> Model -> layers' caches -> groups -> Pool`, with the bytes that remain after weights and the profile run.

mod device;
mod experts;
mod families;
mod graphs;
pub mod kv;
mod layers;
pub mod model;
mod profile;
mod runner;
mod startup;
mod weights;

pub use kv::{Group, Pool, Refusal, Request};
pub use layers::Scheduling;
pub use model::Model;
pub use startup::{Card, Settings, Startup, groups, outcome, pool, request, requested, start};
