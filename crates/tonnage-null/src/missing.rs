//! Functions outside the null device: each call fails with its library's "not supported" and says its own name.

use crate::rt_device::real;
use crate::state::{fail, say, state};
use crate::torch;
use crate::types::*;
use serde_json::json;
use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static SAID: Mutex<Option<HashSet<&'static str>>> = Mutex::new(None);
static LATEST: Mutex<Option<&'static CStr>> = Mutex::new(None);

/// A call of a function that is not there; hands back the library's code.
pub fn call(symbol: &'static str, code: i32) -> i32 {
    let mut said = SAID.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if said.get_or_insert_default().insert(symbol) {
        drop(said);
        let torch = torch::version();
        let message = format!(
            "{symbol} is not part of the null CUDA device (torch {torch}); the call was refused{}",
            hint(symbol)
        );
        state().announce();
        say(&message);
        state().report.line(
            "missing-symbol",
            json!({"symbol": symbol, "torch": torch, "message": message}),
        );
        explain(&message);
    }
    match code {
        // the driver's functions (cuX...) do not touch the runtime's last error
        NOT_SUPPORTED if !of_driver(symbol) => fail(code),
        // "Not supported" of cuDNN 9; it was 9 before.
        3000 if real(c"cudnnBackendPopulateCudaGraph").is_none() => 9,
        _ => code,
    }
}

/// `cu` and a capital letter: the driver's naming.
fn of_driver(symbol: &str) -> bool {
    symbol
        .strip_prefix("cu")
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()))
}

/// What to do instead.
fn hint(symbol: &str) -> &'static str {
    if symbol.starts_with("cudnn") && symbol.contains("RNN") {
        ". Only the interface of cuDNN 8.9.7 and later is there: torch.backends.cudnn.enabled = False takes PyTorch's own"
    } else {
        ""
    }
}

/// Makes a sentence the text of "not supported", so that the framework's own error carries it.
pub fn explain(message: &str) {
    // Kept for ever, as C callers hold on to it; there is one for each symbol at most.
    let text = CString::new(format!("operation not supported: {message}")).unwrap_or_default();
    *LATEST
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner()) =
        Some(Box::leak(text.into_boxed_c_str()));
}

/// The sentence of the latest refusal.
pub fn explained(code: i32) -> Option<&'static CStr> {
    if code != NOT_SUPPORTED {
        return None;
    }
    *LATEST
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A function of a library that works on device memory only: done at once.
pub fn done() -> i32 {
    state().launches.fetch_add(1, Relaxed);
    crate::rt_stream::queued_somewhere();
    OK
}

/// A handle that no other object has; nothing lies behind it.
pub fn handle() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    0x7400_0000_0000 + NEXT.fetch_add(1, Relaxed) * 16
}
