//! A GPT with one module per attention head, explicit scores and an fp32 T x T mask buffer in every head, ReLU feed-forward and an
//! untied head with a bias: the layout of the `gpt-configs` family (n_layer, n_head, n_embd, block_size, vocab_size, dropout).
//!
//! `bias` in those files reaches only q, k and v, which have none either way in the published configurations.

use super::{Arch, Batch, Built, Head as Task, Output, fields};
use crate::error::ModelError;
use crate::layers::{Dropout, Embedding, LayerNorm, Linear};
use crate::net::{ModuleId, NetBuilder};
use crate::run::Run;
use serde::Deserialize;
use std::rc::Rc;
use tonnage_sim::ops::{self, Reduction};
use tonnage_sim::{OpId, ScalarType, Shape, Tensor};

/// The fields of a configuration file; the trainer's command-line defaults where absent.
#[derive(Deserialize, Clone, Debug)]
#[serde(default)]
pub struct Config {
    pub vocab_size: u64,
    pub block_size: u64,
    pub n_layer: u64,
    pub n_head: u64,
    pub n_embd: u64,
    pub dropout: f64,
    pub bias: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            vocab_size: 50304,
            block_size: 256,
            n_layer: 6,
            n_head: 6,
            n_embd: 384,
            dropout: 0.2,
            bias: false,
        }
    }
}

struct Head {
    id: ModuleId,
    key: Linear,
    query: Linear,
    value: Linear,
    dropout: Dropout,
}

struct Block {
    id: ModuleId,
    sa: ModuleId,
    heads: Vec<Head>,
    proj: Linear,
    sa_drop: Dropout,
    up: Linear,
    relu: ModuleId,
    down: Linear,
    ff_drop: Dropout,
    ln1: LayerNorm,
    ln2: LayerNorm,
}

struct Gpt {
    tokens: Embedding,
    positions: Embedding,
    blocks: Vec<Rc<Block>>,
    ln_f: LayerNorm,
    head: Linear,
    block_size: u64,
}

/// From a configuration file's fields.
pub fn build(config: &serde_json::Value, _task: Task) -> Result<Built, ModelError> {
    let c: Config = fields(config)?;
    if c.n_head == 0 || !c.n_embd.is_multiple_of(c.n_head) {
        return Err(ModelError::field(
            "n_head",
            format!("{} does not divide n_embd {}", c.n_head, c.n_embd),
        ));
    }
    let d = c.n_embd;
    let mut b = NetBuilder::new();
    let tokens = Embedding::new(&mut b, "token_embedding_table", c.vocab_size, d);
    let positions = Embedding::new(&mut b, "position_embedding_table", c.block_size, d);
    let blocks = b.scope("blocks", |b| {
        (0..c.n_layer)
            .map(|i| Rc::new(block(b, &i.to_string(), &c)))
            .collect()
    });
    let ln_f = LayerNorm::new(&mut b, "ln_f", d, true, true);
    let head = Linear::new(&mut b, "lm_head", d, c.vocab_size, true);
    Ok(Built {
        net: b.finish(),
        arch: Rc::new(Gpt {
            tokens,
            positions,
            blocks,
            ln_f,
            head,
            block_size: c.block_size,
        }),
    })
}

fn block(b: &mut NetBuilder, name: &str, c: &Config) -> Block {
    let (d, hd) = (c.n_embd, c.n_embd / c.n_head);
    b.scope(name, |b| {
        let id = b.id();
        let (sa, heads, proj, sa_drop) = b.scope("sa", |b| {
            let heads = b.scope("heads", |b| {
                (0..c.n_head)
                    .map(|i| {
                        b.scope(&i.to_string(), |b| {
                            b.buffer("tril", &[c.block_size, c.block_size], Some(ScalarType::F32));
                            Head {
                                id: b.id(),
                                key: Linear::new(b, "key", d, hd, c.bias),
                                query: Linear::new(b, "query", d, hd, c.bias),
                                value: Linear::new(b, "value", d, hd, c.bias),
                                dropout: Dropout::new(b, "dropout", c.dropout),
                            }
                        })
                    })
                    .collect()
            });
            let proj = Linear::new(b, "proj", hd * c.n_head, d, true);
            (b.id(), heads, proj, Dropout::new(b, "dropout", c.dropout))
        });
        let (up, relu, down, ff_drop) = b.scope("ffwd", |b| {
            b.scope("net", |b| {
                let up = Linear::new(b, "0", d, 4 * d, true);
                let relu = b.scope("1", |b| b.id());
                (
                    up,
                    relu,
                    Linear::new(b, "2", 4 * d, d, true),
                    Dropout::new(b, "3", c.dropout),
                )
            })
        });
        let ln1 = LayerNorm::new(b, "ln1", d, true, true);
        let ln2 = LayerNorm::new(b, "ln2", d, true, true);
        Block {
            id,
            sa,
            heads,
            proj,
            sa_drop,
            up,
            relu,
            down,
            ff_drop,
            ln1,
            ln2,
        }
    })
}

impl Head {
    fn forward(&self, m: &Run, x: &Tensor) -> Tensor {
        let cx = &m.cx;
        m.within(self.id, || {
            let t = x.size(1);
            let k = self.key.forward(m, x);
            let q = self.query.forward(m, x);
            let mut w = {
                let raw = ops::matmul(cx, &q, &ops::transpose(cx, &k, -2, -1));
                ops::mul_scalar(cx, &raw)
            };
            let tril = &m.buffers[self.id.0 as usize][0];
            let mask = ops::compare_scalar(
                cx,
                OpId::EQ,
                &ops::slice(cx, &ops::slice(cx, tril, 0, 0, t), 1, 0, t),
            );
            w = {
                let filled = ops::masked_fill(cx, &w, &mask);
                drop(mask);
                filled
            };
            w = ops::softmax(cx, &w, None);
            w = self.dropout.forward(m, &w);
            let v = self.value.forward(m, x);
            let out = ops::matmul(cx, &w, &v);
            drop(k);
            drop(q);
            drop(w);
            drop(v);
            out
        })
    }
}

impl Block {
    fn attention(&self, m: &Run, x: &Tensor) -> Tensor {
        let cx = &m.cx;
        m.within(self.sa, || {
            let heads: Vec<Tensor> = self.heads.iter().map(|h| h.forward(m, x)).collect();
            let refs: Vec<&Tensor> = heads.iter().collect();
            let mut out = ops::cat(cx, &refs, -1);
            // a list lets go of its last item first
            let mut heads = heads;
            while let Some(h) = heads.pop() {
                drop(h);
            }
            out = {
                let p = self.proj.forward(m, &out);
                self.sa_drop.forward(m, &p)
            };
            out
        })
    }

    fn feed_forward(&self, m: &Run, x: &Tensor) -> Tensor {
        let mut h = self.up.forward(m, x);
        h = m.within(self.relu, || ops::relu(&m.cx, &h));
        h = self.down.forward(m, &h);
        self.ff_drop.forward(m, &h)
    }

    fn forward(&self, m: &Run, x0: &Tensor) -> Tensor {
        let cx = &m.cx;
        m.within(self.id, || {
            let h = self.ln1.forward(m, x0);
            let a = self.attention(m, &h);
            drop(h);
            let x = ops::add(cx, x0, &a);
            drop(a);
            let h = self.ln2.forward(m, &x);
            let f = self.feed_forward(m, &h);
            drop(h);
            let y = ops::add(cx, &x, &f);
            drop(f);
            drop(x);
            y
        })
    }
}

impl Arch for Gpt {
    fn by_hand(&self) -> Option<u64> {
        Some(self.block_size)
    }
    fn forward(&self, m: &Rc<Run>, batch: &Batch) -> Output {
        let ids = batch
            .input_ids
            .as_ref()
            .expect("a language model's batch has input_ids");
        let (b, t) = (ids.size(0), ids.size(1));
        let cx = &m.cx;
        let tok = self.tokens.forward(m, ids);
        let pos = {
            let range = cx.empty(OpId::ARANGE, Shape::new(&[t]), ScalarType::I64);
            self.positions.forward(m, &range)
        };
        let mut x = ops::add(cx, &tok, &pos);
        // `x = self.blocks(x)`: the caller's name holds it until the last block is done
        let before = x.clone();
        for (i, blk) in self.blocks.iter().enumerate() {
            x = if m.checkpoints(i) {
                let (blk, m2) = (blk.clone(), m.clone());
                cx.checkpoint(vec![x], move |_, a| blk.forward(&m2, &a[0]))
            } else {
                blk.forward(m, &x)
            };
        }
        drop(before);
        x = self.ln_f.forward(m, &x);
        let logits = self.head.forward(m, &x);
        let c = logits.size(-1);
        let loss = batch.labels.as_ref().map(|l| {
            let flat = ops::view(cx, &logits, Shape::new(&[b * t, c]));
            let target = ops::view(cx, l, Shape::new(&[b * t]));
            ops::cross_entropy(cx, &flat, &target, Reduction::Mean)
        });
        drop(tok);
        drop(pos);
        drop(x);
        Output {
            loss,
            logits: Some(logits),
            rest: vec![],
        }
    }
}
