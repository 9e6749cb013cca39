//! LitGPT's one model for many families, with its own LoRA and 4-bit layers (litgpt v0.5.0, litgpt/model.py, litgpt/lora.py; lightning
//! 2.4 BitsandbytesPrecision; bitsandbytes 0.42, autograd/_functions.py `MatMul4Bit`).
//!
//! Checked against published peaks, not traces: LoRA within 0.1 % (`litgpt-hub-001` to `-052`), packed weights 0.1 to 2.1 % high
//! (docs/accuracy.md).

use super::{Arch, Batch, Built, Output, fields};
use crate::error::ModelError;
use crate::layers::{Dropout, Embedding, LayerNorm};
use crate::net::{Kind, ModuleId, NetBuilder, ParamId};
use crate::run::Run;
use serde::Deserialize;
use smallvec::smallvec;
use std::cell::RefCell;
use std::rc::Rc;
use tonnage_sim::OpId;
use tonnage_sim::autograd::Grads;
use tonnage_sim::ops::{self, SdpaArgs};
use tonnage_sim::{ScalarType, Shape, Tensor};

/// Where the adapters sit.
#[derive(Deserialize, Clone, Debug)]
pub struct Lora {
    pub r: u64,
    pub dropout: f64,
    /// query, key, value
    pub qkv: [bool; 3],
    pub projection: bool,
    pub mlp: bool,
    pub head: bool,
}

/// The three feed-forward blocks.
#[derive(Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Mlp {
    Neox,
    Llama,
    Gemma,
}

/// LitGPT's `Config`, as far as memory depends on it.
#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub padded_vocab_size: u64,
    pub n_embd: u64,
    pub n_layer: u64,
    pub n_head: u64,
    pub n_query_groups: u64,
    pub head_size: u64,
    pub rope_n_elem: u64,
    pub intermediate_size: u64,
    pub bias: bool,
    pub lm_head_bias: bool,
    pub rms_norm: bool,
    pub add_unit_offset: bool,
    pub mlp: Mlp,
    pub parallel_residual: bool,
    pub shared_attention_norm: bool,
    pub scale_embeddings: bool,
    pub max_seq_length: u64,
    /// `lm_head_chunk_size`; 0: whole.
    pub chunk: u64,
    pub lora: Option<Lora>,
    /// `bnb.nf4`: every linear layer's base weight is packed, its scales are fp32.
    pub nf4: bool,
}

/// A linear layer, packed or dense, with an adapter or without.
struct Linear {
    id: ModuleId,
    size: (u64, u64),
    weight: ParamId,
    bias: Option<ParamId>,
    packed: bool,
    adapter: Option<Adapter>,
}

struct Adapter {
    a: ParamId,
    b: ParamId,
    dropout: Dropout,
    /// Widths of the enabled parts and whether all are (only of the fused query, key, value layer).
    parts: Option<(Vec<u64>, bool, bool)>,
}

enum Norm {
    Layer(LayerNorm),
    Rms(ModuleId, ParamId, bool),
}

struct Block {
    norm_1: Norm,
    norm_2: Option<Norm>,
    attn: Linear,
    proj: Linear,
    mlp: Vec<Linear>,
}

struct LitGpt {
    c: Config,
    /// `ctx.tensors` of the 4-bit layers of the last call.
    contexts: RefCell<Vec<Tensor>>,
    /// bitsandbytes' StableEmbedding, which `lora.py` puts in place of the embedding when weights are packed: a layer norm after it.
    stable: Option<LayerNorm>,
    rope: ModuleId,
    head: Linear,
    wte: Embedding,
    blocks: Vec<Block>,
    ln_f: Norm,
}

fn linear(
    b: &mut NetBuilder,
    c: &Config,
    name: &str,
    size: (u64, u64),
    bias: bool,
    lora: Option<f64>,
) -> Linear {
    let (input, output) = size;
    b.scope_kind(name, Kind::Other, |b| {
        let weight = if c.nf4 {
            b.buffer(
                "absmax",
                &[(input * output).div_ceil(64)],
                Some(ScalarType::F32),
            );
            b.param_dtype(
                "linear.weight",
                &[(input * output).div_ceil(2), 1],
                Some(ScalarType::U8),
            )
        } else {
            b.param("linear.weight", &[output, input])
        };
        let bias = bias.then(|| b.param("linear.bias", &[output]));
        let r = c.lora.as_ref().map_or(0, |l| l.r);
        let adapter = lora.map(|p| Adapter {
            a: b.param("lora_A", &[r, input]),
            b: b.param("lora_B", &[output, r]),
            dropout: Dropout::new(b, "lora_dropout", p),
            parts: None,
        });
        Linear {
            id: b.id(),
            size,
            weight,
            bias,
            packed: c.nf4,
            adapter,
        }
    })
}

/// The fused query, key, value layer.
fn qkv(b: &mut NetBuilder, c: &Config) -> Linear {
    let hs = c.head_size;
    let widths = [hs * c.n_head, hs * c.n_query_groups, hs * c.n_query_groups];
    let size = (c.n_embd, widths.iter().sum());
    let mut l = linear(b, c, "attn", size, c.bias, None);
    if let Some(lora) = &c.lora {
        let on: Vec<u64> = widths
            .iter()
            .zip(lora.qkv)
            .filter(|(_, e)| *e)
            .map(|(w, _)| *w)
            .collect();
        if !on.is_empty() {
            let n = on.len() as u64;
            l.adapter = Some(b.scope("attn_lora", |b| Adapter {
                a: b.param("lora_A", &[lora.r * n, c.n_embd]),
                b: b.param("lora_B", &[on.iter().sum(), lora.r]),
                dropout: Dropout::new(b, "lora_dropout", lora.dropout),
                parts: Some((on.clone(), on.len() == 3, c.n_head == c.n_query_groups)),
            }));
        }
    }
    l
}

fn norm(b: &mut NetBuilder, c: &Config, name: &str) -> Norm {
    if c.rms_norm {
        b.scope_kind(name, Kind::Norm, |b| {
            Norm::Rms(b.id(), b.param("weight", &[c.n_embd]), c.add_unit_offset)
        })
    } else {
        Norm::Layer(LayerNorm::new(b, name, c.n_embd, true, true))
    }
}

/// From LitGPT's fields.
pub fn build(config: &serde_json::Value) -> Result<Built, ModelError> {
    let c: Config = fields(config)?;
    if c.n_query_groups == 0 || !c.n_head.is_multiple_of(c.n_query_groups) {
        return Err(ModelError::field(
            "n_query_groups",
            "does not divide n_head",
        ));
    }
    let mut b = NetBuilder::new();
    let on = |f: fn(&Lora) -> bool| c.lora.as_ref().filter(|l| f(l)).map(|l| l.dropout);
    let head = linear(
        &mut b,
        &c,
        "lm_head",
        (c.n_embd, c.padded_vocab_size),
        c.lm_head_bias,
        on(|l| l.head),
    );
    let (wte, stable, blocks, ln_f) = b.scope("transformer", |b| {
        let wte = Embedding::new(b, "wte", c.padded_vocab_size, c.n_embd);
        let stable = c
            .nf4
            .then(|| LayerNorm::new(b, "wte_norm", c.n_embd, true, true));
        let one = |b: &mut NetBuilder, i: u64| {
            b.scope(&format!("h.{i}"), |b| {
                let norm_1 = norm(b, &c, "norm_1");
                let attn = qkv(b, &c);
                let proj = linear(
                    b,
                    &c,
                    "proj",
                    (c.head_size * c.n_head, c.n_embd),
                    c.bias,
                    on(|l| l.projection),
                );
                let norm_2 = (!c.shared_attention_norm).then(|| norm(b, &c, "norm_2"));
                let names: &[&str] = if c.mlp == Mlp::Neox {
                    &["fc"]
                } else {
                    &["fc_1", "fc_2"]
                };
                let mut mlp: Vec<Linear> = names
                    .iter()
                    .map(|n| {
                        linear(
                            b,
                            &c,
                            n,
                            (c.n_embd, c.intermediate_size),
                            c.bias,
                            on(|l| l.mlp),
                        )
                    })
                    .collect();
                mlp.push(linear(
                    b,
                    &c,
                    "mlp_proj",
                    (c.intermediate_size, c.n_embd),
                    c.bias,
                    on(|l| l.mlp),
                ));
                Block {
                    norm_1,
                    norm_2,
                    attn,
                    proj,
                    mlp,
                }
            })
        };
        let blocks = (0..c.n_layer).map(|i| one(b, i)).collect();
        (wte, stable, blocks, norm(b, &c, "ln_f"))
    });
    // made anew in fp32 when the loop sets the length
    let rope = b.scope("rope", |b| {
        for t in ["cos", "sin"] {
            b.buffer(t, &[c.max_seq_length, c.rope_n_elem], Some(ScalarType::F32));
        }
        b.id()
    });
    Ok(Built {
        net: b.finish(),
        arch: Rc::new(LitGpt {
            c,
            contexts: RefCell::default(),
            stable,
            rope,
            head,
            wte,
            blocks,
            ln_f,
        }),
    })
}

impl Linear {
    fn base(&self, m: &Run, x: &Tensor, kept: &RefCell<Vec<Tensor>>) -> Tensor {
        let cx = &m.cx;
        let bias = self.bias.map(|p| m.weight(p));
        if !self.packed {
            return ops::linear(cx, x, m.weight(self.weight), bias);
        }
        // bitsandbytes 0.42 keeps the input although the packed weight gets no gradient, as an attribute of its context
        let (input, output) = self.size;
        let mut n = cx.node(OpId::GEMM_4BIT, &[x]);
        if x.requires_grad() {
            kept.borrow_mut().push(x.detach());
        }
        n.args([input, output, 0, 0, 0, 0]);
        let y = cx.with_grad(false, || {
            let w = cx.empty(OpId::DEQUANTIZE, Shape::new(&[output, input]), x.dtype);
            ops::linear(cx, x, &w, bias)
        });
        n.finish(cx, y.detach(), |cx, s, grads| -> Grads {
            let g = grads[0].take().expect("gradient");
            let w = cx.empty(
                OpId::DEQUANTIZE,
                Shape::new(&[s.args[1], s.args[0]]),
                g.dtype,
            );
            let gx = ops::matmul(cx, &g, &w);
            drop(w);
            smallvec![Some(gx)]
        })
    }

    fn forward(&self, m: &Run, x: &Tensor, kept: &RefCell<Vec<Tensor>>) -> Tensor {
        let pretrained = m.within(self.id, || self.base(m, x, kept));
        let Some(l) = &self.adapter else {
            return pretrained;
        };
        let cx = &m.cx;
        let (a, b) = (m.weight(l.a), m.weight(l.b));
        let lora = match &l.parts {
            None => {
                let d = l.dropout.forward(m, x);
                let low = ops::matmul(cx, &d, &ops::transpose(cx, a, 0, 1));
                drop(d);
                let y = ops::matmul(cx, &low, &ops::transpose(cx, b, 0, 1));
                drop(low);
                ops::mul_scalar(cx, &y)
            }
            Some((widths, all, equal)) => {
                let d = l.dropout.forward(m, x);
                let after_a = ops::linear(cx, &d, a, None);
                drop(d);
                let low = ops::transpose(cx, &after_a, 1, 2);
                let w = ops::unsqueeze(cx, b, 2);
                let after_b = if *equal {
                    ops::conv1d(cx, &low, &w, None, 1, 0, widths.len() as u64)
                } else {
                    let xs = ops::chunk(cx, &low, widths.len() as u64, 1);
                    let ws = ops::split(cx, &w, widths, 0);
                    let ys: Vec<Tensor> = xs
                        .iter()
                        .zip(&ws)
                        .map(|(x, w)| ops::conv1d(cx, x, w, None, 1, 0, 1))
                        .collect();
                    ops::cat(cx, &ys.iter().collect::<Vec<_>>(), 1)
                };
                drop(low);
                let after_b = ops::transpose(cx, &after_b, 1, 2);
                if *all {
                    ops::mul_scalar(cx, &after_b)
                } else {
                    let padded = zero_pad(m, &after_b, self.size.1);
                    ops::mul_scalar(cx, &padded)
                }
            }
        };
        ops::add(cx, &pretrained, &lora)
    }
}

/// `new_zeros(...).index_copy_(-1, lora_ind, x)`; its gradient selects the columns again. `index_copy` keeps its source, whose shape the
/// gradient takes (torch 2.4 derivatives.yaml).
fn zero_pad(m: &Run, x: &Tensor, width: u64) -> Tensor {
    let cx = &m.cx;
    let mut n = cx.node(OpId::INDEX, &[x]);
    n.save(cx, x);
    let y = cx.empty(OpId::ZEROS, x.shape.with(-1, width), x.dtype);
    n.finish(cx, y, |cx, s, grads| -> Grads {
        let g = grads[0].take().expect("gradient");
        let gx = cx.empty(OpId::INDEX, s.inputs[0].shape, g.dtype);
        smallvec![Some(gx)]
    })
}

impl Norm {
    fn forward(&self, m: &Run, x: &Tensor) -> Tensor {
        match self {
            Norm::Layer(n) => n.forward(m, x),
            Norm::Rms(id, weight, offset) => m.within(*id, || {
                let cx = &m.cx;
                let f = ops::to_dtype(cx, x, ScalarType::F32);
                let square = ops::mul(cx, &f, &f);
                let mean = ops::mean(cx, &square, &[-1], true);
                drop(square);
                let r = ops::rsqrt(cx, &ops::add_scalar(cx, &mean));
                let normed = ops::mul(cx, &f, &r);
                drop(r);
                let w = m.weight(*weight);
                let shifted = if *offset {
                    ops::add_scalar(cx, w)
                } else {
                    w.clone()
                };
                let w32 = ops::to_dtype(cx, &shifted, ScalarType::F32);
                let scaled = ops::mul(cx, &normed, &w32);
                ops::to_dtype(cx, &scaled, x.dtype)
            }),
        }
    }
}

/// `apply_rope`: fp32 tables, so fp32 inside.
fn rope(m: &Run, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Tensor {
    let cx = &m.cx;
    let rotated = crate::common::rope::rotate_half(m, x);
    let a = ops::mul(cx, x, cos);
    let b = ops::mul(cx, &rotated, sin);
    let roped = ops::add(cx, &a, &b);
    drop(a);
    drop(b);
    let y = ops::to_dtype(cx, &roped, x.dtype);
    drop(rotated);
    y
}

impl LitGpt {
    fn attention(&self, m: &Run, l: &Block, x: &Tensor) -> Tensor {
        let (cx, c) = (&m.cx, &self.c);
        let (b, t, hs) = (x.size(0), x.size(1), c.head_size);
        let per = c.n_head / c.n_query_groups;
        let mut qkv = l.attn.forward(m, x, &self.contexts);
        qkv = ops::view(cx, &qkv, Shape::new(&[b, t, c.n_query_groups, per + 2, hs]));
        qkv = ops::permute(cx, &qkv, &[0, 2, 3, 1, 4]);
        let parts = ops::split(cx, &qkv, &[per, 1, 1], 2);
        let flat = |x: &Tensor| {
            let x = if x.size(2) != per && c.n_query_groups != c.n_head {
                ops::expand(cx, x, Shape::new(&[b, c.n_query_groups, per, t, hs]))
            } else {
                x.clone()
            };
            ops::reshape(cx, &x, Shape::new(&[b, c.n_head, t, hs]))
        };
        let (mut q, mut k, v) = (flat(&parts[0]), flat(&parts[1]), flat(&parts[2]));
        drop(parts);
        let (cos, sin) = (
            &m.buffers[self.rope.0 as usize][0],
            &m.buffers[self.rope.0 as usize][1],
        );
        let (cos, sin) = (ops::slice(cx, cos, 0, 0, t), ops::slice(cx, sin, 0, 0, t));
        let n = c.rope_n_elem;
        let roped_q = rope(m, &ops::slice(cx, &q, -1, 0, n), &cos, &sin);
        let roped_k = rope(m, &ops::slice(cx, &k, -1, 0, n), &cos, &sin);
        q = ops::cat(cx, &[&roped_q, &ops::slice(cx, &q, -1, n, hs - n)], -1);
        k = ops::cat(cx, &[&roped_k, &ops::slice(cx, &k, -1, n, hs - n)], -1);
        let args = SdpaArgs {
            mask: None,
            dropout: 0.0,
            is_causal: true,
            enable_gqa: false,
            scale_given: true,
        };
        let y = ops::sdpa(cx, &q, &k, &v, &args);
        let y = ops::reshape(
            cx,
            &ops::transpose(cx, &y, 1, 2),
            Shape::new(&[b, t, hs * c.n_head]),
        );
        // the frame holds qkv, q, k, v and the rotated parts until the projection is done
        let out = l.proj.forward(m, &y, &self.contexts);
        drop((qkv, q, k, v, roped_q, roped_k));
        out
    }

    fn feed_forward(&self, m: &Run, l: &Block, x: &Tensor) -> Tensor {
        let cx = &m.cx;
        if self.c.mlp == Mlp::Neox {
            let mut h = l.mlp[0].forward(m, x, &self.contexts);
            h = ops::gelu(cx, &h);
            return l.mlp[1].forward(m, &h, &self.contexts);
        }
        let x1 = l.mlp[0].forward(m, x, &self.contexts);
        let x2 = l.mlp[1].forward(m, x, &self.contexts);
        let a = if self.c.mlp == Mlp::Gemma {
            ops::gelu(cx, &x1)
        } else {
            ops::silu(cx, &x1)
        };
        let h = ops::mul(cx, &a, &x2);
        drop(a);
        l.mlp[2].forward(m, &h, &self.contexts)
    }

    fn block(&self, m: &Run, l: &Block, x: &Tensor) -> Tensor {
        let cx = &m.cx;
        let normed = l.norm_1.forward(m, x);
        let attention = self.attention(m, l, &normed);
        if self.c.parallel_residual {
            let normed = match &l.norm_2 {
                Some(n) => n.forward(m, x),
                None => normed,
            };
            let f = self.feed_forward(m, l, &normed);
            let s = ops::add(cx, &f, &attention);
            return ops::add(cx, &s, x);
        }
        let x = ops::add(cx, &attention, x);
        let h = match &l.norm_2 {
            Some(n) => n.forward(m, &x),
            None => normed.clone(),
        };
        let f = self.feed_forward(m, l, &h);
        drop(h);
        ops::add(cx, &f, &x)
    }
}

impl Arch for LitGpt {
    fn contexts(&self) -> Vec<Tensor> {
        std::mem::take(&mut self.contexts.borrow_mut())
    }
    /// `rest` holds the chunks of logits where the head is chunked; the caller computes the loss.
    fn forward(&self, m: &Rc<Run>, batch: &Batch) -> Output {
        let cx = &m.cx;
        let ids = batch
            .input_ids
            .as_ref()
            .expect("a language model's batch has input_ids");
        let t = ids.size(1);
        self.contexts.borrow_mut().clear();
        let mut x = self.wte.forward(m, ids);
        if let Some(n) = &self.stable {
            x = n.forward(m, &x);
        }
        if self.c.scale_embeddings {
            x = ops::mul_scalar(cx, &x);
        }
        for l in &self.blocks {
            x = self.block(m, l, &x);
        }
        x = self.ln_f.forward(m, &x);
        if self.c.chunk == 0 {
            return Output {
                loss: None,
                logits: Some(self.head.forward(m, &x, &self.contexts)),
                rest: vec![],
            };
        }
        let sizes: Vec<u64> = (0..t.div_ceil(self.c.chunk))
            .map(|i| self.c.chunk.min(t - i * self.c.chunk))
            .collect();
        let parts = ops::split(cx, &x, &sizes, 1);
        let rest = parts
            .iter()
            .map(|p| self.head.forward(m, p, &self.contexts))
            .collect();
        Output {
            loss: None,
            logits: None,
            rest,
        }
    }
}
