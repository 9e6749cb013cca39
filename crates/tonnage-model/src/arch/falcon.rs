//! Falcon: the old decoder (falcon-rw with ALiBi, falcon-7b with one key and value head) and the new one (falcon-40b)
//! (transformers 5.17 and 4.57.6, src/transformers/models/falcon/modeling_falcon.py).
//! Cases: `falcon-rw-1b-plain-*`, `falcon-7b-plain-*` of torch-trace-dev.jsonl, `falcon-*` of torch-trace-own.jsonl.

use super::{Arch, Batch, Built, Head, Output, fields};
use crate::common;
use crate::error::ModelError;
use crate::layers::{Embedding, LayerNorm, Linear};
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
    pub hidden_size: u64,
    pub num_hidden_layers: u64,
    pub num_attention_heads: u64,
    pub num_kv_heads: Option<u64>,
    pub num_ln_in_parallel_attn: Option<u64>,
    pub ffn_hidden_size: Option<u64>,
    pub alibi: bool,
    pub new_decoder_architecture: bool,
    pub multi_query: bool,
    pub parallel_attn: bool,
    pub bias: bool,
    pub attention_dropout: f64,
    pub hidden_dropout: f64,
    pub tie_word_embeddings: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            vocab_size: 65024,
            hidden_size: 4544,
            num_hidden_layers: 32,
            num_attention_heads: 71,
            num_kv_heads: None,
            num_ln_in_parallel_attn: None,
            ffn_hidden_size: None,
            alibi: false,
            new_decoder_architecture: false,
            multi_query: true,
            parallel_attn: true,
            bias: false,
            attention_dropout: 0.0,
            hidden_dropout: 0.0,
            tie_word_embeddings: true,
        }
    }
}

struct Layer {
    id: ModuleId,
    attn: ModuleId,
    mlp: ModuleId,
    act: ModuleId,
    /// Before attention.
    norm: LayerNorm,
    /// Before the MLP: in the sequential decoder, or the second of the new parallel one.
    mlp_norm: Option<LayerNorm>,
    qkv: Linear,
    dense: Linear,
    up: Linear,
    down: Linear,
    c: Rc<Config>,
}

struct Falcon {
    base: ModuleId,
    rotary: ModuleId,
    embed: Embedding,
    layers: Vec<Rc<Layer>>,
    norm: LayerNorm,
    head: Linear,
    c: Rc<Config>,
}

/// What every layer gets beside its input. Fields die in the order of the keyword arguments.
struct Shared {
    mask: Option<Tensor>,
    _positions: Tensor,
    alibi: Option<Tensor>,
    _cache_position: Option<Tensor>,
    sin: Tensor,
    cos: Tensor,
}

/// `FalconLinear`: `x @ weight.T`, then `+ bias`.
fn linear(b: &mut NetBuilder, name: &str, input: u64, output: u64, bias: bool) -> Linear {
    let kind = crate::net::Kind::Linear { input, output };
    b.scope_kind(name, kind, |b| {
        b.param("weight", &[output, input]);
        if bias {
            b.param("bias", &[output]);
        }
        b.spell_out();
        Linear(b.id())
    })
}

/// From configuration fields.
pub fn build(config: &serde_json::Value, _head: Head, stack: &Stack) -> Result<Built, ModelError> {
    let mut c: Config = fields(config)?;
    let h = c.num_attention_heads;
    if h == 0 || !c.hidden_size.is_multiple_of(h) {
        return Err(ModelError::field(
            "num_attention_heads",
            format!("{h} does not divide hidden_size {}", c.hidden_size),
        ));
    }
    let kv = c.num_kv_heads.unwrap_or(h);
    if kv == 0 || !h.is_multiple_of(kv) {
        return Err(ModelError::field(
            "num_kv_heads",
            format!("{kv} does not divide num_attention_heads {h}"),
        ));
    }
    if c.num_ln_in_parallel_attn.is_none() && c.new_decoder_architecture {
        c.num_ln_in_parallel_attn = Some(2);
    }
    let c = Rc::new(c);
    let (d, half) = (c.hidden_size, c.hidden_size / h / 2);
    let mut b = NetBuilder::new();
    let (base, rotary, embed, layers, norm) = b.scope("transformer", |b| {
        let embed = Embedding::new(b, "word_embeddings", c.vocab_size, d);
        let layers = b.scope("h", |b| {
            (0..c.num_hidden_layers)
                .map(|i| Rc::new(layer(b, &i.to_string(), &c, kv)))
                .collect()
        });
        let norm = LayerNorm::new(b, "ln_f", d, true, true);
        let rotary = b.scope("rotary_emb", |b| {
            b.buffer("inv_freq", &[half], Some(ScalarType::F32));
            if stack.transformers_5() {
                b.buffer("original_inv_freq", &[half], Some(ScalarType::F32));
            }
            b.id()
        });
        (b.id(), rotary, embed, layers, norm)
    });
    let head = if c.tie_word_embeddings {
        Linear::tied(&mut b, "lm_head", d, c.vocab_size, embed.1, false)
    } else {
        Linear::new(&mut b, "lm_head", d, c.vocab_size, false)
    };
    Ok(Built {
        net: b.finish(),
        arch: Rc::new(Falcon {
            base,
            rotary,
            embed,
            layers,
            norm,
            head,
            c,
        }),
    })
}

fn layer(b: &mut NetBuilder, name: &str, c: &Rc<Config>, kv: u64) -> Layer {
    let (d, h) = (c.hidden_size, c.num_attention_heads);
    let ffn = c.ffn_hidden_size.unwrap_or(4 * d);
    let width = if c.new_decoder_architecture {
        (2 * kv + h) * (d / h)
    } else if c.multi_query {
        d + 2 * (d / h)
    } else {
        3 * d
    };
    b.scope(name, |b| {
        let (attn, qkv, dense) = b.scope("self_attention", |b| {
            let qkv = linear(b, "query_key_value", d, width, c.bias);
            (b.id(), qkv, linear(b, "dense", d, d, c.bias))
        });
        let (mlp, up, act, down) = b.scope("mlp", |b| {
            let up = linear(b, "dense_h_to_4h", d, ffn, c.bias);
            let act = b.scope("act", |b| b.id());
            (b.id(), up, act, linear(b, "dense_4h_to_h", ffn, d, c.bias))
        });
        let mut norm = |name: &str| LayerNorm::new(b, name, d, true, true);
        let (norm, mlp_norm) = if !c.parallel_attn {
            let post = norm("post_attention_layernorm");
            (norm("input_layernorm"), Some(post))
        } else if c.num_ln_in_parallel_attn == Some(2) {
            (norm("ln_attn"), Some(norm("ln_mlp")))
        } else {
            (norm("input_layernorm"), None)
        };
        Layer {
            id: b.id(),
            attn,
            mlp,
            act,
            norm,
            mlp_norm,
            qkv,
            dense,
            up,
            down,
            c: c.clone(),
        }
    })
}

impl Layer {
    /// `_split_heads`: query, key and value as [B, S, heads, d].
    fn split(&self, m: &Run, fused: &Tensor) -> (Tensor, Tensor, Tensor) {
        let cx = &m.cx;
        let (b, s) = (fused.size(0), fused.size(1));
        let h = self.c.num_attention_heads;
        let d = self.c.hidden_size / h;
        let pick = |x: &Tensor, dim| {
            let at = ops::index_list(cx, 1);
            ops::index(cx, x, dim, &[&at])
        };
        if self.c.new_decoder_architecture {
            let kv = self.c.num_kv_heads.unwrap_or(h);
            let qkv = ops::view(cx, fused, Shape::new(&[b, s, kv, h / kv + 2, d]));
            let q = ops::narrow(cx, &qkv, 3, 0, h / kv);
            let mut k = pick(&qkv, 3);
            let mut v = pick(&qkv, 3);
            k = ops::expand(cx, &k, q.shape);
            v = ops::expand(cx, &v, q.shape);
            let out = (
                ops::flatten(cx, &q, 2, 3),
                ops::flatten(cx, &k, 2, 3),
                ops::flatten(cx, &v, 2, 3),
            );
            drop(k);
            drop(v);
            out
        } else if !self.c.multi_query {
            let qkv = ops::view(cx, fused, Shape::new(&[b, s, h, 3, d]));
            let part = || ops::select(cx, &qkv, 3);
            (part(), part(), part())
        } else {
            let qkv = ops::view(cx, fused, Shape::new(&[b, s, h + 2, d]));
            let q = ops::narrow(cx, &qkv, 2, 0, h);
            let k = pick(&qkv, 2);
            (q, k, pick(&qkv, 2))
        }
    }

    fn attention(&self, m: &Run, x: &Tensor, shared: &Shared) -> Tensor {
        let cx = &m.cx;
        let (b, s) = (x.size(0), x.size(1));
        let (h, width) = (self.c.num_attention_heads, self.c.hidden_size);
        let fused = self.qkv.forward(m, x);
        let (mut q, mut k, mut v) = self.split(m, &fused);
        let heads = |x: &Tensor| {
            let t = ops::transpose(cx, x, 1, 2);
            ops::reshape(cx, &t, t.shape)
        };
        q = heads(&q);
        k = heads(&k);
        v = heads(&v);
        if shared.alibi.is_none() {
            let (q2, k2) = common::rope::apply(m, &q, &k, &shared.cos, &shared.sin);
            q = q2;
            k = k2;
        }
        let (mut k, mut v) = m.cached(self.attn, None, k, v);
        if m.options.attention != Attention::Eager
            && shared.mask.is_some()
            && !m.options.stack.transformers_5()
        {
            q = ops::contiguous(cx, &q);
            k = ops::contiguous(cx, &k);
            v = ops::contiguous(cx, &v);
        }
        let mask = shared.mask.as_ref();
        let drop_p = if m.training && shared.alibi.is_some() {
            self.c.attention_dropout
        } else {
            0.0
        };
        let mut kept = vec![];
        let mut o = if m.options.attention == Attention::Eager {
            let (o, w) = self.eager(m, &q, &k, &v, shared, x.dtype, drop_p);
            kept = w;
            o
        } else {
            let args = SdpaArgs {
                mask: mask.cloned(),
                dropout: drop_p,
                is_causal: mask.is_none() && s > 1,
                enable_gqa: false,
                scale_given: false,
            };
            ops::sdpa(cx, &q, &k, &v, &args)
        };
        o = ops::transpose(cx, &o, 1, 2);
        o = ops::reshape(cx, &o, Shape::new(&[b, s, width]));
        o = self.dense.forward(m, &o);
        debug_assert_eq!(width % h, 0);
        drop(fused);
        drop(q);
        drop(k);
        drop(v);
        kept.into_iter().for_each(drop);
        o
    }

    /// The composed attention: with ALiBi the scores are fp32 and the bias is added once more. The second result are the locals
    /// that live to the end of the frame.
    #[allow(clippy::too_many_arguments)]
    fn eager(
        &self,
        m: &Run,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        shared: &Shared,
        dtype: ScalarType,
        p: f64,
    ) -> (Tensor, Vec<Tensor>) {
        let cx = &m.cx;
        let masked = |t: &Tensor| match &shared.mask {
            Some(mask) => ops::add(cx, t, mask),
            None => t.clone(),
        };
        let mut scores = ops::matmul(cx, q, &ops::transpose(cx, k, -1, -2));
        let Some(alibi) = &shared.alibi else {
            scores = ops::div_scalar_(cx, scores);
            let soft = ops::softmax(cx, &masked(&scores), Some(dtype));
            scores = soft;
            let o = ops::matmul(cx, &scores, v);
            return (o, vec![scores]);
        };
        let wide = ops::to_dtype(cx, &scores, ScalarType::F32);
        let a = ops::view(cx, alibi, Shape::new(&[q.size(0), q.size(1), 1, k.size(2)]));
        let mut logits = ops::add(cx, &wide, &a);
        logits = ops::mul_scalar_(cx, logits);
        let mut w = ops::softmax(cx, &masked(&logits), Some(dtype));
        w = ops::dropout(cx, &w, p);
        let o = ops::matmul(cx, &w, v);
        // `attention_scores` comes first in the source
        (o, vec![wide, scores, logits, w])
    }

    fn forward(&self, m: &Run, x: &Tensor, shared: &Shared) -> Tensor {
        let cx = &m.cx;
        let c = &self.c;
        m.within(self.id, || {
            let new = c.new_decoder_architecture;
            let h = self.norm.forward(m, x);
            let mut f = None;
            if let (true, Some(n)) = (new && c.num_ln_in_parallel_attn == Some(2), &self.mlp_norm) {
                f = Some(n.forward(m, x));
            }
            let a = m.within(self.attn, || self.attention(m, &h, shared));
            let mut residual = x.clone();
            if !new && !c.parallel_attn {
                let p = if m.training { c.attention_dropout } else { 0.0 };
                let dropped = ops::dropout(cx, &a, p);
                residual = ops::add(cx, &residual, &dropped);
                f = self.mlp_norm.as_ref().map(|n| n.forward(m, &residual));
            }
            let f = f.unwrap_or_else(|| h.clone());
            let mut y = m.within(self.mlp, || {
                let mut t = self.up.forward(m, &f);
                t = m.within(self.act, || ops::gelu(cx, &t));
                self.down.forward(m, &t)
            });
            if new || c.parallel_attn {
                y = ops::add_(cx, y, &a);
            }
            let p = if m.training { c.hidden_dropout } else { 0.0 };
            let dropped = ops::dropout(cx, &y, p);
            let out = ops::add(cx, &residual, &dropped);
            drop(dropped);
            drop(residual);
            drop(h);
            // `mlp_layernorm_out` comes first in the source
            drop(f);
            drop(a);
            drop(y);
            out
        })
    }
}

/// `build_alibi_tensor` as [B * heads, 1, S] in `dtype`; `mask` is the [B, S] int64 mask.
fn alibi(m: &Run, mask: &Tensor, heads: u64, dtype: ScalarType) -> Tensor {
    let cx = &m.cx;
    let (b, s) = (mask.size(0), mask.size(1));
    let make = |op, n: u64, t| cx.empty(op, Shape::new(&[n]), t);
    let low = 1u64 << heads.ilog2();
    let base = make(OpId::FULL, 1, ScalarType::F32);
    let powers = make(OpId::ARANGE, low, ScalarType::I32);
    let mut slopes = make(OpId::POW, low, ScalarType::F32);
    let mut extra = None;
    if low != heads {
        let n = low.min(heads - low);
        let extra_base = make(OpId::FULL, 1, ScalarType::F32);
        let extra_powers = make(OpId::ARANGE, n, ScalarType::I32);
        let more = make(OpId::POW, n, ScalarType::F32);
        let all = make(OpId::CAT, low + n, ScalarType::F32);
        drop(more);
        slopes = all;
        extra = Some((extra_base, extra_powers));
    }
    let steps = tonnage_sim::kernels::cumsum(b * s, ScalarType::I64, ScalarType::I64, b == 1)
        .expect("an int64 cumsum is covered");
    let sums = cx
        .play(OpId::CUMSUM, &steps, |_| {
            (mask.shape, mask.strides(), ScalarType::I64)
        })
        .remove(0);
    let less = ops::plain(cx, OpId::SUB, &sums, ScalarType::I64);
    drop(sums);
    let positions = ops::plain(cx, OpId::MUL, &less, ScalarType::I64);
    drop(less);
    let low_slopes = make(OpId::TO_COPY, heads, ScalarType::BF16);
    let bias = cx.empty(OpId::MUL, Shape::new(&[b * heads, 1, s]), ScalarType::BF16);
    drop(low_slopes);
    let out = ops::to_dtype(cx, &bias, dtype);
    drop(base);
    drop(powers);
    drop(slopes);
    drop(extra);
    drop(positions);
    out
}

/// 5.x: the materialised causal mask, always, with ALiBi worked in; 4.57: none where SDPA's `is_causal` does.
fn causal_mask(
    m: &Run,
    batch: &Batch,
    emb: &Tensor,
    alibi: Option<Tensor>,
    heads: u64,
) -> Option<Tensor> {
    let cx = &m.cx;
    let (b, s, dtype) = (emb.size(0), emb.size(1), emb.dtype);
    let five = m.options.stack.transformers_5();
    let eager = m.options.attention == Attention::Eager;
    let mut mask = if five {
        let mut mask = match &batch.attention_mask {
            None => common::mask::plain_mask(m, b, common::mask::Span::new(m, s, None)),
            Some(given) => {
                let bools = ops::plain(cx, OpId::TO_COPY, given, ScalarType::Bool);
                let mask = common::mask::padding_mask(m, b, common::mask::Span::new(m, s, None));
                drop(bools);
                mask
            }
        };
        if eager {
            mask = common::mask::additive(m, mask, dtype);
        }
        mask
    } else {
        // `_ignore_causal_mask_sdpa`
        if !eager && alibi.is_none() {
            let Some(given) = &batch.attention_mask else {
                return None;
            };
            if common::mask_4d::ignored(m, given, batch.padded) {
                return None;
            }
        }
        common::mask_4d::additive(m, batch.attention_mask.as_ref(), b, s, dtype)
    };
    let Some(alibi) = alibi else {
        if !five && !eager && batch.attention_mask.is_some() {
            mask = common::mask_4d::unmask_unattended(m, mask);
        }
        return Some(mask);
    };
    if mask.dtype == ScalarType::Bool {
        let zero = cx.empty(OpId::FULL, Shape::new(&[]), dtype);
        let min = cx.empty(OpId::SCALAR_TENSOR, Shape::new(&[]), dtype);
        let numbers = cx.empty(OpId::WHERE, mask.shape, dtype);
        drop(min);
        drop(zero);
        mask = numbers;
    }
    let alibi = ops::reshape(cx, &alibi, Shape::new(&[b, heads, 1, s]));
    let scaled = ops::div_scalar(cx, &alibi);
    let below = ops::compare_scalar(cx, OpId::COMPARE, &mask);
    let filled = ops::masked_fill(cx, &scaled, &below);
    drop(scaled);
    drop(below);
    mask = filled;
    if !five && !eager && batch.attention_mask.is_some() {
        mask = common::mask_4d::unmask_unattended(m, mask);
    }
    Some(mask)
}

impl Arch for Falcon {
    fn generates(&self) -> bool {
        true
    }

    fn forward(&self, m: &Rc<Run>, batch: &Batch) -> Output {
        let ids = batch
            .input_ids
            .as_ref()
            .expect("a language model's batch has input_ids");
        let (b, s) = (ids.size(0), ids.size(1));
        let heads = self.c.num_attention_heads;
        let cx = &m.cx;
        let h = m.within(self.base, || {
            let emb = self.embed.forward(m, ids);
            let mut ones = None;
            let mut bias = None;
            if self.c.alibi {
                let mask = batch
                    .attention_mask
                    .clone()
                    .unwrap_or_else(|| cx.empty(OpId::FULL, Shape::new(&[b, s]), ScalarType::I64));
                bias = Some(alibi(m, &mask, heads, emb.dtype));
                ones = Some(mask);
            }
            let pos = common::mask::positions(m, batch, s);
            let given = bias.clone();
            let mask = causal_mask(m, batch, &emb, given, heads);
            let (cos, sin) = m.within(self.rotary, || {
                common::rope::tables_for(m, pos.size(0), s, self.c.hidden_size / heads, emb.dtype)
            });
            let cache_position = (!m.options.stack.transformers_5()).then(|| pos.clone());
            let shared = || Shared {
                mask: mask.clone(),
                _positions: pos.clone(),
                alibi: bias.clone(),
                _cache_position: cache_position.clone(),
                sin: sin.clone(),
                cos: cos.clone(),
            };
            let mut x = emb.clone();
            for (i, l) in self.layers.iter().enumerate() {
                x = if m.checkpoints(i) {
                    let (l, m2, shared) = (l.clone(), m.clone(), shared());
                    cx.checkpoint(vec![x], move |_, t| {
                        let shared = &shared;
                        l.forward(&m2, &t[0], shared)
                    })
                } else {
                    l.forward(m, &x, &shared())
                };
            }
            let last = x.clone();
            x = self.norm.forward(m, &x);
            drop(pos);
            drop(emb);
            drop(cache_position);
            drop(bias);
            drop(ones);
            drop(mask);
            drop(sin);
            drop(cos);
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
        drop(h);
        Output {
            loss,
            logits: Some(logits),
            rest: vec![],
        }
    }
}
