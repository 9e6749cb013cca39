//! Attention against torch 2.11 on a stand-in CUDA runtime.
//! `fixtures/attention.jsonl`: one call, forward and backward; `events` are requested bytes of allocations and `#n` for the free of allocation n.
//! `fixtures/attention_choice.txt`: what `torch._fused_sdp_choice` answers (C cuDNN, F flash, E efficient, M math, x an error).

use serde_json::Value;
use tonnage_sim::autograd::backward_with;
use tonnage_sim::kernels::KernelDevice;
use tonnage_sim::ops::{self, SdpaArgs, SdpaBackend, select_backend};
use tonnage_sim::{
    Accumulate, Cx, DeviceModel, EventKind, OpId, ScalarType, Shape, Tensor, backward,
};

fn device(gpu: &str) -> KernelDevice {
    match gpu {
        "a100" => KernelDevice::A100,
        "h100" => KernelDevice::H100,
        "t4" => KernelDevice::T4,
        "rtx4090" => KernelDevice::RTX4090,
        "b200" => KernelDevice::new(148, 2048, (10, 0)),
        "rtx5090" => KernelDevice::new(170, 1536, (12, 0)),
        _ => panic!("{gpu}"),
    }
}

fn dtype(name: &str) -> ScalarType {
    match name {
        "f32" => ScalarType::F32,
        "bf16" => ScalarType::BF16,
        "f16" => ScalarType::F16,
        "bool" => ScalarType::Bool,
        _ => panic!("{name}"),
    }
}

fn context(gpu: &str) -> Cx {
    Cx::new(
        DeviceModel {
            kernel: device(gpu),
        },
        Accumulate::InPlaceIfSole,
    )
}

/// (batch, heads, length, size) lying as the layout says.
fn tensor(cx: &Cx, layout: &str, [b, h, s, d]: [u64; 4], dtype: ScalarType) -> Tensor {
    let swapped = |a: [u64; 4], i: usize, j: usize| {
        let mut base = a;
        base.swap(i, j);
        let t = cx.empty(OpId::INPUT, Shape::new(&base), dtype);
        let mut strides = t.strides();
        strides.swap(i, j);
        let mut t = t.laid_out(Shape::new(&a), strides);
        t.view = true;
        t
    };
    match layout {
        "bshd" => swapped([b, h, s, d], 1, 2),
        "dstride" => swapped([b, h, s, d], 2, 3),
        _ => cx.empty(OpId::INPUT, Shape::new(&[b, h, s, d]), dtype),
    }
}

fn sizes(v: &Value) -> Vec<u64> {
    v.as_array()
        .unwrap()
        .iter()
        .map(|x| x.as_u64().unwrap())
        .collect()
}

fn mask(cx: &Cx, m: &Value) -> Tensor {
    let shape = Shape::new(&sizes(&m["shape"]));
    let dtype = dtype(m["dtype"].as_str().unwrap());
    let row = m["row"].as_u64().unwrap_or(shape.size(-1));
    let base = cx.empty(OpId::INPUT, shape.with(-1, row), dtype);
    let st = base.strides();
    let mut t = base.laid_out(shape, st);
    if m["expand"].is_array() {
        t = ops::expand_raw(&t, Shape::new(&sizes(&m["expand"])));
    }
    if m["grad"].as_bool().unwrap_or(false) {
        cx.require_grad(t)
    } else {
        t
    }
}

/// Both threads' GEMM workspaces, which the recording made beforehand too.
fn warm_up(cx: &Cx) {
    let square = || cx.empty(OpId::INPUT, Shape::new(&[8, 8]), ScalarType::F32);
    let w = cx.require_grad(square());
    let y = ops::mm(cx, &w, &square());
    backward(cx, &ops::sum(cx, &y, &[], false));
}

fn run(c: &Value) -> (String, Vec<u64>) {
    let n = |k: &str| c[k].as_u64().unwrap();
    let cx = &context(c["gpu"].as_str().unwrap());
    warm_up(cx);
    let (b, h, s, d) = (n("B"), n("H"), n("S"), n("d"));
    let (kv, t) = (c["K"].as_u64().unwrap_or(h), c["T"].as_u64().unwrap_or(s));
    let dt = dtype(c["dtype"].as_str().unwrap());
    let layout = c["layout"].as_str().unwrap_or("bshd");
    let grad = c["grad"].as_bool().unwrap_or(true);
    let make = |h, s| {
        let t = tensor(cx, layout, [b, h, s, d], dt);
        if grad { cx.require_grad(t) } else { t }
    };
    let (q, k, v) = (make(h, s), make(kv, t), make(kv, t));
    let amp = c["amp"].as_str().map(dtype);
    let seed = tensor(
        cx,
        c["glayout"].as_str().unwrap_or("bshd"),
        [b, h, s, d],
        amp.unwrap_or(dt),
    );
    let args = SdpaArgs {
        mask: c["mask"].is_object().then(|| mask(cx, &c["mask"])),
        dropout: c["p"].as_f64().unwrap_or(0.0),
        is_causal: c["causal"].as_bool().unwrap_or(false),
        enable_gqa: c["gqa"].as_bool().unwrap_or(false),
        scale_given: false,
    };
    let from = cx.event_count();
    let call = || ops::sdpa(cx, &q, &k, &v, &args);
    let y = match amp {
        Some(_) => cx.autocast(amp, call),
        None => call(),
    };
    let strides = y.strides()[..4].to_vec();
    if grad {
        backward_with(cx, &y, seed.clone());
    }
    drop(y);
    let events = cx.with_events(from, |e| {
        let mut ids = Vec::new();
        let mut words = Vec::new();
        for e in e {
            match e.kind() {
                EventKind::Alloc { id } => {
                    ids.push(id);
                    words.push(e.bytes.to_string());
                }
                EventKind::Free { id } => {
                    words.push(format!(
                        "#{}",
                        ids.iter().position(|x| *x == id).expect("made in the call")
                    ));
                }
                EventKind::EmptyCache => unreachable!(),
            }
        }
        words.join(" ")
    });
    (events, strides)
}

#[test]
fn one_call_allocates_what_torch_allocates() {
    let data = include_str!("fixtures/attention.jsonl");
    let (mut compared, mut wrong) = (0, Vec::new());
    for line in data.lines() {
        let c: Value = serde_json::from_str(line).unwrap();
        let (events, strides) = run(&c);
        compared += 1;
        if events != c["events"] || strides != sizes(&c["out_strides"]) {
            wrong.push(format!(
                "{}\n  want {} {:?}\n  got  {events} {strides:?}",
                c["name"],
                c["events"].as_str().unwrap(),
                sizes(&c["out_strides"])
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {compared} differ\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(compared > 90);
}

fn choice(words: &[&str], gpu: &str) -> char {
    let n = |i: usize| words[i].parse::<u64>().unwrap();
    let cx = &context(gpu);
    let dt = dtype(words[0]);
    let (b, h, kv, s, t, d, dv) = (n(1), n(2), n(3), n(4), n(5), n(6), n(7));
    let grad = words[12] == "1";
    let make = |h, s, d| {
        let t = tensor(cx, words[13], [b, h, s, d], dt);
        if grad { cx.require_grad(t) } else { t }
    };
    let (q, k, v) = (make(h, s, d), make(kv, t, d), make(kv, t, dv));
    let blank = |shape: &[u64], dt| cx.empty(OpId::INPUT, Shape::new(shape), dt);
    let mask = match words[8] {
        "-" => None,
        "f" => Some(blank(&[b, 1, s, t], dt)),
        "b" => Some(blank(&[b, 1, s, t], ScalarType::Bool)),
        "2" => Some(blank(&[s, t], dt)),
        _ => Some(cx.require_grad(blank(&[b, h, s, t], dt))),
    };
    let args = SdpaArgs {
        mask,
        dropout: words[10].parse().unwrap(),
        is_causal: words[9] == "1",
        enable_gqa: words[11] == "1",
        scale_given: false,
    };
    match select_backend(&q, &k, &v, &args, device(gpu).capability, grad) {
        SdpaBackend::Flash => 'F',
        SdpaBackend::Efficient => 'E',
        SdpaBackend::Cudnn => 'C',
        SdpaBackend::Math => 'M',
    }
}

#[test]
fn the_backend_is_the_one_that_torch_chooses() {
    let mut lines = include_str!("fixtures/attention_choice.txt").lines();
    let head: Vec<&str> = lines.next().unwrap().split(' ').collect();
    let gpus = &head[head.len() - 6..];
    let (mut compared, mut wrong) = (0, Vec::new());
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        let want = words[words.len() - 1];
        for (gpu, want) in gpus.iter().zip(want.chars()) {
            let got = choice(&words, gpu);
            compared += 1;
            if got != want && want != 'x' {
                wrong.push(format!("{gpu} {line}: {got}"));
            }
        }
    }
    wrong.truncate(60);
    assert!(
        wrong.is_empty(),
        "{} of {compared} differ\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(compared > 3000);
}
