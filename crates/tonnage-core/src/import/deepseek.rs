//! The DeepSeek QLoRA settings (seed 1). What the document leaves open is an uncertainty of the result, never a quiet choice.

use super::Import;
use crate::doc::{Diagnostic, Doc, Node, Value};
use crate::job::{Job, Origin};

/// The document's table of cards.
const CARDS: [&str; 6] = [
    "rtx-3060-12gb",
    "rtx-3070",
    "rtx-3080-10gb",
    "rtx-3090",
    "rtx-4090",
    "a100-sxm4-40gb",
];

fn unstated(n: Option<&Node>) -> bool {
    n.is_none_or(|n| n.text().is_some_and(|t| t.starts_with("unstated")))
}

pub(super) fn read(doc: &Doc) -> Result<Job, Vec<Diagnostic>> {
    let mut i = Import::new(doc, "QLoRA settings");
    i.ignore(&[
        "id",
        "seed",
        "family",
        "alternatives_in_document",
        "unknowns_that_change_the_answer",
        "model.norm",
        "model.parameters",
    ]);
    i.ignore(&[
        "model.linear_parameters_quantizable",
        "model.embedding_and_head_parameters",
        "quantization.block_size",
        "quantization.skips",
    ]);
    i.ignore(&[
        "lora.trainable_parameters",
        "lora.trainable_fraction_of_base",
        "train.effective_batch",
        "train.packing",
    ]);
    i.copy("model.name", "name");
    i.copy("model.arch", "model.type");
    for (from, to) in [
        ("hidden_size", "hidden_size"),
        ("intermediate_size", "intermediate_size"),
        ("n_layers", "num_hidden_layers"),
        ("n_heads", "num_attention_heads"),
        ("n_kv_heads", "num_key_value_heads"),
        ("head_dim", "head_dim"),
        ("vocab_size", "vocab_size"),
        ("max_position", "max_position_embeddings"),
    ] {
        let n = i.need(&format!("model.{from}"));
        i.config_count(to, n);
    }
    i.config_copy("model.tie_word_embeddings", "tie_word_embeddings");
    i.node("model.qkv_bias"); // Qwen2 has them always
    if i.node("quantization.load_in_4bit")
        .is_some_and(|n| n.value == Value::Bool(true))
    {
        quantised(&mut i);
    }
    i.copy("lora.r", "lora.r");
    i.copy("lora.alpha", "lora.alpha");
    i.copy("lora.targets", "lora.targets");
    let dropout = i.node("lora.dropout");
    if !unstated(dropout) {
        i.copy("lora.dropout", "lora.dropout");
    }
    i.copy("train.batch_size", "train.micro_batch_size");
    i.copy(
        "train.grad_accumulation",
        "train.gradient_accumulation_steps",
    );
    i.copy("train.seq_len", "train.seq_len");
    if let Some(t) = i.text("train.precision") {
        let p = match t {
            "bf16" => "bf16-mixed",
            "fp16" => "fp16-mixed",
            other => other,
        };
        i.say(
            "train.precision",
            p,
            "a trainer's bf16 or fp16 switch is autocast",
        );
    }
    i.copy("train.grad_checkpointing", "train.activation_checkpointing");
    i.copy("train.optimizer", "train.optimizer");
    let values = ["paged_adamw8bit", "adamw_fused"]
        .map(|o| Value::Text(o.into()))
        .to_vec();
    i.uncertain(
        "train.optimizer",
        values,
        "the document says AdamW, not which implementation",
    );
    let driver = i.node("train.trainer");
    if unstated(driver) {
        i.say(
            "train.loop",
            "trainer",
            "the trainer is unstated; transformers' Trainer is the usual one",
        );
    }
    let loss = i.node("train.loss");
    if unstated(loss) {
        i.uncertain(
            "train.loss",
            vec![Value::Text("fused".into())],
            "the document does not say which loss: full logits, or fused",
        );
    }
    i.say(
        "model.dtype",
        "bf16",
        "what is not quantised is loaded in the checkpoint's type",
    );
    i.say(
        "train.loading",
        "device_map",
        "4-bit weights are loaded with a device map",
    );
    i.uncertain(
        "train.mask",
        vec![Value::Text("padding".into())],
        "rows of one length, or padded to it",
    );
    i.say_texts(
        "verdict.gpus",
        &CARDS,
        Origin::Inferred("the cards that the source document names".into()),
    );
    i.finish()
}

fn quantised(i: &mut Import) {
    i.node("quantization.type");
    i.say(
        "quant.format",
        "nf4",
        "load_in_4bit; the type is unstated, NF4 is what QLoRA uses",
    );
    let double = i.node("quantization.double_quant");
    if unstated(double) {
        i.uncertain(
            "quant.double",
            vec![Value::Bool(false)],
            "the document does not say whether block scales are quantised too",
        );
    } else if let Some(n) = double {
        i.set("quant.double", n.value.clone(), i.origin(n));
    }
    i.set(
        "quant.kbit_preparation",
        Value::Bool(false),
        Origin::Inferred("the document does not say; newer trainers leave it out".into()),
    );
    let why = "prepare_model_for_kbit_training raises embeddings and head to fp32";
    i.uncertain("quant.kbit_preparation", vec![Value::Bool(true)], why);
}
