//! What transformers allocates while it decides on an attention mask (5.17, src/transformers/masking_utils.py).

use crate::arch::Batch;
use crate::run::Run;
use tonnage_sim::OpId;
use tonnage_sim::ops;
use tonnage_sim::{ScalarType, Shape, Tensor};

/// `torch.arange(S) + past` as [1, S] int64 (the sum is a new tensor).
pub fn position_ids(m: &Run, s: u64) -> Tensor {
    let a = m.cx.empty(OpId::ARANGE, Shape::new(&[s]), ScalarType::I64);
    let p = ops::plain(&m.cx, OpId::ADD, &a, ScalarType::I64);
    drop(a);
    ops::unsqueeze(&m.cx, &p, 0)
}

/// The search for packed sequences that runs where no mask and no cache are given (find_packed_sequence_indices).
fn find_packed(m: &Run, b: u64, s: u64) {
    let cx = &m.cx;
    let i64s = |op, n: u64| cx.empty(op, Shape::new(&[n]), ScalarType::I64);
    let bools = |op, n: u64| cx.empty(op, Shape::new(&[n]), ScalarType::Bool);
    let first = i64s(OpId::SUB, b);
    let joined = i64s(OpId::CAT, b * (s + 1));
    let diff = i64s(OpId::SUB, b * s);
    drop(joined);
    let ne = bools(OpId::NE, b * s);
    let sum = i64s(OpId::CUMSUM, b * s);
    let cast = i64s(OpId::CUMSUM, b * s);
    drop(cast);
    drop(ne);
    let eq = bools(OpId::EQ, b);
    let all = bools(OpId::ALL, 1);
    drop(eq);
    drop(all);
    drop(first);
    drop(diff);
    drop(sum);
}

/// `create_causal_mask` of a plain causal model: None where SDPA's `is_causal` does.
pub fn causal(m: &Run, batch: &Batch, b: u64, s: u64) -> Option<Tensor> {
    match &batch.attention_mask {
        None => {
            if m.training || !m.options.use_cache {
                find_packed(m, b, s);
            }
            None
        }
        Some(mask) => {
            let bools = ops::plain(&m.cx, OpId::TO_COPY, mask, ScalarType::Bool);
            let all = m.cx.empty(OpId::ALL, Shape::new(&[]), ScalarType::Bool);
            drop(all);
            drop(bools);
            None
        }
    }
}
