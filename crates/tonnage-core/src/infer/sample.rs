//! Greedy decoding and sampling (`_sample`).

use super::call::{Calls, Inputs, Kwargs};
use tonnage_sim::{OpId, ScalarType, Shape, Tensor, ops};

/// The token candidates that `top_k` leaves by default.
const TOP_K: u64 = 50;

/// Runs the loop from the prompt `ids`; returns the sequences.
pub fn loop_(c: &Calls, mut kw: Kwargs, mut ids: Tensor) -> Tensor {
    let b = c.rows;
    let mut unfinished = c.i64s(OpId::FULL, &[b]);
    kw.cache_position = c.first_places();
    // 4.57: `this_peer_finished` is a tensor
    let mut finished: Option<Tensor> = None;
    let mut scores: Option<(Tensor, Option<Tensor>)> = None;
    let mut probabilities: Option<Tensor> = None;
    let mut next: Option<Tensor> = None;
    let mut inputs = Inputs::default();
    for i in 0..c.how.new {
        let prepared = c.prepare(&kw, ids.size(1));
        drop(std::mem::replace(&mut inputs, prepared));
        let logits = c.call(&inputs, i == 0);
        if i == 0 && c.five {
            // locals of `_prefill`
            inputs = Inputs::default();
        }
        c.update(&mut kw);
        let copy = c.copied(&logits);
        // `next_token_logits`; `next_token_scores` is the same tensor unless a processor makes another
        let old = scores.take();
        if c.how.sample {
            let (kept, old_scores) = old.map_or((None, None), |(l, s)| (Some(l), s));
            drop(kept);
            let warped = top_k(c, &copy);
            drop(old_scores);
            let p = ops::softmax(c.cx, &warped, None);
            drop(probabilities.replace(p));
            scores = Some((copy, Some(warped)));
            let picked = multinomial(c, probabilities.as_ref());
            drop(next.replace(picked));
        } else {
            drop(old);
            let picked = ops::argmax(c.cx, &copy, -1);
            scores = Some((copy, None));
            drop(next.replace(picked));
        }
        if c.how.eos {
            let kept = c.i64s(OpId::MUL, &[b]);
            let rest = c.i64s(OpId::SUB, &[b]);
            let pads = c.i64s(OpId::MUL, &[b]);
            drop(rest);
            let sum = c.i64s(OpId::ADD, &[b]);
            drop(kept);
            drop(pads);
            drop(next.replace(sum));
        }
        let len = ids.size(1);
        ids = c.i64s(OpId::CAT, &[b, len + 1]);
        let done = c.stopped(b);
        let not = c.bools(OpId::BITWISE, &[b]);
        drop(done);
        let left = c.i64s(OpId::BITWISE, &[b]);
        drop(not);
        unfinished = left;
        let max = ops::max(c.cx, &unfinished);
        let zero = c.bools(OpId::EQ, &[]);
        drop(max);
        // 5.x takes the answer to the host
        finished = (!c.five).then_some(zero);
        drop(logits);
    }
    // locals in the order of their first assignment
    kw.release();
    drop(finished);
    drop(unfinished);
    drop(inputs);
    drop(scores);
    drop(probabilities);
    drop(next);
    ids
}

/// `TopKLogitsWarper` (logits_process.py).
fn top_k(c: &Calls, scores: &Tensor) -> Tensor {
    let (values, indices) = ops::topk(c.cx, scores, TOP_K.min(scores.size(-1)));
    drop(indices);
    let below = c.bools(OpId::COMPARE, &[scores.size(0), scores.size(1)]);
    drop(values);
    let out = ops::plain(c.cx, OpId::MASKED_FILL, scores, ScalarType::F32);
    drop(below);
    out
}

/// `torch.multinomial(probs, 1).squeeze(1)`: three questions to the device, then an exponential race
/// (torch 2.11, aten/src/ATen/native/Distributions.cpp, multinomial_out).
pub fn multinomial(c: &Calls, probabilities: Option<&Tensor>) -> Tensor {
    let cx = c.cx;
    let (rows, vocab) = probabilities.map_or((0, 0), |p| (p.size(0), p.size(1)));
    let out = c.i64s(OpId::ARGMAX, &[rows, 1]);
    if let Some(p) = probabilities {
        let flag = || c.bools(OpId::COMPARE, &[]);
        let max = ops::max(cx, p);
        let finite = flag();
        let min = ops::max(cx, p);
        let positive = flag();
        let valid = flag();
        drop(positive);
        drop(min);
        drop(finite);
        drop(max);
        let sums = ops::sum(cx, p, &[1], false);
        let zero = c.bools(OpId::EQ, &[rows]);
        let any = ops::all(cx, &zero);
        drop(zero);
        drop(sums);
        drop(flag());
        let race = cx.empty(OpId::EXP, Shape::new(&[rows, vocab]), p.dtype);
        drop(race);
        drop(any);
        drop(valid);
    }
    out
}
