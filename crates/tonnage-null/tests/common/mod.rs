//! The built library, loaded by a process of its own for each case, as a preloaded program would meet it.
#![allow(dead_code)]

use std::ffi::{CString, c_int, c_void};
use std::path::PathBuf;
use std::process::{Command, Output};

pub const PAGE: usize = 2 << 20;

/// The cdylib that cargo built with this test.
pub fn library() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let path = exe.parent().unwrap().join("libtonnage_null.so");
    assert!(path.exists(), "{} is not built", path.display());
    path
}

pub struct Library(*mut c_void);

impl Library {
    pub fn open() -> Library {
        let path = CString::new(library().to_str().unwrap()).unwrap();
        // SAFETY: loads the library under test, whose start-up code does nothing.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        assert!(!handle.is_null());
        Library(handle)
    }

    pub fn call<F: Copy>(&self, name: &str) -> F {
        let name = CString::new(name).unwrap();
        // SAFETY: a look-up by a zero-terminated name.
        let p = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        assert!(!p.is_null(), "{name:?}");
        assert_eq!(size_of::<F>(), size_of_val(&p));
        // SAFETY: F is the function pointer type of that name in CUDA's headers, which each caller states.
        unsafe { std::mem::transmute_copy(&p) }
    }

    pub fn malloc(&self, n: usize) -> (c_int, usize) {
        let f: extern "C" fn(*mut usize, usize) -> c_int = self.call("cudaMalloc");
        let mut p = 0;
        (f(&mut p, n), p)
    }

    pub fn free(&self, p: usize) -> c_int {
        self.call::<extern "C" fn(usize) -> c_int>("cudaFree")(p)
    }

    pub fn info(&self) -> (usize, usize) {
        let (mut free, mut total) = (0, 0);
        let f: extern "C" fn(*mut usize, *mut usize) -> c_int = self.call("cudaMemGetInfo");
        assert_eq!(f(&mut free, &mut total), 0);
        (free, total)
    }

    pub fn last_error(&self) -> c_int {
        self.call::<extern "C" fn() -> c_int>("cudaGetLastError")()
    }
}

/// Runs one case of this file again, as a process of its own with devices.
pub fn in_process(case: &str, variables: &[(&str, &str)]) -> (Output, Vec<serde_json::Value>) {
    let report =
        std::env::temp_dir().join(format!("tonnage-null-{}-{case}.jsonl", std::process::id()));
    let _ = std::fs::remove_file(&report);
    let devices = format!(
        r#"{{"schema":"tonnage.null-device/1","devices":[
            {{"name":"Card A","capability":"8.6","sms":28,"total_bytes":{},"context_bytes":{}}},
            {{"name":"Card B","capability":"9.0","sms":132,"total_bytes":{}}}]}}"#,
        100 * PAGE,
        10 * PAGE,
        50 * PAGE
    );
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([
        "--exact",
        case,
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ]);
    command
        .env("TONNAGE_NULL_DEVICE", devices)
        .env("TONNAGE_NULL_REPORT", &report);
    command.envs(variables.iter().copied());
    let out = command.output().unwrap();
    let lines = std::fs::read_to_string(&report).unwrap_or_default();
    let _ = std::fs::remove_file(&report);
    (
        out,
        lines
            .lines()
            .map(|l| serde_json::from_str(l).expect("whole lines"))
            .collect(),
    )
}

pub fn passes(case: &str) -> Vec<serde_json::Value> {
    let (out, lines) = in_process(case, &[]);
    assert!(
        out.status.success(),
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    lines
}

pub fn event<'a>(lines: &'a [serde_json::Value], name: &str) -> &'a serde_json::Value {
    lines
        .iter()
        .find(|l| l["event"] == name)
        .unwrap_or_else(|| panic!("no {name} in {lines:?}"))
}
