//! The argument files of transformers' scripts and of `trl sft`: the fields of their dataclasses, flat.
//!
//! Read at source: transformers 5.17 `TrainingArguments` (training_args.py) and the fields of `examples/pytorch/language-modeling/
//! run_clm.py` (`model_name_or_path`, `model_revision`, `dtype`, `attn_implementation` does not exist there; `block_size`); TRL 1.16
//! `SFTConfig`, `ModelConfig`, `ScriptArguments` (trainer/sft_config.py, trainer/model_config.py, scripts/sft.py).
//!
//! TRL 1.16 fuses the head with the loss by a kernel of its own, never makes full logits, and refuses Liger's: `train.loss = "fused"` cannot
//! be said there. It loads with `device_map="auto"`, and makes adapters of packed models bf16 (trainer/sft_trainer.py).

use super::lines::{Lines, model};
use super::source::{Source, text};
use super::{File, Options, Written};
use tonnage_core::Job;
use tonnage_core::doc::{Diagnostic, Doc, Value};

/// `optim` and what it is here (transformers 5.17, training_args.py `OptimizerNames`).
const OPTIM: &[(&str, &str)] = &[
    ("adamw_torch_fused", "adamw_fused"),
    ("adamw_torch", "adamw_foreach"),
    ("adamw_hf", "adamw_foreach"),
    ("adafactor", "adafactor"),
    ("adagrad", "adagrad"),
    ("rmsprop", "rmsprop"),
    ("sgd", "sgd"),
    ("adamw_bnb_8bit", "adamw8bit"),
    ("adamw_8bit", "adamw8bit"),
    ("paged_adamw_8bit", "paged_adamw8bit"),
    ("paged_adamw_32bit", "paged_adamw32bit"),
    ("paged_adamw", "paged_adamw32bit"),
];

/// `optim` for an optimizer; `None`: the Trainer has no such one.
pub(super) fn optim_name(ours: &str) -> Option<&'static str> {
    OPTIM.iter().find(|(_, o)| *o == ours).map(|(n, _)| *n)
}

/// Reads `path` as the Trainer's optimizer; `default` where it is absent.
pub(super) fn optim(s: &mut Source, path: &'static str) {
    let n = s.node(path);
    match s.word(path) {
        None => s.infer(
            "train.optimizer",
            text("adamw_fused"),
            "transformers' default of `optim` with torch 2.8 and later",
        ),
        Some(w) => match OPTIM.iter().find(|(name, _)| *name == w) {
            Some((_, ours)) => s.set("train.optimizer", text(*ours), path),
            None => {
                let known: Vec<_> = OPTIM.iter().map(|(n, _)| *n).collect();
                s.fail(
                    n,
                    "unsupported",
                    format!("the optimizer `{w}` is not simulated"),
                    &format!("simulated are: {}", known.join(", ")),
                );
            }
        },
    }
}

/// The dtype words of `dtype` and `torch_dtype`.
pub(super) fn dtype(word: &str) -> Option<&'static str> {
    match word.trim_start_matches("torch.") {
        "bfloat16" | "bf16" => Some("bf16"),
        "float16" | "fp16" => Some("fp16"),
        "float32" | "fp32" => Some("fp32"),
        _ => None,
    }
}

pub(super) fn long_dtype(ours: &str) -> &'static str {
    match ours {
        "bf16" => "bfloat16",
        "fp16" => "float16",
        _ => "float32",
    }
}

/// What decides precision in a Trainer's job: the type of the weights, and autocast. `None` where the regime is none of ours.
pub(super) fn precision(
    weights: Option<&str>,
    amp: Option<&str>,
) -> (&'static str, Option<&'static str>) {
    match (weights, amp) {
        (None | Some("fp32"), None) => ("fp32", None),
        (Some("bf16"), None) => ("bf16", None),
        (Some("fp16"), None) => ("fp16", None),
        (w, Some(a)) => (
            if a == "fp16" {
                "fp16-mixed"
            } else {
                "bf16-mixed"
            },
            match w {
                Some("bf16") => Some("bf16"),
                Some("fp16") => Some("fp16"),
                _ => None,
            },
        ),
        _ => ("fp32", None),
    }
}

/// The same from a job: (weights, autocast).
pub(super) fn regime(job: &Job) -> (&'static str, Option<&'static str>) {
    let stored = match job.word("model.dtype").as_str() {
        "bf16" => Some("bf16"),
        "fp16" => Some("fp16"),
        _ => None,
    };
    match job.word("train.precision").as_str() {
        "bf16" => ("bf16", None),
        "fp16" => ("fp16", None),
        "bf16-mixed" => (stored.unwrap_or("fp32"), Some("bf16")),
        "fp16-mixed" => (stored.unwrap_or("fp32"), Some("fp16")),
        _ => ("fp32", None),
    }
}

/// What every Trainer does, whoever calls it.
pub(super) fn trainer(s: &mut Source) {
    s.infer(
        "train.loop",
        text("trainer"),
        "transformers' Trainer runs the steps",
    );
    for (path, what) in [
        ("deepspeed", "DeepSpeed's engine"),
        ("fsdp", "FSDP"),
        ("torch_compile", "torch.compile"),
        (
            "auto_find_batch_size",
            "a batch found by running out of memory",
        ),
        ("activation_offloading", "offload of activations"),
        ("optim_target_modules", "GaLore and its kind"),
        ("fsdp_config", "FSDP"),
        ("parallelism_config", "parallel training"),
        ("use_cpu", "a run on the processor"),
    ] {
        s.refuse(path, what);
    }
    for (path, what) in [
        ("neftune_noise_alpha", "noise on the embeddings"),
        ("optim_args", "arguments of the optimizer's own"),
        (
            "torch_empty_cache_steps",
            "the cache given back between steps, which lowers what is reserved",
        ),
        ("eval_strategy", "evaluation between the steps"),
    ] {
        s.warn(path, what);
    }
}

/// `gradient_checkpointing` and its kwargs.
pub(super) fn checkpointing(s: &mut Source, default: bool, reentrant: Option<bool>) {
    let path = "gradient_checkpointing";
    match s.switch(path) {
        Some(on) => {
            let word = if on { "full" } else { "none" };
            s.set("train.activation_checkpointing", text(word), path);
        }
        None => s.infer(
            "train.activation_checkpointing",
            text(if default { "full" } else { "none" }),
            "the default of `gradient_checkpointing`",
        ),
    }
    s.refuse(
        "gradient_checkpointing_kwargs.selective",
        "TRL's choice of what selective checkpointing keeps",
    );
    if s.job.word("train.activation_checkpointing") != "full" {
        s.node("gradient_checkpointing_kwargs.use_reentrant");
        return;
    }
    let path = "gradient_checkpointing_kwargs.use_reentrant";
    match (s.switch(path), reentrant) {
        (Some(on), _) => s.set("train.checkpoint_reentrant", Value::Bool(on), path),
        (None, Some(on)) => s.infer(
            "train.checkpoint_reentrant",
            Value::Bool(on),
            "the tool's default",
        ),
        (None, None) => {}
    }
}

fn attention(s: &mut Source, path: &'static str) {
    let n = s.node(path);
    match s.word(path) {
        Some(w @ ("sdpa" | "eager" | "flash_attention_2")) => {
            s.set("train.attention", text(w), path)
        }
        Some("kernels-community/flash-attn2") => {
            s.set("train.attention", text("flash_attention_2"), path);
        }
        Some(w) => s.fail(
            n,
            "unsupported",
            format!("the attention `{w}` is not simulated"),
            "simulated are: sdpa, eager, flash_attention_2",
        ),
        None => {}
    }
}

/// The fields of `TrainingArguments` on which memory depends, but for precision and checkpointing.
fn arguments(s: &mut Source) {
    trainer(s);
    s.count_or("per_device_train_batch_size", "train.micro_batch_size", 8);
    s.count_or(
        "gradient_accumulation_steps",
        "train.gradient_accumulation_steps",
        1,
    );
    optim(s, "optim");
    if let Some(x) = s.number("max_grad_norm") {
        s.set("train.clip_grad_norm", Value::Float(x), "max_grad_norm");
    }
}

/// `bf16` and `fp16`; both is a contradiction.
fn amp(s: &mut Source, bf16_default: bool) -> Option<&'static str> {
    let (bf16, fp16) = (s.switch("bf16"), s.on("fp16"));
    if bf16 == Some(true) && fp16 {
        let n = s.node("fp16");
        s.fail(
            n,
            "contradiction",
            "`bf16` and `fp16` are both on".into(),
            "keep one",
        );
    }
    if fp16 {
        Some("fp16")
    } else if bf16.unwrap_or(bf16_default) {
        Some("bf16")
    } else {
        None
    }
}

fn set_precision(s: &mut Source, weights: Option<&str>, amp: Option<&str>, path: &'static str) {
    let (p, stored) = precision(weights, amp);
    s.set("train.precision", text(p), path);
    if let Some(w) = stored {
        s.set("model.dtype", text(w), "dtype");
    }
}

fn written_dtype(s: &mut Source) -> Option<&'static str> {
    for path in ["dtype", "torch_dtype"] {
        let n = s.node(path);
        match s.word(path) {
            None => {}
            Some("auto") => s.job.notes.push(
                Diagnostic::warning(
                    "checkpoint-dtype",
                    "`dtype: auto` is the checkpoint's own type, which the file does not say: fp32 is assumed",
                )
                .help("write bfloat16, float16 or float32"),
            ),
            Some(w) => match dtype(w) {
                Some(d) => return Some(d),
                None => s.fail(
                    n,
                    "bad-value",
                    format!("`{path}` is {w}"),
                    "bfloat16, float16 or float32",
                ),
            },
        }
    }
    None
}

/// A file of a transformers script: its `TrainingArguments`, and the model's and data's fields where it has them.
pub(super) fn is_hf(doc: &Doc) -> bool {
    let has = |k: &str| doc.root.get(k).is_some();
    // a recipe of an agent framework names its method and model so; transformers has neither argument
    let recipe = has("method") && has("model");
    !recipe && has("per_device_train_batch_size")
        || has("output_dir") && (has("block_size") || has("gradient_checkpointing") || has("optim"))
}

pub(super) fn read(doc: &Doc) -> Result<Job, Vec<Diagnostic>> {
    let mut s = Source::new(doc, "transformers", "transformers arguments");
    arguments(&mut s);
    s.model("model_name_or_path", "model_revision");
    let weights = written_dtype(&mut s);
    let amp = amp(&mut s, false);
    let path = if amp == Some("fp16") { "fp16" } else { "bf16" };
    set_precision(&mut s, weights, amp, path);
    checkpointing(&mut s, false, None);
    if let Some(n) = s.count("block_size") {
        s.set("train.seq_len", Value::Int(n.into()), "block_size");
    }
    attention(&mut s, "attn_implementation");
    if s.on("use_liger_kernel") {
        let config = s.node("liger_kernel_config");
        let kernel = |name: &str, default: bool| match config.and_then(|c| c.get(name)) {
            Some(n) => n.value == Value::Bool(true),
            None => default,
        };
        if kernel("fused_linear_cross_entropy", true) {
            s.set("train.loss", text("fused"), "use_liger_kernel");
        }
        // the others are on unless the configuration says no (liger-kernel, transformers/monkey_patch.py)
        let others: Vec<_> = ["rope", "rms_norm", "swiglu", "layer_norm", "cross_entropy"]
            .into_iter()
            .filter(|k| kernel(k, *k != "cross_entropy" && *k != "layer_norm"))
            .collect();
        if !others.is_empty() {
            s.leaves_out(format!(
                "Liger's other kernels ({}): only its loss is simulated",
                others.join(", ")
            ));
        }
    }
    s.finish()
}

fn shared(job: &Job, l: &mut Lines) {
    l.put(
        "per_device_train_batch_size",
        job.count("train.micro_batch_size").unwrap_or(1),
    );
    l.put(
        "gradient_accumulation_steps",
        job.count("train.gradient_accumulation_steps").unwrap_or(1),
    );
    l.maybe("optim", optim_name(&job.word("train.optimizer")));
    l.maybe(
        "max_grad_norm",
        job.given("train.clip_grad_norm")
            .and_then(|_| job.number("train.clip_grad_norm")),
    );
    let full = job.word("train.activation_checkpointing") == "full";
    l.put("gradient_checkpointing", full);
    if full && job.given("train.checkpoint_reentrant").is_some() {
        let on = job.flag("train.checkpoint_reentrant");
        l.raw(&format!(
            "gradient_checkpointing_kwargs: {{\"use_reentrant\": {on}}}"
        ));
    }
    let amp = regime(job).1;
    l.put("bf16", amp == Some("bf16"));
    l.put("fp16", amp == Some("fp16"));
}

fn file(name: &str, text: String, what: &str) -> File {
    File {
        name: name.into(),
        text,
        what: what.into(),
    }
}

pub(super) fn write(job: &Job, _: &Options) -> Result<Written, Vec<Diagnostic>> {
    let mut l = Lines::new(
        "Arguments for a script of transformers 5.17 (fields of run_clm.py and TrainingArguments)",
        job,
        &[],
    );
    l.maybe("model_name_or_path", model(job));
    if job.given("model.revision").is_some() {
        l.put("model_revision", job.word("model.revision"));
    }
    l.put("dtype", long_dtype(regime(job).0));
    l.maybe("block_size", job.count("train.seq_len"));
    l.put("output_dir", "out");
    l.put("do_train", true);
    shared(job, &mut l);
    if job.word("train.loss") == "fused" {
        l.put("use_liger_kernel", true);
        l.raw("liger_kernel_config: {\"fused_linear_cross_entropy\": true, \"cross_entropy\": false, \"rope\": false, \"rms_norm\": false, \"swiglu\": false}");
    }
    Ok(Written {
        files: vec![file("hf-args.yaml", l.end(), "the script's arguments")],
        command: Some("python run_clm.py hf-args.yaml --dataset_name DATASET".into()),
        ..Written::default()
    })
}

/// A `trl sft` configuration.
pub(super) fn is_trl(doc: &Doc) -> bool {
    let has = |k: &str| doc.root.get(k).is_some();
    has("model_name_or_path")
        && !has("finetuning_type")
        && !has("stage")
        && !has("cutoff_len")
        && !has("block_size")
        && [
            "max_length",
            "use_peft",
            "lora_target_modules",
            "load_in_4bit",
            "packing",
            "loss_type",
        ]
        .iter()
        .any(|k| has(k))
}

pub(super) fn read_trl(doc: &Doc) -> Result<Job, Vec<Diagnostic>> {
    let mut s = Source::new(doc, "TRL", "TRL SFT configuration");
    arguments(&mut s);
    s.model("model_name_or_path", "model_revision");
    let weights = written_dtype(&mut s);
    let amp = amp(&mut s, true);
    let path = if amp == Some("fp16") { "fp16" } else { "bf16" };
    set_precision(&mut s, weights, amp, path);
    checkpointing(&mut s, true, None);
    // the name up to TRL 0.19
    if s.node("max_length").is_none() && s.node("max_seq_length").is_some() {
        s.count_or("max_seq_length", "train.seq_len", 1024);
    } else {
        s.count_or("max_length", "train.seq_len", 1024);
    }
    attention(&mut s, "attn_implementation");
    s.infer(
        "train.loading",
        text("device_map"),
        "TRL loads with device_map=\"auto\"",
    );
    s.refuse("padding_free", "a batch without padding");
    s.refuse(
        "packing",
        "packing by best fit, which lays a batch out as one row",
    );
    s.warn("pad_to_multiple_of", "batches padded to a multiple");
    s.warn("router_aux_loss_coef", "the router's own loss");
    s.warn("teacher_model_name_or_path", "a teacher model");
    s.refuse("use_rslora", "rank-stabilised scaling under another name");
    s.refuse(
        "lora_modules_to_save",
        "modules trained whole beside adapters",
    );
    s.refuse("lora_target_parameters", "adapters of parameters");
    s.refuse(
        "use_liger_kernel",
        "TRL's use of Liger's kernels beside its own head",
    );
    adapters(&mut s, weights);
    s.leaves_out(
        "TRL's own head: from 1.0 on it makes the loss in tiles, never full logits; the figures are those of the model library's loss in \
         transformers' Trainer",
    );
    s.finish()
}

/// bitsandbytes' two switches: the bits of the loaded weights. `unprepared`: why the tool's weights are not prepared for k-bit training.
pub(super) fn load_in_bits(s: &mut Source, unprepared: &str) -> Option<u8> {
    let (four, eight) = (s.on("load_in_4bit"), s.on("load_in_8bit"));
    let (path, format, bits) = match (four, eight) {
        (false, false) => return None,
        (true, true) => {
            let n = s.node("load_in_8bit");
            s.fail(
                n,
                "contradiction",
                "`load_in_4bit` and `load_in_8bit` are both true".into(),
                "transformers loads in one of them",
            );
            return None;
        }
        (true, false) => ("load_in_4bit", "nf4", 4),
        (false, true) => ("load_in_8bit", "int8", 8),
    };
    s.set("quant.format", text(format), path);
    s.infer("quant.kbit_preparation", Value::Bool(false), unprepared);
    Some(bits)
}

fn adapters(s: &mut Source, weights: Option<&str>) {
    let unprepared = "TRL 1.16 does not call prepare_model_for_kbit_training";
    let bits = load_in_bits(s, unprepared);
    if bits == Some(4) {
        let n = s.node("bnb_4bit_quant_type");
        if s.word("bnb_4bit_quant_type").is_some_and(|w| w != "nf4") {
            s.fail(n, "unsupported", "only nf4 is simulated".into(), "nf4");
        }
        let nested = s.on("use_bnb_nested_quant");
        s.set("quant.double", Value::Bool(nested), "use_bnb_nested_quant");
        s.infer(
            "quant.compute",
            text(weights.unwrap_or("fp32").to_string()),
            "TRL computes in `dtype`",
        );
    }
    if !s.on("use_peft") {
        for path in [
            "lora_r",
            "lora_alpha",
            "lora_dropout",
            "lora_target_modules",
            "use_dora",
        ] {
            s.node(path);
        }
        return;
    }
    s.count_or("lora_r", "lora.r", 16);
    let alpha = s.number("lora_alpha").unwrap_or(32.0);
    s.set("lora.alpha", Value::Float(alpha), "lora_alpha");
    let dropout = s.number("lora_dropout").unwrap_or(0.05);
    s.set("lora.dropout", Value::Float(dropout), "lora_dropout");
    match s.node("lora_target_modules").map(|n| n.value.clone()) {
        Some(v) => s.set("lora.targets", v, "lora_target_modules"),
        None => s.fail(
            None,
            "missing",
            "`lora_target_modules` is missing: peft's choice for the model is not known here"
                .into(),
            "name them, e.g. [q_proj, v_proj], or all-linear",
        ),
    }
    let dora = s.on("use_dora");
    s.set("lora.dora", Value::Bool(dora), "use_dora");
    if bits.is_some() {
        if weights != Some("bf16") {
            s.leaves_out("adapters in bf16 beside packed weights of another type");
        }
        s.infer(
            "lora.adapter_dtype",
            text("base"),
            "TRL makes adapters of packed models bf16",
        );
    }
}

pub(super) fn write_trl(job: &Job, _: &Options) -> Result<Written, Vec<Diagnostic>> {
    let mut l = Lines::new("Configuration for `trl sft` (TRL 1.16)", job, &[]);
    l.maybe("model_name_or_path", model(job));
    if job.given("model.revision").is_some() {
        l.put("model_revision", job.word("model.revision"));
    }
    l.put("dtype", long_dtype(regime(job).0));
    l.put("attn_implementation", job.word("train.attention"));
    l.maybe("max_length", job.count("train.seq_len"));
    l.put("output_dir", "out");
    shared(job, &mut l);
    if let Some(r) = job.count("lora.r") {
        l.put("use_peft", true);
        l.put("lora_r", r);
        lora_lines(job, &mut l, "lora_target_modules", true);
        l.put("use_dora", job.flag("lora.dora"));
    }
    match job.word("quant.format").as_str() {
        "nf4" => {
            l.put("load_in_4bit", true);
            l.put("bnb_4bit_quant_type", "nf4");
            l.put("use_bnb_nested_quant", job.flag("quant.double"));
        }
        "int8" => l.put("load_in_8bit", true),
        _ => {}
    }
    Ok(Written {
        files: vec![file("trl-sft.yaml", l.end(), "the configuration")],
        command: Some("trl sft --config trl-sft.yaml --dataset_name DATASET".into()),
        ..Written::default()
    })
}

/// Scale, dropout and targets of adapters; peft takes `all-linear` and expressions as one text, names as a list.
pub(super) fn lora_lines(job: &Job, l: &mut Lines, targets: &str, list: bool) {
    // nothing of memory depends on it, and peft needs one: twice the rank, as is usual
    let usual = 2.0 * job.number("lora.r").unwrap_or(8.0);
    let alpha = job.number("lora.alpha").unwrap_or(usual);
    if alpha.fract() == 0.0 {
        l.put("lora_alpha", alpha as u64);
    }
    l.put("lora_dropout", job.number("lora.dropout").unwrap_or(0.05));
    let names = job.texts("lora.targets");
    match &names[..] {
        // TRL's parser wants a list even so, and takes the one word out of it
        [one] if one == "all-linear" && !list => l.put(targets, one.clone()),
        _ => l.put(targets, names),
    }
}
