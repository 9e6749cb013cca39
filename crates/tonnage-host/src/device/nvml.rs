//! NVIDIA cards through the driver's management library, loaded at run time.

use super::{DeviceError, DeviceReading, Instance, Memory, Process, Reader, Source, Use};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvml_wrapper::{Device, Nvml};
use std::path::Path;

/// The open library.
pub struct Nvidia {
    nvml: Nvml,
    /// What does not change, by index: a lost device keeps its name.
    known: Vec<Option<Known>>,
}

#[derive(Clone)]
struct Known {
    key: String,
    name: String,
    pci: Option<String>,
}

/// Versions of driver and CUDA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versions {
    /// e.g. `570.86.15`
    pub driver: Result<String, String>,
    /// The CUDA that the driver speaks at most, e.g. `12.8`.
    pub cuda: Result<String, String>,
}

impl Nvidia {
    /// Loads the library.
    ///
    /// # Errors
    /// There is none, or no driver behind it: in words.
    pub fn open(library: Option<&Path>) -> Result<Nvidia, String> {
        let opened = match library {
            Some(p) => Nvml::builder().lib_path(p.as_os_str()).init(),
            None => Nvml::init(),
        };
        match opened {
            Ok(nvml) => Ok(Nvidia {
                nvml,
                known: Vec::new(),
            }),
            Err(NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound) => {
                Err("the driver's library libnvidia-ml.so.1 is not here".into())
            }
            Err(e) => Err(words(&e)),
        }
    }

    /// Of driver and CUDA.
    pub fn versions(&self) -> Versions {
        Versions {
            driver: self.nvml.sys_driver_version().map_err(|e| words(&e)),
            cuda: self
                .nvml
                .sys_cuda_driver_version()
                .map(|v| format!("{}.{}", v / 1000, v % 1000 / 10))
                .map_err(|e| words(&e)),
        }
    }

    fn device(&mut self, index: u32) -> DeviceReading {
        let at = index as usize;
        let handle = self.nvml.device_by_index(index);
        if self.known.len() <= at {
            self.known.resize(at + 1, None);
        }
        if self.known[at].is_none()
            && let Ok(d) = &handle
        {
            let pci = d.pci_info().ok().map(|p| short_bus(&p.bus_id));
            let key = d.uuid().ok().or_else(|| pci.clone());
            self.known[at] = Some(Known {
                key: key.unwrap_or_else(|| format!("nvidia{index}")),
                name: d.name().unwrap_or_else(|_| "NVIDIA GPU".into()),
                pci,
            });
        }
        let known = self.known[at].clone().unwrap_or_else(|| Known {
            key: format!("nvidia{index}"),
            name: "NVIDIA GPU".into(),
            pci: None,
        });
        let mut out = DeviceReading::new(Source::Nvml, index, known.key, known.name);
        out.pci = known.pci;
        match handle {
            Ok(d) => fill(&d, &mut out),
            Err(e) => out.troubles.push(words(&e)),
        }
        out
    }
}

/// NVML writes eight digits of the domain; the kernel and people write four.
fn short_bus(id: &str) -> String {
    let id = id.to_ascii_lowercase();
    match id.split_once(':') {
        Some((domain, rest)) if domain.len() == 8 && domain.starts_with("0000") => {
            format!("{}:{rest}", &domain[4..])
        }
        _ => id,
    }
}

fn fill(d: &Device<'_>, out: &mut DeviceReading) {
    let divided = d.mig_mode().is_ok_and(|m| m.current == 1);
    match memory(d) {
        Ok(m) => out.memory = Some(m),
        Err(NvmlError::NotSupported) if divided => {}
        Err(e) => {
            out.troubles.push(format!("memory: {}", words(&e)));
            // a device off the bus fails every further call, each after a wait
            if matches!(e, NvmlError::GpuLost) {
                return;
            }
        }
    }
    // a divided device counts no time as a whole
    out.busy_pct = d.utilization_rates().ok().map(|u| u.gpu);
    if divided {
        for i in 0..d.mig_device_count().unwrap_or(0) {
            match d.mig_device_by_index(i) {
                Ok(m) => {
                    let ps = processes(&m, &mut Vec::new());
                    out.instances.push(Instance {
                        uuid: m.uuid().unwrap_or_default(),
                        name: m.name().unwrap_or_else(|_| format!("MIG {i}")),
                        gpu_instance: ps.iter().find_map(|p| p.gpu_instance),
                        memory: memory(&m).ok(),
                    });
                    out.processes.extend(ps);
                }
                // places that hold no instance
                Err(NvmlError::NotFound | NvmlError::InvalidArg) => {}
                Err(e) => out.troubles.push(format!("MIG {i}: {}", words(&e))),
            }
        }
    }
    let mut troubles = Vec::new();
    for p in processes(d, &mut troubles) {
        if !out
            .processes
            .iter()
            .any(|q| q.pid == p.pid && q.gpu_instance == p.gpu_instance)
        {
            out.processes.push(p);
        }
    }
    if !divided {
        out.troubles.append(&mut troubles);
    }
}

fn memory(d: &Device<'_>) -> Result<Memory, NvmlError> {
    let m = d.memory_info()?;
    Ok(Memory {
        total: m.total,
        used: m.used,
        reserved: Some(m.reserved),
        free: m.free,
    })
}

/// Compute and graphics processes, each once. A process that computes and draws is in both lists with the same bytes.
fn processes(d: &Device<'_>, troubles: &mut Vec<String>) -> Vec<Process> {
    let mut out: Vec<Process> = Vec::new();
    type List = fn(&Device<'_>) -> Result<Vec<ProcessInfo>, NvmlError>;
    let kinds: [(Use, List); 2] = [
        (Use::Compute, |d| d.running_compute_processes()),
        (Use::Graphics, |d| d.running_graphics_processes()),
    ];
    for (what, list) in kinds {
        let list = match list(d) {
            // more processes than a moment ago: ask again
            Err(NvmlError::InsufficientSize(_)) => list(d),
            l => l,
        };
        match list {
            Ok(all) => {
                for p in all {
                    let bytes = match p.used_gpu_memory {
                        UsedGpuMemory::Used(b) => Some(b),
                        UsedGpuMemory::Unavailable => None,
                    };
                    match out
                        .iter_mut()
                        .find(|o| o.pid == p.pid && o.gpu_instance == p.gpu_instance_id)
                    {
                        Some(o) => {
                            o.bytes = o.bytes.max(bytes);
                            o.what = Use::Both;
                        }
                        None => out.push(Process {
                            pid: p.pid,
                            bytes,
                            what,
                            gpu_instance: p.gpu_instance_id,
                            ..Process::default()
                        }),
                    }
                }
            }
            Err(NvmlError::NotSupported) => {}
            Err(e) => {
                let text = format!("processes: {}", words(&e));
                if !troubles.contains(&text) {
                    troubles.push(text);
                }
            }
        }
    }
    out
}

/// The library's errors as sentences that say what to do.
fn words(e: &NvmlError) -> String {
    match e {
        NvmlError::GpuLost => "the device has fallen off the bus (see the kernel's log for Xid 79); a restart of the machine is the usual way back".into(),
        NvmlError::DriverNotLoaded => "the NVIDIA driver is not loaded".into(),
        NvmlError::LibRmVersionMismatch => "library and kernel module are of different driver versions: restart after the driver's update".into(),
        NvmlError::NoPermission => "this user may not ask".into(),
        NvmlError::ResetRequired => "the device needs a reset".into(),
        NvmlError::FailedToLoadSymbol(s) => format!("the driver is too old for this question ({s})"),
        e => e.to_string(),
    }
}

impl Reader for Nvidia {
    fn read(&mut self) -> Result<Vec<DeviceReading>, DeviceError> {
        let count = match self.nvml.device_count() {
            Ok(n) => n,
            // what was known is still shown, with the trouble
            Err(e) if self.known.is_empty() => {
                return Err(DeviceError::Interface("NVML", words(&e)));
            }
            Err(_) => 0,
        };
        let known = u32::try_from(self.known.len()).unwrap_or(u32::MAX);
        Ok((0..count.max(known)).map(|i| self.device(i)).collect())
    }
}
