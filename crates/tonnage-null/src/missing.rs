//! Functions outside the null device: each call fails with its library's "not supported" and says its own name.

use crate::state::{fail, say, state};
use crate::torch;
use crate::types::*;
use serde_json::json;
use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock};

static SAID: Mutex<Option<HashSet<&'static str>>> = Mutex::new(None);
static FIRST: OnceLock<CString> = OnceLock::new();

/// A call of a function that is not there; hands back the library's code.
pub fn call(symbol: &'static str, code: i32) -> i32 {
    let mut said = SAID.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if said.get_or_insert_default().insert(symbol) {
        drop(said);
        let torch = torch::version();
        let message = format!(
            "{symbol} is not part of the null CUDA device (torch {torch}); the call was refused"
        );
        state().announce();
        say(&message);
        state().report.line(
            "missing-symbol",
            json!({"symbol": symbol, "torch": torch, "message": message}),
        );
        let _ = FIRST
            .set(CString::new(format!("operation not supported: {message}")).unwrap_or_default());
    }
    if code == NOT_SUPPORTED {
        fail(code)
    } else {
        code
    }
}

/// The sentence for "not supported" once a function was missing, so that the framework's own error names it.
pub fn explained(code: i32) -> Option<&'static CStr> {
    FIRST
        .get()
        .filter(|_| code == NOT_SUPPORTED)
        .map(|text| text.as_c_str())
}

/// A function of a library that works on device memory only: done at once.
pub fn done() -> i32 {
    state().launches.fetch_add(1, Relaxed);
    OK
}

/// A handle that no other object has; nothing lies behind it.
pub fn handle() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    0x7400_0000_0000 + NEXT.fetch_add(1, Relaxed) * 16
}
