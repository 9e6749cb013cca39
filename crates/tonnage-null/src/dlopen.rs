//! Nothing in the process may reach a real driver: `dlopen` of one opens this library, whatever the path.

use std::ffi::{CStr, CString, c_char};
#[cfg(not(test))]
use std::ffi::{c_int, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// File of this library.
fn own_path() -> &'static CStr {
    static PATH: OnceLock<CString> = OnceLock::new();
    PATH.get_or_init(|| {
        let path = crate::torch::library_of(own_path as *const () as usize);
        CString::new(path).unwrap_or_default()
    })
}

/// True for an address in this library.
pub fn is_ours(address: usize) -> bool {
    crate::torch::library_of(address).as_bytes() == own_path().to_bytes()
}

/// The driver's libraries, by the start of their file names.
const DRIVER: [&str; 2] = ["libcuda.so", "libnvidia-ml.so"];

#[cfg_attr(test, allow(dead_code))]
static REAL: AtomicUsize = AtomicUsize::new(0);

/// The file to open instead of the one asked for.
#[cfg_attr(test, allow(dead_code))]
extern "C" fn choose(file: *const c_char) -> *const c_char {
    if REAL.load(Relaxed) == 0 {
        REAL.store(
            crate::rt_device::real(c"dlopen").map_or(0, |p| p as usize),
            Relaxed,
        );
    }
    if file.is_null() {
        return file;
    }
    // SAFETY: dlopen's caller passes null or a zero-terminated name.
    let name = unsafe { CStr::from_ptr(file) }.to_bytes();
    let name = name.rsplit(|&b| b == b'/').next().unwrap_or(name);
    let driver = DRIVER.iter().any(|d| name.starts_with(d.as_bytes()));
    if driver && !own_path().is_empty() {
        own_path().as_ptr()
    } else {
        file
    }
}

/// Jumps to the real function with the caller's own return address, which decides where relative names are looked up.
// SAFETY: the name stands in for the C library's, with its meaning.
#[cfg(not(test))]
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub extern "C" fn dlopen(file: *const c_char, flags: c_int) -> *mut c_void {
    core::arch::naked_asm!(
        "push rdi",
        "push rsi",
        "sub rsp, 8",
        "call {choose}",
        "add rsp, 8",
        "pop rsi",
        "pop rdi",
        "mov rdi, rax",
        "jmp qword ptr [rip + {real}]",
        choose = sym choose,
        real = sym REAL,
    )
}
