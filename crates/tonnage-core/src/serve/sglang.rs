//! SGLang: how many tokens its pool holds, by its own rule of a memory fraction (SGLang 0.5.23, `srt/arg_groups/memory_hook.py`,
//! `_handle_gpu_memory_settings`; `srt/mem_cache/kv_cache_configurator.py`, `_profile_available_bytes`;
//! `srt/model_executor/pool_configurator.py`). Nothing is measured by a trial run there: of the memory that is free before the weights are
//! loaded a share is kept for activations and graphs, weights and pool get the rest.
//!
//! Subtraction and division are those of a published start (sgl-project/sglang pull request 18263, Qwen3-30B-A3B); what is free before the load and what the
//! weights take on a card have no recorded start, so a whole answer is unverified.

use super::answer::{
    Cache, Chosen, Component, Fit, Refused, Remedy, SCHEMA, Serving, driver, exact, totals,
};
use super::command::sglang::Sglang;
use super::command::vllm::Vllm;
use super::vllm::kv::Cache as Kind;
use super::vllm_answer::{self, Start};
use super::{vllm, vllm::model::Weights};
use crate::error::CoreError;
use crate::verdict::{Device, Outcome};
use serde_json::Value;

/// The version whose rules are modelled.
pub const VERSION: &str = "0.5.23";
const MIB: f64 = (1 << 20) as f64;

/// Chunk of a prefill and largest decode batch with a graph, by the memory that nvidia-smi reports (MiB).
pub fn capacity(gpu_mib: f64, tp: u64) -> (u64, u64) {
    let by = |few: u64, many: u64| if tp < 4 { few } else { many };
    match gpu_mib / 1024.0 {
        g if g < 20.0 => (2048, 8),
        g if g < 35.0 => (4096, by(48, 160)),
        g if g < 60.0 => (4096, by(32, 160)),
        g if g < 160.0 => (8192, by(256, 512)),
        _ => (16_384, 512),
    }
}

/// Number of prefill graphs up to a number of tokens (`generate_prefill_cuda_graph_batch_sizes`).
fn prefill_graphs(most: u64) -> usize {
    (4..=32)
        .step_by(4)
        .chain((48..=256).step_by(16))
        .chain((288..=512).step_by(32))
        .chain((576..=1024).step_by(64))
        .chain((1280..=4096).step_by(256))
        .chain((4608..=most.max(4608)).step_by(512))
        .filter(|n| *n <= most)
        .count()
}

/// What decides about the default of `--mem-fraction-static`.
#[derive(Clone, Copy, Debug)]
pub struct Reserve {
    /// Memory as nvidia-smi reports it.
    pub gpu_mib: f64,
    pub tp: u64,
    /// Tokens of a prefill chunk, or of a whole batch where there are no chunks.
    pub prefill_tokens: u64,
    /// Largest decode batch with a graph; none: no decode graphs.
    pub decode_graphs: Option<u64>,
    /// Largest prefill with a graph; none: no prefill graphs.
    pub prefill_graphs: Option<u64>,
    /// Latent attention.
    pub latent: bool,
}

impl Reserve {
    /// The default of `--mem-fraction-static`: three digits.
    pub fn fraction(&self) -> f64 {
        let mut mib = 512.0 + self.prefill_tokens.max(2048) as f64 * 1.5;
        mib += self.tp as f64 / 8.0 * 1024.0;
        mib += self.decode_graphs.unwrap_or(0) as f64 * 2.0;
        if let Some(most) = self.prefill_graphs {
            mib += if self.latent {
                1536.0
            } else {
                prefill_graphs(most) as f64 * 8.0
            };
        }
        if self.gpu_mib > 60.0 * 1024.0 {
            mib = mib.max(10.0 * 1024.0);
        }
        ((self.gpu_mib - mib) / self.gpu_mib * 1000.0).round_ties_even() / 1000.0
    }
}

/// Bytes for the pool: what is free after the load less the share of what was free before that is not for weights and pool.
pub fn budget(before: f64, after: f64, fraction: f64) -> f64 {
    after - before * (1.0 - fraction)
}

/// Tokens of a pool, in whole pages.
pub fn tokens(budget: u64, token_bytes: u64, page: u64) -> u64 {
    let page = page.max(1);
    budget / token_bytes.max(1) / page * page
}

/// Bytes of one token on one rank, where all layers see everything.
fn token_bytes(start: &Start) -> Result<(u64, bool), CoreError> {
    let groups = vllm::groups(&start.model, &start.settings, start.card.hopper);
    let no = |what: &str| Err(CoreError::Unsupported(format!("SGLang's pool with {what}")));
    let mut sum = 0;
    let mut latent = false;
    for g in &groups {
        match g.layer.cache {
            Kind::Full => {}
            Kind::Latent => latent = true,
            Kind::Sliding { .. } => return no("sliding windows"),
            Kind::Chunked { .. } => return no("chunked attention"),
            Kind::State { .. } => return no("recurrent states"),
        }
        sum += g.layers * g.layer.page / g.layer.block_size.max(1);
    }
    Ok((sum, latent))
}

/// The same model and card for the weights' load.
fn start(config: &Value, s: &Sglang, device: &Device) -> Result<Start, CoreError> {
    let same = Vllm {
        model: s.model.clone(),
        tensor_parallel_size: s.tp_size,
        enforce_eager: true,
        kv_cache_dtype: s.kv_cache_dtype.clone().filter(|d| d.starts_with("fp8")),
        ..Vllm::default()
    };
    let start = vllm_answer::resolve(config, &same, device)?;
    if start.model.weights != Ok(Weights::Half) {
        return Err(CoreError::Unsupported(
            "SGLang with quantised weights".into(),
        ));
    }
    Ok(start)
}

/// The footprint of a start.
///
/// # Errors
/// A configuration that is none, and what is not modelled, by name.
pub fn answer(config: &Value, s: &Sglang, device: &Device) -> Result<Serving, CoreError> {
    let start = start(config, s, device)?;
    let tp = start.settings.tensor_parallel_size;
    let longest = start.settings.max_model_len;
    let context = s.context_length.unwrap_or(longest);
    if context > longest {
        return Err(CoreError::Invalid {
            field: "--context-length".into(),
            problem: format!(
                "{context} is more than the model's {longest} tokens; SGLang refuses it"
            ),
        });
    }
    let (cell, latent) = token_bytes(&start)?;
    let weights = vllm::start(&start.model, &start.settings, &start.card)?.weights_bytes;
    let before = start.card.free;
    let after = before as f64 - weights as f64;

    let mib = device.gpu.memory_mib_reported;
    let gpu_mib = mib.map_or(start.card.total as f64 / MIB, |n| n.get() as f64);
    let (chunk, graphs) = capacity(gpu_mib, tp);
    let requests = s.max_running_requests;
    let chunk = s.chunked_prefill_size.unwrap_or(chunk);
    let decode = s
        .decode_graphs_up_to
        .unwrap_or(graphs.min(requests.unwrap_or(graphs)));
    let mut prefill =
        s.prefill_graphs_up_to
            .unwrap_or(if latent { chunk.min(8192) } else { chunk });
    if s.prefill_graphs_up_to.is_none() {
        prefill = prefill.min(s.max_total_tokens.unwrap_or(prefill));
        if s.model.to_lowercase().contains("llama-2") {
            prefill = prefill.min(4096);
        }
    }
    let reserve = Reserve {
        gpu_mib,
        tp,
        prefill_tokens: match chunk {
            0 => s.max_prefill_tokens.unwrap_or(16_384),
            n => n,
        },
        decode_graphs: (!s.no_decode_graphs).then_some(decode),
        prefill_graphs: (!s.no_prefill_graphs && chunk > 0).then_some(prefill),
        latent,
    };
    let fraction = s.mem_fraction_static.unwrap_or_else(|| reserve.fraction());
    let rest = budget(before as f64, after, fraction);
    let page = s.page_size.unwrap_or(1);
    let mut held = tokens(rest.max(0.0) as u64, cell, page);
    if let Some(most) = s.max_total_tokens {
        held = held.min(most / page.max(1) * page.max(1));
    }
    let sequences = requests.map_or_else(
        || ((held as f64 / context.max(1) as f64 * 512.0) as u64).clamp(2048, 4096),
        |n| n.min(held / 2),
    );
    let kv = if held == 0 { 0 } else { (held + page) * cell };
    // the pool's spare page is taken from what is kept free
    let kept = ((before as f64 * (1.0 - fraction)) as u64).saturating_sub(page * cell);

    let mut lines = Vec::new();
    for rank in 0..tp.min(64) as u8 {
        let name = format!("rank {rank}");
        for (c, bytes) in [
            (Component::Weights, weights),
            (Component::KvCache, kv),
            (Component::Activations, kept),
        ] {
            if bytes > 0 {
                lines.push(exact(Some(rank), &name, c, bytes, vec![]));
            }
        }
        lines.push(driver(rank, device));
    }
    let totals = totals(&lines);
    let needed = totals.first().map_or(0, |t| t.bytes);
    let usable = device.left();
    let refused = (held == 0).then(|| refusal(before as f64, after, fraction));
    let (outcome, why) = match &refused {
        Some(_) => (Outcome::No, "nothing is left for the pool"),
        None if needed > usable => (
            Outcome::Tight,
            "it starts, but the sum is more than the card has",
        ),
        None => (
            Outcome::Fits,
            "SGLang starts; the pool takes what --mem-fraction-static leaves",
        ),
    };
    let fit = Fit::on(device, 0, needed, outcome, why);
    Ok(Serving {
        schema: SCHEMA,
        engine: "SGLang",
        engine_version: VERSION,
        model: s.model.clone(),
        lines,
        totals,
        cache: Cache {
            bytes_per_token: cell,
            context_len: context,
            sequences,
            bytes: kv,
            budget_bytes: Some(rest as i64),
            block_bytes: Some(cell * page),
            blocks: (held > 0).then_some(held / page),
            tokens: held,
            max_concurrency: (held > 0).then_some(held as f64 / context.max(1) as f64),
        },
        settings: chosen(s, &reserve, fraction, chunk, context, page, sequences),
        not_memory: s.not_memory.clone(),
        fits: vec![fit],
        refused,
        launch: s.launch(),
        notes: notes(s, tp),
    })
}

fn refusal(before: f64, after: f64, fraction: f64) -> Refused {
    let least = 1.0 - after / before.max(1.0);
    let raised = (least * 1000.0).ceil() / 1000.0;
    let remedies = if raised < 1.0 {
        vec![Remedy {
            flags: format!("--mem-fraction-static above {raised:.3}"),
            effect: "weights fit the share; what is above it is the pool".into(),
        }]
    } else {
        vec![]
    };
    Refused {
        message: format!(
            "Loaded weights leave no GPU memory for the KV cache under --mem-fraction-static={fraction}. Raise --mem-fraction-static above {raised:.3} (minimum viable = 1 - available/pre = {least:.4})."
        ),
        remedies,
    }
}

fn notes(s: &Sglang, tp: u64) -> Vec<String> {
    let mut notes = vec![
        "unverified: no recorded start of SGLang stands behind what is free before the load and what the weights take; the rule itself is that of a published start".to_string(),
        "activations and graphs are the share that SGLang keeps free for them, not what they take".into(),
    ];
    if s.page_size.is_none() {
        notes.push(
            "pages of one token; some attention backends (FlashMLA, TensorRT-LLM) take 32 or 64"
                .into(),
        );
    }
    if tp > 1 {
        notes.push("every rank takes the same; NCCL's buffers come before the first look and are not counted".into());
    }
    if s.dp_size.unwrap_or(1) > 1 {
        notes.push("the figures are those of one replica".into());
    }
    notes
}

fn chosen(
    s: &Sglang,
    r: &Reserve,
    fraction: f64,
    chunk: u64,
    context: u64,
    page: u64,
    sequences: u64,
) -> Vec<Chosen> {
    let card = "default for this card";
    let graphs = |n: Option<u64>| n.map_or("none".into(), |n| n.to_string());
    [
        (
            "--tp-size",
            r.tp.to_string(),
            s.tp_size.is_some(),
            "default",
        ),
        (
            "--context-length",
            context.to_string(),
            s.context_length.is_some(),
            "the model's configuration",
        ),
        (
            "--mem-fraction-static",
            fraction.to_string(),
            s.mem_fraction_static.is_some(),
            "SGLang's rule: card less activations, graphs and ranks",
        ),
        (
            "--chunked-prefill-size",
            chunk.to_string(),
            s.chunked_prefill_size.is_some(),
            card,
        ),
        (
            "--cuda-graph-max-bs-decode",
            graphs(r.decode_graphs),
            s.decode_graphs_up_to.is_some() || s.no_decode_graphs,
            card,
        ),
        (
            "--cuda-graph-max-bs-prefill",
            graphs(r.prefill_graphs),
            s.prefill_graphs_up_to.is_some() || s.no_prefill_graphs,
            "default: the chunk",
        ),
        (
            "--max-running-requests",
            sequences.to_string(),
            s.max_running_requests.is_some(),
            "from the pool, 2,048 to 4,096",
        ),
        (
            "--page-size",
            page.to_string(),
            s.page_size.is_some(),
            "default of most attention backends",
        ),
        (
            "--kv-cache-dtype",
            s.kv_cache_dtype.clone().unwrap_or("auto".into()),
            s.kv_cache_dtype.is_some(),
            "default: the model's type",
        ),
    ]
    .into_iter()
    .map(|(name, value, given, default)| Chosen {
        name: name.into(),
        value,
        from: if given {
            "given".into()
        } else {
            default.into()
        },
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_start_is_met() {
        // sgl-project/sglang pull request 18263: Qwen3-30B-A3B, 230.20 GB free after 56.98 GB of weights, fraction 0.911
        let gb = f64::from(1 << 30);
        let rest = budget((230.20 + 56.98) * gb, 230.20 * gb, 0.911);
        assert!((rest - 219_721_119_039.0).abs() < 0.02 * gb, "{rest}");
        // 48 layers, 4 heads of 128 for keys and values, 16 bits
        assert_eq!(tokens(164_149_629_787, 48 * 4 * 256 * 2, 1), 1_669_816);
        assert_eq!(tokens(6_400, 10, 64), 640);
        assert_eq!(tokens(6_399, 10, 64), 576);
    }

    #[test]
    fn default_fractions_follow_the_rule() {
        let of = |gpu_mib: f64, tp: u64| {
            let (chunk, graphs) = capacity(gpu_mib, tp);
            Reserve {
                gpu_mib,
                tp,
                prefill_tokens: chunk,
                decode_graphs: Some(graphs),
                prefill_graphs: Some(chunk),
                latent: false,
            }
        };
        // 8 + 14 + 8 + 8 + 12 sizes up to 4,096 tokens, 8 more up to 8,192
        assert_eq!((prefill_graphs(4096), prefill_graphs(8192)), (50, 58));
        // RTX 4090: 512 + 6144 + 128 + 96 + 400 of 24,564
        assert_eq!(of(24_564.0, 1).fraction(), 0.704);
        // H100: 512 + 12288 + 128 + 512 + 464 of 81,559
        assert_eq!(of(81_559.0, 1).fraction(), 0.83);
        // at least 10 GiB are kept on large cards
        let small = Reserve {
            prefill_tokens: 2048,
            decode_graphs: None,
            prefill_graphs: None,
            ..of(81_559.0, 1)
        };
        assert_eq!(small.fraction(), 0.874);
    }
}
