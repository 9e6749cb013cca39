//! A GPT as people write it by hand: fused qkv, SDPA, tied head, optional bias, exact GELU
//! (the recorded family `nanogpt`; case `nano-124m-plain-fp32-adamw_foreach-b12-s1024`).

use super::{Arch, Batch, Built, Head, Output, fields};
use crate::error::ModelError;
use crate::layers::{Dropout, Embedding, LayerNorm, Linear};
use crate::net::{ModuleId, NetBuilder};
use crate::run::Run;
use serde::Deserialize;
use std::rc::Rc;
use tonnage_sim::ops::{self, Reduction, SdpaArgs};
use tonnage_sim::{OpId, ScalarType, Shape, Tensor};

/// The constructor's arguments.
#[derive(Deserialize, Clone, Debug)]
#[serde(default)]
pub struct Config {
    pub vocab: u64,
    pub block: u64,
    pub layers: u64,
    pub heads: u64,
    pub dim: u64,
    pub dropout: f64,
    pub bias: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            vocab: 50304,
            block: 1024,
            layers: 12,
            heads: 12,
            dim: 768,
            dropout: 0.0,
            bias: false,
        }
    }
}

struct Block {
    id: ModuleId,
    ln_1: LayerNorm,
    c_attn: Linear,
    c_proj: Linear,
    resid: Dropout,
    ln_2: LayerNorm,
    c_fc: Linear,
    gelu: ModuleId,
    mlp_proj: Linear,
    mlp_drop: Dropout,
    heads: u64,
    p: f64,
}

struct NanoGpt {
    wte: Embedding,
    wpe: Embedding,
    drop: Dropout,
    blocks: Vec<Rc<Block>>,
    ln_f: LayerNorm,
    head: Linear,
}

/// From the constructor's arguments.
pub fn build(config: &serde_json::Value, _head: Head) -> Result<Built, ModelError> {
    let c: Config = fields(config)?;
    if c.heads == 0 || !c.dim.is_multiple_of(c.heads) {
        return Err(ModelError::field(
            "heads",
            format!("{} does not divide dim {}", c.heads, c.dim),
        ));
    }
    let d = c.dim;
    let mut b = NetBuilder::new();
    let wte = Embedding::new(&mut b, "wte", c.vocab, d);
    let wpe = Embedding::new(&mut b, "wpe", c.block, d);
    let drop = Dropout::new(&mut b, "drop", c.dropout);
    let blocks = b.scope("h", |b| {
        (0..c.layers)
            .map(|i| {
                b.scope(&i.to_string(), |b| {
                    Rc::new(Block {
                        id: b.id(),
                        ln_1: LayerNorm::new(b, "ln_1", d, true, c.bias),
                        c_attn: Linear::new(b, "c_attn", d, 3 * d, c.bias),
                        c_proj: Linear::new(b, "c_proj", d, d, c.bias),
                        resid: Dropout::new(b, "resid_dropout", c.dropout),
                        ln_2: LayerNorm::new(b, "ln_2", d, true, c.bias),
                        c_fc: Linear::new(b, "c_fc", d, 4 * d, c.bias),
                        gelu: b.scope("gelu", |b| b.id()),
                        mlp_proj: Linear::new(b, "mlp_proj", 4 * d, d, c.bias),
                        mlp_drop: Dropout::new(b, "mlp_dropout", c.dropout),
                        heads: c.heads,
                        p: c.dropout,
                    })
                })
            })
            .collect()
    });
    let ln_f = LayerNorm::new(&mut b, "ln_f", d, true, c.bias);
    let head = Linear::tied(&mut b, "lm_head", d, c.vocab, wte.1, false);
    Ok(Built {
        net: b.finish(),
        arch: Rc::new(NanoGpt {
            wte,
            wpe,
            drop,
            blocks,
            ln_f,
            head,
        }),
    })
}

impl Block {
    fn attention(&self, m: &Run, x: Tensor) -> Tensor {
        let cx = &m.cx;
        let (b, t, c) = (x.size(0), x.size(1), x.size(2));
        let shape = Shape::new(&[b, t, self.heads, c / self.heads]);
        let fused = self.c_attn.forward(m, &x);
        let parts = ops::split(cx, &fused, &[c, c, c], 2);
        drop(fused);
        let head = |t: &Tensor| ops::transpose(cx, &ops::view(cx, t, shape), 1, 2);
        let (q, k, v) = (head(&parts[0]), head(&parts[1]), head(&parts[2]));
        drop(parts);
        let p = if m.training { self.p } else { 0.0 };
        let args = SdpaArgs {
            mask: None,
            dropout: p,
            is_causal: true,
            enable_gqa: false,
            scale_given: false,
        };
        let y = ops::sdpa(cx, &q, &k, &v, &args);
        let flat = ops::view(
            cx,
            &ops::contiguous(cx, &ops::transpose(cx, &y, 1, 2)),
            Shape::new(&[b, t, c]),
        );
        let o = self.c_proj.forward(m, &flat);
        drop(flat);
        let r = self.resid.forward(m, &o);
        drop(o);
        drop(x);
        drop(q);
        drop(k);
        drop(v);
        drop(y);
        r
    }

    fn forward(&self, m: &Run, x0: &Tensor) -> Tensor {
        m.within(self.id, || {
            let h = self.ln_1.forward(m, x0);
            let a = self.attention(m, h);
            let x = ops::add(&m.cx, x0, &a);
            drop(a);
            let mut h = self.ln_2.forward(m, &x);
            h = self.c_fc.forward(m, &h);
            h = m.within(self.gelu, || ops::gelu(&m.cx, &h));
            h = self.mlp_proj.forward(m, &h);
            h = self.mlp_drop.forward(m, &h);
            let y = ops::add(&m.cx, &x, &h);
            drop(h);
            drop(x);
            y
        })
    }
}

impl Arch for NanoGpt {
    fn forward(&self, m: &Rc<Run>, batch: &Batch) -> Output {
        let ids = batch
            .input_ids
            .as_ref()
            .expect("a language model's batch has input_ids");
        let (b, s) = (ids.size(0), ids.size(1));
        let cx = &m.cx;
        let pos = cx.empty(OpId::ARANGE, Shape::new(&[s]), ScalarType::I64);
        let mut x = {
            let tok = self.wte.forward(m, ids);
            let pe = self.wpe.forward(m, &pos);
            let sum = ops::add(cx, &tok, &pe);
            drop(tok);
            drop(pe);
            self.drop.forward(m, &sum)
        };
        for (i, blk) in self.blocks.iter().enumerate() {
            x = if m.checkpoints(i) {
                let (blk, m2) = (blk.clone(), m.clone());
                cx.checkpoint(vec![x], move |_, t| blk.forward(&m2, &t[0]))
            } else {
                blk.forward(m, &x)
            };
        }
        x = self.ln_f.forward(m, &x);
        let logits = self.head.forward(m, &x);
        let v = logits.size(-1);
        let loss = batch.labels.as_ref().map(|l| {
            let flat = ops::view(cx, &logits, Shape::new(&[b * s, v]));
            let target = ops::view(cx, l, Shape::new(&[b * s]));
            ops::cross_entropy(cx, &flat, &target, Reduction::Mean)
        });
        drop(pos);
        drop(x);
        Output {
            loss,
            logits: Some(logits),
            rest: vec![],
        }
    }
}
