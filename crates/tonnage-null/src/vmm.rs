//! Virtual memory management: addresses, physical memory and mappings apart, as expandable segments use them.

use crate::memory::{DeviceMemory, PAGE, Refusal};
use crate::state::{as_driver, current, fail, state};
use crate::types::*;

/// A handle holds the device's ordinal in its upper half.
const ORDINAL: u32 = 32;
const ON_DEVICE: i32 = 1;
/// `CU_MEM_HANDLE_TYPE_FABRIC`
const FABRIC: i32 = 8;

fn code(done: Option<Result<(), i32>>) -> i32 {
    match done {
        Some(Ok(())) => OK,
        Some(Err(e)) => fail(e),
        None => fail(INVALID_VALUE),
    }
}

fn on_handle(handle: u64, work: impl FnOnce(&mut DeviceMemory, u64) -> Result<(), i32>) -> i32 {
    let ordinal = (handle >> ORDINAL) as usize;
    if ordinal >= state().count() {
        return fail(INVALID_VALUE);
    }
    code(
        state()
            .with(ordinal, |m| work(m, handle & 0xffff_ffff))
            .ok(),
    )
}

fn refuse_sharing() -> i32 {
    state().unsupported(
        "cuMemExportToShareableHandle",
        "memory cannot be shared between processes on the null CUDA device: pass tensors to other processes on the CPU",
    );
    fail(NOT_SUPPORTED)
}

api! {
    fn cuMemGetAllocationGranularity(n: Out<usize>, _props: usize, _flags: i32) -> i32 { as_driver(|| { n.set(PAGE as usize); OK }) }
    fn cuMemAddressReserve(p: Out<u64>, n: usize, _alignment: usize, _hint: usize, _flags: u64) -> i32 { as_driver(|| {
        match state().with(current(), |m| m.reserve(n as u64)) {
            Ok(Ok(a)) => { p.set(a); OK }
            Ok(Err(e)) | Err(e) => fail(e),
        }
    }) }
    fn cuMemAddressFree(p: usize, n: usize) -> i32 { as_driver(|| { code(state().with_owner(p, |m| m.unreserve(p as u64, n as u64))) }) }
    fn cuMemCreate(h: Out<u64>, n: usize, props: usize, _flags: u64) -> i32 { as_driver(|| {
        // CUmemAllocationProp: {type, handle types, location {type, id}, ...}
        let field = |at| word_at::<i32>(props, at).unwrap_or(0);
        if field(4) & FABRIC != 0 {
            return NOT_SUPPORTED;
        }
        let on_device = field(8) == ON_DEVICE;
        let ordinal = if on_device { field(12) as usize } else { current() };
        match state().with(ordinal, |m| m.create(n as u64, on_device)) {
            Ok(Ok(handle)) => {
                if on_device {
                    state().allocated(Some(ordinal), "mapped", n as u64);
                }
                h.set((ordinal as u64) << ORDINAL | handle);
                OK
            }
            Ok(Err(Some(Refusal { requested, free }))) => state().refuse(ordinal, Refusal { requested, free }),
            Ok(Err(None)) => fail(INVALID_VALUE),
            Err(e) => e,
        }
    }) }
    fn cuMemRelease(h: u64) -> i32 { as_driver(|| { on_handle(h, |m, h| m.release_handle(h)) }) }
    fn cuMemMap(p: usize, n: usize, _offset: usize, h: u64, _flags: u64) -> i32 { as_driver(|| { on_handle(h, |m, h| m.map(p as u64, n as u64, h)) }) }
    fn cuMemUnmap(p: usize, n: usize) -> i32 { as_driver(|| { code(state().with_owner(p, |m| m.unmap(p as u64, n as u64))) }) }
    fn cuMemSetAccess(_p: usize, _n: usize, _list: usize, _count: usize) -> i32 { OK }
    fn cuMemGetAccess(flags: Out<u64>, _location: usize, _p: usize) -> i32 { as_driver(|| { flags.set(3); OK }) }
    fn cuMemRetainAllocationHandle(h: Out<u64>, p: usize) -> i32 { as_driver(|| {
        let Some(ordinal) = state().owner(p) else { return fail(INVALID_VALUE) };
        match state().with(ordinal, |m| m.retain(p as u64)) {
            Ok(Some(handle)) => { h.set((ordinal as u64) << ORDINAL | handle); OK }
            _ => fail(INVALID_VALUE),
        }
    }) }
    fn cuMemExportToShareableHandle(_to: usize, _h: u64, _kind: i32, _flags: u64) -> i32 { refuse_sharing() }
    fn cuMemImportFromShareableHandle(_h: usize, _from: usize, _kind: i32) -> i32 { refuse_sharing() }
    fn cuIpcGetMemHandle(_h: usize, _p: usize) -> i32 { refuse_sharing() }
    fn cuIpcOpenMemHandle_v2(_p: usize) -> i32 { refuse_sharing() }
    fn cuIpcCloseMemHandle(_p: usize) -> i32 { refuse_sharing() }
}
