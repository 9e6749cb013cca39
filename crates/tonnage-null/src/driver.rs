//! The driver's functions: by symbol (a link `libcuda.so.1` leads here), and by name through the entry point tables.

use crate::missing::handle;
use crate::rt_device::{attribute, bus_id, driver_version};
use crate::rt_memory::{allocate, copy, fill, map_host, release};
use crate::state::{HostKind, as_driver, current, fail, state, uuid_bytes};
use crate::types::*;
use std::ffi::{CString, c_char};
use std::sync::atomic::Ordering::Relaxed;

/// Handles of primary contexts: this and the ordinal times 16.
const CONTEXTS: usize = 0x7500_0000;
const FUNCTION_THREADS: i32 = 0;
const FUNCTION_REGISTERS: i32 = 4;

fn context(ordinal: usize) -> usize {
    CONTEXTS + ordinal * 16
}

fn enter(context: usize) -> i32 {
    if context == 0 {
        OK
    } else {
        state().set_current(context.wrapping_sub(CONTEXTS) / 16)
    }
}

/// The address of a function of this library (or a later one) by the driver's name, newest version first.
fn entry(name: &str) -> Option<usize> {
    ["_v2", "", "_v3"].iter().find_map(|suffix| {
        let name = CString::new(format!("{name}{suffix}")).ok()?;
        // SAFETY: a look-up by a zero-terminated name; the preloaded library comes first.
        let p = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        (!p.is_null() && crate::dlopen::is_ours(p as usize)).then_some(p as usize)
    })
}

fn entry_point(name: &str, out: &Out<usize>, status: &Out<i32>) -> i32 {
    let found = entry(name);
    out.set(found.unwrap_or(0));
    // Success, or CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND, which is how a program asks whether a driver is new enough.
    status.set(found.is_none() as i32);
    if found.is_some() { OK } else { NOT_FOUND }
}

fn pointer_attribute(to: &Out<u64>, which: i32, p: usize) -> i32 {
    let owner = state().owner(p);
    match which {
        1 => to.set(context(owner.unwrap_or(current())) as u64),
        2 => {
            let kind = match (owner, state().find_host(p)) {
                (Some(_), _) => 2u32,
                (None, Some(_)) => 1,
                (None, None) => return INVALID_VALUE,
            };
            Out::<u32>::at(to.address()).set(kind);
        }
        3 | 4 => to.set(p as u64),
        7 => to.set(p as u64),
        9 => Out::<i32>::at(to.address()).set(owner.unwrap_or(current()) as i32),
        11 | 12 => {
            let Some((start, len)) = state().with_owner(p, |m| m.find(p as u64)).flatten() else {
                return INVALID_VALUE;
            };
            to.set(if which == 11 { start } else { len });
        }
        _ => Out::<u32>::at(to.address()).set(0),
    }
    OK
}

fn function_attribute(out: &Out<i32>, which: i32) -> i32 {
    out.set(match which {
        FUNCTION_THREADS => 1024,
        FUNCTION_REGISTERS => 32,
        _ => 0,
    });
    OK
}

fn launch(stream: usize) -> i32 {
    state().launches.fetch_add(1, Relaxed);
    crate::rt_stream::queued(stream);
    OK
}

fn object(out: &Out<usize>) -> i32 {
    out.set(handle());
    OK
}

api! {
    fn cudaGetDriverEntryPoint(name: Text, out: Out<usize>, _flags: u64, status: Out<i32>) -> i32 { entry_point(name.get(), &out, &status); OK }
    fn cudaGetDriverEntryPointByVersion(name: Text, out: Out<usize>, _version: u32, _flags: u64, status: Out<i32>) -> i32 { entry_point(name.get(), &out, &status); OK }
    fn cuGetProcAddress(name: Text, out: Out<usize>, _version: i32, _flags: u64) -> i32 { entry_point(name.get(), &out, &Out::at(0)) }
    fn cuGetProcAddress_v2(name: Text, out: Out<usize>, _version: i32, _flags: u64, status: Out<i32>) -> i32 { entry_point(name.get(), &out, &status) }
    fn cuGetExportTable(table: Out<usize>, id: usize) -> i32 { table.set(0); crate::missing::private_table(id) }

    fn cuInit(_flags: u32) -> i32 { if state().count() == 0 { NO_DEVICE } else { OK } }
    fn cuDriverGetVersion(v: Out<i32>) -> i32 { v.set(driver_version()); OK }
    fn cuDeviceGetCount(n: Out<i32>) -> i32 { n.set(state().count() as i32); OK }
    fn cuDeviceGet(d: Out<i32>, ordinal: i32) -> i32 { state().index(ordinal as usize).map_or_else(|e| e, |_| { d.set(ordinal); OK }) }
    fn cuDeviceGetAttribute(v: Out<i32>, which: i32, d: i32) -> i32 { attribute(&v, which, d) }
    fn cuDeviceGetName(text: Out<u8>, room: i32, d: i32) -> i32 {
        state().index(d as usize).map_or_else(|e| e, |i| { put_text(&text, room.max(0) as usize, &state().name(i)); OK })
    }
    fn cuDeviceTotalMem_v2(n: Out<usize>, d: i32) -> i32 {
        state().device(d as usize).map_or_else(|e| e, |d| { n.set(d.total_bytes as usize); OK })
    }
    fn cuDeviceGetUuid(id: Out<[u8; 16]>, d: i32) -> i32 { state().index(d as usize).map_or_else(|e| e, |i| { id.set(uuid_bytes(i)); OK }) }
    fn cuDeviceGetUuid_v2(id: Out<[u8; 16]>, d: i32) -> i32 { state().index(d as usize).map_or_else(|e| e, |i| { id.set(uuid_bytes(i)); OK }) }
    fn cuDeviceGetPCIBusId(text: Out<u8>, room: i32, d: i32) -> i32 {
        state().index(d as usize).map_or_else(|e| e, |i| { put_text(&text, room.max(0) as usize, &bus_id(i)); OK })
    }
    fn cuDeviceComputeCapability(major: Out<i32>, minor: Out<i32>, d: i32) -> i32 { attribute(&major, 75, d); attribute(&minor, 76, d) }
    fn cuDeviceCanAccessPeer(can: Out<i32>, _a: i32, _b: i32) -> i32 { can.set(0); OK }
    fn cuDeviceGetDefaultMemPool(pool: Out<usize>, d: i32) -> i32 { crate::rt_memory::cudaDeviceGetDefaultMemPool(pool, d) }
    fn cuDevicePrimaryCtxGetState(_d: i32, flags: Out<u32>, active: Out<i32>) -> i32 { flags.set(0); active.set(1); OK }
    fn cuDevicePrimaryCtxRetain(c: Out<usize>, d: i32) -> i32 { c.set(context(d as usize)); OK }
    fn cuDevicePrimaryCtxRelease_v2(_d: i32) -> i32 { OK }
    fn cuDevicePrimaryCtxRelease(_d: i32) -> i32 { OK }
    fn cuDevicePrimaryCtxSetFlags_v2(_d: i32, _flags: u32) -> i32 { OK }
    fn cuCtxCreate_v2(c: Out<usize>, _flags: u32, d: i32) -> i32 { c.set(context(d as usize)); state().set_current(d as usize) }
    fn cuCtxDestroy_v2(_c: usize) -> i32 { OK }
    fn cuCtxGetCurrent(c: Out<usize>) -> i32 { c.set(context(current())); OK }
    fn cuCtxSetCurrent(c: usize) -> i32 { enter(c) }
    fn cuCtxPushCurrent(c: usize) -> i32 { enter(c) }
    fn cuCtxPushCurrent_v2(c: usize) -> i32 { enter(c) }
    fn cuCtxPopCurrent(c: Out<usize>) -> i32 { c.set(context(current())); OK }
    fn cuCtxPopCurrent_v2(c: Out<usize>) -> i32 { c.set(context(current())); OK }
    fn cuCtxGetDevice(d: Out<i32>) -> i32 { d.set(current() as i32); OK }
    fn cuCtxGetDevice_v2(d: Out<i32>, c: usize) -> i32 { d.set((c.wrapping_sub(CONTEXTS) / 16) as i32); OK }
    fn cuCtxGetFlags(flags: Out<u32>) -> i32 { flags.set(0); OK }
    fn cuCtxGetId(_c: usize, id: Out<u64>) -> i32 { id.set(1); OK }
    fn cuCtxGetApiVersion(_c: usize, v: Out<u32>) -> i32 { v.set(driver_version() as u32); OK }
    fn cuCtxGetLimit(v: Out<usize>, _which: i32) -> i32 { v.set(1024); OK }
    fn cuCtxSetLimit(_which: i32, _v: usize) -> i32 { OK }
    fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) -> i32 { least.set(0); greatest.set(-5); OK }
    fn cuCtxSynchronize() -> i32 { crate::rt_stream::cudaDeviceSynchronize() }
    fn cuGetErrorString(e: i32, text: Out<*const c_char>) -> i32 { text.set(crate::rt_device::cudaGetErrorString(e)); OK }
    fn cuGetErrorName(e: i32, text: Out<*const c_char>) -> i32 { text.set(error_text(e).0.as_ptr()); OK }

    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) -> i32 { as_driver(|| { crate::rt_memory::cudaMemGetInfo(free, total) }) }
    fn cuMemAlloc_v2(p: Out<usize>, n: usize) -> i32 { as_driver(|| { if n == 0 { INVALID_VALUE } else { allocate(&p, n) } }) }
    fn cuMemAllocAsync(p: Out<usize>, n: usize, _stream: usize) -> i32 { as_driver(|| { allocate(&p, n) }) }
    fn cuMemAllocManaged(p: Out<usize>, n: usize, _flags: u32) -> i32 { as_driver(|| { map_host(&p, n, HostKind::Managed) }) }
    fn cuMemFree_v2(p: usize) -> i32 { as_driver(|| { release(p) }) }
    fn cuMemFreeAsync(p: usize, _stream: usize) -> i32 { as_driver(|| { release(p) }) }
    fn cuMemAllocHost_v2(p: Out<usize>, n: usize) -> i32 { as_driver(|| { map_host(&p, n, HostKind::Pinned) }) }
    fn cuMemHostAlloc(p: Out<usize>, n: usize, _flags: u32) -> i32 { as_driver(|| { map_host(&p, n, HostKind::Pinned) }) }
    fn cuMemFreeHost(p: usize) -> i32 { as_driver(|| { crate::rt_memory::cudaFreeHost(p) }) }
    fn cuMemHostRegister_v2(p: usize, n: usize, flags: u32) -> i32 { as_driver(|| { crate::rt_memory::cudaHostRegister(p, n, flags) }) }
    fn cuMemHostUnregister(p: usize) -> i32 { as_driver(|| { crate::rt_memory::cudaHostUnregister(p) }) }
    fn cuMemHostGetDevicePointer_v2(d: Out<usize>, h: usize, _flags: u32) -> i32 { as_driver(|| { d.set(h); OK }) }
    fn cuMemGetAddressRange_v2(start: Out<usize>, len: Out<usize>, p: usize) -> i32 { as_driver(|| {
        match state().with_owner(p, |m| m.find(p as u64)).flatten() {
            Some((a, n)) => { start.set(a as usize); len.set(n as usize); OK }
            None => fail(INVALID_VALUE),
        }
    }) }
    fn cuMemcpy(d: usize, s: usize, n: usize) -> i32 { copy(d, s, n) }
    fn cuMemcpyAsync(d: usize, s: usize, n: usize, _stream: usize) -> i32 { copy(d, s, n) }
    fn cuMemcpyHtoD_v2(d: usize, s: usize, n: usize) -> i32 { copy(d, s, n) }
    fn cuMemcpyHtoDAsync_v2(d: usize, s: usize, n: usize, _stream: usize) -> i32 { copy(d, s, n) }
    fn cuMemcpyDtoH_v2(d: usize, s: usize, n: usize) -> i32 { copy(d, s, n) }
    fn cuMemcpyDtoHAsync_v2(d: usize, s: usize, n: usize, _stream: usize) -> i32 { copy(d, s, n) }
    fn cuMemcpyDtoD_v2(d: usize, s: usize, n: usize) -> i32 { copy(d, s, n) }
    fn cuMemcpyDtoDAsync_v2(d: usize, s: usize, n: usize, _stream: usize) -> i32 { copy(d, s, n) }
    fn cuMemsetD8_v2(p: usize, v: u8, n: usize) -> i32 { fill(p, v, n) }
    fn cuMemsetD8Async(p: usize, v: u8, n: usize, _stream: usize) -> i32 { fill(p, v, n) }
    fn cuMemsetD16Async(p: usize, _v: u16, n: usize, _stream: usize) -> i32 { fill(p, 0, n * 2) }
    fn cuMemsetD32_v2(p: usize, _v: u32, n: usize) -> i32 { fill(p, 0, n * 4) }
    fn cuMemsetD32Async(p: usize, _v: u32, n: usize, _stream: usize) -> i32 { fill(p, 0, n * 4) }
    fn cuPointerGetAttribute(to: Out<u64>, which: i32, p: usize) -> i32 { pointer_attribute(&to, which, p) }
    fn cuPointerGetAttributes(n: u32, which: Out<i32>, to: Out<usize>, p: usize) -> i32 {
        for i in 0..n as usize {
            if let (Some(w), Some(place)) = (which.get_at(i), to.get_at(i)) { pointer_attribute(&Out::at(place), w, p); }
        }
        OK
    }
    fn cuPointerSetAttribute(_v: usize, _which: i32, _p: usize) -> i32 { OK }

    fn cuModuleLoad(m: Out<usize>, _name: usize) -> i32 { object(&m) }
    fn cuModuleLoadData(m: Out<usize>, _image: usize) -> i32 { object(&m) }
    fn cuModuleLoadDataEx(m: Out<usize>, _image: usize, _n: u32, _options: usize, _values: usize) -> i32 { object(&m) }
    fn cuModuleLoadFatBinary(m: Out<usize>, _image: usize) -> i32 { object(&m) }
    fn cuModuleUnload(_m: usize) -> i32 { OK }
    fn cuModuleGetFunction(f: Out<usize>, _m: usize, _name: usize) -> i32 { object(&f) }
    fn cuModuleGetGlobal_v2(p: Out<usize>, n: Out<usize>, _m: usize, name: usize) -> i32 { n.set(8); crate::rt_launch::cudaGetSymbolAddress(p, name) }
    fn cuModuleGetLoadingMode(mode: Out<i32>) -> i32 { mode.set(2); OK }
    fn cuLinkCreate_v2(_n: u32, _options: usize, _values: usize, s: Out<usize>) -> i32 { object(&s) }
    fn cuLinkAddData_v2(_s: usize) -> i32 { OK }
    fn cuLinkAddFile_v2(_s: usize) -> i32 { OK }
    fn cuLinkComplete(_s: usize, image: Out<usize>, n: Out<usize>) -> i32 { image.set(0); n.set(0); OK }
    fn cuLinkDestroy(_s: usize) -> i32 { OK }
    fn cuLibraryLoadData(l: Out<usize>, _code: usize) -> i32 { object(&l) }
    fn cuLibraryLoadFromFile(l: Out<usize>, _name: usize) -> i32 { object(&l) }
    fn cuLibraryUnload(_l: usize) -> i32 { OK }
    fn cuLibraryGetKernel(k: Out<usize>, _l: usize, _name: usize) -> i32 { object(&k) }
    fn cuLibraryGetModule(m: Out<usize>, _l: usize) -> i32 { object(&m) }
    fn cuLibraryGetKernelCount(n: Out<u32>, _l: usize) -> i32 { n.set(1); OK }
    fn cuLibraryEnumerateKernels(k: Out<usize>, n: u32, _l: usize) -> i32 { (0..n as usize).for_each(|i| k.set_at(i, handle())); OK }
    fn cuKernelGetFunction(f: Out<usize>, _k: usize) -> i32 { object(&f) }
    fn cuKernelGetAttribute(v: Out<i32>, which: i32, _k: usize, _d: i32) -> i32 { function_attribute(&v, which) }
    fn cuKernelSetAttribute(_which: i32, _v: i32, _k: usize, _d: i32) -> i32 { OK }
    fn cuFuncGetAttribute(v: Out<i32>, which: i32, _f: usize) -> i32 { function_attribute(&v, which) }
    fn cuFuncSetAttribute(_f: usize, _which: i32, _v: i32) -> i32 { OK }
    fn cuFuncSetCacheConfig(_f: usize, _c: i32) -> i32 { OK }
    fn cuFuncSetSharedMemConfig(_f: usize, _c: i32) -> i32 { OK }
    fn cuFuncGetModule(m: Out<usize>, _f: usize) -> i32 { object(&m) }
    fn cuFuncGetName(name: Out<*const c_char>, _f: usize) -> i32 { name.set(c"kernel".as_ptr()); OK }
    fn cuLaunchKernel(_f: usize, _gx: u32, _gy: u32, _gz: u32, _bx: u32, _by: u32, _bz: u32, _shared: u32, stream: usize) -> i32 { launch(stream) }
    fn cuLaunchCooperativeKernel(_f: usize, _gx: u32, _gy: u32, _gz: u32, _bx: u32, _by: u32, _bz: u32, _shared: u32, stream: usize) -> i32 { launch(stream) }
    fn cuLaunchKernelEx(config: usize) -> i32 {
        // {six counts, shared bytes, stream}
        launch(word_at(config, 32).unwrap_or(0))
    }
    fn cuLaunchHostFunc(_s: usize, callback: Option<extern "C" fn(usize)>, data: usize) -> i32 {
        if let Some(callback) = callback { callback(data) }
        OK
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(n: Out<i32>, _f: usize, _block: i32, _shared: usize) -> i32 { n.set(2); OK }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(n: Out<i32>, _f: usize, _block: i32, _shared: usize, _flags: u32) -> i32 { n.set(2); OK }
    fn cuOccupancyMaxActiveClusters(n: Out<i32>, _f: usize, _config: usize) -> i32 { n.set(8); OK }
    fn cuOccupancyMaxPotentialClusterSize(n: Out<i32>, _f: usize, _config: usize) -> i32 { n.set(8); OK }
    fn cuTensorMapEncodeTiled(_map: usize) -> i32 { OK }
    fn cuTensorMapEncodeIm2col(_map: usize) -> i32 { OK }
    fn cuTensorMapReplaceAddress(_map: usize) -> i32 { OK }

    fn cuStreamCreate(s: Out<usize>, flags: u32) -> i32 { crate::rt_stream::cudaStreamCreateWithFlags(s, flags) }
    fn cuStreamCreateWithPriority(s: Out<usize>, flags: u32, priority: i32) -> i32 { crate::rt_stream::cudaStreamCreateWithPriority(s, flags, priority) }
    fn cuStreamDestroy_v2(s: usize) -> i32 { crate::rt_stream::cudaStreamDestroy(s) }
    fn cuStreamSynchronize(s: usize) -> i32 { crate::rt_stream::cudaStreamSynchronize(s) }
    fn cuStreamQuery(s: usize) -> i32 { crate::rt_stream::cudaStreamQuery(s) }
    fn cuStreamWaitEvent(s: usize, e: usize, flags: u32) -> i32 { crate::rt_stream::cudaStreamWaitEvent(s, e, flags) }
    fn cuStreamIsCapturing(s: usize, status: Out<i32>) -> i32 { crate::rt_stream::cudaStreamIsCapturing(s, status) }
    fn cuStreamGetCtx(_s: usize, c: Out<usize>) -> i32 { c.set(context(current())); OK }
    fn cuStreamGetCaptureInfo_v2(s: usize, status: Out<i32>, id: Out<u64>, graph: Out<usize>, deps: Out<usize>, n: Out<usize>) -> i32 {
        crate::rt_stream::cudaStreamGetCaptureInfo_v2(s, status, id, graph, deps, n)
    }
    fn cuStreamWriteValue32_v2(_s: usize) -> i32 { OK }
    fn cuStreamWriteValue64_v2(_s: usize) -> i32 { OK }
    fn cuStreamWaitValue32_v2(_s: usize) -> i32 { OK }
    fn cuStreamWaitValue64_v2(_s: usize) -> i32 { OK }
    fn cuStreamWriteValue32(_s: usize) -> i32 { OK }
    fn cuStreamBatchMemOp_v2(_s: usize) -> i32 { OK }
    fn cuEventCreate(e: Out<usize>, flags: u32) -> i32 { crate::rt_stream::cudaEventCreateWithFlags(e, flags) }
    fn cuEventDestroy_v2(e: usize) -> i32 { crate::rt_stream::cudaEventDestroy(e) }
    fn cuEventRecord(e: usize, s: usize) -> i32 { crate::rt_stream::cudaEventRecord(e, s) }
    fn cuEventQuery(e: usize) -> i32 { crate::rt_stream::cudaEventQuery(e) }
    fn cuEventSynchronize(e: usize) -> i32 { crate::rt_stream::cudaEventSynchronize(e) }
    fn cuEventElapsedTime(ms: Out<f32>, _a: usize, _b: usize) -> i32 { ms.set(1.0); OK }
    fn cuEventElapsedTime_v2(ms: Out<f32>, _a: usize, _b: usize) -> i32 { ms.set(1.0); OK }
    // the driver's own log: nothing is ever written to it
    fn cuLogsRegisterCallback(_callback: usize, _data: usize, h: Out<usize>) -> i32 { object(&h) }
    fn cuLogsUnregisterCallback(_h: usize) -> i32 { OK }
    fn cuLogsCurrent(at: Out<u32>, _flags: u32) -> i32 { at.set(0); OK }
    fn cuProfilerStart() -> i32 { OK }
    fn cuProfilerStop() -> i32 { OK }
}
