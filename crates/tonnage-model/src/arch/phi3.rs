//! Phi-3, Phi-3.5 and Phi-4 (transformers 5.17, src/transformers/models/phi3/modeling_phi3.py).

use super::{Arch, Batch, Built, Head, Masks, Output, fields};
use crate::common;
use crate::common::activation::Activation;
use crate::error::ModelError;
use crate::layers::{Dropout, Embedding, Linear, RmsNorm};
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
    pub attention_dropout: f64,
    pub original_max_position_embeddings: u64,
    pub partial_rotary_factor: Option<f64>,
    pub rope_scaling: Option<Value>,
    pub rope_parameters: Option<Value>,
    pub sliding_window: Option<u64>,
    pub tie_word_embeddings: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            vocab_size: 32064,
            hidden_size: 3072,
            intermediate_size: 8192,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            hidden_act: "silu".into(),
            resid_pdrop: 0.0,
            attention_dropout: 0.0,
            original_max_position_embeddings: 4096,
            partial_rotary_factor: None,
            rope_scaling: None,
            rope_parameters: None,
            sliding_window: None,
            tie_word_embeddings: false,
        }
    }
}

struct Layer {
    id: ModuleId,
    attn: ModuleId,
    mlp: ModuleId,
    o: Linear,
    qkv: Linear,
    gate_up: Linear,
    down: Linear,
    act_id: ModuleId,
    act: Activation,
    input_norm: RmsNorm,
    post_norm: RmsNorm,
    attn_drop: Dropout,
    mlp_drop: Dropout,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    dropout: f64,
    window: Option<u64>,
}

struct Phi3 {
    model: ModuleId,
    rotary: ModuleId,
    embed: Embedding,
    layers: Vec<Rc<Layer>>,
    norm: RmsNorm,
    head: Linear,
    rotary_dim: u64,
    /// The positions up to which the short frequencies hold, where the model has long ones.
    longrope: Option<u64>,
    window: Option<u64>,
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
    let longrope = match kind.and_then(Value::as_str) {
        None | Some("default") => None,
        Some("longrope" | "su" | "yarn") => Some(
            of_rope("original_max_position_embeddings")
                .and_then(Value::as_u64)
                .unwrap_or(c.original_max_position_embeddings),
        ),
        Some(other) => {
            return Err(ModelError::field(
                "rope_scaling",
                format!("type `{other}` is none of default, longrope"),
            ));
        }
    };
    let head_dim = c.head_dim.unwrap_or(d / h);
    let factor = of_rope("partial_rotary_factor")
        .and_then(Value::as_f64)
        .or(c.partial_rotary_factor)
        .unwrap_or(1.0);
    let rotary_dim = (head_dim as f64 * factor) as u64;
    let mut b = NetBuilder::new();
    let (model, rotary, embed, layers, norm) = b.scope("model", |b| {
        let embed = Embedding::new(b, "embed_tokens", c.vocab_size, d);
        let layers = b.scope("layers", |b| {
            (0..c.num_hidden_layers)
                .map(|i| Rc::new(layer(b, &i.to_string(), &c, (head_dim, kv), act)))
                .collect()
        });
        let norm = RmsNorm::new(b, "norm", d);
        let rotary = b.scope("rotary_emb", |b| {
            b.buffer("inv_freq", &[rotary_dim / 2], Some(ScalarType::F32));
            if longrope.is_some() {
                b.rebind_buffer();
            }
            if stack.transformers_5() {
                b.buffer(
                    "original_inv_freq",
                    &[rotary_dim / 2],
                    Some(ScalarType::F32),
                );
            }
            b.id()
        });
        (b.id(), rotary, embed, layers, norm)
    });
    let head = if c.tie_word_embeddings {
        Linear::tied(&mut b, "lm_head", d, c.vocab_size, embed.1, false)
    } else {
        Linear::new(&mut b, "lm_head", d, c.vocab_size, false)
    };
    Ok(Built {
        net: b.finish(),
        arch: Rc::new(Phi3 {
            model,
            rotary,
            embed,
            layers,
            norm,
            head,
            rotary_dim,
            longrope,
            window: c.sliding_window,
        }),
    })
}

fn layer(
    b: &mut NetBuilder,
    name: &str,
    c: &Config,
    (head_dim, kv): (u64, u64),
    act: Activation,
) -> Layer {
    let (d, f) = (c.hidden_size, c.intermediate_size);
    let heads = c.num_attention_heads;
    b.scope(name, |b| {
        let id = b.id();
        let (attn, o, qkv) = b.scope("self_attn", |b| {
            let o = Linear::new(b, "o_proj", heads * head_dim, d, false);
            let width = (heads + 2 * kv) * head_dim;
            (b.id(), o, Linear::new(b, "qkv_proj", d, width, false))
        });
        let (mlp, gate_up, down, act_id) = b.scope("mlp", |b| {
            let gate_up = Linear::new(b, "gate_up_proj", d, 2 * f, false);
            let down = Linear::new(b, "down_proj", f, d, false);
            (b.id(), gate_up, down, b.scope("activation_fn", |b| b.id()))
        });
        Layer {
            id,
            attn,
            mlp,
            o,
            qkv,
            gate_up,
            down,
            act_id,
            act,
            input_norm: RmsNorm::new(b, "input_layernorm", d),
            post_norm: RmsNorm::new(b, "post_attention_layernorm", d),
            attn_drop: Dropout::new(b, "resid_attn_dropout", c.resid_pdrop),
            mlp_drop: Dropout::new(b, "resid_mlp_dropout", c.resid_pdrop),
            heads,
            kv_heads: kv,
            head_dim,
            dropout: c.attention_dropout,
            window: c.sliding_window,
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
        let qkv = self.qkv.forward(m, x);
        let (wide, narrow) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut q = ops::slice(cx, &qkv, -1, 0, wide);
        let mut k = ops::slice(cx, &qkv, -1, wide, narrow);
        let mut v = ops::slice(cx, &qkv, -1, wide + narrow, narrow);
        let split = |t: &Tensor| {
            let shape = Shape::new(&[b, s, t.size(2) / self.head_dim, self.head_dim]);
            ops::transpose(cx, &ops::view(cx, t, shape), 1, 2)
        };
        q = split(&q);
        k = split(&k);
        v = split(&v);
        let (q2, k2) = common::rope::apply_partial(m, &q, &k, cos, sin);
        q = q2;
        k = k2;
        (k, v) = m.cached(self.attn, self.window, k, v);
        let (mut o, w) =
            common::attention::attend_with_weights(m, &q, &k, &v, mask, self.dropout, true);
        o = ops::contiguous(cx, &ops::reshape(cx, &o, Shape::new(&[b, s, wide])));
        o = self.o.forward(m, &o);
        drop(qkv);
        drop(q);
        drop(k);
        drop(v);
        (o, w)
    }

    fn feed_forward(&self, m: &Run, x: &Tensor) -> Tensor {
        let cx = &m.cx;
        let fused = self.gate_up.forward(m, x);
        let parts = ops::chunk(cx, &fused, 2, -1);
        drop(fused);
        let a = m.within(self.act_id, || self.act.forward(m, &parts[0]));
        let up = ops::mul(cx, &parts[1], &a);
        drop(a);
        let y = self.down.forward(m, &up);
        drop(up);
        drop(parts);
        y
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
            let mut h = self.input_norm.forward(m, x);
            let (a, w) = m.within(self.attn, || self.attention(m, &h, cos, sin, mask));
            h = a;
            let x2 = ops::add(cx, x, &self.attn_drop.forward(m, &h));
            drop(h);
            h = self.post_norm.forward(m, &x2);
            h = m.within(self.mlp, || self.feed_forward(m, &h));
            let y = ops::add(cx, &x2, &self.mlp_drop.forward(m, &h));
            drop(h);
            drop(x2);
            drop(w);
            y
        })
    }
}

impl Arch for Phi3 {
    fn generates(&self) -> bool {
        true
    }

    fn masks(&self) -> Masks {
        Masks {
            full: self.window.is_none(),
            window: self.window,
        }
    }

    fn forward(&self, m: &Rc<Run>, batch: &Batch) -> Output {
        let ids = batch
            .input_ids
            .as_ref()
            .expect("a language model's batch has input_ids");
        let (b, s) = (ids.size(0), ids.size(1));
        let cx = &m.cx;
        let h = m.within(self.model, || {
            let emb = self.embed.forward(m, ids);
            let pos = common::mask::positions(m, batch, s);
            let mask = common::mask::windowed(m, batch, b, s, emb.dtype, self.window);
            let (cos, sin) = m.within(self.rotary, || {
                if let Some(original) = self.longrope {
                    common::rope::longrope_update(m, self.rotary, &pos, self.rotary_dim, original);
                }
                common::rope::tables_for(m, pos.size(0), s, self.rotary_dim, emb.dtype)
            });
            let mut x = emb.clone();
            for (i, l) in self.layers.iter().enumerate() {
                x = if m.checkpoints(i) {
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
            x = self.norm.forward(m, &x);
            // 4.57: `cache_position`, a later argument than `inputs_embeds`, shares the storage of the position ids
            let cache_position = (!m.options.stack.transformers_5()).then(|| pos.clone());
            drop(pos);
            drop(emb);
            drop(cache_position);
            drop(mask);
            drop(cos);
            drop(sin);
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
