//! pytorch/ao, test/galore/profile_memory_usage.py: an fp32 Llama of 1.3B parameters trained for five steps under torch.profiler, whose
//! memory timeline gives a maximum for each category.

use super::{Predicted, Why, device, number, text};
use crate::spec::*;
use crate::train::simulate;
use crate::validate::torch_run::figures;
use serde_json::Value;
use std::collections::HashMap;
use tonnage_model::arch::Head;
use tonnage_model::stack::Version;
use tonnage_model::{Attention, Stack};
use tonnage_sim::EventKind;
use tonnage_sim::alloc::{AllocatorConfig, CachingAllocator, replay};
use tonnage_sim::context::Accumulate;
use tonnage_sim::timeline::{Category, Phase, Timeline};

/// April 2024.
const TRANSFORMERS: Version = Version(4, 39, 3);

fn spec(r: &Value) -> Result<Spec, Why> {
    let optimizer = match text(r, "optimizer") {
        "torch AdamW" => "adamw_foreach",
        "bitsandbytes AdamW8bit" => "adamw8bit",
        o => return Err(format!("optimizer `{o}` is not simulated")),
    };
    Ok(Spec {
        loss: tonnage_model::Loss::Library,
        weights: None,
        work: Work::Train,
        model_type: "llama".into(),
        description: None,
        config: r["arch_params"].clone(),
        head: Head::CausalLm,
        precision: Precision::Fp32,
        attention: Attention::Sdpa,
        batch: number(r, "batch").ok_or("no batch")?,
        seq: number(r, "seq_len").ok_or("no length")?,
        target_len: None,
        image: 0,
        steps: 3,
        accumulation: 1,
        clip: None,
        zero_grad_late: false,
        set_to_none: true,
        hold: Hold::Loss,
        checkpoint: None,
        driver: Loop::Plain,
        optimizer: optimizer.into(),
        lora: None,
        quant: None,
        quant_scope: Default::default(),
        kbit_prepare: false,
        freeze: None,
        mask: Mask::Ones,
        use_cache: true,
        loading: Loading::To,
        device: device::named(text(r, "gpu")).unwrap_or(device::UNNAMED),
        stack: Stack {
            transformers: TRANSFORMERS,
            ..Stack::default()
        },
        accumulate: Accumulate::InPlaceIfSole,
    })
}

/// Highest bytes of live blocks of one category, each rounded up to 512.
fn category_peak(t: &Timeline, category: Category) -> u64 {
    let tagged: HashMap<u32, ()> = t
        .tags
        .iter()
        .filter(|g| g.category == category)
        .map(|g| (g.id, ()))
        .collect();
    let (mut now, mut peak) = (0u64, 0);
    for e in &t.events {
        let block = e.bytes.div_ceil(512) * 512;
        match e.kind() {
            EventKind::Alloc { id } if tagged.contains_key(&id) => now += block,
            EventKind::Free { id } if tagged.contains_key(&id) => now -= block,
            _ => continue,
        }
        peak = peak.max(now);
    }
    peak
}

/// What the forward pass adds at most: the profiler calls its results activations.
fn activation_peak(t: &Timeline) -> Result<u64, Why> {
    let marks: Vec<usize> = t.marks.iter().map(|m| m.at).collect();
    let mut a = CachingAllocator::new(AllocatorConfig::default(), None);
    let r = replay(&t.events, &marks, &mut a).map_err(|e| e.to_string())?;
    let last = t
        .marks
        .iter()
        .rposition(|m| m.phase == Phase::Forward)
        .ok_or("no forward")?;
    Ok(r.per_mark[last].allocated - r.at_mark[last].allocated)
}

pub fn predict(r: &Value) -> Result<Predicted, Why> {
    let m = text(r, "measured_metric");
    let spec = spec(r)?;
    let run = || simulate(&spec).map_err(|e| e.to_string());
    let value = match m.strip_prefix("profiler category max: ") {
        Some("parameter") => run()?.param_bytes,
        Some("optimizer_state") => category_peak(&run()?.timeline, Category::OptimizerState),
        Some("gradient") => category_peak(&run()?.timeline, Category::Gradients),
        Some("activation") => activation_peak(&run()?.timeline)?,
        Some(c) => return Err(format!("the profiler's category `{c}`")),
        // tables that no operator touches were allocated before the profiler began, which does not know them
        None if m.starts_with("peak_allocated") => {
            let s = run()?;
            figures(&s.timeline).peak_allocated - s.buffer_bytes
        }
        None => return Err(format!("metric `{m}`")),
    };
    Ok(Predicted {
        value: value as f64,
        decimals: 1,
    })
}
