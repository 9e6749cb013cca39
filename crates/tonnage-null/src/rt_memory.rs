//! The CUDA runtime's memory functions.

use crate::shadow;
use crate::state::{HostKind, current, fail, state};
use crate::types::*;
use std::ffi::c_void;

/// What an address is, for the runtime.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Device,
    Host,
}

fn place(address: usize) -> Place {
    if state().owner(address).is_some() {
        Place::Device
    } else {
        Place::Host
    }
}

/// Moves bytes: to a device nothing, between places of the host truly, from a device zeros (a single byte is
/// an answer: `rt_launch::one_byte_answer`).
pub fn copy(to: usize, from: usize, len: usize) -> i32 {
    if len == 0 || to == 0 || from == 0 {
        return OK;
    }
    match (place(to), place(from)) {
        (Place::Device, Place::Device) => shadow::moved(to, from, len),
        (Place::Device, Place::Host) => {
            // SAFETY: the caller of a copy hands over a readable source of that length; only small ones are looked at.
            let bytes = (len <= shadow::LARGEST)
                .then(|| unsafe { std::slice::from_raw_parts(from as *const u8, len) });
            if shadow::from_host(to, bytes).is_none() {
                shadow::unknown(to, len);
            }
        }
        (Place::Host, Place::Device) => match shadow::read(from, len) {
            // SAFETY: the caller hands over a writable target of that length; `bytes` has it too.
            Some(bytes) => unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, len)
            },
            None if len == 1 => fill_host(to, crate::rt_launch::one_byte_answer(), 1),
            None => fill_host(to, 0, len),
        },
        // SAFETY: the caller hands over two places of the host of that length; they may overlap.
        (Place::Host, Place::Host) => unsafe {
            std::ptr::copy(from as *const u8, to as *mut u8, len)
        },
    }
    OK
}

fn fill_host(to: usize, byte: u8, len: usize) {
    // SAFETY: the caller of a copy or fill hands over a writable target of that length.
    unsafe { std::ptr::write_bytes(to as *mut u8, byte, len) }
}

fn copy_2d(
    to: usize,
    to_pitch: usize,
    from: usize,
    from_pitch: usize,
    width: usize,
    height: usize,
) -> i32 {
    if place(to) == Place::Device {
        if height > 0 {
            shadow::unknown(to, to_pitch * (height - 1) + width);
        }
        return OK;
    }
    for row in 0..height {
        copy(to + row * to_pitch, from + row * from_pitch, width);
    }
    OK
}

/// `cudaMemset` and its relatives.
pub fn fill(to: usize, byte: u8, len: usize) -> i32 {
    match place(to) {
        Place::Device => shadow::unknown(to, len),
        Place::Host if to != 0 => fill_host(to, byte, len),
        Place::Host => {}
    }
    OK
}

/// Allocates on the calling thread's device.
pub fn allocate(out: &Out<usize>, len: usize) -> i32 {
    if len == 0 {
        out.set(0);
        return OK;
    }
    match state().allocate(current(), len as u64) {
        Ok(address) => {
            out.set(address as usize);
            OK
        }
        Err(e) => {
            out.set(0);
            e
        }
    }
}

/// Frees device or managed memory.
pub fn release(address: usize) -> i32 {
    if address == 0 {
        return OK;
    }
    if let Some(done) = state().with_owner(address, |m| m.release(address as u64)) {
        return if done { OK } else { fail(INVALID_VALUE) };
    }
    match state().remove_host(address, &[HostKind::Managed]) {
        Some(len) => unmap_host(address, len),
        None => fail(INVALID_VALUE),
    }
}

/// Memory of the host, zeroed, taken only when touched.
pub fn map_host(out: &Out<usize>, len: usize, kind: HostKind) -> i32 {
    if len == 0 {
        out.set(0);
        return OK;
    }
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: asks for fresh addresses, touching no existing mapping.
    let p = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            -1,
            0,
        )
    };
    if p == libc::MAP_FAILED {
        return fail(OUT_OF_MEMORY);
    }
    state().announce();
    state().add_host(p as usize, len, kind);
    if kind == HostKind::Pinned {
        state().allocated(None, "pinned", len as u64);
    }
    out.set(p as usize);
    OK
}

fn unmap_host(address: usize, len: usize) -> i32 {
    // SAFETY: `map_host` made this mapping with this length, and it was struck from the list just now.
    unsafe { libc::munmap(address as *mut c_void, len) };
    OK
}

fn refuse_ipc() -> i32 {
    state().unsupported(
        "cudaIpc",
        "memory and events cannot be shared between processes on the null CUDA device (cudaIpc*): pass tensors to other \
         processes on the CPU",
    );
    fail(NOT_SUPPORTED)
}

api! {
    fn cudaMalloc(p: Out<usize>, n: usize) -> i32 { allocate(&p, n) }
    fn cudaFree(p: usize) -> i32 {
        if p == 0 {
            // The idiom that makes a context.
            return state().with(current(), |_| ()).map_or_else(|e| e, |()| OK);
        }
        release(p)
    }
    fn cudaMallocAsync(p: Out<usize>, n: usize, _stream: usize) -> i32 { allocate(&p, n) }
    fn cudaMallocFromPoolAsync(p: Out<usize>, n: usize, _pool: usize, _stream: usize) -> i32 { allocate(&p, n) }
    fn cudaFreeAsync(p: usize, _stream: usize) -> i32 { release(p) }
    fn cudaMallocPitch(p: Out<usize>, pitch: Out<usize>, width: usize, height: usize) -> i32 {
        let row = width.div_ceil(512) * 512;
        pitch.set(row);
        row.checked_mul(height).map_or_else(|| fail(OUT_OF_MEMORY), |n| allocate(&p, n))
    }
    fn cudaHostAlloc(p: Out<usize>, n: usize, _flags: u32) -> i32 { map_host(&p, n, HostKind::Pinned) }
    fn cudaMallocHost(p: Out<usize>, n: usize) -> i32 { map_host(&p, n, HostKind::Pinned) }
    fn cudaMallocManaged(p: Out<usize>, n: usize, _flags: u32) -> i32 { map_host(&p, n, HostKind::Managed) }
    fn cudaFreeHost(p: usize) -> i32 {
        match state().remove_host(p, &[HostKind::Pinned]) {
            Some(len) => unmap_host(p, len),
            None if p == 0 => OK,
            None => fail(INVALID_VALUE),
        }
    }
    fn cudaHostRegister(p: usize, n: usize, _flags: u32) -> i32 {
        state().add_host(p, n, HostKind::Registered);
        OK
    }
    fn cudaHostUnregister(p: usize) -> i32 {
        state().remove_host(p, &[HostKind::Registered]).map_or_else(|| fail(713), |_| OK)
    }
    fn cudaHostGetDevicePointer(d: Out<usize>, h: usize, _flags: u32) -> i32 { d.set(h); OK }
    fn cudaHostGetFlags(flags: Out<u32>, _h: usize) -> i32 { flags.set(0); OK }
    fn cudaMemPrefetchAsync(_p: usize, _n: usize, _location: usize, _flags: usize, _stream: usize) -> i32 { OK }
    fn cudaMemPrefetchAsync_v2(_p: usize, _n: usize, _location: usize, _flags: usize, _stream: usize) -> i32 { OK }
    fn cudaMemAdvise(_p: usize, _n: usize, _advice: i32, _location: usize) -> i32 { OK }
    fn cudaMemAdvise_v2(_p: usize, _n: usize, _advice: i32, _location: usize) -> i32 { OK }
    fn cudaMemGetInfo(free: Out<usize>, total: Out<usize>) -> i32 {
        match state().with(current(), |m| (m.free(), m.total())) {
            Ok((f, t)) => {
                free.set(f as usize);
                total.set(t as usize);
                OK
            }
            Err(e) => e,
        }
    }
    fn cudaMemcpy(d: usize, s: usize, n: usize, _kind: i32) -> i32 { copy(d, s, n) }
    fn cudaMemcpyAsync(d: usize, s: usize, n: usize, _kind: i32, _stream: usize) -> i32 { copy(d, s, n) }
    fn cudaMemcpyPeer(d: usize, _dd: i32, s: usize, _sd: i32, n: usize) -> i32 { copy(d, s, n) }
    fn cudaMemcpyPeerAsync(d: usize, _dd: i32, s: usize, _sd: i32, n: usize, _stream: usize) -> i32 { copy(d, s, n) }
    fn cudaMemcpy2D(d: usize, dp: usize, s: usize, sp: usize, w: usize, h: usize, _kind: i32) -> i32 { copy_2d(d, dp, s, sp, w, h) }
    fn cudaMemcpy2DAsync(d: usize, dp: usize, s: usize, sp: usize, w: usize, h: usize, _kind: i32, _stream: usize) -> i32 {
        copy_2d(d, dp, s, sp, w, h)
    }
    fn cudaMemcpyToSymbol(_symbol: usize, _s: usize, _n: usize, _offset: usize, _kind: i32) -> i32 { OK }
    fn cudaMemcpyToSymbolAsync(_symbol: usize, _s: usize, _n: usize, _offset: usize, _kind: i32, _stream: usize) -> i32 { OK }
    fn cudaMemcpyFromSymbol(d: usize, _symbol: usize, n: usize, _offset: usize, _kind: i32) -> i32 { fill(d, 0, n) }
    fn cudaMemcpyFromSymbolAsync(d: usize, _symbol: usize, n: usize, _offset: usize, _kind: i32, _stream: usize) -> i32 { fill(d, 0, n) }
    fn cudaMemset(p: usize, v: i32, n: usize) -> i32 { fill(p, v as u8, n) }
    fn cudaMemsetAsync(p: usize, v: i32, n: usize, _stream: usize) -> i32 { fill(p, v as u8, n) }
    fn cudaMemset2DAsync(p: usize, pitch: usize, v: i32, w: usize, h: usize, _stream: usize) -> i32 {
        (0..h).for_each(|row| { fill(p + row * pitch, v as u8, w); });
        OK
    }
    fn cudaPointerGetAttributes(out: Out<[usize; 3]>, p: usize) -> i32 {
        // {int type, int device, void *devicePointer, void *hostPointer}; what CUDA 13 adds behind is reserved.
        const HOST: u32 = 1;
        const DEVICE: u32 = 2;
        const MANAGED: u32 = 3;
        let put = |kind: u32, device: i32, d: usize, h: usize| {
            out.set([kind as usize | (device as u32 as usize) << 32, d, h]);
            OK
        };
        if let Some(ordinal) = state().owner(p) {
            let live = state().with(ordinal, |m| m.find(p as u64).is_some()).unwrap_or(false);
            return if live { put(DEVICE, ordinal as i32, p, 0) } else { put(0, -1, 0, 0) };
        }
        match state().find_host(p) {
            Some((_, _, HostKind::Managed)) => put(MANAGED, current() as i32, p, p),
            Some(_) => put(HOST, current() as i32, p, p),
            None => put(0, -1, 0, p),
        }
    }
    fn cudaDeviceGetDefaultMemPool(pool: Out<usize>, device: i32) -> i32 { pool.set(POOL + device as usize); OK }
    fn cudaDeviceGetMemPool(pool: Out<usize>, device: i32) -> i32 { pool.set(POOL + device as usize); OK }
    fn cudaDeviceSetMemPool(_device: i32, _pool: usize) -> i32 { OK }
    fn cudaMemPoolCreate(pool: Out<usize>, _props: usize) -> i32 { pool.set(POOL + current()); OK }
    fn cudaMemPoolDestroy(_pool: usize) -> i32 { OK }
    fn cudaMemPoolTrimTo(_pool: usize, _n: usize) -> i32 { OK }
    fn cudaMemPoolSetAccess(_pool: usize, _list: usize, _n: usize) -> i32 { OK }
    fn cudaMemPoolSetAttribute(_pool: usize, _attribute: i32, _value: usize) -> i32 { OK }
    fn cudaMemPoolGetAttribute(pool: usize, attribute: i32, value: Out<u64>) -> i32 {
        // 5, 6: reserved now and at most; 7, 8: used now and at most. The pool of the null device keeps nothing back.
        let figures = state().with(pool.wrapping_sub(POOL), |m| (m.used(), m.peak()));
        match (attribute, figures) {
            (5 | 7, Ok((used, _))) => value.set(used),
            (6 | 8, Ok((_, peak))) => value.set(peak),
            (4, _) => value.set(0),
            _ => value.set(0),
        }
        OK
    }
    fn cudaIpcGetMemHandle(_h: usize, _p: usize) -> i32 { refuse_ipc() }
    fn cudaIpcOpenMemHandle(_p: usize) -> i32 { refuse_ipc() }
    fn cudaIpcCloseMemHandle(_p: usize) -> i32 { refuse_ipc() }
    fn cudaIpcGetEventHandle(_h: usize, _e: usize) -> i32 { refuse_ipc() }
    fn cudaIpcOpenEventHandle(_e: usize) -> i32 { refuse_ipc() }
}

/// Handles of memory pools: this and the device's ordinal.
const POOL: usize = 0x7001_0000;
