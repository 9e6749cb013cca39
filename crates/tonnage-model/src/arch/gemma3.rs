//! Gemma 3's text model: sliding and full attention by turns, each with rotary tables of its own, norms of q and k, norms before and
//! after each block (transformers 5.17 and 4.57.6, src/transformers/models/gemma3/modeling_gemma3.py). Cases: `gemma3-tiny-*` of
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
use tonnage_sim::{ScalarType, Tensor};

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
    fn dims(&self, activation: Activation) -> Dims {
        Dims {
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            bias: self.attention_bias,
            dropout: self.attention_dropout,
            qk_norm: true,
            soft_cap: false,
            activation,
        }
    }
}

struct Gemma3 {
    model: ModuleId,
    /// For full and for sliding layers; one module in 5.x.
    rotary: [ModuleId; 2],
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
    let sliding = gemma::sliding_layers(types, c.num_hidden_layers, c.sliding_window_pattern)?;
    let activation = Activation::parse("hidden_activation", &c.hidden_activation)?;
    let dims = c.dims(activation);
    let five = stack.transformers_5();
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
            let one = |(i, s): (usize, &bool)| {
                Rc::new(Layer::new(b, i, dims, s.then_some(c.sliding_window)))
            };
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

impl Gemma3 {
    /// `lm_head`, and the logits capped where the configuration says so.
    fn logits(&self, m: &Run, x: &Tensor) -> Tensor {
        let mut logits = self.head.forward(m, x);
        if self.c.final_logit_softcapping.is_some() {
            logits = common::activation::soft_cap(m, logits);
        }
        logits
    }
}

impl Arch for Gemma3 {
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
            let emb = gemma::scaled_embedding(m, &self.embed, ids);
            let pos = common::mask::positions(m, batch, s);
            let window = Some(self.c.sliding_window);
            let masks =
                [None, window].map(|w| common::mask::windowed(m, batch, b, s, emb.dtype, w));
            // the tables of full and of sliding layers; 5.x makes those that some layer needs
            let tables = [false, true].map(|sliding| {
                (!five || self.layers.iter().any(|l| l.sliding() == sliding)).then(|| {
                    m.within(self.rotary[usize::from(sliding)], || {
                        common::rope::tables_for(m, pos.size(0), s, self.c.head_dim, emb.dtype)
                    })
                })
            });
            let mut x = emb.clone();
            for (layer, l) in self.layers.iter().enumerate() {
                let i = usize::from(l.sliding());
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
