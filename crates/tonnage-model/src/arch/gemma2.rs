//! Gemma 2: sliding and full attention by turns, norms before and after each block, soft capped scores (in eager attention only)
//! and logits (transformers 5.17 and 4.57.6, src/transformers/models/gemma2/modeling_gemma2.py). Cases: `gemma2-*` of
//! torch-trace-own.jsonl.

use super::{Arch, Batch, Built, Head, Masks, Output, fields};
use crate::common::gemma::{self, Dims, Layer};
use crate::common::{self, activation::Activation};
use crate::error::ModelError;
use crate::layers::{Embedding, GemmaNorm, Linear};
use crate::net::{Kind, ModuleId, NetBuilder};
use crate::run::Run;
use crate::stack::Stack;
use serde::Deserialize;
use std::rc::Rc;
use tonnage_sim::{ScalarType, Tensor, ops};

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
    /// Layer by layer; by default every second one sees the whole sequence.
    pub layer_types: Option<Vec<String>>,
    pub attn_logit_softcapping: Option<f64>,
    pub final_logit_softcapping: Option<f64>,
    pub use_bidirectional_attention: Option<bool>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            vocab_size: 256_000,
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
            layer_types: None,
            attn_logit_softcapping: Some(50.0),
            final_logit_softcapping: Some(30.0),
            use_bidirectional_attention: None,
        }
    }
}

impl Config {
    fn dims(&self, activation: Activation) -> Dims {
        Dims {
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            bias: self.attention_bias,
            dropout: self.attention_dropout,
            qk_norm: false,
            soft_cap: self.attn_logit_softcapping.is_some(),
            activation,
        }
    }
}

struct Gemma2 {
    model: ModuleId,
    rotary: ModuleId,
    embed: Embedding,
    layers: Vec<Rc<Layer>>,
    norm: GemmaNorm,
    head: Linear,
    c: Config,
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
    let types = c.layer_types.as_deref();
    let sliding = gemma::sliding_layers(types, c.num_hidden_layers, 2)?;
    let activation = Activation::parse("hidden_activation", &c.hidden_activation)?;
    let dims = c.dims(activation);
    let five = stack.transformers_5();
    let (d, v) = (c.hidden_size, c.vocab_size);
    let mut b = NetBuilder::new();
    let (model, rotary, embed, layers, norm) = b.scope("model", |b| {
        let kind = Kind::Embedding { rows: v, width: d };
        let embed = b.scope_kind("embed_tokens", kind, |b| {
            let weight = b.param("weight", &[v, d]);
            if five {
                b.buffer("embed_scale", &[], None);
            }
            Embedding(b.id(), weight)
        });
        let layers = b.scope("layers", |b| {
            let one = |(i, s): (usize, &bool)| {
                Rc::new(Layer::new(b, i, dims, s.then_some(c.sliding_window)))
            };
            sliding.iter().enumerate().map(one).collect()
        });
        let norm = GemmaNorm::new(b, "norm", d);
        let rotary = b.scope("rotary_emb", |b| {
            b.buffer("inv_freq", &[c.head_dim / 2], Some(ScalarType::F32));
            if five {
                b.buffer(
                    "original_inv_freq",
                    &[c.head_dim / 2],
                    Some(ScalarType::F32),
                );
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
        arch: Rc::new(Gemma2 {
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

impl Gemma2 {
    /// `Gemma2TextScaledWordEmbedding`, of which 4.57 has only the embedding.
    fn embedded(&self, m: &Run, ids: &Tensor) -> Tensor {
        if !m.options.stack.transformers_5() {
            return self.embed.forward(m, ids);
        }
        gemma::scaled_embedding(m, &self.embed, ids)
    }
}

impl Arch for Gemma2 {
    fn generates(&self) -> bool {
        true
    }

    fn masks(&self) -> Masks {
        Masks {
            full: self.layers.iter().any(|l| !l.sliding()),
            window: (self.layers.iter().any(|l| l.sliding())).then_some(self.c.sliding_window),
        }
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
            let (cos, sin) = m.within(self.rotary, || {
                common::rope::tables_for(m, pos.size(0), s, self.c.head_dim, emb.dtype)
            });
            let mut x = if five {
                emb.clone()
            } else {
                // by a number on the host
                ops::mul_scalar(cx, &emb)
            };
            for (layer, l) in self.layers.iter().enumerate() {
                let mask = masks[usize::from(l.sliding())].clone();
                x = if m.checkpoints(layer) {
                    let (l, m2) = (l.clone(), m.clone());
                    let kwargs = (mask, sin.clone(), cos.clone(), pos.clone());
                    cx.checkpoint(vec![x], move |_, t| {
                        let kwargs = &kwargs;
                        l.forward(&m2, &t[0], &kwargs.2, &kwargs.1, kwargs.0.as_ref())
                    })
                } else {
                    l.forward(m, &x, &cos, &sin, mask.as_ref())
                };
            }
            // 4.57: the tuple that the last layer returned is a local to the end
            let last = (!five).then(|| x.clone());
            x = self.norm.forward(m, &x);
            drop(pos);
            drop(emb);
            drop(masks);
            drop(cos);
            drop(sin);
            drop(last);
            x
        });
        let kept = batch.last(cx, &h);
        let cap = self.c.final_logit_softcapping.is_some();
        let labels = batch.labels.as_ref();
        let (logits, loss) = common::loss::head_cap_and_loss(m, &self.head, &kept, labels, cap);
        drop(kept);
        drop(h);
        Output {
            loss,
            logits,
            rest: vec![],
        }
    }
}
