//! Gemma 3's text model: sliding and full attention by turns, each with rotary tables of its own, norms of q and k, norms before and
//! after each block (transformers 5.17 and 4.57.6, src/transformers/models/gemma3/modeling_gemma3.py). Cases: `gemma3-tiny-*` of
//! torch-trace-own.jsonl.

use super::{Arch, Batch, Built, Head, Output, fields};
use crate::common::{self, activation::Activation};
use crate::error::ModelError;
use crate::layers::{Embedding, GemmaNorm, Linear};
use crate::net::{Kind, ModuleId, NetBuilder};
use crate::run::Run;
use crate::stack::Stack;
use serde::Deserialize;
use std::rc::Rc;
use tonnage_sim::{ScalarType, Shape, Tensor, ops};

/// The fields that matter to memory, with transformers' defaults.
#[derive(Deserialize, Clone, Debug)]
#[serde(default)]
pub struct Config {
    pub vocab_size: u64,
    pub hidden_size: u64,
    pub intermediate_size: u64,
    pub num_hidden_layers: u64,
    pub num_attention_heads: u64,
    pub num_key_value_heads: u64,
    pub head_dim: u64,
    pub hidden_activation: String,
    pub attention_bias: bool,
    pub attention_dropout: f64,
    pub tie_word_embeddings: bool,
    pub sliding_window: u64,
    /// Every n-th layer sees the whole sequence; `layer_types` says it layer by layer.
    pub sliding_window_pattern: u64,
    pub layer_types: Option<Vec<String>>,
    pub final_logit_softcapping: Option<f64>,
    pub use_bidirectional_attention: Option<bool>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            vocab_size: 262_208,
            hidden_size: 2304,
            intermediate_size: 9216,
            num_hidden_layers: 26,
            num_attention_heads: 8,
            num_key_value_heads: 4,
            head_dim: 256,
            hidden_activation: "gelu_pytorch_tanh".into(),
            attention_bias: false,
            attention_dropout: 0.0,
            tie_word_embeddings: true,
            sliding_window: 4096,
            sliding_window_pattern: 6,
            layer_types: None,
            final_logit_softcapping: None,
            use_bidirectional_attention: None,
        }
    }
}

impl Config {
    /// For each layer: does it see only a window?
    fn sliding(&self) -> Result<Vec<bool>, ModelError> {
        let n = self.num_hidden_layers;
        let Some(types) = &self.layer_types else {
            let pattern = self.sliding_window_pattern;
            if pattern == 0 {
                return Err(ModelError::field("sliding_window_pattern", "0"));
            }
            return Ok((1..=n).map(|i| !i.is_multiple_of(pattern)).collect());
        };
        if (types.len() as u64) < n {
            let text = format!("{} entries for {n} layers", types.len());
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
        types.iter().take(n as usize).map(one).collect()
    }
}

struct Layer {
    id: ModuleId,
    attn: ModuleId,
    mlp: ModuleId,
    act: ModuleId,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    q_norm: GemmaNorm,
    k_norm: GemmaNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
    input_norm: GemmaNorm,
    post_attention_norm: GemmaNorm,
    pre_feed_forward_norm: GemmaNorm,
    post_feed_forward_norm: GemmaNorm,
    activation: Activation,
    sliding: bool,
    c: Rc<Config>,
}

struct Gemma3 {
    model: ModuleId,
    /// For full and for sliding layers; one module in 5.x.
    rotary: [ModuleId; 2],
    embed: Embedding,
    layers: Vec<Rc<Layer>>,
    norm: GemmaNorm,
    head: Linear,
    c: Rc<Config>,
}

/// From configuration fields of the text model.
pub fn build(config: &serde_json::Value, _head: Head, stack: &Stack) -> Result<Built, ModelError> {
    let c: Config = fields(config)?;
    let (h, kv) = (c.num_attention_heads, c.num_key_value_heads);
    if kv == 0 || h == 0 || !h.is_multiple_of(kv) {
        return Err(ModelError::field(
            "num_key_value_heads",
            format!("{kv} does not divide num_attention_heads {h}"),
        ));
    }
    if c.use_bidirectional_attention == Some(true) {
        return Err(ModelError::field(
            "use_bidirectional_attention",
            "only causal attention is modelled",
        ));
    }
    let sliding = c.sliding()?;
    let activation = Activation::parse("hidden_activation", &c.hidden_activation)?;
    let (c, five) = (Rc::new(c), stack.transformers_5());
    let (d, v) = (c.hidden_size, c.vocab_size);
    let mut b = NetBuilder::new();
    let (model, rotary, embed, layers, norm) = b.scope("model", |b| {
        let kind = Kind::Embedding { rows: v, width: d };
        let embed = b.scope_kind("embed_tokens", kind, |b| {
            let weight = b.param("weight", &[v, d]);
            b.buffer("embed_scale", &[], None);
            Embedding(b.id(), weight)
        });
        let layers = b.scope("layers", |b| {
            let one = |(i, s): (usize, &bool)| Rc::new(layer(b, i, &c, activation, *s));
            sliding.iter().enumerate().map(one).collect()
        });
        let norm = GemmaNorm::new(b, "norm", d);
        let rotary = rotary(b, c.head_dim, &sliding, five);
        (b.id(), rotary, embed, layers, norm)
    });
    let head = if c.tie_word_embeddings {
        Linear::tied(&mut b, "lm_head", d, v, embed.1, false)
    } else {
        Linear::new(&mut b, "lm_head", d, v, false)
    };
    Ok(Built {
        net: b.finish(),
        arch: Rc::new(Gemma3 {
            model,
            rotary,
            embed,
            layers,
            norm,
            head,
            c,
        }),
    })
}

/// The rotary modules of full and sliding layers: one with buffers for each type of layer that occurs, or one for each.
fn rotary(b: &mut NetBuilder, dim: u64, sliding: &[bool], five: bool) -> [ModuleId; 2] {
    let f32 = Some(ScalarType::F32);
    if five {
        let id = b.scope("rotary_emb", |b| {
            for (name, of) in [("full_attention", false), ("sliding_attention", true)] {
                if sliding.contains(&of) {
                    b.buffer(&format!("{name}_inv_freq"), &[dim / 2], f32);
                    b.buffer(&format!("{name}_original_inv_freq"), &[dim / 2], f32);
                }
            }
            b.id()
        });
        return [id, id];
    }
    ["rotary_emb", "rotary_emb_local"].map(|name| {
        b.scope(name, |b| {
            b.buffer("inv_freq", &[dim / 2], f32);
            b.id()
        })
    })
}

fn layer(b: &mut NetBuilder, i: usize, c: &Rc<Config>, act: Activation, sliding: bool) -> Layer {
    let (d, f, hd, bias) = (
        c.hidden_size,
        c.intermediate_size,
        c.head_dim,
        c.attention_bias,
    );
    let (qd, kd) = (c.num_attention_heads * hd, c.num_key_value_heads * hd);
    b.scope(&i.to_string(), |b| {
        let id = b.id();
        let (attn, q, k, v, o, q_norm, k_norm) = b.scope("self_attn", |b| {
            let q = Linear::new(b, "q_proj", d, qd, bias);
            let k = Linear::new(b, "k_proj", d, kd, bias);
            let v = Linear::new(b, "v_proj", d, kd, bias);
            let o = Linear::new(b, "o_proj", qd, d, bias);
            let q_norm = GemmaNorm::new(b, "q_norm", hd);
            (b.id(), q, k, v, o, q_norm, GemmaNorm::new(b, "k_norm", hd))
        });
        let (mlp, gate, up, down, act_fn) = b.scope("mlp", |b| {
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
            act: act_fn,
            q,
            k,
            v,
            o,
            q_norm,
            k_norm,
            gate,
            up,
            down,
            input_norm: norm("input_layernorm"),
            post_attention_norm: norm("post_attention_layernorm"),
            pre_feed_forward_norm: norm("pre_feedforward_layernorm"),
            post_feed_forward_norm: norm("post_feedforward_layernorm"),
            activation: act,
            sliding,
            c: c.clone(),
        }
    })
}

impl Layer {
    /// The result and the probabilities of eager attention, which the layer's frame keeps.
    fn attention(
        &self,
        m: &Run,
        x: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        mask: Option<&Tensor>,
    ) -> (Tensor, Option<Tensor>) {
        let cx = &m.cx;
        let (b, s) = (x.size(0), x.size(1));
        let hd = self.c.head_dim;
        let mut q = common::attention::split_heads(m, &self.q, x, hd);
        let mut k = common::attention::split_heads(m, &self.k, x, hd);
        let v = common::attention::split_heads(m, &self.v, x, hd);
        q = self.q_norm.forward(m, &q);
        k = self.k_norm.forward(m, &k);
        let (q2, k2) = common::rope::apply(m, &q, &k, cos, sin);
        q = q2;
        k = k2;
        let window = self.sliding.then_some(self.c.sliding_window);
        let (k, v) = m.cached(self.attn, window, k, v);
        let p = self.c.attention_dropout;
        let (mut o, w) = common::attention::attend_with_weights(m, &q, &k, &v, mask, p, true);
        o = ops::reshape(cx, &o, Shape::new(&[b, s, self.c.num_attention_heads * hd]));
        o = self.o.forward(m, &o);
        drop(q);
        drop(k);
        drop(v);
        (o, w)
    }

    fn feed_forward(&self, m: &Run, x: &Tensor) -> Tensor {
        let gate = self.gate.forward(m, x);
        let a = m.within(self.act, || self.activation.forward(m, &gate));
        drop(gate);
        let up = self.up.forward(m, x);
        let p = ops::mul(&m.cx, &a, &up);
        drop(a);
        drop(up);
        self.down.forward(m, &p)
    }

    fn forward(
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

impl Gemma3 {
    /// `Gemma3TextScaledWordEmbedding`: the scale is a buffer of the model's dtype.
    fn embedded(&self, m: &Run, ids: &Tensor) -> Tensor {
        let cx = &m.cx;
        let Embedding(id, weight) = self.embed;
        let y = m.within(id, || {
            let w = m.weight(weight);
            let rows = ops::embedding(cx, ids, w);
            let scale = ops::to_dtype(cx, &m.buffers[id.0 as usize][0], w.dtype);
            ops::mul(cx, &rows, &scale)
        });
        m.embedded(id, y)
    }

    /// `lm_head`, and the logits capped where the configuration says so.
    fn logits(&self, m: &Run, x: &Tensor) -> Tensor {
        let cx = &m.cx;
        let mut logits = self.head.forward(m, x);
        if self.c.final_logit_softcapping.is_some() {
            logits = ops::div_scalar(cx, &logits);
            logits = ops::tanh(cx, &logits);
            logits = ops::mul_scalar(cx, &logits);
        }
        logits
    }
}

impl Arch for Gemma3 {
    fn generates(&self) -> bool {
        true
    }

    fn forward(&self, m: &Rc<Run>, batch: &Batch) -> Output {
        let ids = batch
            .input_ids
            .as_ref()
            .expect("a language model's batch has input_ids");
        let (b, s) = (ids.size(0), ids.size(1));
        let cx = &m.cx;
        let five = m.options.stack.transformers_5();
        let h = m.within(self.model, || {
            let emb = self.embedded(m, ids);
            let pos = common::mask::positions(m, batch, s);
            let window = Some(self.c.sliding_window);
            let masks =
                [None, window].map(|w| common::mask::windowed(m, batch, b, s, emb.dtype, w));
            // the tables of full and of sliding layers; 5.x makes those that some layer needs
            let tables = [false, true].map(|sliding| {
                (!five || self.layers.iter().any(|l| l.sliding == sliding)).then(|| {
                    m.within(self.rotary[usize::from(sliding)], || {
                        common::rope::tables_for(m, pos.size(0), s, self.c.head_dim, emb.dtype)
                    })
                })
            });
            let mut x = emb.clone();
            for (layer, l) in self.layers.iter().enumerate() {
                let i = usize::from(l.sliding);
                let mask = masks[i].clone();
                let (cos, sin) = tables[i].clone().expect("made for every layer that occurs");
                x = if m.checkpoints(layer) {
                    let (l, m2) = (l.clone(), m.clone());
                    // 4.57 hands both pairs of tables to every layer
                    let other = (!five).then(|| tables[1 - i].clone());
                    let kwargs = (mask, sin, cos, other, pos.clone());
                    cx.checkpoint(vec![x], move |_, t| {
                        let kwargs = &kwargs;
                        l.forward(&m2, &t[0], &kwargs.2, &kwargs.1, kwargs.0.as_ref())
                    })
                } else {
                    l.forward(m, &x, &cos, &sin, mask.as_ref())
                };
            }
            x = self.norm.forward(m, &x);
            drop(pos);
            drop(emb);
            drop(masks);
            drop(tables);
            x
        });
        let kept = batch.last(cx, &h);
        let logits = self.logits(m, &kept);
        let labels = batch.labels.as_ref();
        let loss = labels.map(|l| common::loss::causal_lm(m, &logits, l));
        drop(kept);
        drop(h);
        Output {
            loss,
            logits: Some(logits),
            rest: vec![],
        }
    }
}
