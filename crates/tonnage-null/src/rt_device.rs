//! Devices, versions, errors: the CUDA runtime's questions.

use crate::device_prop::{Prop12, put};
use crate::state::{current, fail, last_error, state};
use crate::types::*;
use std::ffi::{CStr, c_char, c_void};
use std::sync::OnceLock;

/// The function of that name in the libraries loaded after this one.
pub fn real(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: dlsym with a zero-terminated name; RTLD_NEXT is valid in a shared library.
    let p = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    (!p.is_null()).then_some(p)
}

/// Version of the CUDA runtime that the program brought along, 13000 where there is none.
pub fn runtime_version() -> i32 {
    static VERSION: OnceLock<i32> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let Some(f) = real(c"cudaRuntimeGetVersion") else {
            return 13000;
        };
        // SAFETY: the real function has this signature in every version; it answers with a constant, without a driver.
        let f: extern "C" fn(*mut i32) -> i32 = unsafe { std::mem::transmute(f) };
        let mut v = 0;
        if f(&mut v) == OK && v >= 9000 {
            v
        } else {
            13000
        }
    })
}

/// Version of the driver: that of CUDA 13.0, or the runtime's if it is newer.
pub fn driver_version() -> i32 {
    runtime_version().max(13000)
}

/// `cudaDeviceGetAttribute` and `cuDeviceGetAttribute`, whose numbers agree.
pub fn attribute(out: &Out<i32>, which: i32, ordinal: i32) -> i32 {
    let s = state();
    let d = match s.device(ordinal as usize) {
        Ok(d) => d,
        Err(e) => return e,
    };
    out.set(match which {
        1..=3 => 1024,
        4 => 64,
        5 => i32::MAX,
        6 | 7 => 65535,
        8 => 49152,
        9 => 65536,
        10 | 106 => 32, // warp size; blocks of one multiprocessor
        11 => i32::MAX,
        12 | 82 => 65536,
        13 => d.clock() as i32,
        14 => 512,
        16 => d.sms as i32,
        32 => d.ecc() as i32,
        33 => ordinal + 1,
        36 => d.memory_clock() as i32,
        37 => d.bus_bits() as i32,
        38 => d.l2() as i32,
        39 => d.threads_per_sm() as i32,
        40 => 3,
        75 => d.capability.0 as i32,
        76 => d.capability.1 as i32,
        81 => d.shared_per_sm() as i32,
        97 => d.shared_per_block() as i32,
        111 => 1024,
        // Overlap, mapped host memory, concurrent kernels, unified addressing, priorities, caches, managed memory,
        // cooperative launch, virtual memory, memory pools.
        15 | 19 | 31 | 41 | 78 | 79 | 80 | 83 | 89 | 95 | 102 | 115 => 1,
        120 => (d.arch() >= 90) as i32,
        _ => 0,
    });
    OK
}

/// `0000:0N:00.0`
pub fn bus_id(index: usize) -> String {
    format!("0000:{:02x}:00.0", index + 1)
}

api! {
    fn cudaGetDeviceCount(n: Out<i32>) -> i32 {
        let count = state().count();
        n.set(count as i32);
        if count == 0 {
            state().announce();
            return fail(NO_DEVICE);
        }
        OK
    }
    fn cudaGetDevice(d: Out<i32>) -> i32 {
        match state().index(current()) {
            Ok(_) => { d.set(current() as i32); OK }
            Err(e) => e,
        }
    }
    fn cudaSetDevice(d: i32) -> i32 { state().set_current(d as usize) }
    fn cudaInitDevice(d: i32, _device_flags: u32, _flags: u32) -> i32 { state().set_current(d as usize) }
    fn cudaSetDeviceFlags(_flags: u32) -> i32 { OK }
    fn cudaGetDeviceFlags(flags: Out<u32>) -> i32 { flags.set(0); OK }
    fn cudaDeviceReset() -> i32 { OK }
    fn cudaDriverGetVersion(v: Out<i32>) -> i32 { v.set(driver_version()); OK }
    fn cudaRuntimeGetVersion(v: Out<i32>) -> i32 { v.set(runtime_version()); OK }
    fn cudaDeviceCanAccessPeer(can: Out<i32>, _a: i32, _b: i32) -> i32 { can.set(0); OK }
    fn cudaDeviceEnablePeerAccess(_a: i32, _flags: u32) -> i32 { OK }
    fn cudaDeviceDisablePeerAccess(_a: i32) -> i32 { OK }
    fn cudaDeviceGetP2PAttribute(v: Out<i32>, _which: i32, _a: i32, _b: i32) -> i32 { v.set(0); OK }
    fn cudaDeviceGetPCIBusId(text: Out<u8>, room: i32, d: i32) -> i32 {
        match state().index(d as usize) {
            Ok(i) => { put_text(&text, room.max(0) as usize, &bus_id(i)); OK }
            Err(e) => e,
        }
    }
    fn cudaDeviceGetByPCIBusId(d: Out<i32>, text: Text) -> i32 {
        let found = (0..state().count()).find(|&o| state().index(o).is_ok_and(|i| bus_id(i).eq_ignore_ascii_case(text.get())));
        match found {
            Some(o) => { d.set(o as i32); OK }
            None => fail(INVALID_DEVICE),
        }
    }
    fn cudaDeviceGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) -> i32 { least.set(0); greatest.set(-5); OK }
    fn cudaDeviceGetLimit(v: Out<usize>, which: i32) -> i32 {
        v.set(match which { 0 => 1024, 1 => 1 << 20, 2 => 8 << 20, _ => 0 });
        OK
    }
    fn cudaDeviceSetLimit(_which: i32, _v: usize) -> i32 { OK }
    fn cudaDeviceSetCacheConfig(_c: i32) -> i32 { OK }
    fn cudaDeviceGetCacheConfig(c: Out<i32>) -> i32 { c.set(0); OK }
    fn cudaDeviceGetAttribute(v: Out<i32>, which: i32, d: i32) -> i32 { attribute(&v, which, d) }
    fn cudaGetDeviceProperties(p: Out<Prop12>, d: i32) -> i32 {
        state().index(d as usize).map_or_else(|e| e, |i| { put(&p, i, runtime_version(), false); OK })
    }
    fn cudaGetDeviceProperties_v2(p: Out<Prop12>, d: i32) -> i32 {
        state().index(d as usize).map_or_else(|e| e, |i| { put(&p, i, runtime_version(), true); OK })
    }
    fn cudaGetLastError() -> i32 { last_error(true) }
    fn cudaPeekAtLastError() -> i32 { last_error(false) }
    fn cudaGetErrorName(e: i32) -> *const c_char { error_text(e).0.as_ptr() }
    fn cudaGetErrorString(e: i32) -> *const c_char { crate::missing::explained(e).unwrap_or(error_text(e).1).as_ptr() }
    fn cudaProfilerStart() -> i32 { OK }
    fn cudaProfilerStop() -> i32 { OK }
}
