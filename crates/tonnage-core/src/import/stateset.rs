//! StateSet's settings (seed 4). Rollouts of GRPO and GSPO are not simulated; the policy's training step is, as what it is
//! without them, and every output says so.

use super::Import;
use crate::doc::{Diagnostic, Doc, Node, Value};
use crate::job::{Job, Origin};

/// The guide's short names.
const MODELS: &[(&str, &str)] = &[
    ("gpt2", "openai-community/gpt2"),
    ("gpt2-medium", "openai-community/gpt2-medium"),
    ("gpt2-large", "openai-community/gpt2-large"),
    ("phi-2", "microsoft/phi-2"),
    ("llama-2-7b", "meta-llama/Llama-2-7b-hf"),
    ("llama-2-13b", "meta-llama/Llama-2-13b-hf"),
    ("llama-2-70b", "meta-llama/Llama-2-70b-hf"),
];

pub(super) fn read(doc: &Doc) -> Result<Job, Vec<Diagnostic>> {
    let mut i = Import::new(doc, "StateSet settings");
    i.ignore(&[
        "seed",
        "num_generations",
        "loss_path",
        "generation",
        "reference_model",
    ]);
    i.copy("id", "name");
    if let Some(n) = i.node("model") {
        let name = n.text().unwrap_or_default();
        let id = MODELS
            .iter()
            .find(|(short, _)| *short == name)
            .map_or(name, |(_, id)| *id);
        i.set("model.id", Value::Text(id.into()), i.origin(n));
    }
    let algorithm = i.text("algorithm");
    let method = i.text("method").unwrap_or("full");
    match method {
        "lora" => {
            i.copy("lora.r", "lora.r");
            i.copy("lora.alpha", "lora.alpha");
            i.copy("lora.dropout", "lora.dropout");
            i.node("lora.targets");
            let why = "the trainer's default for this family: q, k, v, o";
            i.say_texts(
                "lora.targets",
                &["q_proj", "k_proj", "v_proj", "o_proj"],
                Origin::Inferred(why.into()),
            );
        }
        "full" => {}
        other => i.wrong(
            doc.root.get("method"),
            "bad-value",
            format!("`method` is \"{other}\""),
            "\"full\" or \"lora\"",
        ),
    }
    for k in ["batch_size", "per_device_train_batch_size"] {
        i.copy(k, "train.micro_batch_size");
    }
    i.copy(
        "gradient_accumulation_steps",
        "train.gradient_accumulation_steps",
    );
    i.copy("gradient_checkpointing", "train.activation_checkpointing");
    i.copy("optimizer", "train.optimizer");
    length(&mut i);
    precision(&mut i, method);
    if let Some(n) = i.node("quantization")
        && n.value != Value::Null
    {
        i.wrong(
            Some(n),
            "bad-value",
            format!("`quantization` is {}", n.value.shown()),
            "null",
        );
    }
    cards(&mut i);
    if let Some(a) = algorithm {
        let generations = doc
            .root
            .get("num_generations")
            .and_then(Node::count)
            .unwrap_or(0);
        let reference = doc
            .root
            .get("reference_model")
            .is_some_and(|n| n.value == Value::Bool(true));
        i.job.unsupported.push(format!(
            "the rollout part of {} is not supported yet ({generations} generations with their KV cache, the scoring of the group{}); the \
             policy's training step is estimated as supervised fine-tuning on one sequence of prompt and completion",
            a.to_uppercase(),
            if reference { ", the reference model" } else { "" }
        ));
    }
    i.finish()
}

fn length(i: &mut Import) {
    if i.doc.root.get("seq_len").is_some() {
        return i.copy("seq_len", "train.seq_len");
    }
    let completion = i.count("max_completion_length").unwrap_or(256);
    let at = i.node("max_prompt_length");
    let prompt = match at.map(|n| &n.value) {
        Some(Value::Int(n)) => u64::try_from(*n)
            .unwrap_or(256)
            .clamp(1, u64::from(u32::MAX) / 2),
        Some(other) => {
            i.note(
                format!(
                    "`max_prompt_length` is {}; 256 is used, the class's own default",
                    other.shown()
                ),
                at,
            );
            256
        }
        None => {
            i.note("`max_prompt_length` is missing; 512 is used, the default of the training configuration".into(), None);
            512
        }
    };
    i.say_count(
        "train.seq_len",
        prompt + completion,
        &format!("prompt {prompt} + completion {completion}"),
    );
}

fn precision(i: &mut Import, method: &str) {
    let bf16 = i.node("bf16").map(|n| n.value == Value::Bool(true));
    let said = i.node("precision");
    match said.and_then(Node::text) {
        Some("fp16 weights and gradients, fp32 adam states") => {
            i.say("train.precision", "fp16", "fp16 weights and gradients");
            let message = "fp32 optimizer states over fp16 weights are not what torch's AdamW keeps (its states have the weights' type); fp16 states are estimated";
            i.note(message.into(), said);
        }
        Some(other) => i.say("train.precision", other, "the file"),
        None if bf16 == Some(false) => i.say("train.precision", "fp32", "bf16 is off"),
        None if method == "lora" => i.say(
            "train.precision",
            "bf16",
            "the frozen base is loaded in bf16",
        ),
        None => i.say("train.precision", "bf16", "bf16 weights"),
    }
}

/// `gpu`: a name or a list of names, in the document's spelling.
fn cards(i: &mut Import) {
    let Some(n) = i.node("gpu") else { return };
    let names: Vec<(&Node, &str)> = match &n.value {
        Value::Text(t) => vec![(n, t.as_str())],
        Value::List(l) => l.iter().filter_map(|x| Some((x, x.text()?))).collect(),
        _ => Vec::new(),
    };
    let mut ids = Vec::new();
    for (node, name) in names {
        match name {
            "A100 80GB" => ids.push("a100-sxm4-80gb".to_string()),
            "A100 40GB" => ids.push("a100-sxm4-40gb".to_string()),
            _ => match tonnage_catalog::gpu(name) {
                Ok(g) => ids.push(g.id),
                Err(e) => i.wrong(
                    Some(node),
                    "unknown-gpu",
                    e.to_string(),
                    "`tonnage gpus` lists them",
                ),
            },
        }
    }
    if !ids.is_empty() {
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        i.say_texts("verdict.gpus", &ids, i.origin(n));
    }
}
