//! The trainer of AGI2 when its memory guide was written: tied head, fixed sinusoidal positions (a buffer), explicit scores with
//! dropout, GELU feed-forward with dropout after the activation.
//!
//! Its published facts are the parameter formula V*E + L*(12*E^2 + 13*E) + 2*E, and the bytes kept for backward in fp32:
//! 70*B*T*E + 9*H*B*T^2 + T^2 a layer, 10*B*T*E + 4*B*T*V outside. The layer below is the one that keeps just these; both formulas are
//! tests here. Order of operations beyond that is inferred.

use super::{Arch, Batch, Built, Head, Output, fields};
use crate::error::ModelError;
use crate::layers::{Dropout, Embedding, LayerNorm, Linear};
use crate::net::{ModuleId, NetBuilder};
use crate::run::Run;
use serde::Deserialize;
use std::rc::Rc;
use tonnage_sim::ops::{self, Reduction};
use tonnage_sim::{OpId, ScalarType, Shape, Tensor};

/// The fields of its configuration file, under this tool's names; the trainer's defaults where absent.
#[derive(Deserialize, Clone, Debug)]
#[serde(default)]
pub struct Config {
    pub vocab_size: u64,
    pub n_positions: u64,
    pub n_embd: u64,
    pub n_layer: u64,
    pub n_head: u64,
    pub dropout: f64,
    pub activation: String,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            vocab_size: 50257,
            n_positions: 512,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            dropout: 0.1,
            activation: "gelu".into(),
        }
    }
}

struct Block {
    id: ModuleId,
    attention: ModuleId,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    scores_drop: Dropout,
    resid: Dropout,
    ln_1: LayerNorm,
    ln_2: LayerNorm,
    fc: Linear,
    fc_drop: Dropout,
    proj: Linear,
    proj_drop: Dropout,
    heads: u64,
    relu: bool,
}

struct Agi2 {
    tokens: Embedding,
    positions: ModuleId,
    positions_drop: Dropout,
    drop: Dropout,
    blocks: Vec<Rc<Block>>,
    ln_f: LayerNorm,
    head: Linear,
}

/// From a configuration's fields.
///
/// # Errors
/// Heads that do not divide the width, or an unknown activation.
pub fn build(config: &serde_json::Value, _head: Head) -> Result<Built, ModelError> {
    let c: Config = fields(config)?;
    if c.n_head == 0 || !c.n_embd.is_multiple_of(c.n_head) {
        return Err(ModelError::field(
            "n_head",
            format!("{} does not divide n_embd {}", c.n_head, c.n_embd),
        ));
    }
    let relu = match c.activation.as_str() {
        "gelu" => false,
        "relu" => true,
        other => {
            return Err(ModelError::field(
                "activation",
                format!("`{other}` is not gelu or relu"),
            ));
        }
    };
    let d = c.n_embd;
    let mut b = NetBuilder::new();
    let tokens = Embedding::new(&mut b, "token_embedding", c.vocab_size, d);
    let (positions, positions_drop) = b.scope("positional_encoding", |b| {
        b.buffer("pe", &[1, c.n_positions, d], Some(ScalarType::F32));
        (b.id(), Dropout::new(b, "dropout", c.dropout))
    });
    let drop = Dropout::new(&mut b, "dropout", c.dropout);
    let blocks = b.scope("layers", |b| {
        (0..c.n_layer)
            .map(|i| Rc::new(block(b, &i.to_string(), &c, relu)))
            .collect()
    });
    let ln_f = LayerNorm::new(&mut b, "norm", d, true, true);
    let head = Linear::tied(&mut b, "lm_head", d, c.vocab_size, tokens.1, false);
    Ok(Built {
        net: b.finish(),
        arch: Rc::new(Agi2 {
            tokens,
            positions,
            positions_drop,
            drop,
            blocks,
            ln_f,
            head,
        }),
    })
}

fn block(b: &mut NetBuilder, name: &str, c: &Config, relu: bool) -> Block {
    let (d, p) = (c.n_embd, c.dropout);
    b.scope(name, |b| {
        let id = b.id();
        let (attention, q, k, v, out, scores_drop) = b.scope("attention", |b| {
            let q = Linear::new(b, "q", d, d, true);
            let k = Linear::new(b, "k", d, d, true);
            let v = Linear::new(b, "v", d, d, true);
            let out = Linear::new(b, "out", d, d, true);
            (
                b.id(),
                q,
                k,
                v,
                out,
                Dropout::new(b, "attention_dropout", p),
            )
        });
        Block {
            id,
            attention,
            q,
            k,
            v,
            out,
            scores_drop,
            resid: Dropout::new(b, "dropout", p),
            ln_1: LayerNorm::new(b, "norm1", d, true, true),
            ln_2: LayerNorm::new(b, "norm2", d, true, true),
            fc: Linear::new(b, "fc", d, 4 * d, true),
            fc_drop: Dropout::new(b, "fc_dropout", p),
            proj: Linear::new(b, "proj", 4 * d, d, true),
            proj_drop: Dropout::new(b, "proj_dropout", p),
            heads: c.n_head,
            relu,
        }
    })
}

impl Block {
    fn attention(&self, m: &Run, x: &Tensor, mask: &Tensor) -> Tensor {
        let cx = &m.cx;
        let (b, t, d) = (x.size(0), x.size(1), x.size(2));
        let shape = Shape::new(&[b, t, self.heads, d / self.heads]);
        let head = |l: &Linear| {
            let y = l.forward(m, x);
            ops::transpose(cx, &ops::view(cx, &y, shape), 1, 2)
        };
        let (q, k, v) = (head(&self.q), head(&self.k), head(&self.v));
        let mut scores = {
            let raw = ops::matmul(cx, &q, &ops::transpose(cx, &k, -2, -1));
            ops::div_scalar(cx, &raw)
        };
        scores = {
            let hidden = ops::compare_scalar(cx, OpId::EQ, mask);
            let filled = ops::masked_fill(cx, &scores, &hidden);
            drop(hidden);
            filled
        };
        scores = ops::softmax(cx, &scores, None);
        scores = self.scores_drop.forward(m, &scores);
        let y = ops::matmul(cx, &scores, &v);
        let flat = ops::view(
            cx,
            &ops::contiguous(cx, &ops::transpose(cx, &y, 1, 2)),
            Shape::new(&[b, t, d]),
        );
        let o = self.out.forward(m, &flat);
        drop(q);
        drop(k);
        drop(v);
        drop(scores);
        drop(y);
        drop(flat);
        o
    }

    fn forward(&self, m: &Run, x0: &Tensor, mask: &Tensor) -> Tensor {
        m.within(self.id, || {
            let h = self.ln_1.forward(m, x0);
            let a = m.within(self.attention, || self.attention(m, &h, mask));
            drop(h);
            let a = self.resid.forward(m, &a);
            let x = ops::add(&m.cx, x0, &a);
            drop(a);
            let mut h = self.ln_2.forward(m, &x);
            h = self.fc.forward(m, &h);
            h = if self.relu {
                ops::relu(&m.cx, &h)
            } else {
                ops::gelu(&m.cx, &h)
            };
            h = self.fc_drop.forward(m, &h);
            h = self.proj.forward(m, &h);
            h = self.proj_drop.forward(m, &h);
            let y = ops::add(&m.cx, &x, &h);
            drop(h);
            drop(x);
            y
        })
    }
}

impl Arch for Agi2 {
    fn forward(&self, m: &Rc<Run>, batch: &Batch) -> Output {
        let ids = batch
            .input_ids
            .as_ref()
            .expect("a language model's batch has input_ids");
        let (b, t) = (ids.size(0), ids.size(1));
        let cx = &m.cx;
        let mask = cx.empty(OpId::FULL, Shape::new(&[1, 1, t, t]), ScalarType::F32);
        let mut x = {
            let e = self.tokens.forward(m, ids);
            let pe = ops::slice(cx, &m.buffers[self.positions.0 as usize][0], 1, 0, t);
            let sum = ops::add(cx, &e, &pe);
            drop(e);
            self.positions_drop.forward(m, &sum)
        };
        x = self.drop.forward(m, &x);
        for (i, blk) in self.blocks.iter().enumerate() {
            x = if m.checkpoints(i) {
                let (blk, m2, mask) = (blk.clone(), m.clone(), mask.clone());
                cx.checkpoint(vec![x], move |_, t| blk.forward(&m2, &t[0], &mask))
            } else {
                blk.forward(m, &x, &mask)
            };
        }
        x = self.ln_f.forward(m, &x);
        let logits = self.head.forward(m, &x);
        drop(mask);
        drop(x);
        let v = logits.size(-1);
        let loss = batch.labels.as_ref().map(|l| {
            let flat = ops::view(cx, &logits, Shape::new(&[b * t, v]));
            let target = ops::view(cx, l, Shape::new(&[b * t]));
            ops::cross_entropy(cx, &flat, &target, Reduction::Mean)
        });
        Output {
            loss,
            logits: Some(logits),
            rest: vec![],
        }
    }
}
