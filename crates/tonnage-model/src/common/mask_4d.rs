//! The causal masks that some models of transformers 4.57 still build themselves
//! (4.57.6, src/transformers/modeling_attn_mask_utils.py and the `_update_causal_mask` of modeling_falcon.py, modeling_opt.py).

use crate::run::Run;
use tonnage_sim::{OpId, ScalarType, Shape, Tensor, ops};

/// `AttentionMaskConverter._ignore_causal_mask_sdpa` of the mask [B, S] that the call was given: is it all ones?
pub fn ignored(m: &Run, given: &Tensor, padded: bool) -> bool {
    let ones = ops::compare_scalar(&m.cx, OpId::EQ, given);
    let all = m.cx.empty(OpId::ALL, Shape::new(&[]), ScalarType::Bool);
    drop(ones);
    drop(all);
    !padded
}

/// `_prepare_4d_causal_attention_mask_with_cache_position`: additive, [B, 1, S, S] in `dtype`.
pub fn additive(m: &Run, given: Option<&Tensor>, b: u64, s: u64, dtype: ScalarType) -> Tensor {
    let cx = &m.cx;
    let square = Shape::new(&[s, s]);
    let mut mask = cx.empty(OpId::FULL, square, dtype);
    if s != 1 {
        mask = cx.empty(OpId::MUL, square, dtype);
    }
    let range = cx.empty(OpId::ARANGE, Shape::new(&[s]), ScalarType::I64);
    let later = cx.empty(OpId::COMPARE, square, ScalarType::Bool);
    drop(range);
    drop(later);
    let shape = Shape::new(&[b, 1, s, s]);
    let Some(given) = given else {
        return ops::expand(cx, &mask, shape);
    };
    mask = cx.empty(OpId::CLONE, shape, dtype);
    let sum = ops::promote_types(dtype, given.dtype);
    let mut padding = cx.empty(OpId::ADD, shape, sum);
    padding = {
        let equal = cx.empty(OpId::EQ, shape, ScalarType::Bool);
        drop(padding);
        equal
    };
    drop(cx.empty(OpId::MASKED_FILL, shape, dtype));
    drop(padding);
    mask
}

/// `AttentionMaskConverter._unmask_unattended`.
pub fn unmask_unattended(m: &Run, mask: Tensor) -> Tensor {
    let cx = &m.cx;
    let equal = ops::compare_scalar(cx, OpId::EQ, &mask);
    let all = cx.empty(OpId::ALL, mask.shape.with(-1, 1), ScalarType::Bool);
    drop(equal);
    let not = cx.empty(OpId::BITWISE, all.shape, ScalarType::Bool);
    drop(all);
    let y = cx.empty(OpId::MUL, mask.shape, mask.dtype);
    drop(not);
    drop(mask);
    y
}
