//! T5 for conditional generation (transformers 5.17 and 4.57.6, src/transformers/models/t5/modeling_t5.py). 5.x runs attention through
//! the interfaces with the relative positions as an additive mask and keeps a key/value cache in the decoder while training
//! (the decoder has its own copy of the configuration); 4.57 knows eager attention only.

mod attention;

use self::attention::{Attn, Cache, Kept};
use super::{Arch, Batch, Built, Caches, EncoderDecoder, Head, Output, fields};
use crate::common::{self, activation::Activation};
use crate::error::ModelError;
use crate::layers::{Dropout, Embedding, Linear};
use crate::net::{Kind, ModuleId, NetBuilder, ParamId};
use crate::run::Run;
use crate::stack::Stack;
use serde::Deserialize;
use std::cell::RefCell;
use std::rc::Rc;
use tonnage_sim::ops;
use tonnage_sim::{OpId, ScalarType, Shape, Tensor};

/// The fields that matter to memory, with transformers' defaults.
#[derive(Deserialize, Clone, Debug)]
#[serde(default)]
pub struct Config {
    pub vocab_size: u64,
    pub d_model: u64,
    pub d_kv: u64,
    pub d_ff: u64,
    pub num_layers: u64,
    pub num_decoder_layers: Option<u64>,
    pub num_heads: u64,
    pub relative_attention_num_buckets: u64,
    pub dropout_rate: f64,
    pub feed_forward_proj: String,
    pub tie_word_embeddings: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            vocab_size: 32128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_decoder_layers: None,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            dropout_rate: 0.1,
            feed_forward_proj: "relu".into(),
            tie_word_embeddings: true,
        }
    }
}

/// `T5LayerNorm`: the statistics in fp32, no mean, no bias.
struct Norm {
    id: ModuleId,
    weight: ParamId,
}

struct FeedForward {
    id: ModuleId,
    dense: ModuleId,
    wi: Linear,
    gate: Option<Linear>,
    wo: Linear,
    inner_dropout: Dropout,
    act_id: ModuleId,
    act: Activation,
    norm: Norm,
    dropout: Dropout,
}

/// `T5LayerSelfAttention` or `T5LayerCrossAttention`.
struct Sublayer {
    id: ModuleId,
    attn: Attn,
    norm: Norm,
    dropout: Dropout,
}

struct Block {
    id: ModuleId,
    own: Sublayer,
    cross: Option<Sublayer>,
    ff: FeedForward,
}

struct Side {
    id: ModuleId,
    embed: ModuleId,
    blocks: Vec<Rc<Block>>,
    norm: Norm,
    dropout: Dropout,
    decoder: bool,
}

struct T5 {
    shared: Embedding,
    encoder: Side,
    decoder: Side,
    head: Linear,
    scale: bool,
}

/// From configuration fields.
pub fn build(config: &serde_json::Value, _head: Head, stack: &Stack) -> Result<Built, ModelError> {
    let c: Config = fields(config)?;
    let (gated, name) = match c.feed_forward_proj.split_once('-') {
        Some(("gated", name)) => (true, name),
        _ => (false, c.feed_forward_proj.as_str()),
    };
    let name = if gated && name == "gelu" {
        "gelu_new"
    } else {
        name
    };
    let act = Activation::parse("feed_forward_proj", name)?;
    let mut b = NetBuilder::new();
    let shared = Embedding::new(&mut b, "shared", c.vocab_size, c.d_model);
    let encoder = side(&mut b, "encoder", &c, shared.1, c.num_layers, (act, gated));
    let n = c.num_decoder_layers.unwrap_or(c.num_layers);
    let decoder = side(&mut b, "decoder", &c, shared.1, n, (act, gated));
    // 5.x ties whatever the configuration says, and only scales by it
    let head = if c.tie_word_embeddings || stack.transformers_5() {
        Linear::tied(&mut b, "lm_head", c.d_model, c.vocab_size, shared.1, false)
    } else {
        Linear::new(&mut b, "lm_head", c.d_model, c.vocab_size, false)
    };
    Ok(Built {
        net: b.finish(),
        arch: Rc::new(T5 {
            shared,
            encoder,
            decoder,
            head,
            scale: c.tie_word_embeddings,
        }),
    })
}

fn norm(b: &mut NetBuilder, name: &str, c: &Config) -> Norm {
    b.scope_kind(name, Kind::Norm, |b| Norm {
        id: b.id(),
        weight: b.param("weight", &[c.d_model]),
    })
}

fn sublayer(b: &mut NetBuilder, index: &str, name: &str, c: &Config, biased: bool) -> Sublayer {
    b.scope(index, |b| Sublayer {
        attn: Attn::new(b, name, c, biased),
        norm: norm(b, "layer_norm", c),
        dropout: Dropout::new(b, "dropout", c.dropout_rate),
        id: b.id(),
    })
}

fn side(
    b: &mut NetBuilder,
    name: &str,
    c: &Config,
    shared: ParamId,
    layers: u64,
    (act, gated): (Activation, bool),
) -> Side {
    let decoder = name == "decoder";
    b.scope(name, |b| {
        let kind = Kind::Embedding {
            rows: c.vocab_size,
            width: c.d_model,
        };
        let embed = b.scope_kind("embed_tokens", kind, |b| {
            b.tie("weight", shared);
            b.id()
        });
        let blocks = b.scope("block", |b| {
            (0..layers)
                .map(|i| {
                    Rc::new(b.scope(&i.to_string(), |b| {
                        let id = b.id();
                        b.scope("layer", |b| Block {
                            id,
                            own: sublayer(b, "0", "SelfAttention", c, i == 0),
                            cross: decoder.then(|| sublayer(b, "1", "EncDecAttention", c, false)),
                            ff: feed_forward(b, if decoder { "2" } else { "1" }, c, act, gated),
                        })
                    }))
                })
                .collect()
        });
        Side {
            embed,
            blocks,
            norm: norm(b, "final_layer_norm", c),
            dropout: Dropout::new(b, "dropout", c.dropout_rate),
            decoder,
            id: b.id(),
        }
    })
}

fn feed_forward(
    b: &mut NetBuilder,
    name: &str,
    c: &Config,
    act: Activation,
    gated: bool,
) -> FeedForward {
    let (d, f) = (c.d_model, c.d_ff);
    b.scope(name, |b| {
        let id = b.id();
        let (dense, wi, gate, wo, inner_dropout, act_id) = b.scope("DenseReluDense", |b| {
            let wi = Linear::new(b, if gated { "wi_0" } else { "wi" }, d, f, false);
            let gate = gated.then(|| Linear::new(b, "wi_1", d, f, false));
            let wo = Linear::new(b, "wo", f, d, false);
            let dropout = Dropout::new(b, "dropout", c.dropout_rate);
            (b.id(), wi, gate, wo, dropout, b.scope("act", |b| b.id()))
        });
        FeedForward {
            id,
            dense,
            wi,
            gate,
            wo,
            inner_dropout,
            act_id,
            act,
            norm: norm(b, "layer_norm", c),
            dropout: Dropout::new(b, "dropout", c.dropout_rate),
        }
    })
}

impl Norm {
    fn forward(&self, m: &Run, x: &Tensor) -> Tensor {
        m.within(self.id, || {
            let cx = &m.cx;
            let wide = ops::to_dtype(cx, x, ScalarType::F32);
            let square = ops::pow_scalar(cx, &wide);
            drop(wide);
            let variance = ops::mean(cx, &square, &[-1], true);
            drop(square);
            let sum = ops::add_scalar(cx, &variance);
            let r = ops::rsqrt(cx, &sum);
            drop(sum);
            let mut h = ops::mul(cx, x, &r);
            drop(r);
            let w = m.weight(self.weight);
            if w.dtype.size() == 2 {
                h = ops::to_dtype(cx, &h, w.dtype);
            }
            let y = ops::mul(cx, w, &h);
            drop(h);
            drop(variance);
            y
        })
    }
}

impl FeedForward {
    fn inner(&self, m: &Run, x: &Tensor) -> Tensor {
        let cx = &m.cx;
        let act = |t: &Tensor| m.within(self.act_id, || self.act.forward(m, t));
        let first = self.wi.forward(m, x);
        let mut h = act(&first);
        drop(first);
        let mut parts = None;
        if let Some(gate) = &self.gate {
            let linear = gate.forward(m, x);
            let gelu = h;
            h = ops::mul(cx, &gelu, &linear);
            parts = Some((gelu, linear));
        }
        h = self.inner_dropout.forward(m, &h);
        // T5DenseActDense casts to the dtype of wo, which autocast then undoes
        h = ops::to_dtype(cx, &h, m.weight(m.net.module(self.wo.0).params[0].1).dtype);
        h = self.wo.forward(m, &h);
        drop(parts);
        h
    }

    fn forward(&self, m: &Run, x: &Tensor) -> Tensor {
        m.within(self.id, || {
            let mut f = self.norm.forward(m, x);
            f = m.within(self.dense, || self.inner(m, &f));
            let d = self.dropout.forward(m, &f);
            let y = ops::add(&m.cx, x, &d);
            drop(d);
            drop(f);
            y
        })
    }
}

/// What a block hands back besides the hidden states: the position biases of its two attentions.
#[derive(Default)]
struct Biases {
    own: Option<Tensor>,
    cross: Option<Tensor>,
}

/// What every block of a side gets.
#[derive(Clone)]
struct Context {
    mask: Option<Tensor>,
    encoder: Option<Tensor>,
    encoder_mask: Option<Tensor>,
    /// 4.57: int64 [S].
    positions: Option<Tensor>,
    cache: Option<Kept>,
}

impl Sublayer {
    fn forward(
        &self,
        m: &Run,
        x: &Tensor,
        context: &Context,
        bias: Option<&Tensor>,
        cross: bool,
    ) -> (Tensor, Tensor, Option<Tensor>) {
        m.within(self.id, || {
            let normed = self.norm.forward(m, x);
            let (o, bias, weights) = self.attn.forward(m, &normed, context, bias, cross);
            let d = self.dropout.forward(m, &o);
            let y = ops::add(&m.cx, x, &d);
            drop(d);
            if m.options.stack.transformers_5() {
                // `attention_output` is rebound, 4.57 holds a tuple
                drop(o);
                drop(normed);
            } else {
                drop(normed);
                drop(o);
            }
            (y, bias, weights)
        })
    }
}

impl Block {
    fn forward(&self, m: &Run, x: &Tensor, context: &Context, given: &Biases) -> (Tensor, Biases) {
        m.within(self.id, || {
            let five = m.options.stack.transformers_5();
            let (mut h, own, mut weights) =
                self.own.forward(m, x, context, given.own.as_ref(), false);
            // 4.57 keeps the sublayers' outputs in tuples
            let first = (!five).then(|| h.clone());
            let mut second = None;
            let mut cross_bias = None;
            if let Some(cross) = &self.cross {
                let length = context
                    .positions
                    .as_ref()
                    .map(|_| m.cx.empty(OpId::ADD, Shape::new(&[]), ScalarType::I64));
                let (y, bias, w) = cross.forward(m, &h, context, given.cross.as_ref(), true);
                drop(length);
                h = y;
                cross_bias = Some(bias);
                weights = w;
                second = (!five).then(|| h.clone());
            }
            h = self.ff.forward(m, &h);
            drop(weights);
            drop(first);
            drop(second);
            let out = Biases {
                own: Some(own),
                cross: cross_bias,
            };
            (h, out)
        })
    }
}

impl Side {
    /// One stack: hidden states after the last norm; the caches stay in `cache`.
    fn forward(
        &self,
        t5: &T5,
        m: &Rc<Run>,
        ids: &Tensor,
        mask: Option<&Tensor>,
        encoder: Option<&Tensor>,
        cache: Option<Kept>,
    ) -> Tensor {
        let cx = &m.cx;
        let five = m.options.stack.transformers_5();
        let owner = if five { self.embed } else { t5.shared.0 };
        let (b, s) = (ids.size(0), ids.size(1));
        let emb = m.within(owner, || ops::embedding(cx, ids, m.weight(t5.shared.1)));
        let (own, positions, own_mask, encoder_mask) = if five {
            let own = if self.decoder {
                common::mask::causal_cached(m, b, s, emb.dtype)
            } else {
                common::mask::bidirectional(m, mask)
            };
            let cross = encoder.and_then(|_| common::mask::bidirectional(m, mask));
            (None, None, own, cross)
        } else {
            let p = cx.empty(OpId::ARANGE, Shape::new(&[s]), ScalarType::I64);
            if self.decoder {
                let (ones, causal) = attention::causal_mask_4(m, b, s, emb.dtype);
                let cross = mask.map(|k| attention::inverted_mask_4(m, k, emb.dtype));
                (Some(ones), Some(p), Some(causal), cross)
            } else {
                let own = mask.map(|k| attention::inverted_mask_4(m, k, emb.dtype));
                (None, Some(p), own, None)
            }
        };
        let context = Context {
            mask: own_mask,
            encoder: encoder.cloned(),
            encoder_mask,
            positions,
            cache,
        };
        let mut x = self.dropout.forward(m, &emb);
        let mut biases = Biases::default();
        // layers are counted through the whole model
        let before = encoder.map_or(0, |_| t5.encoder.blocks.len());
        for (i, block) in self.blocks.iter().enumerate() {
            let (y, new) = if m.checkpoints(before + i) {
                self.checkpointed(m, block, x.clone(), &context, &biases)
            } else {
                block.forward(m, &x, &context, &biases)
            };
            x = y;
            biases.own = new.own;
            biases.cross = new.cross;
        }
        x = self.norm.forward(m, &x);
        x = self.dropout.forward(m, &x);
        let Context {
            mask,
            encoder_mask,
            positions,
            ..
        } = context;
        if five {
            drop(mask);
            drop(emb);
        } else {
            drop(own);
            drop(emb);
            drop(positions);
            drop(mask);
        }
        drop(encoder_mask);
        drop(biases.own);
        drop(biases.cross);
        x
    }

    fn checkpointed(
        &self,
        m: &Rc<Run>,
        block: &Rc<Block>,
        x: Tensor,
        context: &Context,
        biases: &Biases,
    ) -> (Tensor, Biases) {
        // a checkpointed layer gets no cache
        let kept = Context {
            cache: None,
            ..context.clone()
        };
        let given = Biases {
            own: biases.own.clone(),
            cross: biases.cross.clone(),
        };
        let out = Rc::new(RefCell::new(Biases::default()));
        // only the first run's biases are handed on
        let slot = Rc::downgrade(&out);
        let (block, run) = (block.clone(), m.clone());
        let y = m.cx.checkpoint(vec![x], move |_, t| {
            let (y, b) = block.forward(&run, &t[0], &kept, &given);
            if let Some(slot) = slot.upgrade() {
                *slot.borrow_mut() = b;
            }
            y
        });
        let biases = out.take();
        (y, biases)
    }
}

impl T5 {
    fn scaled(&self, m: &Run, decoded: &Tensor) -> Tensor {
        match self.scale {
            true => ops::mul_scalar(&m.cx, decoded),
            false => decoded.clone(),
        }
    }
}

/// Case `t5-tiny-generate-bf16`.
impl EncoderDecoder for T5 {
    fn encode(&self, m: &Rc<Run>, ids: &Tensor, mask: Option<&Tensor>) -> Tensor {
        m.within(self.encoder.id, || {
            self.encoder.forward(self, m, ids, mask, None, None)
        })
    }

    fn decode(
        &self,
        m: &Rc<Run>,
        ids: &Tensor,
        encoded: &Tensor,
        mask: Option<&Tensor>,
        caches: &Caches,
    ) -> Tensor {
        let cache = Some(Kept::Growing(caches.clone()));
        let decoded = m.within(self.decoder.id, || {
            self.decoder
                .forward(self, m, ids, mask, Some(encoded), cache)
        });
        let scaled = self.scaled(m, &decoded);
        let logits = self.head.forward(m, &scaled);
        drop(decoded);
        drop(scaled);
        logits
    }
}

impl Arch for T5 {
    fn encoder_decoder(&self) -> Option<&dyn EncoderDecoder> {
        Some(self)
    }

    fn forward(&self, m: &Rc<Run>, batch: &Batch) -> Output {
        let ids = batch
            .input_ids
            .as_ref()
            .expect("an encoder-decoder's batch has input_ids");
        let mask = batch.attention_mask.as_ref();
        let encoded = self.encode(m, ids, mask);
        let labels = batch.labels.as_ref();
        let decoder_ids = labels.map(|l| common::loss::shift_right(m, l));
        let start = decoder_ids.as_ref().unwrap_or(ids);
        // checkpointing anywhere switches the cache off (case `t5-tiny-plain-bf16-ckpt-every2`)
        let checkpointing = m.training && m.options.checkpoint.is_some();
        let cached = m.options.stack.transformers_5() && !checkpointing;
        let cache = cached.then(|| Rc::new(Cache::default()));
        let decoded = m.within(self.decoder.id, || {
            let cache = cache.clone().map(Kept::Once);
            self.decoder
                .forward(self, m, start, mask, Some(&encoded), cache)
        });
        let scaled = self.scaled(m, &decoded);
        let logits = self.head.forward(m, &scaled);
        let loss = labels.map(|l| common::loss::cross_entropy(m, &logits, l));
        drop(decoder_ids);
        drop(decoded);
        drop(scaled);
        let mut rest = cache.map_or(vec![], |c| c.release());
        rest.push(encoded);
        Output {
            loss,
            logits: Some(logits),
            rest,
        }
    }
}
