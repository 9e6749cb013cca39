//! Scaled dot product attention.

use crate::context::Cx;
use crate::ops::op::OpId;
use crate::shape::Shape;
use crate::tensor::Tensor;
use smallvec::smallvec;
use tonnage_units::ScalarType;

/// The arguments of `F.scaled_dot_product_attention` besides q, k, v.
#[derive(Clone, Default)]
pub struct SdpaArgs {
    pub mask: Option<Tensor>,
    pub dropout: f64,
    pub is_causal: bool,
    pub enable_gqa: bool,
    pub scale_given: bool,
}

fn bshd(cx: &Cx, op: OpId, q: &Tensor) -> Tensor {
    let (b, h, s, d) = (q.size(0), q.size(1), q.size(2), q.size(3));
    let t = cx.empty(op, Shape::new(&[b, s, h, d]), q.dtype);
    let mut st = t.strides;
    st.swap(1, 2);
    Tensor { shape: Shape::new(&[b, h, s, d]), strides: st, ..t }
}

/// q, k, v [B, heads, S, d].
pub fn sdpa(cx: &Cx, q: &Tensor, k: &Tensor, v: &Tensor, a: &SdpaArgs) -> Tensor {
    let v = &cx.lower(v);
    let k = &cx.lower(k);
    let q = &cx.lower(q);
    let _ = a;
    let (b, h, s) = (q.size(0), q.size(1), q.size(2));
    if q.dtype == ScalarType::F32 {
        let op = OpId::SDPA_EFFICIENT;
        let mut n = cx.node(op, &[q, k, v]);
        n.save(cx, k);
        n.save(cx, q);
        n.save(cx, v);
        let y = bshd(cx, op, q);
        let lse = cx.empty(op, Shape::new(&[b, h, s.div_ceil(32) * 32]), ScalarType::F32);
        n.save(cx, &lse);
        n.save(cx, &y);
        drop(lse);
        return n.finish(cx, y, |cx, sv, _| {
            let op = OpId::SDPA_EFFICIENT;
            let (k, q, v) = (sv.tensor(0), sv.tensor(1), sv.tensor(2));
            let (bh, s, d) = (q.size(0) * q.size(1), q.size(2), q.size(3));
            let dq = cx.empty_like(op, q, q.dtype);
            let dk = cx.empty_like(op, k, k.dtype);
            let dv = cx.empty_like(op, v, v.dtype);
            let prod = cx.raw(op, q.numel() * 4);
            let t = cx.raw(op, bh * s * 4);
            let delta = cx.raw(op, bh * s * 4);
            drop(t);
            drop(prod);
            let s64 = s.div_ceil(64) * 64;
            let ws = cx.raw(op, bh * (4 * d * s64 + 16 * (s64 / 64)));
            drop(delta);
            drop(ws);
            smallvec![Some(dq), Some(dk), Some(dv)]
        });
    }
    let op = OpId::SDPA_FLASH;
    let mut n = cx.node(op, &[q, k, v]);
    n.save(cx, k);
    n.save(cx, q);
    n.save(cx, v);
    let y = bshd(cx, op, q);
    let lse = cx.empty(op, Shape::new(&[b, h, s]), ScalarType::F32);
    let rng = cx.empty(op, Shape::new(&[2]), ScalarType::I64);
    let unused = cx.empty(op, Shape::new(&[1]), ScalarType::I64);
    n.save(cx, &lse);
    n.save(cx, &y);
    n.save(cx, &rng);
    n.save(cx, &unused);
    drop(lse);
    drop(rng);
    drop(unused);
    n.finish(cx, y, |cx, sv, _| {
        let op = OpId::SDPA_FLASH;
        let (k, q, v) = (sv.tensor(0), sv.tensor(1), sv.tensor(2));
        let (bh, s, d) = (q.size(0) * q.size(1), q.size(2), q.size(3));
        let dq = cx.empty_like(op, q, q.dtype);
        let dk = cx.empty_like(op, k, k.dtype);
        let dv = cx.empty_like(op, v, v.dtype);
        let s128 = s.div_ceil(128) * 128;
        let sd = cx.raw(op, 4 * bh * s128);
        let acc = cx.raw(op, 4 * bh * s128 * d);
        if k.numel() < q.numel() {
            let x = cx.raw(op, q.nbytes());
            let y = cx.raw(op, q.nbytes());
            drop(y);
            drop(x);
        }
        drop(acc);
        drop(sd);
        smallvec![Some(dq), Some(dk), Some(dv)]
    })
}
