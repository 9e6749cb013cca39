//! The devices of this machine (or of another one), as their drivers describe them now.
//!
//! A reader speaks one interface: NVML, amdgpu's sysfs, Intel's fdinfo, IOKit's registry, or a Prometheus endpoint. What an interface does
//! not say is absent, never zero; a device that stops answering stays in the list with its trouble in words.

pub mod amdgpu;
pub mod apple;
pub mod fdinfo;
pub mod intel;
pub mod nvml;
mod pci;
pub mod remote;

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Memory of a device or of a part of it, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// All of it, as the driver counts.
    #[serde(rename = "total_bytes")]
    pub total: u64,
    /// Held by processes. NVML's `used` of structure version 2: without what the driver reserves.
    #[serde(rename = "used_bytes")]
    pub used: u64,
    /// Kept by driver and firmware; absent where the interface does not tell it from `used`.
    #[serde(
        rename = "reserved_bytes",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub reserved: Option<u64>,
    /// Free now.
    #[serde(rename = "free_bytes")]
    pub free: u64,
}

impl Memory {
    /// What a process could get on the idle device.
    pub fn usable(&self) -> u64 {
        self.total.saturating_sub(self.reserved.unwrap_or(0))
    }
    /// Used part of what is usable, 0 to 1.
    pub fn fraction(&self) -> f64 {
        if self.usable() == 0 {
            0.0
        } else {
            self.used as f64 / self.usable() as f64
        }
    }
}

/// What a process does on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Use {
    /// CUDA, ROCm, compute queues.
    #[default]
    Compute,
    /// Display and drawing.
    Graphics,
    /// Both.
    Both,
}

/// A process on a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    /// Of device memory; absent where the driver does not say (Windows' display driver model, a process of another user).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    pub what: Use,
    /// The MIG instance it runs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_instance: Option<u32>,
    /// User name, or the number where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Its command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// What its framework's allocator says, where it publishes that (see [`crate::publish`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocator: Option<crate::publish::AllocatorStats>,
}

/// An instance of a device that is divided (MIG).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    pub uuid: String,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_instance: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
}

/// A device at a moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceReading {
    /// Stays the same over a run: UUID, else PCI address.
    pub key: String,
    /// Its number in its interface.
    pub index: u32,
    pub name: String,
    /// The interface that says all this.
    pub source: Source,
    /// The machine, of a remote reading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// Time with a kernel running, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy_pct: Option<u32>,
    #[serde(default)]
    pub processes: Vec<Process>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instances: Vec<Instance>,
    /// What could not be read, in words; `memory` is absent where that is what failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub troubles: Vec<String>,
}

impl DeviceReading {
    fn new(source: Source, index: u32, key: String, name: String) -> DeviceReading {
        DeviceReading {
            key,
            index,
            name,
            source,
            host: None,
            pci: None,
            memory: None,
            busy_pct: None,
            processes: Vec::new(),
            instances: Vec::new(),
            troubles: Vec::new(),
        }
    }
}

/// Who says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// NVIDIA's management library.
    Nvml,
    /// Files of the amdgpu driver in /sys, processes in /proc.
    Amdgpu,
    /// Files of the i915 and xe drivers in /sys and /proc.
    Intel,
    /// The registry of macOS (`ioreg`).
    Ioreg,
    /// A Prometheus endpoint of the DCGM exporter.
    Dcgm,
    /// A Prometheus endpoint of `tonnage watch --prometheus`.
    Tonnage,
}

impl Source {
    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Source::Nvml => "NVML",
            Source::Amdgpu => "amdgpu",
            Source::Intel => "Intel fdinfo",
            Source::Ioreg => "ioreg",
            Source::Dcgm => "DCGM exporter",
            Source::Tonnage => "tonnage exporter",
        }
    }
}

/// Why there is no reading.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DeviceError {
    /// Nothing here that any reader knows; what each said.
    #[error("no GPU that can be read is in this machine ({})", .0.join("; "))]
    None(Vec<String>),
    /// The endpoint does not answer, or not with what is known.
    #[error("{url}: {what}")]
    Remote {
        /// As given.
        url: String,
        /// In words.
        what: String,
    },
    /// The interface as a whole failed.
    #[error("{0}: {1}")]
    Interface(&'static str, String),
}

/// Where this machine's files are: `/`, or a recorded tree.
#[derive(Clone, Debug)]
pub struct System {
    /// `proc`, `sys`, `etc` and `usr` are looked up below it.
    pub root: PathBuf,
    /// Another file than the driver's own `libnvidia-ml.so.1`.
    pub nvml: Option<PathBuf>,
}

impl Default for System {
    fn default() -> System {
        System {
            root: PathBuf::from("/"),
            nvml: None,
        }
    }
}

/// An open interface.
pub trait Reader: Send {
    /// All its devices, now.
    ///
    /// # Errors
    /// The interface as a whole has failed; a single device that fails is in its reading.
    fn read(&mut self) -> Result<Vec<DeviceReading>, DeviceError>;
}

/// The interfaces that this machine has, opened once.
pub struct Readers {
    readers: Vec<Box<dyn Reader>>,
    procs: Option<crate::process::Procs>,
    published: Option<PathBuf>,
    /// What each interface that is absent says.
    pub absent: Vec<String>,
}

impl Readers {
    /// Of this machine.
    ///
    /// # Errors
    /// There is no device.
    pub fn local(system: &System) -> Result<Readers, DeviceError> {
        let mut readers: Vec<Box<dyn Reader>> = Vec::new();
        let mut absent = Vec::new();
        match nvml::Nvidia::open(system.nvml.as_deref()) {
            Ok(r) => readers.push(Box::new(r)),
            Err(e) => absent.push(format!("NVIDIA: {e}")),
        }
        match amdgpu::Amd::open(&system.root) {
            Some(r) => readers.push(Box::new(r)),
            None => absent.push("AMD: no card of the amdgpu driver in /sys/class/drm".into()),
        }
        match intel::Intel::open(&system.root) {
            Some(r) => readers.push(Box::new(r)),
            None => absent.push("Intel: no card of the i915 or xe driver in /sys/class/drm".into()),
        }
        match apple::Apple::open() {
            Some(r) => readers.push(Box::new(r)),
            None => absent.push("Apple: this is not macOS".into()),
        }
        if readers.is_empty() {
            return Err(DeviceError::None(absent));
        }
        Ok(Readers {
            readers,
            procs: Some(crate::process::Procs::new(&system.root)),
            published: crate::publish::folder(),
            absent,
        })
    }

    /// Of another machine, through a Prometheus endpoint.
    pub fn remote(url: &str) -> Readers {
        Readers {
            readers: vec![Box::new(remote::Remote::new(url))],
            procs: None,
            published: None,
            absent: Vec::new(),
        }
    }

    /// All devices, now, with owners and commands of their processes.
    ///
    /// # Errors
    /// Every interface failed, or none has a device.
    pub fn read(&mut self) -> Result<Vec<DeviceReading>, DeviceError> {
        let mut all = Vec::new();
        let mut failed = None;
        for r in &mut self.readers {
            match r.read() {
                Ok(mut d) => all.append(&mut d),
                Err(e) => failed = Some(e),
            }
        }
        if all.is_empty() {
            return Err(failed.unwrap_or_else(|| DeviceError::None(self.absent.clone())));
        }
        if let Some(procs) = &mut self.procs {
            for d in &mut all {
                for p in &mut d.processes {
                    if let Some(who) = procs.who(p.pid) {
                        p.owner = who.owner;
                        p.command = Some(who.command);
                    }
                    p.allocator = self
                        .published
                        .as_deref()
                        .and_then(|f| crate::publish::of_process(f, p.pid))
                        .and_then(|v| v.on(&d.key, d.index).cloned());
                }
            }
            procs.forget_gone();
        }
        Ok(all)
    }
}
