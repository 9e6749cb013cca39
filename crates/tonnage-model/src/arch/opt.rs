//! OPT (transformers 5.17 and 4.57.6, src/transformers/models/opt/modeling_opt.py): learned positions counted from a mask that the
//! model makes where it is given none. Cases: `opt-*` of torch-trace-own.jsonl.

use super::{Arch, Batch, Built, Head, Output, fields};
use crate::common;
use crate::common::activation::Activation;
use crate::error::ModelError;
use crate::layers::{Embedding, LayerNorm, Linear};
use crate::net::{ModuleId, NetBuilder};
use crate::run::{Attention, Run};
use serde::Deserialize;
use std::rc::Rc;
use tonnage_sim::{OpId, ScalarType, Shape, Tensor, ops};

/// The fields that matter to memory, with transformers' defaults.
#[derive(Deserialize, Clone, Debug)]
#[serde(default)]
pub struct Config {
    pub vocab_size: u64,
    pub hidden_size: u64,
    pub num_hidden_layers: u64,
    pub ffn_dim: u64,
    pub max_position_embeddings: u64,
    pub do_layer_norm_before: bool,
    #[serde(rename = "_remove_final_layer_norm")]
    pub remove_final_layer_norm: bool,
    pub word_embed_proj_dim: Option<u64>,
    pub dropout: f64,
    pub attention_dropout: f64,
    pub num_attention_heads: u64,
    pub activation_function: String,
    pub layerdrop: f64,
    pub enable_bias: bool,
    pub layer_norm_elementwise_affine: bool,
    pub tie_word_embeddings: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            vocab_size: 50272,
            hidden_size: 768,
            num_hidden_layers: 12,
            ffn_dim: 3072,
            max_position_embeddings: 2048,
            do_layer_norm_before: true,
            remove_final_layer_norm: false,
            word_embed_proj_dim: None,
            dropout: 0.1,
            attention_dropout: 0.0,
            num_attention_heads: 12,
            activation_function: "relu".into(),
            layerdrop: 0.0,
            enable_bias: true,
            layer_norm_elementwise_affine: true,
            tie_word_embeddings: true,
        }
    }
}

struct Layer {
    id: ModuleId,
    attn: ModuleId,
    act_id: ModuleId,
    act: Activation,
    k: Linear,
    v: Linear,
    q: Linear,
    out: Linear,
    attn_norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    final_norm: LayerNorm,
    c: Rc<Config>,
}

struct Opt {
    decoder: ModuleId,
    embed: Embedding,
    positions: Embedding,
    project_out: Option<Linear>,
    project_in: Option<Linear>,
    norm: Option<LayerNorm>,
    layers: Vec<Rc<Layer>>,
    head: Linear,
}

/// From configuration fields.
pub fn build(config: &serde_json::Value, _head: Head) -> Result<Built, ModelError> {
    let c: Config = fields(config)?;
    let (d, h) = (c.hidden_size, c.num_attention_heads);
    if h == 0 || !d.is_multiple_of(h) {
        return Err(ModelError::field(
            "num_attention_heads",
            format!("{h} does not divide hidden_size {d}"),
        ));
    }
    if c.layerdrop != 0.0 {
        return Err(ModelError::field(
            "layerdrop",
            "layers left out by chance are not modelled; set it to 0",
        ));
    }
    let act = Activation::parse("activation_function", &c.activation_function)?;
    let c = Rc::new(c);
    let word = c.word_embed_proj_dim.unwrap_or(d);
    let affine = c.layer_norm_elementwise_affine;
    let mut b = NetBuilder::new();
    let decoder = |b: &mut NetBuilder| {
        let embed = Embedding::new(b, "embed_tokens", c.vocab_size, word);
        let rows = c.max_position_embeddings + 2;
        let positions = Embedding::new(b, "embed_positions", rows, d);
        let projected = word != d;
        let project_out = projected.then(|| Linear::new(b, "project_out", d, word, false));
        let project_in = projected.then(|| Linear::new(b, "project_in", word, d, false));
        let norm = (c.do_layer_norm_before && !c.remove_final_layer_norm)
            .then(|| LayerNorm::new(b, "final_layer_norm", d, affine, affine));
        let layers = b.scope("layers", |b| {
            (0..c.num_hidden_layers)
                .map(|i| Rc::new(layer(b, &i.to_string(), &c, act)))
                .collect()
        });
        let id = b.id();
        (id, embed, positions, project_out, project_in, norm, layers)
    };
    let (decoder, embed, positions, project_out, project_in, norm, layers) =
        b.scope("model", |b| b.scope("decoder", decoder));
    let head = if c.tie_word_embeddings {
        Linear::tied(&mut b, "lm_head", word, c.vocab_size, embed.1, false)
    } else {
        Linear::new(&mut b, "lm_head", word, c.vocab_size, false)
    };
    Ok(Built {
        net: b.finish(),
        arch: Rc::new(Opt {
            decoder,
            embed,
            positions,
            project_out,
            project_in,
            norm,
            layers,
            head,
        }),
    })
}

fn layer(b: &mut NetBuilder, name: &str, c: &Rc<Config>, act: Activation) -> Layer {
    let (d, f, bias) = (c.hidden_size, c.ffn_dim, c.enable_bias);
    let affine = c.layer_norm_elementwise_affine;
    b.scope(name, |b| {
        let id = b.id();
        let (attn, k, v, q, out) = b.scope("self_attn", |b| {
            let k = Linear::new(b, "k_proj", d, d, bias);
            let v = Linear::new(b, "v_proj", d, d, bias);
            let q = Linear::new(b, "q_proj", d, d, bias);
            (b.id(), k, v, q, Linear::new(b, "out_proj", d, d, bias))
        });
        Layer {
            id,
            attn,
            act_id: b.scope("activation_fn", |b| b.id()),
            act,
            k,
            v,
            q,
            out,
            attn_norm: LayerNorm::new(b, "self_attn_layer_norm", d, affine, affine),
            fc1: Linear::new(b, "fc1", d, f, bias),
            fc2: Linear::new(b, "fc2", f, d, bias),
            final_norm: LayerNorm::new(b, "final_layer_norm", d, affine, affine),
            c: c.clone(),
        }
    })
}

impl Layer {
    /// The result, and the probabilities of eager attention where the version returns them.
    fn attention(&self, m: &Run, x: &Tensor, mask: Option<&Tensor>) -> (Tensor, Option<Tensor>) {
        let cx = &m.cx;
        let (b, s, d) = (x.size(0), x.size(1), x.size(2));
        let heads = self.c.num_attention_heads;
        let split = |t: &Tensor| {
            let t = ops::view(cx, t, Shape::new(&[b, s, heads, d / heads]));
            ops::transpose(cx, &t, 1, 2)
        };
        let mut q = {
            let raw = self.q.forward(m, x);
            ops::mul_scalar(cx, &raw)
        };
        q = split(&q);
        let mut k = self.k.forward(m, x);
        let mut v = self.v.forward(m, x);
        k = split(&k);
        v = split(&v);
        (k, v) = m.cached(self.attn, None, k, v);
        let p = self.c.attention_dropout;
        let (mut o, mut w) = common::attention::attend_with_weights(m, &q, &k, &v, mask, p, true);
        o = ops::contiguous(cx, &ops::reshape(cx, &o, Shape::new(&[b, s, d])));
        o = self.out.forward(m, &o);
        if !m.options.stack.transformers_5() {
            w = None;
        }
        drop(q);
        drop(k);
        drop(v);
        (o, w)
    }

    fn dropped(&self, m: &Run, x: &Tensor) -> Tensor {
        ops::dropout(&m.cx, x, if m.training { self.c.dropout } else { 0.0 })
    }

    fn forward(&self, m: &Run, x: &Tensor, mask: Option<&Tensor>) -> Tensor {
        let cx = &m.cx;
        let before = self.c.do_layer_norm_before;
        m.within(self.id, || {
            let shape = x.shape;
            let mut h = if before {
                self.attn_norm.forward(m, x)
            } else {
                x.clone()
            };
            let (a, w) = m.within(self.attn, || self.attention(m, &h, mask));
            h = a;
            h = self.dropped(m, &h);
            h = ops::add(cx, x, &h);
            if !before {
                h = self.attn_norm.forward(m, &h);
            }
            let rows = Shape::new(&[shape.numel() / x.size(-1), x.size(-1)]);
            h = ops::reshape(cx, &h, rows);
            let residual = h.clone();
            if before {
                h = self.final_norm.forward(m, &h);
            }
            h = self.fc1.forward(m, &h);
            h = m.within(self.act_id, || self.act.forward(m, &h));
            h = self.fc2.forward(m, &h);
            h = self.dropped(m, &h);
            h = {
                let sum = ops::add(cx, &residual, &h);
                ops::view(cx, &sum, shape)
            };
            if !before {
                h = self.final_norm.forward(m, &h);
            }
            drop(residual);
            drop(w);
            h
        })
    }
}

/// `(cumsum(mask) * mask - 1).long()`: positions [B, S] of the tokens that the mask [B, S] keeps.
fn counted(m: &Run, mask: &Tensor) -> Tensor {
    let cx = &m.cx;
    let (b, s) = (mask.size(0), mask.size(1));
    let steps = tonnage_sim::kernels::cumsum(b * s, mask.dtype, mask.dtype, b == 1)
        .expect("a cumsum of fp32 or int64 is covered");
    let sums = cx
        .play(OpId::CUMSUM, &steps, |_| {
            (mask.shape, mask.shape.contiguous_strides(), mask.dtype)
        })
        .remove(0);
    let product = ops::plain(cx, OpId::MUL, &sums, mask.dtype);
    let less = ops::plain(cx, OpId::SUB, &product, mask.dtype);
    drop(product);
    if less.dtype == ScalarType::I64 {
        return less;
    }
    let long = ops::plain(cx, OpId::TO_COPY, &less, ScalarType::I64);
    drop(less);
    drop(sums);
    long
}

/// The mask that the layers are given.
fn causal_mask(m: &Run, batch: &Batch, s: u64, dtype: ScalarType) -> Option<Tensor> {
    let given = batch.attention_mask.as_ref()?;
    let b = given.size(0);
    if m.options.stack.transformers_5() {
        return common::mask::causal(m, batch, b, s, dtype);
    }
    let eager = m.options.attention == Attention::Eager;
    if !eager && common::mask_4d::ignored(m, given, batch.padded) {
        return None;
    }
    let mask = common::mask_4d::additive(m, Some(given), b, s, dtype);
    Some(if eager {
        mask
    } else {
        common::mask_4d::unmask_unattended(m, mask)
    })
}

impl Arch for Opt {
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
        let five = m.options.stack.transformers_5();
        let h = m.within(self.decoder, || {
            let mut emb = self.embed.forward(m, ids);
            let cache_position = (!five && batch.position_ids.is_none())
                .then(|| cx.empty(OpId::ARANGE, Shape::new(&[s]), ScalarType::I64));
            let mut batch = batch.clone();
            let given = batch
                .attention_mask
                .get_or_insert_with(|| cx.empty(OpId::FULL, Shape::new(&[b, s]), ScalarType::F32))
                .clone();
            // generation passes the positions of the new tokens
            let early = batch
                .position_ids
                .clone()
                .or_else(|| five.then(|| counted(m, &given)));
            let mask = causal_mask(m, &batch, s, emb.dtype);
            let pos = early.unwrap_or_else(|| counted(m, &given));
            let places = {
                let shifted = ops::plain(cx, OpId::ADD, &pos, ScalarType::I64);
                self.positions.forward(m, &shifted)
            };
            if let Some(project) = &self.project_in {
                emb = project.forward(m, &emb);
            }
            let mut x = ops::add(cx, &emb, &places);
            for (layer, l) in self.layers.iter().enumerate() {
                x = if m.checkpoints(layer) {
                    let (l, m2) = (l.clone(), m.clone());
                    let kwargs = (mask.clone(), pos.clone(), cache_position.clone());
                    cx.checkpoint(vec![x], move |_, t| {
                        let kwargs = &kwargs;
                        l.forward(&m2, &t[0], kwargs.0.as_ref())
                    })
                } else {
                    l.forward(m, &x, mask.as_ref())
                };
            }
            // 4.57: the tuple that the last layer returned is a local to the end
            let last = (!five).then(|| x.clone());
            if let Some(norm) = &self.norm {
                x = norm.forward(m, &x);
            }
            if let Some(project) = &self.project_out {
                x = project.forward(m, &x);
            }
            drop((batch, given));
            drop(emb);
            drop(pos);
            drop(cache_position);
            drop(mask);
            drop(places);
            drop(last);
            x
        });
        let kept = batch.last(cx, &h);
        let logits = self.head.forward(m, &kept);
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
