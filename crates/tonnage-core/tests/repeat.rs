//! A run that stops where it repeats has the figures of the whole run.

use serde_json::json;
use std::collections::BTreeMap;
use tonnage_core::spec::{Hold, Loop, Precision, Spec};
use tonnage_core::validate::torch_run;
use tonnage_core::{Simulated, simulate, simulate_until_repeat};
use tonnage_sim::alloc::{AllocatorConfig, Peaks};
use tonnage_units::ScalarType::{BF16, F16};

fn tiny(lora: bool) -> Spec {
    let args = json!({"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 4096, "tie_word_embeddings": !lora});
    let mut config = json!({"kind": "train", "model": {"family": "llama", "args": args}, "gpu": "a100-sxm4-80gb",
        "precision": "bf16", "batch": 3, "seq": 200, "optim": "adamw_foreach"});
    if lora {
        config["peft"] = json!({"r": 8, "targets": ["q_proj", "v_proj", "down_proj"]});
        config["ckpt"] = json!(true);
    }
    torch_run::spec(&json!({"config": config, "versions": {}})).expect("a valid job")
}

/// Peaks of the run, and of each phase.
fn figures(s: &Simulated) -> (u64, u64, u64, u64, BTreeMap<&'static str, Peaks>) {
    let f = torch_run::figures(&s.timeline);
    let mut phases: BTreeMap<&'static str, Peaks> = BTreeMap::new();
    for (m, p) in s.timeline.marks.iter().zip(&f.per_mark) {
        let k = phases.entry(m.phase.name()).or_default();
        k.allocated = k.allocated.max(p.allocated);
        k.reserved = k.reserved.max(p.reserved);
        k.requested = k.requested.max(p.requested);
    }
    (
        f.peak_allocated,
        f.peak_reserved,
        f.peak_requested,
        f.load_peak_allocated,
        phases,
    )
}

fn equal(spec: &Spec, config: &AllocatorConfig) -> bool {
    let short = simulate_until_repeat(spec, config).expect("a supported job");
    let whole = simulate(spec).expect("a supported job");
    assert_eq!(
        figures(&short),
        figures(&whole),
        "{:?} {} {:?}, {} steps of {}",
        spec.driver,
        spec.optimizer,
        spec.precision,
        spec.steps,
        spec.accumulation
    );
    assert!(whole.cut.is_none());
    let cut = short.cut.is_some();
    assert_eq!(
        cut,
        short.timeline.events.len() < whole.timeline.events.len()
    );
    cut
}

#[test]
fn figures_of_a_cut_run_are_those_of_the_whole() {
    let config = AllocatorConfig::default();
    let (mut cut, mut all) = (0, 0);
    for lora in [false, true] {
        for driver in [Loop::Plain, Loop::Trainer] {
            for optimizer in ["adamw_foreach", "adamw_fused", "sgd"] {
                for precision in [Precision::Pure(BF16), Precision::Mixed(F16)] {
                    for (steps, accumulation) in [(50, 1), (3, 9), (12, 5)] {
                        for odd in [false, true] {
                            let mut s = tiny(lora);
                            (s.driver, s.precision) = (driver, precision);
                            (s.steps, s.accumulation) = (steps, accumulation);
                            s.optimizer = optimizer.into();
                            if odd {
                                (s.set_to_none, s.clip, s.hold) = (false, Some(1.0), Hold::Loss);
                            }
                            all += 1;
                            cut += u32::from(equal(&s, &config));
                        }
                    }
                }
            }
        }
    }
    assert!(cut * 2 >= all, "only {cut} of {all} runs were cut");
}

#[test]
fn three_steps_and_fifty_have_the_same_peaks_once_the_layout_repeats() {
    let config = AllocatorConfig::default();
    let mut s = tiny(true);
    s.steps = 50;
    let long = simulate_until_repeat(&s, &config).expect("a supported job");
    let last = long
        .timeline
        .marks
        .iter()
        .map(|m| m.step)
        .filter(|k| *k < 50);
    assert!(
        last.max().expect("steps") < 10,
        "the layout settles in a few steps"
    );
    s.steps = 3;
    assert_eq!(
        figures(&long).0,
        figures(&simulate(&s).expect("a supported job")).0
    );
}

#[test]
fn expandable_segments_repeat_too() {
    let config: AllocatorConfig = AllocatorConfig {
        expandable_segments: true,
        ..AllocatorConfig::default()
    };
    let mut s = tiny(false);
    (s.steps, s.accumulation) = (20, 6);
    let short = simulate_until_repeat(&s, &config).expect("a supported job");
    let whole = simulate(&s).expect("a supported job");
    let peaks = |t: &Simulated| {
        let mut a = tonnage_sim::alloc::CachingAllocator::new(config.clone(), None);
        tonnage_sim::alloc::replay(&t.timeline.events, &[], &mut a)
            .expect("no limit")
            .peaks
    };
    assert!(short.cut.is_some());
    assert_eq!(peaks(&short), peaks(&whole));
}
