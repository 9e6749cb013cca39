//! What vLLM finds at start-up on a card, told as a [`Serving`]: weights, head room, the KV pool in blocks, tokens and requests, or its refusal
//! with what would resolve it.

use super::answer::{
    Cache, Chosen, Component, Fit, Refused, Remedy, SCHEMA, Serving, driver, exact, totals,
};
use super::command::vllm::Vllm;
use super::vllm::{self, Card, Model, Pool, Refusal, Settings, Startup};
use crate::error::CoreError;
use crate::verdict::{Device, Outcome};
use serde_json::{Value, json};

/// The version whose rules are modelled.
pub const VERSION: &str = "0.33.0";
const GIB: u64 = 1 << 30;

/// A start-up, resolved: every knob has its value.
#[derive(Clone, Debug)]
pub struct Start {
    pub model: Model,
    pub settings: Settings,
    pub card: Card,
    pub chosen: Vec<Chosen>,
}

/// The start-up's figures with the pool, or the refusal.
#[derive(Clone, Debug)]
pub struct Outcomes {
    pub startup: Startup,
    pub pool: Result<Pool, Refusal>,
}

impl Start {
    /// Runs load and profile, and divides what is left.
    ///
    /// # Errors
    /// What is not simulated, by name.
    pub fn run(&self) -> Result<Outcomes, CoreError> {
        let startup = vllm::start(&self.model, &self.settings, &self.card)?;
        let pool = vllm::outcome(&self.model, &self.settings, &self.card, &startup);
        Ok(Outcomes { startup, pool })
    }
}

/// Resolves a command line for a model's configuration and a card. Defaults by `get_batch_defaults` (`engine/arg_utils.py`): from 160 GiB
/// of device memory 16,384 tokens and 1,024 requests; from 70 GiB, but not on an A100 or a GB10, 8,192 and 1,024; else 2,048 and 256.
///
/// # Errors
/// A configuration that is none, and what is not modelled.
pub fn resolve(config: &Value, v: &Vllm, device: &Device) -> Result<Start, CoreError> {
    let mut config = config.clone();
    let visual = config.get("vision_config").is_some() || config.get("audio_config").is_some();
    if visual && !v.language_model_only {
        return Err(CoreError::Unsupported(
            "vLLM with the encoders of a multi-modal model; with --language-model-only it is estimated".into(),
        ));
    }
    if let Some(q) = &v.quantization
        && let Some(c) = config.as_object_mut()
    {
        let own = c.get("quantization_config");
        let method = own.and_then(|o| o["quant_method"].as_str());
        let same = method.is_some_and(|m| q == m || q.starts_with(&format!("{m}_")));
        match (method, q.as_str()) {
            (None, "fp8") => {
                c.insert("quantization_config".into(), json!({"quant_method": "fp8"}));
            }
            (Some(_), _) if same => {}
            (Some(m), _) => {
                return Err(CoreError::Invalid {
                    field: "--quantization".into(),
                    problem: format!("{q}, but the model's weights are quantised with {m}"),
                });
            }
            (None, other) => {
                return Err(CoreError::Unsupported(format!(
                    "vLLM with --quantization {other} of a model whose config.json does not say so"
                )));
            }
        }
    }
    let model = vllm::model::read(&config)?;
    if model.moe.is_some() && v.expert_parallel && v.tensor_parallel_size.unwrap_or(1) > 1 {
        return Err(CoreError::Unsupported(
            "vLLM with expert parallelism".into(),
        ));
    }
    if model.moe.is_some() && v.data_parallel_size.unwrap_or(1) > 1 {
        return Err(CoreError::Unsupported(
            "vLLM with data parallelism of a mixture of experts".into(),
        ));
    }
    let total = device.usable.expected;
    let context = device.overhead.context.expected;
    let cc = device.gpu.compute_capability;
    let card = Card {
        total,
        free: device.left().saturating_sub(context),
        hopper: cc.is_some_and(|c| c.major == 9),
        fp8: cc.is_some_and(|c| (c.major, c.minor) >= (8, 9)),
        multiprocessors: device.gpu.sm_count.unwrap_or(0).into(),
    };
    let name = device.gpu.name.to_lowercase();
    let gb10 = cc.is_some_and(|c| (c.major, c.minor) == (12, 1));
    let (tokens, seqs, tier) = if total >= 160 * GIB {
        (16_384, 1024, "default from 160 GiB of device memory")
    } else if total >= 70 * GIB && !name.contains("a100") && !gb10 {
        (8192, 1024, "default from 70 GiB of device memory")
    } else if total >= 70 * GIB {
        (2048, 256, "default for this card")
    } else {
        (2048, 256, "default below 70 GiB of device memory")
    };
    let mut chosen = Vec::new();
    let mut put = |name: &str, value: String, given: bool, default: &str| {
        chosen.push(Chosen {
            name: name.into(),
            value,
            from: if given {
                "given".into()
            } else {
                default.into()
            },
        });
    };
    let tp = v.tensor_parallel_size.unwrap_or(1);
    if model.heads > 0 && !model.heads.is_multiple_of(tp) {
        return Err(CoreError::Invalid {
            field: "--tensor-parallel-size".into(),
            problem: format!(
                "{tp} does not divide the model's {} attention heads",
                model.heads
            ),
        });
    }
    let longest = derived_length(&model);
    let len = v.max_model_len.unwrap_or(longest);
    if len > longest {
        return Err(CoreError::Invalid {
            field: "--max-model-len".into(),
            problem: format!("{len} is more than the model's {longest} tokens; vLLM refuses it"),
        });
    }
    let n = v.max_num_seqs.unwrap_or(seqs);
    let t = v
        .max_num_batched_tokens
        .unwrap_or(tokens.min(n.saturating_mul(len)));
    for (field, x, most) in [
        ("--max-num-seqs", n, 1 << 20),
        ("--max-num-batched-tokens", t, 1 << 24),
        ("--block-size", v.block_size.unwrap_or(16), 1 << 16),
        ("--tensor-parallel-size", tp, 1 << 10),
    ] {
        if x > most {
            return Err(CoreError::Invalid {
                field: field.into(),
                problem: format!("{x} is more than {most}"),
            });
        }
    }
    if t < n {
        return Err(CoreError::Invalid {
            field: "--max-num-batched-tokens".into(),
            problem: format!("{t} is less than --max-num-seqs {n}; vLLM refuses it"),
        });
    }
    let utilization = v.gpu_memory_utilization.unwrap_or(0.92);
    let kv = v.kv_cache_dtype.as_deref().unwrap_or("auto");
    let prefix = v.enable_prefix_caching.unwrap_or(model.state.is_none());
    put(
        "--tensor-parallel-size",
        tp.to_string(),
        v.tensor_parallel_size.is_some(),
        "default",
    );
    put(
        "--max-model-len",
        len.to_string(),
        v.max_model_len.is_some(),
        "the model's configuration (a tokenizer that allows less lowers it)",
    );
    put(
        "--max-num-seqs",
        n.to_string(),
        v.max_num_seqs.is_some(),
        tier,
    );
    put(
        "--max-num-batched-tokens",
        t.to_string(),
        v.max_num_batched_tokens.is_some(),
        tier,
    );
    put(
        "--gpu-memory-utilization",
        utilization.to_string(),
        v.gpu_memory_utilization.is_some(),
        "default",
    );
    put(
        "--kv-cache-dtype",
        kv.into(),
        v.kv_cache_dtype.is_some(),
        "default: the model's type",
    );
    put(
        "--block-size",
        v.block_size.map_or("engine's".into(), |b| b.to_string()),
        v.block_size.is_some(),
        "default: 16, more where states need it",
    );
    put(
        "--enable-prefix-caching",
        prefix.to_string(),
        v.enable_prefix_caching.is_some(),
        "default",
    );
    put(
        "--enforce-eager",
        v.enforce_eager.to_string(),
        v.enforce_eager,
        "default: compiled, with CUDA graphs",
    );
    put(
        "Inductor's cache",
        "cold".into(),
        false,
        "assumed: the model was not compiled on this machine before",
    );
    let settings = Settings {
        max_model_len: len,
        max_num_batched_tokens: t,
        max_num_seqs: n,
        gpu_memory_utilization: utilization,
        tensor_parallel_size: tp,
        block_size: v.block_size,
        kv_bytes: if kv.starts_with("fp8") { 1 } else { 2 },
        enable_prefix_caching: prefix,
        enforce_eager: v.enforce_eager,
        inductor_cache_warm: false,
        kv_cache_memory_bytes: v.kv_cache_memory_bytes,
    };
    Ok(Start {
        model,
        settings,
        card,
        chosen,
    })
}

/// The longest context that the configuration allows (`_get_and_verify_max_len`, `config/model.py`): a rope scaling that is not part of
/// the model's own length multiplies it.
fn derived_length(m: &Model) -> u64 {
    let own = m.max_position.max(1);
    let mut scaling = m.field("rope_scaling");
    if scaling.is_null() {
        scaling = m.field("rope_parameters");
    }
    let kind = scaling["rope_type"].as_str().or(scaling["type"].as_str());
    let factor = scaling["factor"]
        .as_f64()
        .filter(|f| f.is_finite() && *f >= 1.0);
    match (kind, factor) {
        (None | Some("default" | "su" | "longrope" | "llama3" | "mrope" | "proportional"), _) => {
            own
        }
        (Some("yarn"), Some(f)) => {
            let from = scaling["original_max_position_embeddings"]
                .as_u64()
                .unwrap_or(own);
            (from as f64 * f) as u64
        }
        (_, Some(f)) => (own as f64 * f) as u64,
        _ => own,
    }
}

/// The answer for a card.
///
/// # Errors
/// What is not simulated, by name.
pub fn answer(start: &Start, v: &Vllm, device: &Device) -> Result<Serving, CoreError> {
    let done = start.run()?;
    let (s, up) = (&start.settings, &done.startup);
    let groups = vllm::groups(&start.model, s, start.card.hopper);
    let block = vllm::kv::bytes_per_block(&groups);
    let full =
        |l: &vllm::kv::Layer| matches!(l.cache, vllm::kv::Cache::Full | vllm::kv::Cache::Latent);
    let token: u64 = groups
        .iter()
        .filter(|g| full(&g.layer) && g.layer.block_size > 0)
        .map(|g| g.layers * g.layer.page / g.layer.block_size)
        .sum();
    let pool = done.pool.as_ref().ok();
    let kv = pool.map_or(0, |p| p.num_gpu_blocks * p.bytes_per_block);
    let mut lines = Vec::new();
    for rank in 0..s.tensor_parallel_size.min(64) as u8 {
        let name = format!("rank {rank}");
        let mut add = |c: Component, bytes: u64| {
            if bytes > 0 {
                lines.push(exact(Some(rank), &name, c, bytes, vec![]));
            }
        };
        add(Component::Weights, up.weights_bytes);
        add(Component::KvCache, kv);
        add(
            Component::Runner,
            up.total_consumed.saturating_sub(up.weights_bytes),
        );
        add(Component::Activations, up.profile_peak_activation_bytes);
        add(Component::CudaGraphs, up.cudagraph_memory_estimate);
        lines.push(driver(rank, device));
    }
    let totals = totals(&lines);
    let needed = totals.first().map_or(0, |t| t.bytes);
    let usable = device.left();
    let (outcome, why) = match &done.pool {
        Ok(_) if needed <= usable => (
            Outcome::Fits,
            "vLLM starts; the KV cache takes what gpu_memory_utilization leaves".to_string(),
        ),
        Ok(_) => (
            Outcome::Tight,
            "it starts, but the sum is more than the card has".to_string(),
        ),
        Err(e) => (Outcome::No, short(e)),
    };
    let fit = Fit::on(device, 0, needed, outcome, why);
    let refused = match &done.pool {
        Err(e) => Some(Refused {
            message: words(e, s),
            remedies: remedies(start, v, e)?,
        }),
        Ok(_) => None,
    };
    let mut notes = vec![
        "driver memory of kernels that load between vLLM's two snapshots (0.05 to 0.3 GiB in public logs) lowers the budget one for one and is not counted".to_string(),
    ];
    if !s.enforce_eager {
        notes.push("CUDA graphs are what vLLM's trial capture finds, of which the start reserves as much; the buffers between two attentions are those of plain decoders".into());
    }
    if s.tensor_parallel_size > 1 {
        notes.push("every rank takes the same; NCCL's buffers come before the first snapshot and are not counted".into());
    }
    if v.data_parallel_size.unwrap_or(1) > 1 {
        notes.push("the figures are those of one replica".into());
    }
    Ok(Serving {
        schema: SCHEMA,
        engine: "vLLM",
        engine_version: VERSION,
        model: v.model.clone(),
        lines,
        totals,
        cache: Cache {
            bytes_per_token: token,
            context_len: s.max_model_len,
            sequences: s.max_num_seqs,
            bytes: kv,
            budget_bytes: Some(up.available_kv_bytes),
            block_bytes: Some(block),
            blocks: pool.map(|p| p.num_gpu_blocks),
            tokens: pool.map_or(0, |p| p.kv_tokens),
            max_concurrency: pool.map(|p| p.max_concurrency),
        },
        settings: start.chosen.clone(),
        not_memory: v.not_memory.clone(),
        fits: vec![fit],
        refused,
        launch: v.launch(),
        notes,
    })
}

fn short(e: &Refusal) -> String {
    match e {
        Refusal::NoMemory { .. } => "nothing is left for the KV cache",
        Refusal::TooLong { .. } => "the KV cache does not hold one request of max_model_len",
        Refusal::NotFree { .. } => "gpu_memory_utilization asks for more than is free at start",
        Refusal::OutOfMemory { .. } => "weights and the largest batch do not fit",
    }
    .into()
}

/// vLLM's own words with its figures (`v1/core/kv_cache_utils.py`, `v1/worker/utils.py`).
fn words(e: &Refusal, s: &Settings) -> String {
    let gib = |n: u64| format!("{:.2}", n as f64 / GIB as f64);
    match e {
        Refusal::NoMemory { .. } => "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine.".into(),
        Refusal::TooLong { needed, available, longest, .. } => format!(
            "To serve at least one request with the model's max seq len ({}), ({} GiB KV cache is needed, which is larger than the available KV cache memory ({} GiB). Based on the available memory, the estimated maximum model length is {longest}.",
            s.max_model_len, gib(*needed), gib(*available)
        ),
        Refusal::NotFree { free, requested } => format!(
            "Free memory on device ({} GiB) on startup is less than desired GPU memory utilization ({}, {} GiB).",
            gib(*free), s.gpu_memory_utilization, gib(*requested)
        ),
        Refusal::OutOfMemory { needed, free } => format!(
            "CUDA out of memory: {} GiB before any KV cache, {} GiB are free",
            gib(*needed), gib(*free)
        ),
    }
}

/// Changes that start it, each verified by a run of its own.
fn remedies(start: &Start, v: &Vllm, e: &Refusal) -> Result<Vec<Remedy>, CoreError> {
    let mut out = Vec::new();
    let mut offer = |flags: String, change: &dyn Fn(&mut Settings)| -> Result<bool, CoreError> {
        let mut other = start.clone();
        change(&mut other.settings);
        let o = other.run()?;
        if let Ok(p) = o.pool {
            out.push(Remedy {
                flags,
                effect: format!(
                    "{} tokens of cache, {:.2} requests of {} tokens",
                    p.kv_tokens, p.max_concurrency, other.settings.max_model_len
                ),
            });
            return Ok(true);
        }
        Ok(false)
    };
    if let Refusal::TooLong { longest, .. } = e
        && *longest > 0
    {
        let n = *longest;
        offer(format!("--max-model-len {n}"), &|s| s.max_model_len = n)?;
    }
    let most = (start.card.free as f64 / start.card.total as f64 * 100.0).floor() as u64;
    let now = (start.settings.gpu_memory_utilization * 100.0).round() as u64;
    let range: Vec<u64> = match e {
        Refusal::NotFree { .. } => vec![most],
        _ => (now + 1..=most).collect(),
    };
    for u in range {
        let x = u as f64 / 100.0;
        if offer(format!("--gpu-memory-utilization {x}"), &|s| {
            s.gpu_memory_utilization = x
        })? {
            break;
        }
    }
    if v.kv_cache_dtype.is_none() {
        offer("--kv-cache-dtype fp8".into(), &|s| s.kv_bytes = 1)?;
    }
    if !start.settings.enforce_eager {
        offer("--enforce-eager".into(), &|s| s.enforce_eager = true)?;
    }
    let mut tp = start.settings.tensor_parallel_size * 2;
    while tp <= 16 && start.model.heads.is_multiple_of(tp) {
        if offer(
            format!("--tensor-parallel-size {tp} (as many cards)"),
            &|s| s.tensor_parallel_size = tp,
        )? {
            break;
        }
        tp *= 2;
    }
    Ok(out)
}
