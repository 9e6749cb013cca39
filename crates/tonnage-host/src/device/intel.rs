//! Intel cards, as far as the i915 and xe drivers speak to everybody: names and processes (fdinfo). The kernel has no public file for a
//! card's whole memory; where the driver offers `lmem_total_bytes` (i915 of Intel's own packages) it is used, else the total is said to be unknown.

use super::{DeviceError, DeviceReading, Memory, Process, Reader, Source, Use, fdinfo, pci};
use std::path::{Path, PathBuf};

/// The i915 and xe drivers.
pub struct Intel {
    root: PathBuf,
    cards: Vec<PathBuf>,
}

impl Intel {
    /// Where there is a card.
    pub fn open(root: &Path) -> Option<Intel> {
        let cards = super::amdgpu::cards(root, &["i915", "xe"]);
        (!cards.is_empty()).then(|| Intel {
            root: root.into(),
            cards,
        })
    }
}

/// Memory on the card: `vramN` of xe, `localN` of i915. `system`, `gtt` and `stolen` are the machine's own.
fn on_card(region: &str) -> bool {
    let numbered = |p: &str| {
        region
            .strip_prefix(p)
            .is_some_and(|n| n.chars().all(|c| c.is_ascii_digit()))
    };
    numbered("vram") || numbered("local")
}

impl Reader for Intel {
    fn read(&mut self) -> Result<Vec<DeviceReading>, DeviceError> {
        let held = fdinfo::by_process(&self.root, &["i915", "xe"], on_card);
        let mut out = Vec::new();
        for (index, card) in self.cards.iter().enumerate() {
            let device = card.join("device");
            let at = pci::uevent(&device, "PCI_SLOT_NAME");
            let id = pci::hex(&device.join("device")).unwrap_or(0);
            let name = pci::pci_name(&self.root, 0x8086, id)
                .unwrap_or_else(|| format!("Intel GPU 8086:{id:04x}"));
            let key = at.clone().unwrap_or_else(|| card.display().to_string());
            let mut d = DeviceReading::new(
                Source::Intel,
                u32::try_from(index).unwrap_or(u32::MAX),
                key,
                name,
            );
            let mut used = 0u64;
            for ((_, pid), b) in held.iter().filter(|(k, _)| Some(&k.0) == at.as_ref()) {
                used = used.saturating_add(*b);
                d.processes.push(Process {
                    pid: *pid,
                    bytes: Some(*b),
                    what: Use::Both,
                    ..Process::default()
                });
            }
            match pci::number(&card.join("lmem_total_bytes")) {
                Some(total) => {
                    let free = pci::number(&card.join("lmem_avail_bytes"))
                        .unwrap_or(total.saturating_sub(used));
                    d.memory = Some(Memory {
                        total,
                        used: total.saturating_sub(free),
                        reserved: None,
                        free,
                    });
                }
                None => d.troubles.push(format!(
                    "this driver states no total of the card's memory to users; the processes that can be read hold {used} bytes"
                )),
            }
            d.pci = at;
            out.push(d);
        }
        Ok(out)
    }
}
