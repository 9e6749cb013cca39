//! Mixtral: Llama's attention and a mixture of experts (transformers 5.17 with grouped products, 4.57.6 with a loop over experts,
//! src/transformers/models/mixtral/modeling_mixtral.py). Cases: `mixtral-mini-plain-*` of torch-trace-dev.jsonl and
//! torch-trace-tf457-dev.jsonl. What depends on the router is said in [`crate::common::experts`].

use super::{Arch, Batch, Built, Head, Output, fields};
use crate::common::{self, experts};
use crate::error::ModelError;
use crate::layers::{Embedding, Linear, RmsNorm};
use crate::net::{Kind, ModuleId, NetBuilder, ParamId};
use crate::run::Run;
use crate::stack::Stack;
use serde::Deserialize;
use std::rc::Rc;
use tonnage_sim::{OpId, ScalarType, Shape, Tensor, ops};

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
    pub head_dim: Option<u64>,
    pub num_local_experts: u64,
    pub num_experts_per_tok: u64,
    pub attention_dropout: f64,
    pub tie_word_embeddings: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            vocab_size: 32000,
            hidden_size: 4096,
            intermediate_size: 14336,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: 8,
            head_dim: None,
            num_local_experts: 8,
            num_experts_per_tok: 2,
            attention_dropout: 0.0,
            tie_word_embeddings: false,
        }
    }
}

/// The two layouts of the experts.
enum Moe {
    /// 5.x: `mlp.gate.weight`, `mlp.experts.gate_up_proj` and `down_proj`.
    Grouped {
        gate: ModuleId,
        weight: ParamId,
        experts: ModuleId,
        act: ModuleId,
        gate_up: ParamId,
        down: ParamId,
    },
    /// 4.57: `block_sparse_moe.gate`, `experts.N.{w1,w2,w3}`.
    Looped { gate: Linear },
}

struct Layer {
    id: ModuleId,
    attn: ModuleId,
    mlp: ModuleId,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    input_norm: RmsNorm,
    post_norm: RmsNorm,
    moe: Moe,
    head_dim: u64,
    c: Rc<Config>,
}

struct Mixtral {
    model: ModuleId,
    rotary: ModuleId,
    embed: Embedding,
    layers: Vec<Rc<Layer>>,
    norm: RmsNorm,
    head: Linear,
    head_dim: u64,
}

/// From configuration fields.
pub fn build(config: &serde_json::Value, _head: Head, stack: &Stack) -> Result<Built, ModelError> {
    let c: Config = fields(config)?;
    let (h, kv) = (c.num_attention_heads, c.num_key_value_heads);
    if h == 0 || (c.head_dim.is_none() && !c.hidden_size.is_multiple_of(h)) {
        return Err(ModelError::field(
            "num_attention_heads",
            format!("{h} does not divide hidden_size {}", c.hidden_size),
        ));
    }
    if kv == 0 || h % kv != 0 {
        return Err(ModelError::field(
            "num_key_value_heads",
            format!("{kv} does not divide num_attention_heads {h}"),
        ));
    }
    if c.num_experts_per_tok == 0 || c.num_experts_per_tok > c.num_local_experts {
        return Err(ModelError::field(
            "num_experts_per_tok",
            format!(
                "{} of {} experts",
                c.num_experts_per_tok, c.num_local_experts
            ),
        ));
    }
    let (c, five) = (Rc::new(c), stack.transformers_5());
    let head_dim = c.head_dim.unwrap_or(c.hidden_size / h);
    let mut b = NetBuilder::new();
    let (model, rotary, embed, layers, norm) = b.scope("model", |b| {
        let embed = Embedding::new(b, "embed_tokens", c.vocab_size, c.hidden_size);
        let layers = b.scope("layers", |b| {
            (0..c.num_hidden_layers)
                .map(|i| Rc::new(layer(b, &i.to_string(), &c, head_dim, five)))
                .collect()
        });
        let norm = RmsNorm::new(b, "norm", c.hidden_size);
        let rotary = b.scope("rotary_emb", |b| {
            b.buffer("inv_freq", &[head_dim / 2], Some(ScalarType::F32));
            if five {
                b.buffer("original_inv_freq", &[head_dim / 2], Some(ScalarType::F32));
            }
            b.id()
        });
        (b.id(), rotary, embed, layers, norm)
    });
    let (d, v) = (c.hidden_size, c.vocab_size);
    let head = if c.tie_word_embeddings {
        Linear::tied(&mut b, "lm_head", d, v, embed.1, false)
    } else {
        Linear::new(&mut b, "lm_head", d, v, false)
    };
    Ok(Built {
        net: b.finish(),
        arch: Rc::new(Mixtral {
            model,
            rotary,
            embed,
            layers,
            norm,
            head,
            head_dim,
        }),
    })
}

fn layer(b: &mut NetBuilder, name: &str, c: &Rc<Config>, head_dim: u64, five: bool) -> Layer {
    let (d, f, e) = (c.hidden_size, c.intermediate_size, c.num_local_experts);
    let (qd, kd) = (
        c.num_attention_heads * head_dim,
        c.num_key_value_heads * head_dim,
    );
    b.scope(name, |b| {
        let (attn, q, k, v, o) = b.scope("self_attn", |b| {
            let q = Linear::new(b, "q_proj", d, qd, false);
            let k = Linear::new(b, "k_proj", d, kd, false);
            let v = Linear::new(b, "v_proj", d, kd, false);
            (b.id(), q, k, v, Linear::new(b, "o_proj", qd, d, false))
        });
        let (mlp, moe) = if five {
            b.scope("mlp", |b| {
                let (gate, weight) = b.scope_kind("gate", Kind::Other, |b| {
                    (b.id(), b.param("weight", &[e, d]))
                });
                let (experts, act, gate_up, down) = b.scope_kind("experts", Kind::Other, |b| {
                    let gate_up = b.param("gate_up_proj", &[e, 2 * f, d]);
                    let down = b.param("down_proj", &[e, d, f]);
                    (b.id(), b.scope("act_fn", |b| b.id()), gate_up, down)
                });
                let moe = Moe::Grouped {
                    gate,
                    weight,
                    experts,
                    act,
                    gate_up,
                    down,
                };
                (b.id(), moe)
            })
        } else {
            b.scope("block_sparse_moe", |b| {
                let gate = Linear::new(b, "gate", d, e, false);
                b.scope("experts", |b| {
                    for i in 0..e {
                        b.scope(&i.to_string(), |b| {
                            Linear::new(b, "w1", d, f, false);
                            Linear::new(b, "w2", f, d, false);
                            Linear::new(b, "w3", d, f, false);
                            b.scope("act_fn", |_| ());
                        });
                    }
                });
                (b.id(), Moe::Looped { gate })
            })
        };
        let input_norm = RmsNorm::new(b, "input_layernorm", d);
        let post_norm = RmsNorm::new(b, "post_attention_layernorm", d);
        Layer {
            id: b.id(),
            attn,
            mlp,
            q,
            k,
            v,
            o,
            input_norm,
            post_norm,
            moe,
            head_dim,
            c: c.clone(),
        }
    })
}

impl Layer {
    fn heads(&self, m: &Run, x: &Tensor, lin: &Linear) -> Tensor {
        let y = lin.forward(m, x);
        let (b, s, w) = (y.size(0), y.size(1), y.size(2));
        let shape = Shape::new(&[b, s, w / self.head_dim, self.head_dim]);
        let v = ops::view(&m.cx, &y, shape);
        drop(y);
        ops::transpose(&m.cx, &v, 1, 2)
    }

    fn attention(
        &self,
        m: &Run,
        x: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        mask: Option<&Tensor>,
    ) -> Tensor {
        let cx = &m.cx;
        let (b, s) = (x.size(0), x.size(1));
        let mut q = self.heads(m, x, &self.q);
        let mut k = self.heads(m, x, &self.k);
        let v = self.heads(m, x, &self.v);
        let (q2, k2) = common::rope::apply(m, &q, &k, cos, sin);
        q = q2;
        k = k2;
        let (k, v) = m.cached(self.attn, None, k, v);
        let p = self.c.attention_dropout;
        let mut o = common::attention::attend(m, &q, &k, &v, mask, p, true);
        let width = self.c.num_attention_heads * self.head_dim;
        o = ops::reshape(cx, &o, Shape::new(&[b, s, width]));
        o = self.o.forward(m, &o);
        drop(q);
        drop(k);
        drop(v);
        o
    }

    /// The block's output and the router's logits, which the caller keeps in `_`.
    fn experts(&self, m: &Run, x: &Tensor) -> (Tensor, Option<Tensor>) {
        let cx = &m.cx;
        let (b, s, d) = (x.size(0), x.size(1), x.size(2));
        let k = self.c.num_experts_per_tok;
        let flat = ops::view(cx, x, Shape::new(&[b * s, d]));
        let normed = |top: Tensor| {
            let sum = ops::sum(cx, &top, &[-1], true);
            ops::div_(cx, top, &sum)
        };
        match &self.moe {
            Moe::Grouped {
                gate,
                weight,
                experts,
                act,
                gate_up,
                down,
            } => {
                let (logits, top, ids) = m.within(*gate, || {
                    let h = ops::reshape(cx, &flat, Shape::new(&[b * s, d]));
                    let logits = ops::linear(cx, &h, m.weight(*weight), None);
                    let wide = ops::to_dtype(cx, &logits, ScalarType::F32);
                    let probabilities = ops::softmax(cx, &wide, None);
                    drop(wide);
                    let (top, ids) = ops::topk(cx, &probabilities, k);
                    let top = normed(top);
                    drop(probabilities);
                    (logits, top, ids)
                });
                let y = m.within(*experts, || {
                    let (up, down) = (m.weight(*gate_up), m.weight(*down));
                    let silu = |t: &Tensor| m.within(*act, || ops::silu(cx, t));
                    experts::grouped(m, &flat, &ids, &top, up, down, silu)
                });
                let y2 = ops::reshape(cx, &y, Shape::new(&[b, s, d]));
                drop(y);
                logits.forget();
                top.forget();
                drop(ids);
                (y2, None)
            }
            Moe::Looped { gate } => {
                let logits = gate.forward(m, &flat);
                let mut weights = ops::softmax(cx, &logits, Some(ScalarType::F32));
                let (top, ids) = ops::topk(cx, &weights, k);
                weights = top;
                weights = normed(weights);
                weights = ops::to_dtype(cx, &weights, x.dtype);
                let out = cx.empty(OpId::ZEROS, Shape::new(&[b * s, d]), x.dtype);
                let mask = experts::unrouted(m, &ids, self.c.num_local_experts);
                let out = ops::reshape(cx, &out, Shape::new(&[b, s, d]));
                weights.forget();
                drop(ids);
                drop(mask);
                (out, Some(logits))
            }
        }
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
            let h = self.input_norm.forward(m, x);
            let a = m.within(self.attn, || self.attention(m, &h, cos, sin, mask));
            drop(h);
            let x2 = ops::add(&m.cx, x, &a);
            drop(a);
            let h = self.post_norm.forward(m, &x2);
            let (f, logits) = m.within(self.mlp, || self.experts(m, &h));
            drop(h);
            let y = ops::add(&m.cx, &x2, &f);
            drop(f);
            drop(x2);
            if let Some(l) = logits {
                l.forget();
            }
            y
        })
    }
}

impl Arch for Mixtral {
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
            let emb = self.embed.forward(m, ids);
            let pos = common::mask::positions(m, batch, s);
            let mask = common::mask::causal(m, batch, b, s, emb.dtype);
            let (cos, sin) = m.within(self.rotary, || {
                common::rope::tables_for(m, pos.size(0), s, self.head_dim, emb.dtype)
            });
            let mut x = emb.clone();
            for (i, l) in self.layers.iter().enumerate() {
                x = if m.checkpoints(i) {
                    let (l, m2) = (l.clone(), m.clone());
                    // the keyword arguments in the order in which they die
                    let first = five.then(|| mask.clone()).flatten();
                    let positions = five.then(|| pos.clone());
                    let tables = (sin.clone(), cos.clone());
                    let later = if five { None } else { mask.clone() };
                    let rest = (!five).then(|| pos.clone());
                    let kwargs = (first, positions, tables, later, rest);
                    cx.checkpoint(vec![x], move |_, t| {
                        let kwargs = &kwargs;
                        let (sin, cos) = &kwargs.2;
                        let mask = kwargs.0.as_ref().or(kwargs.3.as_ref());
                        l.forward(&m2, &t[0], cos, sin, mask)
                    })
                } else {
                    l.forward(m, &x, &cos, &sin, mask.as_ref())
                };
            }
            x = self.norm.forward(m, &x);
            // 4.57: `cache_position`, a later argument than `inputs_embeds`, shares the storage of the position ids
            let cache_position = (!five).then(|| pos.clone());
            drop(pos);
            drop(emb);
            drop(cache_position);
            drop(mask);
            drop(sin);
            drop(cos);
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
