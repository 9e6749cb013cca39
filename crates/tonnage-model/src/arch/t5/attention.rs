//! T5's attention: relative position buckets, the decoder's cache, eager and SDPA.

use super::super::Caches;
use super::{Config, Context};
use crate::common;
use crate::layers::{Embedding, Linear};
use crate::net::{ModuleId, NetBuilder};
use crate::run::{Attention, Run};
use std::cell::RefCell;
use std::rc::Rc;
use tonnage_sim::ops;
use tonnage_sim::{OpId, ScalarType, Shape, Tensor};

/// An `EncoderDecoderCache` that is filled once: keys and values of each layer.
#[derive(Default)]
pub(super) struct Cache {
    own: RefCell<Vec<(Tensor, Tensor)>>,
    cross: RefCell<Vec<(Tensor, Tensor)>>,
}

/// The cache of a call.
#[derive(Clone)]
pub(super) enum Kept {
    /// Of one call alone, as in training.
    Once(Rc<Cache>),
    /// Of a generation.
    Growing(Caches),
}

impl Cache {
    /// `DynamicCache.update` at a layer's first call: both are joined to nothing, into new tensors.
    fn update(&self, m: &Run, cross: bool, k: Tensor, v: Tensor) -> (Tensor, Tensor) {
        let k2 = ops::cat(&m.cx, &[&k], -2);
        let v2 = ops::cat(&m.cx, &[&v], -2);
        let layers = if cross { &self.cross } else { &self.own };
        layers.borrow_mut().push((k2.clone(), v2.clone()));
        drop(k);
        drop(v);
        (k2, v2)
    }

    /// Everything in the order in which it dies: the list of layers goes last to first.
    pub(super) fn release(&self) -> Vec<Tensor> {
        let layers = |l: &RefCell<Vec<(Tensor, Tensor)>>| l.take().into_iter().rev();
        layers(&self.own)
            .chain(layers(&self.cross))
            .flat_map(|(k, v)| [k, v])
            .collect()
    }
}

/// `T5Attention`.
pub(super) struct Attn {
    id: ModuleId,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    bias: Option<Embedding>,
    heads: u64,
    d_kv: u64,
    dropout: f64,
}

impl Attn {
    pub(super) fn new(b: &mut NetBuilder, name: &str, c: &Config, biased: bool) -> Attn {
        let inner = c.num_heads * c.d_kv;
        b.scope(name, |b| Attn {
            q: Linear::new(b, "q", c.d_model, inner, false),
            k: Linear::new(b, "k", c.d_model, inner, false),
            v: Linear::new(b, "v", c.d_model, inner, false),
            o: Linear::new(b, "o", inner, c.d_model, false),
            bias: biased.then(|| {
                Embedding::new(
                    b,
                    "relative_attention_bias",
                    c.relative_attention_num_buckets,
                    c.num_heads,
                )
            }),
            heads: c.num_heads,
            d_kv: c.d_kv,
            dropout: c.dropout_rate,
            id: b.id(),
        })
    }

    /// Context through `o`, the position bias for the next layers, and the probabilities of 5.x's eager attention.
    pub(super) fn forward(
        &self,
        m: &Run,
        x: &Tensor,
        context: &Context,
        bias: Option<&Tensor>,
        cross: bool,
    ) -> (Tensor, Tensor, Option<Tensor>) {
        m.within(self.id, || {
            let q = common::attention::split_heads(m, &self.q, x, self.d_kv);
            let states = if cross {
                context
                    .encoder
                    .as_ref()
                    .expect("cross attention has an encoder")
            } else {
                x
            };
            let made = match &context.cache {
                Some(Kept::Growing(c)) if cross => c.cross.kept(self.id),
                _ => None,
            };
            let (k, v) = made.unwrap_or_else(|| {
                let k = common::attention::split_heads(m, &self.k, states, self.d_kv);
                let v = common::attention::split_heads(m, &self.v, states, self.d_kv);
                match &context.cache {
                    None => (k, v),
                    Some(Kept::Once(cache)) => cache.update(m, cross, k, v),
                    Some(Kept::Growing(c)) => {
                        let cache = if cross { &c.cross } else { &c.own };
                        let all = cache.update(m, self.id, None, &k, &v);
                        drop(k);
                        drop(v);
                        all
                    }
                }
            });
            let mask = if cross {
                context.encoder_mask.as_ref()
            } else {
                context.mask.as_ref()
            };
            if m.options.stack.transformers_5() {
                self.attend_5(m, x, (q, k, v), context, mask, bias, cross)
            } else {
                self.attend_4(m, x, (q, k, v), context, mask, bias)
            }
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn attend_5(
        &self,
        m: &Run,
        x: &Tensor,
        (q, k, v): (Tensor, Tensor, Tensor),
        context: &Context,
        mask: Option<&Tensor>,
        bias: Option<&Tensor>,
        cross: bool,
    ) -> (Tensor, Tensor, Option<Tensor>) {
        let cx = &m.cx;
        let (sq, sk) = (q.size(2), k.size(2));
        let bias = match bias {
            Some(b) => b.clone(),
            None => self.position_bias(m, sq, sk, q.dtype, context),
        };
        let p = if m.training { self.dropout } else { 0.0 };
        let causal = context.encoder.is_some() && !cross && sq > 1 && mask.is_none();
        let (mut o, weights) = if m.options.attention == Attention::Eager {
            let raw = ops::matmul(cx, &q, &ops::transpose(cx, &k, 2, 3));
            let mut w = ops::mul_scalar(cx, &raw);
            drop(raw);
            w = ops::add(cx, &w, &bias);
            if let Some(mask) = mask {
                w = ops::add(cx, &w, mask);
            }
            w = ops::softmax(cx, &w, None);
            w = ops::dropout(cx, &w, p);
            let o = ops::matmul(cx, &w, &v);
            let o = ops::contiguous(cx, &ops::transpose(cx, &o, 1, 2));
            (o, Some(w))
        } else {
            let additive = if causal {
                causal_bias(m, &bias, sq, sk)
            } else {
                bias.clone()
            };
            let o = common::attention::attend(m, &q, &k, &v, Some(&additive), self.dropout, false);
            drop(additive);
            (o, None)
        };
        o = ops::reshape(cx, &o, x.shape.with(-1, self.heads * self.d_kv));
        o = self.o.forward(m, &o);
        drop(q);
        drop(k);
        drop(v);
        (o, bias, weights)
    }

    fn attend_4(
        &self,
        m: &Run,
        x: &Tensor,
        (q, k, v): (Tensor, Tensor, Tensor),
        context: &Context,
        mask: Option<&Tensor>,
        bias: Option<&Tensor>,
    ) -> (Tensor, Tensor, Option<Tensor>) {
        let cx = &m.cx;
        let (sq, sk) = (q.size(2), k.size(2));
        let mut scores = ops::matmul(cx, &q, &ops::transpose(cx, &k, 3, 2));
        let mut length = None;
        let bias = match bias {
            Some(b) => b.clone(),
            None => {
                if self.bias.is_some() {
                    length = Some(cx.empty(OpId::ADD, Shape::new(&[]), ScalarType::I64));
                }
                let mut b = self.position_bias(m, sq, sk, scores.dtype, context);
                if self.bias.is_some() {
                    // `[:, :, -Sq:, :]`: a negative start is a slice whatever it takes
                    b = ops::narrow(cx, &b, 2, 0, sq);
                }
                match mask {
                    Some(mask) => ops::add(cx, &b, &ops::alias(cx, mask)),
                    None => b,
                }
            }
        };
        scores = ops::add_(cx, scores, &bias);
        let wide = ops::to_dtype(cx, &scores, ScalarType::F32);
        let soft = ops::softmax(cx, &wide, None);
        drop(wide);
        let mut w = ops::to_dtype(cx, &soft, scores.dtype);
        drop(soft);
        w = ops::dropout(cx, &w, if m.training { self.dropout } else { 0.0 });
        let mut o = ops::matmul(cx, &w, &v);
        o = ops::contiguous(cx, &ops::transpose(cx, &o, 1, 2));
        o = ops::view(cx, &o, x.shape.with(-1, self.heads * self.d_kv));
        o = self.o.forward(m, &o);
        drop(q);
        drop(k);
        drop(v);
        drop(scores);
        drop(length);
        drop(w);
        (o, bias, None)
    }

    /// The learned bias [1, H, Sq, Sk], or zeros where this attention has none.
    fn position_bias(
        &self,
        m: &Run,
        sq: u64,
        sk: u64,
        dtype: ScalarType,
        context: &Context,
    ) -> Tensor {
        let cx = &m.cx;
        let Some(table) = &self.bias else {
            let shape = Shape::new(&[1, self.heads, sq, sk]);
            let zeros = cx.empty(OpId::ZEROS, shape, dtype);
            // so that a checkpointed layer's input wants a gradient
            return if m.options.checkpoint.is_some() && m.training {
                cx.require_grad_kept(zeros)
            } else {
                zeros
            };
        };
        let long = ScalarType::I64;
        let row = |n: u64| cx.empty(OpId::ARANGE, Shape::new(&[n]), long);
        let mine = context.positions.is_none().then(|| {
            let raw = row(sq);
            let sum = ops::plain(cx, OpId::ADD, &raw, long);
            drop(raw);
            sum
        });
        let memory = row(sk);
        let relative = cx.empty(OpId::SUB, Shape::new(&[sq, sk]), long);
        let buckets = buckets(m, &relative, context.encoder.is_none());
        let values = table.forward(m, &buckets);
        let values = ops::permute(cx, &values, &[2, 0, 1]);
        let values = ops::unsqueeze(cx, &values, 0);
        drop(mine);
        drop(memory);
        drop(relative);
        drop(buckets);
        values
    }
}

/// `_relative_position_bucket` for int64 [Sq, Sk].
fn buckets(m: &Run, relative: &Tensor, bidirectional: bool) -> Tensor {
    let cx = &m.cx;
    let long = |op| ops::plain(cx, op, relative, ScalarType::I64);
    let float = |op| ops::plain(cx, op, relative, ScalarType::F32);
    let less = || ops::plain(cx, OpId::COMPARE, relative, ScalarType::Bool);
    let (so_far, distance) = if bidirectional {
        let positive = less();
        let number = long(OpId::TO_COPY);
        drop(positive);
        let offset = long(OpId::MUL);
        drop(number);
        let sum = long(OpId::ADD);
        drop(offset);
        (Some(sum), long(OpId::ABS))
    } else {
        let zeros = long(OpId::ZEROS_LIKE);
        let least = long(OpId::COMPARE);
        drop(zeros);
        let negative = long(OpId::NEG);
        drop(least);
        (None, negative)
    };
    let small = less();
    let mut x = float(OpId::TO_COPY);
    for op in [OpId::DIV, OpId::LOG, OpId::DIV, OpId::MUL] {
        x = float(op);
    }
    let whole = long(OpId::TO_COPY);
    drop(x);
    let sum = long(OpId::ADD);
    drop(whole);
    let full = long(OpId::FULL);
    let large = long(OpId::COMPARE);
    drop(full);
    drop(sum);
    let chosen = long(OpId::WHERE);
    let out = match so_far {
        Some(sum) => sum,
        None => long(OpId::ADD),
    };
    drop(chosen);
    drop(distance);
    drop(small);
    drop(large);
    out
}

/// The bias where a query may look, the least number elsewhere (5.x: integrations/sdpa_attention.py, create_position_bias_mask).
fn causal_bias(m: &Run, bias: &Tensor, sq: u64, sk: u64) -> Tensor {
    let cx = &m.cx;
    let row = |n: u64| cx.empty(OpId::ARANGE, Shape::new(&[n]), ScalarType::I64);
    let (rows, columns) = (row(sq), row(sk));
    let seen = cx.empty(OpId::COMPARE, Shape::new(&[1, 1, sq, sk]), ScalarType::Bool);
    drop(rows);
    drop(columns);
    let least = cx.empty(OpId::SCALAR_TENSOR, Shape::new(&[]), bias.dtype);
    let out = ops::where_(cx, &seen, bias, &least);
    drop(least);
    out
}

/// 4.57: the mask of ones [B, S] fp32 that the decoder makes for itself, and `_update_causal_mask`'s [B, 1, S, S].
pub(super) fn causal_mask_4(m: &Run, b: u64, s: u64, dtype: ScalarType) -> (Tensor, Tensor) {
    let cx = &m.cx;
    let ones = cx.empty(OpId::FULL, Shape::new(&[b, s]), ScalarType::F32);
    let square = Shape::new(&[s, s]);
    let full = cx.empty(OpId::FULL, square, dtype);
    let triangle = cx.empty(OpId::FULL, square, dtype);
    drop(full);
    let row = cx.empty(OpId::ARANGE, Shape::new(&[s]), ScalarType::I64);
    let later = cx.empty(OpId::COMPARE, square, ScalarType::Bool);
    drop(row);
    drop(later);
    let whole = Shape::new(&[b, 1, s, s]);
    let mask = cx.empty(OpId::CLONE, whole, dtype);
    drop(triangle);
    let sum = cx.empty(OpId::ADD, whole, ops::promote_types(dtype, ScalarType::F32));
    let padding = cx.empty(OpId::EQ, whole, ScalarType::Bool);
    drop(sum);
    drop(cx.empty(OpId::MASKED_FILL, whole, dtype));
    drop(padding);
    (ones, mask)
}

/// 4.57: `(1 - mask) * min` as [B, 1, 1, S].
pub(super) fn inverted_mask_4(m: &Run, mask: &Tensor, dtype: ScalarType) -> Tensor {
    let cx = &m.cx;
    let shape = Shape::new(&[mask.size(0), 1, 1, mask.size(1)]);
    let number = cx.empty(OpId::TO_COPY, shape, dtype);
    let inverse = cx.empty(OpId::SUB, shape, dtype);
    let out = cx.empty(OpId::MUL, shape, dtype);
    drop(inverse);
    drop(number);
    out
}
