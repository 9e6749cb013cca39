//! The GPT repository's model files (seed 2): `n_layer`, `n_head`, `n_embd`, `block_size`, `batch_size`, `vocab_size`, `dropout`,
//! `bias`. Its trainer: one module a head with a T x T mask buffer each, fp32, AdamW, logits kept in a variable.

use super::Import;
use crate::doc::{Diagnostic, Doc, Value};
use crate::job::Job;

/// The architecture's name in `tonnage-model`.
const MODEL_TYPE: &str = "gpt_per_head";

pub(super) fn read(doc: &Doc) -> Result<Job, Vec<Diagnostic>> {
    let mut i = Import::new(doc, "GPT configuration");
    i.copy("name", "name");
    let trainer = "what this repository's trainer does when its guide was written";
    i.say("model.type", MODEL_TYPE, trainer);
    let (width, heads) = (i.need("n_embd"), i.need("n_head"));
    i.check_heads(width, heads, "n_head");
    for field in ["n_embd", "n_head", "n_layer", "block_size", "vocab_size"] {
        let n = i.need(field);
        i.config_count(field, n);
    }
    i.config_copy("dropout", "dropout");
    // it reaches q, k and v only
    i.config_copy("bias", "bias");
    i.copy("batch_size", "train.micro_batch_size");
    i.copy("block_size", "train.seq_len");
    i.say("train.precision", "fp32", trainer);
    i.say("train.optimizer", "adamw_foreach", trainer);
    i.say(
        "train.attention",
        "eager",
        "this repository's explicit scores, a module a head",
    );
    i.say(
        "train.hold",
        "outputs",
        "the trainer's `logits` variable lives until the next call returns",
    );
    i.say(
        "train.zero_grad",
        "late",
        "zero_grad() stands between forward and backward",
    );
    i.uncertain(
        "train.hold",
        vec![Value::Text("loss".into())],
        "a loop that does not keep the logits",
    );
    i.finish()
}
