//! GPT-2 (transformers 5.17, src/transformers/models/gpt2/modeling_gpt2.py).

use super::{Arch, Batch, Built, Head, Output, fields};
use crate::common;
use crate::error::ModelError;
use crate::layers::{Conv1d, Dropout, Embedding, LayerNorm, Linear};
use crate::net::{ModuleId, NetBuilder};
use crate::run::{Attention, Run};
use crate::stack::Stack;
use serde::Deserialize;
use std::rc::Rc;
use tonnage_sim::ops::{self, SdpaArgs};
use tonnage_sim::{OpId, ScalarType, Shape, Tensor};

/// The fields that matter to memory, with transformers' defaults.
#[derive(Deserialize, Clone, Debug)]
#[serde(default)]
pub struct Config {
    pub vocab_size: u64,
    pub n_positions: u64,
    pub n_embd: u64,
    pub n_layer: u64,
    pub n_head: u64,
    pub n_inner: Option<u64>,
    pub activation_function: String,
    pub resid_pdrop: f64,
    pub embd_pdrop: f64,
    pub attn_pdrop: f64,
    pub tie_word_embeddings: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            vocab_size: 50257,
            n_positions: 1024,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            n_inner: None,
            activation_function: "gelu_new".into(),
            resid_pdrop: 0.1,
            embd_pdrop: 0.1,
            attn_pdrop: 0.1,
            tie_word_embeddings: true,
        }
    }
}

struct Block {
    id: ModuleId,
    attn_id: ModuleId,
    mlp_id: ModuleId,
    act_id: ModuleId,
    ln_1: LayerNorm,
    c_attn: Conv1d,
    c_proj: Conv1d,
    resid: Dropout,
    ln_2: LayerNorm,
    c_fc: Conv1d,
    mlp_proj: Conv1d,
    mlp_drop: Dropout,
    heads: u64,
    attn_pdrop: f64,
}

struct Gpt2 {
    transformer: ModuleId,
    wte: Embedding,
    wpe: Embedding,
    drop: Dropout,
    blocks: Vec<Rc<Block>>,
    ln_f: LayerNorm,
    head: Linear,
}

/// From configuration fields.
pub fn build(config: &serde_json::Value, _head: Head, stack: &Stack) -> Result<Built, ModelError> {
    let c: Config = fields(config)?;
    if c.n_head == 0 || !c.n_embd.is_multiple_of(c.n_head) {
        return Err(ModelError::field(
            "n_head",
            format!("{} does not divide n_embd {}", c.n_head, c.n_embd),
        ));
    }
    let d = c.n_embd;
    let mut b = NetBuilder::new();
    let (transformer, wte, wpe, drop, blocks, ln_f) = b.scope("transformer", |b| {
        let wte = Embedding::new(b, "wte", c.vocab_size, d);
        let wpe = Embedding::new(b, "wpe", c.n_positions, d);
        let drop = Dropout::new(b, "drop", c.embd_pdrop);
        let blocks = b.scope("h", |b| {
            (0..c.n_layer)
                .map(|i| Rc::new(block(b, &i.to_string(), &c, stack)))
                .collect()
        });
        let ln_f = LayerNorm::new(b, "ln_f", d, true, true);
        (b.id(), wte, wpe, drop, blocks, ln_f)
    });
    let head = if c.tie_word_embeddings {
        Linear::tied(&mut b, "lm_head", d, c.vocab_size, wte.1, false)
    } else {
        Linear::new(&mut b, "lm_head", d, c.vocab_size, false)
    };
    Ok(Built {
        net: b.finish(),
        arch: Rc::new(Gpt2 {
            transformer,
            wte,
            wpe,
            drop,
            blocks,
            ln_f,
            head,
        }),
    })
}

fn block(b: &mut NetBuilder, name: &str, c: &Config, stack: &Stack) -> Block {
    let d = c.n_embd;
    let f = c.n_inner.unwrap_or(4 * d);
    b.scope(name, |b| {
        let id = b.id();
        let ln_1 = LayerNorm::new(b, "ln_1", d, true, true);
        let (attn_id, c_attn, c_proj, resid) = b.scope("attn", |b| {
            if !stack.transformers_5() {
                // case `gpt2-small-plain-fp32-adamw_foreach-b4-s1024-sdpa-tf4.57.6`
                b.buffer(
                    "bias",
                    &[1, 1, c.n_positions, c.n_positions],
                    Some(ScalarType::Bool),
                );
                b.buffer("masked_bias", &[], None);
            }
            let a = Conv1d::new(b, "c_attn", d, 3 * d);
            let p = Conv1d::new(b, "c_proj", d, d);
            Dropout::new(b, "attn_dropout", c.attn_pdrop);
            (
                b.id(),
                a,
                p,
                Dropout::new(b, "resid_dropout", c.resid_pdrop),
            )
        });
        let ln_2 = LayerNorm::new(b, "ln_2", d, true, true);
        let (mlp_id, c_fc, mlp_proj, act_id, mlp_drop) = b.scope("mlp", |b| {
            let fc = Conv1d::new(b, "c_fc", d, f);
            let p = Conv1d::new(b, "c_proj", f, d);
            let act = b.scope("act", |b| b.id());
            (
                b.id(),
                fc,
                p,
                act,
                Dropout::new(b, "dropout", c.resid_pdrop),
            )
        });
        Block {
            id,
            attn_id,
            mlp_id,
            act_id,
            ln_1,
            c_attn,
            c_proj,
            resid,
            ln_2,
            c_fc,
            mlp_proj,
            mlp_drop,
            heads: c.n_head,
            attn_pdrop: c.attn_pdrop,
        }
    })
}

impl Block {
    /// The output, and in eager attention the probabilities, which the block's frame keeps to its end.
    fn attention(&self, m: &Run, x: &Tensor, mask: Option<&Tensor>) -> (Tensor, Option<Tensor>) {
        let cx = &m.cx;
        let (b, s, d) = (x.size(0), x.size(1), x.size(2));
        let shape = Shape::new(&[b, s, self.heads, d / self.heads]);
        let qkv = self.c_attn.forward(m, x);
        let parts = ops::split(cx, &qkv, &[d, d, d], 2);
        drop(qkv);
        let head = |t: &Tensor| ops::transpose(cx, &ops::view(cx, t, shape), 1, 2);
        // the queries last, as in the source: the order of the nodes is that of their gradients' copies
        let (k, v, q) = (head(&parts[1]), head(&parts[2]), head(&parts[0]));
        drop(parts);
        let (k, v) = m.cached(self.attn_id, None, k, v);
        if m.options.attention == Attention::Eager {
            let (o, w) = self.eager(m, &q, &k, &v, mask);
            let o = self.project(m, o, Shape::new(&[b, s, d]), (q, k, v));
            return (o, Some(w));
        }
        let dropout = if m.training { self.attn_pdrop } else { 0.0 };
        let args = SdpaArgs {
            mask: mask.cloned(),
            dropout,
            is_causal: mask.is_none() && s > 1,
            enable_gqa: false,
            scale_given: true,
        };
        let square = common::attention::filled(m, &q, &k, &v, args.is_causal);
        let (k_near, v_near) = square.as_ref().map_or((&k, &v), |(k, v)| (k, v));
        let mut o = ops::sdpa(cx, &q, k_near, v_near, &args);
        drop(square);
        o = ops::contiguous(cx, &ops::transpose(cx, &o, 1, 2));
        let o = self.project(m, o, Shape::new(&[b, s, d]), (q, k, v));
        (o, None)
    }

    /// The end of GPT2Attention.forward, and its locals in the order in which they die.
    fn project(
        &self,
        m: &Run,
        mut o: Tensor,
        shape: Shape,
        qkv: (Tensor, Tensor, Tensor),
    ) -> Tensor {
        o = ops::contiguous(&m.cx, &ops::reshape(&m.cx, &o, shape));
        o = self.c_proj.forward(m, &o);
        o = self.resid.forward(m, &o);
        drop(qkv.0);
        drop(qkv.1);
        drop(qkv.2);
        o
    }

    /// `eager_attention_forward` of either version; 4.57 masks with the module's own `bias` buffer.
    fn eager(
        &self,
        m: &Run,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        mask: Option<&Tensor>,
    ) -> (Tensor, Tensor) {
        let cx = &m.cx;
        let scalar = |dtype| cx.empty(OpId::FULL, Shape::new(&[]), dtype);
        let mut fill = None;
        let mut w = ops::matmul(cx, q, &ops::transpose(cx, k, -1, -2));
        if m.options.stack.transformers_5() {
            w = ops::mul_scalar(cx, &w);
        } else {
            let scale = scalar(w.dtype);
            w = ops::div(cx, &w, &scale);
            drop(scale);
            let causal = &m.buffers[self.attn_id.0 as usize][0];
            let causal = ops::slice(
                cx,
                &ops::slice(cx, causal, 2, 0, q.size(-2)),
                3,
                0,
                k.size(-2),
            );
            let value = fill.insert(scalar(w.dtype));
            w = ops::where_(cx, &causal, &w, value);
        }
        if let Some(mask) = mask {
            w = ops::add(cx, &w, mask);
        }
        w = ops::softmax(cx, &w, None);
        w = ops::to_dtype(cx, &w, v.dtype);
        w = ops::dropout(cx, &w, if m.training { self.attn_pdrop } else { 0.0 });
        let o = ops::matmul(cx, &w, v);
        // `mask_value` is a local to the end of the function
        drop(fill);
        (ops::transpose(cx, &o, 1, 2), w)
    }

    fn mlp(&self, m: &Run, x: &Tensor) -> Tensor {
        // hidden_states is rebound line by line
        let h = self.c_fc.forward(m, x);
        let a = m.within(self.act_id, || common::activation::gelu_new(m, &h));
        drop(h);
        let y = self.mlp_proj.forward(m, &a);
        drop(a);
        self.mlp_drop.forward(m, &y)
    }

    fn forward(&self, m: &Run, x: &Tensor, mask: Option<&Tensor>) -> Tensor {
        m.within(self.id, || {
            let h = self.ln_1.forward(m, x);
            let (a, w) = m.within(self.attn_id, || self.attention(m, &h, mask));
            let x2 = ops::add(&m.cx, &a, x);
            drop(h);
            let h = self.ln_2.forward(m, &x2);
            let f = m.within(self.mlp_id, || self.mlp(m, &h));
            let y = ops::add(&m.cx, &x2, &f);
            drop(h);
            drop(x2);
            drop(a);
            drop(w);
            drop(f);
            y
        })
    }
}

impl Arch for Gpt2 {
    fn generates(&self) -> bool {
        true
    }

    fn forward(&self, m: &Rc<Run>, batch: &Batch) -> Output {
        let ids = batch
            .input_ids
            .as_ref()
            .expect("a language model's batch has input_ids");
        let (b, s) = (ids.size(0), ids.size(1));
        let cx = &m.cx;
        let h = m.within(self.transformer, || {
            let emb = self.wte.forward(m, ids);
            let pos = common::mask::positions(m, batch, s);
            let pe = self.wpe.forward(m, &pos);
            let mut x = ops::add(cx, &emb, &pe);
            let mask = common::mask::causal(m, batch, b, s, emb.dtype);
            x = self.drop.forward(m, &x);
            for (i, blk) in self.blocks.iter().enumerate() {
                x = if m.checkpoints(i) {
                    let (blk, m2) = (blk.clone(), m.clone());
                    // positional arguments; positions are a keyword in 5.17
                    // (case `gpt2-tiny-trainer-amp_bf16-ckpt-reentrant-tf4.57.6`)
                    let mut inputs = vec![x];
                    let mut kwarg = None;
                    if m.options.stack.transformers_5() {
                        kwarg = Some(pos.clone());
                    } else {
                        inputs.push(pos.clone());
                    }
                    let masked = mask.is_some();
                    inputs.extend(mask.clone());
                    cx.checkpoint(inputs, move |_, t| {
                        let _kwargs = &kwarg;
                        blk.forward(&m2, &t[0], t.last().filter(|_| masked))
                    })
                } else {
                    blk.forward(m, &x, mask.as_ref())
                };
            }
            // 4.57: the last block's `outputs` are a local
            let last = (!m.options.stack.transformers_5()).then(|| x.clone());
            x = self.ln_f.forward(m, &x);
            // locals of GPT2Model.forward: position_ids, inputs_embeds, position_embeds, causal_mask
            drop(pos);
            drop(emb);
            drop(pe);
            drop(mask);
            drop(last);
            x
        });
        let kept = batch.last(cx, &h);
        let logits = self.head.forward(m, &kept);
        drop(kept);
        let loss = batch
            .labels
            .as_ref()
            .map(|l| common::loss::causal_lm(m, &logits, l));
        // `hidden_states` is a local of the whole call
        drop(h);
        Output {
            loss,
            logits: Some(logits),
            rest: vec![],
        }
    }
}
