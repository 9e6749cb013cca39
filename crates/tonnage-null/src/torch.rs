//! Which torch is loaded, for messages; read from its own files, never imported.

use std::path::PathBuf;
use std::sync::OnceLock;

/// Paths of the loaded libraries.
pub fn loaded_libraries() -> Vec<PathBuf> {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = Vec::new();
    for line in maps.lines() {
        if let Some(at) = line.find('/')
            && line[at..].contains(".so")
            && paths.last().is_none_or(|p| p.as_os_str() != &line[at..])
        {
            paths.push(PathBuf::from(&line[at..]));
        }
    }
    paths.dedup();
    paths
}

/// The version of none.
pub const NONE: &str = "no torch";

/// Version of the loaded torch, such as `2.11.0+cu130`; [`NONE`] where none is loaded.
pub fn version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    if let Some(v) = VERSION.get() {
        return v;
    }
    let found = loaded_libraries().into_iter().find_map(|p| {
        let name = p.file_name()?.to_str()?;
        if !name.starts_with("libtorch_c") && !name.starts_with("libc10") {
            return None;
        }
        let text = std::fs::read_to_string(p.parent()?.parent()?.join("version.py")).ok()?;
        let line = text.lines().find(|l| l.starts_with("__version__"))?;
        Some(line.split(['\'', '"']).nth(1)?.to_string())
    });
    match found {
        Some(v) => VERSION.get_or_init(|| v),
        // Not remembered: torch may be loaded later.
        None => NONE,
    }
}

/// The library that holds an address.
pub fn library_of(address: usize) -> String {
    // SAFETY: Dl_info is a structure of pointers, for which zero is a value.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: dladdr only looks the address up; `info` outlives the call.
    if unsafe { libc::dladdr(address as *const libc::c_void, &mut info) } == 0
        || info.dli_fname.is_null()
    {
        return String::new();
    }
    // SAFETY: dladdr gives a zero-terminated name that lives as long as the library is loaded.
    unsafe { std::ffi::CStr::from_ptr(info.dli_fname) }
        .to_string_lossy()
        .into_owned()
}
