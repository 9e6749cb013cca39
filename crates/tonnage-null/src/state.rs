//! What one process knows: its devices, their memory, counters, the report.

use crate::memory::{DeviceMemory, Refusal};
use crate::neighbours::Neighbours;
use crate::report::{Report, SCHEMA};
use crate::settings::{Device, Settings};
use crate::types::{INVALID_DEVICE, NO_DEVICE, OK, OUT_OF_MEMORY};
use serde_json::json;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock};

/// Memory of the host that CUDA gave out or was told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostKind {
    /// Page-locked, made here.
    Pinned,
    /// The program's own, registered.
    Registered,
    /// Managed: moves between host and device.
    Managed,
}

#[derive(Debug, Clone, Copy)]
struct HostBlock {
    len: usize,
    kind: HostKind,
}

/// Everything behind the lock.
#[derive(Debug, Default)]
pub struct Memory {
    devices: Vec<DeviceMemory>,
    host: BTreeMap<usize, HostBlock>,
    pinned: u64,
    pinned_peak: u64,
    managed: u64,
    managed_peak: u64,
}

/// One process.
#[derive(Debug)]
pub struct State {
    /// What the environment said.
    pub settings: Settings,
    devices: Vec<Device>,
    visible: Vec<usize>,
    memory: Mutex<Memory>,
    /// The report.
    pub report: Report,
    /// Kernels launched.
    pub launches: AtomicU64,
    started: OnceLock<()>,
    /// Other processes of the run, where it has a directory.
    neighbours: OnceLock<Option<Neighbours>>,
}

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
    static LAST_ERROR: Cell<i32> = const { Cell::new(OK) };
}

/// Identifier of a device, as NVML prints it.
pub fn uuid_text(device: usize) -> String {
    format!("GPU-746f6e6e-6167-6500-6e75-{device:012x}")
}

/// The same as bytes.
pub fn uuid_bytes(device: usize) -> [u8; 16] {
    let mut b = *b"tonnage\0nu\0\0\0\0\0\0";
    b[15] = device as u8;
    b
}

/// Which devices the program may see (`CUDA_VISIBLE_DEVICES`): the list ends at the first entry that names none.
fn visible(value: Option<&str>, count: usize) -> Vec<usize> {
    let Some(value) = value else {
        return (0..count).collect();
    };
    let mut seen = Vec::new();
    for entry in value.split(',').map(str::trim) {
        let device = match entry.parse::<usize>() {
            Ok(i) => Some(i).filter(|&i| i < count),
            Err(_) if entry.starts_with("GPU-") => {
                (0..count).find(|&i| uuid_text(i).starts_with(entry))
            }
            Err(_) => None,
        };
        match device {
            Some(i) if !seen.contains(&i) => seen.push(i),
            _ => break,
        }
    }
    seen
}

/// The process's state, made at the first call.
pub fn state() -> &'static State {
    static STATE: OnceLock<State> = OnceLock::new();
    STATE.get_or_init(|| {
        let mut settings = Settings::from_environment();
        let devices = settings
            .machine
            .as_ref()
            .map_or(Vec::new(), |m| m.devices.clone());
        let memory = devices
            .iter()
            .map(|d| DeviceMemory::new(d.total_bytes, d.context_bytes, d.used_bytes))
            .collect();
        let var = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        let report = Report::open(settings.report.as_deref()).unwrap_or_else(|e| {
            settings.complaints.push(e);
            Report::default()
        });
        State {
            visible: visible(var.as_deref(), devices.len()),
            devices,
            memory: Mutex::new(Memory {
                devices: memory,
                ..Memory::default()
            }),
            report,
            launches: AtomicU64::new(0),
            started: OnceLock::new(),
            neighbours: OnceLock::new(),
            settings,
        }
    })
}

/// A sentence for the user.
pub fn say(text: &str) {
    // A closed standard error must not end the program, as eprintln! would.
    let _ = writeln!(std::io::stderr(), "tonnage: {text}");
}

/// Remembers an error for `cudaGetLastError` and hands it on.
pub fn fail(code: i32) -> i32 {
    LAST_ERROR.set(code);
    code
}

/// The driver's functions do not touch the runtime's last error.
pub fn as_driver(work: impl FnOnce() -> i32) -> i32 {
    let before = LAST_ERROR.get();
    let code = work();
    LAST_ERROR.set(before);
    code
}

/// The last error, forgotten if asked to.
pub fn last_error(forget: bool) -> i32 {
    let e = LAST_ERROR.get();
    if forget {
        LAST_ERROR.set(OK);
    }
    e
}

/// The calling thread's device, as an ordinal among the visible ones.
pub fn current() -> usize {
    CURRENT.get()
}

extern "C" fn at_exit() {
    state().finish();
}

impl State {
    /// Visible devices.
    pub fn count(&self) -> usize {
        self.visible.len()
    }

    /// All devices of the machine, as NVML shows them.
    pub fn all(&self) -> &[Device] {
        &self.devices
    }

    /// Index in the device file of a visible ordinal.
    pub fn index(&self, ordinal: usize) -> Result<usize, i32> {
        if self.visible.is_empty() {
            return Err(fail(NO_DEVICE));
        }
        self.visible
            .get(ordinal)
            .copied()
            .ok_or_else(|| fail(INVALID_DEVICE))
    }

    /// A visible device.
    pub fn device(&self, ordinal: usize) -> Result<&Device, i32> {
        Ok(&self.devices[self.index(ordinal)?])
    }

    /// The name that the driver gives: marked, so that nobody takes a dry run for a run, unless told not to.
    pub fn name(&self, index: usize) -> String {
        let name = &self.devices[index].name;
        if self.settings.quiet {
            name.clone()
        } else {
            format!("{name} (tonnage null device)")
        }
    }

    /// Version of the driver, as text.
    pub fn driver_version(&self) -> &str {
        self.settings
            .machine
            .as_ref()
            .map_or("580.65.06", |m| &m.driver_version)
    }

    /// Makes an ordinal the calling thread's device.
    pub fn set_current(&self, ordinal: usize) -> i32 {
        match self.index(ordinal) {
            Ok(_) => {
                CURRENT.set(ordinal);
                OK
            }
            Err(e) => e,
        }
    }

    fn neighbours(&self) -> Option<&Neighbours> {
        let join = || Neighbours::join(self.settings.world_dir.as_ref()?);
        self.neighbours.get_or_init(join).as_ref()
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Says once that this is no real device, and starts the report.
    pub fn announce(&self) {
        self.started.get_or_init(|| {
            for text in &self.settings.complaints {
                say(text);
            }
            let argv: Vec<String> = std::env::args()
                .take(64)
                .map(|a| a.chars().take(400).collect())
                .collect();
            self.report.line(
                "start",
                json!({"schema": SCHEMA, "version": env!("CARGO_PKG_VERSION"), "argv": argv}),
            );
            if !self.settings.quiet && !self.visible.is_empty() {
                let names: Vec<&str> = self
                    .visible
                    .iter()
                    .map(|&i| self.devices[i].name.as_str())
                    .collect();
                let names: Vec<String> = (names.chunk_by(|a, b| a == b))
                    .map(|c| {
                        if c.len() == 1 {
                            c[0].to_string()
                        } else {
                            format!("{} x {}", c.len(), c[0])
                        }
                    })
                    .collect();
                say(&format!(
                    "null CUDA device, not a GPU: {} (kernels do nothing, values are zeros)",
                    names.join(", ")
                ));
            }
            // SAFETY: registers a function of this library, which is never unloaded.
            unsafe { libc::atexit(at_exit) };
        });
    }

    /// Works on the memory of a visible device, making its context and addresses first.
    pub fn with<T>(
        &self,
        ordinal: usize,
        work: impl FnOnce(&mut DeviceMemory) -> T,
    ) -> Result<T, i32> {
        let index = self.index(ordinal)?;
        self.announce();
        let mut memory = self.lock();
        let device = &mut memory.devices[index];
        if !device.has_range() {
            let (base, len) =
                reserve_range(self.devices.len()).ok_or_else(|| fail(OUT_OF_MEMORY))?;
            device.set_range(base, len);
        }
        if device.make_context() {
            let d = &self.devices[index];
            let capability = format!("{}.{}", d.capability.0, d.capability.1);
            self.report.line(
                "device",
                json!({"device": index, "id": d.id, "name": d.name, "capability": capability, "total_bytes": d.total_bytes,
                       "context_bytes": d.context_bytes, "free_bytes": device.free()}),
            );
        }
        if let Some(n) = self.neighbours() {
            device.set_others(self.devices[index].used_bytes + n.others(index));
        }
        let out = work(device);
        if let Some(n) = self.neighbours() {
            n.state(index, device.used() + device.context());
        }
        if let Some(peak) = device.peak_to_note() {
            let context = device.context();
            drop(memory);
            self.report.line(
                "peak",
                json!({"device": index, "bytes": peak + context, "allocated_bytes": peak}),
            );
        }
        Ok(out)
    }

    /// `cudaMalloc` on a visible device.
    pub fn allocate(&self, ordinal: usize, len: u64) -> Result<u64, i32> {
        match self.with(ordinal, |m| m.allocate(len))? {
            Ok(address) => {
                self.allocated(Some(ordinal), "device", len);
                Ok(address)
            }
            Err(refusal) => Err(self.refuse(ordinal, refusal)),
        }
    }

    /// Notes an allocation, where every one is asked for. `kind` is `device`, `mapped` (physical memory for a range of addresses) or `pinned`.
    pub fn allocated(&self, ordinal: Option<usize>, kind: &str, len: u64) {
        if self.settings.allocations {
            let index = ordinal.and_then(|o| self.index(o).ok());
            self.report.line(
                "allocated",
                json!({"device": index, "kind": kind, "bytes": len}),
            );
        }
    }

    /// Notes an allocation that did not fit.
    pub fn refuse(&self, ordinal: usize, refusal: Refusal) -> i32 {
        if let Ok(index) = self.index(ordinal) {
            self.report.line(
                "refused",
                json!({"device": index, "requested_bytes": refusal.requested, "free_bytes": refusal.free,
                       "total_bytes": self.devices[index].total_bytes}),
            );
        }
        fail(OUT_OF_MEMORY)
    }

    /// The visible ordinal whose range holds an address.
    pub fn owner(&self, address: usize) -> Option<usize> {
        let memory = self.lock();
        self.visible
            .iter()
            .position(|&i| memory.devices[i].owns(address as u64))
    }

    /// Works on the device whose range holds an address.
    pub fn with_owner<T>(
        &self,
        address: usize,
        work: impl FnOnce(&mut DeviceMemory) -> T,
    ) -> Option<T> {
        self.with(self.owner(address)?, work).ok()
    }

    /// Free and total bytes of a device of the file, for NVML; makes no context.
    pub fn totals(&self, index: usize) -> (u64, u64) {
        let mut memory = self.lock();
        let device = &mut memory.devices[index];
        if let Some(n) = self.neighbours() {
            device.set_others(self.devices[index].used_bytes + n.others(index));
        }
        (device.free(), device.total())
    }

    /// Bytes of a device of the file that this process holds, context included; None without a context.
    pub fn in_use(&self, index: usize) -> Option<u64> {
        let memory = self.lock();
        let d = &memory.devices[index];
        d.has_range().then(|| d.used() + d.context())
    }

    /// Remembers memory of the host.
    pub fn add_host(&self, address: usize, len: usize, kind: HostKind) {
        let mut m = self.lock();
        m.host.insert(address, HostBlock { len, kind });
        if kind == HostKind::Managed {
            m.managed += len as u64;
            m.managed_peak = m.managed_peak.max(m.managed);
        } else {
            m.pinned += len as u64;
            m.pinned_peak = m.pinned_peak.max(m.pinned);
        }
    }

    /// Forgets memory of the host; its length if it was of one of the kinds.
    pub fn remove_host(&self, address: usize, kinds: &[HostKind]) -> Option<usize> {
        let mut m = self.lock();
        let block = *m.host.get(&address).filter(|b| kinds.contains(&b.kind))?;
        m.host.remove(&address);
        let sum = if block.kind == HostKind::Managed {
            &mut m.managed
        } else {
            &mut m.pinned
        };
        *sum -= block.len as u64;
        Some(block.len)
    }

    /// Start, length and kind of the host memory that holds an address.
    pub fn find_host(&self, address: usize) -> Option<(usize, usize, HostKind)> {
        let m = self.lock();
        let (&start, b) = m.host.range(..=address).next_back()?;
        (address < start + b.len.max(1)).then_some((start, b.len, b.kind))
    }

    /// The last lines of the report.
    fn finish(&self) {
        let m = self.lock();
        let devices: Vec<_> = (m.devices.iter().enumerate())
            .filter(|(_, d)| d.has_range())
            .map(|(i, d)| {
                json!({"device": i, "peak_bytes": d.peak() + d.context(), "peak_allocated_bytes": d.peak(),
                       "allocated_bytes": d.used()})
            })
            .collect();
        let (pinned, managed) = (m.pinned_peak, m.managed_peak);
        drop(m);
        if let Some(counts) = crate::nccl::counts() {
            self.report.line("collectives", counts);
        }
        self.report.line(
            "exit",
            json!({"devices": devices, "pinned_peak_bytes": pinned, "managed_peak_bytes": managed,
                   "launches": self.launches.load(Relaxed)}),
        );
    }

    /// A refusal by design.
    pub fn unsupported(&self, what: &'static str, message: &'static str) {
        static SAID: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());
        let mut said = SAID.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if said.contains(&what) {
            return;
        }
        said.push(what);
        drop(said);
        crate::missing::explain(message);
        self.announce();
        say(message);
        self.report
            .line("unsupported", json!({"what": what, "message": message}));
    }
}

/// Addresses for one device that nothing can read or write: half of what a process has, shared among the devices, at
/// most 16 TiB; less where the process may not have as much.
fn reserve_range(devices: usize) -> Option<(u64, u64)> {
    let most = (1u64 << 46) / devices.max(1).next_power_of_two() as u64;
    (36..=most.ilog2().min(44)).rev().find_map(|bits| {
        let len = 1usize << bits;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: asks for fresh addresses, touching no existing mapping.
        let p = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        (p != libc::MAP_FAILED).then_some((p as u64, len as u64))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visible_devices() {
        assert_eq!(visible(None, 3), [0, 1, 2]);
        assert_eq!(visible(Some("2,0"), 3), [2, 0]);
        assert_eq!(
            visible(Some("1,7,0"), 3),
            [1],
            "ends at the first that is not there"
        );
        assert_eq!(visible(Some(""), 3), [0usize; 0]);
        assert_eq!(visible(Some("-1"), 3), [0usize; 0]);
        assert_eq!(visible(Some(&uuid_text(1)), 3), [1]);
    }
}
