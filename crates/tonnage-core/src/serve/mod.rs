//! Serving engines: how each carves memory, with its own names for its knobs; and what a question about one of them is answered with.

pub mod answer;
pub mod command;
pub mod llamacpp;
pub mod llamacpp_answer;
pub mod sglang;
pub mod vllm;
pub mod vllm_answer;

pub use answer::Serving;
