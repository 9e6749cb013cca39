//! Cut cross entropy: the logits never exist, not even a chunk of them; the kernels keep one logarithm of a sum per token
//! (cut-cross-entropy 25.1.1, cce.py, cce_lse_forward.py, cce_backward.py, indexed_dot.py, utils.py), called as
//! `linear_cross_entropy(hidden, head.weight, labels, shift=True)` (case `llama-tiny-plain-bf16-cut-loss`). Every label is taken to
//! count: ignored ones make the lists of tokens shorter.

use crate::run::Run;
use std::cell::RefCell;
use tonnage_sim::autograd::{CustomBackward, Grads, Saved};
use tonnage_sim::kernels;
use tonnage_sim::ops;
use tonnage_sim::{Cx, OpId, ScalarType, Shape, Tensor};

/// The function object keeps its parameters (targets, list of valid tokens) as long as the graph lives.
struct Backward {
    _params: RefCell<[Tensor; 2]>,
}

fn numbers(cx: &Cx, op: OpId, n: &[u64], dtype: ScalarType) -> Tensor {
    cx.empty(op, Shape::new(n), dtype)
}

impl CustomBackward for Backward {
    fn backward(&self, cx: &Cx, s: &Saved, _: &mut Grads) -> Grads {
        let (e, c, valids) = (s.tensor(0), s.tensor(1), s.tensor(4));
        // the vocabulary in the order of its mean logits, compiled in the original: a sort all the same
        let (values, indices) = ops::sort(cx, s.tensor(5));
        drop(values);
        let ordering = ops::plain(cx, OpId::TO_COPY, &indices, ScalarType::I32);
        drop(indices);
        let de = cx.empty_like(OpId::ZEROS_LIKE, e, e.dtype);
        let mut dc = s.need[1].then(|| cx.empty_like(OpId::ZEROS_LIKE, c, e.dtype));
        let width = c.size(1).div_ceil(64);
        let locks = |n: u64| {
            let shape = [n.div_ceil(width), width];
            numbers(cx, OpId::ZEROS, &shape, ScalarType::I32)
        };
        let e_locks = locks(valids.numel());
        let c_locks = locks(c.size(0));
        if let Some(g) = &mut dc
            && g.dtype != c.dtype
        {
            *g = ops::plain(cx, OpId::TO_COPY, g, c.dtype);
        }
        drop(e_locks);
        drop(c_locks);
        drop(ordering);
        let mut out = Grads::new();
        out.push(Some(de));
        out.push(dc);
        out
    }
}

/// The loss of 16-bit hidden states `h` [B, S, H] and a head `w` [V, H] for labels [B, S].
pub fn causal_lm(m: &Run, h: &Tensor, w: &Tensor, labels: &Tensor) -> Tensor {
    let cx = &m.cx;
    let (b, s, width) = (h.size(0), h.size(1), h.size(2));
    let valids = valid_tokens(cx, labels, b, s);
    let e = ops::view(cx, h, Shape::new(&[b * s, width]));
    let targets = ops::view(cx, labels, Shape::new(&[b * s]));
    let mut n = cx.node(OpId::NLL_LOSS, &[&e, w]);
    let tokens = valids.numel();
    // forward: the logits; backward: the logits again, and two gradients (counted here: they follow at once)
    for _ in 0..1 + 3 * u64::from(n.active()) {
        cx.product_work(OpId::MM, e.dtype, [1, tokens, w.size(0), w.size(1)]);
    }
    let lse = numbers(cx, OpId::FULL, &[tokens], ScalarType::F32);
    let locks = numbers(cx, OpId::FULL, &[tokens.div_ceil(128)], ScalarType::I32);
    let means = n
        .active()
        .then(|| numbers(cx, OpId::FULL, &[w.size(0)], ScalarType::F32));
    drop(locks);
    let nll = numbers(cx, OpId::ZEROS, &[tokens], ScalarType::F32);
    let loss = cx.with_grad(false, || ops::mean(cx, &nll, &[], false));
    for t in [&e, w, &lse, &targets, &valids] {
        n.save(cx, t);
    }
    match &means {
        Some(t) => n.save(cx, t),
        None => n.skip(),
    }
    drop(lse);
    drop(means);
    drop(nll);
    let mut out = [loss];
    let params = RefCell::new([targets, valids]);
    n.finish_custom(cx, &mut out, Box::new(Backward { _params: params }));
    let [loss] = out;
    match &*m.items.borrow() {
        None => loss,
        Some(items) => ops::div(cx, &loss, items),
    }
}

/// `_build_flat_valids(targets, -100, shift=True)`: positions of the tokens that have a next one, int64 [B * (S - 1)].
fn valid_tokens(cx: &Cx, labels: &Tensor, b: u64, s: u64) -> Tensor {
    let next = ops::slice(cx, labels, 1, 1, s - 1);
    let counts = ops::compare_scalar(cx, OpId::NE, &next);
    let n = b * (s - 1);
    let steps = cx.script(n, |n, card| kernels::nonzero(*n, 2, *n, card));
    let shape = Shape::new(&[n, 2]);
    let found = cx.play(OpId::INDEX, &steps, |_| {
        (shape, shape.contiguous_strides(), ScalarType::I64)
    });
    drop(counts);
    let short = numbers(cx, OpId::TO_COPY, &[n, 2], ScalarType::I32);
    drop(found);
    // a sum of int32 is one of int64 copies
    let flat = numbers(cx, OpId::SUM, &[n], ScalarType::I64);
    drop(numbers(cx, OpId::TO_COPY, &[n, 2], ScalarType::I64));
    drop(short);
    flat
}
