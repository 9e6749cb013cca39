//! Kernels: what a library registers, whether any of its code fits the device, and launches that do nothing.

use crate::fatbin::{self, Code};
use crate::state::{current, fail, say, state};
use crate::torch;
use crate::types::*;
use crate::{rt_stream, wheels};
use serde_json::json;
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex, MutexGuard};

#[derive(Debug, Default)]
struct Registry {
    /// Wrappers of the fat binaries; the handle that the library holds is the index.
    binaries: Vec<usize>,
    codes: HashMap<usize, Option<Vec<Code>>>,
    /// Binary of each function.
    functions: HashMap<usize, usize>,
    symbols: HashMap<usize, usize>,
    /// Functions that reduce with "or" or convert zeros: `any()`.
    any: HashSet<usize>,
}

static REGISTRY: LazyLock<Mutex<Registry>> = LazyLock::new(Mutex::default);
const HANDLES: usize = 0x7300_0000;

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Registry {
    fn codes_of(&mut self, function: usize) -> Option<&Vec<Code>> {
        let wrapper = *self.binaries.get(*self.functions.get(&function)?)?;
        self.codes
            .entry(wrapper)
            .or_insert_with(|| fatbin::codes(wrapper))
            .as_ref()
    }
}

/// The code that the current device would run for a function. Ok(None): nothing is known about it.
fn code(function: usize) -> Result<Option<Code>, i32> {
    let arch = state().device(current())?.arch();
    let mut all = registry();
    let Some(codes) = all.codes_of(function).filter(|c| !c.is_empty()) else {
        return Ok(None);
    };
    if let Some(code) = fatbin::choose(codes, arch) {
        return Ok(Some(code));
    }
    drop(all);
    no_kernels(function, arch);
    Err(fail(NO_KERNEL_IMAGE))
}

/// Says once what is missing and who has it.
fn no_kernels(function: usize, arch: u32) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if SAID.swap(true, Relaxed) {
        return;
    }
    let library = torch::library_of(function);
    let mut all = registry();
    // All code of the library that holds the function: one source file may have been compiled for a few only.
    let functions: Vec<usize> = all
        .functions
        .keys()
        .copied()
        .filter(|&f| torch::library_of(f) == library)
        .collect();
    let has: BTreeSet<Code> = functions
        .iter()
        .flat_map(|&f| all.codes_of(f).cloned().unwrap_or_default())
        .collect();
    drop(all);
    let has: Vec<String> = has.iter().map(ToString::to_string).collect();
    let capability = format!("{}.{}", arch / 10, arch % 10);
    let name = library.rsplit('/').next().unwrap_or("").to_string();
    let has_all = has.join(", ");
    let message = match torch::version() {
        torch::NONE => format!(
            "{name} has no kernels for capability {capability}: it has {has_all}. A build that has: -DCMAKE_CUDA_ARCHITECTURES={arch}"
        ),
        version => format!(
            "{name} (torch {version}) has no kernels for capability {capability}: it has {has_all}. {}",
            wheels::advice(arch)
        ),
    };
    say(&message);
    state().report.line(
        "no-kernels",
        json!({"device": state().index(current()).unwrap_or(0), "capability": capability, "library": name, "has": has,
               "torch": torch::version(), "message": message}),
    );
}

thread_local! {
    /// Functions known to run on a device, so that a launch need not take the lock.
    static RUNS: RefCell<HashSet<(usize, usize)>> = RefCell::default();
    static CONFIGURED: RefCell<Vec<(Dim3, Dim3, usize, usize)>> = const { RefCell::new(Vec::new()) };
}

/// Three counts, by value.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Dim3 {
    x: u32,
    y: u32,
    z: u32,
}

static LAST: AtomicUsize = AtomicUsize::new(0);

/// What a one-byte answer of the device is taken to be: the null device's zeros hold for "any" (`any()` of a list of
/// faults, of a comparison with NaN); other questions (`all()`, equality) are hoped to be true.
pub fn one_byte_answer() -> u8 {
    !registry().any.contains(&LAST.load(Relaxed)) as u8
}

fn launch(function: usize, stream: usize) -> i32 {
    LAST.store(function, Relaxed);
    let key = (function, current());
    if !RUNS.with_borrow(|r| r.contains(&key)) {
        if let Err(e) = code(function) {
            return e;
        }
        RUNS.with_borrow_mut(|r| r.insert(key));
    }
    state().launches.fetch_add(1, Relaxed);
    rt_stream::queued(stream);
    OK
}

/// `cudaFuncAttributes`: three sizes, then numbers; what follows is reserved.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct FuncAttributes {
    shared: usize,
    constant: usize,
    local: usize,
    max_threads: i32,
    registers: i32,
    ptx: i32,
    binary: i32,
    cache_mode: i32,
    max_dynamic_shared: i32,
    carveout: i32,
    cluster: [i32; 6],
    reserved: [i32; 16],
}

/// Blocks of one multiprocessor, by threads alone: registers and shared memory of the kernel are not looked at.
fn occupancy(n: &Out<i32>, block: i32) -> i32 {
    match state().device(current()) {
        Ok(d) => {
            n.set(
                (d.threads_per_sm() as i32)
                    .checked_div(block)
                    .unwrap_or(1)
                    .clamp(1, 32),
            );
            OK
        }
        Err(e) => e,
    }
}

api! {
    fn __cudaRegisterFatBinary(wrapper: usize) -> usize {
        let mut all = registry();
        all.binaries.push(wrapper);
        HANDLES + (all.binaries.len() - 1) * 8
    }
    fn __cudaRegisterFatBinaryEnd(_handle: usize) -> i32 { OK }
    fn __cudaUnregisterFatBinary(_handle: usize) -> i32 { OK }
    fn __cudaInitModule(_handle: usize) -> u8 { 1 }
    fn __cudaRegisterFunction(handle: usize, function: usize, name: Text) -> i32 {
        let mut all = registry();
        all.functions.insert(function, handle.wrapping_sub(HANDLES) / 8);
        // at::native::or_kernel_cuda (ATen/native/cuda/ReduceLogicKernel.cu), in the mangled name of its reduction, and
        // the conversion that stands for it where there is one element (any_all_impl in ATen/native/ReduceOps.cpp); and
        // `faults | other faults` of one element (BinaryBitwiseOpsKernels.cu, BinaryLogicalOpsKernels.cu).
        if ["14or_kernel_cuda", "direct_copy_kernel_cuda", "BitwiseOrFunctor", "logical_or_kernel_cuda"].iter().any(|n| name.get().contains(n)) {
            all.any.insert(function);
        }
        OK
    }
    fn __cudaRegisterVar(_handle: usize, _variable: usize) -> i32 { OK }
    fn __cudaRegisterManagedVar(_handle: usize, _variable: usize) -> i32 { OK }
    fn __cudaGetKernel(kernel: Out<usize>, function: usize) -> i32 { kernel.set(function); OK }
    fn cudaGetKernel(kernel: Out<usize>, function: usize) -> i32 { kernel.set(function); OK }
    fn cudaGetFuncBySymbol(kernel: Out<usize>, function: usize) -> i32 { kernel.set(function); OK }
    fn __cudaLaunchKernel(kernel: usize, _grid: Dim3, _block: Dim3, _args: usize, _shared: usize, stream: usize) -> i32 { launch(kernel, stream) }
    fn __cudaLaunchKernel_ptsz(kernel: usize, _grid: Dim3, _block: Dim3, _args: usize, _shared: usize, stream: usize) -> i32 { launch(kernel, stream) }
    fn cudaLaunchKernel(function: usize, _grid: Dim3, _block: Dim3, _args: usize, _shared: usize, stream: usize) -> i32 { launch(function, stream) }
    fn cudaLaunchCooperativeKernel(function: usize, _grid: Dim3, _block: Dim3, _args: usize, _shared: usize, stream: usize) -> i32 { launch(function, stream) }
    fn cudaLaunchKernelExC(config: usize, function: usize, _args: usize) -> i32 {
        // {dim3 grid, dim3 block, size_t shared, stream, attributes, count}
        launch(function, word_at(config, 32).unwrap_or(0))
    }
    fn __cudaPushCallConfiguration(grid: Dim3, block: Dim3, shared: usize, stream: usize) -> u32 {
        CONFIGURED.with_borrow_mut(|c| c.push((grid, block, shared, stream)));
        0
    }
    fn __cudaPopCallConfiguration(grid: Out<Dim3>, block: Out<Dim3>, shared: Out<usize>, stream: Out<usize>) -> i32 {
        let Some((g, b, n, s)) = CONFIGURED.with_borrow_mut(Vec::pop) else { return fail(INVALID_VALUE) };
        grid.set(g);
        block.set(b);
        shared.set(n);
        stream.set(s);
        OK
    }
    fn cudaFuncGetAttributes(out: Out<FuncAttributes>, function: usize) -> i32 {
        let device = match state().device(current()) {
            Ok(d) => d,
            Err(e) => return e,
        };
        let (ptx, binary) = match code(function) {
            Ok(Some(c)) => (c.arch, if c.ptx { device.arch() } else { c.arch }),
            Ok(None) => (device.arch(), device.arch()),
            Err(e) => return e,
        };
        out.set(FuncAttributes {
            max_threads: 1024,
            registers: 32,
            ptx: ptx as i32,
            binary: binary as i32,
            max_dynamic_shared: device.shared_per_block() as i32,
            ..FuncAttributes::default()
        });
        OK
    }
    fn cudaFuncSetAttribute(_function: usize, _attribute: i32, _value: i32) -> i32 { OK }
    fn cudaFuncSetCacheConfig(_function: usize, _config: i32) -> i32 { OK }
    fn cudaFuncSetSharedMemConfig(_function: usize, _config: i32) -> i32 { OK }
    fn cudaOccupancyMaxActiveBlocksPerMultiprocessor(n: Out<i32>, _function: usize, block: i32, _shared: usize) -> i32 { occupancy(&n, block) }
    fn cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(n: Out<i32>, _function: usize, block: i32, _shared: usize, _flags: u32) -> i32 { occupancy(&n, block) }
    fn cudaOccupancyMaxActiveClusters(n: Out<i32>, _function: usize, _config: usize) -> i32 { n.set(8); OK }
    fn cudaOccupancyMaxPotentialClusterSize(n: Out<i32>, _function: usize, _config: usize) -> i32 { n.set(8); OK }
    fn cudaOccupancyAvailableDynamicSMemPerBlock(n: Out<usize>, _function: usize, _blocks: i32, _block: i32) -> i32 { n.set(49152); OK }
    fn cudaGetSymbolAddress(address: Out<usize>, symbol: usize) -> i32 {
        let known = registry().symbols.get(&symbol).copied();
        let found = match known {
            Some(a) => a,
            // A variable belongs to the loaded module, not to what the program allocates: an address, no memory.
            None => match state().with(current(), |m| m.reserve(crate::memory::PAGE)) {
                Ok(Ok(a)) => a as usize,
                Ok(Err(e)) | Err(e) => return fail(e),
            },
        };
        registry().symbols.insert(symbol, found);
        address.set(found);
        OK
    }
    fn cudaGetSymbolSize(n: Out<usize>, _symbol: usize) -> i32 { n.set(4096); OK }
}
