//! GPT-NeoX and Pythia (transformers 5.17, src/transformers/models/gpt_neox/modeling_gpt_neox.py).

use super::{Arch, Batch, Built, Head, Output, fields};
use crate::common;
use crate::error::ModelError;
use crate::layers::{Dropout, Embedding, LayerNorm, Linear};
use crate::net::{ModuleId, NetBuilder};
use crate::run::Run;
use crate::stack::Stack;
use serde::Deserialize;
use std::rc::Rc;
use tonnage_sim::{ScalarType, Shape, Tensor, ops};

/// The fields that matter to memory, with transformers' defaults.
#[derive(Deserialize, Clone, Debug)]
#[serde(default)]
pub struct Config {
    pub vocab_size: u64,
    pub hidden_size: u64,
    pub num_hidden_layers: u64,
    pub num_attention_heads: u64,
    pub intermediate_size: u64,
    pub rotary_pct: f64,
    pub rope_parameters: Option<serde_json::Value>,
    pub attention_dropout: f64,
    pub hidden_dropout: f64,
    pub use_parallel_residual: bool,
    pub attention_bias: bool,
    pub tie_word_embeddings: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            vocab_size: 50432,
            hidden_size: 6144,
            num_hidden_layers: 44,
            num_attention_heads: 64,
            intermediate_size: 24576,
            rotary_pct: 0.25,
            rope_parameters: None,
            attention_dropout: 0.0,
            hidden_dropout: 0.0,
            use_parallel_residual: true,
            attention_bias: true,
            tie_word_embeddings: false,
        }
    }
}

struct Layer {
    id: ModuleId,
    attn: ModuleId,
    mlp: ModuleId,
    act: ModuleId,
    input_norm: LayerNorm,
    post_norm: LayerNorm,
    attn_drop: Dropout,
    mlp_drop: Dropout,
    qkv: Linear,
    dense: Linear,
    up: Linear,
    down: Linear,
    heads: u64,
    head_dim: u64,
    dropout: f64,
    parallel: bool,
}

struct GptNeox {
    base: ModuleId,
    rotary: ModuleId,
    embed: Embedding,
    drop: Dropout,
    layers: Vec<Rc<Layer>>,
    norm: LayerNorm,
    head: Linear,
    rotary_dim: u64,
}

/// From configuration fields.
pub fn build(config: &serde_json::Value, _head: Head, stack: &Stack) -> Result<Built, ModelError> {
    let c: Config = fields(config)?;
    let h = c.num_attention_heads;
    if h == 0 || !c.hidden_size.is_multiple_of(h) {
        return Err(ModelError::field(
            "num_attention_heads",
            format!("{h} does not divide hidden_size {}", c.hidden_size),
        ));
    }
    let head_dim = c.hidden_size / h;
    let factor = c
        .rope_parameters
        .as_ref()
        .and_then(|r| r.get("partial_rotary_factor"))
        .and_then(|v| v.as_f64());
    let rotary_dim = (head_dim as f64 * factor.unwrap_or(c.rotary_pct)) as u64;
    let d = c.hidden_size;
    let mut b = NetBuilder::new();
    let (base, rotary, embed, drop, layers, norm) = b.scope("gpt_neox", |b| {
        let embed = Embedding::new(b, "embed_in", c.vocab_size, d);
        let drop = Dropout::new(b, "emb_dropout", c.hidden_dropout);
        let layers = b.scope("layers", |b| {
            (0..c.num_hidden_layers)
                .map(|i| Rc::new(layer(b, &i.to_string(), &c, head_dim)))
                .collect()
        });
        let norm = LayerNorm::new(b, "final_layer_norm", d, true, true);
        let rotary = b.scope("rotary_emb", |b| {
            b.buffer("inv_freq", &[rotary_dim / 2], Some(ScalarType::F32));
            if stack.transformers_5() {
                b.buffer(
                    "original_inv_freq",
                    &[rotary_dim / 2],
                    Some(ScalarType::F32),
                );
            }
            b.id()
        });
        (b.id(), rotary, embed, drop, layers, norm)
    });
    // its name decides what a script that skips `lm_head` packs (record gpt_neox-tiny-plain-fp16-nf4-dora4-d0-ckpt-tf4.57.6)
    let name = if stack.transformers_5() {
        "lm_head"
    } else {
        "embed_out"
    };
    let head = if c.tie_word_embeddings {
        Linear::tied(&mut b, name, d, c.vocab_size, embed.1, false)
    } else {
        Linear::new(&mut b, name, d, c.vocab_size, false)
    };
    Ok(Built {
        net: b.finish(),
        arch: Rc::new(GptNeox {
            base,
            rotary,
            embed,
            drop,
            layers,
            norm,
            head,
            rotary_dim,
        }),
    })
}

fn layer(b: &mut NetBuilder, name: &str, c: &Config, head_dim: u64) -> Layer {
    let d = c.hidden_size;
    b.scope(name, |b| {
        let id = b.id();
        let input_norm = LayerNorm::new(b, "input_layernorm", d, true, true);
        let post_norm = LayerNorm::new(b, "post_attention_layernorm", d, true, true);
        let attn_drop = Dropout::new(b, "post_attention_dropout", c.hidden_dropout);
        let mlp_drop = Dropout::new(b, "post_mlp_dropout", c.hidden_dropout);
        let (attn, qkv, dense) = b.scope("attention", |b| {
            let q = Linear::new(b, "query_key_value", d, 3 * d, c.attention_bias);
            (b.id(), q, Linear::new(b, "dense", d, d, c.attention_bias))
        });
        let (mlp, up, down, act) = b.scope("mlp", |b| {
            let up = Linear::new(b, "dense_h_to_4h", d, c.intermediate_size, true);
            let down = Linear::new(b, "dense_4h_to_h", c.intermediate_size, d, true);
            (b.id(), up, down, b.scope("act", |b| b.id()))
        });
        Layer {
            id,
            attn,
            mlp,
            act,
            input_norm,
            post_norm,
            attn_drop,
            mlp_drop,
            qkv,
            dense,
            up,
            down,
            heads: c.num_attention_heads,
            head_dim,
            dropout: c.attention_dropout,
            parallel: c.use_parallel_residual,
        }
    })
}

/// `apply_rotary_pos_emb`: only the first `cos.size(-1)` channels turn.
fn partial_rotary(m: &Run, q: &Tensor, k: &Tensor, cos: &Tensor, sin: &Tensor) -> (Tensor, Tensor) {
    let cx = &m.cx;
    let cos = ops::unsqueeze(cx, cos, 1);
    let sin = ops::unsqueeze(cx, sin, 1);
    let r = cos.size(-1);
    let parts = |x: &Tensor| {
        let d = x.size(-1);
        (ops::slice(cx, x, -1, 0, r), ops::slice(cx, x, -1, r, d - r))
    };
    let (q_rot, q_pass) = parts(q);
    let (k_rot, k_pass) = parts(k);
    let mut q2 = common::rope::rotate(m, &q_rot, &cos, &sin);
    let mut k2 = common::rope::rotate(m, &k_rot, &cos, &sin);
    q2 = ops::cat(cx, &[&q2, &q_pass], -1);
    k2 = ops::cat(cx, &[&k2, &k_pass], -1);
    (q2, k2)
}

impl Layer {
    fn attention(
        &self,
        m: &Run,
        x: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        mask: Option<&Tensor>,
    ) -> Tensor {
        let cx = &m.cx;
        let (b, s) = (x.size(0), x.size(1));
        let fused = self.qkv.forward(m, x);
        let qkv = ops::transpose(
            cx,
            &ops::view(
                cx,
                &fused,
                Shape::new(&[b, s, self.heads, 3 * self.head_dim]),
            ),
            1,
            2,
        );
        drop(fused);
        let parts = ops::chunk(cx, &qkv, 3, -1);
        let (mut q, mut k, v) = (parts[0].clone(), parts[1].clone(), parts[2].clone());
        drop(parts);
        let (q2, k2) = partial_rotary(m, &q, &k, cos, sin);
        q = q2;
        k = k2;
        let (k, v) = m.cached(self.attn, None, k, v);
        let mut o = common::attention::attend(m, &q, &k, &v, mask, self.dropout, true);
        o = ops::reshape(cx, &o, Shape::new(&[b, s, self.heads * self.head_dim]));
        o = self.dense.forward(m, &o);
        drop(qkv);
        drop(q);
        drop(k);
        drop(v);
        o
    }

    fn feed_forward(&self, m: &Run, x: &Tensor) -> Tensor {
        let mut h = self.up.forward(m, x);
        h = m.within(self.act, || ops::gelu(&m.cx, &h));
        self.down.forward(m, &h)
    }

    fn forward(
        &self,
        m: &Run,
        x: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        mask: Option<&Tensor>,
    ) -> Tensor {
        let cx = &m.cx;
        m.within(self.id, || {
            let h = self.input_norm.forward(m, x);
            let mut a = m.within(self.attn, || self.attention(m, &h, cos, sin, mask));
            drop(h);
            a = self.attn_drop.forward(m, &a);
            if !self.parallel {
                a = ops::add(cx, &a, x);
            }
            let h = self
                .post_norm
                .forward(m, if self.parallel { x } else { &a });
            let mut f = m.within(self.mlp, || self.feed_forward(m, &h));
            drop(h);
            f = self.mlp_drop.forward(m, &f);
            let mut y = ops::add(cx, &f, &a);
            if self.parallel {
                y = ops::add(cx, &y, x);
            }
            drop(a);
            drop(f);
            y
        })
    }
}

impl Arch for GptNeox {
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
        let h = m.within(self.base, || {
            let emb = self.embed.forward(m, ids);
            let pos = common::mask::positions(m, batch, s);
            let mask = common::mask::causal(m, batch, b, s, emb.dtype);
            let mut x = self.drop.forward(m, &emb);
            let (cos, sin) = m.within(self.rotary, || {
                common::rope::tables_for(m, pos.size(0), s, self.rotary_dim, x.dtype)
            });
            for (i, l) in self.layers.iter().enumerate() {
                x = if m.checkpoints(i) {
                    let (l, m2) = (l.clone(), m.clone());
                    let kwargs = (mask.clone(), pos.clone(), sin.clone(), cos.clone());
                    cx.checkpoint(vec![x], move |_, t| {
                        let kwargs = &kwargs;
                        l.forward(&m2, &t[0], &kwargs.3, &kwargs.2, kwargs.0.as_ref())
                    })
                } else {
                    l.forward(m, &x, &cos, &sin, mask.as_ref())
                };
            }
            // 4.57: the last layer's `outputs` are a local
            let last = (!m.options.stack.transformers_5()).then(|| x.clone());
            x = self.norm.forward(m, &x);
            // 4.57: `cache_position`, a later argument than `inputs_embeds`, shares the storage of the position ids
            let cache_position = (!m.options.stack.transformers_5()).then(|| pos.clone());
            drop(pos);
            drop(emb);
            drop(cache_position);
            drop(mask);
            drop(sin);
            drop(cos);
            drop(last);
            x
        });
        let kept = batch.last(cx, &h);
        let (logits, loss) =
            common::loss::head_and_loss(m, &self.head, &kept, batch.labels.as_ref());
        drop(kept);
        drop(h);
        Output {
            loss,
            logits,
            rest: vec![],
        }
    }
}
