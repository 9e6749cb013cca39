//! Pose transformers and image models: whole recorded traces, event by event, and every figure of their records.

mod events;

use events::{exact, identical_by};
use tonnage_sim::context::Accumulate;

const DEV: &str = "torch-trace-dev.jsonl";

#[test]
fn pose_events() {
    let id = "pose-108-plain-fp32-adamw_foreach-b8-s150";
    identical_by(
        DEV,
        id,
        &format!("traces/{id}.jsonl.gz"),
        Some(Accumulate::OutOfPlace),
        &[],
    );
}

#[test]
fn pose_records() {
    exact(DEV, "pose-", 12);
}

#[test]
fn image_model_events() {
    for id in [
        "resnet18-plain-fp32-sgd_momentum-b16",
        "resnet18-plain-amp_fp16-adamw_foreach-b32",
        "timm-vit-s-plain-fp32-sgd_momentum-b16",
        "timm-convnext-t-plain-fp32-sgd_momentum-b16",
    ] {
        identical_by(
            DEV,
            id,
            &format!("traces-own/{id}.jsonl.gz"),
            Some(Accumulate::OutOfPlace),
            &[],
        );
    }
}

#[test]
fn image_model_records() {
    exact(DEV, "resnet18-plain", 2);
    exact(DEV, "resnet50-plain", 2);
    exact(DEV, "timm-", 4);
}

const OWN: &str = "torch-trace-own.jsonl";

/// The count that the published notebook prints.
#[test]
fn k1_spoter_parameters() {
    let config = serde_json::json!({});
    let stack = tonnage_model::Stack::default();
    let built = tonnage_model::arch::build(
        "spoter",
        &config,
        tonnage_model::arch::Head::Default,
        &stack,
    )
    .unwrap();
    assert_eq!(built.net.param_count(), 1_319_434);
}

/// Two layers, two steps of two micro-batches with clipping, gradients added in place (recorded without a dispatch mode).
#[test]
fn spoter_events() {
    let id = "spoter-plain-fp32-adamw_foreach-b8-s150-ga2-clip-t4";
    let trace = "traces-own/spoter-2layers-plain-fp32-adamw_foreach-b8-s150-ga2-clip-t4.jsonl.gz";
    let changes = [("model.args.n_layers", 2.into()), ("steps", 2.into())];
    identical_by(OWN, id, trace, Some(Accumulate::InPlaceIfSole), &changes);
}

#[test]
fn spoter_records() {
    exact(OWN, "spoter-", 8);
}
