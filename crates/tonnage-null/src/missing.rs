//! Functions outside the null device: each call fails with its library's "not supported" and says its own name.

use crate::rt_device::real;
use crate::state::{fail, say, state};
use crate::torch;
use crate::types::*;
use serde_json::json;
use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

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
        refused(symbol, &message);
    }
    match code {
        // the driver's functions (cuX...) do not touch the runtime's last error
        NOT_SUPPORTED if !of_driver(symbol) => fail(code),
        // "Not supported" of cuDNN 9; it was 9 before.
        3000 if real(c"cudnnBackendPopulateCudaGraph").is_none() => 9,
        _ => code,
    }
}

/// Says a refusal, to the user, the report and the framework's own error.
fn refused(symbol: &str, message: &str) {
    state().announce();
    say(message);
    state().report.line(
        "missing-symbol",
        json!({"symbol": symbol, "torch": torch::version(), "message": message}),
    );
    explain(message);
}

/// Which of the driver's private tables a CUDA runtime needs, as libcudart.so.12 and .13 hold it; profilers ask for others and go without.
const RUNTIME_TABLE: [u8; 16] = [
    0x6b, 0xd5, 0xfb, 0x6c, 0x5b, 0xf4, 0xe7, 0x4a, 0x89, 0x87, 0xd9, 0x39, 0x12, 0xfd, 0x9d, 0xf9,
];

/// No private table of the driver is there. The name of the wanted one lies in the library that asks.
pub fn private_table(id: usize) -> i32 {
    static ASKED: AtomicBool = AtomicBool::new(false);
    if Out::<[u8; 16]>::at(id).get() == Some(RUNTIME_TABLE) && !ASKED.swap(true, Relaxed) {
        let library = torch::library_of(id);
        let name = library.rsplit('/').next().unwrap_or("");
        refused(
            "cuGetExportTable",
            &format!(
                "{name} has a CUDA runtime of its own built in, which needs unpublished tables of the driver (cuGetExportTable); \
                 the null CUDA device does not have them, and what this library launches is refused"
            ),
        );
    }
    NOT_SUPPORTED
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
