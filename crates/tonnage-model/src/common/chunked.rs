//! Cross entropy by chunks of the sequence, as a script writes it around a model's body and head: torchtune 0.6.1,
//! modules/loss/ce_chunked_output_loss.py (`CEWithChunkedOutputLoss`) over `[head(h) for h in hidden.chunk(n, dim=1)]`. Only one
//! chunk's fp32 logits exist at a time, but every chunk keeps its log-probabilities for backward
//! (tools/record_training.py spells the script out; case `llama-tiny-plain-bf16-chunked-loss`).

use crate::layers::Linear;
use crate::run::Run;
use tonnage_sim::ops;
use tonnage_sim::{OpId, ScalarType, Shape, Tensor};

/// The loss of hidden states `h` [B, S, H] for labels [B, S].
pub fn causal_lm(m: &Run, head: &Linear, h: &Tensor, labels: &Tensor, chunks: u64) -> Tensor {
    let cx = &m.cx;
    let (b, s) = (h.size(0), h.size(1));
    let parts = ops::chunk(cx, h, chunks, 1);
    let logits: Vec<Tensor> = parts.iter().map(|x| head.forward(m, x)).collect();
    parts.into_iter().for_each(drop);
    debug_assert_eq!(labels.numel(), b * s);
    let padded = cx.empty(OpId::PAD, Shape::new(&[b, s + 1]), ScalarType::I64);
    let labels = ops::contiguous(cx, &ops::slice(cx, &padded, 1, 1, s));
    drop(padded);
    let loss = compute(m, &logits, &labels, chunks);
    drop(labels);
    drop_list(logits);
    loss
}

/// A Python list: the last element goes first.
fn drop_list(mut v: Vec<Tensor>) {
    while let Some(t) = v.pop() {
        drop(t);
    }
}

/// `CEWithChunkedOutputLoss.forward`.
fn compute(m: &Run, logits: &[Tensor], labels: &Tensor, chunks: u64) -> Tensor {
    let cx = &m.cx;
    let mask = ops::compare_scalar(cx, OpId::NE, labels);
    let count = ops::sum(cx, &mask, &[], false);
    drop(mask);
    let flat = |t: &Tensor| ops::reshape(cx, t, Shape::new(&[t.numel()]));
    let labels: Vec<Tensor> = ops::chunk(cx, labels, chunks, 1).iter().map(flat).collect();
    let rows = |x: &Tensor| {
        let v = x.size(-1);
        ops::reshape(cx, x, Shape::new(&[x.numel() / v, v]))
    };
    let logits: Vec<Tensor> = logits.iter().map(rows).collect();
    let mut total: Option<Tensor> = None;
    for (x, t) in logits.iter().zip(&labels) {
        let wide = ops::to_dtype(cx, x, ScalarType::F32);
        let loss = ops::cross_entropy(cx, &wide, t, ops::Reduction::Sum);
        drop(wide);
        total = Some(match total.take() {
            None => ops::add_scalar(cx, &loss),
            Some(sum) => ops::add_(cx, sum, &loss),
        });
    }
    let total = total.expect("at least one chunk");
    let mean = ops::div(cx, &total, &count);
    drop_list(logits);
    drop_list(labels);
    drop(count);
    drop(total);
    mean
}
