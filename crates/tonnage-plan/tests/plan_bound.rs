//! The planner's bound against full simulations: no run requests less than it, and mostly exactly that much.

use proptest::prelude::*;
use tonnage_catalog::gpu;
use tonnage_core::{Job, simulate};
use tonnage_plan::plan::bound::{bounds, known};
use tonnage_plan::time::step_work;
use tonnage_sim::timeline::EventKind;

fn job(settings: &[(&str, String)]) -> Job {
    let mut j = Job::new("test", "flags");
    for (k, v) in settings {
        j.set_text(k, v)
            .unwrap_or_else(|e| panic!("{k} = {v}: {e}"));
    }
    j
}

fn requested(j: &Job) -> u64 {
    let sim = simulate(&j.spec(&gpu("rtx-4090").unwrap()).unwrap()).unwrap();
    let (mut now, mut top) = (0i64, 0i64);
    for e in &sim.timeline.events {
        match e.kind() {
            EventKind::Alloc { .. } => now += e.bytes as i64,
            EventKind::Free { .. } => now -= e.bytes as i64,
            EventKind::EmptyCache => {}
        }
        top = top.max(now);
    }
    top as u64
}

/// Settings of a small model of `layers` layers.
fn settings(
    family: usize,
    layers: u64,
    seq: u64,
    checkpoint: usize,
    loss: usize,
    method: usize,
    precision: usize,
) -> Vec<(&'static str, String)> {
    let model = ["HuggingFaceTB/SmolLM2-135M", "gpt2", "Qwen/Qwen2.5-0.5B"][family];
    let key = if family == 1 {
        "model.config.n_layer"
    } else {
        "model.config.num_hidden_layers"
    };
    let mut s = vec![
        ("model", model.to_string()),
        (key, layers.to_string()),
        ("seq-len", seq.to_string()),
        (
            "checkpointing",
            ["none", "full", "selective"][checkpoint].into(),
        ),
        (
            "precision",
            ["bf16", "bf16-mixed", "fp32"][precision].into(),
        ),
    ];
    if family != 1 && loss > 0 {
        s.push(("loss", ["library", "fused", "chunked"][loss].into()));
    }
    if family != 1 && method > 0 {
        s.push(("lora-r", "8".into()));
        s.push(("lora-targets", "all-linear".into()));
        if method > 1 {
            s.push(("quant", "nf4".into()));
        }
    }
    s
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn no_run_requests_less_than_the_bound(
        family in 0usize..3, layers in 4u64..11, seq in 1u64..9, checkpoint in 0usize..3, loss in 0usize..3, method in 0usize..3,
        precision in 0usize..3, batch in 1u64..9, accumulation in 1u64..4,
    ) {
        let s = settings(family, layers, seq * 96, checkpoint, loss, method, precision);
        let j = job(&s);
        let spec = match j.spec(&gpu("rtx-4090").unwrap()) {
            Ok(s) => s,
            Err(_) => return Ok(()),
        };
        // several batches together, as a search asks: those between come from the line
        let splits = [(batch, accumulation), (batch + 4, accumulation), (batch + 9, accumulation)];
        let Ok(found) = bounds(&spec, &splits) else { return Ok(()) };
        for ((batch, accumulation), b) in splits.iter().zip(&found) {
            let mut full = s.clone();
            full.push(("batch-size", batch.to_string()));
            full.push(("accumulation", accumulation.to_string()));
            let real = requested(&job(&full));
            prop_assert!(b.requested <= real, "bound {} above {real}: {full:?}", b.requested);
            // and it is near: what ranks settings is worth something
            prop_assert!(b.requested as f64 >= 0.8 * real as f64, "bound {} far below {real}: {full:?}", b.requested);
            // the work is the full model's
            let spec = job(&full).spec(&gpu("rtx-4090").unwrap()).unwrap();
            let w = step_work(&spec).unwrap();
            let (x, y) = (w.flops(), b.work.flops());
            prop_assert!((x / y - 1.0).abs() < 0.01, "work {y} for {x}: {full:?}");
            prop_assert_eq!(w.tokens_per_step(), b.work.tokens_per_step());
        }
    }
}

/// Another optimizer's bounds from a shared run are those of its own runs, and its work too.
#[test]
fn an_optimizer_beside_another_has_its_own_bounds() {
    let splits = [(1, 8), (2, 4), (4, 2), (8, 1), (5, 2)];
    let mut shared = 0;
    for (family, method, checkpoint) in [(0, 0, 0), (0, 2, 1), (1, 0, 2), (2, 1, 0)] {
        let spec = |optimizer: &str| {
            let mut s = settings(family, 8, 192, checkpoint, 0, method, 1);
            s.push(("optimizer", optimizer.into()));
            job(&s).spec(&gpu("rtx-4090").unwrap()).unwrap()
        };
        let lead = known(&spec("adamw_foreach"), &splits).unwrap();
        for o in ["adamw_fused", "adamw8bit", "paged_adamw32bit", "adafactor"] {
            let Some(found) = lead.beside(&spec(o), &splits) else {
                continue;
            };
            shared += 1;
            let own = bounds(&spec(o), &splits).unwrap();
            for (f, x) in found.iter().zip(&own) {
                assert_eq!(f.requested, x.requested, "{o} of {family}");
                assert_eq!(f.work.pass, x.work.pass, "{o} of {family}");
                let (a, b) = (f.work.optimizer_bytes, x.work.optimizer_bytes);
                assert!((a / b - 1.0).abs() < 1e-9, "{o} of {family}: {a} for {b}");
            }
        }
    }
    // most share
    assert!(shared >= 12, "{shared} of 16");
}
