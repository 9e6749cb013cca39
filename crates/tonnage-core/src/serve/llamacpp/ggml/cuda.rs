//! What the CUDA backend runs, which flash-attention kernel it takes, how large it makes a tensor, and what it keeps for fusion
//! (llama.cpp v0.5.0, ggml/src/ggml-cuda/{ggml-cuda.cu, fattn.cu, fattn-common.cuh, topk-moe.cu}).

use super::graph::{Graph, Id, Op, Tensor, Unary};
use super::{Buft, pad};
use tonnage_units::GgmlType::{self, *};

/// Quantised rows are read up to a multiple of so many values (`MATRIX_ROW_PADDING`).
pub(super) const ROW_PADDING: u64 = 512;
/// Ops of at least so many rows are worth copying a host weight for.
const OFFLOAD_MIN_BATCH: u64 = 32;
/// `FATTN_KQ_STRIDE`.
pub(super) const KQ_STRIDE: u64 = 256;
/// Compute capabilities as the backend writes them: 890 for 8.9.
pub(super) const TURING: u32 = 750;
pub(super) const VOLTA: u32 = 700;
pub(super) const ADA: u32 = 890;

/// A flash-attention kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    Tile,
    Vec,
    Mma,
}

/// Types of K and V that the kernels read.
pub fn attention_type(ty: GgmlType) -> bool {
    matches!(ty, F32 | F16 | Bf16 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0)
}

/// The kernel that a flash-attention node runs; None where the device has none for its shape (`ggml_cuda_get_best_fattn_kernel`).
pub fn attention_kernel(g: &Graph, node: &Tensor, cc: u32) -> Option<Kernel> {
    let [q, k, v, mask] = [0, 1, 2, 3].map(|i| g.get(node.src[i]));
    if k.ne[2] == 0 || !q.ne[2].is_multiple_of(k.ne[2]) {
        return None;
    }
    let gqa = q.ne[2] / k.ne[2];
    let aligned = [q, k, v, mask]
        .iter()
        .filter(|t| !t.ty.is_quantized())
        .all(|t| t.nb[1..].iter().all(|nb| nb.is_multiple_of(16)));
    let gqa_opt = gqa >= 2 && k.ne[1].is_multiple_of(KQ_STRIDE) && aligned;
    let fits = match k.ne[0] {
        40 | 64 | 72 | 80 | 96 | 112 | 128 | 256 => v.ne[0] == k.ne[0],
        192 => v.ne[0] == 128 && gqa_opt && gqa.is_multiple_of(8),
        320 => v.ne[0] == 256 && gqa_opt && gqa.is_multiple_of(32),
        512 => v.ne[0] == k.ne[0] && gqa_opt,
        576 => v.ne[0] == 512 && gqa_opt,
        _ => false,
    };
    if !fits || !attention_type(k.ty) || !attention_type(v.ty) || mask.ne[2] != 1 {
        return None;
    }
    let head = q.ne[0];
    let quantized = k.ty.is_quantized() || v.ty.is_quantized();
    let vec =
        head <= 256 && head.is_multiple_of(64) && head != 192 && k.ne[1].is_multiple_of(KQ_STRIDE);
    let odd_head = head == 40 || head == 72;
    if cc >= TURING && !odd_head {
        let few = match (quantized, cc >= ADA) {
            (false, true) => {
                q.ne[1] == 1 && q.ne[3] == 1 && !(gqa > 4 && (head >= 256 || k.ne[1] >= 8192))
            }
            (false, false) => false,
            (true, true) => q.ne[1] <= 2,
            (true, false) => q.ne[1] == 1,
        };
        let vec = vec && (few || (!gqa_opt && q.ne[1] == 1));
        return Some(if vec { Kernel::Vec } else { Kernel::Mma });
    }
    if cc >= VOLTA && !odd_head {
        let most = match head {
            320 => 32,
            576 | 192 => 16,
            _ => 8,
        };
        let mut eff = 1;
        while gqa.is_multiple_of(2 * eff) && eff < most {
            eff *= 2;
        }
        return Some(match q.ne[1] * eff {
            n if vec && n <= 2 => Kernel::Vec,
            n if n <= 16 => Kernel::Tile,
            _ => Kernel::Mma,
        });
    }
    let few = match quantized {
        false => q.ne[1] == 1 && !gqa_opt,
        true => q.ne[1] <= 2,
    };
    Some(if vec && few {
        Kernel::Vec
    } else {
        Kernel::Tile
    })
}

/// Bytes that a tensor takes in a buffer, before alignment (`ggml_backend_buft_get_alloc_size`).
pub fn alloc_size(g: &Graph, id: Id, buft: Buft, cc: u32) -> u64 {
    let t = g.get(id);
    let mut size = t.bytes();
    if !matches!(buft, Buft::Cuda(_)) {
        return size;
    }
    if t.op == Op::FlashAttn {
        // the other kernels work on f16 copies of K and V
        let copies = !matches!(attention_kernel(g, t, cc), Some(Kernel::Vec) | None);
        let [k, v] = [1, 2].map(|i| g.get(t.src[i]));
        if copies && k.ty != F16 {
            size = pad(size, 128) + 2 * k.elements();
        }
        let shared = v.view.is_some() && v.view == k.view;
        if copies && v.ty != F16 && !shared {
            size = pad(size, 128) + 2 * v.elements();
        }
    }
    size + row_padding(t.ty, t.ne[0])
}

/// The bytes after a quantised tensor so that its last row can be read in whole steps.
pub fn row_padding(ty: GgmlType, ne0: u64) -> u64 {
    if !ty.is_quantized() || ne0.is_multiple_of(ROW_PADDING) {
        return 0;
    }
    let missing = ROW_PADDING - ne0 % ROW_PADDING;
    missing / ty.block_len() * ty.block_bytes()
}

/// Whether a matrix product with weights of this type runs on the device.
pub fn matmul_type(ty: GgmlType) -> bool {
    !matches!(ty, Q8_1 | I8 | I16 | I32 | I64 | F64 | Tq1_0 | Tq2_0)
}

/// Whether `GET_ROWS` of a table of this type and row length runs on the device.
pub fn rows_type(ty: GgmlType, row: u64) -> bool {
    match ty {
        F16 | F32 | Bf16 | I32 | Q1_0 | Q2_0 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 => true,
        Q2K | Q3K | Q4K | Q5K | Q6K | Iq2Xxs | Iq2Xs | Iq2S | Iq3Xxs | Iq3S | Iq1S | Iq1M
        | Iq4Xs => true,
        Iq4Nl | Mxfp4 => row.is_multiple_of(256),
        _ => false,
    }
}

/// `ggml_backend_cuda_device_supports_op` of device `index`.
pub fn supports(g: &Graph, id: Id, index: u8, cc: u32) -> bool {
    let t = g.get(id);
    // sources in another device's memory; a view has no buffer of its own yet
    let elsewhere = t
        .src
        .iter()
        .any(|s| matches!(g.get(*s).buft, Some(Buft::Cuda(i)) if i != index));
    if elsewhere {
        return false;
    }
    let src = |i: usize| g.get(t.src[i]);
    let float = |ty: GgmlType| matches!(ty, F32 | F16);
    match t.op {
        Op::Unary(_) => src(0).is_contiguous(),
        Op::Glu => src(0).contiguous_from(1),
        Op::MulMat | Op::MulMatId => {
            let (a, b) = (src(0), src(1));
            a.nb[0] == a.ty.block_bytes()
                && b.nb[0] == b.ty.block_bytes()
                && (b.ty != F16 || a.ty == F16)
                && matmul_type(a.ty)
        }
        Op::GetRows => rows_type(src(0).ty, src(0).ne[0]),
        Op::SetRows => {
            let into = matches!(
                t.ty,
                F32 | F16 | Bf16 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | Iq4Nl
            );
            (into && src(0).ty == F32) || (t.ty == F16 && src(0).ty == F16)
        }
        Op::Norm | Op::RmsNorm | Op::L2Norm => src(0).nb[0] == src(0).ty.block_bytes(),
        Op::Scale => matches!(src(0).ty, F32 | Bf16),
        Op::Add | Op::Sub | Op::Mul | Op::Div => {
            float(src(0).ty) && float(src(1).ty) && float(t.ty)
        }
        Op::Rope => src(0).nb[0] == src(0).ty.block_bytes() && src(0).contiguous_from(2),
        Op::SumRows => src(0).ty == F32 && src(0).nb[0] == 4,
        Op::SsmScan => {
            let (s, a) = (src(0), src(3));
            if a.ne[0] == 1 {
                matches!(s.ne[0], 96 | 128 | 256) && s.ne[1].is_multiple_of(16)
            } else {
                s.ne[0] == 16 && s.ne[1] == 1 && s.ne[2].is_multiple_of(128) && src(4).ne[1] == 1
            }
        }
        Op::SsmConv => src(0).ne[1].is_multiple_of(128),
        Op::Repeat => float(src(0).ty),
        Op::FlashAttn => attention_kernel(g, t, cc).is_some(),
        _ => true,
    }
}

/// Whether the device wants an op although its weight is on the host (`ggml_backend_cuda_device_offload_op`).
pub fn wants(t: &Tensor) -> bool {
    let batch = match t.op {
        Op::GetRows => 0,
        Op::MulMat => t.ne[1],
        Op::MulMatId | Op::Rope => t.ne[2],
        _ => t.rows(),
    };
    batch >= OFFLOAD_MIN_BATCH
}

/// Most columns of the matrix-vector kernels of quantised weights, and of the small-matrix kernels of plain ones.
pub(super) const VECTOR_COLUMNS: u64 = 8;
const SMALL_COLUMNS: u64 = 16;

/// Label of the input that turns the values of a quantised cache.
pub const ROTATION: &str = "cache rotation";

/// Whether a node is computed by cuBLAS (`ggml_cuda_mul_mat`, `ggml_cuda_should_use_mmq` of the prebuilt libraries).
pub fn uses_cublas(g: &Graph, t: &Tensor, cc: u32) -> bool {
    let columns = match t.op {
        Op::MulMat => t.ne[1],
        Op::MulMatId => t.ne[2],
        _ => return false,
    };
    let (a, b) = (g.get(t.src[0]), g.get(t.src[1]));
    // rotations of a quantised cache and single rows have kernels of their own
    if a.label == ROTATION || (a.ty == F32 && a.ne[1] == 1) {
        return false;
    }
    match a.ty.is_quantized() {
        true if columns <= VECTOR_COLUMNS => false,
        // products of quantised blocks need tensor cores of Turing; for experts Pascal will do
        true => cc < if t.op == Op::MulMatId { 600 } else { TURING },
        false => b.ty != F32 || columns > SMALL_COLUMNS,
    }
}

/// What a cuBLAS handle takes with its first call.
pub fn cublas_workspace(cc: u32) -> u64 {
    match cc {
        900.. => 32 << 20,
        _ => 4 << 20,
    }
}

/// Tensors to keep until a later node is done, so that mixture-of-experts ops can be fused (`ggml_backend_cuda_graph_optimize`): for
/// the nodes `range` of the graph, pairs of the node that is waited for and what is kept.
pub fn fusion_keeps(g: &Graph, range: std::ops::Range<usize>) -> Vec<(Id, Vec<Id>)> {
    let mut out = Vec::new();
    let mut i = range.start;
    while i < range.end {
        if let Some((len, keep)) = weighted_reduction(g, i, range.end) {
            out.push((g.nodes[i + len - 1], keep));
            // the last node of the group is looked at below, as in the engine
            i += len - 1;
        }
        let group = routing(g, i, range.end).and_then(|n| Some((n, *g.nodes.get(i + n)?)));
        if let Some((len, until)) = group {
            let mut keep = Vec::new();
            for &n in &g.nodes[i..i + len] {
                for t in std::iter::once(n).chain(g.get(n).src.iter().copied()) {
                    if !keep.contains(&t) {
                        keep.push(t);
                    }
                }
            }
            out.push((until, keep));
            i += len - 1;
        }
        i += 1;
    }
    out
}

/// Most experts of a fused weighted sum (`MOE_WEIGHTED_REDUCTION_MAX_EXPERTS`).
const MAX_REDUCED: u64 = 64;

/// experts * weights, then a view of each expert and their sum: the number of nodes, and experts and weights.
fn weighted_reduction(g: &Graph, at: usize, end: usize) -> Option<(usize, Vec<Id>)> {
    let first = g.nodes[at];
    let t = g.get(first);
    if t.op != Op::Mul {
        return None;
    }
    let k = t.ne[1];
    let weights = |id: Id| {
        let w = g.get(id);
        w.ty == F32 && w.is_contiguous() && w.ne[0] == 1 && w.ne[1..] == t.ne[1..]
    };
    let experts = |id: Id| {
        let e = g.get(id);
        e.ty == F32 && e.is_contiguous() && e.ne == t.ne
    };
    let (e, w) = match (t.src[0], t.src[1]) {
        (a, b) if experts(a) && weights(b) => (a, b),
        (a, b) if experts(b) && weights(a) => (b, a),
        _ => return None,
    };
    if !(2..=MAX_REDUCED).contains(&k) {
        return None;
    }
    let len = 2 * k as usize;
    if at + len > end {
        return None;
    }
    let (mut views, mut adds, mut last) = (Vec::new(), 0, None);
    for &n in &g.nodes[at + 1..at + len] {
        let x = g.get(n);
        match x.op {
            Op::View if x.src == [first] && x.ne[0] == t.ne[0] => views.push(n),
            Op::Add if adds + 1 < views.len() => {
                let left = last.unwrap_or(views[0]);
                if x.src != [left, views[adds + 1]] {
                    return None;
                }
                (adds, last) = (adds + 1, Some(n));
            }
            _ => return None,
        }
    }
    (views.len() as u64 == k && adds as u64 == k - 1).then(|| (len, vec![e, w]))
}

/// The nodes of a routing group from a softmax or sigmoid on; None where it is not one.
fn routing(g: &Graph, at: usize, end: usize) -> Option<usize> {
    let node = |i: usize| g.nodes.get(i).filter(|_| i < end).map(|n| g.get(*n));
    let is = |i: usize, op: Op| node(i).is_some_and(|t| t.op == op);
    let from =
        |i: usize, s: usize, of: usize| node(i).is_some_and(|t| t.src.get(s) == Some(&g.nodes[of]));
    let first = node(at)?;
    match first.op {
        Op::SoftMax if first.src.len() == 1 => {}
        Op::Unary(Unary::Sigmoid) => {}
        _ => return None,
    }
    let probs = at;
    let mut i = at + 1;
    if !is(i, Op::Reshape) || !from(i, 0, probs) {
        return None;
    }
    let reshaped = i;
    i += 1;
    let bias = is(i, Op::Add) && from(i, 0, probs);
    if bias {
        i += 1;
    }
    let sorted_of = if bias { i - 1 } else { probs };
    if !is(i, Op::Argsort) || !from(i, 0, sorted_of) {
        return None;
    }
    i += 1;
    if !is(i, Op::View) || !from(i, 0, i - 1) {
        return None;
    }
    let ids = i;
    i += 1;
    if !is(i, Op::GetRows) || !from(i, 0, reshaped) || !from(i, 1, ids) {
        return None;
    }
    i += 1;
    let normed = is(i, Op::Reshape)
        && from(i, 0, i - 1)
        && is(i + 1, Op::SumRows)
        && from(i + 1, 0, i)
        && is(i + 2, Op::Clamp)
        && from(i + 2, 0, i + 1)
        && is(i + 3, Op::Div)
        && from(i + 3, 0, i)
        && from(i + 3, 1, i + 2)
        && is(i + 4, Op::Reshape)
        && from(i + 4, 0, i + 3);
    if normed {
        i += 5;
    }
    if is(i, Op::Scale) && from(i, 0, i - 1) {
        i += 1;
    }
    // instances of the fused kernel: powers of two to 512, and two odd counts
    let sort = g.get(g.nodes[ids]);
    let n = sort.nb[1] / sort.nb[0];
    let known = (n.is_power_of_two() && n <= 512) || n == 288 || n == 576;
    // nothing but ids and weights may be used outside
    let closed = (at..i).all(|j| {
        let id = g.nodes[j];
        let inside = (j + 1..i)
            .flat_map(|m| g.get(g.nodes[m]).src.iter())
            .filter(|s| **s == id)
            .count();
        j == ids || j == i - 1 || inside as u32 == g.uses[id as usize]
    });
    (known && closed).then_some(i - at)
}
