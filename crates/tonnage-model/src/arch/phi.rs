//! Phi-1, Phi-1.5 and Phi-2 (transformers 5.17 and 4.57.6, src/transformers/models/phi/modeling_phi.py): attention and feed-forward
//! side by side after one norm, part of each head turned. Cases: `phi-*` of torch-trace-own.jsonl.

use super::{Arch, Batch, Built, Head, Output, fields};
use crate::common;
use crate::common::activation::Activation;
use crate::error::ModelError;
use crate::layers::{Dropout, Embedding, LayerNorm, Linear};
use crate::net::{ModuleId, NetBuilder};
use crate::run::Run;
use crate::stack::Stack;
use serde::Deserialize;
use serde_json::Value;
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
    pub num_key_value_heads: Option<u64>,
    pub head_dim: Option<u64>,
    pub hidden_act: String,
    pub resid_pdrop: f64,
    pub embd_pdrop: f64,
    pub attention_dropout: f64,
    pub qk_layernorm: bool,
    pub partial_rotary_factor: Option<f64>,
    pub rope_scaling: Option<Value>,
    pub rope_parameters: Option<Value>,
    pub tie_word_embeddings: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            vocab_size: 51200,
            hidden_size: 2048,
            intermediate_size: 8192,
            num_hidden_layers: 24,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            hidden_act: "gelu_new".into(),
            resid_pdrop: 0.0,
            embd_pdrop: 0.0,
            attention_dropout: 0.0,
            qk_layernorm: false,
            partial_rotary_factor: None,
            rope_scaling: None,
            rope_parameters: None,
            tie_word_embeddings: false,
        }
    }
}

struct Layer {
    id: ModuleId,
    attn: ModuleId,
    mlp: ModuleId,
    q: Linear,
    k: Linear,
    v: Linear,
    dense: Linear,
    qk_norms: Option<[LayerNorm; 2]>,
    act_id: ModuleId,
    act: Activation,
    fc1: Linear,
    fc2: Linear,
    norm: LayerNorm,
    drop: Dropout,
    head_dim: u64,
    rotary_dim: u64,
    dropout: f64,
}

struct Phi {
    model: ModuleId,
    rotary: ModuleId,
    embed: Embedding,
    layers: Vec<Rc<Layer>>,
    drop: Dropout,
    norm: LayerNorm,
    head: Linear,
    rotary_dim: u64,
}

/// From configuration fields.
pub fn build(config: &Value, _head: Head, stack: &Stack) -> Result<Built, ModelError> {
    let c: Config = fields(config)?;
    let (d, h) = (c.hidden_size, c.num_attention_heads);
    if h == 0 || (c.head_dim.is_none() && !d.is_multiple_of(h)) {
        return Err(ModelError::field(
            "num_attention_heads",
            format!("{h} does not divide hidden_size {d}"),
        ));
    }
    let kv = c.num_key_value_heads.unwrap_or(h);
    if kv == 0 || !h.is_multiple_of(kv) {
        return Err(ModelError::field(
            "num_key_value_heads",
            format!("{kv} does not divide num_attention_heads {h}"),
        ));
    }
    let act = Activation::parse("hidden_act", &c.hidden_act)?;
    let rope = c.rope_scaling.as_ref().or(c.rope_parameters.as_ref());
    let of_rope = |name: &str| rope.and_then(|r| r.get(name));
    let kind = of_rope("rope_type").or_else(|| of_rope("type"));
    match kind.and_then(Value::as_str) {
        None | Some("default" | "linear") => {}
        Some(other) => {
            return Err(ModelError::field(
                "rope_scaling",
                format!("type `{other}`; known: default, linear"),
            ));
        }
    }
    let head_dim = c.head_dim.unwrap_or(d / h);
    let factor = of_rope("partial_rotary_factor")
        .and_then(Value::as_f64)
        .or(c.partial_rotary_factor)
        .unwrap_or(0.5);
    let rotary_dim = (head_dim as f64 * factor) as u64;
    let mut b = NetBuilder::new();
    let (model, rotary, embed, layers, drop, norm) = b.scope("model", |b| {
        let embed = Embedding::new(b, "embed_tokens", c.vocab_size, d);
        let layers = b.scope("layers", |b| {
            (0..c.num_hidden_layers)
                .map(|i| {
                    Rc::new(layer(
                        b,
                        &i.to_string(),
                        &c,
                        (head_dim, kv, rotary_dim),
                        act,
                    ))
                })
                .collect()
        });
        let rotary = b.scope("rotary_emb", |b| {
            b.buffer("inv_freq", &[rotary_dim / 2], Some(ScalarType::F32));
            if stack.transformers_5() {
                b.buffer(
                    "original_inv_freq",
                    &[rotary_dim / 2],
                    Some(ScalarType::F32),
                );
            }
            b.id()
        });
        let drop = Dropout::new(b, "embed_dropout", c.embd_pdrop);
        let norm = LayerNorm::new(b, "final_layernorm", d, true, true);
        (b.id(), rotary, embed, layers, drop, norm)
    });
    let head = if c.tie_word_embeddings {
        Linear::tied(&mut b, "lm_head", d, c.vocab_size, embed.1, true)
    } else {
        Linear::new(&mut b, "lm_head", d, c.vocab_size, true)
    };
    Ok(Built {
        net: b.finish(),
        arch: Rc::new(Phi {
            model,
            rotary,
            embed,
            layers,
            drop,
            norm,
            head,
            rotary_dim,
        }),
    })
}

fn layer(
    b: &mut NetBuilder,
    name: &str,
    c: &Config,
    (head_dim, kv, rotary_dim): (u64, u64, u64),
    act: Activation,
) -> Layer {
    let (d, f, qd) = (
        c.hidden_size,
        c.intermediate_size,
        c.num_attention_heads * head_dim,
    );
    b.scope(name, |b| {
        let id = b.id();
        let (attn, q, k, v, dense, qk_norms) = b.scope("self_attn", |b| {
            let q = Linear::new(b, "q_proj", d, qd, true);
            let k = Linear::new(b, "k_proj", d, kv * head_dim, true);
            let v = Linear::new(b, "v_proj", d, kv * head_dim, true);
            let dense = Linear::new(b, "dense", qd, d, true);
            let mut norm = |name| LayerNorm::new(b, name, d / c.num_attention_heads, true, true);
            let norms = c
                .qk_layernorm
                .then(|| [norm("q_layernorm"), norm("k_layernorm")]);
            (b.id(), q, k, v, dense, norms)
        });
        let (mlp, act_id, fc1, fc2) = b.scope("mlp", |b| {
            let act_id = b.scope("activation_fn", |b| b.id());
            let fc1 = Linear::new(b, "fc1", d, f, true);
            (b.id(), act_id, fc1, Linear::new(b, "fc2", f, d, true))
        });
        Layer {
            id,
            attn,
            mlp,
            q,
            k,
            v,
            dense,
            qk_norms,
            act_id,
            act,
            fc1,
            fc2,
            norm: LayerNorm::new(b, "input_layernorm", d, true, true),
            drop: Dropout::new(b, "resid_dropout", c.resid_pdrop),
            head_dim,
            rotary_dim,
            dropout: c.attention_dropout,
        }
    })
}

impl Layer {
    /// The result, and the probabilities of eager attention.
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
        let mut q = common::attention::split_heads(m, &self.q, x, self.head_dim);
        let mut k = common::attention::split_heads(m, &self.k, x, self.head_dim);
        let mut v = common::attention::split_heads(m, &self.v, x, self.head_dim);
        if let Some([q_norm, k_norm]) = &self.qk_norms {
            q = q_norm.forward(m, &q);
            k = k_norm.forward(m, &k);
        }
        let (r, rest) = (self.rotary_dim, self.head_dim - self.rotary_dim);
        let parts = |t: &Tensor| (ops::slice(cx, t, -1, 0, r), ops::slice(cx, t, -1, r, rest));
        let (mut q_rot, q_pass) = parts(&q);
        let (mut k_rot, k_pass) = parts(&k);
        let (q2, k2) = common::rope::apply(m, &q_rot, &k_rot, cos, sin);
        q_rot = q2;
        k_rot = k2;
        q = ops::cat(cx, &[&q_rot, &q_pass], -1);
        k = ops::cat(cx, &[&k_rot, &k_pass], -1);
        (k, v) = m.cached(self.attn, None, k, v);
        let (mut o, w) =
            common::attention::attend_with_weights(m, &q, &k, &v, mask, self.dropout, true);
        let width = o.size(2) * o.size(3);
        o = ops::contiguous(cx, &ops::reshape(cx, &o, Shape::new(&[b, s, width])));
        o = self.dense.forward(m, &o);
        drop(q);
        drop(k);
        drop(v);
        drop((q_rot, q_pass, k_rot, k_pass));
        (o, w)
    }

    fn feed_forward(&self, m: &Run, x: &Tensor) -> Tensor {
        let mut h = self.fc1.forward(m, x);
        h = m.within(self.act_id, || self.act.forward(m, &h));
        self.fc2.forward(m, &h)
    }

    fn forward(
        &self,
        m: &Run,
        x: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        mask: Option<&Tensor>,
    ) -> Tensor {
        let cx = &m.cx;
        m.within(self.id, || {
            let h = self.norm.forward(m, x);
            let (mut a, w) = m.within(self.attn, || self.attention(m, &h, cos, sin, mask));
            a = self.drop.forward(m, &a);
            let f = {
                let raw = m.within(self.mlp, || self.feed_forward(m, &h));
                self.drop.forward(m, &raw)
            };
            let y = {
                let sum = ops::add(cx, &a, &f);
                ops::add(cx, &sum, x)
            };
            drop(h);
            drop(a);
            drop(w);
            drop(f);
            y
        })
    }
}

impl Arch for Phi {
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
        let h = m.within(self.model, || {
            let mut emb = self.embed.forward(m, ids);
            let pos = common::mask::positions(m, batch, s);
            let mask = common::mask::causal(m, batch, b, s, emb.dtype);
            emb = self.drop.forward(m, &emb);
            let (cos, sin) = m.within(self.rotary, || {
                common::rope::tables_for(m, pos.size(0), s, self.rotary_dim, emb.dtype)
            });
            let mut x = emb.clone();
            for (layer, l) in self.layers.iter().enumerate() {
                x = if m.checkpoints(layer) {
                    let (l, m2) = (l.clone(), m.clone());
                    // in the order in which the keyword arguments die
                    let kwargs = (mask.clone(), pos.clone(), sin.clone(), cos.clone());
                    cx.checkpoint(vec![x], move |_, t| {
                        let kwargs = &kwargs;
                        l.forward(&m2, &t[0], &kwargs.3, &kwargs.2, kwargs.0.as_ref())
                    })
                } else {
                    l.forward(m, &x, &cos, &sin, mask.as_ref())
                };
            }
            // 4.57: the tuple that the last layer returned is a local to the end
            let last = (!m.options.stack.transformers_5()).then(|| x.clone());
            x = self.norm.forward(m, &x);
            // 4.57: `cache_position`, a later argument than `inputs_embeds`, shares the storage of the position ids
            let cache_position = (!m.options.stack.transformers_5()).then(|| pos.clone());
            drop(pos);
            drop(emb);
            drop(cache_position);
            drop(mask);
            drop(cos);
            drop(sin);
            drop(last);
            x
        });
        let kept = batch.last(cx, &h);
        let (logits, loss) =
            common::loss::head_and_loss(m, &self.head, &kept, batch.labels.as_ref());
        drop(kept);
        drop(h);
        Output {
            loss,
            logits,
            rest: vec![],
        }
    }
}
