//! A stand-in for the driver's `libnvidia-ml.so.1`: NVML's own symbols and structures (nvml.h, version 2 of memory, version 3 of process
//! lists), answers from a script. Built by the tests with rustc alone, loaded by the program as it loads the driver's library.
//!
//! The script is the file that `TONNAGE_STANDIN_NVML` names, one line a fact, fields divided by `|`:
//!
//! ```text
//! driver|570.86.15
//! cuda|12080
//! device|NAME|UUID|BUS|TOTAL|RESERVED           devices count from 0 in order
//! used|DEVICE|CALL:BYTES CALL:BYTES ...         by the number of the memory query, linear between, level after
//! busy|DEVICE|PERCENT
//! process|DEVICE|PID|BYTES|compute or graphics|GI or -|FROM CALL|TO CALL
//! live|DEVICE|FOLDER                            a process for each file: its name is the PID, its text the bytes; added to used
//! mig|DEVICE|SLOT|NAME|UUID|TOTAL|USED
//! fail|FUNCTION|DEVICE or *|CODE|FROM CALL
//! log|FILE                                      a line for each memory query: device, call, used
//! ```
#![allow(non_snake_case, clippy::missing_safety_doc)]

use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};
use std::io::Write;
use std::sync::Mutex;

const SUCCESS: c_int = 0;
const UNINITIALIZED: c_int = 1;
const INVALID: c_int = 2;
const NOT_SUPPORTED: c_int = 3;
const NOT_FOUND: c_int = 6;
const INSUFFICIENT: c_int = 7;
const VERSION_MISMATCH: c_int = 25;
const NONE: u32 = u32::MAX;

#[derive(Default)]
struct Device {
    name: String,
    uuid: String,
    bus: String,
    total: u64,
    reserved: u64,
    used: Vec<(u64, u64)>,
    busy: u32,
    live: Option<String>,
    calls: u64,
    mig: BTreeMap<u32, (String, String, u64, u64)>,
    processes: Vec<Process>,
}

struct Process {
    pid: u32,
    bytes: u64,
    graphics: bool,
    gi: u32,
    from: u64,
    to: u64,
}

#[derive(Default)]
struct Script {
    driver: String,
    cuda: c_int,
    devices: Vec<Device>,
    fails: Vec<(String, Option<usize>, c_int, u64)>,
    log: Option<String>,
}

static SCRIPT: Mutex<Option<Script>> = Mutex::new(None);

fn read() -> Script {
    let path = std::env::var("TONNAGE_STANDIN_NVML").unwrap_or_default();
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut s = Script { driver: "570.86.15".into(), cuda: 12080, ..Script::default() };
    for line in text.lines() {
        let f: Vec<&str> = line.split('|').collect();
        let n = |i: usize| f.get(i).and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
        let t = |i: usize| f.get(i).copied().unwrap_or("").to_string();
        let at = n(1) as usize;
        match f[0] {
            "driver" => s.driver = t(1),
            "cuda" => s.cuda = n(1) as c_int,
            "log" => s.log = Some(t(1)),
            "device" => s.devices.push(Device {
                name: t(1),
                uuid: t(2),
                bus: t(3),
                total: n(4),
                reserved: n(5),
                ..Device::default()
            }),
            "fail" => s.fails.push((t(1), f.get(2).and_then(|v| v.parse().ok()), n(3) as c_int, n(4))),
            _ => {}
        }
        let Some(d) = s.devices.get_mut(at) else { continue };
        match f[0] {
            "used" => {
                d.used = t(2)
                    .split_whitespace()
                    .filter_map(|p| p.split_once(':'))
                    .map(|(a, b)| (a.parse().unwrap_or(0), b.parse().unwrap_or(0)))
                    .collect();
            }
            "busy" => d.busy = n(2) as u32,
            "live" => d.live = Some(t(2)),
            "mig" => {
                d.mig.insert(n(2) as u32, (t(3), t(4), n(5), n(6)));
            }
            "process" => d.processes.push(Process {
                pid: n(2) as u32,
                bytes: if t(3) == "unknown" { u64::MAX } else { n(3) },
                graphics: t(4) == "graphics",
                gi: t(5).parse().unwrap_or(NONE),
                from: n(6),
                to: f.get(7).and_then(|v| v.parse().ok()).unwrap_or(u64::MAX),
            }),
            _ => {}
        }
    }
    s
}

impl Device {
    fn at(&self, call: u64) -> u64 {
        let mut last = (0, self.used.first().map_or(0, |u| u.1));
        for &(c, b) in &self.used {
            if call < c {
                let part = (call - last.0) as f64 / (c - last.0) as f64;
                return (last.1 as f64 + part * (b as f64 - last.1 as f64)) as u64;
            }
            last = (c, b);
        }
        last.1
    }
    fn alive(&self) -> Vec<(u32, u64)> {
        let Some(dir) = &self.live else { return Vec::new() };
        let Ok(all) = std::fs::read_dir(dir) else { return Vec::new() };
        all.flatten()
            .filter_map(|e| {
                let pid = e.file_name().to_str()?.parse().ok()?;
                // the driver frees what a process held when it ends
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
                let state = stat.rsplit_once(')')?.1.trim_start().chars().next()?;
                let bytes = std::fs::read_to_string(e.path()).ok()?.trim().parse().ok()?;
                (state != 'Z' && state != 'X').then_some((pid, bytes))
            })
            .collect()
    }
}

/// A device's handle is its number + 1; a MIG instance's is 1000 * (device + 1) + slot.
fn place(handle: *mut c_void) -> (usize, Option<u32>) {
    let h = handle as usize;
    if h >= 1000 { (h / 1000 - 1, Some((h % 1000) as u32)) } else { (h.wrapping_sub(1), None) }
}

fn on<R>(handle: *mut c_void, function: &str, f: impl FnOnce(&mut Device, Option<u32>) -> R) -> Result<R, c_int> {
    let mut guard = SCRIPT.lock().unwrap_or_else(|e| e.into_inner());
    let s = guard.as_mut().ok_or(UNINITIALIZED)?;
    let (at, slot) = place(handle);
    let call = s.devices.get(at).ok_or(INVALID)?.calls;
    failing(s, function, Some(at), call)?;
    Ok(f(&mut s.devices[at], slot))
}

fn failing(s: &Script, function: &str, device: Option<usize>, call: u64) -> Result<(), c_int> {
    for (name, d, code, from) in &s.fails {
        if (name == function || name == "*") && (d.is_none() || *d == device) && call >= *from {
            return Err(*code);
        }
    }
    Ok(())
}

fn code(r: Result<(), c_int>) -> c_int {
    r.err().unwrap_or(SUCCESS)
}

unsafe fn put(text: &str, to: *mut c_char, room: c_uint) -> c_int {
    if text.len() + 1 > room as usize {
        return INSUFFICIENT;
    }
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, text.len());
        *to.add(text.len()) = 0;
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> c_int {
    let s = read();
    let failed = failing(&s, "nvmlInit", None, 0);
    *SCRIPT.lock().unwrap_or_else(|e| e.into_inner()) = Some(s);
    code(failed)
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> c_int {
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(to: *mut c_char, room: c_uint) -> c_int {
    let guard = SCRIPT.lock().unwrap_or_else(|e| e.into_inner());
    match guard.as_ref() {
        Some(s) => unsafe { put(&s.driver, to, room) },
        None => UNINITIALIZED,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(to: *mut c_int) -> c_int {
    let guard = SCRIPT.lock().unwrap_or_else(|e| e.into_inner());
    match guard.as_ref() {
        Some(s) => unsafe { *to = s.cuda },
        None => return UNINITIALIZED,
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(to: *mut c_uint) -> c_int {
    let guard = SCRIPT.lock().unwrap_or_else(|e| e.into_inner());
    let Some(s) = guard.as_ref() else { return UNINITIALIZED };
    let call = s.devices.first().map_or(0, |d| d.calls);
    if let Err(e) = failing(s, "nvmlDeviceGetCount", None, call) {
        return e;
    }
    unsafe { *to = s.devices.len() as c_uint };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, to: *mut *mut c_void) -> c_int {
    let handle = (index as usize + 1) as *mut c_void;
    code(on(handle, "nvmlDeviceGetHandleByIndex", |_, _| unsafe { *to = handle }))
}

macro_rules! text {
    ($name:ident, $key:literal, $of:expr) => {
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(d: *mut c_void, to: *mut c_char, room: c_uint) -> c_int {
            let of: fn(&Device, Option<u32>) -> String = $of;
            match on(d, $key, |d, slot| of(d, slot)) {
                Ok(t) => unsafe { put(&t, to, room) },
                Err(e) => e,
            }
        }
    };
}

text!(nvmlDeviceGetName, "nvmlDeviceGetName", |d, slot| match slot.and_then(|s| d.mig.get(&s)) {
    Some(m) => m.0.clone(),
    None => d.name.clone(),
});
text!(nvmlDeviceGetUUID, "nvmlDeviceGetUUID", |d, slot| match slot.and_then(|s| d.mig.get(&s)) {
    Some(m) => m.1.clone(),
    None => d.uuid.clone(),
});

#[repr(C)]
pub struct PciInfo {
    legacy: [c_char; 16],
    domain: c_uint,
    bus: c_uint,
    device: c_uint,
    id: c_uint,
    subsystem: c_uint,
    bus_id: [c_char; 32],
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(d: *mut c_void, to: *mut PciInfo) -> c_int {
    code(on(d, "nvmlDeviceGetPciInfo", |d, _| unsafe {
        (*to).bus_id = [0; 32];
        (*to).legacy = [0; 16];
        put(&d.bus, (*to).bus_id.as_mut_ptr(), 32);
    }))
}

#[repr(C)]
pub struct Memory {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(d: *mut c_void, to: *mut Memory) -> c_int {
    let to = unsafe { &mut *to };
    if to.version != (std::mem::size_of::<Memory>() | 2 << 24) as c_uint {
        return VERSION_MISMATCH;
    }
    let mut line = None;
    let at = place(d);
    let r = on(d, "nvmlDeviceGetMemoryInfo", |d, slot| {
        if let Some(slot) = slot {
            let Some(m) = d.mig.get(&slot) else { return };
            (to.total, to.reserved, to.used, to.free) = (m.2, 0, m.3, m.2 - m.3);
            return;
        }
        let used = d.at(d.calls) + d.alive().iter().map(|p| p.1).sum::<u64>();
        to.total = d.total;
        to.reserved = d.reserved;
        to.used = used.min(d.total - d.reserved);
        to.free = d.total - d.reserved - to.used;
        line = Some(format!("{} {} {}\n", at.0, d.calls, to.used));
        d.calls += 1;
    });
    let guard = SCRIPT.lock().unwrap_or_else(|e| e.into_inner());
    if let (Some(line), Some(path)) = (line, guard.as_ref().and_then(|s| s.log.as_ref()))
        && let Ok(mut f) = std::fs::OpenOptions::new().append(true).create(true).open(path)
    {
        let _ = f.write_all(line.as_bytes());
    }
    code(r)
}

#[repr(C)]
pub struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUtilizationRates(d: *mut c_void, to: *mut Utilization) -> c_int {
    let divided = on(d, "nvmlDeviceGetUtilizationRates", |d, _| {
        unsafe { *to = Utilization { gpu: d.busy, memory: 0 } };
        !d.mig.is_empty()
    });
    match divided {
        Ok(true) => NOT_SUPPORTED,
        Ok(false) => SUCCESS,
        Err(e) => e,
    }
}

#[repr(C)]
pub struct ProcessInfo {
    pid: c_uint,
    bytes: c_ulonglong,
    gi: c_uint,
    ci: c_uint,
}

unsafe fn list(d: *mut c_void, function: &str, graphics: bool, count: *mut c_uint, to: *mut ProcessInfo) -> c_int {
    let all = on(d, function, |d, slot| {
        let call = d.calls.saturating_sub(1);
        let mut all: Vec<(u32, u64, u32)> = d
            .processes
            .iter()
            .filter(|p| p.graphics == graphics && p.from <= call && call <= p.to)
            .filter(|p| slot.is_none_or(|s| p.gi == s))
            .map(|p| (p.pid, p.bytes, p.gi))
            .collect();
        if !graphics && slot.is_none() {
            all.extend(d.alive().iter().map(|p| (p.0, p.1, NONE)));
        }
        all
    });
    let all = match all {
        Ok(a) => a,
        Err(e) => return e,
    };
    unsafe {
        let room = *count as usize;
        *count = all.len() as c_uint;
        if all.len() > room || (to.is_null() && !all.is_empty()) {
            return INSUFFICIENT;
        }
        for (i, (pid, bytes, gi)) in all.into_iter().enumerate() {
            *to.add(i) = ProcessInfo { pid, bytes, gi, ci: if gi == NONE { NONE } else { 0 } };
        }
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(d: *mut c_void, n: *mut c_uint, to: *mut ProcessInfo) -> c_int {
    unsafe { list(d, "nvmlDeviceGetComputeRunningProcesses", false, n, to) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGraphicsRunningProcesses_v3(d: *mut c_void, n: *mut c_uint, to: *mut ProcessInfo) -> c_int {
    unsafe { list(d, "nvmlDeviceGetGraphicsRunningProcesses", true, n, to) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigMode(d: *mut c_void, current: *mut c_uint, pending: *mut c_uint) -> c_int {
    code(on(d, "nvmlDeviceGetMigMode", |d, _| unsafe {
        *current = c_uint::from(!d.mig.is_empty());
        *pending = *current;
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMaxMigDeviceCount(d: *mut c_void, n: *mut c_uint) -> c_int {
    code(on(d, "nvmlDeviceGetMaxMigDeviceCount", |d, _| unsafe { *n = if d.mig.is_empty() { 0 } else { 7 } }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(d: *mut c_void, slot: c_uint, to: *mut *mut c_void) -> c_int {
    let here = place(d).0;
    match on(d, "nvmlDeviceGetMigDeviceHandleByIndex", |d, _| d.mig.contains_key(&slot)) {
        Ok(true) => unsafe { *to = (1000 * (here + 1) + slot as usize) as *mut c_void },
        Ok(false) => return NOT_FOUND,
        Err(e) => return e,
    }
    SUCCESS
}
