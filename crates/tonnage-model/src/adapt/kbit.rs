//! `prepare_model_for_kbit_training` (peft 0.21.2, src/peft/utils/other.py).

use crate::run::Run;
use tonnage_sim::OpId;
use tonnage_sim::ScalarType;
use tonnage_sim::ops::plain;

/// Freezes everything, turns every 16-bit parameter that is not packed 4-bit into fp32 (new tensor, then the old one goes), and
/// empties the allocator's cache. With non-reentrant checkpointing it does not touch the input embeddings.
pub fn prepare(m: &mut Run) {
    m.freeze_all();
    let cx = m.cx.clone();
    m.map_parameters(|t| {
        if matches!(t.dtype, ScalarType::F16 | ScalarType::BF16) {
            *t = plain(&cx, OpId::TO_COPY, t, ScalarType::F32);
        }
    });
    cx.empty_cache();
}
