//! `torch-run` records of single-device jobs: the record's configuration as a [`Spec`], and its figures against ours.

use super::Row;
use crate::error::CoreError;
use crate::spec::*;
use crate::train::{Simulated, simulate};
use serde_json::Value;
use tonnage_model::adapt::{LoraOptions, Quant, QuantScope, Targets};
use tonnage_model::arch::Head;
use tonnage_model::stack::Version;
use tonnage_model::{Attention, Loss, Stack};
use tonnage_sim::alloc::{AllocatorConfig, CachingAllocator, Peaks, replay};
use tonnage_sim::checkpoint::{Checkpointing, Recompute};
use tonnage_sim::context::Accumulate;
use tonnage_sim::kernels::KernelDevice;
use tonnage_sim::timeline::Timeline;
use tonnage_units::ScalarType;

fn invalid(field: &str, problem: impl Into<String>) -> CoreError {
    CoreError::Invalid {
        field: field.into(),
        problem: problem.into(),
    }
}

fn text<'a>(c: &'a Value, k: &str) -> Option<&'a str> {
    c.get(k).and_then(|v| v.as_str())
}

fn number(c: &Value, k: &str) -> Option<u64> {
    c.get(k).and_then(|v| v.as_u64())
}

/// The kernel-relevant figures of a GPU by its catalog id.
pub fn device(gpu: &str) -> Option<KernelDevice> {
    Some(match gpu {
        g if g.starts_with("a100-") => KernelDevice::A100,
        g if g.starts_with("h100-") => KernelDevice::H100,
        g if g.starts_with("h200-") => KernelDevice::H200,
        "rtx-4090" => KernelDevice::RTX4090,
        "rtx-3090" => KernelDevice::RTX3090,
        "t4" => KernelDevice::T4,
        _ => return None,
    })
}

fn precision(s: &str) -> Option<Precision> {
    Some(match s {
        "fp32" => Precision::Fp32,
        "bf16" => Precision::Pure(ScalarType::BF16),
        "fp16" => Precision::Pure(ScalarType::F16),
        "amp_bf16" => Precision::Mixed(ScalarType::BF16),
        "amp_fp16" => Precision::Mixed(ScalarType::F16),
        _ => return None,
    })
}

/// How a record's job generates.
fn generation(c: &Value) -> Result<Generation, CoreError> {
    Ok(Generation {
        beams: number(c, "beams").unwrap_or(1),
        cache: match text(c, "cache") {
            None | Some("dynamic") => CacheChoice::Dynamic,
            Some("static") => CacheChoice::Static,
            Some("offloaded" | "offloaded_static") => CacheChoice::Offloaded,
            Some("quantized") => CacheChoice::Quantized,
            Some(o) => return Err(invalid("config.cache", format!("unknown cache `{o}`"))),
        },
        sample: c.get("sample").and_then(|v| v.as_bool()).unwrap_or(false),
        eos: c.get("eos").is_some_and(|v| !v.is_null()),
        ..Generation::greedy(number(c, "new").unwrap_or(0))
    })
}

/// The versions of a record.
pub fn stack(versions: &Value) -> Stack {
    let d = Stack::default();
    let v = |k: &str, or: Version| text(versions, k).and_then(Version::parse).unwrap_or(or);
    Stack {
        torch: v("torch", d.torch),
        transformers: v("transformers", d.transformers),
        peft: v("peft", d.peft),
        accelerate: v("accelerate", d.accelerate),
        bitsandbytes: v("bitsandbytes", d.bitsandbytes),
    }
}

fn strings(v: &Value) -> Vec<String> {
    v.as_array()
        .into_iter()
        .flatten()
        .filter_map(|t| t.as_str().map(String::from))
        .collect()
}

/// A record's `peft`: `targets` is a list of names or one string, as peft takes them.
fn lora(l: &Value) -> Result<LoraOptions, CoreError> {
    let targets = match &l["targets"] {
        Value::String(s) => Targets::from_string(s),
        v @ Value::Array(_) => Targets::Names(strings(v)),
        _ => return Err(invalid("config.peft.targets", "missing")),
    };
    let flag = |k: &str, or: bool| l.get(k).and_then(|v| v.as_bool()).unwrap_or(or);
    Ok(LoraOptions {
        exclude: l.get("exclude").map(strings).unwrap_or_default(),
        layers: l
            .get("layers")
            .and_then(|v| v.as_array())
            .map(|v| v.iter().filter_map(|x| x.as_u64()).collect()),
        fp32_adapters: flag("fp32_adapters", true),
        dora: flag("dora", false),
        ..LoraOptions::new(
            number(l, "r").unwrap_or(8),
            targets,
            l.get("dropout").and_then(|d| d.as_f64()).unwrap_or(0.05),
        )
    })
}

/// A record's `quant`; the recording script computes 4-bit layers in bf16 whatever the job's precision.
fn quant(c: &Value) -> Result<Option<Quant>, CoreError> {
    let double = c
        .get("double_quant")
        .and_then(|v| v.as_bool())
        .unwrap_or(true);
    Ok(match text(c, "quant") {
        None => None,
        Some("nf4" | "fp4") => Some(Quant::FourBit {
            double,
            compute: ScalarType::BF16,
        }),
        Some("int8") => Some(Quant::Int8 {
            outliers: c.get("threshold").and_then(|v| v.as_f64()).unwrap_or(0.0) > 0.0,
        }),
        Some(q) => {
            return Err(invalid(
                "config.quant",
                format!("unknown quantisation `{q}`"),
            ));
        }
    })
}

/// A record's `ckpt`: true (every layer, not reentrant), or `{every, reentrant, selective}`.
fn checkpointing(c: &Value) -> Option<Checkpointing> {
    let v = c.get("ckpt")?;
    let flag = |k: &str| v.get(k).and_then(|f| f.as_bool()).unwrap_or(false);
    let how = if flag("reentrant") {
        Recompute::Reentrant
    } else if flag("selective") {
        Recompute::Selective
    } else {
        Recompute::NonReentrant
    };
    (v.is_object() || v.as_bool() == Some(true)).then_some(Checkpointing {
        every: number(v, "every").unwrap_or(1) as u32,
        how,
    })
}

/// The recording script replaces instances of `nn.Linear` itself that are not called `lm_head`: so the head of
/// GPT-NeoX is packed in transformers 4 (`embed_out`), and none of Falcon's layers, which are of a class of their own.
fn quant_scope(family: &str) -> QuantScope {
    match family {
        "falcon" => QuantScope::Nothing,
        _ => QuantScope::Except(vec!["lm_head".into()]),
    }
}

/// A record's job.
pub fn spec(record: &Value) -> Result<Spec, CoreError> {
    let c = &record["config"];
    if c.get("parallel").is_some() {
        return Err(CoreError::Unsupported("jobs over several devices".into()));
    }
    if c.get("trainer").is_some() {
        return Err(CoreError::Unsupported("TRL trainers".into()));
    }
    // a recording of `tonnage run`: the job as the user gave it
    if let Some(job) = text(c, "job") {
        let said = |bad: Vec<crate::Diagnostic>| {
            let first = bad.first().map_or_else(String::new, |d| d.message.clone());
            invalid("config.job", first)
        };
        let job = crate::import::read("config.job.toml", job).map_err(said)?;
        let gpu = tonnage_catalog::gpu(text(c, "gpu").unwrap_or_default())
            .map_err(|e| invalid("config.gpu", e.to_string()))?;
        return job.spec(&gpu).map_err(said);
    }
    let model = &c["model"];
    let family = text(model, "family").ok_or_else(|| invalid("config.model.family", "missing"))?;
    let gpu = text(c, "gpu").unwrap_or("a100-sxm4-80gb");
    let driver = if text(c, "loop") == Some("trainer") {
        Loop::Trainer
    } else {
        Loop::Plain
    };
    let p = text(c, "precision").unwrap_or("fp32");
    let work = match text(c, "kind") {
        Some("train") => Work::Train,
        Some("forward") => Work::Forward,
        Some("generate") => Work::Generate(generation(c)?),
        k => return Err(invalid("config.kind", format!("unknown kind {k:?}"))),
    };
    let lora = c.get("peft").map(lora).transpose()?;
    Ok(Spec {
        work,
        model_type: family.to_string(),
        description: None,
        config: model
            .get("args")
            .cloned()
            .unwrap_or(Value::Object(Default::default())),
        head: match text(model, "head") {
            Some("mlm") => Head::MaskedLm,
            Some("classification") => Head::SequenceClassification,
            Some("base") => Head::Base,
            Some("embedding") => Head::Embedding,
            _ => Head::Default,
        },
        precision: precision(p)
            .ok_or_else(|| invalid("config.precision", format!("unknown precision `{p}`")))?,
        weights: None,
        attention: match text(c, "attn").unwrap_or("sdpa") {
            "sdpa" => Attention::Sdpa,
            "eager" => Attention::Eager,
            "flash_attention_2" => Attention::FlashAttention2,
            a => return Err(invalid("config.attn", format!("unknown attention `{a}`"))),
        },
        batch: number(c, "batch").ok_or_else(|| invalid("config.batch", "missing"))?,
        seq: number(c, "seq").unwrap_or(0),
        target_len: number(c, "tgt"),
        image: number(c, "img").unwrap_or(224),
        steps: number(c, "steps").unwrap_or(3) as u32,
        accumulation: number(c, "accum").unwrap_or(1) as u32,
        // the Trainer clips at 1.0 unless told otherwise
        clip: c
            .get("clip")
            .and_then(|v| v.as_f64())
            .or((driver == Loop::Trainer).then_some(1.0))
            .filter(|v| *v > 0.0),
        zero_grad_late: text(c, "zero_grad") == Some("before_backward"),
        set_to_none: c
            .get("set_to_none")
            .and_then(|v| v.as_bool())
            .unwrap_or(true),
        hold: if text(c, "hold") == Some("outputs") {
            Hold::Outputs
        } else {
            Hold::Loss
        },
        checkpoint: checkpointing(c),
        driver,
        optimizer: text(c, "optim").unwrap_or("adamw_foreach").to_string(),
        lora,
        quant: quant(c)?,
        quant_scope: quant_scope(family),
        kbit_prepare: true,
        freeze: c.get("freeze").map(|f| Freeze {
            layers: number(f, "layers").unwrap_or(0),
            embeddings: f
                .get("embeddings")
                .and_then(|e| e.as_bool())
                .unwrap_or(false),
        }),
        mask: match text(c, "mask") {
            None if driver == Loop::Trainer => Mask::Ones,
            None => Mask::Absent,
            Some("ones") => Mask::Ones,
            Some("pad") => Mask::Padding,
            Some(m) => return Err(invalid("config.mask", format!("unknown mask `{m}`"))),
        },
        use_cache: c.get("use_cache").and_then(|v| v.as_bool()).unwrap_or(true),
        loss: match text(c, "loss") {
            None => Loss::Library,
            Some("liger") => Loss::Liger,
            Some("cut") => Loss::Cut,
            Some("chunked") => Loss::Chunked {
                chunks: number(c, "loss_chunks").unwrap_or(8) as u32,
            },
            Some(l) => return Err(invalid("config.loss", format!("unknown loss `{l}`"))),
        },
        loading: if text(c, "load") == Some("warmup") {
            Loading::Warmup
        } else {
            Loading::To
        },
        device: device(gpu)
            .ok_or_else(|| CoreError::Unsupported(format!("kernel facts of GPU `{gpu}`")))?,
        stack: stack(&record["versions"]),
        accumulate: Accumulate::InPlaceIfSole,
    })
}

/// The figures of a timeline on an unlimited card, by the definitions of the records.
pub struct Figures {
    pub peak_allocated: u64,
    pub peak_reserved: u64,
    pub peak_requested: u64,
    pub load_peak_allocated: u64,
    pub peak_phase: String,
    /// Peaks of each mark's interval, in order.
    pub per_mark: Vec<Peaks>,
}

/// Runs the allocator over a timeline.
pub fn figures(t: &Timeline) -> Figures {
    let mut a = CachingAllocator::new(AllocatorConfig::default(), None);
    let marks: Vec<usize> = t.marks.iter().map(|m| m.at).collect();
    let r = replay(&t.events, &marks, &mut a).expect("an unlimited allocator refuses nothing");
    let rows: Vec<_> = t.marks.iter().zip(&r.per_mark).collect();
    let work = || rows.iter().filter(|(m, _)| m.step >= 0);
    // the first of equal peaks, as max() does
    let mut best: Option<(&str, u64)> = None;
    for (m, p) in work() {
        if best.is_none_or(|b| p.allocated > b.1) {
            best = Some((m.phase.name(), p.allocated));
        }
    }
    Figures {
        peak_allocated: best.map_or(0, |b| b.1),
        peak_phase: best.map_or(String::new(), |b| b.0.to_string()),
        peak_reserved: rows.iter().map(|(_, p)| p.reserved).max().unwrap_or(0),
        peak_requested: work().map(|(_, p)| p.requested).max().unwrap_or(0),
        load_peak_allocated: rows
            .iter()
            .filter(|(m, _)| m.step < 0)
            .map(|(_, p)| p.allocated)
            .max()
            .unwrap_or(0),
        per_mark: r.per_mark.clone(),
    }
}

/// Rows of one record.
pub fn rows(record: &Value) -> Vec<Row> {
    let id = record["id"].as_str().unwrap_or("?");
    let group = record["config"]["kind"].as_str().unwrap_or("train");
    let tol = record
        .get("rounded_to")
        .and_then(|v| v.as_f64())
        .map_or(0.0, |r| r / 2.0);
    let names = [
        ("peak_allocated", "peak_allocated_bytes"),
        ("peak_reserved", "peak_reserved_bytes"),
        ("peak_requested", "peak_requested_bytes"),
        ("load_peak_allocated", "load_peak_allocated_bytes"),
        ("param_count", "param_count"),
        ("trainable_count", "trainable_count"),
        ("param_bytes", "param_bytes"),
        ("buffer_bytes", "buffer_bytes"),
        ("peak_phase", "peak_at"),
    ];
    let measured = |field: &str| {
        let v = if field == "peak_at" {
            record["peak_at"]["phase"].clone()
        } else {
            record[field].clone()
        };
        (!v.is_null()).then_some(v)
    };
    let ours = spec(record).and_then(|s| simulate(&s)).map(|s: Simulated| {
        let f = figures(&s.timeline);
        (s, f)
    });
    names
        .iter()
        .filter_map(|(metric, field)| {
            let m = measured(field)?;
            Some(match &ours {
                Err(e) => Row::unsupported(id, metric, group, m, &e.to_string()),
                Ok((s, f)) => {
                    let p: Value = match *metric {
                        "peak_allocated" => f.peak_allocated.into(),
                        "peak_reserved" => f.peak_reserved.into(),
                        "peak_requested" => f.peak_requested.into(),
                        "load_peak_allocated" => f.load_peak_allocated.into(),
                        "param_count" => s.param_count.into(),
                        "trainable_count" => s.trainable_count.into(),
                        "param_bytes" => s.param_bytes.into(),
                        "buffer_bytes" => s.buffer_bytes.into(),
                        _ => f.peak_phase.clone().into(),
                    };
                    Row::new(id, metric, group, m, p, tol)
                }
            })
        })
        .collect()
}
