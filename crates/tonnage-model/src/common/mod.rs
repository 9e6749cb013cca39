//! Pieces that many architectures share: mask building, the causal language-model loss.

pub mod activation;
pub mod attention;
pub mod chunked;
pub mod cut;
pub mod experts;
pub mod gemma;
pub mod image;
pub mod liger;
pub mod loss;
pub mod mask;
pub mod mask_4d;
pub mod mha;
pub mod rope;
pub mod unsloth;
