//! DeepSeek V2 and V3: latent attention, a few dense layers, then experts chosen by groups beside shared ones (transformers 5.17 and
//! 4.57.6, src/transformers/models/{deepseek_v2,deepseek_v3}/modeling_*.py). Cases: `deepseek-v3-tiny-*` and `deepseek-v2-tiny-*` of
//! torch-trace-own.jsonl. What depends on the router is said in [`crate::common::experts`].

mod attention;
mod moe;

use super::{Arch, Batch, Built, Head, Output, fields};
use crate::common;
use crate::error::ModelError;
use crate::layers::{Embedding, Linear, RmsNorm};
use crate::net::{ModuleId, NetBuilder};
use crate::run::Run;
use crate::stack::Stack;
use attention::{Attention, Tables};
use moe::{FeedForward, Mlp, Moe};
use serde::Deserialize;
use serde_json::Value;
use std::rc::Rc;
use tonnage_sim::{ScalarType, Tensor, ops};

/// The fields that matter to memory; absent ones take the defaults of their generation.
#[derive(Deserialize, Clone, Debug)]
pub struct Config {
    #[serde(skip)]
    v3: bool,
    vocab_size: u64,
    hidden_size: u64,
    intermediate_size: u64,
    moe_intermediate_size: u64,
    num_hidden_layers: u64,
    num_attention_heads: u64,
    #[serde(default)]
    num_key_value_heads: Option<u64>,
    n_shared_experts: u64,
    n_routed_experts: u64,
    #[serde(default)]
    num_experts_per_tok: Option<u64>,
    kv_lora_rank: u64,
    q_lora_rank: Option<u64>,
    qk_rope_head_dim: u64,
    qk_nope_head_dim: u64,
    v_head_dim: u64,
    n_group: Option<u64>,
    topk_group: Option<u64>,
    first_k_dense_replace: u64,
    norm_topk_prob: bool,
    rope_interleave: bool,
    topk_method: String,
    attention_bias: bool,
    mlp_bias: bool,
    attention_dropout: f64,
    tie_word_embeddings: bool,
}

impl Config {
    fn qk_head_dim(&self) -> u64 {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }
    /// Experts of a token.
    fn top_k(&self) -> u64 {
        self.num_experts_per_tok.unwrap_or(0)
    }
    /// Groups of experts, and how many of them a token may use; None: experts are chosen from all.
    fn groups(&self) -> Option<(u64, u64)> {
        let grouped = self.v3 || self.topk_method == "group_limited_greedy";
        grouped.then(|| (self.n_group.unwrap_or(0), self.topk_group.unwrap_or(0)))
    }
}

/// What transformers takes for fields that are not there.
fn defaults(v3: bool) -> Value {
    let mut both = serde_json::json!({
        "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
        "rope_interleave": true, "attention_bias": false, "mlp_bias": false, "attention_dropout": 0.0,
        "tie_word_embeddings": false,
    });
    let own = if v3 {
        serde_json::json!({
            "vocab_size": 129_280, "hidden_size": 7168, "intermediate_size": 18_432, "moe_intermediate_size": 2048,
            "num_hidden_layers": 61, "num_attention_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256,
            "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 3, "norm_topk_prob": true,
            "topk_method": "noaux_tc",
        })
    } else {
        serde_json::json!({
            "vocab_size": 102_400, "hidden_size": 4096, "intermediate_size": 11_008, "moe_intermediate_size": 1407,
            "num_hidden_layers": 32, "num_attention_heads": 32, "n_shared_experts": 2, "n_routed_experts": 64,
            "n_group": null, "topk_group": null, "first_k_dense_replace": 0, "norm_topk_prob": false,
            "topk_method": "greedy",
        })
    };
    if let (Some(b), Value::Object(o)) = (both.as_object_mut(), own) {
        b.extend(o);
    }
    both
}

fn config(model_type: &str, given: &Value) -> Result<Config, ModelError> {
    let v3 = model_type == "deepseek_v3";
    let mut all = defaults(v3);
    if let (Some(all), Some(given)) = (all.as_object_mut(), given.as_object()) {
        // a config.json always has the field, a number or null; tools that drop nulls leave it out (DeepSeek-V2-Lite)
        if given.contains_key("architectures") {
            all.insert("q_lora_rank".into(), Value::Null);
        }
        all.extend(given.iter().map(|(k, v)| (k.clone(), v.clone())));
    }
    let mut c: Config = fields(&all)?;
    c.v3 = v3;
    let bad = |field: &str, text: String| Err(ModelError::field(field, text));
    let h = c.num_attention_heads;
    if h == 0 || c.num_key_value_heads.is_some_and(|kv| kv != h) {
        return bad(
            "num_key_value_heads",
            format!("latent attention has as many as num_attention_heads, {h}"),
        );
    }
    if c.qk_rope_head_dim == 0 || !c.qk_rope_head_dim.is_multiple_of(2) {
        return bad(
            "qk_rope_head_dim",
            format!("{} is not even", c.qk_rope_head_dim),
        );
    }
    if c.first_k_dense_replace >= c.num_hidden_layers {
        return Ok(c);
    }
    let (e, k) = (c.n_routed_experts, c.top_k());
    if k == 0 || k > e {
        return bad("num_experts_per_tok", format!("{k} of {e} experts"));
    }
    if !v3 && !["greedy", "group_limited_greedy"].contains(&c.topk_method.as_str()) {
        let text = format!("`{}`; known: greedy, group_limited_greedy", c.topk_method);
        return bad("topk_method", text);
    }
    if let Some((n, top)) = c.groups() {
        if n == 0 || !e.is_multiple_of(n) {
            return bad(
                "n_group",
                format!("{n} does not divide n_routed_experts {e}"),
            );
        }
        if top == 0 || top > n {
            return bad("topk_group", format!("{top} of {n} groups"));
        }
    }
    Ok(c)
}

struct Layer {
    id: ModuleId,
    attention: Attention,
    feed_forward: FeedForward,
    input_norm: RmsNorm,
    post_norm: RmsNorm,
}

struct DeepSeek {
    model: ModuleId,
    rotary: ModuleId,
    embed: Embedding,
    layers: Vec<Rc<Layer>>,
    norm: RmsNorm,
    head: Linear,
    c: Rc<Config>,
}

/// From configuration fields; `model_type` is deepseek_v2 or deepseek_v3.
pub fn build(
    model_type: &str,
    given: &Value,
    _head: Head,
    stack: &Stack,
) -> Result<Built, ModelError> {
    let c = Rc::new(config(model_type, given)?);
    let five = stack.transformers_5();
    if !five && !c.v3 && c.first_k_dense_replace < c.num_hidden_layers {
        // its experts run on slices whose sizes the router decides, and nothing was recorded
        return Err(ModelError::NoForward(
            "deepseek_v2 with experts under transformers 4".into(),
        ));
    }
    let (d, v) = (c.hidden_size, c.vocab_size);
    let mut b = NetBuilder::new();
    let (model, rotary, embed, layers, norm) = b.scope("model", |b| {
        let embed = Embedding::new(b, "embed_tokens", v, d);
        let layers = b.scope("layers", |b| {
            (0..c.num_hidden_layers)
                .map(|i| Rc::new(layer(b, i, &c, five)))
                .collect()
        });
        let norm = RmsNorm::new(b, "norm", d);
        let rotary = b.scope("rotary_emb", |b| {
            let half = [c.qk_rope_head_dim / 2];
            b.buffer("inv_freq", &half, Some(ScalarType::F32));
            if five {
                b.buffer("original_inv_freq", &half, Some(ScalarType::F32));
            }
            b.id()
        });
        (b.id(), rotary, embed, layers, norm)
    });
    let head = if c.tie_word_embeddings {
        Linear::tied(&mut b, "lm_head", d, v, embed.1, false)
    } else {
        Linear::new(&mut b, "lm_head", d, v, false)
    };
    Ok(Built {
        net: b.finish(),
        arch: Rc::new(DeepSeek {
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

fn layer(b: &mut NetBuilder, i: u64, c: &Rc<Config>, five: bool) -> Layer {
    b.scope(&i.to_string(), |b| {
        let attention = Attention::new(b, c);
        let feed_forward = if i < c.first_k_dense_replace {
            FeedForward::Dense(Mlp::new(b, "mlp", c, c.intermediate_size))
        } else {
            FeedForward::Routed(Moe::new(b, c, five))
        };
        Layer {
            id: b.id(),
            attention,
            feed_forward,
            input_norm: RmsNorm::new(b, "input_layernorm", c.hidden_size),
            post_norm: RmsNorm::new(b, "post_attention_layernorm", c.hidden_size),
        }
    })
}

impl Layer {
    fn forward(&self, m: &Run, x: &Tensor, tables: &Tables, mask: Option<&Tensor>) -> Tensor {
        m.within(self.id, || {
            let cx = &m.cx;
            let mut h = self.input_norm.forward(m, x);
            let (a, weights) = self.attention.forward(m, &h, tables, mask);
            h = a;
            h = ops::add(cx, x, &h);
            let residual = h.clone();
            h = self.post_norm.forward(m, &h);
            h = match &self.feed_forward {
                FeedForward::Dense(mlp) => mlp.forward(m, &h),
                FeedForward::Routed(moe) => moe.forward(m, &h),
            };
            h = ops::add(cx, &residual, &h);
            drop(residual);
            drop(weights);
            h
        })
    }
}

impl Arch for DeepSeek {
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
            let emb = self.embed.forward(m, ids);
            let pos = common::mask::positions(m, batch, s);
            let mask = common::mask::causal(m, batch, b, s, emb.dtype);
            let tables = m.within(self.rotary, || {
                Tables::new(m, &self.c, [pos.size(0), s], emb.dtype)
            });
            let mut x = emb.clone();
            for (i, l) in self.layers.iter().enumerate() {
                x = if m.checkpoints(i) {
                    let (l, m2) = (l.clone(), m.clone());
                    let kwargs = (mask.clone(), tables.clone(), pos.clone());
                    cx.checkpoint(vec![x], move |_, t| {
                        let kwargs = &kwargs;
                        l.forward(&m2, &t[0], &kwargs.1, kwargs.0.as_ref())
                    })
                } else {
                    l.forward(m, &x, &tables, mask.as_ref())
                };
            }
            x = self.norm.forward(m, &x);
            drop(pos);
            drop(emb);
            drop(mask);
            drop(tables);
            x
        });
        let kept = batch.last(cx, &h);
        let logits = self.head.forward(m, &kept);
        drop(kept);
        let labels = batch.labels.as_ref();
        let loss = labels.map(|l| common::loss::causal_lm(m, &logits, l));
        drop(h);
        Output {
            loss,
            logits: Some(logits),
            rest: vec![],
        }
    }
}
