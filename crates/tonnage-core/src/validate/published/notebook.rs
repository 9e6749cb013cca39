//! AnswerDotAI/fsdp_qlora, nbs/00-profile_lora_qlora.ipynb: a 1B Llama in bf16, for each of four lengths one forward call and
//! `output.logits.mean().backward()`, with `memory_allocated()` printed after each.

use super::{Predicted, Why, device, number, text};
use crate::spec::Precision;
use serde_json::Value;
use std::rc::Rc;
use tonnage_model::adapt::lora::{self, Base};
use tonnage_model::adapt::{LoraOptions, Targets};
use tonnage_model::arch::{self, Batch, Head};
use tonnage_model::stack::Version;
use tonnage_model::{Attention, Run, RunOptions, Stack};
use tonnage_sim::alloc::{AllocatorConfig, CachingAllocator, replay};
use tonnage_sim::checkpoint::Checkpointing;
use tonnage_sim::context::{Accumulate, DeviceModel};
use tonnage_sim::timeline::Phase;
use tonnage_sim::{Cx, OpId, ScalarType, Shape, backward, ops};

/// The lengths of the notebook's inputs, in order.
const LENGTHS: [u64; 4] = [512, 1024, 2048, 3072];

/// `max_position_embeddings` of `LlamaConfig()`.
const POSITIONS: u64 = 2048;

/// 2024-03; 4.38's mask buffer is not in the printed sizes of the model, so 4.37.
const TRANSFORMERS: Version = Version(4, 37, 2);

struct Cell {
    lora: bool,
    checkpoint: bool,
    /// No gradients (the model stays in training mode); the output keeps logits and the cache.
    inference: bool,
    /// Training cells ran before in the same process, so the backward thread has its cuBLAS workspace.
    warm: bool,
}

fn one(cx: &Cx, config: &Value, cell: &Cell, s: u64) -> Result<(), Why> {
    let stack = Stack {
        transformers: TRANSFORMERS,
        ..Stack::default()
    };
    let mut config = config.clone();
    // beyond the configured positions the tables are made anew at the first call, so the longer ones are what is alive
    config["max_position_embeddings"] = POSITIONS.max(s).into();
    let built = arch::build("llama", &config, Head::CausalLm, &stack).map_err(|e| e.to_string())?;
    let options = RunOptions {
        loss: tonnage_model::Loss::Library,
        dtype: Precision::Pure(ScalarType::BF16).weights(),
        attention: Attention::Sdpa,
        training: true,
        use_cache: true,
        checkpoint: cell.checkpoint.then(Checkpointing::default),
        stack,
    };
    cx.mark(-1, 0, Phase::Load);
    let mut run = Run::new(cx, built.net, options);
    run.load_all();
    if cell.lora {
        let names = Targets::Names(vec!["q_proj".into(), "v_proj".into()]);
        let mut o = LoraOptions::new(8, names, 0.1);
        // `model.to("cuda", torch.bfloat16)` after `get_peft_model`
        o.fp32_adapters = false;
        lora::apply(&mut run, &o, |_, _| (Base::Dense, Some(ScalarType::BF16)))
            .map_err(|e| e.to_string())?;
    }
    let run = Rc::new(run);
    cx.mark(0, 0, Phase::Forward);
    let ids = cx.empty(OpId::INPUT, Shape::new(&[1, s]), ScalarType::I64);
    let batch = Batch {
        input_ids: Some(ids),
        ..Batch::default()
    };
    let out = if cell.inference {
        cx.with_grad(false, || built.arch.forward(&run, &batch))
    } else {
        built.arch.forward(&run, &batch)
    };
    drop(batch);
    cx.mark(0, 0, Phase::Backward);
    if cell.inference {
        cx.mark(0, 0, Phase::Between);
        drop(out);
        drop(run);
        cx.empty_cache();
        return Ok(());
    }
    let logits = out.logits.as_ref().ok_or("a model without logits")?;
    let loss = ops::mean(cx, logits, &[], false);
    backward(cx, &loss);
    drop(loss);
    cx.mark(0, 0, Phase::Between);
    drop(out);
    drop(run);
    cx.empty_cache();
    Ok(())
}

pub fn predict(r: &Value) -> Result<Predicted, Why> {
    let cell = match text(r, "source")
        .split("ipynb cell ")
        .nth(1)
        .and_then(|c| c.split('@').next())
    {
        Some("12") => Cell {
            lora: false,
            checkpoint: false,
            inference: true,
            warm: false,
        },
        Some("16") => Cell {
            lora: true,
            checkpoint: false,
            inference: true,
            warm: true,
        },
        Some("13") => Cell {
            lora: false,
            checkpoint: false,
            inference: false,
            warm: false,
        },
        Some("17") => Cell {
            lora: true,
            checkpoint: false,
            inference: false,
            warm: true,
        },
        // its first printed model size has one workspace: the process was new
        Some("19") => Cell {
            lora: true,
            checkpoint: true,
            inference: false,
            warm: false,
        },
        _ => {
            return Err("this cell of the notebook is not modelled (4-bit or HQQ weights)".into());
        }
    };
    let point = match text(r, "measured_metric") {
        "allocated_after_model_to_gpu" => 1,
        "allocated_after_forward" => 2,
        "allocated_after_backward" => 3,
        m => return Err(format!("metric `{m}`")),
    };
    let seq = number(r, "seq_len").ok_or("no length")?;
    let at = LENGTHS
        .iter()
        .position(|l| *l == seq)
        .ok_or("a length that the notebook does not have")?;
    let kernel = device::named(text(r, "gpu")).unwrap_or(device::UNNAMED);
    let cx = Cx::new(DeviceModel { kernel }, Accumulate::InPlaceIfSole);
    // the notebook's warm-up cells ran inference
    cx.gemm();
    if cell.warm {
        one(
            &cx,
            &r["arch_params"],
            &Cell {
                lora: false,
                checkpoint: false,
                inference: false,
                warm: false,
            },
            LENGTHS[0],
        )?;
    }
    for s in &LENGTHS[..=at] {
        one(&cx, &r["arch_params"], &cell, *s)?;
    }
    let t = cx.take_timeline();
    cx.close();
    let marks: Vec<usize> = t.marks.iter().map(|m| m.at).collect();
    let mut a = CachingAllocator::new(AllocatorConfig::default(), None);
    let p = replay(&t.events, &marks, &mut a).map_err(|e| e.to_string())?;
    let level = p.at_mark[p.at_mark.len() - 4 + point];
    Ok(Predicted {
        value: level.allocated as f64,
        decimals: 3,
    })
}
