//! Pieces that many architectures share: mask building, the causal language-model loss.

pub mod loss;
pub mod mask;
