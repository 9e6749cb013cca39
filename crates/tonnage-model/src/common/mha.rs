//! `nn.MultiheadAttention` and the encoder and decoder layers of `nn.Transformer`
//! (torch 2.11, torch/nn/modules/activation.py and transformer.py, torch/nn/functional.py, multi_head_attention_forward).
//! Only training is covered: evaluation without gradients may take fused kernels.

use crate::layers::{Dropout, LayerNorm, Linear};
use crate::net::{ModuleId, NetBuilder, ParamId};
use crate::run::Run;
use tonnage_sim::ops::{self, SdpaArgs};
use tonnage_sim::{Cx, OpId, Shape, Tensor};

/// `nn.MultiheadAttention(width, heads, dropout, batch_first)`, called with `need_weights=False`.
#[derive(Clone, Copy, Debug)]
pub struct Mha {
    id: ModuleId,
    weight: ParamId,
    bias: ParamId,
    out: Linear,
    heads: u64,
    dropout: f64,
    batch_first: bool,
}

impl Mha {
    pub fn new(b: &mut NetBuilder, name: &str, width: u64, c: &LayerConfig) -> Mha {
        b.scope(name, |b| Mha {
            id: b.id(),
            weight: b.param("in_proj_weight", &[3 * width, width]),
            bias: b.param("in_proj_bias", &[3 * width]),
            out: Linear::new(b, "out_proj", width, width, true),
            heads: c.heads,
            dropout: c.dropout,
            batch_first: c.batch_first,
        })
    }

    /// Of a module that is registered already, batch first.
    pub fn of(
        id: ModuleId,
        weight: ParamId,
        bias: ParamId,
        out: Linear,
        heads: u64,
        dropout: f64,
    ) -> Mha {
        Mha {
            id,
            weight,
            bias,
            out,
            heads,
            dropout,
            batch_first: true,
        }
    }

    /// Attention of `query` to `memory`, or to itself; `padding` is an additive mask [B, S] over the keys.
    pub fn forward(
        &self,
        m: &Run,
        query: &Tensor,
        memory: Option<&Tensor>,
        padding: Option<&Tensor>,
    ) -> Tensor {
        m.within(self.id, || {
            if !self.batch_first {
                return self.attend(m, query, memory, padding);
            }
            let q = ops::transpose(&m.cx, query, 1, 0);
            let kv = memory.map(|t| ops::transpose(&m.cx, t, 1, 0));
            let y = self.attend(m, &q, kv.as_ref(), padding);
            ops::transpose(&m.cx, &y, 1, 0)
        })
    }

    /// `F.multi_head_attention_forward`: [L, B, E], [S, B, E] -> [L, B, E].
    fn attend(
        &self,
        m: &Run,
        query: &Tensor,
        memory: Option<&Tensor>,
        padding: Option<&Tensor>,
    ) -> Tensor {
        let cx = &m.cx;
        let (l, b, e) = (query.size(0), query.size(1), query.size(2));
        let (h, d) = (self.heads, e / self.heads);
        let s = memory.map_or(l, |t| t.size(0));
        let (w, bias) = (m.weight(self.weight), m.weight(self.bias));
        let [mut q, mut k, mut v] = match memory {
            None => {
                let p = packed(cx, &ops::linear(cx, query, w, Some(bias)), 3);
                [0, 1, 2].map(|_| ops::select(cx, &p, 0))
            }
            Some(t) => {
                let w2 = ops::split(cx, w, &[e, 2 * e], 0);
                let b2 = ops::split(cx, bias, &[e, 2 * e], 0);
                let q = ops::linear(cx, query, &w2[0], Some(&b2[0]));
                let p = packed(cx, &ops::linear(cx, t, &w2[1], Some(&b2[1])), 2);
                [q, ops::select(cx, &p, 0), ops::select(cx, &p, 0)]
            }
        };
        let heads = |t: &Tensor, n: u64| {
            let t = ops::view(cx, t, Shape::new(&[n, b * h, d]));
            ops::transpose(cx, &t, 0, 1)
        };
        q = heads(&q, l);
        k = heads(&k, s);
        v = heads(&v, s);
        let mask = padding.map(|p| {
            let p = ops::view(cx, p, Shape::new(&[b, 1, 1, s]));
            let p = ops::expand(cx, &p, Shape::new(&[b, h, 1, s]));
            let p = ops::reshape(cx, &p, Shape::new(&[b * h, 1, s]));
            // one row of one head looks like a mask for all of them
            if b * h == 1 {
                ops::unsqueeze(cx, &p, 0)
            } else {
                ops::view(cx, &p, Shape::new(&[b, h, 1, s]))
            }
        });
        q = ops::view(cx, &q, Shape::new(&[b, h, l, d]));
        k = ops::view(cx, &k, Shape::new(&[b, h, s, d]));
        v = ops::view(cx, &v, Shape::new(&[b, h, s, d]));
        let args = SdpaArgs {
            mask: mask.clone(),
            dropout: if m.training { self.dropout } else { 0.0 },
            ..SdpaArgs::default()
        };
        let mut o = ops::sdpa(cx, &q, &k, &v, &args);
        drop(args);
        o = {
            let c = ops::contiguous(cx, &ops::permute(cx, &o, &[2, 0, 1, 3]));
            ops::view(cx, &c, Shape::new(&[b * l, e]))
        };
        o = m.plain_linear(self.out.0, &o);
        o = ops::view(cx, &o, Shape::new(&[l, b, e]));
        drop(mask);
        drop(q);
        drop(k);
        drop(v);
        o
    }
}

/// The projections made in one product, one after the other in memory: [n, L, B, E].
fn packed(cx: &Cx, p: &Tensor, n: u64) -> Tensor {
    let (l, b, e) = (p.size(0), p.size(1), p.size(2) / n);
    let p = ops::view(cx, p, Shape::new(&[l, b, n, e]));
    let p = ops::unsqueeze(cx, &p, 0);
    let p = ops::transpose(cx, &p, 0, -2);
    let p = ops::squeeze(cx, &p, -2);
    ops::contiguous(cx, &p)
}

/// A boolean key padding mask as numbers to add (`F._canonical_mask`).
pub fn canonical_mask(cx: &Cx, mask: &Tensor, like: &Tensor) -> Tensor {
    ops::plain(cx, OpId::ZEROS_LIKE, mask, like.dtype)
}

/// The activation between the two feed-forward products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    Relu,
    Gelu,
}

/// What `nn.TransformerEncoderLayer` and `nn.TransformerDecoderLayer` take; normalisation comes after the blocks.
#[derive(Clone, Copy, Debug)]
pub struct LayerConfig {
    pub heads: u64,
    pub feed_forward: u64,
    pub dropout: f64,
    pub activation: Activation,
    pub batch_first: bool,
}

/// One layer of `nn.Transformer`; a decoder's has attention to the memory too.
pub struct TransformerLayer {
    id: ModuleId,
    attention: Mha,
    cross: Option<Mha>,
    linear1: Linear,
    dropout: Dropout,
    linear2: Linear,
    norms: Vec<LayerNorm>,
    dropouts: Vec<Dropout>,
    activation: Activation,
}

impl TransformerLayer {
    pub fn new(
        b: &mut NetBuilder,
        name: &str,
        width: u64,
        c: &LayerConfig,
        decoder: bool,
    ) -> TransformerLayer {
        b.scope(name, |b| {
            let id = b.id();
            let attention = Mha::new(b, "self_attn", width, c);
            let cross = decoder.then(|| Mha::new(b, "multihead_attn", width, c));
            let linear1 = Linear::new(b, "linear1", width, c.feed_forward, true);
            let dropout = Dropout::new(b, "dropout", c.dropout);
            let linear2 = Linear::new(b, "linear2", c.feed_forward, width, true);
            let n = if decoder { 3 } else { 2 };
            let norms = (1..=n)
                .map(|i| LayerNorm::new(b, &format!("norm{i}"), width, true, true))
                .collect();
            let dropouts = (1..=n)
                .map(|i| Dropout::new(b, &format!("dropout{i}"), c.dropout))
                .collect();
            TransformerLayer {
                id,
                attention,
                cross,
                linear1,
                dropout,
                linear2,
                norms,
                dropouts,
                activation: c.activation,
            }
        })
    }

    /// A block, its dropout, the residual and the norm after it.
    fn residual(
        &self,
        m: &Run,
        i: usize,
        x: &Tensor,
        block: impl FnOnce(&Tensor) -> Tensor,
    ) -> Tensor {
        let sum = {
            let inner = block(x);
            let dropped = self.dropouts[i].forward(m, &inner);
            drop(inner);
            ops::add(&m.cx, x, &dropped)
        };
        self.norms[i].forward(m, &sum)
    }

    fn feed_forward(&self, m: &Run, x: &Tensor) -> Tensor {
        let mut h = self.linear1.forward(m, x);
        h = match self.activation {
            Activation::Relu => ops::relu(&m.cx, &h),
            Activation::Gelu => ops::gelu(&m.cx, &h),
        };
        h = self.dropout.forward(m, &h);
        self.linear2.forward(m, &h)
    }

    pub fn forward(
        &self,
        m: &Run,
        x: &Tensor,
        memory: Option<&Tensor>,
        padding: Option<&Tensor>,
    ) -> Tensor {
        m.within(self.id, || {
            let mut i = 0;
            let mut x = self.residual(m, i, x, |x| self.attention.forward(m, x, None, padding));
            if let (Some(cross), Some(memory)) = (&self.cross, memory) {
                i += 1;
                x = self.residual(m, i, &x, |x| cross.forward(m, x, Some(memory), None));
            }
            self.residual(m, i + 1, &x, |x| self.feed_forward(m, x))
        })
    }
}
