//! AMD cards by the files of the amdgpu driver (kernel documentation, gpu/amdgpu/driver-misc.rst: `mem_info_vram_total`,
//! `mem_info_vram_used`, `gpu_busy_percent`, `product_name`, `unique_id`), processes by fdinfo and by the compute driver's
//! `/sys/class/kfd/kfd/proc/PID/vram_GPUID`.

use super::{DeviceError, DeviceReading, Memory, Process, Reader, Source, Use, fdinfo, pci};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// `/sys/class/drm/cardN` of one driver, in order.
pub(super) fn cards(root: &Path, drivers: &[&str]) -> Vec<PathBuf> {
    let Ok(all) = std::fs::read_dir(root.join("sys/class/drm")) else {
        return Vec::new();
    };
    let mut found: Vec<(u32, PathBuf)> = all
        .flatten()
        .filter_map(|e| {
            let n: u32 = e.file_name().to_str()?.strip_prefix("card")?.parse().ok()?;
            let device = e.path().join("device");
            let driver = pci::uevent(&device, "DRIVER")?;
            drivers.contains(&driver.as_str()).then(|| (n, e.path()))
        })
        .collect();
    found.sort();
    found.into_iter().map(|f| f.1).collect()
}

/// The amdgpu driver.
pub struct Amd {
    root: PathBuf,
    cards: Vec<PathBuf>,
}

impl Amd {
    /// Where there is a card.
    pub fn open(root: &Path) -> Option<Amd> {
        let cards = cards(root, &["amdgpu"]);
        (!cards.is_empty()).then(|| Amd {
            root: root.into(),
            cards,
        })
    }

    /// (PCI address, pid) -> bytes that the compute driver counts.
    fn compute(&self) -> BTreeMap<(String, u32), u64> {
        let kfd = self.root.join("sys/class/kfd/kfd");
        let mut address: BTreeMap<String, String> = BTreeMap::new();
        for node in std::fs::read_dir(kfd.join("topology/nodes"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let Some(id) = pci::line(&node.path().join("gpu_id")).filter(|i| i != "0") else {
                continue;
            };
            let Ok(text) = std::fs::read_to_string(node.path().join("properties")) else {
                continue;
            };
            let value = |k: &str| {
                text.lines()
                    .find_map(|l| l.strip_prefix(k)?.strip_prefix(' '))
                    .and_then(|v| v.trim().parse::<u32>().ok())
            };
            if let Some(l) = value("location_id") {
                let domain = value("domain").unwrap_or(0);
                let at = format!(
                    "{domain:04x}:{:02x}:{:02x}.{:x}",
                    l >> 8 & 0xff,
                    l >> 3 & 0x1f,
                    l & 7
                );
                address.insert(id, at);
            }
        }
        let mut out = BTreeMap::new();
        for p in std::fs::read_dir(kfd.join("proc"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let Some(pid) = p.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
                continue;
            };
            for (id, at) in &address {
                if let Some(b) = pci::number(&p.path().join(format!("vram_{id}"))) {
                    out.insert((at.clone(), pid), b);
                }
            }
        }
        out
    }

    fn name(&self, device: &Path) -> String {
        if let Some(n) = pci::line(&device.join("product_name")) {
            return n;
        }
        let id = pci::hex(&device.join("device")).unwrap_or(0);
        let revision = pci::hex(&device.join("revision")).unwrap_or(0);
        pci::amd_name(&self.root, id, revision)
            .or_else(|| pci::pci_name(&self.root, 0x1002, id))
            .unwrap_or_else(|| format!("AMD GPU 1002:{id:04x}"))
    }
}

impl Reader for Amd {
    fn read(&mut self) -> Result<Vec<DeviceReading>, DeviceError> {
        let drawing = fdinfo::by_process(&self.root, &["amdgpu"], |r| r == "vram");
        let compute = self.compute();
        let mut out = Vec::new();
        for (index, card) in self.cards.iter().enumerate() {
            let device = card.join("device");
            let at = pci::uevent(&device, "PCI_SLOT_NAME");
            let key = pci::line(&device.join("unique_id"))
                .or_else(|| at.clone())
                .unwrap_or_else(|| card.display().to_string());
            let mut d = DeviceReading::new(
                Source::Amdgpu,
                u32::try_from(index).unwrap_or(u32::MAX),
                key,
                self.name(&device),
            );
            d.pci.clone_from(&at);
            d.busy_pct =
                pci::number(&device.join("gpu_busy_percent")).and_then(|p| u32::try_from(p).ok());
            let file = |n: &str| pci::number(&device.join(n));
            match (file("mem_info_vram_total"), file("mem_info_vram_used")) {
                (Some(total), Some(used)) => {
                    d.memory = Some(Memory {
                        total,
                        used,
                        reserved: None,
                        free: total.saturating_sub(used),
                    });
                }
                _ => d.troubles.push(
                    "the driver's mem_info_vram files cannot be read: is the device gone?".into(),
                ),
            }
            let mut by_pid: BTreeMap<u32, (Option<u64>, Option<u64>)> = BTreeMap::new();
            for ((_, pid), b) in drawing.iter().filter(|(k, _)| Some(&k.0) == at.as_ref()) {
                by_pid.entry(*pid).or_default().0 = Some(*b);
            }
            for ((_, pid), b) in compute.iter().filter(|(k, _)| Some(&k.0) == at.as_ref()) {
                by_pid.entry(*pid).or_default().1 = Some(*b);
            }
            for (pid, (drawn, computed)) in by_pid {
                // recent kernels count compute memory in fdinfo as well: the larger is the sum
                d.processes.push(Process {
                    pid,
                    bytes: drawn.max(computed),
                    what: match (drawn, computed) {
                        (Some(_), Some(_)) => Use::Both,
                        (None, _) => Use::Compute,
                        _ => Use::Graphics,
                    },
                    ..Process::default()
                });
            }
            out.push(d);
        }
        Ok(out)
    }
}
