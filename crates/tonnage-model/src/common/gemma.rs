//! What Gemma 2 and Gemma 3 share: the decoder layer with norms before and after each block, and the scaled embedding
//! (transformers 5.17 and 4.57.6, models/{gemma2,gemma3}/modeling_*.py). Cases: `gemma2-*` and `gemma3-*` of torch-trace-own.jsonl.

use super::{activation, activation::Activation, attention, rope};
use crate::error::ModelError;
use crate::layers::{Embedding, GemmaNorm, Linear};
use crate::net::{ModuleId, NetBuilder};
use crate::run::{Attention, Run};
use tonnage_sim::{Shape, Tensor, ops};

/// The sizes of a layer, in elements, and what it does.
#[derive(Clone, Copy)]
pub struct Dims {
    pub hidden: u64,
    pub intermediate: u64,
    pub heads: u64,
    pub kv_heads: u64,
    pub head_dim: u64,
    /// Of the four attention projections.
    pub bias: bool,
    /// Probability of attention's dropout.
    pub dropout: f64,
    /// Norms of query and key (Gemma 3).
    pub qk_norm: bool,
    /// Eager attention caps the scores (Gemma 2).
    pub soft_cap: bool,
    pub activation: Activation,
}

/// One decoder layer.
pub struct Layer {
    id: ModuleId,
    attn: ModuleId,
    mlp: ModuleId,
    act: ModuleId,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    qk_norm: Option<(GemmaNorm, GemmaNorm)>,
    gate: Linear,
    up: Linear,
    down: Linear,
    input_norm: GemmaNorm,
    post_attention_norm: GemmaNorm,
    pre_feed_forward_norm: GemmaNorm,
    post_feed_forward_norm: GemmaNorm,
    /// Tokens that the layer sees; None: all.
    window: Option<u64>,
    dims: Dims,
}

/// For each layer: does it see only a window? `types` as configured, else every `pattern`-th layer sees everything.
///
/// # Errors
/// Fewer types than layers, an unknown one, or a pattern of 0.
pub fn sliding_layers(
    types: Option<&[String]>,
    layers: u64,
    pattern: u64,
) -> Result<Vec<bool>, ModelError> {
    let Some(types) = types else {
        if pattern == 0 {
            return Err(ModelError::field("sliding_window_pattern", "0"));
        }
        return Ok((1..=layers).map(|i| !i.is_multiple_of(pattern)).collect());
    };
    if (types.len() as u64) < layers {
        let text = format!("{} entries for {layers} layers", types.len());
        return Err(ModelError::field("layer_types", text));
    }
    let one = |t: &String| match t.as_str() {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        _ => Err(ModelError::field(
            "layer_types",
            format!("`{t}`; known: full_attention, sliding_attention"),
        )),
    };
    types.iter().take(layers as usize).map(one).collect()
}

/// `Gemma*TextScaledWordEmbedding`: the scale is a buffer, cast to the weight's type.
pub fn scaled_embedding(m: &Run, embed: &Embedding, ids: &Tensor) -> Tensor {
    let cx = &m.cx;
    let Embedding(id, weight) = *embed;
    let y = m.within(id, || {
        let w = m.weight(weight);
        let rows = ops::embedding(cx, ids, w);
        let scale = ops::to_dtype(cx, &m.buffers[id.0 as usize][0], w.dtype);
        ops::mul(cx, &rows, &scale)
    });
    m.embedded(id, y)
}

impl Layer {
    /// Layer `i` of the module that is being built.
    pub fn new(b: &mut NetBuilder, i: usize, dims: Dims, window: Option<u64>) -> Layer {
        let (d, f, hd, bias) = (dims.hidden, dims.intermediate, dims.head_dim, dims.bias);
        let (qd, kd) = (dims.heads * hd, dims.kv_heads * hd);
        b.scope(&i.to_string(), |b| {
            let id = b.id();
            let (attn, q, k, v, o, qk_norm) = b.scope("self_attn", |b| {
                let q = Linear::new(b, "q_proj", d, qd, bias);
                let k = Linear::new(b, "k_proj", d, kd, bias);
                let v = Linear::new(b, "v_proj", d, kd, bias);
                let o = Linear::new(b, "o_proj", qd, d, bias);
                let norms = dims.qk_norm.then(|| {
                    let q_norm = GemmaNorm::new(b, "q_norm", hd);
                    (q_norm, GemmaNorm::new(b, "k_norm", hd))
                });
                (b.id(), q, k, v, o, norms)
            });
            let (mlp, gate, up, down, act) = b.scope("mlp", |b| {
                let gate = Linear::new(b, "gate_proj", d, f, false);
                let up = Linear::new(b, "up_proj", d, f, false);
                let down = Linear::new(b, "down_proj", f, d, false);
                (b.id(), gate, up, down, b.scope("act_fn", |b| b.id()))
            });
            let mut norm = |name| GemmaNorm::new(b, name, d);
            Layer {
                id,
                attn,
                mlp,
                act,
                q,
                k,
                v,
                o,
                qk_norm,
                gate,
                up,
                down,
                input_norm: norm("input_layernorm"),
                post_attention_norm: norm("post_attention_layernorm"),
                pre_feed_forward_norm: norm("pre_feedforward_layernorm"),
                post_feed_forward_norm: norm("post_feedforward_layernorm"),
                window,
                dims,
            }
        })
    }

    /// Does it see only a window?
    pub fn sliding(&self) -> bool {
        self.window.is_some()
    }

    /// The result and the probabilities of eager attention, which the layer's frame keeps.
    fn attention(
        &self,
        m: &Run,
        x: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        mask: Option<&Tensor>,
    ) -> (Tensor, Option<Tensor>) {
        let (b, s, hd) = (x.size(0), x.size(1), self.dims.head_dim);
        let mut q = attention::split_heads(m, &self.q, x, hd);
        let mut k = attention::split_heads(m, &self.k, x, hd);
        let v = attention::split_heads(m, &self.v, x, hd);
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q = q_norm.forward(m, &q);
            k = k_norm.forward(m, &k);
        }
        let (q2, k2) = rope::apply(m, &q, &k, cos, sin);
        q = q2;
        k = k2;
        let (k, v) = m.cached(self.attn, self.window, k, v);
        let p = self.dims.dropout;
        let (mut o, w) = if self.dims.soft_cap && m.options.attention == Attention::Eager {
            let p = if m.training { p } else { 0.0 };
            let cap = activation::soft_cap as fn(&Run, Tensor) -> Tensor;
            let (o, w) = attention::eager(m, &q, &k, &v, mask, p, Some(cap));
            (o, Some(w))
        } else {
            attention::attend_with_weights(m, &q, &k, &v, mask, p, true)
        };
        o = ops::reshape(&m.cx, &o, Shape::new(&[b, s, self.dims.heads * hd]));
        o = self.o.forward(m, &o);
        drop(q);
        drop(k);
        drop(v);
        (o, w)
    }

    fn feed_forward(&self, m: &Run, x: &Tensor) -> Tensor {
        let gate = self.gate.forward(m, x);
        let a = m.within(self.act, || self.dims.activation.forward(m, &gate));
        drop(gate);
        let up = self.up.forward(m, x);
        let p = ops::mul(&m.cx, &a, &up);
        drop(a);
        drop(up);
        self.down.forward(m, &p)
    }

    /// One layer's output; `x` (batch, sequence, hidden), the mask of its kind.
    pub fn forward(
        &self,
        m: &Run,
        x: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        mask: Option<&Tensor>,
    ) -> Tensor {
        m.within(self.id, || {
            let cx = &m.cx;
            let mut h = self.input_norm.forward(m, x);
            let (a, weights) = m.within(self.attn, || self.attention(m, &h, cos, sin, mask));
            h = a;
            h = self.post_attention_norm.forward(m, &h);
            h = ops::add(cx, x, &h);
            let residual = h.clone();
            h = self.pre_feed_forward_norm.forward(m, &h);
            h = m.within(self.mlp, || self.feed_forward(m, &h));
            h = self.post_feed_forward_norm.forward(m, &h);
            h = ops::add(cx, &residual, &h);
            drop(residual);
            drop(weights);
            h
        })
    }
}
