//! Files that stand beside a trainer's and hold part of a job: DeepSpeed's JSON and accelerate's configuration.
//!
//! Read at source: DeepSpeed 0.19 (runtime/config.py, runtime/constants.py), accelerate 1.15 (commands/config/config_args.py
//! `ClusterConfig`, which refuses unknown keys). DeepSpeed's `bf16` and `fp16` keep fp32 master weights in flat buffers, and its stages
//! above 0 shard them: neither is simulated, so both are refused, in reading and in writing.

use super::lines::Lines;
use super::source::{Source, text};
use super::{File, Options, Written};
use tonnage_core::Job;
use tonnage_core::doc::{Diagnostic, Doc, Value};

/// What a DeepSpeed file can say.
pub(super) const DEEPSPEED: &[&str] = &[
    "train.micro_batch_size",
    "train.gradient_accumulation_steps",
    "train.clip_grad_norm",
    "train.precision",
];
/// What an accelerate file can say.
pub(super) const ACCELERATE: &[&str] = &["train.precision"];

pub(super) fn is_deepspeed(doc: &Doc) -> bool {
    let has = |k: &str| doc.root.get(k).is_some();
    has("zero_optimization") || has("train_micro_batch_size_per_gpu") && !has("model")
}

pub(super) fn read_deepspeed(doc: &Doc) -> Result<Job, Vec<Diagnostic>> {
    let mut s = Source::new(doc, "DeepSpeed", "DeepSpeed configuration");
    for (path, what) in [
        ("zero_optimization.stage", "ZeRO"),
        (
            "zero_optimization.offload_optimizer",
            "offload of the optimizer",
        ),
        ("zero_optimization.offload_param", "offload of parameters"),
        ("bf16.enabled", "DeepSpeed's bf16 with fp32 master weights"),
        (
            "bfloat16.enabled",
            "DeepSpeed's bf16 with fp32 master weights",
        ),
        ("fp16.enabled", "DeepSpeed's fp16 with fp32 master weights"),
        ("tensor_parallel.autotp_size", "tensor parallelism"),
        (
            "activation_checkpointing.cpu_checkpointing",
            "offload of activations",
        ),
        ("optimizer", "DeepSpeed's own optimizers"),
    ] {
        s.refuse(path, what);
    }
    let micro = s.count("train_micro_batch_size_per_gpu");
    if let Some(m) = micro {
        s.set(
            "train.micro_batch_size",
            Value::Int(m.into()),
            "train_micro_batch_size_per_gpu",
        );
    }
    let all = s.count("train_batch_size");
    match (s.count("gradient_accumulation_steps"), all, micro) {
        (Some(n), ..) => s.set(
            "train.gradient_accumulation_steps",
            Value::Int(n.into()),
            "gradient_accumulation_steps",
        ),
        (None, Some(a), Some(m)) if m > 0 => s.set(
            "train.gradient_accumulation_steps",
            Value::Int((a / m).max(1).into()),
            "train_batch_size",
        ),
        _ => {}
    }
    if let Some(c) = s.number("gradient_clipping") {
        s.set("train.clip_grad_norm", Value::Float(c), "gradient_clipping");
    }
    s.infer(
        "train.precision",
        text("fp32"),
        "neither bf16 nor fp16 is enabled",
    );
    s.finish()
}

pub(super) fn write_deepspeed(job: &Job, _: &Options) -> Result<Written, Vec<Diagnostic>> {
    let mut file = serde_json::json!({
        "train_micro_batch_size_per_gpu": job.count("train.micro_batch_size").unwrap_or(1),
        "gradient_accumulation_steps": job.count("train.gradient_accumulation_steps").unwrap_or(1),
        "zero_optimization": {"stage": 0},
        "bf16": {"enabled": false},
        "fp16": {"enabled": false},
    });
    if let (Some(_), Some(c)) = (
        job.given("train.clip_grad_norm"),
        job.number("train.clip_grad_norm"),
    ) {
        file["gradient_clipping"] = c.into();
    }
    Ok(Written {
        files: vec![File {
            name: "ds_config.json".into(),
            text: format!("{file:#}\n"),
            what: "DeepSpeed's configuration, beside the trainer's file".into(),
        }],
        command: None,
        ..Written::default()
    })
}

pub(super) fn is_accelerate(doc: &Doc) -> bool {
    let has = |k: &str| doc.root.get(k).is_some();
    has("compute_environment") || has("distributed_type") && has("num_processes")
}

pub(super) fn read_accelerate(doc: &Doc) -> Result<Job, Vec<Diagnostic>> {
    let mut s = Source::new(doc, "accelerate", "accelerate configuration");
    for (path, what) in [
        ("use_cpu", "a run on the processor"),
        ("fsdp_config", "FSDP"),
        ("deepspeed_config", "DeepSpeed's engine"),
        ("megatron_lm_config", "Megatron-LM"),
        ("parallelism_config", "parallel training"),
        ("fp8_config", "fp8 training"),
        ("dynamo_config", "torch.compile"),
    ] {
        s.refuse(path, what);
    }
    let n = s.node("distributed_type");
    if let Some(w) = s.word("distributed_type")
        && w != "NO"
        && w != "no"
        && !(w == "MULTI_GPU" && s.count("num_processes") == Some(1))
    {
        let message = format!("`distributed_type` = {w} is not simulated");
        s.fail(n, "unsupported", message, "'NO', to see one device");
    }
    s.count("num_processes");
    let n = s.node("mixed_precision");
    let word = match n.map(|n| &n.value) {
        // PyYAML makes a switch of a bare `no`
        None | Some(Value::Bool(false)) => "fp32",
        Some(Value::Text(t)) => match t.as_str() {
            "no" => "fp32",
            "bf16" => "bf16-mixed",
            "fp16" => "fp16-mixed",
            w => {
                let message = format!("`mixed_precision` = {w} is not simulated");
                s.fail(n, "unsupported", message, "'no', bf16 or fp16");
                "fp32"
            }
        },
        Some(v) => {
            let message = format!("`mixed_precision` is {}", v.shown());
            s.fail(n, "bad-value", message, "'no', bf16 or fp16");
            "fp32"
        }
    };
    s.set("train.precision", text(word), "mixed_precision");
    s.finish()
}

pub(super) fn write_accelerate(job: &Job, _: &Options) -> Result<Written, Vec<Diagnostic>> {
    let mut l = Lines::plain("Configuration for accelerate 1.15");
    l.put("compute_environment", "LOCAL_MACHINE");
    l.put("distributed_type", "NO");
    l.put(
        "mixed_precision",
        match job.word("train.precision").as_str() {
            "bf16-mixed" => "bf16",
            "fp16-mixed" => "fp16",
            _ => "no",
        },
    );
    l.put("num_machines", 1_u64);
    l.put("num_processes", 1_u64);
    l.put("machine_rank", 0_u64);
    l.put("use_cpu", false);
    l.put("debug", false);
    Ok(Written {
        files: vec![File {
            name: "accelerate.yaml".into(),
            text: l.end(),
            what: "accelerate's configuration, beside the trainer's file".into(),
        }],
        command: Some("accelerate launch --config_file accelerate.yaml TRAIN.py".into()),
        ..Written::default()
    })
}
