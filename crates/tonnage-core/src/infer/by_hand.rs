//! The loop that models outside the libraries carry themselves: crop the tokens to the position table, call, take the last logits, draw,
//! append. There is no cache, and the call makes logits of every position.
//!
//! The case `gpt-per-head-generate-fp32` verifies every event.

use super::call::Calls;
use super::sample::multinomial;
use tonnage_model::arch::Batch;
use tonnage_sim::timeline::{Category, Phase};
use tonnage_sim::{OpId, Tensor, ops};

/// Runs the prompt and the new tokens; `block` is the most tokens of one call.
pub fn run(c: &Calls, block: u64) {
    let (cx, b) = (c.cx, c.rows);
    cx.mark(0, 0, Phase::Input);
    let prompt = c.i64s(OpId::INPUT, &[b, c.prompt]);
    cx.tag(&prompt, Category::Inputs);
    let mut ids = prompt.clone();
    let mut cropped: Option<Tensor> = None;
    let mut logits: Option<Tensor> = None;
    let mut probabilities: Option<Tensor> = None;
    let mut next: Option<Tensor> = None;
    for i in 0..c.how.new {
        let (known, s) = (ids.size(1), ids.size(1).min(block));
        let view = ops::slice(cx, &ids, 1, known - s, s);
        drop(cropped.replace(view));
        let phase = if i == 0 {
            Phase::Prefill
        } else {
            Phase::Decode
        };
        cx.mark(0, 0, phase);
        let batch = Batch {
            input_ids: cropped.clone(),
            ..Batch::default()
        };
        let all = c.arch.forward(c.run, &batch).logits;
        drop(logits.take());
        // `logits[:, -1, :]` keeps the logits of all positions
        logits = all.map(|l| ops::slice(cx, &l, 1, s - 1, 1));
        let Some(l) = &logits else { break };
        let last = ops::select(cx, l, 1);
        let p = ops::softmax(cx, &last, None);
        drop(last);
        drop(probabilities.replace(p));
        let picked = multinomial(c, probabilities.as_ref());
        drop(next.replace(picked));
        ids = c.i64s(OpId::CAT, &[b, known + 1]);
    }
    // locals in the order of their first assignment
    drop(cropped);
    drop(logits);
    drop(probabilities);
    drop(next);
    cx.mark(1, 0, Phase::End);
    drop(ids);
    drop(prompt);
}
