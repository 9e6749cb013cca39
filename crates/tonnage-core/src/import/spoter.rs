//! SPOTER's settings (seed 0): a pose encoder with a class token, trained in fp32.

use super::Import;
use crate::doc::{Diagnostic, Doc, Node};
use crate::job::Job;

/// The architecture's name in `tonnage-model`.
const MODEL_TYPE: &str = "spoter";

pub(super) fn read(doc: &Doc) -> Result<Job, Vec<Diagnostic>> {
    let mut i = Import::new(doc, "SPOTER settings");
    i.ignore(&[
        "id",
        "seed",
        "family",
        "variants",
        "validate",
        "evaluate",
        "sweeps",
        "framework",
    ]);
    i.ignore(&[
        "model.parameters",
        "model.parameters_source",
        "model.attention",
        "model.input_block",
        "model.head",
        "model.positional",
        "model.head_dim",
    ]);
    i.ignore(&[
        "train.mixed_precision",
        "train.optimizer_state_bytes_per_param",
        "train.effective_batch",
        "train.padding",
        "train.loss",
    ]);
    i.ignore(&["train.dataloader_workers", "train.tokens_per_sample"]);
    i.copy("model.name", "name");
    i.say("model.type", MODEL_TYPE, "the settings' family");
    for field in [
        "input_dim",
        "d_model",
        "n_heads",
        "n_layers",
        "d_ff",
        "num_classes",
        "max_seq_len",
    ] {
        let n = i.need(&format!("model.{field}"));
        i.config_count(field, n);
    }
    for field in ["activation", "norm", "dropout", "class_token"] {
        i.config_copy(&format!("model.{field}"), field);
    }
    i.copy("train.batch_size", "train.micro_batch_size");
    i.copy(
        "train.grad_accumulation",
        "train.gradient_accumulation_steps",
    );
    i.copy("train.seq_len", "train.seq_len");
    i.copy("train.precision", "train.precision");
    i.copy("train.optimizer", "train.optimizer");
    i.copy("train.grad_clip", "train.clip_grad_norm");
    i.copy("train.grad_checkpointing", "train.activation_checkpointing");
    i.say(
        "train.hold",
        "outputs",
        "the trainer's `outputs` variable lives until the next call returns",
    );
    i.say(
        "train.mask",
        "padding",
        "a key padding mask is passed; padding to a fixed length saves no memory",
    );
    if let Some(n) = doc
        .root
        .get("validate")
        .and_then(|v| v.get("batch_size"))
        .and_then(Node::count)
    {
        let message = format!(
            "validation runs at batch {n} without gradients, which is not the peak: --kind forward --batch-size {n} estimates it"
        );
        i.note(message, doc.root.get("validate"));
    }
    i.finish()
}
