//! The temporary pool of a CUDA device: what each node asks for while it runs (llama.cpp v0.5.0 and the sources of ggml before and after
//! it, ggml/src/ggml-cuda/{ggml-cuda.cu, mmq.cu, mmq.cuh, mmq-config-*.cuh, fattn*.cuh}; pool_bytes_prefill of
//! groundtruth/llamacpp-dev.jsonl).
//!
//! The pool grows in steps of 2 MiB, gives its memory out as a stack and never shrinks, so it is the largest need of one node.

use super::cuda::{self, Kernel};
use super::graph::{Graph, Op, Tensor};
use super::pad;
use tonnage_units::GgmlType::{self, *};

/// Step in which the pool grows (`vmm_granularity`).
const STEP: u64 = 2 << 20;
/// Every piece begins at a multiple of it.
const ALIGNMENT: u64 = 128;
/// Values, and bytes, of a block of quantised activations (`block_q8_1_mmq`); of 4-bit ones twice the values (`block_fp4_mmq`).
const BLOCK_VALUES: u64 = 128;
const BLOCK_BYTES: u64 = 144;
/// A CUDA device as kernels are laid out for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chip {
    /// 890 for compute capability 8.9.
    pub cc: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: u64,
    /// Blocks of an attention kernel that one of them runs at once ([`OCCUPANCY`]).
    pub occupancy: u64,
}

/// Blocks of an attention kernel on one multiprocessor: the driver's answer depends on the kernel's registers. The least, what the recorded
/// devices say and most of these kernels are written for, and the most that they are written for.
pub const OCCUPANCY: [u64; 3] = [1, 2, 4];

/// Bytes of the pool once these nodes have run; None where a node's need is not known (Mamba-2's scan in chunks).
pub fn bytes<'a>(g: &Graph, nodes: impl Iterator<Item = &'a Tensor>, chip: Chip) -> Option<u64> {
    let mut most = 0;
    for t in nodes {
        if t.elements() == 0 {
            continue;
        }
        most = most.max(need(g, t, chip)?);
    }
    Some(pad(most, STEP))
}

fn pieces(list: &[u64]) -> u64 {
    list.iter().map(|b| pad(*b, ALIGNMENT)).sum()
}

/// What one node takes from the pool.
fn need(g: &Graph, t: &Tensor, chip: Chip) -> Option<u64> {
    Some(match t.op {
        Op::MulMat => product(g, t, chip),
        Op::MulMatId => experts(g, t, chip),
        Op::FlashAttn => attention(g, t, chip),
        // one value of A for each head: Mamba-2
        Op::SsmScan if g.get(t.src[3]).ne[0] == 1 => return None,
        _ => 0,
    })
}

fn product(g: &Graph, t: &Tensor, chip: Chip) -> u64 {
    let (a, b) = (g.get(t.src[0]), g.get(t.src[1]));
    if cuda::uses_cublas(g, t, chip.cc) {
        return cublas(a, b, t, scores(a, b), chip.cc);
    }
    if !a.ty.is_quantized() || a.label == cuda::ROTATION {
        return 0;
    }
    let row = pad(b.ne[0], cuda::ROW_PADDING);
    if t.ne[1] <= cuda::VECTOR_COLUMNS {
        return pieces(&[b.rows() * row * 36 / 32]);
    }
    let grid = Grid {
        rows: a.ne[1],
        columns: t.ne[1],
        matrices: b.ne[2] * b.ne[3],
    };
    let activations = quantised(a, b.rows(), row, b.ne[1], chip.cc);
    let scale = scales(a.ty, b.rows(), chip.cc);
    pieces(&[activations, scale, fixup(a.ty, grid, chip)])
}

/// K times Q, which is computed in 32 bits (`ggml_mul_mat_set_prec`): both are seen through permutations.
fn scores(k: &Tensor, q: &Tensor) -> bool {
    !k.weight && k.op == Op::Permute && q.op == Op::Permute
}

/// Does a 4-bit float type multiply 4-bit activations?
fn native_fp4(ty: GgmlType, cc: u32) -> bool {
    cc >= 1200 && matches!(ty, Mxfp4 | Nvfp4)
}

fn quantised(a: &Tensor, rows: u64, row: u64, columns: u64, cc: u32) -> u64 {
    let values = match native_fp4(a.ty, cc) {
        true => 2 * BLOCK_VALUES,
        false => BLOCK_VALUES,
    };
    rows * row * BLOCK_BYTES / values + widest(a.ne[1], columns, cc) * BLOCK_BYTES
}

fn scales(ty: GgmlType, rows: u64, cc: u32) -> u64 {
    match ty == Nvfp4 && native_fp4(ty, cc) {
        true => 4 * rows,
        false => 0,
    }
}

/// Widths of the tiles of columns that kernels exist for; with rows that are no multiple of 128 only the powers of two.
fn widths(rows: u64, cc: u32) -> impl DoubleEndedIterator<Item = u64> {
    const ALL: [u64; 11] = [8, 16, 24, 32, 40, 48, 64, 80, 96, 112, 128];
    let even = rows.is_multiple_of(128);
    let most = if cc >= cuda::VOLTA { 128 } else { 64 };
    ALL.into_iter()
        .filter(move |j| (even || j.is_power_of_two()) && *j <= most)
}

/// `ggml_cuda_mmq_get_J_max`.
fn widest(rows: u64, columns: u64, cc: u32) -> u64 {
    widths(rows, cc).rev().find(|j| *j <= columns).unwrap_or(0)
}

/// The tiles of a product.
#[derive(Clone, Copy)]
struct Grid {
    rows: u64,
    columns: u64,
    matrices: u64,
}

/// Shared memory that a block may have (`sharedMemPerBlockOptin`), by compute capability.
fn shared_limit(cc: u32) -> u64 {
    match cc {
        900..1200 => 227 << 10,
        860..900 | 1200.. => 99 << 10,
        800..860 => 163 << 10,
        750..800 => 64 << 10,
        700..750 => 96 << 10,
        _ => 48 << 10,
    }
}

/// Bytes of a row of weights in shared memory, in the layouts for tensor cores.
fn shared_row(ty: GgmlType) -> u64 {
    4 * match ty {
        Q2K => 100,
        Q3K | Iq2Xs | Iq2S | Nvfp4 => 84,
        _ => 76,
    }
}

/// The buffer in which blocks leave their share of a tile that they do not finish (`launch_mul_mat_q`).
fn fixup(ty: GgmlType, grid: Grid, chip: Chip) -> u64 {
    const THREADS: u64 = 256;
    // older devices take whole tiles
    if chip.cc < cuda::VOLTA {
        return 0;
    }
    let shared = |j: u64| 4 * j + 128 * shared_row(ty) + pad(j * BLOCK_BYTES, 4 * THREADS);
    let (mut width, mut fewest) = (0, u64::MAX);
    for j in widths(grid.rows, chip.cc) {
        if shared(j) > shared_limit(chip.cc) {
            continue;
        }
        let n = grid.columns.div_ceil(j);
        if n < fewest {
            (width, fewest) = (j, n);
        }
        if fewest <= 1 {
            break;
        }
    }
    let tiles = grid.rows.div_ceil(128) * fewest * grid.matrices;
    let chips = chip.multiprocessors.max(1);
    let filled = 100 * tiles / (chips * tiles.div_ceil(chips).max(1));
    let blocks = if filled >= 90 { tiles } else { chips };
    match tiles.is_multiple_of(blocks) {
        true => 0,
        false => 4 * blocks * width * 128,
    }
}

/// `ggml_cuda_mul_mat_id`.
fn experts(g: &Graph, t: &Tensor, chip: Chip) -> u64 {
    let [a, b, ids] = [0, 1, 2].map(|i| g.get(t.src[i]));
    let (tokens, used) = (b.ne[2], ids.ne[0]);
    let rows = tokens * used;
    let row = pad(b.ne[0], cuda::ROW_PADDING);
    if !a.ty.is_quantized() {
        if !cuda::uses_cublas(g, t, chip.cc) {
            return pieces(&[4 * rows, 4 * rows, 4 * (a.ne[2] + 1)]);
        }
        // sorted by expert; each expert's share is then a product of its own, here the same for all
        let each = rows.div_ceil(a.ne[2].max(1));
        let size = a.ty.block_bytes();
        let outer = pieces(&[8 * rows, rows * b.ne[0] * size, rows * t.ne[0] * 4]);
        return outer + half_output(a.ty, each * t.ne[0], chip.cc);
    }
    if tokens <= cuda::VECTOR_COLUMNS {
        return pieces(&[b.rows() * row * 36 / 32]);
    }
    let grid = Grid {
        rows: a.ne[1],
        columns: tokens,
        matrices: a.ne[2],
    };
    pieces(&[
        4 * rows,
        4 * rows,
        4 * (a.ne[2] + 1),
        quantised(a, rows, row, b.ne[1], chip.cc),
        scales(a.ty, rows, chip.cc),
        fixup(a.ty, grid, chip),
    ])
}

/// `fast_fp16_available`: Pascal and later but GP102 to GP107 with 6.1.
fn fast_half(cc: u32) -> bool {
    cc >= 600 && cc != 610
}

/// The 16-bit result of an f16 product before it is widened; Volta writes 32 bits at once.
fn half_output(ty: GgmlType, elements: u64, cc: u32) -> u64 {
    let volta = (700..750).contains(&cc);
    match ty == F16 && !volta {
        true => pad(2 * elements, ALIGNMENT),
        false => 0,
    }
}

/// `ggml_cuda_mul_mat_cublas`: sources in the type that is computed in, the 16-bit result, lists of pointers.
fn cublas(a: &Tensor, b: &Tensor, t: &Tensor, exact: bool, cc: u32) -> u64 {
    let compute = match a.ty {
        _ if exact => F32,
        ty if ty.is_quantized() || ty == F16 => {
            if fast_half(cc) {
                F16
            } else {
                F32
            }
        }
        ty => ty,
    };
    let size = compute.block_bytes();
    let copy = |x: &Tensor| match x.ty == compute {
        true => 0,
        false => x.elements() * size,
    };
    let batched = b.ne[2] * b.ne[3];
    let same = a.ne[2] == b.ne[2] && a.ne[3] == b.ne[3];
    // a copy of what is not contiguous is
    let packed = |x: &Tensor| x.contiguous_from(2) || x.ty != compute;
    let lists = match batched == 1 || (same && packed(a) && packed(b)) {
        true => 0,
        false => batched,
    };
    pieces(&[copy(a), copy(b), 16 * lists, 8 * lists]) + half_output(compute, t.elements(), cc)
}

/// `launch_fattn`: which parts of the mask are empty, and what blocks leave of a tile that several work on.
fn attention(g: &Graph, t: &Tensor, chip: Chip) -> u64 {
    let [q, k, v, mask] = [0, 1, 2, 3].map(|i| g.get(t.src[i]));
    let Some(kernel) = cuda::attention_kernel(g, t, chip.cc) else {
        return 0;
    };
    let gqa = q.ne[2] / k.ne[2].max(1);
    let whole = k.ne[1].is_multiple_of(cuda::KQ_STRIDE);
    let aligned = [q, k, v, mask]
        .iter()
        .filter(|t| !t.ty.is_quantized())
        .all(|t| t.nb[1..].iter().all(|nb| nb.is_multiple_of(16)));
    let (columns, heads, batch) = match kernel {
        Kernel::Mma => mma(q.ne[0], q.ne[1], gqa, whole && aligned, chip.cc),
        Kernel::Tile => tile(q.ne[0], v.ne[0], q.ne[1], gqa, whole, chip.cc),
        Kernel::Vec => (q.ne[1].min(2), 1, q.ne[0]),
    };
    let tiles_x = q.ne[1].div_ceil(columns);
    let tiles_z = gqa.div_ceil(heads) * k.ne[2] * q.ne[3];
    let tiles = tiles_x * tiles_z;
    let seen = match whole && (q.ne[1] >= 1024 || q.ne[3] > 1) {
        true => 4 * tiles_x * q.ne[3],
        false => 0,
    };
    let parts = k.ne[1].div_ceil(batch);
    let most = chip.occupancy * chip.multiprocessors.max(1);
    if kernel == Kernel::Mma {
        let filled = 100 * tiles / (most * tiles.div_ceil(most).max(1));
        let mut blocks = tiles;
        if chip.cc >= cuda::ADA || filled < 75 {
            let raw = most.min(parts * tiles).max(1);
            let rounded = raw / tiles * tiles;
            let lost = if rounded > 0 {
                100 * (raw - rounded) / raw
            } else {
                100
            };
            blocks = if lost <= 5 { rounded } else { raw };
        }
        let left = match tiles.is_multiple_of(blocks) {
            true => 0,
            false => 8 * blocks * columns * heads * (2 + v.ne[0] / 2),
        };
        return pieces(&[seen, left]);
    }
    let least = chip.occupancy.min(parts);
    let mut parallel = least;
    let (mut waves_best, mut best) = (0, 0);
    for test in least..=parts {
        let waves = (tiles * test).div_ceil(most);
        let filled = 100 * tiles * test / (waves * most).max(1);
        if best >= 95 && waves > waves_best {
            break;
        }
        if filled > best {
            (waves_best, best, parallel) = (waves, filled, test);
        }
    }
    match parallel {
        0 | 1 => pieces(&[seen]),
        n => pieces(&[seen, 4 * n * t.elements(), 8 * n * t.rows()]),
    }
}

/// Queries and heads of a tile of the tensor-core kernel, and the rows of K that it takes at once
/// (`ggml_cuda_flash_attn_ext_mma_f16_switch_ncols2`, `_ncols1`).
fn mma(head: u64, queries: u64, gqa: u64, shared: bool, cc: u32) -> (u64, u64, u64) {
    let heads = match head {
        192 if gqa.is_multiple_of(16) => 16,
        192 => 8,
        320 => 32,
        576 if gqa.is_multiple_of(16) => 16,
        576 => 4,
        _ if !shared => 1,
        _ if (700..750).contains(&cc) => [8, 4, 2]
            .into_iter()
            .find(|n| gqa.is_multiple_of(*n))
            .unwrap_or(1),
        _ if gqa > 4 => 8,
        _ if gqa > 2 => 4,
        _ => gqa.min(2),
    };
    let turing = (750..800).contains(&cc);
    let columns = match queries {
        n if heads <= 8 && cc >= cuda::TURING && n <= 8 / heads => 8,
        n if heads <= 16 && n <= 16 / heads => 16,
        n if n <= 32 / heads || turing => 32,
        _ => 64,
    };
    let batch = match (head, columns) {
        (..192, 8) => 128,
        (..192, _) => 64,
        (256, _) if turing => 64,
        (192 | 256, 8) => 64,
        _ => 32,
    };
    (columns / heads, heads, batch)
}

/// The same of the kernel without tensor cores (`launch_fattn_tile_switch_ncols2`, `_ncols1`).
fn tile(head: u64, value: u64, queries: u64, gqa: u64, whole: bool, cc: u32) -> (u64, u64, u64) {
    let few = queries <= 16 || gqa > 4 || value > 256;
    let by: &[u64] = match head {
        320 => &[16],
        576 => &[16, 4],
        192 => &[16, 8],
        _ => &[8, 4, 2],
    };
    let fit = by.iter().copied().find(|n| gqa.is_multiple_of(*n));
    let heads = fit.filter(|_| few && whole).unwrap_or(1);
    let columns = [(128, 64), (256, 32), (u64::MAX, 16), (u64::MAX, 8)]
        .into_iter()
        .filter(|(most, _)| head <= *most)
        .map(|x| x.1)
        .chain([4, 2])
        .find(|n| queries > n / 2 / heads)
        .unwrap_or(2)
        .max(heads);
    let batch = match (fast_half(cc), head, columns) {
        (true, ..) => 64,
        (false, 64, 2 | 16 | 32) | (false, 128, 2 | 8 | 32) | (false, 192 | 256, 2) => 64,
        _ => 32,
    };
    (columns / heads, heads, batch)
}
