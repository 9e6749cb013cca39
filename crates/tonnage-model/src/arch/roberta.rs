//! RoBERTa (transformers 5.17 and 4.57.6, src/transformers/models/roberta/modeling_roberta.py): BERT's layers, positions counted from
//! the tokens, and its own heads.

use super::bert::{Bare, Base, Config, Positions, decoder};
use super::{Arch, Batch, Built, Head, Output};
use crate::common;
use crate::error::ModelError;
use crate::layers::{Dropout, LayerNorm, Linear};
use crate::net::{ModuleId, NetBuilder};
use crate::run::Run;
use crate::stack::Stack;
use std::rc::Rc;
use tonnage_sim::ops;

struct Classifier {
    roberta: Base,
    head: ModuleId,
    dense: Linear,
    dropout: Dropout,
    out_proj: Linear,
}

struct MaskedLm {
    roberta: Base,
    head: ModuleId,
    dense: Linear,
    norm: LayerNorm,
    decoder: Linear,
}

/// From configuration fields; absent ones as in `RobertaConfig`.
pub fn build(config: &serde_json::Value, head: Head, stack: &Stack) -> Result<Built, ModelError> {
    let mut with_defaults = config.clone();
    if let Some(o) = with_defaults.as_object_mut() {
        o.entry("vocab_size").or_insert_with(|| 50265.into());
    }
    let c = Config::read(&with_defaults)?;
    let d = c.hidden_size;
    let mut b = NetBuilder::new();
    let bare = matches!(head, Head::Base | Head::Embedding);
    let roberta = Base::new(&mut b, "roberta", &c, Positions::Counted, bare, stack)?;
    if bare {
        return Ok(Built {
            net: b.finish(),
            arch: Rc::new(Bare(roberta)),
        });
    }
    if head == Head::MaskedLm {
        let shared = c.tie_word_embeddings.then(|| roberta.word_embeddings());
        let (head, dense, norm, decoder) = b.scope("lm_head", |b| {
            let bias = b.param("bias", &[c.vocab_size]);
            let dense = Linear::new(b, "dense", d, d, true);
            let norm = LayerNorm::new(b, "layer_norm", d, true, true);
            (
                b.id(),
                dense,
                norm,
                decoder(b, d, c.vocab_size, shared, bias),
            )
        });
        return Ok(Built {
            net: b.finish(),
            arch: Rc::new(MaskedLm {
                roberta,
                head,
                dense,
                norm,
                decoder,
            }),
        });
    }
    let (head, dense, dropout, out_proj) = b.scope("classifier", |b| {
        let dense = Linear::new(b, "dense", d, d, true);
        let dropout = Dropout::new(b, "dropout", c.classifier_dropout());
        let out = Linear::new(b, "out_proj", d, c.labels(), true);
        (b.id(), dense, dropout, out)
    });
    Ok(Built {
        net: b.finish(),
        arch: Rc::new(Classifier {
            roberta,
            head,
            dense,
            dropout,
            out_proj,
        }),
    })
}

impl Arch for Classifier {
    fn forward(&self, m: &Rc<Run>, batch: &Batch) -> Output {
        let (h, _) = self.roberta.forward(m, batch);
        let logits = m.within(self.head, || {
            let mut x = ops::select(&m.cx, &h, 1);
            x = self.dropout.forward(m, &x);
            x = self.dense.forward(m, &x);
            x = ops::tanh(&m.cx, &x);
            x = self.dropout.forward(m, &x);
            x = self.out_proj.forward(m, &x);
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

impl Arch for MaskedLm {
    fn forward(&self, m: &Rc<Run>, batch: &Batch) -> Output {
        let (h, _) = self.roberta.forward(m, batch);
        let logits = m.within(self.head, || {
            let mut x = self.dense.forward(m, &h);
            x = ops::gelu(&m.cx, &x);
            x = self.norm.forward(m, &x);
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
