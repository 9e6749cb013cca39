//! `published` records: figures that others measured and printed. Each source that can be expressed has a file here that repeats what
//! its script did; every other row says why it has no prediction.

mod device;
mod galore;
mod litgpt;
mod notebook;
mod qwen;
mod serving;

use super::Row;
use serde_json::Value;

/// Bytes of a GiB.
const GIB: f64 = (1u64 << 30) as f64;

/// A prediction: bytes (or 0/1 for `fits`), and how many decimals the source's script prints at least.
struct Predicted {
    value: f64,
    decimals: usize,
}

/// Why a row has no prediction.
type Why = String;

fn text<'a>(r: &'a Value, k: &str) -> &'a str {
    r.get(k).and_then(Value::as_str).unwrap_or("")
}

fn number(r: &Value, k: &str) -> Option<u64> {
    r.get(k).and_then(Value::as_u64)
}

/// `measured_metric` without its remarks: "peak_reserved (torchtitan memory metric)" is `peak_reserved`.
pub fn metric(measured: &str) -> String {
    let bare = measured.split(" (").next().unwrap_or("").trim();
    let mut out = String::with_capacity(bare.len());
    for c in bare.chars() {
        if c.is_ascii_alphanumeric() {
            out.push(c);
        } else if !out.ends_with('_') {
            out.push('_');
        }
    }
    out.trim_matches('_').to_string()
}

/// The capacity in decimal GB of an `oom_on_24GB` metric.
fn oom_capacity(measured: &str) -> Option<f64> {
    let rest = measured.strip_prefix("oom_on_")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Half a printed digit of `value`, in its own unit.
fn half_digit(value: &Value, decimals: usize) -> f64 {
    let printed = value.to_string();
    let own = printed
        .split_once('.')
        .map_or(0, |(_, d)| if d == "0" { 0 } else { d.len() });
    0.5 * 10f64.powi(-(own.max(decimals) as i32))
}

/// The row of one record: there is one metric each.
pub fn rows(record: &Value) -> Vec<Row> {
    rows_with(record, &mut |_| None)
}

/// As [`rows`]; `file` gives the bytes of a model header that llama.cpp's rows need.
pub fn rows_with(record: &Value, file: &mut dyn FnMut(&str) -> Option<Vec<u8>>) -> Vec<Row> {
    let id = text(record, "id");
    let group = format!("{}/{}", text(record, "kind"), text(record, "confidence"));
    let measured_metric = text(record, "measured_metric");
    let oom = oom_capacity(measured_metric);
    let name = if oom.is_some() {
        "fits".to_string()
    } else {
        metric(measured_metric)
    };
    let measured = match oom {
        Some(_) => 0.into(),
        None => record.get("value_gib").cloned().unwrap_or(Value::Null),
    };
    if measured_metric.starts_with("ESTIMATE") || measured.is_null() {
        return vec![Row::unsupported(
            id,
            &name,
            &group,
            measured,
            "not a measurement",
        )];
    }
    vec![match predict(record, oom, file) {
        Err(why) => Row::unsupported(id, &name, &group, measured, &why),
        Ok(p) if oom.is_some() => {
            Row::new(id, &name, &group, measured, (p.value as u64).into(), 0.0)
        }
        Ok(p) => {
            let value = record["value"].as_f64().unwrap_or(0.0);
            let gib = measured.as_f64().unwrap_or(0.0);
            let unit = if value != 0.0 { gib / value } else { 0.0 };
            let tolerance = half_digit(&record["value"], p.decimals) * unit;
            Row::new(
                id,
                &name,
                &group,
                measured,
                (p.value / GIB).into(),
                tolerance,
            )
        }
    }]
}

/// Bytes of a record's metric.
fn predict(
    r: &Value,
    oom: Option<f64>,
    file: &mut dyn FnMut(&str) -> Option<Vec<u8>>,
) -> Result<Predicted, Why> {
    match text(r, "framework") {
        "vLLM" => return serving::vllm(r),
        "llama.cpp" => return serving::llamacpp(r, file),
        _ => {}
    }
    if number(r, "num_gpus").is_some_and(|n| n > 1) {
        return Err(format!("several devices ({})", text(r, "parallelism")));
    }
    let source = text(r, "source");
    if text(r, "framework") == "litgpt" && source.contains("config_hub/finetune") {
        return litgpt::predict(r, oom);
    }
    if source.contains("fsdp_qlora nbs/00-profile_lora_qlora.ipynb") {
        return notebook::predict(r);
    }
    if source.contains("pytorch/ao test/galore") {
        return galore::predict(r);
    }
    if source.contains("QwenLM/Qwen2.5 docs/source/benchmark/speed_benchmark.rst")
        && text(r, "framework") == "transformers"
    {
        return qwen::predict(r);
    }
    if source.contains("Lightning-AI/litgpt tutorials/quantize.md") {
        return litgpt::generate(r);
    }
    let framework = match text(r, "framework") {
        "" => "unnamed framework",
        f => f,
    };
    Err(format!(
        "the script of this source ({framework}) is not modelled"
    ))
}
