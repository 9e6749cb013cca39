//! Falcon, Mixtral and other decoders: whole recorded traces, event by event, and every figure of their records.

mod events;

use events::{OWN, exact, identical, own};
use serde_json::Value;

const DEV: &str = "torch-trace-dev.jsonl";
const DEV_457: &str = "torch-trace-tf457-dev.jsonl";

#[test]
fn falcon_events() {
    own("falcon-7b-tiny-plain-bf16-adamw_foreach-b2-s256");
    own("falcon-40b-tiny-plain-bf16-adamw_foreach-b2-s256");
    own("falcon-rw-tiny-plain-bf16-adamw_foreach-b2-s256");
    own("falcon-rw-tiny-plain-bf16-adamw_foreach-b2-s256-tf4.57.6");
}

#[test]
fn falcon_records() {
    exact(DEV, "falcon-rw-1b-plain-", 2);
    exact(DEV, "falcon-7b-plain-", 1);
    exact(DEV, "falcon-7b-trainer-", 1);
    exact(DEV_457, "falcon-7b-plain-", 1);
    exact(DEV_457, "falcon-7b-trainer-", 1);
    exact(OWN, "falcon-", 7);
}

#[test]
fn mixtral_events() {
    let two = |dev: &str, id: &str, trace: &str| {
        let changes = [
            ("model.args.num_hidden_layers", Value::from(2)),
            ("steps", Value::from(2)),
        ];
        identical(dev, id, trace, &changes);
    };
    let id = "mixtral-mini-plain-bf16-adamw_foreach-b2-s512";
    two(DEV, id, "traces-own/mixtral-mini-2-layers.jsonl.gz");
    let old = format!("{id}-tf4.57.6");
    let trace = "traces-own/mixtral-mini-2-layers-tf4.57.6.jsonl.gz";
    two(DEV_457, &old, trace);
}

#[test]
fn mixtral_records() {
    for file in [DEV, DEV_457] {
        exact(file, "mixtral-mini-plain-", 4);
        exact(file, "mixtral-mini-trainer-", 1);
    }
}
