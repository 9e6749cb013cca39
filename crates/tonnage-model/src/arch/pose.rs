//! A pose-sequence classifier: `nn.Transformer` (sequence first, normalisation after the blocks) with one class query
//! (the recorded family `pose`; case `pose-108-plain-fp32-adamw_foreach-b8-s150`).

use super::{Arch, Batch, Built, Head, Output, fields};
use crate::common::mha::{Activation, LayerConfig, TransformerLayer};
use crate::error::ModelError;
use crate::layers::{LayerNorm, Linear};
use crate::net::{ModuleId, NetBuilder, ParamId};
use crate::run::Run;
use serde::Deserialize;
use std::rc::Rc;
use tonnage_sim::ops::{self, Reduction};
use tonnage_sim::{ScalarType, Shape, Tensor};

/// The constructor's arguments.
#[derive(Deserialize, Clone, Debug)]
#[serde(default)]
pub struct Config {
    pub classes: u64,
    pub d: u64,
    pub heads: u64,
    pub layers: u64,
    pub ff: u64,
    pub seq: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            classes: 100,
            d: 108,
            heads: 9,
            layers: 6,
            ff: 2048,
            seq: 150,
        }
    }
}

/// A stack of layers and the norm after it.
struct Stack {
    id: ModuleId,
    layers: Vec<TransformerLayer>,
    norm: LayerNorm,
}

struct Pose {
    pos: ParamId,
    query: ParamId,
    transformer: ModuleId,
    encoder: Stack,
    decoder: Stack,
    head: Linear,
}

fn stack(b: &mut NetBuilder, name: &str, c: &Config, decoder: bool) -> Stack {
    let layer = LayerConfig {
        heads: c.heads,
        feed_forward: c.ff,
        dropout: 0.1,
        activation: Activation::Relu,
        batch_first: false,
    };
    b.scope(name, |b| Stack {
        id: b.id(),
        layers: b.scope("layers", |b| {
            (0..c.layers)
                .map(|i| TransformerLayer::new(b, &i.to_string(), c.d, &layer, decoder))
                .collect()
        }),
        norm: LayerNorm::new(b, "norm", c.d, true, true),
    })
}

/// From the constructor's arguments.
pub fn build(config: &serde_json::Value, _head: Head) -> Result<Built, ModelError> {
    let c: Config = fields(config)?;
    if c.heads == 0 || !c.d.is_multiple_of(c.heads) {
        return Err(ModelError::field(
            "heads",
            format!("{} does not divide d {}", c.heads, c.d),
        ));
    }
    let mut b = NetBuilder::new();
    b.param("row", &[50, c.d]);
    let pos = b.param("pos", &[c.seq, 1, c.d]);
    let query = b.param("query", &[1, c.d]);
    let (transformer, encoder, decoder) = b.scope("transformer", |b| {
        let e = stack(b, "encoder", &c, false);
        let d = stack(b, "decoder", &c, true);
        (b.id(), e, d)
    });
    let head = Linear::new(&mut b, "head", c.d, c.classes, true);
    Ok(Built {
        net: b.finish(),
        arch: Rc::new(Pose {
            pos,
            query,
            transformer,
            encoder,
            decoder,
            head,
        }),
    })
}

impl Stack {
    fn forward(&self, m: &Run, x: &Tensor, memory: Option<&Tensor>) -> Tensor {
        m.within(self.id, || {
            let mut output = x.clone();
            for layer in &self.layers {
                output = layer.forward(m, &output, memory, None);
            }
            self.norm.forward(m, &output)
        })
    }
}

impl Arch for Pose {
    fn forward(&self, m: &Rc<Run>, batch: &Batch) -> Output {
        let cx = &m.cx;
        let x = batch
            .features
            .as_ref()
            .expect("a pose model's batch has features");
        let h = {
            let x = ops::to_dtype(cx, x, ScalarType::F32);
            ops::add(cx, &x, m.weight(self.pos))
        };
        let q = {
            let one = ops::unsqueeze(cx, m.weight(self.query), 1);
            ops::expand(cx, &one, Shape::new(&[1, h.size(1), one.size(2)]))
        };
        let mut y = m.within(self.transformer, || {
            let memory = self.encoder.forward(m, &h, None);
            let out = self.decoder.forward(m, &q, Some(&memory));
            drop(memory);
            out
        });
        y = ops::transpose(cx, &y, 0, 1);
        y = self.head.forward(m, &y);
        y = ops::squeeze(cx, &y, 1);
        drop(h);
        drop(q);
        let loss = batch
            .labels
            .as_ref()
            .map(|l| ops::cross_entropy(cx, &y, l, Reduction::Mean));
        Output {
            loss,
            logits: Some(y),
            rest: vec![],
        }
    }
}
