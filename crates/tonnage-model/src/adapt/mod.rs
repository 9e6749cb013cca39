//! Fine-tuning methods: what they put on the device, what they make trainable, and how they change a linear module's computation.
//!
//! `target` says which modules, `lora` wraps them with low-rank adapters, `quant` packs their weights (bitsandbytes), `kbit` is
//! peft's preparation of a quantised model, `freeze` keeps parts of a model fixed.

pub mod dora;
pub mod freeze;
pub mod gemm4;
pub mod kbit;
pub mod llm_int8;
pub mod lora;
pub mod quant;
pub mod target;

pub use lora::LoraOptions;
pub use quant::{Quant, QuantScope};
pub use target::Targets;
