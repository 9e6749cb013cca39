//! Optimizer steps, clipping, gradient scaling and `zero_grad` against recordings of the real ones, event by event
//! (`fixtures/optim/cases.jsonl`, made by `fixtures/optim/record.py` with PyTorch 2.11, transformers 5.17 and bitsandbytes 0.50.2).

use serde_json::Value;
use tonnage_sim::kernels::KernelDevice;
use tonnage_sim::optim::{
    Bnb, GradScaler, Implementation, OptimizerKind, clip_grad_norm, create, zero_grad,
};
use tonnage_sim::timeline::Category;
use tonnage_sim::{Accumulate, Cx, DeviceModel, EventKind, OpId, ScalarType, Shape, Tensor};

/// The recorder's name of an optimizer: the option sets that have no name of their own are spelled out here.
fn kind(name: &str) -> OptimizerKind {
    use Implementation::*;
    let adam = |implementation, amsgrad, coupled_decay| OptimizerKind::Adam {
        implementation,
        amsgrad,
        coupled_decay,
    };
    let sgd = |implementation, momentum, decay| OptimizerKind::Sgd {
        implementation,
        momentum,
        decay,
    };
    match name {
        "adam_decay" => adam(Foreach, false, true),
        "amsgrad" => adam(Foreach, true, false),
        "amsgrad_fused" => adam(Fused, true, false),
        "amsgrad_forloop" => adam(ForLoop, true, false),
        "adam_decay_forloop" => adam(ForLoop, false, true),
        "sgd_decay" => sgd(Foreach, true, true),
        "sgd_plain_decay" => sgd(Foreach, false, true),
        "sgd_fused" => sgd(Fused, true, false),
        "sgd_forloop" => sgd(ForLoop, true, true),
        "rmsprop_full" => OptimizerKind::RmsProp {
            momentum: true,
            centered: true,
            decay: true,
        },
        "adagrad_decay" => OptimizerKind::Adagrad { decay: true },
        "adafactor_momentum" => OptimizerKind::Adafactor { momentum: true },
        "lion" => OptimizerKind::Bnb {
            algorithm: Bnb::Lion,
            eight_bit: false,
            paged: false,
        },
        "paged_lion" => OptimizerKind::Bnb {
            algorithm: Bnb::Lion,
            eight_bit: false,
            paged: true,
        },
        "rmsprop8bit" => OptimizerKind::parse("rmsprop_bnb_8bit").unwrap(),
        "paged_ademamix" => OptimizerKind::parse("paged_ademamix_32bit").unwrap(),
        other => OptimizerKind::parse(other).unwrap(),
    }
}

/// A parameter, or a gradient laid out as it.
fn new(cx: &Cx, p: &Value) -> Tensor {
    let dims: Vec<u64> = p[0]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d.as_u64().unwrap())
        .collect();
    let dtype = match p[1].as_str().unwrap() {
        "f32" => ScalarType::F32,
        "bf16" => ScalarType::BF16,
        _ => ScalarType::F16,
    };
    let shape = Shape::new(&dims);
    let mut strides = shape.contiguous_strides();
    if p.get(2).is_some() {
        strides[..2].copy_from_slice(&[1, dims[0]]);
    }
    cx.empty_strided(OpId::LOAD, shape, strides, dtype)
}

/// The simulator's events in the recorder's spelling.
fn events(cx: &Cx) -> Vec<i64> {
    cx.with_events(0, |ev| {
        ev.iter()
            .map(|e| match e.kind() {
                EventKind::Alloc { .. } => e.bytes as i64,
                EventKind::Free { id } => -(id as i64) - 1,
                EventKind::EmptyCache => 0,
            })
            .collect()
    })
}

fn check(case: &Value) -> Result<(), String> {
    let flag = |k: &str| case[k].as_bool();
    let without_grad: Vec<u64> =
        serde_json::from_value(case["without_grad"].clone()).unwrap_or_default();
    let list = case["params"].as_array().unwrap();
    let cx = Cx::new(
        DeviceModel {
            kernel: KernelDevice::A100,
        },
        Accumulate::InPlaceIfSole,
    );
    let mut at = vec![0];
    let params: Vec<Tensor> = list.iter().map(|p| cx.require_grad(new(&cx, p))).collect();
    let loss = flag("scaler")
        .map(|_| cx.require_grad(cx.empty(OpId::LOAD, Shape::new(&[]), ScalarType::F32)));
    at.push(cx.event_count());
    let mut optimizer = create(kind(case["optim"].as_str().unwrap()), &cx, &params);
    let mut scaler = loss.as_ref().map(|_| GradScaler::new(&cx));
    for _ in 0..case["steps"].as_u64().unwrap_or(3) {
        at.push(cx.event_count());
        for (i, (p, spec)) in params.iter().zip(list).enumerate().rev() {
            if p.grad().is_none() && !without_grad.contains(&(i as u64)) {
                p.set_grad(new(&cx, spec));
            }
        }
        if let (Some(s), Some(l)) = (&mut scaler, &loss) {
            at.push(cx.event_count());
            drop(s.scale(&cx, l));
        }
        if flag("clip") == Some(true) {
            at.push(cx.event_count());
            if let Some(s) = &mut scaler {
                s.unscale(&cx, &params);
            }
            drop(clip_grad_norm(&cx, &params));
        }
        at.push(cx.event_count());
        match &mut scaler {
            Some(s) => {
                s.step(&cx, &mut *optimizer, &params);
                s.update(&cx);
            }
            None => optimizer.step(&cx, &params),
        }
        at.push(cx.event_count());
        zero_grad(&cx, &params, flag("set_to_none").unwrap_or(true));
    }
    at.push(cx.event_count());

    let got = events(&cx);
    let want: Vec<i64> = case["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e.as_i64().unwrap())
        .collect();
    let marks: Vec<(&str, usize)> = case["marks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| (m[0].as_str().unwrap(), m[1].as_u64().unwrap() as usize))
        .collect();
    if let Some(i) = (0..got.len().max(want.len())).find(|i| got.get(*i) != want.get(*i)) {
        let phase = marks.iter().rev().find(|m| m.1 <= i).unwrap();
        let lo = i.saturating_sub(4);
        let show = |v: &[i64]| format!("{:?}", &v[lo.min(v.len())..(i + 12).min(v.len())]);
        return Err(format!(
            "event {i} ({} from {}):\n  got  {}\n  want {}",
            phase.0,
            phase.1,
            show(&got),
            show(&want)
        ));
    }
    if at != marks.iter().map(|m| m.1).collect::<Vec<_>>() {
        return Err(format!("phases {at:?}, recorded {marks:?}"));
    }
    // states: what the optimizer names is alive, tagged, and as big as the framework's
    let states = optimizer.states();
    let bytes: u64 = states
        .iter()
        .filter(|s| s.name != "RMS")
        .map(|s| s.tensor.storage.bytes())
        .sum();
    let rms: u64 = states
        .iter()
        .filter(|s| s.name == "RMS")
        .map(|s| s.tensor.storage.bytes())
        .sum();
    if bytes + rms != case["state_bytes"].as_u64().unwrap()
        || optimizer.managed_bytes() != case["managed_bytes"].as_u64().unwrap()
    {
        return Err(format!(
            "states {bytes} + {rms}, managed {}; recorded {} {}",
            optimizer.managed_bytes(),
            case["state_bytes"],
            case["managed_bytes"]
        ));
    }
    let ids: Vec<u32> = states.iter().map(|s| s.tensor.storage.id()).collect();
    drop(states);
    let tags = cx.take_timeline().tags;
    match ids.iter().find(|id| {
        !tags
            .iter()
            .any(|t| t.id == **id && t.category == Category::OptimizerState)
    }) {
        Some(id) => Err(format!("state #{id} is not tagged")),
        None => Ok(()),
    }
}

#[test]
fn steps_are_event_identical_to_recordings() {
    let text = include_str!("fixtures/optim/cases.jsonl");
    let (mut n, mut events, mut bad) = (0, 0, Vec::new());
    for line in text.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        n += 1;
        events += case["events"].as_array().unwrap().len();
        if let Err(e) = check(&case) {
            bad.push(format!("{}: {e}", case["name"].as_str().unwrap()));
        }
    }
    assert!(
        bad.is_empty(),
        "{} of {n} cases differ\n{}",
        bad.len(),
        bad.join("\n")
    );
    assert!(n > 100 && events > 20_000, "{n} cases, {events} events");
}
