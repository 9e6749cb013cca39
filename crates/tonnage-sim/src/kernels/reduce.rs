//! Reductions: `sum`, `mean`, norms, extremes, `var`, `any`/`all`.
//!
//! Source: PyTorch 2.11, `aten/src/ATen/native/cuda/Reduce.cuh` (`setReduceConfig`, `gpu_reduce_kernel`);
//! template arguments from `Reduce{SumProd,Moment,Norm,MinValues,MaxValues,Logic,ArgMax}Kernel.cu`.
//! When a result has so many inputs that they are split over thread blocks, the launcher allocates a
//! staging buffer and one semaphore for each column of blocks; both die when the launcher returns.
//! Verified: `tests/fixtures/kernels/reduce.jsonl`.
use super::{KernelDevice, Steps, Strided, iter::ReduceIter};
use tonnage_units::ScalarType;

/// The template arguments of one `gpu_reduce_kernel` instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReduceKernel {
    /// Bytes of an input element.
    pub scalar: u64,
    /// Bytes of a result element.
    pub out: u64,
    /// Bytes of the accumulator (`arg_t`).
    pub acc: u64,
    /// Elements a thread loads at once along the reduced dimension.
    pub input_vec: u64,
    /// Whether partial sums of a tensor too big for 32-bit indices may be kept in the result itself.
    pub accumulates_in_output: bool,
}

/// Which reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReduceOp {
    /// `sum` (also the bias gradient and the reduction of a broadcast gradient).
    Sum,
    /// `mean`.
    Mean,
    /// `prod`.
    Prod,
    /// `linalg.vector_norm`.
    Norm,
    /// `amax`, `amin`, and `max`/`min` without a dimension.
    Extreme,
    /// `max`/`min` along a dimension: values and indices.
    ExtremeWithIndex,
    /// `argmax`, `argmin`.
    ArgExtreme,
    /// `any`, `all`.
    AnyAll,
    /// `var`, `std`.
    Var,
}

struct Config {
    global: bool,
    buffer: u64,
    semaphores: u64,
}

fn last_pow2(n: u64) -> u64 {
    if n == 0 { 1 } else { 1 << n.ilog2() }
}

fn output_vec(it: &ReduceIter, scalar: u64) -> u64 {
    let mut vec = 4;
    let mut update = |n: u64| {
        while !n.is_multiple_of(vec) {
            vec /= 2;
        }
    };
    let output_dim = it.num_reduce_dims();
    update(it.input_offset / scalar);
    update(it.shape[output_dim]);
    for (d, &s) in it.input.iter().enumerate() {
        if d != output_dim {
            update(s / scalar);
        }
    }
    vec
}

fn config(it: &ReduceIter, k: &ReduceKernel, dev: &KernelDevice) -> Config {
    const MAX_THREADS: u64 = 512;
    const MIN_VALUES: u64 = 16;
    const MAX_VALUES: u64 = 256;
    const WARP: u64 = 32;
    let num_outputs = it.num_outputs();
    let num_inputs = it.numel() / num_outputs;
    let reduced = it.num_reduce_dims();
    let ndim = it.shape.len();
    let (mut dim0, dim1, fastest, on_fastest);
    if ndim > 0 {
        on_fastest = reduced == ndim || it.input[0] < it.input[reduced];
        if on_fastest {
            (dim0, dim1, fastest) = (num_inputs, num_outputs, it.input[0]);
        } else {
            (dim0, dim1, fastest) = (num_outputs, num_inputs, it.input[reduced]);
        }
    } else {
        (dim0, dim1, fastest, on_fastest) = (1, 1, k.scalar, true);
    }
    let mut out_vec = 1;
    if fastest == k.scalar {
        if on_fastest && dim0 >= 128 && reduced == 1 {
            dim0 /= k.input_vec;
        } else if !on_fastest {
            out_vec = output_vec(it, k.scalar);
            dim0 /= out_vec;
        }
    }
    let max_threads = MAX_THREADS / out_vec;
    let clamp = |n: u64| {
        if n < max_threads {
            last_pow2(n)
        } else {
            max_threads
        }
    };
    let (p0, p1) = (clamp(dim0), clamp(dim1));
    let mut width = p0.min(WARP);
    let height = p1.min(max_threads / width);
    width = p0.min(max_threads / height);
    let threads = width * height;

    let (mut step_input, mut step_output) = (1, 1);
    let block_x_reduce = ndim == 0 || on_fastest;
    if block_x_reduce {
        step_input *= width;
    } else {
        step_output *= width;
    }
    let values = |step: u64| num_inputs.div_ceil(step);
    let across_warps = values(step_input) >= (height * 16).min(MAX_VALUES);
    if across_warps {
        step_input *= height;
    } else {
        step_output *= height;
    }
    let target = u64::from(dev.sm_count) * (u64::from(dev.max_threads_per_sm) / threads);
    let grid = (num_outputs / out_vec).div_ceil(step_output);
    let mut ctas = 1;
    if across_warps && values(step_input) >= MAX_VALUES && grid <= target {
        let by_grid = target.div_ceil(grid);
        let by_min = values(step_input).div_ceil(MIN_VALUES);
        let by_max = values(step_input).div_ceil(MAX_VALUES);
        ctas = by_grid.min(by_min).max(by_max);
    }
    let global = ctas > 1;
    let mut buffer = k.acc * num_outputs * ctas;
    if !block_x_reduce {
        buffer *= width * out_vec;
    }
    Config {
        global,
        buffer,
        semaphores: 4 * grid,
    }
}

fn launch(steps: &mut Steps, it: &ReduceIter, k: &ReduceKernel, dev: &KernelDevice) {
    let c = config(it, k, dev);
    if c.global {
        let buffer = steps.alloc(c.buffer);
        let semaphores = steps.alloc(c.semaphores);
        steps.free(semaphores);
        steps.free(buffer);
    }
}

/// The scratch buffers of one reduction launch, in order; the result is not part of it.
///
/// `x` is the input, `dims` has bit i set when dimension i is reduced. Inputs that 32-bit indices cannot
/// reach (more than 2^31 bytes) are split as the launcher splits them.
pub fn reduce_scratch(
    x: &Strided,
    dims: u64,
    keepdim: bool,
    kernel: &ReduceKernel,
    num_results: usize,
    dev: &KernelDevice,
) -> Steps {
    let mut steps = Steps::new();
    if x.numel() == 0 {
        return steps;
    }
    let outs = [kernel.out, 8];
    let mut it = ReduceIter::new(x, dims, keepdim, kernel.scalar, &outs[..num_results]);
    if it.fits_32_bit() {
        launch(&mut steps, &it, kernel, dev);
        return steps;
    }
    let mut acc = None;
    if !kernel.accumulates_in_output && kernel.out < kernel.acc {
        let size = it
            .shape
            .iter()
            .zip(&it.out[0])
            .map(|(n, s)| n * s)
            .fold(it.out_element, u64::max);
        acc = steps.alloc(size / it.out_element * kernel.acc);
    }
    let mut stack = vec![];
    loop {
        while !it.fits_32_bit() {
            let first = it.split();
            stack.push(it);
            it = first;
        }
        launch(&mut steps, &it, kernel, dev);
        match stack.pop() {
            Some(next) => it = next,
            None => break,
        }
    }
    steps.free(acc);
    steps
}

impl ReduceOp {
    /// The kernel instance for input and result types (after the cast that [`reduce`] makes).
    pub fn kernel(self, input: ScalarType, out: ScalarType) -> ReduceKernel {
        let low = matches!(input, ScalarType::F16 | ScalarType::BF16);
        let scalar = input.size();
        let opmath = if low { 4 } else { scalar };
        let mut k = ReduceKernel {
            scalar,
            out: out.size(),
            acc: opmath,
            input_vec: 4,
            accumulates_in_output: !(low && input == out),
        };
        match self {
            ReduceOp::Sum | ReduceOp::Mean | ReduceOp::Prod | ReduceOp::Norm => {}
            ReduceOp::Extreme | ReduceOp::AnyAll => k.acc = scalar,
            ReduceOp::ExtremeWithIndex | ReduceOp::ArgExtreme => {
                k.acc = 16;
                k.accumulates_in_output = false;
            }
            ReduceOp::Var => {
                k.acc = if input == ScalarType::F64 { 32 } else { 16 };
                k.input_vec = 2;
                k.accumulates_in_output = false;
            }
        }
        k
    }
}

/// A whole reduction operator: results, the cast of the input where the operator makes one, scratch.
///
/// `out` is the result's type (of the values where there are indices too). `dims` as in
/// [`reduce_scratch`]; all bits set reduces everything.
pub fn reduce(
    op: ReduceOp,
    x: &Strided,
    input: ScalarType,
    dims: u64,
    keepdim: bool,
    out: ScalarType,
    dev: &KernelDevice,
) -> Steps {
    let two = op == ReduceOp::ExtremeWithIndex;
    let mut steps = Steps::outputs(if two { 2 } else { 1 });
    steps.extend(&reduce_into(op, x, input, dims, keepdim, out, dev), 0);
    steps
}

/// [`reduce`] without its results: what happens after they are allocated.
pub fn reduce_into(
    op: ReduceOp,
    x: &Strided,
    input: ScalarType,
    dims: u64,
    keepdim: bool,
    out: ScalarType,
    dev: &KernelDevice,
) -> Steps {
    let mut steps = Steps::new();
    // low precision to fp32 is done inside the kernel, every other type change by a cast before it
    let inside = matches!(input, ScalarType::F16 | ScalarType::BF16) && out == ScalarType::F32;
    if op == ReduceOp::AnyAll && x.numel() == 1 {
        // one element is converted, not reduced
        if input != ScalarType::Bool {
            steps.scratch(1);
        }
        return steps;
    }
    let casts = match op {
        ReduceOp::Sum | ReduceOp::Mean | ReduceOp::Prod | ReduceOp::Norm => input != out && !inside,
        _ => false,
    };
    if casts {
        let copy = x.like();
        let slot = steps.alloc(x.numel() * out.size());
        let scratch = reduce_scratch(&copy, dims, keepdim, &op.kernel(out, out), 1, dev);
        steps.extend(&scratch, 0);
        steps.free(slot);
    } else {
        let n = if op == ReduceOp::ExtremeWithIndex {
            2
        } else {
            1
        };
        let scratch = reduce_scratch(x, dims, keepdim, &op.kernel(input, out), n, dev);
        steps.extend(&scratch, 0);
    }
    steps
}
