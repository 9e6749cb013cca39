//! What of a serving engine fits a card: the largest context, the most sequences, layers, and quantisation, each with the next step that does not.

use super::{Edge, Probe, largest};
use crate::error::CoreError;
use crate::serve::command::llamacpp::Llama;
use crate::serve::command::vllm::Vllm;
use crate::serve::llamacpp::{Error, Settings};
use crate::serve::llamacpp_answer::{self, Question};
use crate::serve::vllm_answer::Start;
use crate::verdict::{Device, Outcome};
use serde::Serialize;
use tonnage_model::readers::gguf::Gguf;
use tonnage_units::{ByteStyle, Bytes};

/// The version of the JSON form.
pub const SCHEMA: &str = "tonnage.fit/1";

/// One estimate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// The flags that make it.
    pub flags: String,
    pub outcome: &'static str,
    /// On the fullest card, of `usable_bytes`.
    pub needed_bytes: u64,
    pub usable_bytes: u64,
    /// What it gives, or why it does not start.
    pub effect: String,
}

/// The limit of one knob, the others as they were given.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Limit {
    pub question: String,
    /// None: not even the least.
    pub fits: Option<Point>,
    /// None: the most that there is fits.
    pub next: Option<Point>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fits {
    pub schema: &'static str,
    pub engine: &'static str,
    pub model: String,
    pub gpu: String,
    pub limits: Vec<Limit>,
    pub notes: Vec<String>,
}

impl Fits {
    /// Whether any limit has settings that fit.
    pub fn any(&self) -> bool {
        self.limits.iter().any(|l| l.fits.is_some())
    }
}

fn limit(question: impl Into<String>, e: Edge<Point>) -> Limit {
    Limit {
        question: question.into(),
        fits: e.fits.map(|f| f.1),
        next: e.next.map(|f| f.1),
    }
}

/// A model of llama.cpp in another quantisation.
pub struct Candidate {
    pub name: String,
    pub model: Gguf,
}

/// The tokens of context that questions without `--ctx-size` are about: what the engine's own fit goes down to (`--fit-ctx`).
pub const CONTEXT: u64 = 4096;

struct LlamaFit<'a> {
    cards: &'a [Device],
    model: &'a Gguf,
}

impl LlamaFit<'_> {
    fn probe(&self, model: &Gguf, s: &Settings, flags: String) -> Result<Probe<Point>, Error> {
        let q = Question {
            cards: self.cards.to_vec(),
            ..Question::default()
        };
        let a = llamacpp_answer::answer(model, s, q)?;
        let outcome = a.outcome().unwrap_or(Outcome::Fits);
        let fullest = a.fits.iter().min_by_key(|f| f.margin_bytes);
        let effect = match &a.refused {
            Some(r) => format!("llama.cpp refuses: {}", r.message),
            None => format!(
                "{} on the host",
                Bytes(a.total(None)).display(ByteStyle::Iec)
            ),
        };
        let p = Point {
            flags,
            outcome: outcome.name(),
            needed_bytes: fullest.map_or(0, |f| f.needed_bytes),
            usable_bytes: fullest.map_or(0, |f| f.usable_bytes),
            effect,
        };
        Ok(match outcome {
            Outcome::No => Probe::Not(p),
            _ => Probe::Fits(p),
        })
    }

    fn context(&self, base: &Settings, more: &str, most: u64) -> Result<Edge<Point>, Error> {
        largest(256, most.max(256), 256, |n| {
            let s = Settings {
                context_len: n,
                ..base.clone()
            };
            self.probe(self.model, &s, format!("--ctx-size {n}{more}"))
        })
    }
}

/// What of a model file fits the cards; `others` are the same model in other quantisations.
///
/// # Errors
/// What is not modelled, by name.
pub fn llamacpp(
    model: &Gguf,
    l: &Llama,
    cards: &[Device],
    name: &str,
    others: &[Candidate],
) -> Result<Fits, Error> {
    let f = LlamaFit { cards, model };
    let trained = model
        .get("context_length")
        .and_then(|v| v.as_u64())
        .unwrap_or(0);
    let layers = model
        .get("block_count")
        .and_then(|v| v.as_u64())
        .unwrap_or(0);
    let experts = model.get("expert_count").and_then(|v| v.as_u64());
    let context = match l.settings.context_len {
        0 if trained > 0 => trained.min(CONTEXT),
        0 => CONTEXT,
        n => n,
    };
    let base = Settings {
        context_len: context,
        ..l.settings.clone()
    };
    let mut limits = Vec::new();
    let mut ngl = base.gpu_layers;
    if !l.layers_given {
        let e = largest(0, layers + 1, 1, |n| {
            let s = Settings {
                gpu_layers: n,
                ..base.clone()
            };
            let flags = format!("--n-gpu-layers {n} --ctx-size {context}");
            f.probe(model, &s, flags)
        })?;
        ngl = e.fits.as_ref().map_or(0, |(n, _)| *n);
        let q = format!(
            "layers on the device at {context} tokens (of {}: {layers} blocks and the output)",
            layers + 1
        );
        limits.push(limit(q, e));
    }
    let all = ngl > layers;
    let most = if trained > 0 { trained } else { 1 << 20 };
    // without a number of layers the engine's own fit would move some of them to keep 1 GiB free
    let (more, what) = match all {
        true => (
            " --n-gpu-layers all".to_string(),
            "all layers on the device".to_string(),
        ),
        false => (
            format!(" --n-gpu-layers {ngl}"),
            format!("{ngl} layers on the device"),
        ),
    };
    let with_layers = Settings {
        gpu_layers: if all { 999 } else { ngl },
        ..base.clone()
    };
    limits.push(limit(
        format!("context with {what} (trained for {most})"),
        f.context(&with_layers, &more, most)?,
    ));
    if experts.is_some_and(|n| n > 0) && !all && !base.cpu_moe {
        let s = Settings {
            gpu_layers: 999,
            cpu_moe: true,
            ..base.clone()
        };
        limits.push(limit(
            "context with the experts on the host and all else on the device",
            f.context(&s, " --n-gpu-layers all --cpu-moe", most)?,
        ));
    }
    let sequences = largest(1, 256, 1, |n| {
        let s = Settings {
            n_seq: n,
            kv_unified: false,
            context_len: context.saturating_mul(n),
            n_outputs_max: if base.n_outputs_max == 0 { 0 } else { n },
            ..with_layers.clone()
        };
        let flags = format!(
            "--parallel {n} --ctx-size {}{more}",
            context.saturating_mul(n)
        );
        f.probe(model, &s, flags)
    })?;
    limits.push(limit(
        format!("sequences of {context} tokens each, with {what}"),
        sequences,
    ));
    if !others.is_empty() {
        limits.push(quantisation(&f, &base, context, others)?);
    }
    Ok(Fits {
        schema: SCHEMA,
        engine: "llama.cpp",
        model: name.into(),
        gpu: cards.first().map_or_else(String::new, |c| c.gpu.id.clone()),
        limits,
        notes: vec!["the expected case decides; the estimate's range of scratch and context makes some of these tight".into()],
    })
}

/// The quantisation with the most bytes that fits whole.
fn quantisation(
    f: &LlamaFit,
    base: &Settings,
    context: u64,
    others: &[Candidate],
) -> Result<Limit, Error> {
    let mut sorted: Vec<&Candidate> = others.iter().collect();
    let size = |c: &Candidate| c.model.tensors.iter().map(|t| t.bytes).sum::<u64>();
    sorted.sort_by_key(|c| size(c));
    let s = Settings {
        gpu_layers: 999,
        ..base.clone()
    };
    // the cache and graph are the same for all: what needs more is what has more bytes
    let e = largest(0, sorted.len() as u64 - 1, 1, |i| {
        let c = sorted[i as usize];
        let flags = format!("-m {} --ctx-size {context} --n-gpu-layers all", c.name);
        f.probe(&c.model, &s, flags)
    })?;
    Ok(limit(
        format!("quantisation with all layers on the device at {context} tokens"),
        e,
    ))
}

fn point(start: &Start, flags: String) -> Result<Probe<Point>, CoreError> {
    let o = start.run()?;
    let up = &o.startup;
    let before =
        up.total_consumed + up.profile_peak_activation_bytes + up.cudagraph_memory_estimate;
    let total = start.card.total;
    let mut p = Point {
        flags,
        outcome: "fits",
        needed_bytes: before,
        usable_bytes: total,
        effect: String::new(),
    };
    Ok(match o.pool {
        Ok(pool) => {
            p.needed_bytes += pool.num_gpu_blocks * pool.bytes_per_block;
            p.effect = format!(
                "{} tokens of cache, {:.2} requests of {} tokens",
                pool.kv_tokens, pool.max_concurrency, start.settings.max_model_len
            );
            Probe::Fits(p)
        }
        Err(e) => {
            p.outcome = "no";
            p.effect = e.to_string();
            Probe::Not(p)
        }
    })
}

/// What of a vLLM start-up fits the card.
///
/// # Errors
/// What is not simulated, by name.
pub fn vllm(start: &Start, v: &Vllm, card: &Device) -> Result<Fits, CoreError> {
    let s = &start.settings;
    let with = |change: &dyn Fn(&mut crate::serve::vllm::Settings)| {
        let mut other = start.clone();
        change(&mut other.settings);
        other
    };
    let mut limits = Vec::new();
    limits.push(limit(
        format!(
            "--max-model-len at --gpu-memory-utilization {}",
            s.gpu_memory_utilization
        ),
        largest(1, s.max_model_len, 1, |n| {
            point(
                &with(&|s| s.max_model_len = n),
                format!("--max-model-len {n}"),
            )
        })?,
    ));
    // the limits of the others are at a length that starts
    let len = match &limits[0].fits {
        Some(p) => p.flags.rsplit(' ').next().and_then(|n| n.parse().ok()),
        None => None,
    };
    let len: u64 = len.unwrap_or(s.max_model_len);
    let at = if len == s.max_model_len {
        String::new()
    } else {
        format!(" --max-model-len {len}")
    };
    if v.kv_cache_memory_bytes.is_none() {
        // the share that is left to others grows from what is not free at start
        let free = start.card.free as f64 / start.card.total.max(1) as f64;
        let least = 100 - (free * 100.0).floor().clamp(1.0, 100.0) as u64;
        limits.push(limit(
            format!("least --gpu-memory-utilization at --max-model-len {len}"),
            largest(least, 99, 1, |left| {
                let u = (100 - left) as f64 / 100.0;
                let other = with(&|s| (s.gpu_memory_utilization, s.max_model_len) = (u, len));
                point(&other, format!("--gpu-memory-utilization {u}{at}"))
            })?,
        ));
    }
    limits.push(limit(
        format!("--max-num-seqs at --max-model-len {len}"),
        largest(1, 8192, 1, |n| {
            let other = with(&|s| {
                s.max_model_len = len;
                s.max_num_seqs = n;
                s.max_num_batched_tokens = s.max_num_batched_tokens.max(n);
            });
            point(&other, format!("--max-num-seqs {n}{at}"))
        })?,
    ));
    Ok(Fits {
        schema: SCHEMA,
        engine: "vLLM",
        model: v.model.clone(),
        gpu: card.gpu.id.clone(),
        limits,
        notes: vec!["CUDA graphs count with vLLM's floor; their own pool (50 to 450 MiB in the records) is not simulated: leave room".into()],
    })
}
