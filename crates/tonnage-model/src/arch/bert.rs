//! BERT (transformers 5.17 and 4.57.6, src/transformers/models/bert/modeling_bert.py): sequence classification and the masked
//! language model. RoBERTa is built from the same parts (roberta.rs).

use super::{Arch, Batch, Built, Head, Output, fields};
use crate::common::{self, activation::Activation};
use crate::error::ModelError;
use crate::layers::{Dropout, Embedding, LayerNorm, Linear};
use crate::net::{Kind, ModuleId, NetBuilder, ParamId};
use crate::run::Run;
use crate::stack::Stack;
use serde::Deserialize;
use std::rc::Rc;
use tonnage_sim::ops;
use tonnage_sim::{OpId, ScalarType, Shape, Tensor};

/// The fields that matter to memory, with transformers' defaults for BERT.
#[derive(Deserialize, Clone, Debug)]
#[serde(default)]
pub struct Config {
    pub vocab_size: u64,
    pub hidden_size: u64,
    pub num_hidden_layers: u64,
    pub num_attention_heads: u64,
    pub intermediate_size: u64,
    pub hidden_act: String,
    pub hidden_dropout_prob: f64,
    pub attention_probs_dropout_prob: f64,
    pub max_position_embeddings: u64,
    pub type_vocab_size: u64,
    pub classifier_dropout: Option<f64>,
    pub tie_word_embeddings: bool,
    pub num_labels: Option<u64>,
    pub id2label: Option<serde_json::Map<String, serde_json::Value>>,
    pub position_embedding_type: Option<String>,
    pub is_decoder: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            vocab_size: 30522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: "gelu".into(),
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            classifier_dropout: None,
            tie_word_embeddings: true,
            num_labels: None,
            id2label: None,
            position_embedding_type: None,
            is_decoder: false,
        }
    }
}

impl Config {
    /// Classes of a classification head: two unless told.
    pub fn labels(&self) -> u64 {
        self.num_labels
            .or(self.id2label.as_ref().map(|m| m.len() as u64))
            .unwrap_or(2)
    }
    /// Dropout before the classifier.
    pub fn classifier_dropout(&self) -> f64 {
        self.classifier_dropout.unwrap_or(self.hidden_dropout_prob)
    }
    /// Reads and checks.
    pub fn read(config: &serde_json::Value) -> Result<Config, ModelError> {
        let c: Config = fields(config)?;
        if c.num_attention_heads == 0 || !c.hidden_size.is_multiple_of(c.num_attention_heads) {
            return Err(ModelError::field(
                "num_attention_heads",
                format!(
                    "{} does not divide hidden_size {}",
                    c.num_attention_heads, c.hidden_size
                ),
            ));
        }
        if c.is_decoder {
            return Err(ModelError::Unsupported(
                "is_decoder".into(),
                "only the encoder is modelled".into(),
            ));
        }
        match c.position_embedding_type.as_deref() {
            None | Some("absolute") => Ok(c),
            Some(t) => Err(ModelError::Unsupported(
                format!("position_embedding_type `{t}`"),
                "only absolute positions are modelled".into(),
            )),
        }
    }
}

/// Where position ids come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Positions {
    /// A slice of a buffer.
    Buffer,
    /// Counted over the tokens that are not padding.
    Counted,
}

struct Embeddings {
    id: ModuleId,
    word: Embedding,
    position: Embedding,
    token_type: Embedding,
    norm: LayerNorm,
    dropout: Dropout,
    positions: Positions,
}

struct Layer {
    id: ModuleId,
    attention: ModuleId,
    own: ModuleId,
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Residual,
    intermediate: ModuleId,
    intermediate_dense: Linear,
    act_id: ModuleId,
    act: Activation,
    output: Residual,
    head_dim: u64,
    dropout: f64,
}

/// `BertSelfOutput` and `BertOutput`: dense, dropout, norm of the sum.
struct Residual {
    id: ModuleId,
    dense: Linear,
    norm: LayerNorm,
    dropout: Dropout,
}

/// `BertModel` or `RobertaModel`.
pub(super) struct Base {
    id: ModuleId,
    embeddings: Embeddings,
    encoder: ModuleId,
    layers: Vec<Rc<Layer>>,
    /// Module of the activation, and the dense layer before it.
    pooler: Option<(ModuleId, Linear, ModuleId)>,
}

impl Base {
    /// Registers the model under `name`.
    pub(super) fn new(
        b: &mut NetBuilder,
        name: &str,
        c: &Config,
        positions: Positions,
        pooled: bool,
        stack: &Stack,
    ) -> Result<Base, ModelError> {
        let act = Activation::parse("hidden_act", &c.hidden_act)?;
        let d = c.hidden_size;
        Ok(b.scope(name, |b| {
            let embeddings = b.scope("embeddings", |b| embeddings(b, c, positions, stack));
            let (encoder, layers) = b.scope("encoder", |b| {
                let layers = b.scope("layer", |b| {
                    (0..c.num_hidden_layers)
                        .map(|i| Rc::new(layer(b, &i.to_string(), c, act)))
                        .collect()
                });
                (b.id(), layers)
            });
            let pooler = pooled.then(|| {
                b.scope("pooler", |b| {
                    let dense = Linear::new(b, "dense", d, d, true);
                    (b.id(), dense, b.scope("activation", |b| b.id()))
                })
            });
            Base {
                id: b.id(),
                embeddings,
                encoder,
                layers,
                pooler,
            }
        }))
    }

    /// The embedding that a masked language model's head shares.
    pub(super) fn word_embeddings(&self) -> ParamId {
        self.embeddings.word.1
    }

    /// `last_hidden_state` and `pooler_output`.
    pub(super) fn forward(&self, m: &Rc<Run>, batch: &Batch) -> (Tensor, Option<Tensor>) {
        m.within(self.id, || {
            let ids = batch
                .input_ids
                .as_ref()
                .expect("an encoder's batch has input_ids");
            let emb = m.within(self.embeddings.id, || self.embeddings.forward(m, ids));
            let mask = common::mask::bidirectional(m, batch.attention_mask.as_ref());
            let h = m.within(self.encoder, || {
                let mut x = emb.clone();
                for (i, l) in self.layers.iter().enumerate() {
                    x = if m.checkpoints(i) {
                        let (l, m2, mask) = (l.clone(), m.clone(), mask.clone());
                        m.cx.checkpoint(vec![x], move |_, t| l.forward(&m2, &t[0], mask.as_ref()))
                    } else {
                        l.forward(m, &x, mask.as_ref())
                    };
                }
                x
            });
            let pooled = self.pooler.map(|(id, dense, act)| {
                m.within(id, || {
                    let first = ops::select(&m.cx, &h, 1);
                    let mut p = dense.forward(m, &first);
                    p = m.within(act, || ops::tanh(&m.cx, &p));
                    drop(first);
                    p
                })
            });
            drop(mask);
            drop(emb);
            (h, pooled)
        })
    }
}

fn embeddings(b: &mut NetBuilder, c: &Config, positions: Positions, stack: &Stack) -> Embeddings {
    let d = c.hidden_size;
    let place =
        |b: &mut NetBuilder| Embedding::new(b, "position_embeddings", c.max_position_embeddings, d);
    let word = Embedding::new(b, "word_embeddings", c.vocab_size, d);
    // RoBERTa of 5.x registers its positions last
    let early = (positions == Positions::Buffer || !stack.transformers_5()).then(|| place(b));
    let token_type = Embedding::new(b, "token_type_embeddings", c.type_vocab_size, d);
    let norm = LayerNorm::new(b, "LayerNorm", d, true, true);
    let dropout = Dropout::new(b, "dropout", c.hidden_dropout_prob);
    let long = Some(ScalarType::I64);
    b.buffer("position_ids", &[1, c.max_position_embeddings], long);
    b.buffer("token_type_ids", &[1, c.max_position_embeddings], long);
    let position = early.unwrap_or_else(|| place(b));
    Embeddings {
        id: b.id(),
        word,
        position,
        token_type,
        norm,
        dropout,
        positions,
    }
}

fn residual(b: &mut NetBuilder, name: &str, input: u64, c: &Config) -> Residual {
    b.scope(name, |b| Residual {
        dense: Linear::new(b, "dense", input, c.hidden_size, true),
        norm: LayerNorm::new(b, "LayerNorm", c.hidden_size, true, true),
        dropout: Dropout::new(b, "dropout", c.hidden_dropout_prob),
        id: b.id(),
    })
}

fn layer(b: &mut NetBuilder, name: &str, c: &Config, act: Activation) -> Layer {
    let d = c.hidden_size;
    b.scope(name, |b| {
        let id = b.id();
        let (attention, own, query, key, value, attention_output) = b.scope("attention", |b| {
            let (own, q, k, v) = b.scope("self", |b| {
                let q = Linear::new(b, "query", d, d, true);
                let k = Linear::new(b, "key", d, d, true);
                let v = Linear::new(b, "value", d, d, true);
                Dropout::new(b, "dropout", c.attention_probs_dropout_prob);
                (b.id(), q, k, v)
            });
            (b.id(), own, q, k, v, residual(b, "output", d, c))
        });
        let (intermediate, intermediate_dense, act_id) = b.scope("intermediate", |b| {
            let dense = Linear::new(b, "dense", d, c.intermediate_size, true);
            (b.id(), dense, b.scope("intermediate_act_fn", |b| b.id()))
        });
        let output = residual(b, "output", c.intermediate_size, c);
        Layer {
            id,
            attention,
            own,
            query,
            key,
            value,
            attention_output,
            intermediate,
            intermediate_dense,
            act_id,
            act,
            output,
            head_dim: d / c.num_attention_heads,
            dropout: c.attention_probs_dropout_prob,
        }
    })
}

impl Embeddings {
    /// `create_position_ids_from_input_ids`: int64 [B, S].
    fn counted(&self, m: &Run, ids: &Tensor) -> Tensor {
        let cx = &m.cx;
        let like = |op, t| cx.empty(op, ids.shape, t);
        let (int, long) = (ScalarType::I32, ScalarType::I64);
        let ne = like(OpId::NE, ScalarType::Bool);
        let mask = like(OpId::TO_COPY, int);
        drop(ne);
        let sum = like(OpId::CUMSUM, long);
        let raised = like(OpId::CUMSUM, long);
        drop(raised);
        let typed = like(OpId::TO_COPY, int);
        drop(sum);
        let past = like(OpId::ADD, int);
        drop(typed);
        let indices = like(OpId::MUL, int);
        drop(past);
        let wide = like(OpId::TO_COPY, long);
        let out = like(OpId::ADD, long);
        drop(wide);
        drop(mask);
        drop(indices);
        out
    }

    fn forward(&self, m: &Run, ids: &Tensor) -> Tensor {
        let cx = &m.cx;
        let (b, s) = (ids.size(0), ids.size(1));
        let five = m.options.stack.transformers_5();
        let buffers = &m.buffers[self.id.0 as usize];
        let row = |t: &Tensor| ops::slice(cx, t, 1, 0, s);
        let positions = match self.positions {
            Positions::Counted => self.counted(m, ids),
            Positions::Buffer => row(&buffers[0]),
        };
        let all = Shape::new(&[b, s]);
        // 4.57 slices the buffer of zeros, 5.x gathers from it
        let types = if five {
            let zeros = cx.empty(OpId::GATHER, positions.shape, ScalarType::I64);
            ops::expand(cx, &zeros, all)
        } else {
            ops::expand(cx, &row(&buffers[1]), all)
        };
        let inputs = self.word.forward(m, ids);
        let kinds = self.token_type.forward(m, &types);
        let mut x = ops::add(cx, &inputs, &kinds);
        let places = self.position.forward(m, &positions);
        x = if five {
            ops::add(cx, &x, &places)
        } else {
            ops::add_(cx, x, &places)
        };
        x = self.norm.forward(m, &x);
        x = self.dropout.forward(m, &x);
        // arguments, then locals
        drop(positions);
        drop(inputs);
        drop(types);
        drop(kinds);
        drop(places);
        x
    }
}

impl Residual {
    fn forward(&self, m: &Run, h: &Tensor, input: &Tensor) -> Tensor {
        m.within(self.id, || {
            let mut x = self.dense.forward(m, h);
            x = self.dropout.forward(m, &x);
            let sum = ops::add(&m.cx, &x, input);
            let y = self.norm.forward(m, &sum);
            drop(sum);
            drop(x);
            y
        })
    }
}

impl Layer {
    /// `BertSelfAttention`: the context [B, S, D] and what of the probabilities outlives it.
    fn attend(&self, m: &Run, x: &Tensor, mask: Option<&Tensor>) -> (Tensor, Option<Tensor>) {
        let cx = &m.cx;
        let heads = |l| common::attention::split_heads(m, l, x, self.head_dim);
        let (q, k, v) = (heads(&self.query), heads(&self.key), heads(&self.value));
        let (o, w) = common::attention::bidirectional(m, [&q, &k, &v], mask, self.dropout, false);
        let o = ops::reshape(cx, &o, x.shape);
        drop(q);
        drop(k);
        drop(v);
        (o, w)
    }

    fn forward(&self, m: &Run, x: &Tensor, mask: Option<&Tensor>) -> Tensor {
        m.within(self.id, || {
            let (a, weights) = m.within(self.attention, || {
                let (mut o, mut w) = m.within(self.own, || self.attend(m, x, mask));
                if !m.options.stack.transformers_5() {
                    // 4.57 drops the probabilities with the frame, and keeps the context as long as the block's attention
                    drop(w.take());
                }
                o = self.attention_output.forward(m, &o, x);
                (o, w)
            });
            let f = m.within(self.intermediate, || {
                let mut h = self.intermediate_dense.forward(m, &a);
                h = m.within(self.act_id, || self.act.forward(m, &h));
                h
            });
            let y = self.output.forward(m, &f, &a);
            drop(f);
            drop(weights);
            drop(a);
            y
        })
    }
}

struct Classifier {
    bert: Base,
    dropout: Dropout,
    classifier: Linear,
}

/// `AutoModel`: the hidden states and the pooler's output.
pub(super) struct Bare(pub(super) Base);

struct MaskedLm {
    bert: Base,
    predictions: ModuleId,
    transform: ModuleId,
    dense: Linear,
    act: Activation,
    norm: LayerNorm,
    decoder: Linear,
}

/// From configuration fields.
pub fn build(config: &serde_json::Value, head: Head, stack: &Stack) -> Result<Built, ModelError> {
    let c = Config::read(config)?;
    let d = c.hidden_size;
    let mut b = NetBuilder::new();
    if head == Head::MaskedLm {
        let act = Activation::parse("hidden_act", &c.hidden_act)?;
        let bert = Base::new(&mut b, "bert", &c, Positions::Buffer, false, stack)?;
        let shared = c.tie_word_embeddings.then(|| bert.word_embeddings());
        let (predictions, transform, dense, norm, decoder) = b.scope("cls", |b| {
            b.scope("predictions", |b| {
                let bias = b.param("bias", &[c.vocab_size]);
                let (transform, dense, norm) = b.scope("transform", |b| {
                    let dense = Linear::new(b, "dense", d, d, true);
                    (b.id(), dense, LayerNorm::new(b, "LayerNorm", d, true, true))
                });
                let decoder = decoder(b, d, c.vocab_size, shared, bias);
                (b.id(), transform, dense, norm, decoder)
            })
        });
        return Ok(Built {
            net: b.finish(),
            arch: Rc::new(MaskedLm {
                bert,
                predictions,
                transform,
                dense,
                act,
                norm,
                decoder,
            }),
        });
    }
    let bert = Base::new(&mut b, "bert", &c, Positions::Buffer, true, stack)?;
    if matches!(head, Head::Base | Head::Embedding) {
        return Ok(Built {
            net: b.finish(),
            arch: Rc::new(Bare(bert)),
        });
    }
    let dropout = Dropout::new(&mut b, "dropout", c.classifier_dropout());
    let classifier = Linear::new(&mut b, "classifier", d, c.labels(), true);
    Ok(Built {
        net: b.finish(),
        arch: Rc::new(Classifier {
            bert,
            dropout,
            classifier,
        }),
    })
}

/// A masked language model's `decoder`: weight tied to the embedding, bias to the head's own.
pub(super) fn decoder(
    b: &mut NetBuilder,
    d: u64,
    vocab: u64,
    shared: Option<ParamId>,
    bias: ParamId,
) -> Linear {
    let kind = Kind::Linear {
        input: d,
        output: vocab,
    };
    b.scope_kind("decoder", kind, |b| {
        match shared {
            Some(w) => b.tie("weight", w),
            None => {
                b.param("weight", &[vocab, d]);
            }
        }
        b.tie("bias", bias);
        Linear(b.id())
    })
}

impl Arch for Classifier {
    fn forward(&self, m: &Rc<Run>, batch: &Batch) -> Output {
        let (h, pooled) = self.bert.forward(m, batch);
        let pooled = pooled.expect("a classifier has a pooler");
        let dropped = self.dropout.forward(m, &pooled);
        let logits = self.classifier.forward(m, &dropped);
        let loss = batch
            .labels
            .as_ref()
            .map(|l| common::loss::cross_entropy(m, &logits, l));
        // the output object's tensors, then `pooled_output`
        drop(h);
        drop(pooled);
        drop(dropped);
        Output {
            loss,
            logits: Some(logits),
            rest: vec![],
        }
    }
}

impl Arch for Bare {
    fn forward(&self, m: &Rc<Run>, batch: &Batch) -> Output {
        let (h, pooled) = self.0.forward(m, batch);
        Output {
            rest: [Some(h), pooled].into_iter().flatten().collect(),
            ..Output::default()
        }
    }
}

impl Arch for MaskedLm {
    fn forward(&self, m: &Rc<Run>, batch: &Batch) -> Output {
        let (h, _) = self.bert.forward(m, batch);
        let logits = m.within(self.predictions, || {
            let mut x = m.within(self.transform, || {
                let mut x = self.dense.forward(m, &h);
                x = self.act.forward(m, &x);
                x = self.norm.forward(m, &x);
                x
            });
            x = self.decoder.forward(m, &x);
            x
        });
        let loss = batch
            .labels
            .as_ref()
            .map(|l| common::loss::cross_entropy(m, &logits, l));
        drop(h);
        Output {
            loss,
            logits: Some(logits),
            rest: vec![],
        }
    }
}
