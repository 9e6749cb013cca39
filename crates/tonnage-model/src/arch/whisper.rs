//! Whisper for conditional generation (transformers 5.17 and 4.57.6, src/transformers/models/whisper/modeling_whisper.py): a stem of
//! two convolutions, an encoder with fixed positions and a decoder with learned ones.

use super::{Arch, Batch, Built, Head, Output, fields};
use crate::common::{self, activation::Activation};
use crate::error::ModelError;
use crate::layers::{Embedding, LayerNorm, Linear};
use crate::net::{Kind, ModuleId, NetBuilder, ParamId};
use crate::run::{Attention, Run};
use serde::Deserialize;
use std::rc::Rc;
use tonnage_sim::ops;
use tonnage_sim::{OpId, ScalarType, Shape, Tensor};

/// The fields that matter to memory, with transformers' defaults.
#[derive(Deserialize, Clone, Debug)]
#[serde(default)]
pub struct Config {
    pub vocab_size: u64,
    pub num_mel_bins: u64,
    pub encoder_layers: u64,
    pub encoder_attention_heads: u64,
    pub decoder_layers: u64,
    pub decoder_attention_heads: u64,
    pub encoder_ffn_dim: u64,
    pub decoder_ffn_dim: u64,
    pub encoder_layerdrop: f64,
    pub decoder_layerdrop: f64,
    pub activation_function: String,
    pub d_model: u64,
    pub dropout: f64,
    pub attention_dropout: f64,
    pub activation_dropout: f64,
    pub max_source_positions: u64,
    pub max_target_positions: u64,
    pub tie_word_embeddings: bool,
    pub apply_spec_augment: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            vocab_size: 51865,
            num_mel_bins: 80,
            encoder_layers: 4,
            encoder_attention_heads: 6,
            decoder_layers: 4,
            decoder_attention_heads: 6,
            encoder_ffn_dim: 1536,
            decoder_ffn_dim: 1536,
            encoder_layerdrop: 0.0,
            decoder_layerdrop: 0.0,
            activation_function: "gelu".into(),
            d_model: 384,
            dropout: 0.0,
            attention_dropout: 0.0,
            activation_dropout: 0.0,
            max_source_positions: 1500,
            max_target_positions: 448,
            tie_word_embeddings: true,
            apply_spec_augment: false,
        }
    }
}

struct Attn {
    id: ModuleId,
    k: Linear,
    v: Linear,
    q: Linear,
    out: Linear,
    head_dim: u64,
    dropout: f64,
}

struct Layer {
    id: ModuleId,
    own: Attn,
    own_norm: LayerNorm,
    cross: Option<(Attn, LayerNorm)>,
    fc1: Linear,
    fc2: Linear,
    norm: LayerNorm,
    act_id: ModuleId,
    act: Activation,
    dropout: f64,
    activation_dropout: f64,
}

/// A convolution of width 3.
struct Conv {
    id: ModuleId,
    weight: ParamId,
    bias: ParamId,
    stride: u64,
}

struct Whisper {
    model: ModuleId,
    encoder: ModuleId,
    convs: [Conv; 2],
    fixed: Embedding,
    encoder_layers: Vec<Rc<Layer>>,
    encoder_norm: LayerNorm,
    decoder: ModuleId,
    tokens: Embedding,
    places: Embedding,
    decoder_layers: Vec<Rc<Layer>>,
    decoder_norm: LayerNorm,
    head: Linear,
    dropout: f64,
}

/// From configuration fields.
pub fn build(config: &serde_json::Value, _head: Head) -> Result<Built, ModelError> {
    let c: Config = fields(config)?;
    for (field, h) in [
        ("encoder_attention_heads", c.encoder_attention_heads),
        ("decoder_attention_heads", c.decoder_attention_heads),
    ] {
        if h == 0 || !c.d_model.is_multiple_of(h) {
            return Err(ModelError::field(
                field,
                format!("{h} does not divide d_model {}", c.d_model),
            ));
        }
    }
    for (field, on) in [
        ("encoder_layerdrop", c.encoder_layerdrop > 0.0),
        ("decoder_layerdrop", c.decoder_layerdrop > 0.0),
        ("apply_spec_augment", c.apply_spec_augment),
    ] {
        if on {
            return Err(ModelError::Unsupported(
                field.into(),
                "what it drops is decided by chance".into(),
            ));
        }
    }
    let act = Activation::parse("activation_function", &c.activation_function)?;
    let d = c.d_model;
    let mut b = NetBuilder::new();
    let (model, enc, dec) = b.scope("model", |b| {
        let enc = b.scope("encoder", |b| {
            let mut conv = |name, input, stride| {
                b.scope_kind(name, Kind::Other, |b| Conv {
                    weight: b.param("weight", &[d, input, 3]),
                    bias: b.param("bias", &[d]),
                    id: b.id(),
                    stride,
                })
            };
            let convs = [conv("conv1", c.num_mel_bins, 1), conv("conv2", d, 2)];
            let fixed = Embedding::new(b, "embed_positions", c.max_source_positions, d);
            b.freeze(fixed.1);
            let layers = layers(b, &c, act, false);
            let norm = LayerNorm::new(b, "layer_norm", d, true, true);
            (b.id(), convs, fixed, layers, norm)
        });
        let dec = b.scope("decoder", |b| {
            let tokens = Embedding::new(b, "embed_tokens", c.vocab_size, d);
            let places = Embedding::new(b, "embed_positions", c.max_target_positions, d);
            let layers = layers(b, &c, act, true);
            let norm = LayerNorm::new(b, "layer_norm", d, true, true);
            (b.id(), tokens, places, layers, norm)
        });
        (b.id(), enc, dec)
    });
    let (encoder, convs, fixed, encoder_layers, encoder_norm) = enc;
    let (decoder, tokens, places, decoder_layers, decoder_norm) = dec;
    let head = if c.tie_word_embeddings {
        Linear::tied(&mut b, "proj_out", d, c.vocab_size, tokens.1, false)
    } else {
        Linear::new(&mut b, "proj_out", d, c.vocab_size, false)
    };
    Ok(Built {
        net: b.finish(),
        arch: Rc::new(Whisper {
            model,
            encoder,
            convs,
            fixed,
            encoder_layers,
            encoder_norm,
            decoder,
            tokens,
            places,
            decoder_layers,
            decoder_norm,
            head,
            dropout: c.dropout,
        }),
    })
}

fn attn(b: &mut NetBuilder, name: &str, c: &Config, heads: u64) -> Attn {
    let d = c.d_model;
    b.scope(name, |b| Attn {
        k: Linear::new(b, "k_proj", d, d, false),
        v: Linear::new(b, "v_proj", d, d, true),
        q: Linear::new(b, "q_proj", d, d, true),
        out: Linear::new(b, "out_proj", d, d, true),
        head_dim: d / heads,
        dropout: c.attention_dropout,
        id: b.id(),
    })
}

fn layers(b: &mut NetBuilder, c: &Config, act: Activation, decoder: bool) -> Vec<Rc<Layer>> {
    let (n, f, heads) = if decoder {
        (
            c.decoder_layers,
            c.decoder_ffn_dim,
            c.decoder_attention_heads,
        )
    } else {
        (
            c.encoder_layers,
            c.encoder_ffn_dim,
            c.encoder_attention_heads,
        )
    };
    let d = c.d_model;
    let one = |b: &mut NetBuilder| {
        let id = b.id();
        let own = attn(b, "self_attn", c, heads);
        let early = decoder.then(|| b.scope("activation_fn", |b| b.id()));
        let own_norm = LayerNorm::new(b, "self_attn_layer_norm", d, true, true);
        let late = (!decoder).then(|| b.scope("activation_fn", |b| b.id()));
        let cross = decoder.then(|| {
            let a = attn(b, "encoder_attn", c, heads);
            (
                a,
                LayerNorm::new(b, "encoder_attn_layer_norm", d, true, true),
            )
        });
        Layer {
            id,
            own,
            own_norm,
            cross,
            fc1: Linear::new(b, "fc1", d, f, true),
            fc2: Linear::new(b, "fc2", f, d, true),
            norm: LayerNorm::new(b, "final_layer_norm", d, true, true),
            act_id: early.or(late).unwrap_or(id),
            act,
            dropout: c.dropout,
            activation_dropout: c.activation_dropout,
        }
    };
    b.scope("layers", |b| {
        (0..n)
            .map(|i| Rc::new(b.scope(&i.to_string(), one)))
            .collect()
    })
}

/// `F.dropout(x, p, training)`.
fn dropout(m: &Run, x: &Tensor, p: f64) -> Tensor {
    ops::dropout(&m.cx, x, if m.training { p } else { 0.0 })
}

impl Attn {
    /// `linear(x)` seen as heads; the copy that makes it contiguous is the caller's.
    fn seen(&self, m: &Run, linear: &Linear, x: &Tensor) -> Tensor {
        let y = linear.forward(m, x);
        let shape = Shape::new(&[
            y.size(0),
            y.size(1),
            y.size(2) / self.head_dim,
            self.head_dim,
        ]);
        ops::view(&m.cx, &y, shape)
    }

    fn forward(
        &self,
        m: &Run,
        x: &Tensor,
        states: &Tensor,
        mask: Option<&Tensor>,
        causal: bool,
    ) -> (Tensor, Option<Tensor>) {
        m.within(self.id, || {
            let cx = &m.cx;
            let heads = |t: &Tensor| ops::contiguous(cx, &ops::transpose(cx, t, 1, 2));
            let q = {
                let y = self.q.forward(m, x);
                let scaled = ops::mul_scalar(cx, &y);
                drop(y);
                let shape = Shape::new(&[
                    x.size(0),
                    x.size(1),
                    x.size(2) / self.head_dim,
                    self.head_dim,
                ]);
                heads(&ops::view(cx, &scaled, shape))
            };
            let (k, v) = if m.options.stack.transformers_5() {
                let k = heads(&self.seen(m, &self.k, states));
                (k, heads(&self.seen(m, &self.v, states)))
            } else {
                let mut k = self.seen(m, &self.k, states);
                let mut v = self.seen(m, &self.v, states);
                k = heads(&k);
                v = heads(&v);
                (k, v)
            };
            let (mut o, weights) = if m.options.attention == Attention::Eager {
                common::attention::bidirectional(m, [&q, &k, &v], mask, self.dropout, false)
            } else {
                let o = common::attention::attend(m, &q, &k, &v, mask, self.dropout, causal);
                (o, None)
            };
            o = ops::reshape(cx, &o, x.shape);
            o = self.out.forward(m, &o);
            drop(q);
            drop(k);
            drop(v);
            (o, weights)
        })
    }
}

impl Layer {
    fn forward(
        &self,
        m: &Run,
        x: &Tensor,
        encoded: Option<&Tensor>,
        mask: Option<&Tensor>,
    ) -> Tensor {
        let cx = &m.cx;
        m.within(self.id, || {
            let mut residual = x.clone();
            let mut h = self.own_norm.forward(m, x);
            let (y, mut weights) = self.own.forward(m, &h, &h, mask, self.cross.is_some());
            h = y;
            h = dropout(m, &h, self.dropout);
            h = ops::add(cx, &residual, &h);
            let mut cross_weights = None;
            if let (Some((attn, norm)), Some(encoded)) = (&self.cross, encoded) {
                residual = h.clone();
                h = norm.forward(m, &h);
                let (y, w) = attn.forward(m, &h, encoded, None, false);
                h = y;
                if m.options.stack.transformers_5() {
                    weights = w;
                } else {
                    cross_weights = w;
                }
                h = dropout(m, &h, self.dropout);
                h = ops::add(cx, &residual, &h);
            }
            residual = h.clone();
            h = self.norm.forward(m, &h);
            let f = self.fc1.forward(m, &h);
            h = m.within(self.act_id, || self.act.forward(m, &f));
            drop(f);
            h = dropout(m, &h, self.activation_dropout);
            h = self.fc2.forward(m, &h);
            h = dropout(m, &h, self.dropout);
            h = ops::add(cx, &residual, &h);
            if self.cross.is_none() && h.dtype == ScalarType::F16 {
                h = ops::clamp_scalar(cx, &h, true, true);
            }
            drop(residual);
            drop(weights);
            drop(cross_weights);
            h
        })
    }
}

impl Whisper {
    fn run(
        &self,
        m: &Rc<Run>,
        layers: &[Rc<Layer>],
        mut x: Tensor,
        encoded: Option<&Tensor>,
        mask: Option<&Tensor>,
    ) -> Tensor {
        // layers are counted through the whole model
        let before = encoded.map_or(0, |_| self.encoder_layers.len());
        for (i, l) in layers.iter().enumerate() {
            x = if m.checkpoints(before + i) {
                let (l, m2) = (l.clone(), m.clone());
                // a tuple of arguments goes last to first
                let kept = (encoded.cloned(), mask.cloned());
                m.cx.checkpoint(vec![x], move |_, t| {
                    let kept = &kept;
                    l.forward(&m2, &t[0], kept.0.as_ref(), kept.1.as_ref())
                })
            } else {
                l.forward(m, &x, encoded, mask)
            };
        }
        x
    }

    fn encode(&self, m: &Rc<Run>, features: &Tensor) -> Tensor {
        let cx = &m.cx;
        let mut emb = features.clone();
        for conv in &self.convs {
            let y = m.within(conv.id, || {
                let (w, b) = (m.weight(conv.weight), m.weight(conv.bias));
                ops::conv1d(cx, &emb, w, Some(b), conv.stride, 1, 1)
            });
            emb = ops::gelu(cx, &y);
        }
        emb = ops::permute(cx, &emb, &[0, 2, 1]);
        let rows = Shape::new(&[m.weight(self.fixed.1).size(0)]);
        let positions = cx.empty(OpId::ARANGE, rows, ScalarType::I64);
        let places = self.fixed.forward(m, &positions);
        let mut x = ops::add(cx, &emb, &places);
        drop(places);
        x = dropout(m, &x, self.dropout);
        x = self.run(m, &self.encoder_layers, x, None, None);
        x = self.encoder_norm.forward(m, &x);
        drop(emb);
        drop(positions);
        x
    }

    /// int64 [B, S] position ids, and in 4.57 the [S] they are repeated from.
    fn position_ids(&self, m: &Run, b: u64, s: u64) -> (Tensor, Option<Tensor>) {
        let cx = &m.cx;
        let row = |op| cx.empty(op, Shape::new(&[s]), ScalarType::I64);
        let all = Shape::new(&[b, s]);
        let mut p = row(OpId::ARANGE);
        if !m.options.stack.transformers_5() {
            return (cx.empty(OpId::EXPAND, all, ScalarType::I64), Some(p));
        }
        p = row(OpId::ADD);
        let ids = cx.empty(OpId::EXPAND, all, ScalarType::I64);
        drop(p);
        (ids, None)
    }

    fn decode(&self, m: &Rc<Run>, ids: &Tensor, encoded: &Tensor) -> Tensor {
        let cx = &m.cx;
        let (b, s) = (ids.size(0), ids.size(1));
        let emb = self.tokens.forward(m, ids);
        let (position_ids, cache_position) = self.position_ids(m, b, s);
        let places = m.within(self.places.0, || {
            let flat = ops::view(cx, &position_ids, Shape::new(&[b * s]));
            let rows = ops::index(cx, m.weight(self.places.1), 0, &[&flat]);
            ops::unsafe_view(cx, &rows, emb.shape)
        });
        let mut x = ops::add(cx, &emb, &places);
        x = dropout(m, &x, self.dropout);
        let mask = common::mask::causal(m, &Batch::default(), b, s, emb.dtype);
        x = self.run(m, &self.decoder_layers, x, Some(encoded), mask.as_ref());
        x = self.decoder_norm.forward(m, &x);
        drop(emb);
        drop(position_ids);
        drop(cache_position);
        drop(places);
        drop(mask);
        x
    }
}

impl Arch for Whisper {
    fn forward(&self, m: &Rc<Run>, batch: &Batch) -> Output {
        let features = batch
            .features
            .as_ref()
            .expect("a speech model's batch has features");
        let labels = batch.labels.as_ref();
        let ids = labels.map(|l| common::loss::shift_right(m, l));
        let (decoded, encoded) = m.within(self.model, || {
            let encoded = m.within(self.encoder, || self.encode(m, features));
            let start = ids.as_ref().expect("training has labels");
            let decoded = m.within(self.decoder, || self.decode(m, start, &encoded));
            (decoded, encoded)
        });
        let logits = self.head.forward(m, &decoded);
        let loss = labels.map(|l| common::loss::cross_entropy(m, &logits, l));
        drop(ids);
        drop(decoded);
        Output {
            loss,
            logits: Some(logits),
            rest: vec![encoded],
        }
    }
}
