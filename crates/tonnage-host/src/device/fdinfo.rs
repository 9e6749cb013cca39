//! What Linux drivers say of the memory of each process: `/proc/PID/fdinfo/N` of open DRM files
//! (kernel documentation, gpu/drm-usage-stats.rst: `drm-driver`, `drm-pdev`, `drm-client-id`, `drm-resident-REGION`,
//! `drm-memory-REGION` and `drm-total-REGION`, each a number with no unit, `KiB` or `MiB`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// One open DRM file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Client {
    pub driver: String,
    /// PCI address.
    pub device: String,
    pub id: Option<u64>,
    /// Resident bytes of each memory region.
    pub regions: BTreeMap<String, u64>,
}

/// Reads one file's text; `None` where it is no DRM file.
pub fn parse(text: &str) -> Option<Client> {
    let mut c = Client::default();
    // resident is what counts; amdgpu's older kernels have drm-memory-* only
    let mut rank: BTreeMap<String, u8> = BTreeMap::new();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim();
        match key {
            "drm-driver" => c.driver = value.into(),
            "drm-pdev" => c.device = value.into(),
            "drm-client-id" => c.id = value.parse().ok(),
            _ => {
                let found = [
                    ("drm-resident-", 3u8),
                    ("drm-memory-", 2),
                    ("drm-total-", 1),
                ]
                .iter()
                .find_map(|(p, r)| Some((key.strip_prefix(p)?, *r)));
                if let (Some((region, r)), Some(bytes)) = (found, amount(value))
                    && rank.get(region).is_none_or(|old| *old < r)
                {
                    rank.insert(region.into(), r);
                    c.regions.insert(region.into(), bytes);
                }
            }
        }
    }
    (!c.driver.is_empty()).then_some(c)
}

fn amount(text: &str) -> Option<u64> {
    let mut parts = text.split_whitespace();
    let n: u64 = parts.next()?.parse().ok()?;
    match parts.next() {
        None => Some(n),
        Some("KiB") => n.checked_mul(1 << 10),
        Some("MiB") => n.checked_mul(1 << 20),
        Some(_) => None,
    }
}

/// Of every process that can be read: (PCI address, pid) -> bytes in the regions that `counts` names. A client that several files of a
/// process (or a child that inherited them) share counts once.
pub fn by_process(
    root: &Path,
    driver: &[&str],
    counts: impl Fn(&str) -> bool,
) -> BTreeMap<(String, u32), u64> {
    let mut out: BTreeMap<(String, u32), u64> = BTreeMap::new();
    let mut seen: BTreeSet<(String, u64)> = BTreeSet::new();
    let Ok(all) = std::fs::read_dir(root.join("proc")) else {
        return out;
    };
    let mut pids: Vec<u32> = all
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    for pid in pids {
        let dir = root.join("proc").join(pid.to_string());
        let Ok(files) = std::fs::read_dir(dir.join("fdinfo")) else {
            continue;
        };
        let mut files: Vec<_> = files.flatten().map(|f| f.file_name()).collect();
        files.sort();
        for f in files {
            // where links can be read, only DRM files are opened: processes have thousands of others
            if let Ok(target) = std::fs::read_link(dir.join("fd").join(&f))
                && !target.starts_with("/dev/dri")
                && !target.starts_with("/dev/accel")
            {
                continue;
            }
            let Some(c) = std::fs::read_to_string(dir.join("fdinfo").join(&f))
                .ok()
                .and_then(|t| parse(&t))
            else {
                continue;
            };
            if !driver.contains(&c.driver.as_str()) {
                continue;
            }
            if let Some(id) = c.id
                && !seen.insert((c.device.clone(), id))
            {
                continue;
            }
            let bytes: u64 = c
                .regions
                .iter()
                .filter(|(r, _)| counts(r))
                .map(|(_, b)| *b)
                .fold(0, u64::saturating_add);
            *out.entry((c.device, pid)).or_default() += bytes;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_the_better_key_of_two() {
        let c = parse("pos:\t0\ndrm-driver:\tamdgpu\ndrm-client-id:\t7\ndrm-pdev:\t0000:03:00.0\ndrm-memory-vram:\t2048 KiB\ndrm-resident-vram:\t3 MiB\ndrm-memory-gtt: 12\ndrm-total-cpu: 9 furlongs\n").expect("a DRM file");
        assert_eq!(c.regions["vram"], 3 << 20);
        assert_eq!(c.regions["gtt"], 12);
        assert!(!c.regions.contains_key("cpu"));
        assert_eq!(c.id, Some(7));
        assert_eq!(parse("pos: 0\nflags: 02\n"), None);
    }
}
