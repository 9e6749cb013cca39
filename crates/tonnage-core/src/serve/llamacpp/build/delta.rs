//! qwen3next: gated delta nets and attention (src/models/qwen3next.cpp, delta-net-base.cpp).

use super::Builder;
use crate::serve::llamacpp::error::Error;

impl Builder<'_> {
    pub(super) fn qwen3next_model(&mut self) -> Result<(), Error> {
        Err(Error::Unsupported("compute buffers of qwen3next".into()))
    }
}
