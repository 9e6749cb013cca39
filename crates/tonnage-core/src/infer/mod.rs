//! Inference with transformers: one plain call, and `generate`, under `torch.inference_mode()`.

mod forward;
mod generate;
mod special;

pub use forward::forward;
pub use generate::generate;
