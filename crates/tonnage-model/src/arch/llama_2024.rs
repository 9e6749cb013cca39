//! Llama as transformers had it from 4.36 to 4.39 (src/transformers/models/llama/modeling_llama.py at v4.37.2 and v4.39.3): rotary
//! tables in every layer, keys and values kept by a cache that training makes too, fp32 logits that the output keeps.
//!
//! Checked against published figures, not traces: `ao-galore-*` (4.39, fp32) to 0.01 %; `fsdpqlora-nb-bnb-*` (4.37, bf16) to 0.02 % before
//! and after a step, low after the forward call (docs/accuracy.md).

use super::{Arch, Batch, Built, Output, fields, llama};
use crate::common;
use crate::error::ModelError;
use crate::layers::{Embedding, Linear, RmsNorm};
use crate::net::NetBuilder;
use crate::run::Run;
use crate::stack::{Stack, Version};
use serde::Deserialize;
use std::rc::Rc;
use tonnage_sim::OpId;
use tonnage_sim::ops::{self, SdpaArgs};
use tonnage_sim::{ScalarType, Shape, Tensor};

/// The field that the newer forward does not need.
#[derive(Deserialize)]
#[serde(default)]
struct Positions {
    max_position_embeddings: u64,
}

impl Default for Positions {
    fn default() -> Self {
        Positions {
            max_position_embeddings: 2048,
        }
    }
}

struct Layer {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    gate: Linear,
    up: Linear,
    down: Linear,
    input_norm: RmsNorm,
    post_norm: RmsNorm,
    head_dim: u64,
    /// 4.38: the tables are computed at each call instead of looked up.
    computed_tables: bool,
}

struct Llama {
    embed: Embedding,
    layers: Vec<Rc<Layer>>,
    norm: RmsNorm,
    head: Linear,
}

/// From configuration fields.
pub fn build(config: &serde_json::Value, stack: &Stack) -> Result<Built, ModelError> {
    let c: llama::Config = fields(config)?;
    let p: Positions = fields(config)?;
    let (d, f, h) = (c.hidden_size, c.intermediate_size, c.num_attention_heads);
    if h == 0 || !d.is_multiple_of(h) {
        return Err(ModelError::field(
            "num_attention_heads",
            format!("{h} does not divide hidden_size {d}"),
        ));
    }
    let head_dim = d / h;
    let kv = c.num_key_value_heads.unwrap_or(h);
    if kv == 0 || !h.is_multiple_of(kv) {
        return Err(ModelError::field(
            "num_key_value_heads",
            format!("{kv} does not divide num_attention_heads {h}"),
        ));
    }
    let computed_tables = stack.transformers >= Version(4, 38, 0);
    let mut b = NetBuilder::new();
    let (embed, layers, norm) = b.scope("model", |b| {
        let embed = Embedding::new(b, "embed_tokens", c.vocab_size, d);
        let layers = b.scope("layers", |b| {
            let one = |b: &mut NetBuilder, i: u64| {
                b.scope(&i.to_string(), |b| {
                    let (q, k, v, o) = b.scope("self_attn", |b| {
                        let q = Linear::new(b, "q_proj", d, h * head_dim, c.attention_bias);
                        let k = Linear::new(b, "k_proj", d, kv * head_dim, c.attention_bias);
                        let v = Linear::new(b, "v_proj", d, kv * head_dim, c.attention_bias);
                        let o = Linear::new(b, "o_proj", h * head_dim, d, c.attention_bias);
                        b.scope("rotary_emb", |b| {
                            b.buffer("inv_freq", &[head_dim / 2], None);
                            for t in ["cos_cached", "sin_cached"] {
                                b.buffer(t, &[p.max_position_embeddings, head_dim], None);
                            }
                        });
                        (q, k, v, o)
                    });
                    let (gate, up, down) = b.scope("mlp", |b| {
                        let gate = Linear::new(b, "gate_proj", d, f, false);
                        let up = Linear::new(b, "up_proj", d, f, false);
                        (gate, up, Linear::new(b, "down_proj", f, d, false))
                    });
                    Rc::new(Layer {
                        q,
                        k,
                        v,
                        o,
                        gate,
                        up,
                        down,
                        input_norm: RmsNorm::new(b, "input_layernorm", d),
                        post_norm: RmsNorm::new(b, "post_attention_layernorm", d),
                        head_dim,
                        computed_tables,
                    })
                })
            };
            (0..c.num_hidden_layers).map(|i| one(b, i)).collect()
        });
        (embed, layers, RmsNorm::new(b, "norm", d))
    });
    let head = if c.tie_word_embeddings {
        Linear::tied(&mut b, "lm_head", d, c.vocab_size, embed.1, false)
    } else {
        Linear::new(&mut b, "lm_head", d, c.vocab_size, false)
    };
    Ok(Built {
        net: b.finish(),
        arch: Rc::new(Llama {
            embed,
            layers,
            norm,
            head,
        }),
    })
}

impl Layer {
    fn heads(&self, m: &Run, x: &Tensor, lin: &Linear) -> Tensor {
        let y = lin.forward(m, x);
        let (b, s, w) = (y.size(0), y.size(1), y.size(2));
        let v = ops::view(
            &m.cx,
            &y,
            Shape::new(&[b, s, w / self.head_dim, self.head_dim]),
        );
        drop(y);
        ops::transpose(&m.cx, &v, 1, 2)
    }

    /// cos and sin of one layer as [1, 1, S, dim]: `cos_cached[position_ids]` (4.37), or from the frequencies (4.38).
    fn tables(&self, m: &Run, s: u64, dtype: ScalarType) -> (Tensor, Tensor) {
        let cx = &m.cx;
        let (cos, sin) = if self.computed_tables {
            common::rope::tables(m, s, self.head_dim, dtype)
        } else {
            let table = || cx.empty(OpId::INDEX, Shape::new(&[1, s, self.head_dim]), dtype);
            (table(), table())
        };
        (ops::unsqueeze(cx, &cos, 1), ops::unsqueeze(cx, &sin, 1))
    }

    fn attention(
        &self,
        m: &Run,
        x: &Tensor,
        mask: Option<&Tensor>,
        cache: &mut Vec<Tensor>,
        keep: bool,
    ) -> Tensor {
        let cx = &m.cx;
        let (b, s) = (x.size(0), x.size(1));
        let mut q = self.heads(m, x, &self.q);
        let mut k = self.heads(m, x, &self.k);
        let mut v = self.heads(m, x, &self.v);
        let (cos, sin) = self.tables(m, s, x.dtype);
        let q2 = common::rope::rotate(m, &q, &cos, &sin);
        let k2 = common::rope::rotate(m, &k, &cos, &sin);
        q = q2;
        k = k2;
        if keep {
            cache.push(k.clone());
            cache.push(v.clone());
        }
        let groups = q.size(1) / k.size(1);
        if groups > 1 {
            k = ops::repeat_kv(cx, &k, groups);
            v = ops::repeat_kv(cx, &v, groups);
        }
        if mask.is_some() {
            // with a mask the efficient kernel wanted contiguous operands
            q = ops::contiguous(cx, &q);
            k = ops::contiguous(cx, &k);
            v = ops::contiguous(cx, &v);
        }
        let args = SdpaArgs {
            mask: mask.cloned(),
            dropout: 0.0,
            is_causal: mask.is_none() && s > 1,
            enable_gqa: false,
            scale_given: false,
        };
        let mut o = ops::sdpa(cx, &q, &k, &v, &args);
        o = ops::contiguous(cx, &ops::transpose(cx, &o, 1, 2));
        o = ops::reshape(cx, &o, Shape::new(&[b, s, q.size(1) * self.head_dim]));
        o = self.o.forward(m, &o);
        drop(q);
        drop(k);
        drop(v);
        drop(cos);
        drop(sin);
        o
    }

    fn forward(
        &self,
        m: &Run,
        x: &Tensor,
        mask: Option<&Tensor>,
        cache: &mut Vec<Tensor>,
        keep: bool,
    ) -> Tensor {
        let cx = &m.cx;
        let mut h = self.input_norm.forward(m, x);
        h = self.attention(m, &h, mask, cache, keep);
        let x2 = ops::add(cx, x, &h);
        drop(h);
        let h = self.post_norm.forward(m, &x2);
        let g = self.gate.forward(m, &h);
        let a = ops::silu(cx, &g);
        drop(g);
        let u = self.up.forward(m, &h);
        let p = ops::mul(cx, &a, &u);
        drop(a);
        drop(u);
        let y = self.down.forward(m, &p);
        drop(p);
        drop(h);
        let out = ops::add(cx, &x2, &y);
        drop(y);
        drop(x2);
        out
    }
}

/// `_update_causal_mask` (4.38): additive, cloned for the batch where the call has a mask; kept through the call.
fn update_causal_mask(m: &Run, batch: &Batch, b: u64, s: u64, dtype: ScalarType) -> Option<Tensor> {
    let cx = &m.cx;
    let given = batch.attention_mask.as_ref();
    let full = cx.empty(OpId::FULL, Shape::new(&[s, s]), dtype);
    let triangle = cx.empty(OpId::FULL, Shape::new(&[s, s]), dtype);
    drop(full);
    let beyond = cx.empty(OpId::COMPARE, Shape::new(&[s, s]), ScalarType::Bool);
    drop(beyond);
    if given.is_none() {
        return Some(triangle);
    }
    let mask = cx.empty(OpId::CLONE, Shape::new(&[b, 1, s, s]), dtype);
    drop(triangle);
    let zeros = cx.empty(OpId::EQ, Shape::new(&[b, 1, s, s]), ScalarType::Bool);
    let padding = cx.empty(OpId::MUL, Shape::new(&[b, 1, s, s]), ScalarType::Bool);
    drop(zeros);
    let filled = cx.empty(OpId::MASKED_FILL, Shape::new(&[b, 1, s, s]), dtype);
    drop(filled);
    drop(padding);
    Some(mask)
}

impl Arch for Llama {
    fn forward(&self, m: &Rc<Run>, batch: &Batch) -> Output {
        let cx = &m.cx;
        let ids = batch
            .input_ids
            .as_ref()
            .expect("a language model's batch has input_ids");
        let (b, s) = (ids.size(0), ids.size(1));
        let emb = self.embed.forward(m, ids);
        let positions = cx.empty(OpId::ARANGE, Shape::new(&[1, s]), ScalarType::I64);
        let mask = if m.options.stack.transformers >= Version(4, 38, 0) {
            update_causal_mask(m, batch, b, s, emb.dtype)
        } else {
            // _prepare_4d_causal_attention_mask_for_sdpa: none where is_causal does
            None
        };
        let mut cache = vec![];
        let mut x = emb.clone();
        for (i, l) in self.layers.iter().enumerate() {
            x = if m.checkpoints(i) {
                let (l, m2) = (l.clone(), m.clone());
                let kwargs = (mask.clone(), positions.clone());
                cx.checkpoint(vec![x], move |_, t| {
                    let kwargs = &kwargs;
                    l.forward(&m2, &t[0], kwargs.0.as_ref(), &mut vec![], false)
                })
            } else {
                // use_cache is true by default, in training too
                l.forward(m, &x, mask.as_ref(), &mut cache, true)
            };
        }
        x = self.norm.forward(m, &x);
        drop(emb);
        drop(mask);
        drop(positions);
        let low = self.head.forward(m, &x);
        let logits = ops::to_dtype(cx, &low, ScalarType::F32);
        drop(low);
        let loss = batch.labels.as_ref().map(|labels| {
            let v = logits.size(2);
            let shifted = ops::contiguous(cx, &ops::slice(cx, &logits, 1, 0, s - 1));
            let target = ops::contiguous(cx, &ops::slice(cx, labels, 1, 1, s - 1));
            let flat = ops::view(cx, &shifted, Shape::new(&[b * (s - 1), v]));
            drop(shifted);
            let target = ops::view(cx, &target, Shape::new(&[b * (s - 1)]));
            ops::cross_entropy(cx, &flat, &target, ops::Reduction::Mean)
        });
        drop(x);
        Output {
            loss,
            logits: Some(logits),
            rest: cache,
        }
    }
}
