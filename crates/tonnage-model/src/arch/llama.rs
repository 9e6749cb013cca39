//! Llama and its close relatives: qwen2 (biased q, k, v), qwen3 (normed q and k), mistral
//! (transformers 5.17, src/transformers/models/{llama,qwen2,qwen3,mistral}/modeling_*.py).

use super::{Arch, Batch, Built, Head, Masks, Output, fields};
use crate::common;
use crate::error::ModelError;
use crate::layers::{Embedding, Linear, RmsNorm};
use crate::net::{ModuleId, NetBuilder};
use crate::run::{Attention, Run};
use crate::stack::Stack;
use serde::Deserialize;
use std::rc::Rc;
use tonnage_sim::ops;
use tonnage_sim::{OpId, ScalarType, Shape, Tensor};

/// The fields that matter to memory.
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
    pub attention_bias: bool,
    pub mlp_bias: bool,
    pub attention_dropout: f64,
    pub tie_word_embeddings: bool,
    pub num_labels: Option<u64>,
    pub id2label: Option<serde_json::Map<String, serde_json::Value>>,
    pub pad_token_id: Option<u64>,
    /// mistral: of all layers; qwen: of those from `max_window_layers` on, where `use_sliding_window`.
    pub sliding_window: Option<u64>,
    pub use_sliding_window: bool,
    pub max_window_layers: u64,
    /// The class repeats key and value heads before the flash kernel (`Stack::flash_repeats_heads`).
    #[serde(skip)]
    pub repeats_heads: bool,
    pub layer_types: Option<Vec<String>>,
    #[serde(skip)]
    by_layer: bool,
    #[serde(skip)]
    qkv_bias: bool,
    #[serde(skip)]
    qk_norm: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            vocab_size: 32000,
            hidden_size: 4096,
            intermediate_size: 11008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            attention_bias: false,
            mlp_bias: false,
            attention_dropout: 0.0,
            tie_word_embeddings: false,
            num_labels: None,
            id2label: None,
            pad_token_id: None,
            sliding_window: None,
            use_sliding_window: false,
            max_window_layers: 28,
            repeats_heads: false,
            layer_types: None,
            by_layer: false,
            qkv_bias: false,
            qk_norm: false,
        }
    }
}

impl Config {
    /// How far layer `i` looks back, if not to the start.
    fn window(&self, i: u64) -> Option<u64> {
        let w = self.sliding_window?;
        if !self.by_layer {
            return Some(w);
        }
        let sliding = match &self.layer_types {
            Some(t) => t.get(i as usize).is_some_and(|t| t == "sliding_attention"),
            None => i >= self.max_window_layers,
        };
        (self.use_sliding_window && sliding).then_some(w)
    }
}

struct Layer {
    id: ModuleId,
    attn: ModuleId,
    mlp: ModuleId,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    gate: Linear,
    up: Linear,
    down: Linear,
    input_norm: RmsNorm,
    post_norm: RmsNorm,
    head_dim: u64,
    dropout: f64,
    window: Option<u64>,
    repeats_heads: bool,
}

enum Top {
    Lm(Linear),
    /// Sequence classification; `pads`: a padding token is known.
    Score {
        score: Linear,
        pads: bool,
    },
    /// The model alone.
    Bare,
}

struct Llama {
    model: ModuleId,
    rotary: ModuleId,
    embed: Embedding,
    layers: Vec<Rc<Layer>>,
    norm: RmsNorm,
    head: Top,
    head_dim: u64,
    /// The model keeps a mask for each kind of layer.
    mapped: bool,
}

/// From configuration fields; `model_type` is llama, qwen2, qwen3 or mistral.
pub fn build(
    model_type: &str,
    config: &serde_json::Value,
    head: Head,
    stack: &Stack,
) -> Result<Built, ModelError> {
    let mut c: Config = fields(&defaults(model_type, config))?;
    c.repeats_heads = matches!(model_type, "qwen2" | "mistral") && stack.flash_repeats_heads();
    c.qkv_bias = model_type == "qwen2" || c.attention_bias;
    c.by_layer = model_type.starts_with("qwen");
    if model_type == "llama" {
        c.sliding_window = None;
    }
    c.qk_norm = model_type == "qwen3";
    let h = c.num_attention_heads;
    if h == 0 || (c.head_dim.is_none() && !c.hidden_size.is_multiple_of(h)) {
        return Err(ModelError::field(
            "num_attention_heads",
            format!("{h} does not divide hidden_size {}", c.hidden_size),
        ));
    }
    let head_dim = c.head_dim.unwrap_or(c.hidden_size / h);
    let kv = c.num_key_value_heads.unwrap_or(h);
    if kv == 0 || !h.is_multiple_of(kv) {
        return Err(ModelError::field(
            "num_key_value_heads",
            format!("{kv} does not divide num_attention_heads {h}"),
        ));
    }
    let mut b = NetBuilder::new();
    let (model, rotary, embed, layers, norm) = b.scope("model", |b| {
        let embed = Embedding::new(b, "embed_tokens", c.vocab_size, c.hidden_size);
        let layers = b.scope("layers", |b| {
            (0..c.num_hidden_layers)
                .map(|i| Rc::new(layer(b, i, &c, head_dim, kv)))
                .collect()
        });
        let norm = RmsNorm::new(b, "norm", c.hidden_size);
        let rotary = b.scope("rotary_emb", |b| {
            b.buffer("inv_freq", &[head_dim / 2], Some(ScalarType::F32));
            if stack.transformers_5() {
                b.buffer("original_inv_freq", &[head_dim / 2], Some(ScalarType::F32));
            }
            b.id()
        });
        (b.id(), rotary, embed, layers, norm)
    });
    let head = if head == Head::SequenceClassification {
        let labels = c.num_labels.or(c.id2label.as_ref().map(|m| m.len() as u64));
        Top::Score {
            score: Linear::new(&mut b, "score", c.hidden_size, labels.unwrap_or(2), false),
            pads: c.pad_token_id.is_some(),
        }
    } else if matches!(head, Head::Base | Head::Embedding) {
        Top::Bare
    } else if c.tie_word_embeddings {
        Top::Lm(Linear::tied(
            &mut b,
            "lm_head",
            c.hidden_size,
            c.vocab_size,
            embed.1,
            false,
        ))
    } else {
        Top::Lm(Linear::new(
            &mut b,
            "lm_head",
            c.hidden_size,
            c.vocab_size,
            false,
        ))
    };
    Ok(Built {
        net: b.finish(),
        arch: Rc::new(Llama {
            model,
            rotary,
            embed,
            layers,
            norm,
            head,
            head_dim,
            mapped: model_type.starts_with("qwen"),
        }),
    })
}

/// The configuration with the defaults in which a relative differs from Llama.
fn defaults(model_type: &str, config: &serde_json::Value) -> serde_json::Value {
    let extra: &[(&str, u64)] = match model_type {
        "qwen2" => &[
            ("vocab_size", 151_936),
            ("intermediate_size", 22_016),
            ("num_key_value_heads", 32),
        ],
        "qwen3" => &[
            ("vocab_size", 151_936),
            ("intermediate_size", 22_016),
            ("num_key_value_heads", 32),
            ("head_dim", 128),
        ],
        "mistral" => &[
            ("intermediate_size", 14_336),
            ("num_key_value_heads", 8),
            ("sliding_window", 4096),
        ],
        _ => &[],
    };
    let mut v = config.clone();
    if let Some(o) = v.as_object_mut() {
        for (k, n) in extra {
            o.entry(k.to_string()).or_insert_with(|| (*n).into());
        }
    }
    v
}

fn layer(b: &mut NetBuilder, i: u64, c: &Config, head_dim: u64, kv: u64) -> Layer {
    let (d, f) = (c.hidden_size, c.intermediate_size);
    let qd = c.num_attention_heads * head_dim;
    b.scope(&i.to_string(), |b| {
        let id = b.id();
        let (attn, q, k, v, o, q_norm, k_norm) = b.scope("self_attn", |b| {
            let q = Linear::new(b, "q_proj", d, qd, c.qkv_bias);
            let k = Linear::new(b, "k_proj", d, kv * head_dim, c.qkv_bias);
            let v = Linear::new(b, "v_proj", d, kv * head_dim, c.qkv_bias);
            let o = Linear::new(b, "o_proj", qd, d, c.attention_bias);
            let q_norm = c.qk_norm.then(|| RmsNorm::new(b, "q_norm", head_dim));
            let k_norm = c.qk_norm.then(|| RmsNorm::new(b, "k_norm", head_dim));
            (b.id(), q, k, v, o, q_norm, k_norm)
        });
        let (mlp, gate, up, down) = b.scope("mlp", |b| {
            let g = Linear::new(b, "gate_proj", d, f, c.mlp_bias);
            let u = Linear::new(b, "up_proj", d, f, c.mlp_bias);
            (b.id(), g, u, Linear::new(b, "down_proj", f, d, c.mlp_bias))
        });
        let input_norm = RmsNorm::new(b, "input_layernorm", d);
        let post_norm = RmsNorm::new(b, "post_attention_layernorm", d);
        Layer {
            id,
            attn,
            mlp,
            q,
            k,
            v,
            o,
            q_norm,
            k_norm,
            gate,
            up,
            down,
            input_norm,
            post_norm,
            head_dim,
            dropout: c.attention_dropout,
            window: c.window(i),
            repeats_heads: c.repeats_heads,
        }
    })
}

impl Layer {
    fn heads(&self, m: &Run, x: &Tensor, lin: &Linear, norm: Option<&RmsNorm>) -> Tensor {
        let y = lin.forward(m, x);
        let (b, s, w) = (y.size(0), y.size(1), y.size(2));
        let v = ops::view(
            &m.cx,
            &y,
            Shape::new(&[b, s, w / self.head_dim, self.head_dim]),
        );
        drop(y);
        let v = match norm {
            Some(n) => n.forward(m, &v),
            None => v,
        };
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
        let mut q = self.heads(m, x, &self.q, self.q_norm.as_ref());
        let mut k = self.heads(m, x, &self.k, self.k_norm.as_ref());
        let v = self.heads(m, x, &self.v, None);
        let (q2, k2) = common::rope::apply(m, &q, &k, cos, sin);
        q = q2;
        k = k2;
        let (mut k, mut v) = m.cached(self.attn, self.window, k, v);
        if self.repeats_heads && m.options.attention == Attention::FlashAttention2 {
            let groups = q.size(1) / k.size(1);
            k = ops::repeat_kv(cx, &k, groups);
            v = ops::repeat_kv(cx, &v, groups);
        }
        let mut o = common::attention::attend(m, &q, &k, &v, mask, self.dropout, true);
        o = ops::reshape(cx, &o, Shape::new(&[b, s, self.o_in(m)]));
        o = self.o.forward(m, &o);
        drop(q);
        drop(k);
        drop(v);
        o
    }

    fn o_in(&self, m: &Run) -> u64 {
        match m.net.module(self.o.0).kind {
            crate::net::Kind::Linear { input, .. } => input,
            _ => 0,
        }
    }

    fn feed_forward(&self, m: &Run, x: &Tensor) -> Tensor {
        let g = self.gate.forward(m, x);
        let a = ops::silu(&m.cx, &g);
        drop(g);
        let u = self.up.forward(m, x);
        let p = ops::mul(&m.cx, &a, &u);
        drop(a);
        drop(u);
        let y = self.down.forward(m, &p);
        drop(p);
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
        m.within(self.id, || {
            let h = self.input_norm.forward(m, x);
            let a = m.within(self.attn, || self.attention(m, &h, cos, sin, mask));
            drop(h);
            let x2 = ops::add(&m.cx, x, &a);
            drop(a);
            let h = self.post_norm.forward(m, &x2);
            let f = m.within(self.mlp, || self.feed_forward(m, &h));
            drop(h);
            let y = ops::add(&m.cx, &x2, &f);
            drop(f);
            drop(x2);
            y
        })
    }
}

impl Arch for Llama {
    fn generates(&self) -> bool {
        matches!(self.head, Top::Lm(_))
    }

    fn caches(&self) -> bool {
        true
    }

    fn masks(&self) -> Masks {
        Masks {
            full: self.layers.iter().any(|l| l.window.is_none()),
            window: self.layers.iter().find_map(|l| l.window),
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
            // mistral has one mask for all layers, qwen one for each kind of layer
            let window = self.layers.iter().find_map(|l| l.window);
            let full = self.mapped || window.is_none();
            let mask = full
                .then(|| common::mask::causal(m, batch, b, s, emb.dtype))
                .flatten();
            let near =
                window.and_then(|w| common::mask::windowed(m, batch, b, s, emb.dtype, Some(w)));
            let mask_of = |l: &Layer| match l.window {
                Some(_) => near.clone(),
                None => mask.clone(),
            };
            let (cos, sin) = m.within(self.rotary, || {
                common::rope::tables_for(m, pos.size(0), s, self.head_dim, emb.dtype)
            });
            let mut x = emb.clone();
            for (i, l) in self.layers.iter().enumerate() {
                x = if m.checkpoints(i) {
                    let (l, m2) = (l.clone(), m.clone());
                    // in the order in which the keyword arguments die
                    let kwargs = (mask_of(&l), sin.clone(), cos.clone(), pos.clone());
                    cx.checkpoint(vec![x], move |_, t| {
                        let kwargs = &kwargs;
                        l.forward(&m2, &t[0], &kwargs.2, &kwargs.1, kwargs.0.as_ref())
                    })
                } else {
                    l.forward(m, &x, &cos, &sin, mask_of(l).as_ref())
                };
            }
            x = self.norm.forward(m, &x);
            // 4.57: `cache_position`, a later argument than `inputs_embeds`, shares the storage of the position ids
            let cache_position = (!m.options.stack.transformers_5()).then(|| pos.clone());
            if self.mapped {
                // qwen: `causal_mask_mapping`, then `mask_kwargs`, which names embeddings and positions once more
                drop(mask);
                drop(near);
                drop(emb);
                drop(cache_position);
                drop(pos);
            } else {
                drop(pos);
                drop(emb);
                drop(cache_position);
                drop(mask);
                drop(near);
            }
            drop(sin);
            drop(cos);
            x
        });
        let head = match &self.head {
            Top::Lm(head) => head,
            Top::Score { score, pads } => return classified(m, score, *pads, ids, h),
            Top::Bare => {
                return Output {
                    rest: vec![h],
                    ..Output::default()
                };
            }
        };
        let kept = batch.last(cx, &h);
        let (logits, loss) = common::loss::head_and_loss(m, head, &kept, batch.labels.as_ref());
        drop(kept);
        drop(h);
        Output {
            loss,
            logits,
            rest: vec![],
        }
    }
}

/// `GenericForSequenceClassification.forward` without labels: scores of every position, then of each sequence's last one that is
/// no padding (transformers 5.17, src/transformers/modeling_layers.py; case `qwen3-tiny-forward-bf16-classification`).
fn classified(m: &Run, score: &Linear, pads: bool, ids: &Tensor, h: Tensor) -> Output {
    let cx = &m.cx;
    let (b, s) = (ids.size(0), ids.size(1));
    let logits = score.forward(m, &h);
    let mut locals = Vec::new();
    if pads {
        let kept = cx.empty(OpId::NE, ids.shape, ScalarType::Bool);
        let mask = cx.empty(OpId::TO_COPY, ids.shape, ScalarType::I32);
        drop(kept);
        let places = cx.empty(OpId::ARANGE, Shape::new(&[s]), ScalarType::I32);
        let product = cx.empty(OpId::MUL, ids.shape, ScalarType::I32);
        let last = ops::argmax(cx, &product, -1);
        drop(product);
        locals = vec![last, mask, places];
    }
    let rows = cx.empty(OpId::ARANGE, Shape::new(&[b]), ScalarType::I64);
    let picked = Shape::new(&[b, logits.size(-1)]);
    let pooled = cx.empty(OpId::INDEX, picked, logits.dtype);
    drop(rows);
    drop(h);
    drop(logits);
    locals.into_iter().for_each(drop);
    Output {
        logits: Some(pooled),
        ..Output::default()
    }
}
