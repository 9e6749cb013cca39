//! DistilBERT for sequence classification (transformers 5.17 and 4.57.6, src/transformers/models/distilbert/modeling_distilbert.py).

use super::{Arch, Batch, Built, Head, Output, fields};
use crate::common::{self, activation::Activation};
use crate::error::ModelError;
use crate::layers::{Dropout, Embedding, LayerNorm, Linear};
use crate::net::{ModuleId, NetBuilder};
use crate::run::Run;
use serde::Deserialize;
use std::rc::Rc;
use tonnage_sim::ops;
use tonnage_sim::{ScalarType, Tensor};

/// The fields that matter to memory, with transformers' defaults.
#[derive(Deserialize, Clone, Debug)]
#[serde(default)]
pub struct Config {
    pub vocab_size: u64,
    pub max_position_embeddings: u64,
    pub n_layers: u64,
    pub n_heads: u64,
    pub dim: u64,
    pub hidden_dim: u64,
    pub dropout: f64,
    pub attention_dropout: f64,
    pub activation: String,
    pub seq_classif_dropout: f64,
    pub num_labels: Option<u64>,
    pub id2label: Option<serde_json::Map<String, serde_json::Value>>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            vocab_size: 30522,
            max_position_embeddings: 512,
            n_layers: 6,
            n_heads: 12,
            dim: 768,
            hidden_dim: 3072,
            dropout: 0.1,
            attention_dropout: 0.1,
            activation: "gelu".into(),
            seq_classif_dropout: 0.2,
            num_labels: None,
            id2label: None,
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
    sa_norm: LayerNorm,
    ffn: ModuleId,
    ffn_dropout: Dropout,
    lin1: Linear,
    lin2: Linear,
    act_id: ModuleId,
    act: Activation,
    output_norm: LayerNorm,
    head_dim: u64,
    dropout: f64,
}

struct DistilBert {
    id: ModuleId,
    embeddings: ModuleId,
    word: Embedding,
    position: Embedding,
    norm: LayerNorm,
    dropout: Dropout,
    transformer: ModuleId,
    blocks: Vec<Rc<Block>>,
    pre_classifier: Linear,
    classifier: Linear,
    head_dropout: Dropout,
}

/// From configuration fields.
pub fn build(config: &serde_json::Value, head: Head) -> Result<Built, ModelError> {
    let c: Config = fields(config)?;
    if c.n_heads == 0 || !c.dim.is_multiple_of(c.n_heads) {
        return Err(ModelError::field(
            "n_heads",
            format!("{} does not divide dim {}", c.n_heads, c.dim),
        ));
    }
    if head == Head::MaskedLm {
        return Err(ModelError::Unsupported(
            "DistilBertForMaskedLM".into(),
            "only sequence classification is modelled".into(),
        ));
    }
    let act = Activation::parse("activation", &c.activation)?;
    let d = c.dim;
    let mut b = NetBuilder::new();
    let (id, (embeddings, word, position, norm, dropout), (transformer, blocks)) =
        b.scope("distilbert", |b| {
            let e = b.scope("embeddings", |b| {
                let word = Embedding::new(b, "word_embeddings", c.vocab_size, d);
                let position =
                    Embedding::new(b, "position_embeddings", c.max_position_embeddings, d);
                let norm = LayerNorm::new(b, "LayerNorm", d, true, true);
                let dropout = Dropout::new(b, "dropout", c.dropout);
                let long = Some(ScalarType::I64);
                b.buffer("position_ids", &[1, c.max_position_embeddings], long);
                (b.id(), word, position, norm, dropout)
            });
            let t = b.scope("transformer", |b| {
                let blocks = b.scope("layer", |b| {
                    (0..c.n_layers)
                        .map(|i| Rc::new(block(b, &i.to_string(), &c, act)))
                        .collect()
                });
                (b.id(), blocks)
            });
            (b.id(), e, t)
        });
    let labels = c
        .num_labels
        .or(c.id2label.as_ref().map(|m| m.len() as u64))
        .unwrap_or(2);
    let pre_classifier = Linear::new(&mut b, "pre_classifier", d, d, true);
    let classifier = Linear::new(&mut b, "classifier", d, labels, true);
    let head_dropout = Dropout::new(&mut b, "dropout", c.seq_classif_dropout);
    Ok(Built {
        net: b.finish(),
        arch: Rc::new(DistilBert {
            id,
            embeddings,
            word,
            position,
            norm,
            dropout,
            transformer,
            blocks,
            pre_classifier,
            classifier,
            head_dropout,
        }),
    })
}

fn block(b: &mut NetBuilder, name: &str, c: &Config, act: Activation) -> Block {
    let d = c.dim;
    b.scope(name, |b| {
        let id = b.id();
        let (attention, q, k, v, out) = b.scope("attention", |b| {
            let q = Linear::new(b, "q_lin", d, d, true);
            let k = Linear::new(b, "k_lin", d, d, true);
            let v = Linear::new(b, "v_lin", d, d, true);
            let out = Linear::new(b, "out_lin", d, d, true);
            Dropout::new(b, "dropout", c.attention_dropout);
            (b.id(), q, k, v, out)
        });
        let sa_norm = LayerNorm::new(b, "sa_layer_norm", d, true, true);
        let (ffn, ffn_dropout, lin1, lin2, act_id) = b.scope("ffn", |b| {
            let dropout = Dropout::new(b, "dropout", c.dropout);
            let lin1 = Linear::new(b, "lin1", d, c.hidden_dim, true);
            let lin2 = Linear::new(b, "lin2", c.hidden_dim, d, true);
            let act = b.scope("activation", |b| b.id());
            (b.id(), dropout, lin1, lin2, act)
        });
        let output_norm = LayerNorm::new(b, "output_layer_norm", d, true, true);
        Block {
            id,
            attention,
            q,
            k,
            v,
            out,
            sa_norm,
            ffn,
            ffn_dropout,
            lin1,
            lin2,
            act_id,
            act,
            output_norm,
            head_dim: d / c.n_heads,
            dropout: c.attention_dropout,
        }
    })
}

impl Block {
    fn attend(&self, m: &Run, x: &Tensor, mask: Option<&Tensor>) -> (Tensor, Option<Tensor>) {
        let cx = &m.cx;
        let heads = |l| common::attention::split_heads(m, l, x, self.head_dim);
        let (q, k, v) = (heads(&self.q), heads(&self.k), heads(&self.v));
        let (mut o, w) =
            common::attention::bidirectional(m, [&q, &k, &v], mask, self.dropout, false);
        o = ops::reshape(cx, &o, x.shape);
        o = self.out.forward(m, &o);
        drop(q);
        drop(k);
        drop(v);
        (o, w)
    }

    fn forward(&self, m: &Run, x: &Tensor, mask: Option<&Tensor>) -> Tensor {
        m.within(self.id, || {
            let (mut a, weights) = m.within(self.attention, || self.attend(m, x, mask));
            let sum = ops::add(&m.cx, &a, x);
            a = self.sa_norm.forward(m, &sum);
            drop(sum);
            let mut f = m.within(self.ffn, || {
                let mut h = self.lin1.forward(m, &a);
                h = m.within(self.act_id, || self.act.forward(m, &h));
                h = self.lin2.forward(m, &h);
                h = self.ffn_dropout.forward(m, &h);
                h
            });
            let sum = ops::add(&m.cx, &f, &a);
            f = self.output_norm.forward(m, &sum);
            drop(sum);
            drop(a);
            drop(weights);
            f
        })
    }
}

impl DistilBert {
    fn embed(&self, m: &Run, ids: &Tensor) -> Tensor {
        let cx = &m.cx;
        let inputs = self.word.forward(m, ids);
        let positions = ops::slice(
            cx,
            &m.buffers[self.embeddings.0 as usize][0],
            1,
            0,
            ids.size(1),
        );
        let places = self.position.forward(m, &positions);
        let mut x = ops::add(cx, &inputs, &places);
        x = self.norm.forward(m, &x);
        x = self.dropout.forward(m, &x);
        drop(inputs);
        drop(places);
        x
    }
}

impl Arch for DistilBert {
    fn forward(&self, m: &Rc<Run>, batch: &Batch) -> Output {
        let cx = &m.cx;
        let ids = batch
            .input_ids
            .as_ref()
            .expect("an encoder's batch has input_ids");
        let h = m.within(self.id, || {
            let emb = m.within(self.embeddings, || self.embed(m, ids));
            let mask = common::mask::bidirectional(m, batch.attention_mask.as_ref());
            m.within(self.transformer, || {
                let mut x = emb.clone();
                for (i, l) in self.blocks.iter().enumerate() {
                    x = if m.checkpoints(i) {
                        let (l, m2, mask) = (l.clone(), m.clone(), mask.clone());
                        cx.checkpoint(vec![x], move |_, t| l.forward(&m2, &t[0], mask.as_ref()))
                    } else {
                        l.forward(m, &x, mask.as_ref())
                    };
                }
                drop(mask);
                drop(emb);
                x
            })
        });
        let mut x = ops::select(cx, &h, 1);
        x = self.pre_classifier.forward(m, &x);
        x = ops::relu(cx, &x);
        x = self.head_dropout.forward(m, &x);
        let logits = self.classifier.forward(m, &x);
        let loss = batch
            .labels
            .as_ref()
            .map(|l| common::loss::cross_entropy(m, &logits, l));
        drop(h);
        drop(x);
        Output {
            loss,
            logits: Some(logits),
            rest: vec![],
        }
    }
}
