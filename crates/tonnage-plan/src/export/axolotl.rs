//! axolotl's YAML (read at source: axolotl 0.18 and 0.19, src/axolotl/utils/schemas/{config,model,peft,training}.py for names and defaults,
//! utils/config/__init__.py `resolve_dtype`, `normalize_config`, loaders/model.py for what is in memory).
//!
//! The rules: `bf16` loads the weights in bf16 *and* runs under autocast; `bfloat16` loads them so without autocast; checkpointing is
//! reentrant unless the kwargs say otherwise; k-bit preparation is undone at once (norms, embeddings and head go back to the compute
//! type); adapters are fp32 unless `peft_autocast_adapter_dtype: false`. Fully trained models whose attention is not flash keep norms and
//! embeddings in fp32, which is not simulated and said so.

use super::hf::{
    checkpointing, load_in_bits, lora_lines, optim, optim_name, precision, regime, trainer,
};
use super::lines::{Lines, model};
use super::source::{Source, text};
use super::{File, Options, Written};
use tonnage_core::Job;
use tonnage_core::doc::{Diagnostic, Doc, Value};

pub(super) fn is(doc: &Doc) -> bool {
    let has = |k: &str| doc.root.get(k).is_some();
    has("base_model") && !has("model_name_or_path")
}

pub(super) fn read(doc: &Doc) -> Result<Job, Vec<Diagnostic>> {
    let mut s = Source::new(doc, "axolotl", "axolotl configuration");
    trainer(&mut s);
    for (path, what) in [
        ("sample_packing", "packing of samples into one row"),
        ("rl", "preference training"),
        ("reward_model", "reward models"),
        ("unfrozen_parameters", "freezing by names"),
        (
            "lora_modules_to_save",
            "modules trained whole beside adapters",
        ),
        ("lora_target_parameters", "adapters of parameters"),
        ("relora", "ReLoRA"),
        ("gptq", "GPTQ"),
        ("fsdp_config", "FSDP"),
        ("fp8", "fp8 training"),
        ("qat", "quantisation-aware training"),
        (
            "selective_checkpointing",
            "axolotl's selective checkpointing",
        ),
        ("layer_offloading", "offload of layers"),
        ("tiled_mlp", "a tiled MLP"),
        ("use_tensorboard_profiler", "a profiler"),
        ("lora_mlp_kernel", "axolotl's fused adapter kernels"),
        ("lora_qkv_kernel", "axolotl's fused adapter kernels"),
        ("lora_o_kernel", "axolotl's fused adapter kernels"),
        ("torchao", "torchao"),
        ("chunked_cross_entropy", "axolotl's chunked loss"),
        ("batch_flattening", "a batch without padding"),
        ("dynamic_checkpoint", "axolotl's dynamic checkpointing"),
        ("lisa_n_layers", "LISA"),
        ("flash_attn_fuse_mlp", "a fused MLP"),
        ("flash_attn_cross_entropy", "flash-attn's loss"),
        ("flash_attn_rms_norm", "flash-attn's norm"),
        ("fused_attn_kernel", "a fused attention"),
        ("s2_attention", "shifted attention"),
        ("ring_attn_func", "ring attention"),
        (
            "peft_use_rslora",
            "rank-stabilised scaling under another name",
        ),
        ("peft_layers_to_transform", "adapters on some layers"),
        (
            "peft_trainable_token_indices",
            "trained tokens beside adapters",
        ),
        ("lora_rank_pattern", "ranks by module"),
        ("lora_embedding_kernel", "axolotl's fused adapter kernels"),
        ("quantization", "quantisation-aware training"),
        (
            "model_quantization_config",
            "a quantisation of the model's own",
        ),
        ("quantize_moe_experts", "quantised experts"),
        ("use_onebitllms", "one-bit models"),
        ("deepcompile", "DeepCompile"),
        ("resize_token_embeddings_to_32x", "a resized vocabulary"),
        ("shrink_embeddings", "a resized vocabulary"),
        ("freeze_mm_modules", "freezing by kind"),
    ] {
        s.refuse(path, what);
    }
    for path in [
        "tensor_parallel_size",
        "context_parallel_size",
        "sequence_parallel_degree",
        "expert_parallel_size",
        "dp_shard_size",
        "dp_replicate_size",
    ] {
        s.one_device(path);
    }
    for (path, what) in [
        ("use_kernels", "the hub's kernels"),
        ("tokens", "tokens that are added to the vocabulary"),
        (
            "added_tokens_overrides",
            "tokens that are added to the vocabulary",
        ),
        ("evals_per_epoch", "evaluation between the steps"),
        ("eval_steps", "evaluation between the steps"),
        ("gc_steps", "the cache given back between steps"),
        ("embeddings_skip_upcast", "embeddings left in their type"),
        ("large_head_attention", "another attention for wide heads"),
    ] {
        s.warn(path, what);
    }
    s.model("base_model", "revision_of_model");
    s.count_or("sequence_len", "train.seq_len", 512);
    batch(&mut s);
    optim(&mut s, "optimizer");
    if let Some(x) = s.number("max_grad_norm") {
        s.set("train.clip_grad_norm", Value::Float(x), "max_grad_norm");
    }
    let weights = dtypes(&mut s);
    checkpointing(&mut s, false, Some(true));
    attention(&mut s);
    let adapter = adapters(&mut s, weights);
    // under `accelerate launch`, which `axolotl train` calls, axolotl gives no device map; packed weights get one from transformers
    let packed = s.job.given("quant.format").is_some();
    s.infer(
        "train.loading",
        text(if packed { "device_map" } else { "to" }),
        "axolotl under accelerate: a device map only for packed weights",
    );
    if !adapter && s.job.word("train.attention") != "flash_attention_2" && weights != "fp32" {
        s.leaves_out(
            "norms and embeddings in fp32: axolotl keeps them so where the whole model is trained without flash attention",
        );
    }
    losses(&mut s);
    s.finish()
}

/// `micro_batch_size`, and two of accumulation, batch and their product.
fn batch(s: &mut Source) {
    s.count_or("micro_batch_size", "train.micro_batch_size", 1);
    let micro = s.job.count("train.micro_batch_size").unwrap_or(1).max(1);
    match (
        s.count("gradient_accumulation_steps"),
        s.count("batch_size"),
    ) {
        (None, Some(all)) => s.set(
            "train.gradient_accumulation_steps",
            Value::Int((all / micro).max(1).into()),
            "batch_size",
        ),
        _ => s.count_or(
            "gradient_accumulation_steps",
            "train.gradient_accumulation_steps",
            1,
        ),
    }
}

/// The type of the loaded weights; sets the precision.
fn dtypes(s: &mut Source) -> &'static str {
    let n = s.node("bf16");
    let auto = matches!(n.map(|n| &n.value), Some(Value::Text(t)) if t == "auto");
    let full = matches!(n.map(|n| &n.value), Some(Value::Text(t)) if t == "full");
    let (fp16, pure_bf16, pure_fp16) = (s.on("fp16"), s.on("bfloat16"), s.on("float16"));
    let float32 = s.on("float32");
    // absent is `auto`, which is on where the card has bf16, unless fp16 is asked for
    let bf16 = match n {
        None => !fp16 && !pure_bf16 && !pure_fp16 && !float32,
        Some(_) if auto => !fp16,
        Some(_) if full => true,
        Some(_) => s.on("bf16"),
    };
    if bf16 && (n.is_none() || auto) {
        s.job.notes.push(Diagnostic::note(
            "understood",
            "`bf16` is auto: on, as on every card since Ampere",
        ));
    }
    let (weights, amp) = if bf16 {
        ("bf16", Some("bf16"))
    } else if pure_bf16 {
        ("bf16", fp16.then_some("fp16"))
    } else if fp16 {
        ("fp16", Some("fp16"))
    } else if pure_fp16 || s.on("load_in_8bit") {
        ("fp16", None)
    } else {
        ("fp32", None)
    };
    let (p, stored) = precision(Some(weights), amp);
    s.set(
        "train.precision",
        text(p),
        if fp16 { "fp16" } else { "bf16" },
    );
    if let Some(w) = stored {
        s.infer(
            "model.dtype",
            text(w),
            "axolotl loads the weights in the compute type",
        );
    }
    weights
}

fn attention(s: &mut Source) {
    for (path, word) in [
        ("flash_attention", "flash_attention_2"),
        ("sdp_attention", "sdpa"),
        ("eager_attention", "eager"),
    ] {
        if s.on(path) {
            s.set("train.attention", text(word), path);
        }
    }
    for path in ["xformers_attention", "flex_attention", "sage_attention"] {
        s.refuse(path, "this attention");
    }
    let n = s.node("attn_implementation");
    match s.word("attn_implementation") {
        Some(w @ ("sdpa" | "eager" | "flash_attention_2")) => {
            s.set("train.attention", text(w), "attn_implementation");
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

fn adapters(s: &mut Source, weights: &'static str) -> bool {
    let n = s.node("adapter");
    let adapter = match s.word("adapter") {
        None => false,
        Some("lora" | "qlora") => true,
        Some(w) => {
            s.fail(
                n,
                "unsupported",
                format!("the adapter `{w}` is not simulated"),
                "lora or qlora",
            );
            true
        }
    };
    let qlora = s.word("adapter") == Some("qlora");
    let bits = load_in_bits(s, "axolotl undoes the preparation");
    let four = bits == Some(4);
    if qlora && !four {
        s.fail(
            n,
            "contradiction",
            "`adapter: qlora` needs `load_in_4bit: true`".into(),
            "axolotl says the same",
        );
    }
    if four {
        s.infer("quant.compute", text(weights), "axolotl's compute type");
        let double = s.switch("bnb_config_kwargs.bnb_4bit_use_double_quant");
        s.set(
            "quant.double",
            Value::Bool(double.unwrap_or(true)),
            "bnb_config_kwargs.bnb_4bit_use_double_quant",
        );
    }
    if !adapter {
        for path in [
            "lora_r",
            "lora_alpha",
            "lora_dropout",
            "lora_target_modules",
            "lora_target_linear",
        ] {
            s.node(path);
        }
        return false;
    }
    match s.count("lora_r") {
        Some(r) => s.set("lora.r", Value::Int(r.into()), "lora_r"),
        None => s.fail(n, "missing", "`lora_r` is missing".into(), "give the rank"),
    }
    if let Some(a) = s.number("lora_alpha") {
        s.set("lora.alpha", Value::Float(a), "lora_alpha");
    }
    let dropout = s.number("lora_dropout").unwrap_or(0.0);
    s.set("lora.dropout", Value::Float(dropout), "lora_dropout");
    let linear = s.on("lora_target_linear");
    match s.node("lora_target_modules").map(|n| n.value.clone()) {
        Some(v) => s.set("lora.targets", v, "lora_target_modules"),
        None if linear => s.set("lora.targets", text("all-linear"), "lora_target_linear"),
        None => s.fail(
            n,
            "missing",
            "neither `lora_target_modules` nor `lora_target_linear` is given".into(),
            "lora_target_linear: true takes all linear layers",
        ),
    }
    let dora = s.on("peft_use_dora");
    s.set("lora.dora", Value::Bool(dora), "peft_use_dora");
    if s.switch("peft_autocast_adapter_dtype") == Some(false) {
        s.set(
            "lora.adapter_dtype",
            text("base"),
            "peft_autocast_adapter_dtype",
        );
    }
    if dropout == 0.0 && !dora {
        s.leaves_out(
            "axolotl's fused adapter kernels, which it turns on by itself where dropout is 0",
        );
    }
    true
}

fn losses(s: &mut Source) {
    let cut = s.on("cut_cross_entropy");
    if cut {
        s.set("train.loss", text("cut"), "cut_cross_entropy");
    }
    if s.on("liger_fused_linear_cross_entropy") && !cut {
        s.set(
            "train.loss",
            text("fused"),
            "liger_fused_linear_cross_entropy",
        );
    }
    let others = [
        "liger_rope",
        "liger_rms_norm",
        "liger_layer_norm",
        "liger_swiglu",
        "liger_glu_activation",
        "liger_cross_entropy",
    ];
    let on: Vec<_> = others.into_iter().filter(|k| s.on(k)).collect();
    if !on.is_empty() {
        s.leaves_out(format!("Liger's other kernels: {}", on.join(", ")));
    }
    s.node("plugins");
}

pub(super) fn write(job: &Job, _: &Options) -> Result<Written, Vec<Diagnostic>> {
    let mut l = Lines::new("Configuration for axolotl 0.18", job, &[]);
    l.maybe("base_model", model(job));
    if job.given("model.revision").is_some() {
        l.put("revision_of_model", job.word("model.revision"));
    }
    l.maybe("sequence_len", job.count("train.seq_len"));
    l.put(
        "micro_batch_size",
        job.count("train.micro_batch_size").unwrap_or(1),
    );
    l.put(
        "gradient_accumulation_steps",
        job.count("train.gradient_accumulation_steps").unwrap_or(1),
    );
    l.maybe("optimizer", optim_name(&job.word("train.optimizer")));
    // axolotl asks for one; no effect on memory
    l.put("learning_rate", 2e-4);
    if job.given("train.clip_grad_norm").is_some() {
        l.maybe("max_grad_norm", job.number("train.clip_grad_norm"));
    }
    let (weights, amp) = regime(job);
    l.put("bf16", amp == Some("bf16"));
    l.put("fp16", amp == Some("fp16"));
    match (weights, amp) {
        ("bf16", None) => l.put("bfloat16", true),
        ("fp16", None) => l.put("float16", true),
        // packed to eight bits, axolotl loads in fp16 whatever is asked for
        ("fp32", None) if job.word("quant.format") == "int8" => l.put("float16", true),
        ("fp32", None) => l.put("float32", true),
        _ => {}
    }
    l.put("attn_implementation", job.word("train.attention"));
    let full = job.word("train.activation_checkpointing") == "full";
    l.put("gradient_checkpointing", full);
    if full {
        // said even where it is the default, which differs from that of transformers 5
        let on = match job.given("train.checkpoint_reentrant") {
            Some(_) => job.flag("train.checkpoint_reentrant"),
            None => !job.stack().transformers_5(),
        };
        l.raw(&format!(
            "gradient_checkpointing_kwargs:\n  use_reentrant: {on}"
        ));
    }
    let quant = job.word("quant.format");
    if let Some(r) = job.count("lora.r") {
        l.put("adapter", if quant == "nf4" { "qlora" } else { "lora" });
        l.put("lora_r", r);
        lora_lines(job, &mut l, "lora_target_modules", false);
        l.put("peft_use_dora", job.flag("lora.dora"));
        if job.word("lora.adapter_dtype") == "base" {
            l.put("peft_autocast_adapter_dtype", false);
        }
    }
    match quant.as_str() {
        "nf4" => {
            l.put("load_in_4bit", true);
            if !job.flag("quant.double") {
                l.raw("bnb_config_kwargs:\n  bnb_4bit_use_double_quant: false");
            }
        }
        "int8" => l.put("load_in_8bit", true),
        _ => {}
    }
    match job.word("train.loss").as_str() {
        "fused" => {
            l.raw("plugins: [axolotl.integrations.liger.LigerPlugin]");
            l.put("liger_fused_linear_cross_entropy", true);
        }
        "cut" => {
            l.raw("plugins: [axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin]");
            l.put("cut_cross_entropy", true);
        }
        _ => {}
    }
    l.put("output_dir", "./out");
    l.raw("# your data:\ndatasets:\n  - path: DATASET\n    type: alpaca");
    Ok(Written {
        files: vec![File {
            name: "axolotl.yaml".into(),
            text: l.end(),
            what: "the configuration".into(),
        }],
        command: Some("axolotl train axolotl.yaml".into()),
        ..Written::default()
    })
}
