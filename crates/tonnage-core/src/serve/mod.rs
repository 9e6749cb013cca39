//! Serving engines: how each carves memory, with its own names for its knobs.

pub mod llamacpp;
pub mod vllm;
