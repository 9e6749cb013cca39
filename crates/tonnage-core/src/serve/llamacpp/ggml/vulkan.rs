//! What the Vulkan backend runs (llama.cpp v0.5.0, ggml/src/ggml-vulkan/ggml-vulkan.cpp, `ggml_backend_vk_device_supports_op`): nothing
//! larger than the device binds at once, and the common types.

use super::graph::{Graph, Id, Op};
use tonnage_units::GgmlType::{self, *};

/// Whether a product with weights of this type runs on the device.
pub fn matmul_type(ty: GgmlType) -> bool {
    !matches!(ty, Q8_1 | Q8K | I8 | I16 | I32 | I64 | F64)
}

/// Whether the device runs the node; it binds at most `max_binding` bytes.
pub fn supports(g: &Graph, id: Id, max_binding: u64) -> bool {
    let t = g.get(id);
    let fits = |id: Id| g.get(id).bytes() <= max_binding;
    if !fits(id) || !t.src.iter().all(|s| fits(*s)) {
        return false;
    }
    let src = |i: usize| g.get(t.src[i]);
    let float = |ty: GgmlType| matches!(ty, F32 | F16);
    match t.op {
        Op::Unary(_) | Op::Glu => float(src(0).ty),
        Op::MulMat => {
            let plain = |i: usize| float(src(i).ty) || src(i).contiguous_from(1);
            matmul_type(src(0).ty) && src(0).ne[3] == src(1).ne[3] && plain(0) && plain(1)
        }
        Op::MulMatId => matmul_type(src(0).ty),
        Op::GetRows => matmul_type(src(0).ty) || src(0).ty == I32,
        Op::SetRows => {
            let into = matches!(
                t.ty,
                F32 | F16 | Bf16 | Q1_0 | Q2_0 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | Iq4Nl
            );
            into && float(src(0).ty)
        }
        Op::Rope => t.nb[0] == t.ty.block_bytes() && src(0).nb[0] == src(0).ty.block_bytes(),
        Op::FlashAttn => {
            let (k, v) = (src(1), src(2));
            let types = |ty| super::cuda::attention_type(ty) || ty == Iq4Nl;
            let heads = k.ne[0].is_multiple_of(8) && v.ne[0].is_multiple_of(8);
            heads && types(k.ty) && types(v.ty) && (k.ty == Bf16) == (v.ty == Bf16)
        }
        _ => true,
    }
}
