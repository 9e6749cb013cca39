//! What transformers allocates while it decides on an attention mask (5.17, src/transformers/masking_utils.py).

use crate::arch::Batch;
use crate::run::{Attention, Run};
use tonnage_sim::ops;
use tonnage_sim::{Cx, OpId};
use tonnage_sim::{ScalarType, Shape, Tensor};

/// `torch.arange(S) + past` as [1, S] int64 (5.x: the sum is a new tensor; 4.57: `arange(past, past + S)`).
pub fn position_ids(m: &Run, s: u64) -> Tensor {
    let a = m.cx.empty(OpId::ARANGE, Shape::new(&[s]), ScalarType::I64);
    if !m.options.stack.transformers_5() {
        return ops::unsqueeze(&m.cx, &a, 0);
    }
    let p = ops::plain(&m.cx, OpId::ADD, &a, ScalarType::I64);
    drop(a);
    ops::unsqueeze(&m.cx, &p, 0)
}

/// The call's position ids: those it was passed, or its own.
pub fn positions(m: &Run, batch: &Batch, s: u64) -> Tensor {
    match &batch.position_ids {
        Some(p) => p.clone(),
        None => position_ids(m, s),
    }
}

/// What a mask covers: queries, keys, and whether the keys' window is limited.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub q: u64,
    pub kv: u64,
    pub sliding: bool,
}

impl Span {
    /// The mask of `s` new tokens after what the call's cache has seen; with a window, of what a sliding layer still holds
    /// (cache_utils.py, `get_mask_sizes`).
    pub fn new(m: &Run, s: u64, window: Option<u64>) -> Span {
        let past = m.past();
        let kv = match window {
            Some(w) if past >= w => w - 1 + s,
            _ => past + s,
        };
        Span {
            q: s,
            kv,
            sliding: window.is_some(),
        }
    }
    fn square(self) -> [u64; 2] {
        [self.q, self.kv]
    }
}

/// The search for packed sequences that runs where no mask and no cache are given (find_packed_sequence_indices). 5.x asks the
/// device whether there are any and drops the answer; 4.57 hands the indices on.
fn find_packed(m: &Run, b: u64, s: u64) -> Option<Tensor> {
    let cx = &m.cx;
    let i64s = |op, n: u64| cx.empty(op, Shape::new(&[n]), ScalarType::I64);
    let bools = |op, n: u64| cx.empty(op, Shape::new(&[n]), ScalarType::Bool);
    let first = i64s(OpId::SUB, b);
    let joined = i64s(OpId::CAT, b * (s + 1));
    let diff = i64s(OpId::SUB, b * s);
    drop(joined);
    let ne = bools(OpId::NE, b * s);
    let shape = Shape::new(&[b, s]);
    let script = tonnage_sim::kernels::cumsum(b * s, ScalarType::Bool, ScalarType::I64, b == 1)
        .expect("an int64 cumsum is covered");
    let sum = cx
        .play(OpId::CUMSUM, &script, |_| {
            (shape, shape.contiguous_strides(), ScalarType::I64)
        })
        .remove(0);
    drop(ne);
    if !m.options.stack.transformers_5() {
        drop(first);
        drop(diff);
        return Some(sum);
    }
    let eq = bools(OpId::EQ, b);
    let all = bools(OpId::ALL, 1);
    drop(eq);
    drop(all);
    drop(first);
    drop(diff);
    drop(sum);
    None
}

/// The causal mask function over the queries and the keys. A sliding one asks two questions and joins them (`and_masks`), from a
/// tensor of ones that 4.57's vmap spreads over the queries (case `gemma3-tiny-plain-bf16-sdpa`).
fn causal_function(m: &Run, span: Span) -> Tensor {
    let cx = &m.cx;
    let square = |op| cx.empty(op, Shape::new(&span.square()), ScalarType::Bool);
    if !span.sliding {
        return square(OpId::COMPARE);
    }
    and_masks(m, span, || {
        let bound = cx.empty(OpId::SUB, Shape::new(&[span.q]), ScalarType::I64);
        let near = square(OpId::COMPARE);
        drop(bound);
        near
    })
    .then(|| square(OpId::COMPARE), &span.square())
}

/// `ones & first() & ...`: what `and_masks` has after its first function; [`Joined::then`] adds another.
struct Joined<'m> {
    m: &'m Run,
    mask: Tensor,
}

fn and_masks(m: &Run, span: Span, first: impl FnOnce() -> Tensor) -> Joined<'_> {
    let ones = if m.options.stack.transformers_5() {
        Shape::new(&[])
    } else {
        Shape::new(&[span.q])
    };
    let ones = m.cx.empty(OpId::FULL, ones, ScalarType::Bool);
    let f = first();
    let mask =
        m.cx.empty(OpId::BITWISE, Shape::new(&span.square()), ScalarType::Bool);
    drop(f);
    drop(ones);
    Joined { m, mask }
}

impl Joined<'_> {
    fn then(self, f: impl FnOnce() -> Tensor, shape: &[u64]) -> Tensor {
        let f = f();
        let shape = Shape::new(shape);
        let mask = self.m.cx.empty(OpId::BITWISE, shape, ScalarType::Bool);
        drop(f);
        drop(self.mask);
        mask
    }
}

/// 4.57 with packed-sequence indices: the boolean [B, 1, S, S] mask, made under vmap (sdpa_mask_recent_torch;
/// case `llama-1b-plain-bf16-adamw_foreach-b2-s1024-tf4.57.6`).
fn packed_mask(m: &Run, b: u64, span: Span) -> Tensor {
    let s = span.q;
    let cx = &m.cx;
    let i64s = |op, n: u64| cx.empty(op, Shape::new(&[n]), ScalarType::I64);
    let bools = |op, d: &[u64]| cx.empty(op, Shape::new(d), ScalarType::Bool);
    let kv = i64s(OpId::ARANGE, s);
    let batches = i64s(OpId::ARANGE, b);
    let heads = i64s(OpId::ARANGE, 1);
    let gather = || {
        let indices = expanded_indices(cx, b, s);
        let r = i64s(OpId::INDEX, b * s);
        drop(indices);
        r
    };
    let same_sequence = || {
        let (q_seq, kv_seq) = (gather(), gather());
        let same = bools(OpId::EQ, &[b, s, s]);
        drop(q_seq);
        drop(kv_seq);
        same
    };
    let mask = and_masks(m, span, || causal_function(m, span)).then(same_sequence, &[b, 1, s, s]);
    drop(kv);
    drop(batches);
    drop(heads);
    mask
}

/// Nothing but the causal function: by broadcasting in 5.x, under vmap in 4.57, expanded over the batch (sdpa_mask).
pub fn plain_mask(m: &Run, b: u64, span: Span) -> Tensor {
    let cx = &m.cx;
    let i64s = |op, n: u64| cx.empty(op, Shape::new(&[n]), ScalarType::I64);
    let arange = |n| i64s(OpId::ARANGE, n);
    let shifted = |n| {
        let raw = arange(n);
        let sum = i64s(OpId::ADD, n);
        drop(raw);
        sum
    };
    let indices = if m.options.stack.transformers_5() {
        vec![arange(b), arange(1), shifted(span.q), shifted(span.kv)]
    } else {
        vec![arange(span.kv), arange(b), arange(1)]
    };
    let mask = causal_function(m, span);
    indices.into_iter().for_each(drop);
    let mask = ops::view(cx, &mask, Shape::new(&[1, 1, span.q, span.kv]));
    ops::expand(cx, &mask, Shape::new(&[b, 1, span.q, span.kv]))
}

/// `eager_mask`: 0 and the dtype's minimum instead of booleans (case `gpt2-small-plain-fp32-adamw_foreach-b4-s1024-eager`).
pub fn additive(m: &Run, mask: Tensor, dtype: ScalarType) -> Tensor {
    let cx = &m.cx;
    let zero = cx.empty(OpId::SCALAR_TENSOR, Shape::new(&[]), dtype);
    let min = cx.empty(OpId::SCALAR_TENSOR, Shape::new(&[]), dtype);
    let out = cx.empty(OpId::WHERE, mask.shape, dtype);
    drop(min);
    drop(zero);
    drop(mask);
    out
}

/// `fast_all` (5.x): the number of true elements against all of them.
pub fn fast_all(m: &Run, bools: &Tensor) {
    let cx = &m.cx;
    let count = ops::sum(cx, bools, &[], false);
    let equal = ops::compare_scalar(cx, OpId::EQ, &count);
    drop(count);
    drop(equal);
}

/// The part of the [B, past + S] mask that a sliding layer still holds, for a look at it (`_ignore_causal_mask_sdpa`;
/// case `mistral-tiny-generate-bf16-window`).
pub fn recent(m: &Run, b: u64, kv: u64) {
    let cx = &m.cx;
    let i64s = |op| cx.empty(op, Shape::new(&[kv]), ScalarType::I64);
    let mut places = i64s(OpId::ARANGE);
    if m.options.stack.transformers_5() {
        places = i64s(OpId::ADD);
    }
    drop(cx.empty(OpId::INDEX, Shape::new(&[b, kv]), ScalarType::Bool));
    drop(places);
}

/// Can SDPA's `is_causal` stand for the mask? 5.x asks twice where the first answer is no (`_ignore_causal_mask_sdpa`;
/// cases `llama-tiny-plain-bf16-sdpa-mask-pad` and its `-tf4.57.6` twin).
fn skippable(m: &Run, bools: &Tensor, padded: bool, s: u64) -> bool {
    if m.options.stack.transformers_5() {
        fast_all(m, bools);
        if padded && m.past() == 0 {
            let start = ops::slice(&m.cx, bools, 1, 0, s);
            fast_all(m, &start);
        }
    } else {
        drop(ops::all(&m.cx, bools));
    }
    !padded
}

/// The boolean [B, 1, S, S] mask of a causal model whose batch has a [B, S] mask: by broadcasting in 5.x, under vmap in 4.57
/// (`sdpa_mask`, `sdpa_mask_recent_torch`; the cases named above, with eager attention `llama-tiny-plain-bf16-eager-mask-ones`).
pub fn padding_mask(m: &Run, b: u64, span: Span) -> Tensor {
    padding_mask_over(m, b, span, None)
}

/// As [`padding_mask`], from the call's mask padded to the keys' length, which dies first.
pub fn padding_mask_over(m: &Run, b: u64, span: Span, padded: Option<Tensor>) -> Tensor {
    let cx = &m.cx;
    let Span { q, kv, .. } = span;
    let five = m.options.stack.transformers_5();
    let i64s = |op, n: u64| cx.empty(op, Shape::new(&[n]), ScalarType::I64);
    let arange = |n| i64s(OpId::ARANGE, n);
    let shifted = |n| {
        let raw = arange(n);
        let sum = i64s(OpId::ADD, n);
        drop(raw);
        sum
    };
    let first = if five {
        [arange(b), arange(1)]
    } else {
        [arange(kv), arange(b)]
    };
    let then = if five {
        vec![shifted(q), shifted(kv)]
    } else {
        vec![arange(1)]
    };
    // mask[batch_idx, kv_idx]: both indices expanded
    let pick = || {
        let indices = expanded_indices(cx, b, kv);
        let picked = cx.empty(OpId::INDEX, Shape::new(&[b, kv]), ScalarType::Bool);
        drop(indices);
        picked
    };
    let mask = and_masks(m, span, || causal_function(m, span)).then(pick, &[b, 1, q, kv]);
    drop(padded);
    first.into_iter().chain(then).for_each(drop);
    mask
}

/// The contiguous copies of the expanded indices `[batch, position]`; those of one sequence's positions are contiguous already
/// (torch 2.11, aten/src/ATen/native/TensorAdvancedIndexing.cpp, AdvancedIndex;
/// case `phi3-tiny-plain-bf16-adamw_foreach-b1-s256-longrope-tf4.57.6`). They die in this order: positions, batch.
fn expanded_indices(cx: &Cx, b: u64, s: u64) -> (Option<Tensor>, Tensor) {
    let like = || cx.empty(OpId::INDEX, Shape::new(&[b * s]), ScalarType::I64);
    let batch = like();
    ((b > 1).then(like), batch)
}

/// `create_causal_mask` of a plain causal model with embeddings of `dtype`: None where SDPA's `is_causal` does.
pub fn causal(m: &Run, batch: &Batch, b: u64, s: u64, dtype: ScalarType) -> Option<Tensor> {
    windowed(m, batch, b, s, dtype, None)
}

/// How a model asks for its mask.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Of a sliding mask.
    pub window: Option<u64>,
    /// Numbers to add rather than booleans.
    pub eager: bool,
    /// The position ids are handed over, in which packed sequences are then looked for.
    pub positions: bool,
}

/// `create_sliding_window_causal_mask` where `window` is given: SDPA's `is_causal` does only while the sequence is shorter
/// (cases `gemma3-tiny-plain-bf16-sdpa` and its `-tf4.57.6` twin).
pub fn windowed(
    m: &Run,
    batch: &Batch,
    b: u64,
    s: u64,
    dtype: ScalarType,
    window: Option<u64>,
) -> Option<Tensor> {
    let request = Request {
        window,
        eager: m.options.attention == Attention::Eager,
        positions: true,
    };
    requested(m, batch, b, s, dtype, request)
}

/// The mask of a `request` (case `gpt-oss-tiny-plain-bf16-eager` has one without positions).
pub fn requested(
    m: &Run,
    batch: &Batch,
    b: u64,
    s: u64,
    dtype: ScalarType,
    request: Request,
) -> Option<Tensor> {
    let Request { window, eager, .. } = request;
    if window.is_some() && batch.sliding_mask.is_some() {
        return batch.sliding_mask.clone();
    }
    let span = Span::new(m, s, window);
    let must = eager || window.is_some_and(|w| span.kv >= w);
    match &batch.attention_mask {
        None => {
            if m.cache().is_none() && (m.training || !m.options.use_cache) {
                let packed = request.positions.then(|| find_packed(m, b, s)).flatten();
                let mut mask = match &packed {
                    Some(_) => Some(packed_mask(m, b, span)),
                    None => must.then(|| plain_mask(m, b, span)),
                };
                if eager {
                    mask = mask.map(|bools| additive(m, bools, dtype));
                }
                drop(packed);
                return mask;
            }
            let bools = must.then(|| plain_mask(m, b, span))?;
            Some(if eager {
                additive(m, bools, dtype)
            } else {
                bools
            })
        }
        // prepared by the caller
        Some(mask) if mask.shape.ndim() == 4 => Some(mask.clone()),
        Some(mask) => {
            let bools = ops::plain(&m.cx, OpId::TO_COPY, mask, ScalarType::Bool);
            if !eager && mask.size(1) > span.kv {
                recent(m, b, span.kv);
            }
            if !must && skippable(m, &bools, batch.padded, s) {
                return None;
            }
            let mut out = padding_mask(m, b, span);
            if eager {
                out = additive(m, out, dtype);
            }
            drop(bools);
            Some(out)
        }
    }
}

/// The mask of an encoder that is passed an all-ones [B, S] one: a question to the device, and None under SDPA.
/// 5.x: masking_utils.py, create_bidirectional_mask; 4.57: modeling_attn_mask_utils.py, _prepare_4d_attention_mask_for_sdpa.
pub fn bidirectional(m: &Run, mask: Option<&Tensor>) -> Option<Tensor> {
    let mask = mask?;
    let all = || m.cx.empty(OpId::ALL, Shape::new(&[]), ScalarType::Bool);
    if m.options.stack.transformers_5() {
        let bools = ops::plain(&m.cx, OpId::TO_COPY, mask, ScalarType::Bool);
        drop(all());
        drop(bools);
    } else {
        let ones = ops::compare_scalar(&m.cx, OpId::EQ, mask);
        let answer = all();
        drop(ones);
        drop(answer);
    }
    None
}

/// 5.x's `create_causal_mask` of a decoder that was given a cache and no mask: None under SDPA, the additive mask in eager attention.
pub fn causal_cached(m: &Run, b: u64, s: u64, dtype: ScalarType) -> Option<Tensor> {
    (m.options.attention == Attention::Eager)
        .then(|| additive(m, plain_mask(m, b, Span::new(m, s, None)), dtype))
}
