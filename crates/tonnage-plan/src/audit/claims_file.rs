//! Claims as data: `{"claims": [{"id", "lines", "job", "phase", "what", "low", "high", "unit", "override", ...}]}`.

use super::claim::{Claim, Method, Part, Phase, Role, Unit, What};
use serde_json::{Map, Value};
use tonnage_core::Diagnostic;

/// Is this text a file of claims, not a document?
pub fn is_claims(text: &str) -> bool {
    text.trim_start().starts_with('{')
}

/// Reads a file of claims.
///
/// # Errors
/// What is wrong with it, with the claim's name.
pub fn read(file: &str, text: &str) -> Result<Vec<Claim>, Diagnostic> {
    let bad = |m: String| Diagnostic::error("bad-claims", format!("{file}: {m}"));
    let root: Value = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
    let list = root
        .get("claims")
        .and_then(Value::as_array)
        .ok_or_else(|| bad("no list \"claims\"".into()))?;
    let mut out = Vec::new();
    for (i, c) in list.iter().enumerate() {
        let o = c
            .as_object()
            .ok_or_else(|| bad(format!("claim {} is no table", i + 1)))?;
        let id = text_of(o, "id").unwrap_or_else(|| format!("claim {}", i + 1));
        one(&id, o, &mut out).map_err(|m| bad(format!("{id}: {m}")))?;
    }
    Ok(out)
}

fn text_of(o: &Map<String, Value>, key: &str) -> Option<String> {
    match o.get(key)? {
        Value::String(s) => Some(s.clone()),
        Value::Number(n) => Some(n.to_string()),
        _ => None,
    }
}

/// `8`, `"float16"`, `[8, 16]` as a setting's text; `None`: null, the document leaves it open.
fn setting(v: &Value) -> Option<String> {
    match v {
        Value::Null => None,
        Value::String(s) => Some(s.clone()),
        Value::Array(l) => Some(l.iter().filter_map(setting).collect::<Vec<_>>().join("-")),
        other => Some(other.to_string()),
    }
}

fn one(id: &str, o: &Map<String, Value>, out: &mut Vec<Claim>) -> Result<(), String> {
    let lines = text_of(o, "lines").unwrap_or_default();
    let first = lines.split(['-', ',']).next().unwrap_or("").trim().parse();
    let document = text_of(o, "seed").unwrap_or_default();
    let mut c = Claim::at(id, first.unwrap_or(0), format!("{document}:{lines}"));
    c.subject = text_of(o, "job").ok_or("no job")?;
    let phase = text_of(o, "phase").unwrap_or_default();
    c.phase = match phase.as_str() {
        "training" => Phase::Training,
        "generation" | "inference" | "evaluation" | "model test" => Phase::Inference,
        "both" => Phase::Any,
        other => return Err(format!("the phase {other:?} is not known")),
    };
    let said = text_of(o, "what").ok_or("no what")?;
    c.text = format!("{} {phase} {said}", c.subject);
    c.gpu = text_of(o, "gpu");
    c.verdict = text_of(o, "verdict");
    let word = text_of(o, "unit").unwrap_or_default();
    c.unit = Unit::parse(&word).ok_or_else(|| format!("the unit {word:?} is not known"))?;
    c.low = o.get("low").and_then(Value::as_f64).unwrap_or(0.0);
    c.high = o.get("high").and_then(Value::as_f64);
    if let Some(over) = o.get("override").and_then(Value::as_object) {
        c.settings = over
            .iter()
            .filter_map(|(k, v)| Some((k.clone(), setting(v)?)))
            .collect();
    }
    let gb = Unit::parse("GB").unwrap_or(Unit::None);
    let number = |k: &str| o.get(k).and_then(Value::as_f64);
    match said.as_str() {
        "card" => return cards(&c, o, out),
        "largest model for this memory" => {
            let memory = number("gpu_gb").ok_or("no gpu_gb")?;
            for m in [Method::Full, Method::Lora, Method::Qlora] {
                if let Some(model) = text_of(o, m.name()) {
                    let mut c = c.clone();
                    c.id = format!("{id}.{}", m.name());
                    (c.low, c.high, c.unit) = (memory, Some(memory), gb);
                    c.answer = Some(model);
                    c.what = What::Largest(m);
                    out.push(c);
                }
            }
            return Ok(());
        }
        "memory needed" => {
            for (key, m) in [
                ("qlora_minimum_gb", Method::Qlora),
                ("lora_recommended_gb", Method::Lora),
                ("full_ideal_gb", Method::Full),
            ] {
                if let Some(v) = number(key) {
                    let mut c = c.clone();
                    c.id = format!("{id}.{}", m.name());
                    (c.low, c.high, c.unit) = (v, Some(v), gb);
                    c.what = What::Needed(m);
                    c.settings.insert("method".into(), m.name().into());
                    out.push(c);
                }
            }
            return Ok(());
        }
        _ => {}
    }
    c.gpu_memory = number("gpu_gb");
    if let Some(gpu_gb) = c.gpu_memory.filter(|_| c.gpu.is_some()) {
        // the card's memory is a claim of its own
        let mut card = c.clone();
        card.id = format!("{id}.card");
        (card.low, card.high, card.unit) = (gpu_gb, Some(gpu_gb), gb);
        card.what = What::Card(Role::Fits);
        card.settings.clear();
        card.answer = None;
        out.push(card);
    }
    c.what = what(&said, o);
    let parts = o.get("parts_mb").and_then(Value::as_object);
    for (k, v) in parts.into_iter().flatten() {
        let (Some(p), Some(v)) = (part(k), v.as_f64()) else {
            return Err(format!("the part {k:?} is not known"));
        };
        let mut row = c.clone();
        row.id = format!("{id}.{k}");
        row.block = format!("{}/{said}", c.block);
        row.what = What::Part(p);
        (row.low, row.high) = (v, Some(v));
        row.unit = Unit::parse("MB").unwrap_or(Unit::None);
        row.settings.insert("case".into(), said.clone());
        out.push(row);
    }
    if parts.is_some() {
        c.block = format!("{}/{said}", c.block);
    }
    out.push(c);
    Ok(())
}

/// A part's name in any of the usual words.
pub fn part(word: &str) -> Option<Part> {
    Some(match word.trim().to_ascii_lowercase().as_str() {
        "weights" | "model" | "model weights" | "parameters" | "model parameters"
        | "base model" => Part::Weights,
        "lora" | "adapter" | "adapters" | "lora adapters" | "lora parameters" => Part::Adapter,
        "gradients" | "gradient" => Part::Gradients,
        "optimizer" | "optimizer states" | "optimizer state" | "adam states" | "optimiser" => {
            Part::Optimizer
        }
        "activations" | "activation" | "saved activations" => Part::Activations,
        "backward" | "backward pass" => Part::Backward,
        "kv cache" | "kv-cache" | "cache" => Part::KvCache,
        "inputs" | "input" | "io" | "input data" | "batch data" => Part::Inputs,
        "working" | "working memory" | "temporary" => Part::Working,
        "overhead" | "cuda overhead" | "system overhead" | "context" | "framework overhead" => {
            Part::Overhead
        }
        _ => return None,
    })
}

fn what(said: &str, o: &Map<String, Value>) -> What {
    if let Some(p) = part(said) {
        return What::Part(p);
    }
    if let Some(case) = said.strip_prefix("total ") {
        if ["minimum", "typical", "maximum"].contains(&case) {
            return What::Case(case.into());
        }
        if case == "to weights ratio" {
            return What::TotalToWeights;
        }
    }
    if let Some(of) = said
        .strip_prefix("saving from ")
        .or_else(|| said.strip_prefix("saving "))
    {
        return What::Saving(of.into());
    }
    match said {
        "total" => What::Total,
        "parameters (millions)" => What::Parameters,
        "recommended card" => What::Card(Role::Recommended),
        "recommended minimum card" => What::Card(Role::Minimum),
        "optimal card" => What::Card(Role::Optimal),
        "card fits" => What::Card(Role::Fits),
        "recommended" => What::Case("recommended".into()),
        "recommended batch size" => What::Batch,
        "training to generation ratio" => What::TrainToGenerate,
        "advice threshold" => What::Threshold(text_of(o, "level").unwrap_or_default()),
        "advice level" => What::Level(text_of(o, "low").unwrap_or_default()),
        _ if said.starts_with("extra for ") => What::Extra(said.into()),
        _ => What::Other(said.into()),
    }
}

/// "minimum" and "recommended" of one row of a table of cards: a claim each.
fn cards(c: &Claim, o: &Map<String, Value>, out: &mut Vec<Claim>) -> Result<(), String> {
    for (key, role) in [
        ("minimum", Role::Minimum),
        ("recommended", Role::Recommended),
    ] {
        let Some(gpu) = text_of(o, key) else { continue };
        let mut c = c.clone();
        c.id = format!("{}.{key}", c.id);
        c.what = What::Card(role);
        let gb = o.get(&format!("{key}_gb")).and_then(Value::as_f64);
        let (name, memory) = super::amounts::card(&gpu);
        if let Some(v) = gb.or(memory) {
            (c.low, c.high, c.gpu_memory) = (v, Some(v), Some(v));
            c.unit = Unit::parse("GB").unwrap_or(Unit::None);
        }
        if gpu.to_ascii_lowercase().contains("lora") {
            c.settings.insert("method".into(), "lora".into());
        }
        c.gpu = Some(name).filter(|n| n != "any");
        out.push(c);
    }
    Ok(())
}
