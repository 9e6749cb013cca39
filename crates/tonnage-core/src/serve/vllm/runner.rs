//! What the model runner keeps beside the model, and its two sampler passes (vLLM 0.33.0, `v1/worker/gpu/{model_runner,states,input_batch,buffer_utils}.py`,
//! `v1/worker/gpu/sample/*.py`, FlashInfer 0.7.2 `sampling.py`). Checked by the figures of `groundtruth/vllm-dev.jsonl` to the byte.

use super::device::{Device, Tensor};

/// Buffers of the runner's constructor for `n` requests and `t` tokens.
pub(super) fn buffers(d: &Device, n: u64, t: u64) -> Vec<Tensor> {
    [
        4 * n,
        4 * n,
        8 * n,
        4 * n,
        4 * t,
        8 * t,
        t,
        4 * (n + 1),
        4 * n,
        4 * n,
    ]
    .map(|b| d.tensor(b))
    .into()
}

/// Request state of the sampler: penalties, logit bias, bad words, structured outputs.
pub(super) fn sampler_state(d: &Device, n: u64, vocab: u64) -> Vec<Tensor> {
    let mask = 4 * n * vocab.div_ceil(32);
    [
        mask,
        4 * n * vocab,
        4096 * n,
        4096 * n,
        4096 * n,
        512 * n,
        4096 * n,
        516 * n,
        512 * n,
        4 * n,
        mask,
    ]
    .map(|b| d.tensor(b))
    .into()
}

/// The tensors of a dummy batch (`InputBatch.make_dummy`).
pub(super) fn dummy(d: &Device, n: u64) -> [Tensor; 4] {
    let ids = d.tensor(8 * n);
    let lens = d.tensor(4 * n);
    drop(d.tensor(1023));
    [ids, lens, d.tensor(4 * n), d.tensor(4 * (n + 1))]
}

/// Columns that the Gumbel sampler's first stage reduces to (`sample/gumbel.py`: blocks of 1,024 of the vocabulary).
fn gumbel(d: &Device, n: u64, vocab: u64) {
    let blocks = vocab.div_ceil(1024);
    let stage = (d.tensor(8 * n * blocks), d.tensor(4 * n * blocks));
    let out = (d.tensor(8 * n), d.tensor(8 * n));
    drop((stage, out));
}

/// Two passes over 16-bit `logits`; the second sets every option, so that FlashInfer's buffers are made too. Returns the 1 MiB that
/// FlashInfer keeps.
pub(super) fn sampler(d: &Device, n: u64, vocab: u64) -> Tensor {
    let batch = dummy(d, n);
    let ids = (d.tensor(8 * n), d.tensor(4 * n));
    gumbel(d, n, vocab);
    drop((ids, batch));
    let batch = dummy(d, n);
    let ids = (d.tensor(8 * n), d.tensor(4 * n));
    let full = d.tensor(4 * n * vocab);
    let limits = (d.tensor(4 * n), d.tensor(4 * n));
    let cache = d.tensor(1 << 20);
    let masked = d.tensor(4 * n * vocab);
    let probabilities = d.tensor(4 * n * vocab);
    let small = (d.tensor(4 * n), d.tensor(n));
    drop((small, probabilities, masked, limits, full, ids, batch));
    cache
}
