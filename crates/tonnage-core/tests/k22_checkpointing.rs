//! K22: activation checkpointing. Saved activations fall to one input a layer, plus what one layer's recomputation makes; never below.

mod events;

use events::{OWN, exact_rows, groundtruth, own_trace, records, unobserved};
use serde_json::{Value, json};
use tonnage_core::simulate;
use tonnage_core::validate::torch_run::{figures, spec};
use tonnage_sim::EventKind;
use tonnage_sim::timeline::Phase;

/// Recorded jobs that say how they checkpoint.
fn recorded() -> Vec<Value> {
    let mut all = records(OWN);
    all.retain(|r| r["config"]["ckpt"].is_object());
    all
}

#[test]
fn k22_recorded_checkpointing_is_exact() {
    let all = recorded();
    for key in ["reentrant", "selective", "every"] {
        let n = all
            .iter()
            .filter(|r| !r["config"]["ckpt"][key].is_null())
            .count();
        assert!(n >= 3, "{key}: {n} records");
    }
    exact_rows(&all);
}

#[test]
fn k22_events_are_those_of_recorded_checkpointing() {
    let mut compared = 0;
    for r in recorded() {
        let id = r["id"].as_str().unwrap();
        if !groundtruth(&own_trace(id)).exists() {
            continue;
        }
        unobserved(&r);
        compared += 1;
    }
    assert!(compared >= 5, "{compared} traces");
}

const BATCH: u64 = 4;
const SEQ: u64 = 256;
const HIDDEN: u64 = 256;
/// One layer's input in bf16.
const INPUT: u64 = BATCH * SEQ * HIDDEN * 2;

/// A llama of `layers` layers: (bytes in blocks that forward made in the embedding and the decoder layers and that live when
/// backward starts, allocated bytes at the peak of backward).
fn kept(layers: u64, ckpt: Value) -> (u64, u64) {
    let r = json!({"id": "job", "config": {"kind": "train", "gpu": "a100-sxm4-80gb", "precision": "bf16", "batch": BATCH, "seq": SEQ,
        "steps": 1, "optim": "sgd", "ckpt": ckpt,
        "model": {"family": "llama", "args": {"hidden_size": HIDDEN, "intermediate_size": 1024, "num_hidden_layers": layers,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000}}}});
    let sim = simulate(&spec(&r).unwrap()).unwrap();
    let marks = &sim.timeline.marks;
    let at = |p: Phase| marks.iter().position(|m| m.phase == p).unwrap();
    let (forward, backward) = (at(Phase::Forward), at(Phase::Backward));
    let mut alive = std::collections::HashMap::new();
    for e in &sim.timeline.events[marks[forward].at..marks[backward].at] {
        match e.kind() {
            EventKind::Alloc { id } => {
                let module = &sim.modules[(e.owner >> 12) as usize];
                if module == "model.embed_tokens" || module.starts_with("model.layers.") {
                    alive.insert(id, e.bytes);
                }
            }
            EventKind::Free { id } => {
                alive.remove(&id);
            }
            EventKind::EmptyCache => {}
        }
    }
    let peak = figures(&sim.timeline).per_mark[backward].allocated;
    (alive.values().sum(), peak)
}

#[test]
fn k22_saved_activations_fall_to_one_input_per_layer_and_not_below() {
    let none = |n| kept(n, json!(false));
    let one_layer = none(5).0 - none(4).0;
    assert!(one_layer > 10 * INPUT, "{one_layer}");
    for how in [json!(true), json!({"reentrant": true}), json!({"every": 1})] {
        for n in [2, 4, 7] {
            let (saved, peak) = kept(n, how.clone());
            assert_eq!(saved, n * INPUT, "{how} {n}");
            // backward holds at least the inputs and one layer's recomputed activations (but for the last, which stopping early leaves out)
            assert!(peak >= saved + one_layer - INPUT, "{how} {n}: {peak}");
            assert!(peak < none(n).1, "{how} {n}");
        }
    }
}

#[test]
fn k22_every_other_layer_keeps_the_others_whole() {
    let one_layer = kept(5, json!(false)).0 - kept(4, json!(false)).0;
    for (every, n) in [(2, 6), (3, 6), (4, 6), (9, 6)] {
        let checkpointed = u64::div_ceil(n, every);
        let (saved, _) = kept(n, json!({"every": every}));
        assert_eq!(
            saved,
            checkpointed * INPUT + (n - checkpointed) * one_layer,
            "{every}"
        );
    }
}

#[test]
fn k22_selective_lies_between_and_keeps_products() {
    let (none, full, selective) = (
        kept(4, json!(false)),
        kept(4, json!(true)),
        kept(4, json!({"selective": true})),
    );
    assert!(
        full.0 < selective.0 && selective.0 < none.0,
        "{full:?} {selective:?} {none:?}"
    );
    // q, k, v, o, gate, up and down products, and attention's output and statistics, of one layer
    let (q, kv, ff) = (INPUT, INPUT / 2, INPUT * 4);
    let products = q + 2 * kv + q + 2 * ff + q;
    let attention = q + BATCH * SEQ * 4 * 4 + 24;
    let layer = |k: fn(u64, Value) -> (u64, u64)| {
        k(5, json!({"selective": true})).0 - k(4, json!({"selective": true})).0
    };
    assert_eq!(layer(kept), INPUT + products + attention);
}

#[test]
fn k22_reentrant_recomputes_to_the_end() {
    // without stopping early the layer's own output is made again, beside everything else
    let (once, again) = (
        kept(4, json!(true)).1,
        kept(4, json!({"reentrant": true})).1,
    );
    assert!(again >= once, "{once} {again}");
}
