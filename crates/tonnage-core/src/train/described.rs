//! What a described model cannot be asked.

use crate::error::CoreError;
use crate::spec::{Loop, Spec};
use tonnage_model::Attention;
use tonnage_model::arch::BatchLayout;
use tonnage_model::net::Net;

/// Refuses what a description does not define, and sizes that no card has.
pub fn check(spec: &Spec, l: &BatchLayout, net: &Net) -> Result<(), CoreError> {
    if spec.driver == Loop::Trainer {
        return Err(CoreError::Unsupported(
            "transformers' Trainer with a described model (its loss has no place for the Trainer's item count)".into(),
        ));
    }
    if spec.attention == Attention::FlashAttention2 {
        return Err(CoreError::Unsupported(
            "flash_attention_2 with a described model".into(),
        ));
    }
    if let Some((longest, why)) = &l.longest
        && spec.seq > *longest
    {
        return Err(CoreError::Invalid {
            field: "train.seq_len".into(),
            problem: format!("{} is too long: {why}; at most {longest}", spec.seq),
        });
    }
    let (width, heads) = l.widest;
    let positions = u128::from(spec.batch) * (u128::from(spec.seq) + 1);
    let largest = (positions * u128::from(width))
        .max(positions * (u128::from(spec.seq) + 1) * u128::from(heads))
        .saturating_mul(net.modules.len() as u128);
    let lines = positions.max(u128::from(spec.batch) * u128::from(heads));
    if lines > u128::from(u32::MAX) || largest > 1 << 52 {
        return Err(CoreError::Invalid {
            field: "train.micro_batch_size x train.seq_len".into(),
            problem: format!(
                "{} x {} is impossible with this model",
                spec.batch, spec.seq
            ),
        });
    }
    Ok(())
}
