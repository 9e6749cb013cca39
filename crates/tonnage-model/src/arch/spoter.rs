//! SPOTER as an encoder with a class token: `nn.TransformerEncoder` (batch first, normalisation after the blocks, GELU) with a key
//! padding mask, learned positions, a head of three products. Recorded family `spoter`; case `spoter-plain-fp32-adamw_foreach-b8-s150-ga2-clip`.

use super::{Arch, Batch, Built, Head, Output, fields};
use crate::common::mha::{Activation, LayerConfig, TransformerLayer, canonical_mask};
use crate::error::ModelError;
use crate::layers::{Dropout, LayerNorm, Linear};
use crate::net::{ModuleId, NetBuilder, ParamId};
use crate::run::Run;
use serde::Deserialize;
use std::rc::Rc;
use tonnage_sim::ops::{self, Reduction};
use tonnage_sim::{OpId, ScalarType, Shape, Tensor};

/// The constructor's arguments.
#[derive(Deserialize, Clone, Debug)]
#[serde(default)]
pub struct Config {
    /// Numbers a frame (two coordinates a landmark).
    pub input_dim: u64,
    pub d_model: u64,
    pub n_heads: u64,
    pub n_layers: u64,
    pub d_ff: u64,
    /// Half of it after the input block.
    pub dropout: f64,
    pub num_classes: u64,
    /// Frames; the class token comes on top.
    pub max_seq_len: u64,
    /// Label smoothing of the loss.
    pub label_smoothing: f64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            input_dim: 108,
            d_model: 108,
            n_heads: 9,
            n_layers: 8,
            d_ff: 512,
            dropout: 0.15,
            num_classes: 60,
            max_seq_len: 150,
            label_smoothing: 0.1,
        }
    }
}

struct Spoter {
    input: (Linear, LayerNorm, Dropout),
    class_token: ParamId,
    positions: ParamId,
    encoder: ModuleId,
    layers: Vec<TransformerLayer>,
    head_norm: LayerNorm,
    head: [Linear; 3],
    head_dropouts: [Dropout; 2],
    smoothing: bool,
}

/// From the constructor's arguments.
pub fn build(config: &serde_json::Value, _head: Head) -> Result<Built, ModelError> {
    let c: Config = fields(config)?;
    if c.n_heads == 0 || !c.d_model.is_multiple_of(c.n_heads) {
        return Err(ModelError::field(
            "n_heads",
            format!("{} does not divide d_model {}", c.n_heads, c.d_model),
        ));
    }
    let d = c.d_model;
    let layer = LayerConfig {
        heads: c.n_heads,
        feed_forward: c.d_ff,
        dropout: c.dropout,
        activation: Activation::Gelu,
        batch_first: true,
    };
    let mut b = NetBuilder::new();
    let class_token = b.param("cls_token", &[1, 1, d]);
    let positions = b.param("pos", &[1, c.max_seq_len + 1, d]);
    let input = b.scope("input_block", |b| {
        let linear = Linear::new(b, "0", c.input_dim, d, true);
        let norm = LayerNorm::new(b, "1", d, true, true);
        (linear, norm, Dropout::new(b, "2", c.dropout / 2.0))
    });
    let (encoder, layers) = b.scope("encoder", |b| {
        let layers = b.scope("layers", |b| {
            (0..c.n_layers)
                .map(|i| TransformerLayer::new(b, &i.to_string(), d, &layer, false))
                .collect()
        });
        (b.id(), layers)
    });
    let (head_norm, head, head_dropouts) = b.scope("head", |b| {
        let norm = LayerNorm::new(b, "0", d, true, true);
        let first = Linear::new(b, "1", d, d, true);
        let drop1 = Dropout::new(b, "3", c.dropout);
        let second = Linear::new(b, "4", d, d / 2, true);
        let drop2 = Dropout::new(b, "6", c.dropout);
        let last = Linear::new(b, "7", d / 2, c.num_classes, true);
        (norm, [first, second, last], [drop1, drop2])
    });
    Ok(Built {
        net: b.finish(),
        arch: Rc::new(Spoter {
            input,
            class_token,
            positions,
            encoder,
            layers,
            head_norm,
            head,
            head_dropouts,
            smoothing: c.label_smoothing > 0.0,
        }),
    })
}

impl Spoter {
    /// `nn.TransformerEncoder` without a final norm; `mask` [B, S] is true at padding.
    fn encode(&self, m: &Run, x: &Tensor, mask: &Tensor) -> Tensor {
        m.within(self.encoder, || {
            let padding = canonical_mask(&m.cx, mask, x);
            let mut output = x.clone();
            for layer in &self.layers {
                output = layer.forward(m, &output, None, Some(&padding));
            }
            drop(padding);
            output
        })
    }
}

impl Arch for Spoter {
    fn forward(&self, m: &Rc<Run>, batch: &Batch) -> Output {
        let cx = &m.cx;
        let features = batch
            .features
            .as_ref()
            .expect("a pose model's batch has features");
        let given = batch
            .attention_mask
            .as_ref()
            .expect("this model's batch has a padding mask");
        let mut x = self.input.0.forward(m, features);
        x = self.input.1.forward(m, &x);
        x = self.input.2.forward(m, &x);
        x = {
            let t = m.weight(self.class_token);
            let token = ops::expand(cx, t, t.shape.with(0, x.size(0)));
            ops::cat(cx, &[&token, &x], 1)
        };
        x = {
            let p = ops::slice(cx, m.weight(self.positions), 1, 0, x.size(1));
            ops::add(cx, &x, &p)
        };
        let mask = {
            let first = cx.empty(OpId::ZEROS, Shape::new(&[x.size(0), 1]), ScalarType::Bool);
            ops::cat(cx, &[&first, given], 1)
        };
        x = self.encode(m, &x, &mask);
        let mut y = ops::select(cx, &x, 1);
        y = self.head_norm.forward(m, &y);
        for (i, linear) in self.head.iter().enumerate() {
            y = linear.forward(m, &y);
            if let Some(dropout) = self.head_dropouts.get(i) {
                y = ops::gelu(cx, &y);
                y = dropout.forward(m, &y);
            }
        }
        drop(x);
        drop(mask);
        let loss = batch.labels.as_ref().map(|l| {
            if self.smoothing {
                ops::cross_entropy_smoothed(cx, &y, l, Reduction::Mean)
            } else {
                ops::cross_entropy(cx, &y, l, Reduction::Mean)
            }
        });
        Output {
            loss,
            logits: Some(y),
            rest: vec![],
        }
    }
}
