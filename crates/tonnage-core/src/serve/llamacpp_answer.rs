//! What a run of llama.cpp takes, told as a [`Serving`]: buffers by component, what the kernels and the driver add, the verdict.

use super::answer::{
    Cache, Chosen, Component, Fit, Line, Part, Refused, SCHEMA, Serving, exact, totals,
};
use super::llamacpp::{self, Api, Buft, Error, Estimate, Kind, Pool, Settings};
use crate::verdict::{Device, Outcome};
use tonnage_model::readers::gguf::Gguf;
use tonnage_units::GgmlType;

/// The version whose rules are modelled.
pub const VERSION: &str = "0.5.0";
const MIB: u64 = 1 << 20;

/// What is asked besides the settings.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// The model as the user named it.
    pub model: String,
    /// One card for each device; none: no card was named, or the CPU alone.
    pub cards: Vec<Device>,
    pub settings: Vec<Chosen>,
    pub not_memory: Vec<String>,
    pub launch: String,
    pub notes: Vec<String>,
}

/// The answer. What the engine refuses is an answer too.
///
/// # Errors
/// What the file lacks, and what is not modelled, by name.
pub fn answer(gguf: &Gguf, s: &Settings, q: Question) -> Result<Serving, Error> {
    let e = match llamacpp::estimate(gguf, s) {
        Ok(e) => e,
        Err(Error::Refused(message)) => {
            let mut a = empty(q);
            a.refused = Some(Refused {
                message,
                remedies: vec![],
            });
            return Ok(a);
        }
        Err(e) => return Err(e),
    };
    let mut lines: Vec<Line> = e.buffers.iter().filter(|b| b.bytes > 0).map(line).collect();
    let pools = llamacpp::pools(gguf, s, e.flash_attention, e.context.n_ctx_seq)?;
    for (i, pool) in (0u8..).zip(pools) {
        lines.extend(kernels(s, &e, pool, i));
        if let Some(card) = q.cards.get(usize::from(i)) {
            let c = &card.overhead.context;
            lines.push(Line {
                low_bytes: c.low,
                high_bytes: c.high,
                ..exact(
                    Some(i),
                    "driver",
                    Component::DeviceContext,
                    c.expected,
                    vec![],
                )
            });
        }
    }
    lines.sort_by_key(|l| (l.device.is_none(), l.device, l.component));
    let cards = q.cards.clone();
    let mut a = empty(q);
    a.totals = totals(&lines);
    a.lines = lines;
    a.cache = cache(&e, s);
    a.fits = cards
        .iter()
        .enumerate()
        .map(|(i, c)| verdict(&a, i as u8, c))
        .collect();
    a.notes.extend(notes(&e, s, cards.is_empty()));
    if let Some(arch) = gguf.architecture().filter(|a| !RECORDED.contains(a)) {
        a.notes.push(format!(
            "unverified: no recorded run of a model of the architecture {arch}"
        ));
    }
    Ok(a)
}

fn empty(q: Question) -> Serving {
    Serving {
        schema: SCHEMA,
        engine: "llama.cpp",
        engine_version: VERSION,
        model: q.model,
        lines: vec![],
        totals: vec![],
        cache: Cache::default(),
        settings: q.settings,
        not_memory: q.not_memory,
        fits: vec![],
        refused: None,
        launch: q.launch,
        notes: q.notes,
    }
}

fn line(b: &llamacpp::Buffer) -> Line {
    let component = match b.kind {
        Kind::Weights => Component::Weights,
        Kind::KvCache => Component::KvCache,
        Kind::RecurrentState => Component::RecurrentState,
        Kind::Compute => Component::Compute,
        Kind::Output => Component::Output,
    };
    let device = match b.buft {
        Buft::Cuda(i) | Buft::Vulkan(i) => Some(i),
        _ => None,
    };
    let mut parts: Vec<Part> = Vec::new();
    for i in &b.items {
        let name = match i.layer {
            Some(l) => i.name.replacen(&format!("blk.{l}."), "blk.*.", 1),
            None => i.name.clone(),
        };
        match parts.iter_mut().find(|p| p.name == name) {
            Some(p) => {
                p.count += 1;
                p.bytes += i.bytes;
            }
            None => parts.push(Part {
                name,
                count: 1,
                bytes: i.bytes,
            }),
        }
    }
    parts.sort_by_key(|p| std::cmp::Reverse(p.bytes));
    exact(device, b.buft.name(), component, b.bytes, parts)
}

/// Temporary pool and cuBLAS workspace of one device. The pool is that of a prefill of the whole context ([`llamacpp::pools`]); its range is
/// that of the blocks which attention kernels run at once. Where it is not known (Mamba-2's scan) a range of
/// what recorded prefills took.
fn kernels(s: &Settings, e: &Estimate, pool: Option<Pool>, device: u8) -> Vec<Line> {
    let here = |k: Kind| e.bytes(Buft::Cuda(device), k);
    if here(Kind::Weights) + here(Kind::KvCache) + here(Kind::RecurrentState) == 0 {
        return vec![];
    }
    if matches!(s.devices[usize::from(device)].api, Api::Vulkan { .. }) {
        return vec![];
    }
    let n = e.context.n_ubatch.min(e.context.n_ctx);
    let pool = pool.unwrap_or(Pool {
        low: 4 * MIB,
        expected: 16 * MIB,
        high: (n / 512).max(1) * 8 * MIB + 24 * MIB,
    });
    let cublas = e
        .cublas_workspace_bytes
        .get(usize::from(device))
        .copied()
        .unwrap_or(0);
    let name = format!("CUDA{device}");
    let mut out = vec![Line {
        low_bytes: pool.low,
        high_bytes: pool.high,
        ..exact(Some(device), &name, Component::Pool, pool.expected, vec![])
    }];
    if cublas > 0 {
        out.push(exact(
            Some(device),
            &name,
            Component::LibraryWorkspace,
            cublas,
            vec![],
        ));
    }
    out
}

fn cache(e: &Estimate, s: &Settings) -> Cache {
    let bytes = e
        .buffers
        .iter()
        .filter(|b| b.kind == Kind::KvCache)
        .map(|b| b.bytes)
        .sum();
    let row = |ty: GgmlType, n: u64| ty.bytes(n, 1).unwrap_or(0);
    let per_token = |sliding: bool| -> u64 {
        e.memory
            .caches
            .iter()
            .filter(|c| c.sliding == sliding)
            .flat_map(|c| &c.layers)
            .map(|l| row(s.type_k, l.k) + row(s.type_v, l.v))
            .sum()
    };
    let c = &e.context;
    Cache {
        bytes_per_token: per_token(false),
        context_len: c.n_ctx_seq,
        sequences: c.n_seq,
        bytes,
        tokens: c.n_ctx,
        ..Cache::default()
    }
}

fn verdict(a: &Serving, device: u8, card: &Device) -> Fit {
    let t = a.totals.iter().find(|t| t.device == Some(device));
    let (needed, high) = t.map_or((0, 0), |t| (t.bytes, t.high_bytes));
    let usable = card.left();
    let (outcome, why) = if needed > usable {
        (Outcome::No, "the buffers are larger than what CUDA gives")
    } else if high > card.left().min(card.usable.low) {
        (
            Outcome::Tight,
            "with the largest context and scratch of the ranges it does not fit",
        )
    } else {
        (
            Outcome::Fits,
            "so it does with the largest context and scratch of the ranges",
        )
    };
    Fit::on(card, device, needed, outcome, why)
}

/// Architectures with rows in `groundtruth/llamacpp-dev.jsonl`.
const RECORDED: [&str; 10] = [
    "llama",
    "qwen2",
    "qwen3",
    "qwen3moe",
    "phi3",
    "gemma2",
    "gemma3",
    "gpt2",
    "deepseek2",
    "mamba",
];

fn notes(e: &Estimate, s: &Settings, no_card: bool) -> Vec<String> {
    let mut out = vec![format!(
        "flash attention is {}",
        if e.flash_attention { "on" } else { "off" }
    )];
    if e.memory.caches.iter().any(|c| c.sliding) {
        let cells = e
            .memory
            .caches
            .iter()
            .filter(|c| c.sliding)
            .map(|c| c.cells);
        out.push(format!(
            "layers with a sliding window keep {} tokens each, whatever the context",
            cells.max().unwrap_or(0)
        ));
    }
    if e.buffers.iter().any(|b| b.buft == Buft::CpuMapped) {
        out.push("CPU_Mapped is the stretch of the file that the engine maps and prints; its pages are the system's file cache, in memory once touched".into());
    }
    if no_card && !s.devices.is_empty() {
        out.push("no card is named: kernels are those of compute capability 8.9, the CUDA context is not counted (--gpu ID for a verdict)".into());
    }
    out
}
