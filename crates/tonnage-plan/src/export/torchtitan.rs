//! torchtitan's TOML (read at source: torchtitan 0.2.2, torchtitan/config/job_config.py for names and defaults,
//! distributed/utils.py `maybe_enable_amp`; later versions configure in Python).
//!
//! The rules, on one device: weights in `training.dtype` under autocast to `mixed_precision_param`; batches of `global_batch_size` are
//! accumulated; clipping at 1 unless `max_norm` is 0; checkpointing is non-reentrant, and `selective` unless said otherwise, whose choice
//! of operators is torchtitan's own and not simulated. The models are torchtitan's own code, which every output says.

use super::lines::number;
use super::source::{Source, text};
use super::{File, Options, Written, block};
use std::fmt::Write as _;
use tonnage_core::Job;
use tonnage_core::doc::{Diagnostic, Doc, Value};

const MODELS: &[(&str, &str, &str)] = &[
    ("llama3", "8B", "meta-llama/Llama-3.1-8B"),
    ("llama3", "70B", "meta-llama/Llama-3.1-70B"),
    ("llama3", "405B", "meta-llama/Llama-3.1-405B"),
    ("qwen3", "0.6B", "Qwen/Qwen3-0.6B"),
    ("qwen3", "1.7B", "Qwen/Qwen3-1.7B"),
    ("qwen3", "4B", "Qwen/Qwen3-4B"),
    ("qwen3", "8B", "Qwen/Qwen3-8B"),
    ("qwen3", "14B", "Qwen/Qwen3-14B"),
    ("qwen3", "32B", "Qwen/Qwen3-32B"),
    ("qwen3", "30B-A3B", "Qwen/Qwen3-30B-A3B"),
    ("qwen3", "235B-A22B", "Qwen/Qwen3-235B-A22B"),
];
const IMPLEMENTATIONS: &[(&str, &str)] = &[
    ("fused", "adamw_fused"),
    ("foreach", "adamw_foreach"),
    ("for-loop", "adamw_forloop"),
];

pub(super) fn is(doc: &Doc) -> bool {
    let table = |k: &str| doc.root.get(k).filter(|n| n.table().is_some());
    table("model").is_some_and(|m| m.get("flavor").is_some())
        || table("training").is_some() && table("parallelism").is_some()
}

pub(super) fn read(doc: &Doc) -> Result<Job, Vec<Diagnostic>> {
    let mut s = Source::new(doc, "torchtitan", "torchtitan configuration");
    for (path, what) in [
        ("compile.enable", "torch.compile"),
        ("training.enable_cpu_offload", "offload to the host"),
        (
            "optimizer.early_step_in_backward",
            "the optimizer's step inside backward",
        ),
        ("model.converters", "float8 and other converters"),
        (
            "parallelism.expert_tensor_parallel_degree",
            "expert parallelism",
        ),
        ("profiling.enable_memory_snapshot", "a recording of memory"),
    ] {
        if path.ends_with("_degree") {
            s.one_device(path);
        } else {
            s.refuse(path, what);
        }
    }
    s.warn("validation.enable", "evaluation between the steps");
    for path in [
        "parallelism.data_parallel_replicate_degree",
        "parallelism.tensor_parallel_degree",
        "parallelism.pipeline_parallel_degree",
        "parallelism.context_parallel_degree",
        "parallelism.expert_parallel_degree",
        "parallelism.data_parallel_shard_degree",
    ] {
        let n = s.node(path);
        if let Some(Value::Int(i)) = n.map(|n| n.value.clone())
            && i > 1
        {
            let message = format!("`{path}` = {i}: several devices are not simulated");
            s.fail(n, "unsupported", message, "1, to see one device");
        }
    }
    s.leaves_out("torchtitan's own model code: the figures are those of transformers' modules in a hand-written loop");
    s.infer("train.loop", text("plain"), "torchtitan's own loop");
    let n = s.node("model.flavor");
    let (name, flavor) = (
        s.word("model.name").unwrap_or("llama3"),
        s.word("model.flavor"),
    );
    match MODELS
        .iter()
        .find(|(m, f, _)| *m == name && Some(*f) == flavor)
    {
        Some((_, _, id)) => s.set("model.id", text(*id), "model.flavor"),
        None => {
            let known: Vec<_> = MODELS.iter().map(|(m, f, _)| format!("{m} {f}")).collect();
            let message = format!(
                "the model {name} {} is none of those known here",
                flavor.unwrap_or("debugmodel")
            );
            s.fail(n, "unsupported", message, &known.join(", "));
        }
    }
    s.count_or("training.local_batch_size", "train.micro_batch_size", 8);
    s.count_or("training.seq_len", "train.seq_len", 2048);
    accumulation(&mut s);
    let clip = s.number("training.max_norm").unwrap_or(1.0);
    s.set(
        "train.clip_grad_norm",
        Value::Float(clip),
        "training.max_norm",
    );
    let weights = dtype(&mut s, "training.dtype", "fp32");
    let amp = dtype(&mut s, "training.mixed_precision_param", "bf16");
    let word = match (weights, amp) {
        ("fp32", "bf16") => "bf16-mixed",
        ("bf16", "bf16") => {
            s.infer(
                "model.dtype",
                text("bf16"),
                "weights in bf16 under autocast",
            );
            "bf16-mixed"
        }
        (w, _) => w,
    };
    s.set(
        "train.precision",
        text(word),
        "training.mixed_precision_param",
    );
    let n = s.node("optimizer.name");
    if let Some(w) = s
        .word("optimizer.name")
        .filter(|w| !["Adam", "AdamW"].contains(w))
    {
        s.fail(
            n,
            "unsupported",
            format!("the optimizer `{w}` is not simulated"),
            "AdamW",
        );
    }
    let path = "optimizer.implementation";
    let how = s.word(path).unwrap_or("fused");
    match IMPLEMENTATIONS.iter().find(|(t, _)| *t == how) {
        Some((_, ours)) => s.set("train.optimizer", text(*ours), path),
        None => s.fail(
            n,
            "bad-value",
            format!("`implementation` is {how}"),
            "fused, foreach or for-loop",
        ),
    }
    let n = s.node("activation_checkpoint.mode");
    let path = "activation_checkpoint.mode";
    match s.word(path).unwrap_or("selective") {
        "none" => s.set("train.activation_checkpointing", text("none"), path),
        "full" => {
            s.set("train.activation_checkpointing", text("full"), path);
            s.infer(
                "train.checkpoint_reentrant",
                Value::Bool(false),
                "torchtitan's wrapper is not reentrant",
            );
        }
        w => {
            let message = format!(
                "`activation_checkpoint.mode` is {w} (the default where it is absent): torchtitan's own choice of what to keep is not simulated"
            );
            s.fail(n, "unsupported", message, "\"full\" or \"none\"");
        }
    }
    s.finish()
}

fn dtype(s: &mut Source, path: &'static str, default: &'static str) -> &'static str {
    let n = s.node(path);
    match s.word(path) {
        None => default,
        Some("bfloat16") => "bf16",
        Some("float32") => "fp32",
        Some(w) => {
            let message = format!("`{path}` is {w}");
            s.fail(n, "bad-value", message, "\"bfloat16\" or \"float32\"");
            default
        }
    }
}

fn accumulation(s: &mut Source) {
    let n = s.node("training.global_batch_size");
    let micro = s.job.count("train.micro_batch_size").unwrap_or(1).max(1);
    let steps = match n.map(|n| &n.value) {
        Some(Value::Int(i)) if *i > 0 => {
            let all = u64::try_from(*i).unwrap_or(u64::MAX);
            if !all.is_multiple_of(micro) {
                let message = format!("`global_batch_size` {all} is no multiple of {micro}");
                s.fail(
                    n,
                    "contradiction",
                    message,
                    "a multiple of `local_batch_size`",
                );
            }
            (all / micro).max(1)
        }
        _ => 1,
    };
    s.set(
        "train.gradient_accumulation_steps",
        Value::Int(steps.into()),
        "training.global_batch_size",
    );
}

pub(super) fn write(job: &Job, _: &Options) -> Result<Written, Vec<Diagnostic>> {
    let no = |key: &str, value: String, help: &str| {
        vec![
            Diagnostic::error(
                "cannot-express",
                format!("`{key}` = {value} cannot be said in a file for torchtitan"),
            )
            .help(help),
        ]
    };
    let id = job.word("model.id");
    let Some((name, flavor, id)) = MODELS.iter().find(|(_, _, m)| *m == id) else {
        let known: Vec<_> = MODELS.iter().map(|(_, _, m)| *m).collect();
        return Err(no(
            "model.id",
            id,
            &format!("known are {}", known.join(", ")),
        ));
    };
    let ours = job.word("train.optimizer");
    let Some((implementation, _)) = IMPLEMENTATIONS.iter().find(|(_, o)| *o == ours) else {
        return Err(no(
            "train.optimizer",
            ours,
            "AdamW can, in its three implementations",
        ));
    };
    let mode = job.word("train.activation_checkpointing");
    if mode == "selective" {
        return Err(no(
            "train.activation_checkpointing",
            mode,
            "none and full can",
        ));
    }
    let precision = job.word("train.precision");
    let (weights, amp) = match precision.as_str() {
        "bf16-mixed" if job.word("model.dtype") == "bf16" => ("bfloat16", "bfloat16"),
        "bf16-mixed" => ("float32", "bfloat16"),
        "bf16" => ("bfloat16", "float32"),
        _ => ("float32", "float32"),
    };
    let micro = job.count("train.micro_batch_size").unwrap_or(1);
    let steps = job.count("train.gradient_accumulation_steps").unwrap_or(1);
    let clip = match job.given("train.clip_grad_norm") {
        Some(_) => job.number("train.clip_grad_norm").unwrap_or(1.0),
        None => 1.0,
    };
    let folder = id.rsplit('/').next().unwrap_or(id);
    let mut t = format!(
        "# Configuration for torchtitan 0.2.2\n{}",
        block::write(job, &[])
    );
    let _ = write!(
        t,
        "[model]\nname = \"{name}\"\nflavor = \"{flavor}\"\nhf_assets_path = \"./assets/hf/{folder}\"\n\n\
         [optimizer]\nname = \"AdamW\"\nimplementation = \"{implementation}\"\n\n\
         [training]\nlocal_batch_size = {micro}\nglobal_batch_size = {}\nseq_len = {}\nmax_norm = {}\ndtype = \"{weights}\"\nmixed_precision_param = \"{amp}\"\n\n\
         [parallelism]\ndata_parallel_shard_degree = 1\n\n\
         [compile]\nenable = false\n\n\
         [activation_checkpoint]\nmode = \"{mode}\"\n",
        micro.saturating_mul(steps),
        job.count("train.seq_len").unwrap_or(2048),
        number(clip),
    );
    Ok(Written {
        files: vec![File {
            name: "torchtitan.toml".into(),
            text: t,
            what: "the configuration".into(),
        }],
        command: Some(
            "torchrun --nproc-per-node 1 -m torchtitan.train --job.config_file torchtitan.toml"
                .into(),
        ),
        ..Written::default()
    })
}
