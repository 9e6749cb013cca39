//! Names of PCI devices from the tables that distributions carry.

use std::path::Path;

/// A file of one short line.
pub fn line(path: &Path) -> Option<String> {
    let t = std::fs::read_to_string(path).ok()?;
    let t = t.trim();
    (!t.is_empty()).then(|| t.to_string())
}

/// A file with one number.
pub fn number(path: &Path) -> Option<u64> {
    line(path)?.parse().ok()
}

/// A hexadecimal number, with `0x` or without.
pub fn hex(path: &Path) -> Option<u32> {
    let t = line(path)?;
    u32::from_str_radix(t.trim_start_matches("0x"), 16).ok()
}

/// `KEY=value` of a `uevent` file.
pub fn uevent(device: &Path, key: &str) -> Option<String> {
    let t = std::fs::read_to_string(device.join("uevent")).ok()?;
    t.lines()
        .find_map(|l| l.strip_prefix(key)?.strip_prefix('='))
        .map(str::to_string)
}

/// libdrm's table of AMD's names: `device, revision, name`.
pub fn amd_name(root: &Path, device: u32, revision: u32) -> Option<String> {
    let t = std::fs::read_to_string(root.join("usr/share/libdrm/amdgpu.ids")).ok()?;
    t.lines().filter(|l| !l.starts_with('#')).find_map(|l| {
        let mut f = l.splitn(3, ',').map(str::trim);
        let d = u32::from_str_radix(f.next()?, 16).ok()?;
        let r = u32::from_str_radix(f.next()?, 16).ok()?;
        let name = f.next()?;
        (d == device && r == revision).then(|| name.to_string())
    })
}

/// The table of pciutils: a vendor at the line's start, its devices after one tab.
pub fn pci_name(root: &Path, vendor: u32, device: u32) -> Option<String> {
    let t = ["usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids"]
        .iter()
        .find_map(|p| std::fs::read_to_string(root.join(p)).ok())?;
    let head = format!("{vendor:04x}  ");
    let mut inside = false;
    for l in t.lines() {
        if !l.starts_with(['\t', '#']) {
            if inside {
                return None;
            }
            inside = l.starts_with(&head);
        } else if inside
            && let Some(r) = l.strip_prefix('\t')
            && let Some((id, name)) = r.split_once("  ")
            && u32::from_str_radix(id, 16) == Ok(device)
        {
            return Some(name.trim().to_string());
        }
    }
    None
}
