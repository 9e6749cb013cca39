//! Which kernel attention runs on (torch 2.11, aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, ../sdp_utils_cpp.h,
//! with the cuDNN of the CUDA 13 wheels). Verified: tests/attention.rs against torch's own answers on six cards.

use super::SdpaArgs;
use crate::context::Cx;
use crate::tensor::Tensor;
use tonnage_units::ScalarType::{BF16, F16, F32};

/// A way to compute attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SdpaBackend {
    Flash,
    /// Memory-efficient attention (CUTLASS).
    Efficient,
    Cudnn,
    /// Composed of elementwise operators, matrix products and a softmax.
    Math,
}

struct Call<'a> {
    q: &'a Tensor,
    k: &'a Tensor,
    v: &'a Tensor,
    args: &'a SdpaArgs,
    capability: (u8, u8),
    grad: bool,
}

/// The backend for these arguments on a card of this compute capability; `requires_grad`: gradients are recorded and q, k or v wants one.
/// cuDNN goes first on 9.x and 10.x and is not tried elsewhere, because another backend always comes before it.
pub fn select_backend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    args: &SdpaArgs,
    capability: (u8, u8),
    requires_grad: bool,
) -> SdpaBackend {
    let c = Call {
        q,
        k,
        v,
        args,
        capability,
        grad: requires_grad,
    };
    if [q, k, v].iter().any(|t| t.shape.ndim() != 4) {
        return SdpaBackend::Math;
    }
    if matches!(capability.0, 9 | 10) && c.cudnn() {
        SdpaBackend::Cudnn
    } else if c.flash() {
        SdpaBackend::Flash
    } else if c.efficient() {
        SdpaBackend::Efficient
    } else {
        SdpaBackend::Math
    }
}

/// The compute capabilities of cards so far.
const CAPABILITIES: [(u8, u8); 18] = [
    (5, 0),
    (5, 2),
    (5, 3),
    (6, 0),
    (6, 1),
    (6, 2),
    (7, 0),
    (7, 2),
    (7, 5),
    (8, 0),
    (8, 6),
    (8, 7),
    (8, 9),
    (9, 0),
    (10, 0),
    (10, 3),
    (12, 0),
    (12, 1),
];

/// The backend on the simulation's card.
pub(super) fn chosen(
    cx: &Cx,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    args: &SdpaArgs,
    requires_grad: bool,
) -> SdpaBackend {
    let on = |capability| select_backend(q, k, v, args, capability, requires_grad);
    if cx.questions_noted() {
        // the tensors must not outlive the call: all answers at once
        cx.choice(CAPABILITIES.map(on), |all, card| {
            let known = CAPABILITIES.iter().position(|c| *c == card.capability);
            known.map_or(
                1000 + u64::from(card.capability.0) * 256 + u64::from(card.capability.1),
                |i| all[i] as u64,
            )
        });
    }
    on(cx.0.device.kernel.capability)
}

impl Call<'_> {
    fn half(&self) -> bool {
        matches!(self.q.dtype, F16 | BF16)
    }

    fn same_dtype(&self) -> bool {
        self.q.dtype == self.k.dtype && self.q.dtype == self.v.dtype
    }

    fn not_empty(&self) -> bool {
        self.q.size(2) != 0 && self.k.size(2) != 0
    }

    /// check_batch_size_and_num_heads_dense; `grouped` where the backend knows grouped queries.
    fn heads(&self, grouped: bool, same_kv_heads: bool) -> bool {
        let (q, k, v) = (self.q, self.k, self.v);
        if q.size(0) != k.size(0) || q.size(0) != v.size(0) {
            return false;
        }
        let (h, hk, hv) = (q.size(1), k.size(1), v.size(1));
        if self.args.enable_gqa && grouped {
            return (!same_kv_heads || hk == hv) && h.is_multiple_of(hk) && h.is_multiple_of(hv);
        }
        h == hk && h == hv
    }

    /// The last dimension is dense; a mask's too. A size of 1 may have any stride where `singleton`.
    fn last_stride_one(&self, singleton: bool) -> bool {
        let one = |t: &Tensor| t.strides()[3] == 1 || (singleton && t.size(3) == 1);
        let mask = self.args.mask.as_ref();
        let mask_ok =
            mask.is_none_or(|m| m.shape.ndim() == 0 || m.strides()[m.shape.ndim() - 1] == 1);
        one(self.q) && one(self.k) && one(self.v) && mask_ok
    }

    fn cudnn(&self) -> bool {
        let (d, dv) = (self.q.size(3), self.v.size(3));
        let limit = match self.capability {
            (9, 0) => 256,
            (9 | 10, _) if (d, dv) == (192, 128) => 192,
            _ => 128,
        };
        let lengths = self.k.size(2) != 1 && !(self.args.dropout > 0.0 && self.q.size(2) == 1);
        self.half()
            && self.same_dtype()
            && self.mask_shape()
            && self.not_empty()
            && self.last_stride_one(true)
            && self.heads(true, false)
            && d <= limit
            && dv <= limit
            && d.is_multiple_of(8)
            && dv.is_multiple_of(8)
            && lengths
    }

    /// check_attn_mask_shape.
    fn mask_shape(&self) -> bool {
        let Some(m) = &self.args.mask else {
            return true;
        };
        if m.requires_grad() || m.shape.ndim() < 2 {
            return false;
        }
        let fits = |i: isize, n: u64| m.size(i) == n || m.size(i) == 1;
        fits(-2, self.q.size(2))
            && fits(-1, self.k.size(2))
            && match m.shape.ndim() {
                2 => true,
                4 => fits(0, self.q.size(0)) && fits(1, self.q.size(1)),
                _ => false,
            }
    }

    fn flash(&self) -> bool {
        let d = self.q.size(3);
        // its backward has no kernel for these on cards with little shared memory
        let small = matches!(self.capability, (8, 6..) | (12, _));
        let trainable = !(self.grad && small) || d <= 192 || (d > 224 && self.args.dropout == 0.0);
        self.capability.0 >= 8
            && self.half()
            && self.same_dtype()
            && self.args.mask.is_none()
            && d == self.k.size(3)
            && d == self.v.size(3)
            && d <= 256
            && trainable
            && !(self.args.is_causal && self.q.size(2) != self.k.size(2))
            && self.heads(true, true)
            && self.not_empty()
            && self.last_stride_one(true)
    }

    fn efficient(&self) -> bool {
        let (d, dv) = (self.q.size(3), self.v.size(3));
        let align = match (self.capability.0, self.half()) {
            (8.., true) | (7, true) => 8,
            (8.., false) => 4,
            _ => 1,
        };
        let dtype = match self.q.dtype {
            F32 | F16 => true,
            BF16 => self.capability.0 >= 8,
            _ => false,
        };
        dtype
            && self.same_dtype()
            && d == self.k.size(3)
            && d > 0
            && dv > 0
            && d.is_multiple_of(align)
            && dv.is_multiple_of(align)
            && self.not_empty()
            && self.last_stride_one(false)
            && self.heads(false, true)
    }
}
