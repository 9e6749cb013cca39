//! Rows of `llamacpp-run` records: what llama.cpp itself allocated for a model file and settings.

use super::Row;
use crate::serve::llamacpp::{
    Api, Device, Error, Estimate, FlashAttention, Kind, Load, Settings, estimate, pools,
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use tonnage_model::readers::gguf::{Gguf, Progress, header};
use tonnage_units::GgmlType;

/// The printed MiB have two decimals.
const MIB_TOLERANCE: f64 = 0.005;

/// The rows of a record. `file` gives the bytes of the model header that the record names.
pub fn rows(record: &Value, file: &mut dyn FnMut(&str) -> Option<Vec<u8>>) -> Vec<Row> {
    let id = record["id"].as_str().unwrap_or("?");
    let out = predict(record, file);
    let group = group(record, out.as_ref().ok());
    if !record["error"].is_null() {
        let measured = Value::from("refused");
        let predicted = match &out {
            Err(Why::Engine(Error::Refused(_))) => "refused",
            Ok(_) => "runs",
            Err(why) => {
                return vec![Row::unsupported(
                    id,
                    "refusal",
                    &group,
                    measured,
                    &why.to_string(),
                )];
            }
        };
        return vec![Row::new(
            id,
            "refusal",
            &group,
            measured,
            predicted.into(),
            0.0,
        )];
    }
    let mut rows = Rows {
        id,
        group: &group,
        out: Vec::new(),
    };
    match out {
        Ok((e, _, pool)) => compare(&mut rows, record, &e, pool),
        Err(why) => without(&mut rows, record, &why.to_string()),
    }
    rows.out
}

/// Why there is no prediction.
enum Why {
    Said(String),
    Engine(Error),
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Why::Said(s) => f.write_str(s),
            Why::Engine(e) => e.fmt(f),
        }
    }
}

fn predict(
    record: &Value,
    file: &mut dyn FnMut(&str) -> Option<Vec<u8>>,
) -> Result<Predicted, Why> {
    let settings = settings(record).map_err(Why::Said)?;
    let name = match record["gguf_header"].as_str() {
        Some(name) => name.to_string(),
        None => match (record["model"].as_str(), record["quant"].as_str()) {
            (Some(model), Some(quant)) => format!("{model}.{quant}.gguf-header"),
            _ => return Err(Why::Said("the record names no model".into())),
        },
    };
    let bytes = file(&name).ok_or_else(|| Why::Said(format!("no header file `{name}` here")))?;
    let gguf = match header(&bytes, Some(bytes.len() as u64)) {
        Ok(Progress::Done(g)) => g,
        Ok(Progress::Need(_)) => return Err(Why::Said("the header is cut short".into())),
        Err(e) => return Err(Why::Said(e.to_string())),
    };
    let layers = layers(&gguf);
    let e = estimate(&gguf, &settings).map_err(Why::Engine)?;
    let pool = pool(record, &gguf, &settings, e.flash_attention);
    Ok((e, layers, pool))
}

/// The estimate, the number of layers, the pool of a device or why it is not predicted.
type Predicted = (Estimate, usize, Result<u64, String>);

fn pool(r: &Value, g: &Gguf, s: &Settings, flash_attention: bool) -> Result<u64, String> {
    let tokens = r["cuda_runtime"]["tokens"].as_u64();
    let tokens = tokens.ok_or("no prefill was walked through")?;
    let of = pools(g, s, flash_attention, tokens).map_err(|e| e.to_string())?;
    // the record's figure is that of one device; the two of recorded pairs need the same
    let all: Option<Vec<u64>> = of.into_iter().map(|p| Some(p?.expected)).collect();
    let most = all.and_then(|a| a.into_iter().max());
    most.ok_or_else(|| "the pool of this model's operators is not modelled".into())
}

/// Multiprocessors of the recorded devices: cards of the first capability that has them. The pool's own steps give them away.
fn multiprocessors(capability: u32) -> Option<u32> {
    Some(match capability {
        610 => 28,
        750 => 68,
        800 => 108,
        890 => 128,
        900 => 132,
        1200 => 170,
        _ => return None,
    })
}

fn layers(g: &Gguf) -> usize {
    let n = g.get("block_count").and_then(|v| v.as_u64()).unwrap_or(0);
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// full: everything on one device; multi: several devices.
fn group(r: &Value, found: Option<&Predicted>) -> String {
    let ngl = r["ngl"].as_u64().unwrap_or(999);
    let all = ngl >= 999 || found.is_some_and(|f| ngl as usize > f.1);
    let kept = r["offload_kqv"] == true && r["cpu_moe"] != true;
    match r["backend"].as_str() {
        Some("cuda") if devices(r) > 1 => "multi",
        Some("cuda") if all && kept => "full",
        Some("cuda") => "partial",
        Some(other) => other,
        None => "?",
    }
    .to_string()
}

/// Whether the record's `args` have this word.
fn said(r: &Value, word: &str) -> bool {
    let args = r["args"].as_str().unwrap_or_default();
    args.split(' ').any(|w| w == word)
}

/// Devices of a record: a number or a text of one.
fn devices(r: &Value) -> usize {
    let v = &r["devices"];
    let n = v.as_u64().or_else(|| v.as_str()?.parse().ok());
    n.unwrap_or(1).clamp(1, 64) as usize
}

/// The settings that a record was made with.
fn settings(r: &Value) -> Result<Settings, String> {
    let count = |k: &str| r[k].as_u64().ok_or_else(|| format!("no `{k}`"));
    let flag = |k: &str| r[k].as_bool().ok_or_else(|| format!("no `{k}`"));
    let text = |k: &str| r[k].as_str().ok_or_else(|| format!("no `{k}`"));
    let ty = |k: &str| {
        let t = text(k)?;
        t.parse::<GgmlType>().map_err(|e| e.to_string())
    };
    let devices = match text("backend")? {
        "cuda" => {
            let cc = r["compute_capability"].as_f64().or_else(|| {
                let text = r["compute_capability"].as_str()?;
                text.parse().ok()
            });
            // 8.9 is written 890
            let compute_capability = (cc.unwrap_or(8.9) * 100.0).round() as u32;
            let device = Device {
                api: Api::Cuda {
                    compute_capability,
                    multiprocessors: multiprocessors(compute_capability),
                },
                ..Device::default()
            };
            // `--split-mode none` takes the first device alone
            let alone = said(r, "sm=none");
            vec![device; if alone { 1 } else { devices(r) }]
        }
        "cpu" => Vec::new(),
        // the recorded device is Mesa's software one
        "vulkan" => vec![Device {
            api: Api::Vulkan {
                max_binding: 128 << 20,
            },
            ..Device::default()
        }],
        other => return Err(format!("the {other} backend is not modelled")),
    };
    let tensor_split = match r["tensor_split"].as_str() {
        None => None,
        Some(list) => {
            let parts: Result<Vec<f32>, _> = list.split(',').map(str::parse).collect();
            Some(parts.map_err(|e| format!("tensor_split: {e}"))?)
        }
    };
    Ok(Settings {
        context_len: count("n_ctx")?,
        n_batch: count("n_batch")?,
        n_ubatch: count("n_ubatch")?,
        n_seq: count("n_seq")?,
        kv_unified: flag("kv_unified")?,
        swa_full: flag("swa_full")?,
        n_outputs_max: count("n_outputs_max")?,
        embeddings: flag("embeddings")?,
        offload_kqv: flag("offload_kqv")?,
        op_offload: flag("op_offload")?,
        cpu_moe: flag("cpu_moe")?,
        repack: flag("repack")?,
        flash_attention: match text("flash_attn")? {
            "auto" => FlashAttention::Auto,
            "on" => FlashAttention::On,
            "off" => FlashAttention::Off,
            other => return Err(format!("flash_attn `{other}`")),
        },
        type_k: ty("type_k")?,
        type_v: ty("type_v")?,
        gpu_layers: count("ngl")?,
        devices,
        tensor_split,
        load: match text("load")? {
            "mmap" if said(r, "mmap=0") => Load::Read,
            "mmap" => Load::Mmap,
            "read" => Load::Read,
            "dry-run" => Load::DryRun,
            other => return Err(format!("load `{other}`")),
        },
    })
}

struct Rows<'a> {
    id: &'a str,
    group: &'a str,
    out: Vec<Row>,
}

impl Rows<'_> {
    fn add(&mut self, metric: &str, part: Option<&str>, m: Value, p: Value, tolerance: f64) {
        let mut row = Row::new(self.id, metric, self.group, m, p, tolerance);
        row.part = part.map(str::to_string);
        self.out.push(row);
    }
    fn none(&mut self, metric: &str, part: Option<&str>, m: Value, why: &str) {
        let mut row = Row::unsupported(self.id, metric, self.group, m, why);
        row.part = part.map(str::to_string);
        self.out.push(row);
    }
}

/// Bytes by name of the memory, of one kind of use.
fn parts(e: &Estimate, kinds: &[Kind]) -> BTreeMap<String, u64> {
    let mut out = BTreeMap::new();
    for b in e.buffers.iter().filter(|b| kinds.contains(&b.kind)) {
        *out.entry(b.buft.name()).or_default() += b.bytes;
    }
    out
}

/// A metric of `bytes`: its key there, and what it is made of.
const BYTES: [(&str, &str, &[Kind]); 3] = [
    ("model_bytes", "model", &[Kind::Weights]),
    (
        "context_bytes",
        "context",
        &[Kind::KvCache, Kind::RecurrentState],
    ),
    ("compute_bytes", "compute", &[Kind::Compute]),
];
const MIB: [(&str, Kind); 3] = [
    ("kv_mib", Kind::KvCache),
    ("rs_mib", Kind::RecurrentState),
    ("output_mib", Kind::Output),
];
/// Figures that have no parts.
const PLAIN: [&str; 4] = [
    "device_total_mib",
    "host_total_mib",
    "n_ctx_actual",
    "n_ctx_seq",
];
/// Figures of a prefill that was walked through.
const POOL: &str = "pool_bytes_prefill";
const WORKSPACE: &str = "cublas_workspace_bytes";

/// MiB with the two decimals that the engine prints.
fn mib(bytes: u64) -> f64 {
    printed(bytes as f64 / (1 << 20) as f64)
}

fn printed(mib: f64) -> f64 {
    format!("{mib:.2}").parse().unwrap_or(mib)
}

/// The records' total: buffers to the byte, and the output buffer as it was printed.
fn host_mib(e: &Estimate) -> f64 {
    let output: f64 = parts(e, &[Kind::Output]).values().map(|b| mib(*b)).sum();
    let all = [
        Kind::Weights,
        Kind::KvCache,
        Kind::RecurrentState,
        Kind::Compute,
    ];
    let host = e.buffers.iter().filter(|b| !b.buft.is_device());
    let bytes: u64 = host
        .filter(|b| all.contains(&b.kind))
        .map(|b| b.bytes)
        .sum();
    printed(bytes as f64 / (1 << 20) as f64 + output)
}

fn keys(v: &Value) -> impl Iterator<Item = String> + '_ {
    v.as_object().into_iter().flat_map(|o| o.keys().cloned())
}

fn compare(rows: &mut Rows, r: &Value, e: &Estimate, pool: Result<u64, String>) {
    for (metric, key, kinds) in BYTES {
        let mut ours = parts(e, kinds);
        ours.retain(|_, b| *b > 0);
        let names: BTreeSet<String> = keys(&r["bytes"]).chain(ours.keys().cloned()).collect();
        for name in names {
            let measured = r["bytes"][&name][key].as_u64().unwrap_or(0);
            let predicted = ours.get(&name).copied().unwrap_or(0);
            rows.add(metric, Some(&name), measured.into(), predicted.into(), 0.0);
        }
    }
    for (metric, kind) in MIB {
        let ours = parts(e, &[kind]);
        let names: BTreeSet<String> = keys(&r[metric]).chain(ours.keys().cloned()).collect();
        for name in names {
            let measured = r[metric][&name].as_f64().unwrap_or(0.0);
            let predicted = mib(ours.get(&name).copied().unwrap_or(0));
            rows.add(
                metric,
                Some(&name),
                measured.into(),
                predicted.into(),
                MIB_TOLERANCE,
            );
        }
    }
    let device: u64 = e
        .buffers
        .iter()
        .filter(|b| b.buft.is_device())
        .map(|b| b.bytes)
        .sum();
    for metric in PLAIN {
        let measured = r[metric].clone();
        let (predicted, tolerance): (Value, f64) = match metric {
            "device_total_mib" => (mib(device).into(), MIB_TOLERANCE),
            "host_total_mib" => (host_mib(e).into(), MIB_TOLERANCE),
            "n_ctx_actual" => (e.context.n_ctx.into(), 0.0),
            _ => (e.context.n_ctx_seq.into(), 0.0),
        };
        rows.add(metric, None, measured, predicted, tolerance);
    }
    let runtime = &r["cuda_runtime"];
    if let Some(m) = runtime.get(WORKSPACE) {
        let ours: u64 = e.cublas_workspace_bytes.iter().sum();
        rows.add(WORKSPACE, None, m.clone(), ours.into(), 0.0);
    }
    if let Some(m) = runtime.get(POOL) {
        match pool {
            Ok(b) => rows.add(POOL, None, m.clone(), b.into(), 0.0),
            Err(why) => rows.none(POOL, None, m.clone(), &why),
        }
    }
}

fn without(rows: &mut Rows, r: &Value, why: &str) {
    for (metric, key, _) in BYTES {
        for name in keys(&r["bytes"]) {
            rows.none(metric, Some(&name), r["bytes"][&name][key].clone(), why);
        }
    }
    for (metric, _) in MIB {
        for name in keys(&r[metric]) {
            rows.none(metric, Some(&name), r[metric][&name].clone(), why);
        }
    }
    for metric in PLAIN {
        rows.none(metric, None, r[metric].clone(), why);
    }
    for metric in [POOL, WORKSPACE] {
        if let Some(m) = r["cuda_runtime"].get(metric) {
            rows.none(metric, None, m.clone(), why);
        }
    }
}
