//! Inference with transformers: one plain call, and `generate`, under `torch.inference_mode()`.

mod beam;
mod by_hand;
mod call;
mod forward;
mod generate;
mod kv;
mod sample;
mod special;

pub(crate) use forward::forward;
pub(crate) use generate::generate;
pub use kv::kv_cache_bytes;
