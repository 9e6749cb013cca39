//! torchtune's YAML for its single-device recipes (read at source: torchtune 0.6 and main of 2026-04,
//! recipes/configs/*_single_device.yaml, recipes/{full,lora}_finetune_single_device.py, torchtune/modules/loss/cross_entropy_loss.py).
//!
//! The rules: the recipe is a hand-written loop in `dtype` (no autocast); adapters in that type too; checkpointing by torch's non-reentrant
//! function, layer by layer; the loss in 8 chunks unless said otherwise; clipping only where `clip_grad_norm` is given. torchtune's models
//! are its own code: the figures are those of transformers' modules in such a loop, which every output says.

use super::lines::Lines;
use super::source::{Source, text, texts};
use super::{File, Options, Written, fields};
use tonnage_core::Job;
use tonnage_core::doc::{Diagnostic, Doc, Value};

/// Builders and the hub's models that they stand for: module, function, id.
const MODELS: &[(&str, &str, &str)] = &[
    ("llama2", "llama2_7b", "meta-llama/Llama-2-7b-hf"),
    ("llama2", "llama2_13b", "meta-llama/Llama-2-13b-hf"),
    ("llama2", "llama2_70b", "meta-llama/Llama-2-70b-hf"),
    ("llama3", "llama3_8b", "meta-llama/Meta-Llama-3-8B"),
    ("llama3", "llama3_70b", "meta-llama/Meta-Llama-3-70B"),
    ("llama3_1", "llama3_1_8b", "meta-llama/Llama-3.1-8B"),
    ("llama3_1", "llama3_1_70b", "meta-llama/Llama-3.1-70B"),
    ("llama3_1", "llama3_1_405b", "meta-llama/Llama-3.1-405B"),
    ("llama3_2", "llama3_2_1b", "meta-llama/Llama-3.2-1B"),
    ("llama3_2", "llama3_2_3b", "meta-llama/Llama-3.2-3B"),
    ("qwen2", "qwen2_0_5b", "Qwen/Qwen2-0.5B"),
    ("qwen2", "qwen2_1_5b", "Qwen/Qwen2-1.5B"),
    ("qwen2", "qwen2_7b", "Qwen/Qwen2-7B"),
    ("qwen2_5", "qwen2_5_0_5b", "Qwen/Qwen2.5-0.5B"),
    ("qwen2_5", "qwen2_5_1_5b_base", "Qwen/Qwen2.5-1.5B"),
    ("qwen2_5", "qwen2_5_3b", "Qwen/Qwen2.5-3B"),
    ("qwen2_5", "qwen2_5_7b_base", "Qwen/Qwen2.5-7B"),
    ("qwen2_5", "qwen2_5_14b_base", "Qwen/Qwen2.5-14B"),
    ("qwen2_5", "qwen2_5_32b_base", "Qwen/Qwen2.5-32B"),
    ("qwen2_5", "qwen2_5_72b_base", "Qwen/Qwen2.5-72B"),
    ("qwen3", "qwen3_0_6b_base", "Qwen/Qwen3-0.6B"),
    ("qwen3", "qwen3_1_7b_base", "Qwen/Qwen3-1.7B"),
    ("qwen3", "qwen3_4b_base", "Qwen/Qwen3-4B"),
    ("qwen3", "qwen3_8b_base", "Qwen/Qwen3-8B"),
    ("qwen3", "qwen3_14b_base", "Qwen/Qwen3-14B"),
    ("qwen3", "qwen3_32b", "Qwen/Qwen3-32B"),
    ("mistral", "mistral_7b", "mistralai/Mistral-7B-v0.1"),
];

/// torchtune's names of projections, and transformers'.
const ATTENTION: &[(&str, &str)] = &[
    ("q_proj", "q_proj"),
    ("k_proj", "k_proj"),
    ("v_proj", "v_proj"),
    ("output_proj", "o_proj"),
];
const MLP: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

const OPTIMIZERS: &[(&str, &str)] = &[
    ("bitsandbytes.optim.PagedAdamW8bit", "paged_adamw8bit"),
    ("bitsandbytes.optim.AdamW8bit", "adamw8bit"),
    ("bitsandbytes.optim.PagedAdamW32bit", "paged_adamw32bit"),
    ("bitsandbytes.optim.PagedAdamW", "paged_adamw32bit"),
    ("torch.optim.SGD", "sgd"),
    ("torch.optim.Adagrad", "adagrad"),
    ("torch.optim.RMSprop", "rmsprop"),
];

fn component(doc: &Doc, table: &str) -> Option<String> {
    let n = doc.root.get(table)?.get("_component_")?;
    n.text().map(String::from)
}

pub(super) fn is(doc: &Doc) -> bool {
    component(doc, "model").is_some_and(|c| c.starts_with("torchtune."))
}

pub(super) fn read(doc: &Doc) -> Result<Job, Vec<Diagnostic>> {
    let mut s = Source::new(doc, "torchtune", "torchtune configuration");
    for (path, what) in [
        ("compile", "torch.compile"),
        ("enable_activation_offloading", "offload of activations"),
        ("optimizer_in_bwd", "the optimizer's step inside backward"),
        ("dataset.packed", "packing of samples"),
        ("model.apply_lora_to_output", "adapters on the head"),
        ("tensor_parallel_dim", "tensor parallelism"),
        ("teacher_model", "a teacher model"),
        (
            "model.quantize_base",
            "`quantize_base` (the builders named qlora_ are read)",
        ),
        ("fsdp_cpu_offload", "offload to the host"),
    ] {
        s.refuse(path, what);
    }
    s.leaves_out("torchtune's own model code: the figures are those of transformers' modules in a hand-written loop");
    s.infer(
        "train.loop",
        text("plain"),
        "torchtune's recipes write out their loop",
    );
    let (adapters, packed) = model(&mut s);
    if let Some(n) = s.count("tokenizer.max_seq_len") {
        s.set(
            "train.seq_len",
            Value::Int(n.into()),
            "tokenizer.max_seq_len",
        );
    }
    s.count_or("batch_size", "train.micro_batch_size", 1);
    s.count_or(
        "gradient_accumulation_steps",
        "train.gradient_accumulation_steps",
        1,
    );
    if let Some(x) = s.number("clip_grad_norm") {
        s.set("train.clip_grad_norm", Value::Float(x), "clip_grad_norm");
    }
    let n = s.node("dtype");
    let dtype = match s.word("dtype") {
        Some("bf16") => "bf16",
        Some("fp16") => "fp16",
        Some("fp32") | None => "fp32",
        Some(w) => {
            s.fail(
                n,
                "bad-value",
                format!("`dtype` is {w}"),
                "bf16, fp16 or fp32",
            );
            "fp32"
        }
    };
    s.set("train.precision", text(dtype), "dtype");
    if packed {
        s.infer(
            "quant.compute",
            text(dtype),
            "torchtune computes in `dtype`",
        );
    }
    if adapters {
        s.infer(
            "lora.adapter_dtype",
            text("base"),
            "torchtune makes adapters in `dtype`",
        );
    }
    optimizer(&mut s);
    if s.on("enable_activation_checkpointing") {
        let path = "enable_activation_checkpointing";
        s.set("train.activation_checkpointing", text("full"), path);
        s.infer(
            "train.checkpoint_reentrant",
            Value::Bool(false),
            "torchtune's wrapper is not reentrant",
        );
    }
    loss(&mut s);
    s.finish()
}

fn model(s: &mut Source) -> (bool, bool) {
    let n = s.node("model._component_");
    let whole = s.word("model._component_").unwrap_or_default();
    let name = whole.rsplit('.').next().unwrap_or_default();
    let (plain, adapters, packed) = if let Some(p) = name.strip_prefix("qlora_") {
        (p, true, true)
    } else if let Some(p) = name.strip_prefix("lora_") {
        (p, true, false)
    } else {
        (name, false, false)
    };
    let base = plain.replace("_instruct", "_base");
    match MODELS.iter().find(|(_, f, _)| *f == plain || *f == base) {
        Some((_, _, id)) => s.set("model.id", text(*id), "model._component_"),
        None => {
            let known: Vec<_> = MODELS.iter().map(|(_, f, _)| *f).collect();
            let message = format!("the builder `{whole}` is none of those known here");
            s.fail(n, "unsupported", message, &known.join(", "));
        }
    }
    if packed {
        s.set("quant.format", text("nf4"), "model._component_");
        s.infer(
            "quant.double",
            Value::Bool(true),
            "torchtune's NF4 quantises its scales",
        );
        s.infer(
            "quant.kbit_preparation",
            Value::Bool(false),
            "torchtune has no k-bit preparation",
        );
        s.leaves_out("torchao's NF4: the packed weights are counted as bitsandbytes packs them");
    }
    let names = s.node("model.lora_attn_modules").map(|n| n.value.clone());
    let mlp = s.on("model.apply_lora_to_mlp");
    let r = s.count("model.lora_rank");
    let alpha = s.number("model.lora_alpha").unwrap_or(16.0);
    let dropout = s.number("model.lora_dropout").unwrap_or(0.0);
    let dora = s.on("model.use_dora");
    if !adapters {
        return (false, false);
    }
    s.set(
        "lora.r",
        Value::Int(r.unwrap_or(8).into()),
        "model.lora_rank",
    );
    s.set("lora.alpha", Value::Float(alpha), "model.lora_alpha");
    s.set("lora.dropout", Value::Float(dropout), "model.lora_dropout");
    s.set("lora.dora", Value::Bool(dora), "model.use_dora");
    let mut targets = Vec::new();
    match names {
        Some(Value::List(l)) => {
            for n in &l {
                match ATTENTION.iter().find(|(t, _)| Some(*t) == n.text()) {
                    Some((_, ours)) => targets.push(*ours),
                    None => {
                        let message = format!("`lora_attn_modules` has {}", n.value.shown());
                        s.fail(
                            Some(n),
                            "bad-value",
                            message,
                            "q_proj, k_proj, v_proj, output_proj",
                        );
                    }
                }
            }
        }
        _ => s.fail(
            n,
            "missing",
            "`model.lora_attn_modules` is missing".into(),
            "[q_proj, v_proj]",
        ),
    }
    if mlp {
        targets.extend(MLP);
    }
    s.set("lora.targets", texts(targets), "model.lora_attn_modules");
    (true, packed)
}

fn optimizer(s: &mut Source) {
    let path = "optimizer._component_";
    let n = s.node(path);
    let fused = s.on("optimizer.fused");
    match s.word(path) {
        Some("torch.optim.AdamW" | "torch.optim.Adam") => {
            let word = if fused {
                "adamw_fused"
            } else {
                "adamw_foreach"
            };
            s.set("train.optimizer", text(word), path);
        }
        Some(w) => match OPTIMIZERS.iter().find(|(t, _)| *t == w) {
            Some((_, ours)) => s.set("train.optimizer", text(*ours), path),
            None => s.fail(
                n,
                "unsupported",
                format!("the optimizer `{w}` is not simulated"),
                "torch.optim.AdamW, SGD, Adagrad, RMSprop and bitsandbytes' AdamW are",
            ),
        },
        None => s.fail(
            n,
            "missing",
            "`optimizer._component_` is missing".into(),
            "torch.optim.AdamW",
        ),
    }
}

fn loss(s: &mut Source) {
    let path = "loss._component_";
    let n = s.node(path);
    let chunks = s.count("loss.num_output_chunks").unwrap_or(8);
    match s.word(path).map(|w| w.rsplit('.').next().unwrap_or(w)) {
        None | Some("LinearCrossEntropyLoss" | "CEWithChunkedOutputLoss") => {
            s.set("train.loss", text("chunked"), path);
            s.set(
                "train.loss_chunks",
                Value::Int(chunks.into()),
                "loss.num_output_chunks",
            );
        }
        Some("CrossEntropyLoss") => s.set("train.loss", text("library"), path),
        Some(w) => {
            let message = format!("the loss `{w}` is not simulated");
            s.fail(
                n,
                "unsupported",
                message,
                "LinearCrossEntropyLoss, or torch.nn.CrossEntropyLoss",
            );
        }
    }
}

pub(super) fn write(job: &Job, _: &Options) -> Result<Written, Vec<Diagnostic>> {
    let id = job.word("model.id");
    // Qwen3's builders are in no release (0.6.1 is the last): read, not written
    let released = || MODELS.iter().filter(|(module, ..)| *module != "qwen3");
    let Some((module, function, id)) = released().find(|(_, _, m)| *m == id) else {
        let near = tonnage_units::nearest(&id, released().map(|(_, _, m)| *m));
        return Err(vec![
            Diagnostic::error(
                "cannot-express",
                format!("`model.id` = {id} cannot be said in a file for torchtune: no builder of it is known"),
            )
            .help(match near {
                Some(n) => format!("of {n} one is"),
                None => "builders of Llama 2 and 3, Qwen 2 and 2.5 and Mistral are known: export to another format".into(),
            }),
        ]);
    };
    let lora = job.count("lora.r");
    let packed = job.word("quant.format") == "nf4";
    let mut l = Lines::new(
        "Configuration for torchtune's single-device recipes (0.6)",
        job,
        &[],
    );
    let prefix = match (lora.is_some(), packed) {
        (true, true) => "qlora_",
        (true, false) => "lora_",
        _ => "",
    };
    let builder = format!("torchtune.models.{module}.{prefix}{function}");
    if let Some(tool) = fields::tools().get("torchtune")
        && let Some(known) = tool.fields.get("model._component_")
        && !known.contains(&format!("={builder}"))
    {
        let key = if packed { "quant.format" } else { "model.id" };
        return Err(vec![
            Diagnostic::error(
                "cannot-express",
                format!(
                    "`{key}` = {} cannot be said in a file for torchtune: {} has no builder `{prefix}{function}`",
                    job.word(key),
                    tool.tool
                ),
            )
            .help("export to another format"),
        ]);
    }
    l.raw(&format!("model:\n  _component_: {builder}"));
    if let Some(r) = lora {
        let names = job.texts("lora.targets");
        let all = names.iter().any(|n| n == "all-linear");
        let attention: Vec<_> = ATTENTION
            .iter()
            .filter(|(_, ours)| all || names.iter().any(|n| n == ours))
            .map(|(t, _)| *t)
            .collect();
        let mlp = all || MLP.iter().all(|m| names.iter().any(|n| n == m));
        if attention.is_empty() {
            return Err(vec![
                Diagnostic::error(
                    "cannot-express",
                    format!(
                        "`lora.targets` = {} cannot be said in a file for torchtune",
                        names.join(", ")
                    ),
                )
                .help("q_proj, k_proj, v_proj, o_proj can, and gate_proj, up_proj, down_proj together"),
            ]);
        }
        l.raw(&format!("  lora_attn_modules: [{}]", attention.join(", ")));
        l.put("  apply_lora_to_mlp", mlp);
        l.put("  lora_rank", r);
        l.put("  lora_alpha", job.number("lora.alpha").unwrap_or(16.0));
        l.put("  lora_dropout", job.number("lora.dropout").unwrap_or(0.05));
        if job.flag("lora.dora") {
            l.put("  use_dora", true);
        }
    }
    let folder = id.rsplit('/').next().unwrap_or(id);
    l.raw(&format!("# where `tune download {id}` put it:"));
    l.raw(&format!("checkpointer:\n  _component_: torchtune.training.FullModelHFCheckpointer\n  checkpoint_dir: /tmp/{folder}"));
    l.raw("tokenizer:");
    l.maybe("  max_seq_len", job.count("train.seq_len"));
    l.put(
        "batch_size",
        job.count("train.micro_batch_size").unwrap_or(1),
    );
    l.put(
        "gradient_accumulation_steps",
        job.count("train.gradient_accumulation_steps").unwrap_or(1),
    );
    if job.given("train.clip_grad_norm").is_some() {
        l.maybe("clip_grad_norm", job.number("train.clip_grad_norm"));
    }
    // the recipes have no autocast: the law names `train.precision` where the job asks for it
    let precision = job.word("train.precision");
    l.put(
        "dtype",
        match precision.as_str() {
            "bf16" | "fp16" => &precision,
            _ => "fp32",
        },
    );
    let ours = job.word("train.optimizer");
    match ours.as_str() {
        "adamw_foreach" | "adamw_fused" => {
            l.raw("optimizer:\n  _component_: torch.optim.AdamW");
            l.put("  fused", ours == "adamw_fused");
        }
        w => {
            if let Some((t, _)) = OPTIMIZERS.iter().find(|(_, o)| *o == w) {
                l.raw(&format!("optimizer:\n  _component_: {t}"));
            } else {
                return Err(vec![
                    Diagnostic::error(
                        "cannot-express",
                        format!("`train.optimizer` = {w} cannot be said in a file for torchtune"),
                    )
                    .help("AdamW, SGD, Adagrad, RMSprop and bitsandbytes' AdamW can"),
                ]);
            }
        }
    }
    l.raw("  lr: 2.0e-5");
    match job.word("train.loss").as_str() {
        "library" if job.given("train.loss").is_some() => {
            l.raw("loss:\n  _component_: torch.nn.CrossEntropyLoss")
        }
        _ => {
            l.raw("loss:\n  _component_: torchtune.modules.loss.CEWithChunkedOutputLoss");
            l.put(
                "  num_output_chunks",
                job.count("train.loss_chunks").unwrap_or(8),
            );
        }
    }
    l.put(
        "enable_activation_checkpointing",
        job.word("train.activation_checkpointing") == "full",
    );
    l.put("enable_activation_offloading", false);
    l.raw("compile: false\ndevice: cuda");
    let recipe = if lora.is_some() {
        "lora_finetune_single_device"
    } else {
        "full_finetune_single_device"
    };
    Ok(Written {
        files: vec![File {
            name: "torchtune.yaml".into(),
            text: l.end(),
            what: "what memory depends on: put it over the recipe's own configuration".into(),
        }],
        command: Some(format!("tune run {recipe} --config torchtune.yaml")),
        ..Written::default()
    })
}
