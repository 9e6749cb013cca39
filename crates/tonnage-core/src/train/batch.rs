//! The tensors of a step's batch, copied to the device in the script's order.

use super::IDS;
use crate::spec::{Mask, Spec};
use tonnage_model::arch::{Batch, BatchLayout, Head};
use tonnage_sim::OpId;
use tonnage_sim::timeline::Category;
use tonnage_sim::{Cx, ScalarType, Shape, Tensor};

fn input(cx: &Cx, shape: &[u64], dtype: ScalarType) -> Tensor {
    let t = cx.empty(OpId::INPUT, Shape::new(shape), dtype);
    cx.tag(&t, Category::Inputs);
    t
}

/// The batch of a described model: features or ids, the mask that its call takes, labels, and a mask that the job passes besides.
fn described(spec: &Spec, cx: &Cx, l: &BatchLayout) -> Batch {
    let (b, s) = (spec.batch, spec.seq);
    let mut batch = Batch {
        padded: spec.mask == Mask::Padding,
        ..Batch::default()
    };
    match l.features {
        Some(n) => {
            // fp32 data; a script with 16-bit weights and no autocast casts it before it goes to the device
            let dtype = spec.weights.unwrap_or(spec.precision.weights());
            let dtype = spec.precision.autocast().map_or(dtype, |_| ScalarType::F32);
            batch.features = Some(input(cx, &[b, s, n], dtype));
        }
        None => batch.input_ids = Some(input(cx, &[b, s], IDS)),
    }
    let mask = if l.features.is_some() {
        ScalarType::Bool
    } else {
        IDS
    };
    if l.mask {
        batch.attention_mask = Some(input(cx, &[b, s], mask));
    }
    let labels: &[u64] = if l.label_each { &[b, s] } else { &[b] };
    batch.labels = Some(input(cx, labels, IDS));
    if !l.mask && spec.mask != Mask::Absent {
        batch.attention_mask = Some(input(cx, &[b, s], mask));
    }
    batch
}

/// Makes the batch of one micro-batch; `layout` is what a described model says about it.
pub fn make(spec: &Spec, cx: &Cx, layout: Option<&BatchLayout>) -> Batch {
    if let Some(l) = layout {
        return described(spec, cx, l);
    }
    let (b, s) = (spec.batch, spec.seq);
    let classify = |head: Head| !matches!(head, Head::MaskedLm);
    let mut batch = Batch {
        padded: spec.mask == Mask::Padding,
        ..Batch::default()
    };
    if spec.called_bare() {
        batch.input_ids = Some(input(cx, &[b, s], IDS));
        batch.attention_mask = Some(input(cx, &[b, s], IDS));
        return batch;
    }
    match spec.model_type.as_str() {
        "pose" => {
            let d = spec.config.get("d").and_then(|v| v.as_u64()).unwrap_or(108);
            batch.features = Some(input(cx, &[s, b, d], ScalarType::F32));
            batch.labels = Some(input(cx, &[b], IDS));
        }
        "spoter" => {
            let d = spec
                .config
                .get("input_dim")
                .and_then(|v| v.as_u64())
                .unwrap_or(108);
            batch.features = Some(input(cx, &[b, s, d], ScalarType::F32));
            batch.attention_mask = Some(input(cx, &[b, s], ScalarType::Bool));
            batch.labels = Some(input(cx, &[b], IDS));
        }
        "resnet" | "timm" => {
            batch.features = Some(input(cx, &[b, 3, spec.image, spec.image], ScalarType::F32));
            batch.labels = Some(input(cx, &[b], IDS));
        }
        "vit" => {
            batch.features = Some(input(cx, &[b, 3, 224, 224], ScalarType::F32));
            batch.labels = Some(input(cx, &[b], IDS));
        }
        "whisper" => {
            batch.features = Some(input(cx, &[b, 80, 3000], ScalarType::F32));
            batch.labels = Some(input(cx, &[b, s], IDS));
        }
        "t5" => {
            batch.input_ids = Some(input(cx, &[b, s], IDS));
            batch.attention_mask = Some(input(cx, &[b, s], IDS));
            batch.labels = Some(input(cx, &[b, spec.target_len.unwrap_or(s / 4)], IDS));
        }
        "bert" | "roberta" | "distilbert" => {
            batch.input_ids = Some(input(cx, &[b, s], IDS));
            batch.attention_mask = Some(input(cx, &[b, s], IDS));
            let labels: &[u64] = if classify(spec.head) { &[b] } else { &[b, s] };
            batch.labels = Some(input(cx, labels, IDS));
        }
        _ => {
            batch.input_ids = Some(input(cx, &[b, s], IDS));
            batch.labels = Some(input(cx, &[b, s], IDS));
            if spec.mask != Mask::Absent {
                batch.attention_mask = Some(input(cx, &[b, s], IDS));
            }
        }
    }
    batch
}

/// Drops a batch as a Python dict goes: the values in the order in which they came.
pub fn release(batch: Batch) {
    let Batch {
        input_ids,
        labels,
        attention_mask,
        features,
        ..
    } = batch;
    let mut all: Vec<Tensor> = [input_ids, labels, attention_mask, features]
        .into_iter()
        .flatten()
        .collect();
    all.sort_by_key(|t| t.storage.id());
    for t in all {
        drop(t);
    }
}
