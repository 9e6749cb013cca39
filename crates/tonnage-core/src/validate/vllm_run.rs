//! Records of vLLM's start-up (`vllm-run`, groundtruth/vllm-README.md).

use super::Row;
use crate::error::CoreError;
use crate::serve::vllm::{self, Card, Model, Refusal, Settings};
use serde_json::{Value, json};

/// `org--name` of the record to the model's configuration, with the record's own keys put in.
fn model(r: &Value) -> Result<Model, CoreError> {
    let id = r["config"]["model"].as_str().unwrap_or_default();
    let text = tonnage_catalog::model_config(&id.replacen("--", "/", 1))
        .ok_or_else(|| CoreError::Unsupported(format!("no configuration of `{id}`")))?;
    let mut config: Value = serde_json::from_str(text).map_err(|e| CoreError::Invalid {
        field: id.into(),
        problem: e.to_string(),
    })?;
    if let (Some(patch), Some(c)) = (
        r["config"]["patch_config"].as_object(),
        config.as_object_mut(),
    ) {
        for (k, v) in patch {
            c.insert(k.clone(), v.clone());
        }
    }
    if let (Some(q), Some(c)) = (r["config"]["quantization"].as_str(), config.as_object_mut()) {
        c.insert("quantization_config".into(), json!({"quant_method": q}));
    }
    vllm::model::read(&config)
}

fn settings(r: &Value) -> Settings {
    let (c, v) = (&r["config"], &r["resolved"]);
    let n = |k: &str| v[k].as_u64().or(c[k].as_u64()).unwrap_or(1);
    Settings {
        max_model_len: n("max_model_len"),
        max_num_batched_tokens: n("max_num_batched_tokens"),
        max_num_seqs: n("max_num_seqs"),
        gpu_memory_utilization: c["gpu_memory_utilization"]
            .as_f64()
            .or(v["gpu_memory_utilization"].as_f64())
            .unwrap_or(0.92),
        tensor_parallel_size: v["tp"].as_u64().unwrap_or(1),
        block_size: c["block_size"].as_u64(),
        kv_bytes: match v["kv_cache_dtype"].as_str() {
            Some(k) if k.starts_with("fp8") => 1,
            _ => 2,
        },
        enable_prefix_caching: v["enable_prefix_caching"].as_bool().unwrap_or(true),
        enforce_eager: r["mode"] == "eager",
        inductor_cache_warm: r["inductor_cache"] == "warm",
        kv_cache_memory_bytes: None,
    }
}

fn card(r: &Value) -> Card {
    let gpu = r["gpu"].as_str().unwrap_or_default();
    Card {
        total: r["total_memory"].as_u64().unwrap_or(0),
        free: r["init_free_memory"].as_u64().unwrap_or(0),
        hopper: gpu.starts_with('h'),
        fp8: !gpu.starts_with('a'),
        multiprocessors: tonnage_catalog::gpu(gpu)
            .ok()
            .and_then(|g| g.sm_count)
            .unwrap_or(0)
            .into(),
    }
}

fn kind(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::NoMemory { .. } => "no memory for the cache",
        Refusal::TooLong { .. } => "max_model_len",
        Refusal::NotFree { .. } => "not free",
        Refusal::OutOfMemory { .. } => "out of memory",
    }
}

/// The refusal that a record's text is.
fn recorded(error: &str) -> &'static str {
    if error.contains("To serve at least one request") {
        "max_model_len"
    } else if error.contains("No available memory for the cache blocks") {
        "no memory for the cache"
    } else if error.contains("Free memory on device") {
        "not free"
    } else {
        "out of memory"
    }
}

/// The record's rows.
pub fn rows(r: &Value) -> Vec<Row> {
    let id = r["id"].as_str().unwrap_or("?");
    let refused = r["status"] == "refused";
    let group = match (refused, r.get("available_kv_bytes_given").is_some()) {
        (true, _) => "refused",
        (_, true) => "given",
        _ => "measured",
    };
    let row = |metric: &str, p: Result<Value, String>| {
        let measured = if metric == "refusal" {
            json!(recorded(r["error"].as_str().unwrap_or_default()))
        } else {
            r[metric.trim_end_matches(".end_to_end")].clone()
        };
        match p {
            // the last digits of a printed ratio
            Ok(p) if metric.starts_with("max_concurrency") => {
                Row::new(id, metric, group, measured, p, 1e-9)
            }
            Ok(p) => Row::new(id, metric, group, measured, p, 0.0),
            Err(why) => Row::unsupported(id, metric, group, measured, &why),
        }
    };
    let (s, card) = (settings(r), card(r));
    let m = model(r).map_err(|e| e.to_string());
    let started = m
        .as_ref()
        .map_err(String::clone)
        .and_then(|m| vllm::start(m, &s, &card).map_err(|e| e.to_string()));
    let given = r["available_kv_bytes"].as_i64();
    let planned = |available: Option<i64>| -> Result<Result<vllm::Pool, Refusal>, String> {
        let m = m.as_ref().map_err(String::clone)?;
        let available = available.ok_or("no KV budget in the record")?;
        Ok(vllm::pool(m, &s, &card, available))
    };
    let whole = || -> Result<Result<vllm::Pool, Refusal>, String> {
        let m = m.as_ref().map_err(String::clone)?;
        let up = started.as_ref().map_err(String::clone)?;
        Ok(vllm::outcome(m, &s, &card, up))
    };
    if refused {
        let ours = match given {
            Some(_) => planned(given),
            None => whole(),
        };
        let p = ours.map(|o| json!(o.as_ref().err().map_or("starts", kind)));
        return vec![row("refusal", p)];
    }
    let mut out = vec![];
    if group == "measured" {
        let part = |f: fn(&vllm::Startup) -> Value| started.as_ref().map(f).map_err(String::clone);
        out.push(row("weights_bytes", part(|s| json!(s.weights_bytes))));
        out.push(row(
            "profile_peak_activation_bytes",
            part(|s| json!(s.profile_peak_activation_bytes)),
        ));
        out.push(row(
            "cudagraph_memory_estimate",
            part(|s| json!(s.cudagraph_memory_estimate)),
        ));
        out.push(row(
            "available_kv_bytes",
            part(|s| json!(s.available_kv_bytes)),
        ));
    }
    let figures = |p: Result<Result<vllm::Pool, Refusal>, String>, suffix: &str| -> Vec<Row> {
        let one = |metric: &str, f: fn(&vllm::Pool) -> Value| {
            let p = match &p {
                Err(why) => Err(why.clone()),
                Ok(Ok(pool)) => Ok(f(pool)),
                Ok(Err(refusal)) => Ok(json!(refusal.to_string())),
            };
            row(&format!("{metric}{suffix}"), p)
        };
        vec![
            one("num_gpu_blocks", |p| json!(p.num_gpu_blocks)),
            one("kv_tokens", |p| json!(p.kv_tokens)),
            one("max_concurrency", |p| json!(p.max_concurrency)),
        ]
    };
    out.extend(figures(planned(given), ""));
    if group == "measured" {
        out.extend(figures(whole(), ".end_to_end"));
    }
    out
}
