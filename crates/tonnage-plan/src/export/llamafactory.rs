//! LLaMA-Factory's YAML (read at source: LLaMA-Factory 0.9.5, src/llamafactory/hparams/{model,data,finetuning}_args.py for names and
//! defaults, model/adapter.py and model/model_utils/checkpointing.py for what is in memory).
//!
//! The rules: checkpointing is on unless `disable_gradient_checkpointing`, and reentrant unless `use_reentrant_gc: false`; what is trained
//! is fp32 unless `pure_bf16` (adapters are made fp32 by peft either way); weights are loaded in the checkpoint's own type, so beside
//! adapters that type is the model's; no k-bit preparation; `lora_dropout` 0; four bits are NF4 with double quantisation.

use super::hf::{optim, optim_name, trainer};
use super::lines::{Lines, model};
use super::source::{Source, text, texts};
use super::{File, Options, Written};
use tonnage_core::Job;
use tonnage_core::doc::{Diagnostic, Doc, Value};

pub(super) fn is(doc: &Doc) -> bool {
    let has = |k: &str| doc.root.get(k).is_some();
    has("model_name_or_path") && (has("finetuning_type") || has("cutoff_len") || has("stage"))
}

pub(super) fn read(doc: &Doc) -> Result<Job, Vec<Diagnostic>> {
    let mut s = Source::new(doc, "LLaMA-Factory", "LLaMA-Factory configuration");
    trainer(&mut s);
    for (path, what) in [
        ("use_unsloth", "Unsloth's model code"),
        ("use_unsloth_gc", "Unsloth's checkpointing"),
        ("use_galore", "GaLore"),
        ("use_apollo", "APOLLO"),
        ("use_badam", "BAdam"),
        ("use_adam_mini", "Adam-mini"),
        ("use_muon", "LLaMA-Factory's Muon"),
        ("use_rslora", "rank-stabilised scaling under another name"),
        ("additional_target", "modules trained whole beside adapters"),
        ("packing", "packing of samples"),
        ("neat_packing", "packing of samples"),
        ("resize_vocab", "a resized vocabulary"),
        ("upcast_layernorm", "norms in fp32"),
        ("upcast_lmhead_output", "an fp32 head output"),
        ("shift_attn", "shifted attention"),
        ("mixture_of_depths", "mixture of depths"),
        ("use_llama_pro", "LLaMA-Pro"),
        ("pissa_init", "PiSSA"),
        ("adapter_name_or_path", "a resumed adapter"),
        ("use_kt", "KTransformers"),
        ("fp8", "fp8 training"),
        ("ref_model", "a reference model"),
        ("add_tokens", "a resized vocabulary"),
        ("new_special_tokens_config", "a resized vocabulary"),
        ("use_v1_kernels", "LLaMA-Factory's own kernels"),
        ("use_hyper_parallel", "parallel training"),
        ("moe_aux_loss_coef", "the router's own loss"),
        ("use_asft_loss", "another loss"),
        ("use_dft_loss", "another loss"),
        ("use_eaft_loss", "another loss"),
    ] {
        s.refuse(path, what);
    }
    let whole = s.switch("low_cpu_mem_usage") == Some(false);
    s.infer(
        "train.loading",
        text(if whole { "to" } else { "device_map" }),
        "LLaMA-Factory loads with device_map where `low_cpu_mem_usage` is on",
    );
    let n = s.node("stage");
    if let Some(w @ ("rm" | "ppo" | "dpo" | "kto")) = s.word("stage") {
        let message = format!("the stage `{w}` is not simulated");
        s.fail(n, "unsupported", message, "pt and sft are");
    }
    s.model("model_name_or_path", "model_revision");
    s.count_or("cutoff_len", "train.seq_len", 2048);
    s.count_or("per_device_train_batch_size", "train.micro_batch_size", 8);
    s.count_or(
        "gradient_accumulation_steps",
        "train.gradient_accumulation_steps",
        1,
    );
    optim(&mut s, "optim");
    if let Some(x) = s.number("max_grad_norm") {
        s.set("train.clip_grad_norm", Value::Float(x), "max_grad_norm");
    }
    let lora = method(&mut s);
    dtypes(&mut s, lora);
    checkpointing(&mut s);
    attention(&mut s);
    if s.on("enable_liger_kernel") {
        s.set("train.loss", text("fused"), "enable_liger_kernel");
        s.leaves_out("Liger's other kernels (rope, rms_norm, swiglu): only its loss is simulated");
    }
    s.finish()
}

fn method(s: &mut Source) -> bool {
    let n = s.node("finetuning_type");
    let lora = match s.word("finetuning_type") {
        None | Some("lora") => true,
        Some("full") => false,
        Some(w) => {
            let message = format!("the method `{w}` is not simulated");
            s.fail(n, "unsupported", message, "full and lora are");
            false
        }
    };
    let bits = s.node("quantization_bit");
    match s.count("quantization_bit") {
        None => {
            for path in [
                "quantization_type",
                "double_quantization",
                "quantization_method",
            ] {
                s.node(path);
            }
        }
        Some(b @ (4 | 8)) => {
            let word = if b == 4 { "nf4" } else { "int8" };
            s.set("quant.format", text(word), "quantization_bit");
            s.infer(
                "quant.kbit_preparation",
                Value::Bool(false),
                "LLaMA-Factory does not call prepare_model_for_kbit_training",
            );
            for (path, fine) in [("quantization_type", "nf4"), ("quantization_method", "bnb")] {
                let n = s.node(path);
                if let Some(w) = s.word(path).filter(|w| {
                    *w != fine && !(fine == "bnb" && w.eq_ignore_ascii_case("bitsandbytes"))
                }) {
                    let message = format!("`{path}` = {w} is not simulated");
                    s.fail(n, "unsupported", message, fine);
                }
            }
            let double = s.switch("double_quantization").unwrap_or(true);
            if b == 4 {
                s.set("quant.double", Value::Bool(double), "double_quantization");
            }
        }
        Some(b) => {
            let message = format!("{b} bits are not simulated");
            s.fail(bits, "unsupported", message, "4 and 8 are");
        }
    }
    if !lora {
        for path in [
            "lora_rank",
            "lora_alpha",
            "lora_dropout",
            "lora_target",
            "use_dora",
        ] {
            s.node(path);
        }
        return false;
    }
    s.count_or("lora_rank", "lora.r", 8);
    let r = s.job.count("lora.r").unwrap_or(8);
    let alpha = s.number("lora_alpha").unwrap_or(2.0 * r as f64);
    s.set("lora.alpha", Value::Float(alpha), "lora_alpha");
    let dropout = s.number("lora_dropout").unwrap_or(0.0);
    s.set("lora.dropout", Value::Float(dropout), "lora_dropout");
    targets(s);
    let dora = s.on("use_dora");
    s.set("lora.dora", Value::Bool(dora), "use_dora");
    true
}

/// A text of names with commas, or `all`.
fn targets(s: &mut Source) {
    let path = "lora_target";
    let value = match s.node(path).map(|n| n.value.clone()) {
        None => text("all-linear"),
        Some(Value::Text(t)) if t == "all" => text("all-linear"),
        Some(Value::Text(t)) => texts(t.split(',').map(str::trim).filter(|t| !t.is_empty())),
        Some(v) => v,
    };
    s.set("lora.targets", value, path);
}

/// Sets precision and the type of the weights.
fn dtypes(s: &mut Source, lora: bool) {
    let (bf16, fp16, pure) = (s.on("bf16"), s.on("fp16"), s.on("pure_bf16"));
    let amp = if fp16 {
        Some("fp16")
    } else if bf16 {
        Some("bf16")
    } else {
        None
    };
    let path = if fp16 { "fp16" } else { "bf16" };
    if pure {
        s.set("train.precision", text("bf16"), "pure_bf16");
    } else {
        let word = match amp {
            Some("fp16") => "fp16-mixed",
            Some(_) => "bf16-mixed",
            None => "fp32",
        };
        s.set("train.precision", text(word), path);
        if lora && let Some(a) = amp {
            s.infer(
                "model.dtype",
                text(a),
                "frozen weights stay as the checkpoint has them, which is assumed to be the compute type",
            );
        }
    }
    if s.job.word("quant.format") == "nf4" {
        let compute = match amp {
            Some(a) => a,
            None if pure => "bf16",
            None => "fp32",
        };
        s.infer("quant.compute", text(compute), "the compute type");
    }
}

fn checkpointing(s: &mut Source) {
    let off = s.on("disable_gradient_checkpointing");
    let word = if off { "none" } else { "full" };
    s.set(
        "train.activation_checkpointing",
        text(word),
        "disable_gradient_checkpointing",
    );
    let reentrant = s.switch("use_reentrant_gc").unwrap_or(true);
    if !off {
        s.set(
            "train.checkpoint_reentrant",
            Value::Bool(reentrant),
            "use_reentrant_gc",
        );
    }
}

fn attention(s: &mut Source) {
    let path = "flash_attn";
    let n = s.node(path);
    match n.map(|n| &n.value) {
        None => {}
        Some(Value::Text(t)) => match t.as_str() {
            "auto" => {}
            "sdpa" => s.set("train.attention", text("sdpa"), path),
            "disabled" => s.set("train.attention", text("eager"), path),
            "fa2" => s.set("train.attention", text("flash_attention_2"), path),
            w => {
                let message = format!("the attention `{w}` is not simulated");
                s.fail(n, "unsupported", message, "auto, disabled, sdpa, fa2 are");
            }
        },
        Some(v) => {
            let message = format!("`flash_attn` is {}", v.shown());
            s.fail(n, "bad-value", message, "auto, disabled, sdpa or fa2");
        }
    }
}

pub(super) fn write(job: &Job, _: &Options) -> Result<Written, Vec<Diagnostic>> {
    let mut l = Lines::new("Configuration for LLaMA-Factory 0.9.5", job, &[]);
    l.maybe("model_name_or_path", model(job));
    if job.given("model.revision").is_some() {
        l.put("model_revision", job.word("model.revision"));
    }
    l.put("stage", "sft");
    l.put("do_train", true);
    let lora = job.count("lora.r");
    l.put(
        "finetuning_type",
        if lora.is_some() { "lora" } else { "full" },
    );
    if let Some(r) = lora {
        l.put("lora_rank", r);
        // twice the rank where nothing is said, which is the tool's own default
        let alpha = job.number("lora.alpha").unwrap_or(2.0 * r as f64);
        if alpha.fract() == 0.0 {
            l.put("lora_alpha", alpha as u64);
        }
        l.put("lora_dropout", job.number("lora.dropout").unwrap_or(0.05));
        let names = job.texts("lora.targets");
        l.put(
            "lora_target",
            match &names[..] {
                [one] if one == "all-linear" => "all".to_string(),
                _ => names.join(","),
            },
        );
        l.put("use_dora", job.flag("lora.dora"));
    }
    match job.word("quant.format").as_str() {
        "nf4" => {
            l.put("quantization_bit", 4_u64);
            l.put("quantization_type", "nf4");
            l.put("double_quantization", job.flag("quant.double"));
        }
        "int8" => l.put("quantization_bit", 8_u64),
        _ => {}
    }
    l.maybe("cutoff_len", job.count("train.seq_len"));
    l.put(
        "per_device_train_batch_size",
        job.count("train.micro_batch_size").unwrap_or(1),
    );
    l.put(
        "gradient_accumulation_steps",
        job.count("train.gradient_accumulation_steps").unwrap_or(1),
    );
    l.maybe("optim", optim_name(&job.word("train.optimizer")));
    if job.given("train.clip_grad_norm").is_some() {
        l.maybe("max_grad_norm", job.number("train.clip_grad_norm"));
    }
    let precision = job.word("train.precision");
    l.put("bf16", precision == "bf16-mixed");
    l.put("fp16", precision == "fp16-mixed");
    if precision == "bf16" {
        l.put("pure_bf16", true);
    }
    l.put(
        "disable_gradient_checkpointing",
        job.word("train.activation_checkpointing") == "none",
    );
    let reentrant = match job.given("train.checkpoint_reentrant") {
        Some(_) => job.flag("train.checkpoint_reentrant"),
        None => !job.stack().transformers_5(),
    };
    l.put("use_reentrant_gc", reentrant);
    l.put(
        "flash_attn",
        match job.word("train.attention").as_str() {
            "eager" => "disabled",
            "flash_attention_2" => "fa2",
            _ => "sdpa",
        },
    );
    if job.word("train.loss") == "fused" {
        l.put("enable_liger_kernel", true);
    }
    if job.given("train.loading").is_some() && job.word("train.loading") == "to" {
        l.put("low_cpu_mem_usage", false);
    }
    l.put("output_dir", "out");
    l.raw("# your data:\ndataset: identity\ntemplate: default");
    Ok(Written {
        files: vec![File {
            name: "llamafactory.yaml".into(),
            text: l.end(),
            what: "the configuration".into(),
        }],
        command: Some("llamafactory-cli train llamafactory.yaml".into()),
        ..Written::default()
    })
}
