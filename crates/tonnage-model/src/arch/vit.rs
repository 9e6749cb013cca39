//! Vision transformer for image classification (transformers 5.17 and 4.57.6, src/transformers/models/vit/modeling_vit.py, which
//! differ in module names, in the order of the projections and in what the layer keeps in variables).

use super::{Arch, Batch, Built, Head, Output, fields};
use crate::common::{self, activation::Activation};
use crate::error::ModelError;
use crate::layers::{Dropout, LayerNorm, Linear};
use crate::net::{Kind, ModuleId, NetBuilder, ParamId};
use crate::run::Run;
use crate::stack::Stack;
use serde::Deserialize;
use std::rc::Rc;
use tonnage_sim::ops;
use tonnage_sim::{Shape, Tensor};

/// One number, or height and width.
#[derive(Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(untagged)]
pub enum Side {
    Square(u64),
    Rectangle(u64, u64),
}

impl Side {
    fn sizes(self) -> (u64, u64) {
        match self {
            Side::Square(n) => (n, n),
            Side::Rectangle(h, w) => (h, w),
        }
    }
}

/// The fields that matter to memory, with transformers' defaults.
#[derive(Deserialize, Clone, Debug)]
#[serde(default)]
pub struct Config {
    pub hidden_size: u64,
    pub num_hidden_layers: u64,
    pub num_attention_heads: u64,
    pub intermediate_size: u64,
    pub hidden_act: String,
    pub hidden_dropout_prob: f64,
    pub attention_probs_dropout_prob: f64,
    pub image_size: Side,
    pub patch_size: Side,
    pub num_channels: u64,
    pub qkv_bias: bool,
    pub num_labels: Option<u64>,
    pub id2label: Option<serde_json::Map<String, serde_json::Value>>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: "gelu".into(),
            hidden_dropout_prob: 0.0,
            attention_probs_dropout_prob: 0.0,
            image_size: Side::Square(224),
            patch_size: Side::Square(16),
            num_channels: 3,
            qkv_bias: true,
            num_labels: None,
            id2label: None,
        }
    }
}

struct Layer {
    id: ModuleId,
    attention: ModuleId,
    q: Linear,
    k: Linear,
    v: Linear,
    /// The module that holds `o`; 5.x: `attention` itself.
    output: ModuleId,
    o: Linear,
    before: LayerNorm,
    after: LayerNorm,
    mlp: ModuleId,
    fc1: Linear,
    act_id: ModuleId,
    act: Activation,
    fc2: Linear,
    fc2_owner: ModuleId,
    /// After attention and after the MLP; one module in 5.x.
    dropouts: [Dropout; 2],
    head_dim: u64,
    dropout: f64,
}

struct Vit {
    id: ModuleId,
    embeddings: ModuleId,
    patch: ModuleId,
    cls_token: ParamId,
    position: ParamId,
    weight: ParamId,
    bias: ParamId,
    stride: u64,
    dropout: Dropout,
    encoder: ModuleId,
    layers: Vec<Rc<Layer>>,
    norm: LayerNorm,
    classifier: Linear,
}

/// From configuration fields.
pub fn build(config: &serde_json::Value, _head: Head, stack: &Stack) -> Result<Built, ModelError> {
    let c: Config = fields(config)?;
    if c.num_attention_heads == 0 || !c.hidden_size.is_multiple_of(c.num_attention_heads) {
        return Err(ModelError::field(
            "num_attention_heads",
            format!(
                "{} does not divide hidden_size {}",
                c.num_attention_heads, c.hidden_size
            ),
        ));
    }
    let ((ih, iw), (ph, pw)) = (c.image_size.sizes(), c.patch_size.sizes());
    if ph == 0 || ph != pw {
        return Err(ModelError::field(
            "patch_size",
            "only square patches are modelled",
        ));
    }
    let act = Activation::parse("hidden_act", &c.hidden_act)?;
    let d = c.hidden_size;
    let five = stack.transformers_5();
    let mut b = NetBuilder::new();
    let (id, embeddings, encoder, layers, norm) = b.scope("vit", |b| {
        let embeddings = b.scope("embeddings", |b| {
            let cls = b.param("cls_token", &[1, 1, d]);
            let (patch, weight, bias) = b.scope("patch_embeddings", |b| {
                b.scope_kind("projection", Kind::Conv2d, |b| {
                    let w = b.param("weight", &[d, c.num_channels, ph, pw]);
                    (b.id(), w, b.param("bias", &[d]))
                })
            });
            let places = (ih / ph) * (iw / pw) + 1;
            let position = b.param("position_embeddings", &[1, places, d]);
            let dropout = Dropout::new(b, "dropout", c.hidden_dropout_prob);
            (b.id(), patch, cls, position, weight, bias, dropout)
        });
        let stacked = |b: &mut NetBuilder| -> Vec<Rc<Layer>> {
            let one = if five { layer_5 } else { layer_4 };
            (0..c.num_hidden_layers)
                .map(|i| Rc::new(one(b, &i.to_string(), &c, act)))
                .collect()
        };
        let (encoder, layers) = if five {
            (b.id(), b.scope("layers", stacked))
        } else {
            b.scope("encoder", |b| (b.id(), b.scope("layer", stacked)))
        };
        let norm = LayerNorm::new(b, "layernorm", d, true, true);
        (b.id(), embeddings, encoder, layers, norm)
    });
    let labels = c
        .num_labels
        .or(c.id2label.as_ref().map(|m| m.len() as u64))
        .unwrap_or(2);
    let classifier = Linear::new(&mut b, "classifier", d, labels, true);
    let (embeddings, patch, cls_token, position, weight, bias, dropout) = embeddings;
    Ok(Built {
        net: b.finish(),
        arch: Rc::new(Vit {
            id,
            embeddings,
            patch,
            cls_token,
            position,
            weight,
            bias,
            stride: ph,
            dropout,
            encoder,
            layers,
            norm,
            classifier,
        }),
    })
}

fn layer_5(b: &mut NetBuilder, name: &str, c: &Config, act: Activation) -> Layer {
    let d = c.hidden_size;
    b.scope(name, |b| {
        let id = b.id();
        let (attention, q, k, v, o) = b.scope("attention", |b| {
            let q = Linear::new(b, "q_proj", d, d, c.qkv_bias);
            let k = Linear::new(b, "k_proj", d, d, c.qkv_bias);
            let v = Linear::new(b, "v_proj", d, d, c.qkv_bias);
            (b.id(), q, k, v, Linear::new(b, "o_proj", d, d, true))
        });
        let before = LayerNorm::new(b, "layernorm_before", d, true, true);
        let after = LayerNorm::new(b, "layernorm_after", d, true, true);
        let (mlp, act_id, fc1, fc2) = b.scope("mlp", |b| {
            let act = b.scope("activation_fn", |b| b.id());
            let fc1 = Linear::new(b, "fc1", d, c.intermediate_size, true);
            let fc2 = Linear::new(b, "fc2", c.intermediate_size, d, true);
            (b.id(), act, fc1, fc2)
        });
        let dropout = Dropout::new(b, "dropout", c.hidden_dropout_prob);
        Layer {
            id,
            attention,
            q,
            k,
            v,
            output: attention,
            o,
            before,
            after,
            mlp,
            fc1,
            act_id,
            act,
            fc2,
            fc2_owner: mlp,
            dropouts: [dropout; 2],
            head_dim: d / c.num_attention_heads,
            dropout: c.attention_probs_dropout_prob,
        }
    })
}

fn layer_4(b: &mut NetBuilder, name: &str, c: &Config, act: Activation) -> Layer {
    let d = c.hidden_size;
    let closing = |b: &mut NetBuilder, input| {
        b.scope("output", |b| {
            let dense = Linear::new(b, "dense", input, d, true);
            let dropout = Dropout::new(b, "dropout", c.hidden_dropout_prob);
            (b.id(), dense, dropout)
        })
    };
    b.scope(name, |b| {
        let id = b.id();
        let (attention, q, k, v, (output, o, first)) = b.scope("attention", |b| {
            let (own, q, k, v) = b.scope("attention", |b| {
                let q = Linear::new(b, "query", d, d, c.qkv_bias);
                let k = Linear::new(b, "key", d, d, c.qkv_bias);
                (b.id(), q, k, Linear::new(b, "value", d, d, c.qkv_bias))
            });
            (own, q, k, v, closing(b, d))
        });
        let (mlp, fc1, act_id) = b.scope("intermediate", |b| {
            let fc1 = Linear::new(b, "dense", d, c.intermediate_size, true);
            (b.id(), fc1, b.scope("intermediate_act_fn", |b| b.id()))
        });
        let (fc2_owner, fc2, second) = closing(b, c.intermediate_size);
        Layer {
            id,
            attention,
            q,
            k,
            v,
            output,
            o,
            before: LayerNorm::new(b, "layernorm_before", d, true, true),
            after: LayerNorm::new(b, "layernorm_after", d, true, true),
            mlp,
            fc1,
            act_id,
            act,
            fc2,
            fc2_owner,
            dropouts: [first, second],
            head_dim: d / c.num_attention_heads,
            dropout: c.attention_probs_dropout_prob,
        }
    })
}

impl Layer {
    /// The context [B, S, D] and the probabilities of eager attention.
    fn attend(&self, m: &Run, x: &Tensor) -> (Tensor, Option<Tensor>) {
        let heads = |l| common::attention::split_heads(m, l, x, self.head_dim);
        let five = m.options.stack.transformers_5();
        let early = five.then(|| heads(&self.q));
        let (k, v) = (heads(&self.k), heads(&self.v));
        let (first, last) = match early {
            Some(q) => (Some(q), None),
            None => (None, Some(heads(&self.q))),
        };
        let q = first.as_ref().or(last.as_ref()).expect("one of them");
        let (o, w) = common::attention::bidirectional(m, [q, &k, &v], None, self.dropout, true);
        let o = ops::reshape(&m.cx, &o, x.shape);
        if !five {
            drop(k);
            drop(v);
            drop(last);
            return (o, w);
        }
        let y = self.o.forward(m, &o);
        drop(o);
        drop(first);
        drop(k);
        drop(v);
        (y, w)
    }

    fn forward_5(&self, m: &Run, x: &Tensor) -> Tensor {
        let cx = &m.cx;
        let mut h = self.before.forward(m, x);
        let (y, weights) = m.within(self.attention, || self.attend(m, &h));
        h = y;
        h = self.dropouts[0].forward(m, &h);
        h = ops::add(cx, &h, x);
        let residual = h.clone();
        h = self.after.forward(m, &h);
        h = m.within(self.mlp, || {
            let mut f = self.fc1.forward(m, &h);
            f = m.within(self.act_id, || self.act.forward(m, &f));
            f = self.fc2.forward(m, &f);
            f
        });
        h = self.dropouts[1].forward(m, &h);
        h = ops::add(cx, &h, &residual);
        drop(residual);
        drop(weights);
        h
    }

    fn forward_4(&self, m: &Run, x: &Tensor) -> Tensor {
        let cx = &m.cx;
        let norm = self.before.forward(m, x);
        let (a, weights) = m.within(self.attention, || self.attend(m, &norm));
        let attention = m.within(self.output, || {
            let mut o = self.o.forward(m, &a);
            o = self.dropouts[0].forward(m, &o);
            o
        });
        drop(a);
        drop(weights);
        let h = ops::add(cx, &attention, x);
        let mut y = self.after.forward(m, &h);
        y = m.within(self.mlp, || {
            let mut f = self.fc1.forward(m, &y);
            f = m.within(self.act_id, || self.act.forward(m, &f));
            f
        });
        y = m.within(self.fc2_owner, || {
            let mut f = self.fc2.forward(m, &y);
            f = self.dropouts[1].forward(m, &f);
            f = ops::add(cx, &f, &h);
            f
        });
        drop(h);
        drop(norm);
        drop(attention);
        y
    }

    fn forward(&self, m: &Run, x: &Tensor) -> Tensor {
        m.within(self.id, || {
            if m.options.stack.transformers_5() {
                self.forward_5(m, x)
            } else {
                self.forward_4(m, x)
            }
        })
    }
}

impl Vit {
    fn embed(&self, m: &Run, pixels: &Tensor) -> Tensor {
        let cx = &m.cx;
        let mut x = m.within(self.patch, || {
            let (w, b) = (m.weight(self.weight), m.weight(self.bias));
            ops::conv2d(cx, pixels, w, Some(b), self.stride, 0, 1)
        });
        x = ops::flatten(cx, &x, 2, 3);
        x = ops::transpose(cx, &x, 1, 2);
        let cls = m.weight(self.cls_token);
        let cls = ops::expand(cx, cls, Shape::new(&[x.size(0), 1, x.size(2)]));
        x = ops::cat(cx, &[&cls, &x], 1);
        x = ops::add(cx, &x, m.weight(self.position));
        x = self.dropout.forward(m, &x);
        x
    }
}

impl Arch for Vit {
    fn forward(&self, m: &Rc<Run>, batch: &Batch) -> Output {
        let cx = &m.cx;
        let images = batch
            .features
            .as_ref()
            .expect("an image model's batch has images");
        let h = m.within(self.id, || {
            let pixels = ops::to_dtype(cx, images, m.weight(self.weight).dtype);
            let emb = m.within(self.embeddings, || self.embed(m, &pixels));
            let mut x = emb.clone();
            m.within(self.encoder, || {
                for (i, l) in self.layers.iter().enumerate() {
                    x = if m.checkpoints(i) {
                        let (l, m2) = (l.clone(), m.clone());
                        cx.checkpoint(vec![x.clone()], move |_, t| l.forward(&m2, &t[0]))
                    } else {
                        l.forward(m, &x)
                    };
                }
            });
            let y = self.norm.forward(m, &x);
            drop(pixels);
            drop(emb);
            drop(x);
            y
        });
        let pooled = ops::select(cx, &h, 1);
        let logits = self.classifier.forward(m, &pooled);
        let loss = batch
            .labels
            .as_ref()
            .map(|l| common::loss::fixed_cross_entropy(m, &logits, l));
        drop(h);
        drop(pooled);
        Output {
            loss,
            logits: Some(logits),
            rest: vec![],
        }
    }
}
