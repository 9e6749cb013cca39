//! DoRA on linear modules (peft 0.21.2, src/peft/tuners/lora/dora.py `DoraLinearLayer`, variants.py `DoraLinearVariant`): a magnitude
//! for each output, and in every call the adapted weight itself, made of an identity matrix sent through A and B, to norm it.

use super::lora::{Base, LoraLinear};
use crate::net::ModuleId;
use crate::run::Run;
use tonnage_sim::OpId;
use tonnage_sim::ops::{self, plain};
use tonnage_sim::{Cx, ScalarType, Shape, Tensor};

/// `get_weight_norm`: the rows' norms of `weight + scaling * lora_weight`, without gradients.
fn weight_norm(cx: &Cx, weight: &Tensor, lora_weight: &Tensor, turned: bool) -> (Tensor, Tensor) {
    let w = if turned {
        ops::transpose(cx, weight, 0, 1)
    } else {
        weight.clone()
    };
    let scaled = ops::mul_scalar(cx, lora_weight);
    let sum = ops::add(cx, &w, &scaled);
    drop(w);
    drop(scaled);
    let mut norm = ops::vector_norm(cx, &sum, &[1]);
    norm = ops::to_dtype(cx, &norm, sum.dtype);
    (norm, sum)
}

/// `update_layer`: the magnitudes of a new adapter. The graph that A and B's product records keeps the summed weight until the
/// end; a 4-bit base is copied whole first.
pub(crate) fn init(m: &Run, id: ModuleId, l: &LoraLinear) -> Tensor {
    let cx = &m.cx;
    cx.with_grad(false, || {
        let fp16 = l.a.dtype == ScalarType::F16;
        let up = fp16.then(|| {
            let a = plain(cx, OpId::TO_COPY, &l.a, ScalarType::F32);
            (a, plain(cx, OpId::TO_COPY, &l.b, ScalarType::F32))
        });
        let (a, b) = up.as_ref().map_or((&l.a, &l.b), |(a, b)| (a, b));
        let copy = if l.base() == Base::FourBit {
            l.copy_base(m)
        } else {
            vec![]
        };
        let weight = l.weight(m, id);
        let mut lora_weight = ops::matmul(cx, b, a);
        if fp16 {
            lora_weight = plain(cx, OpId::TO_COPY, &lora_weight, ScalarType::F16);
        }
        let (norm, sum) = weight_norm(cx, &weight, &lora_weight, l.fan_in_fan_out());
        drop(copy);
        drop(weight);
        drop(lora_weight);
        drop(sum);
        norm
    })
}

/// `DoraLinearVariant.forward`: the base's product is made again where dropout changed the input.
pub(crate) fn forward(
    m: &Run,
    id: ModuleId,
    l: &LoraLinear,
    x: &Tensor,
    result: Tensor,
    p: f64,
) -> Tensor {
    let cx = &m.cx;
    let (x, base) = if p > 0.0 {
        (ops::dropout(cx, x, p), None)
    } else {
        (x.clone(), Some(result.clone()))
    };
    let delta = scaled(m, id, l, &x, base);
    let out = ops::add(cx, &result, &delta);
    drop(delta);
    drop(x);
    out
}

/// `DoraLinearLayer.forward`.
fn scaled(m: &Run, id: ModuleId, l: &LoraLinear, x: &Tensor, base: Option<Tensor>) -> Tensor {
    let cx = &m.cx;
    let magnitude = l.magnitude.as_ref().expect("a DoRA layer has magnitudes");
    let width = l.a.size(1);
    let eye = cx.empty(OpId::EYE, Shape::new(&[width, width]), l.a.dtype);
    let low = ops::linear(cx, &eye, &l.a, None);
    let high = ops::linear(cx, &low, &l.b, None);
    drop(low);
    let turned = ops::transpose(cx, &high, 0, 1);
    drop(high);
    drop(eye);
    let lora_weight = ops::to_dtype(cx, &turned, x.dtype);
    drop(turned);
    let mut weight = l.weight(m, id);
    weight = ops::to_dtype(cx, &weight, x.dtype);
    let (norm, sum) = weight_norm(cx, &weight, &lora_weight.detach(), l.fan_in_fan_out());
    drop(sum);
    let ratio = ops::div(cx, magnitude, &norm);
    let ratio = ops::view(cx, &ratio, Shape::new(&[1, magnitude.numel()]));
    let low = ops::linear(cx, x, &l.a, None);
    let lora_result = ops::linear(cx, &low, &l.b, None);
    drop(low);
    let base = match base {
        Some(r) => match l.bias(m, id) {
            Some(b) => ops::sub(cx, &r, &b),
            None => r,
        },
        None => {
            let w = if l.fan_in_fan_out() {
                ops::transpose(cx, &weight, 0, 1)
            } else {
                weight.clone()
            };
            ops::linear(cx, x, &w, None)
        }
    };
    let less = ops::add_scalar(cx, &ratio);
    let first = ops::mul(cx, &less, &base);
    drop(less);
    let raw = ops::mul(cx, &ratio, &lora_result);
    let second = ops::mul_scalar(cx, &raw);
    drop(raw);
    let y = ops::add(cx, &first, &second);
    drop(first);
    drop(second);
    // frame locals: base_result is an argument
    drop(base);
    drop(lora_weight);
    drop(weight);
    drop(norm);
    drop(ratio);
    drop(lora_result);
    y
}
