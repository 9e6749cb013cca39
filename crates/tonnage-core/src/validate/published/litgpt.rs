//! Lightning-AI/litgpt, config_hub/finetune/README.md (v0.5.0): `max_memory_allocated() / 1e9` after litgpt/finetune/lora.py or full.py
//! on Alpaca-2k, samples cut at 512 tokens. The peak is taken at a micro-batch of 512 tokens.

use super::{Predicted, Why, device, number, text};
use crate::validate::torch_run::figures;
use serde_json::{Value, json};
use std::rc::Rc;
use tonnage_model::arch::{self, Batch, Head};
use tonnage_model::stack::Version;
use tonnage_model::{Attention, Run, RunOptions, Stack};
use tonnage_sim::context::{Accumulate, DeviceModel};
use tonnage_sim::optim::{self, OptimizerKind};
use tonnage_sim::timeline::{Category, Phase};
use tonnage_sim::{Cx, OpId, ScalarType, Shape, Tensor, backward, ops};

/// `lm_head_chunk_size` of lora.py and the chunk of the loss.
const CHUNK: u64 = 128;

/// LitGPT's fields of a model, from its configuration file.
fn fields(hf: &Value, r: &Value) -> Result<Value, Why> {
    let n = |names: &[&str]| names.iter().find_map(|k| number(hf, k));
    let need = |names: &[&str]| {
        n(names).ok_or_else(|| format!("no `{}` in the model's configuration", names[0]))
    };
    let family = text(hf, "model_type");
    let (rms, mlp, parallel, shared) = match family {
        "llama" | "mistral" | "phi3" => (true, "llama", false, false),
        "gemma" => (true, "gemma", false, false),
        "gpt_neox" => (false, "neox", true, false),
        "phi" | "falcon" => (false, "neox", true, true),
        f => return Err(format!("litgpt's {f} models are not simulated")),
    };
    let (d, h) = (need(&["hidden_size"])?, need(&["num_attention_heads"])?);
    let groups = if family == "falcon" {
        1
    } else {
        n(&["num_key_value_heads"]).unwrap_or(h)
    };
    let head = n(&["head_dim"]).unwrap_or(d / h.max(1));
    let part = hf
        .get("rotary_pct")
        .or(hf.get("partial_rotary_factor"))
        .and_then(Value::as_f64)
        .unwrap_or(1.0);
    let seq = number(r, "seq_len").ok_or("no length")?;
    let full = text(r, "method") == "full";
    let on = |name: &str| {
        r["targets"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|t| t == name)
    };
    let lora = json!({
        "r": number(r, "rank").unwrap_or(0),
        // gemma's files say 0.1, all others 0.05: a mask is a mask
        "dropout": 0.05,
        "qkv": [on("q"), on("k"), on("v")],
        "projection": on("o"), "mlp": on("mlp"), "head": on("head"),
    });
    Ok(json!({
        "padded_vocab_size": need(&["vocab_size"])?, "n_embd": d, "n_layer": need(&["num_hidden_layers"])?,
        "n_head": h, "n_query_groups": groups, "head_size": head, "rope_n_elem": (part * head as f64) as u64,
        "intermediate_size": n(&["intermediate_size"]).unwrap_or(4 * d),
        "bias": matches!(family, "gpt_neox" | "phi"), "lm_head_bias": family == "phi",
        "rms_norm": rms, "add_unit_offset": family == "gemma", "mlp": mlp,
        "parallel_residual": parallel, "shared_attention_norm": shared, "scale_embeddings": family == "gemma",
        "max_seq_length": seq, "chunk": if full { 0 } else { CHUNK },
        "lora": if full { Value::Null } else { lora }, "nf4": text(r, "method") == "qlora",
    }))
}

/// `chunked_cross_entropy`, each chunk without reduction, over (B, T - 1) targets.
fn loss(cx: &Cx, logits: &[Tensor], b: u64, t: u64) -> Tensor {
    let v = logits[0].size(-1);
    let targets = |n: u64| cx.empty(OpId::CLONE, Shape::new(&[n]), ScalarType::I64);
    let flat: Vec<Tensor> = if logits.len() > 1 {
        logits
            .iter()
            .map(|l| ops::reshape(cx, l, Shape::new(&[l.size(0) * l.size(1), v])))
            .collect()
    } else {
        let whole = ops::reshape(cx, &logits[0], Shape::new(&[b * (t - 1), v]));
        let n = whole.size(0);
        let sizes: Vec<u64> = (0..n.div_ceil(CHUNK))
            .map(|i| CHUNK.min(n - i * CHUNK))
            .collect();
        ops::split(cx, &whole, &sizes, 0).into_iter().collect()
    };
    let losses: Vec<Tensor> = flat
        .iter()
        .map(|l| ops::cross_entropy(cx, l, &targets(l.size(0)), ops::Reduction::None))
        .collect();
    let all = ops::cat(cx, &losses.iter().collect::<Vec<_>>(), 0);
    let sum = ops::sum(cx, &all, &[], false);
    ops::div_scalar(cx, &sum)
}

pub fn predict(r: &Value, oom: Option<f64>) -> Result<Predicted, Why> {
    let id = text(r, "config_id");
    let hf = tonnage_catalog::model_config(&id.replacen("--", "/", 1))
        .ok_or_else(|| format!("no configuration of `{id}`"))?;
    let hf: Value = serde_json::from_str(hf).map_err(|e| e.to_string())?;
    let config = fields(&hf, r)?;
    let method = text(r, "method");
    let (b, t) = (
        number(r, "batch").ok_or("no batch")?,
        number(r, "seq_len").ok_or("no length")?,
    );
    let kernel = device::named(text(r, "gpu")).ok_or("unknown GPU")?;
    let stack = Stack {
        bitsandbytes: Version(0, 42, 0),
        ..Stack::default()
    };
    let built =
        arch::build("litgpt", &config, Head::CausalLm, &stack).map_err(|e| e.to_string())?;
    let cx = Cx::new(DeviceModel { kernel }, Accumulate::InPlaceIfSole);
    let options = RunOptions {
        dtype: ScalarType::BF16,
        attention: Attention::Sdpa,
        training: true,
        use_cache: false,
        checkpoint: None,
        loss: tonnage_model::Loss::default(),
        stack,
    };
    cx.mark(-1, 0, Phase::Load);
    let mut run = Run::new(&cx, built.net, options);
    run.load_all();
    if method != "full" {
        // mark_only_lora_as_trainable; the StableEmbedding of packed models comes after it and trains, outside the optimizer
        let stable = |name: &str| method == "qlora" && name.contains("transformer.wte");
        for id in run.net.preorder() {
            let module = run.net.module(id);
            let keep = stable(&module.name);
            for (local, p) in module.params.clone() {
                if !local.contains("lora_") && !keep {
                    let t = run.weight(p).detach();
                    run.set_weight(p, Some(t));
                }
            }
        }
    }
    let run = Rc::new(run);
    let params: Vec<Tensor> = run
        .trainable_named()
        .into_iter()
        .filter(|p| method == "full" || p.name.contains("lora_"))
        .map(|p| p.tensor)
        .collect();
    let name = if method == "qlora" {
        "paged_adamw32bit"
    } else {
        "adamw_foreach"
    };
    let kind: OptimizerKind = name.parse().map_err(|_| "optimizer")?;
    let mut opt = optim::create(kind, &cx, &params);
    let mut contexts: Vec<Tensor> = vec![];
    let mut held: (Vec<Tensor>, Option<Tensor>) = (vec![], None);
    for step in 0..2 {
        for micro in 0..number(r, "grad_accum").unwrap_or(1).min(2) as u32 {
            cx.mark(step, micro, Phase::Forward);
            let tokens = || {
                let x = cx.empty(OpId::INPUT, Shape::new(&[b, t]), ScalarType::I64);
                cx.tag(&x, Category::Inputs);
                x
            };
            let (ids, targets) = (tokens(), tokens());
            let out = built.arch.forward(
                &run,
                &Batch {
                    input_ids: Some(ids.clone()),
                    ..Batch::default()
                },
            );
            // fabric's precision plugin turns what the model returns into fp32
            let low: Vec<Tensor> = out.logits.into_iter().chain(out.rest).collect();
            let mut logits: Vec<Tensor> = low
                .iter()
                .map(|l| ops::to_dtype(&cx, l, ScalarType::F32))
                .collect();
            drop(low);
            if let Some(last) = logits.pop() {
                let n = last.size(1) - 1;
                logits.push(ops::slice(&cx, &last, 1, 0, n));
            }
            held.0 = logits;
            // the old logits held the old graph
            contexts = built.arch.contexts();
            let l = loss(&cx, &held.0, b, t);
            held.1 = Some(l.clone());
            cx.mark(step, micro, Phase::Backward);
            let divided = ops::div_scalar(&cx, &l);
            drop(l);
            backward(&cx, &divided);
            drop((divided, ids, targets));
        }
        cx.mark(step, 0, Phase::Optimizer);
        opt.step(&cx, &params);
        optim::zero_grad(&cx, &params, true);
    }
    drop(contexts);
    cx.mark(2, 0, Phase::End);
    let timeline = cx.take_timeline();
    cx.close();
    let peak = figures(&timeline).peak_allocated as f64;
    Ok(Predicted {
        value: oom.map_or(peak, |gb| f64::from(peak <= gb * 1e9)),
        decimals: 2,
    })
}

/// Tokens of `litgpt generate`'s default prompt, "What food do llamas eat?".
const PROMPT: u64 = 7;

/// tutorials/quantize.md: `litgpt generate --max_new_tokens 256`, the peak of the whole process. The caches are buffers of the prompt's
/// and the new tokens' length.
pub fn generate(r: &Value) -> Result<Predicted, Why> {
    let dtype = match text(r, "dtype") {
        "none quant, 32-true" => ScalarType::F32,
        "none quant, bf16-true" => ScalarType::BF16,
        d => {
            return Err(format!(
                "{d}: Fabric's loading of packed weights is not modelled"
            ));
        }
    };
    let id = text(r, "config_id");
    let hf = tonnage_catalog::model_config(&id.replacen("--", "/", 1))
        .ok_or_else(|| format!("no configuration of `{id}`"))?;
    let hf: Value = serde_json::from_str(hf).map_err(|e| e.to_string())?;
    let longest = PROMPT + 256;
    let mut job = r.clone();
    job["seq_len"] = longest.into();
    job["method"] = "full".into();
    let config = fields(&hf, &job)?;
    let kernel = device::named(text(r, "gpu")).unwrap_or(device::UNNAMED);
    let stack = Stack::default();
    let built =
        arch::build("litgpt", &config, Head::CausalLm, &stack).map_err(|e| e.to_string())?;
    let cx = Cx::new(DeviceModel { kernel }, Accumulate::InPlaceIfSole);
    let options = RunOptions {
        dtype,
        attention: Attention::Sdpa,
        training: false,
        use_cache: false,
        checkpoint: None,
        loss: tonnage_model::Loss::default(),
        stack,
    };
    cx.mark(-1, 0, Phase::Load);
    let run = Rc::new(Run::load(&cx, built.net, options));
    // `set_kv_cache`: keys and values of every layer, and the mask of all positions
    let n = |k: &str| number(&config, k).unwrap_or(0);
    let cache = Shape::new(&[1, n("n_query_groups"), longest, n("head_size")]);
    let caches: Vec<Tensor> = (0..2 * n("n_layer"))
        .map(|_| cx.empty(OpId::ZEROS, cache, dtype))
        .collect();
    let mask = cx.empty(
        OpId::FULL,
        Shape::new(&[longest, longest]),
        ScalarType::Bool,
    );
    cx.mark(0, 0, Phase::Prefill);
    let ids = cx.empty(OpId::INPUT, Shape::new(&[1, PROMPT]), ScalarType::I64);
    let batch = Batch {
        input_ids: Some(ids),
        ..Batch::default()
    };
    let out = cx.with_grad(false, || built.arch.forward(&run, &batch));
    cx.mark(1, 0, Phase::End);
    drop((out, batch, caches, mask));
    let timeline = cx.take_timeline();
    cx.close();
    Ok(Predicted {
        value: figures(&timeline).peak_allocated as f64,
        decimals: 2,
    })
}
