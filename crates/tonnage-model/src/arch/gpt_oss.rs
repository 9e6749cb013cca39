//! gpt-oss in plain (dequantised) weights: attention with sinks, sliding and full by turns, and experts with biases and interleaved
//! gate and up projections (transformers 5.17 and 4.57.6, src/transformers/models/gpt_oss/modeling_gpt_oss.py). The library computes
//! this attention only eagerly or with flash kernels of its own; eager is what is modelled, whatever the options say. 4.57 is
//! modelled in training. Cases: `gpt-oss-tiny-*` of torch-trace-own.jsonl. What depends on the router is said in
//! [`crate::common::experts`].

use super::{Arch, Batch, Built, Head, Masks, Output, fields};
use crate::common::{self, experts, mask};
use crate::error::ModelError;
use crate::layers::{Embedding, Linear};
use crate::net::{Kind, ModuleId, NetBuilder, ParamId};
use crate::run::Run;
use crate::stack::Stack;
use serde::Deserialize;
use std::rc::Rc;
use tonnage_sim::{OpId, ScalarType, Shape, Tensor, ops};

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
    pub num_local_experts: u64,
    pub num_experts_per_tok: u64,
    pub sliding_window: u64,
    pub layer_types: Option<Vec<String>>,
    pub attention_bias: bool,
    pub attention_dropout: f64,
    pub tie_word_embeddings: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            vocab_size: 201_088,
            hidden_size: 2880,
            intermediate_size: 2880,
            num_hidden_layers: 36,
            num_attention_heads: 64,
            num_key_value_heads: 8,
            head_dim: 64,
            num_local_experts: 128,
            num_experts_per_tok: 4,
            sliding_window: 128,
            layer_types: None,
            attention_bias: true,
            attention_dropout: 0.0,
            tie_word_embeddings: false,
        }
    }
}

impl Config {
    /// Does layer `i` see only a window?
    fn sliding(&self, i: u64) -> Result<bool, ModelError> {
        let Some(types) = &self.layer_types else {
            return Ok(i.is_multiple_of(2));
        };
        match types.get(i as usize).map(String::as_str) {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            other => Err(ModelError::field(
                "layer_types",
                format!("{other:?} for layer {i}; known: full_attention, sliding_attention"),
            )),
        }
    }
}

/// `GptOssRMSNorm`: the weight is applied in fp32.
struct Norm {
    id: ModuleId,
    weight: ParamId,
}

impl Norm {
    fn new(b: &mut NetBuilder, name: &str, width: u64) -> Norm {
        b.scope_kind(name, Kind::Norm, |b| Norm {
            weight: b.param("weight", &[width]),
            id: b.id(),
        })
    }

    fn forward(&self, m: &Run, x: &Tensor) -> Tensor {
        m.within(self.id, || {
            let cx = &m.cx;
            let mut h = ops::to_dtype(cx, x, ScalarType::F32);
            let square = ops::pow_scalar(cx, &h);
            let variance = ops::mean(cx, &square, &[-1], true);
            drop(square);
            let eps = ops::add_scalar(cx, &variance);
            let r = ops::rsqrt(cx, &eps);
            drop(eps);
            let scaled = ops::mul(cx, &h, &r);
            drop(r);
            h = scaled;
            let weighted = ops::mul(cx, m.weight(self.weight), &h);
            let y = ops::to_dtype(cx, &weighted, x.dtype);
            drop(weighted);
            drop(h);
            drop(variance);
            y
        })
    }
}

struct Layer {
    id: ModuleId,
    attn: ModuleId,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    sinks: ParamId,
    mlp: ModuleId,
    router: ModuleId,
    router_weight: ParamId,
    router_bias: ParamId,
    experts: ModuleId,
    /// gate_up_proj, gate_up_proj_bias, down_proj, down_proj_bias
    parameters: [ParamId; 4],
    input_norm: Norm,
    post_norm: Norm,
    sliding: bool,
    c: Rc<Config>,
}

struct GptOss {
    model: ModuleId,
    rotary: ModuleId,
    embed: Embedding,
    layers: Vec<Rc<Layer>>,
    norm: Norm,
    head: Linear,
    c: Rc<Config>,
}

/// From configuration fields.
pub fn build(config: &serde_json::Value, _head: Head, stack: &Stack) -> Result<Built, ModelError> {
    let c: Config = fields(config)?;
    let (h, kv) = (c.num_attention_heads, c.num_key_value_heads);
    if kv == 0 || h == 0 || !h.is_multiple_of(kv) {
        return Err(ModelError::field(
            "num_key_value_heads",
            format!("{kv} does not divide num_attention_heads {h}"),
        ));
    }
    let (k, e) = (c.num_experts_per_tok, c.num_local_experts);
    if k == 0 || k > e {
        return Err(ModelError::field(
            "num_experts_per_tok",
            format!("{k} of {e} experts"),
        ));
    }
    let c = Rc::new(c);
    let (d, v) = (c.hidden_size, c.vocab_size);
    let mut b = NetBuilder::new();
    let (model, rotary, embed, layers, norm) = b.scope("model", |b| {
        let embed = Embedding::new(b, "embed_tokens", v, d);
        let layers = b.scope("layers", |b| {
            (0..c.num_hidden_layers)
                .map(|i| Ok(Rc::new(layer(b, i, c.sliding(i)?, &c))))
                .collect::<Result<_, ModelError>>()
        })?;
        let norm = Norm::new(b, "norm", d);
        let rotary = b.scope("rotary_emb", |b| {
            b.buffer("inv_freq", &[c.head_dim / 2], Some(ScalarType::F32));
            if stack.transformers_5() {
                let half = [c.head_dim / 2];
                b.buffer("original_inv_freq", &half, Some(ScalarType::F32));
            }
            b.id()
        });
        Ok::<_, ModelError>((b.id(), rotary, embed, layers, norm))
    })?;
    let head = if c.tie_word_embeddings {
        Linear::tied(&mut b, "lm_head", d, v, embed.1, false)
    } else {
        Linear::new(&mut b, "lm_head", d, v, false)
    };
    Ok(Built {
        net: b.finish(),
        arch: Rc::new(GptOss {
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

fn layer(b: &mut NetBuilder, i: u64, sliding: bool, c: &Rc<Config>) -> Layer {
    let (d, f, e, bias) = (
        c.hidden_size,
        c.intermediate_size,
        c.num_local_experts,
        c.attention_bias,
    );
    let (h, qd, kd) = (
        c.num_attention_heads,
        c.num_attention_heads * c.head_dim,
        c.num_key_value_heads * c.head_dim,
    );
    b.scope(&i.to_string(), |b| {
        let (attn, sinks, [q, k, v, o]) = b.scope_kind("self_attn", Kind::Other, |b| {
            let sinks = b.param("sinks", &[h]);
            let q = Linear::new(b, "q_proj", d, qd, bias);
            let k = Linear::new(b, "k_proj", d, kd, bias);
            let v = Linear::new(b, "v_proj", d, kd, bias);
            let o = Linear::new(b, "o_proj", qd, d, bias);
            (b.id(), sinks, [q, k, v, o])
        });
        let (mlp, router, experts) = b.scope("mlp", |b| {
            let router = b.scope_kind("router", Kind::Other, |b| {
                (b.id(), b.param("weight", &[e, d]), b.param("bias", &[e]))
            });
            let experts = b.scope_kind("experts", Kind::Other, |b| {
                let parameters = [
                    b.param("gate_up_proj", &[e, d, 2 * f]),
                    b.param("gate_up_proj_bias", &[e, 2 * f]),
                    b.param("down_proj", &[e, f, d]),
                    b.param("down_proj_bias", &[e, d]),
                ];
                (b.id(), parameters)
            });
            (b.id(), router, experts)
        });
        Layer {
            id: b.id(),
            attn,
            q,
            k,
            v,
            o,
            sinks,
            mlp,
            router: router.0,
            router_weight: router.1,
            router_bias: router.2,
            experts: experts.0,
            parameters: experts.1,
            input_norm: Norm::new(b, "input_layernorm", d),
            post_norm: Norm::new(b, "post_attention_layernorm", d),
            sliding,
            c: c.clone(),
        }
    })
}

/// `_apply_rotary_emb`
fn rotate(m: &Run, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Tensor {
    let cx = &m.cx;
    let halves = ops::chunk(cx, x, 2, -1);
    let (a, b) = (ops::mul(cx, &halves[0], cos), ops::mul(cx, &halves[1], sin));
    let first = ops::sub(cx, &a, &b);
    drop(a);
    drop(b);
    let (a, b) = (ops::mul(cx, &halves[1], cos), ops::mul(cx, &halves[0], sin));
    let second = ops::add(cx, &a, &b);
    drop(a);
    drop(b);
    ops::cat(cx, &[&first, &second], -1)
}

impl Layer {
    fn window(&self) -> Option<u64> {
        self.sliding.then_some(self.c.sliding_window)
    }

    /// `eager_attention_forward`: the context [B, S, H, d] and the weights without the sinks, a view of the probabilities.
    fn attend(&self, m: &Run, q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> [Tensor; 2] {
        let cx = &m.cx;
        let (b, h, s) = (q.size(0), q.size(1), q.size(2));
        let groups = h / k.size(1);
        let k = ops::repeat_kv(cx, k, groups);
        let v = ops::repeat_kv(cx, v, groups);
        let raw = ops::matmul(cx, q, &ops::transpose(cx, &k, 2, 3));
        let mut w = ops::mul_scalar(cx, &raw);
        drop(raw);
        w = ops::add(cx, &w, mask);
        let sinks = ops::reshape(cx, m.weight(self.sinks), Shape::new(&[1, h, 1, 1]));
        let sinks = ops::expand(cx, &sinks, Shape::new(&[b, h, s, 1]));
        let mut combined = ops::cat(cx, &[&w, &sinks], -1);
        let (largest, at) = ops::max_last(cx, &combined);
        drop(at);
        let difference = ops::sub(cx, &combined, &largest);
        drop(largest);
        combined = difference;
        let probabilities = ops::softmax(cx, &combined, Some(combined.dtype));
        let scores = ops::narrow(cx, &probabilities, -1, 0, k.size(2));
        let p = if m.training {
            self.c.attention_dropout
        } else {
            0.0
        };
        w = ops::dropout(cx, &scores, p);
        if m.options.stack.transformers_5() {
            w = ops::to_dtype(cx, &w, v.dtype);
        }
        let o = ops::matmul(cx, &w, &v);
        let y = ops::contiguous(cx, &ops::transpose(cx, &o, 1, 2));
        drop(o);
        drop(k);
        drop(v);
        drop(sinks);
        drop(combined);
        drop(probabilities);
        drop(scores);
        [y, w]
    }

    fn attention(
        &self,
        m: &Run,
        x: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        mask: &Tensor,
    ) -> [Tensor; 2] {
        let cx = &m.cx;
        let (b, s, hd) = (x.size(0), x.size(1), self.c.head_dim);
        let mut q = common::attention::split_heads(m, &self.q, x, hd);
        let mut k = common::attention::split_heads(m, &self.k, x, hd);
        let mut v = common::attention::split_heads(m, &self.v, x, hd);
        let (q2, k2) = {
            let (cos, sin) = (ops::unsqueeze(cx, cos, 1), ops::unsqueeze(cx, sin, 1));
            (rotate(m, &q, &cos, &sin), rotate(m, &k, &cos, &sin))
        };
        q = q2;
        k = k2;
        (k, v) = m.cached(self.attn, self.window(), k, v);
        let [mut o, w] = self.attend(m, &q, &k, &v, mask);
        let width = self.c.num_attention_heads * hd;
        o = ops::reshape(cx, &o, Shape::new(&[b, s, width]));
        o = self.o.forward(m, &o);
        drop(q);
        drop(k);
        drop(v);
        [o, w]
    }

    /// The block's output and the router's scores, which the layer's frame keeps.
    fn feed_forward(&self, m: &Run, x: &Tensor) -> [Tensor; 2] {
        let cx = &m.cx;
        let five = m.options.stack.transformers_5();
        let (b, s, d) = (x.size(0), x.size(1), x.size(2));
        let flatten = |x: &Tensor| ops::reshape(cx, x, Shape::new(&[b * s, d]));
        let flat = five.then(|| flatten(x));
        let (logits, mut scores, ids) = m.within(self.router, || {
            let own;
            let h = match &flat {
                Some(f) => f,
                None => {
                    own = flatten(x);
                    &own
                }
            };
            let (w, bias) = (m.weight(self.router_weight), m.weight(self.router_bias));
            let logits = ops::linear(cx, h, w, Some(bias));
            let (top, ids) = ops::topk(cx, &logits, self.c.num_experts_per_tok);
            let scores = ops::softmax(cx, &top, Some(top.dtype));
            (logits, scores, ids)
        });
        let y = match &flat {
            Some(flat) => {
                let y = m.within(self.experts, || self.grouped(m, flat, &ids, &scores));
                let y2 = ops::reshape(cx, &y, Shape::new(&[b, s, d]));
                drop(y);
                drop(logits);
                y2
            }
            None => m.within(self.experts, || {
                // 4.57: the scores of all experts, and the loop over those that are hit, of which there are none here
                scores = m.within(self.router, || {
                    let zeros = ops::plain(cx, OpId::ZEROS_LIKE, &logits, logits.dtype);
                    ops::scatter_(cx, zeros, &ids, &scores)
                });
                drop(logits);
                let y = cx.empty(OpId::ZEROS_LIKE, Shape::new(&[b * s, d]), x.dtype);
                let mask = experts::unrouted(m, &ids, self.c.num_local_experts + 1);
                drop(mask);
                ops::view(cx, &y, Shape::new(&[b, s, d]))
            }),
        };
        drop(ids);
        [y, scores]
    }

    /// 5.x: all chosen experts in grouped products.
    fn grouped(&self, m: &Run, flat: &Tensor, ids: &Tensor, scores: &Tensor) -> Tensor {
        let cx = &m.cx;
        let [gate_up, gate_up_bias, down, down_bias] = self.parameters.map(|p| m.weight(p));
        let packed = experts::Packed {
            gate_up,
            down,
            biases: Some([gate_up_bias, down_bias]),
            transposed: true,
        };
        experts::grouped_with(m, flat, ids, scores, &packed, |out| {
            let (mut gate, mut up) = (ops::every(cx, out, 2), ops::every(cx, out, 2));
            gate = ops::clamp_scalar(cx, &gate, false, true);
            up = ops::clamp_scalar(cx, &up, true, true);
            let scaled = ops::mul_scalar(cx, &gate);
            let sigmoid = ops::sigmoid(cx, &scaled);
            drop(scaled);
            let glu = ops::mul(cx, &gate, &sigmoid);
            drop(sigmoid);
            let more = ops::add_scalar(cx, &up);
            let y = ops::mul(cx, &more, &glu);
            drop(more);
            drop(gate);
            drop(up);
            drop(glu);
            y
        })
    }

    fn forward(&self, m: &Run, x: &Tensor, cos: &Tensor, sin: &Tensor, mask: &Tensor) -> Tensor {
        m.within(self.id, || {
            let cx = &m.cx;
            let mut h = self.input_norm.forward(m, x);
            let [a, mut kept] = m.within(self.attn, || self.attention(m, &h, cos, sin, mask));
            h = a;
            h = ops::add(cx, x, &h);
            let residual = h.clone();
            h = self.post_norm.forward(m, &h);
            let [y, scores] = m.within(self.mlp, || self.feed_forward(m, &h));
            h = y;
            kept = {
                drop(kept);
                scores
            };
            h = ops::add(cx, &residual, &h);
            drop(residual);
            drop(kept);
            h
        })
    }
}

impl Arch for GptOss {
    fn generates(&self) -> bool {
        true
    }

    fn masks(&self) -> Masks {
        Masks {
            full: self.layers.iter().any(|l| !l.sliding),
            window: (self.layers.iter().any(|l| l.sliding)).then_some(self.c.sliding_window),
        }
    }

    fn forward(&self, m: &Rc<Run>, batch: &Batch) -> Output {
        let ids = batch
            .input_ids
            .as_ref()
            .expect("a language model's batch has input_ids");
        let (b, s) = (ids.size(0), ids.size(1));
        let cx = &m.cx;
        let h = m.within(self.model, || {
            let emb = self.embed.forward(m, ids);
            let pos = mask::positions(m, batch, s);
            let masks = [None, Some(self.c.sliding_window)].map(|window| {
                let request = mask::Request {
                    window,
                    eager: true,
                    positions: false,
                };
                mask::requested(m, batch, b, s, emb.dtype, request)
                    .expect("an eager mask is always made")
            });
            let (cos, sin) = m.within(self.rotary, || {
                common::rope::half_tables(m, pos.size(0), s, self.c.head_dim, emb.dtype)
            });
            let mut x = emb.clone();
            for (i, l) in self.layers.iter().enumerate() {
                let mask = masks[usize::from(l.sliding)].clone();
                x = if m.checkpoints(i) {
                    let (l, m2) = (l.clone(), m.clone());
                    let kwargs = (mask, sin.clone(), cos.clone(), pos.clone());
                    cx.checkpoint(vec![x], move |_, t| {
                        let kwargs = &kwargs;
                        l.forward(&m2, &t[0], &kwargs.2, &kwargs.1, &kwargs.0)
                    })
                } else {
                    l.forward(m, &x, &cos, &sin, &mask)
                };
            }
            x = self.norm.forward(m, &x);
            drop(pos);
            drop(emb);
            drop(masks);
            drop(cos);
            drop(sin);
            x
        });
        let kept = batch.last(cx, &h);
        let logits = self.head.forward(m, &kept);
        drop(kept);
        let labels = batch.labels.as_ref();
        let loss = labels.map(|l| common::loss::causal_lm(m, &logits, l));
        drop(h);
        Output {
            loss,
            logits: Some(logits),
            rest: vec![],
        }
    }
}
