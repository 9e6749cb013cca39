//! Devices of other machines, through what their cluster already runs: a Prometheus endpoint of NVIDIA's DCGM exporter
//! (`DCGM_FI_DEV_FB_USED`, `_FREE`, `_RESERVED`, `_TOTAL` in MiB; labels `gpu`, `UUID`, `modelName`, `Hostname`, `GPU_I_PROFILE`, `GPU_I_ID`, `pod`,
//! `namespace`, `container`), or of `tonnage watch --prometheus`.

use super::{DeviceError, DeviceReading, Instance, Memory, Process, Reader, Source};
use crate::metrics::{Sample, parse};
use std::collections::BTreeMap;
use std::io::Read;
use std::time::Duration;

/// An answer longer than this is not an exporter's.
const LONGEST: u64 = 64 << 20;

/// An endpoint.
pub struct Remote {
    url: String,
    agent: ureq::Agent,
}

impl Remote {
    /// `host:9400`, or a whole address; `/metrics` where it has no path.
    pub fn new(url: &str) -> Remote {
        let mut full = if url.contains("://") {
            url.to_string()
        } else {
            format!("http://{url}")
        };
        let path = full.split_once("://").map_or("", |p| p.1);
        if !path.contains('/') {
            full += "/metrics";
        }
        Remote {
            url: full,
            agent: ureq::Agent::config_builder()
                .timeout_global(Some(Duration::from_secs(5)))
                .build()
                .into(),
        }
    }

    fn failed(&self, what: impl std::fmt::Display) -> DeviceError {
        DeviceError::Remote {
            url: self.url.clone(),
            what: what.to_string(),
        }
    }
}

impl Reader for Remote {
    fn read(&mut self) -> Result<Vec<DeviceReading>, DeviceError> {
        let mut answer = self
            .agent
            .get(&self.url)
            .call()
            .map_err(|e| self.failed(e))?;
        let mut text = String::new();
        answer
            .body_mut()
            .as_reader()
            .take(LONGEST)
            .read_to_string(&mut text)
            .map_err(|e| self.failed(e))?;
        let samples = parse(&text).map_err(|e| self.failed(e))?;
        let found = devices(&samples);
        if found.is_empty() {
            return Err(self.failed(
                "neither DCGM_FI_DEV_FB_USED nor tonnage_device_memory_used_bytes is among its metrics",
            ));
        }
        Ok(found)
    }
}

/// The devices that an exporter's samples speak of.
pub fn devices(samples: &[Sample]) -> Vec<DeviceReading> {
    let mut out = dcgm(samples);
    out.extend(own(samples));
    out
}

/// One device's figures in MiB, by what follows `DCGM_FI_DEV_`.
type Figures = BTreeMap<String, f64>;

fn bytes(mib: f64) -> u64 {
    (mib * f64::from(1u32 << 20)).round().max(0.0) as u64
}

fn memory(f: &Figures) -> Option<Memory> {
    let used = *f.get("FB_USED")?;
    let free = *f.get("FB_FREE")?;
    let reserved = f.get("FB_RESERVED").copied();
    let total = f
        .get("FB_TOTAL")
        .copied()
        .unwrap_or(used + free + reserved.unwrap_or(0.0));
    Some(Memory {
        total: bytes(total),
        used: bytes(used),
        reserved: reserved.map(bytes),
        free: bytes(free),
    })
}

fn dcgm(samples: &[Sample]) -> Vec<DeviceReading> {
    // (host, index, UUID) -> its first sample and, by instance and profile, its figures
    type Parts = BTreeMap<(String, String), Figures>;
    let mut all: BTreeMap<(String, u32, String), (&Sample, Parts)> = BTreeMap::new();
    for s in samples {
        let Some(what) = s.name.strip_prefix("DCGM_FI_DEV_") else {
            continue;
        };
        if !what.starts_with("FB_") && what != "GPU_UTIL" {
            continue;
        }
        let host = s.label("Hostname").unwrap_or_default().to_string();
        let index = s.label("gpu").and_then(|g| g.parse().ok()).unwrap_or(0);
        let uuid = s.label("UUID").unwrap_or_default().to_string();
        let part = (
            s.label("GPU_I_ID").unwrap_or_default().to_string(),
            s.label("GPU_I_PROFILE").unwrap_or_default().to_string(),
        );
        all.entry((host, index, uuid))
            .or_insert_with(|| (s, BTreeMap::new()))
            .1
            .entry(part)
            .or_default()
            .insert(what.to_string(), s.value);
    }
    let mut out = Vec::new();
    for ((host, index, uuid), (first, parts)) in all {
        let name = first.label("modelName").unwrap_or("NVIDIA GPU");
        let key = if uuid.is_empty() {
            format!("{host}/{index}")
        } else {
            uuid
        };
        let mut d = DeviceReading::new(Source::Dcgm, index, key, name.into());
        d.host = Some(host).filter(|h| !h.is_empty());
        d.pci = first.label("pci_bus_id").map(str::to_ascii_lowercase);
        for ((id, profile), f) in &parts {
            if id.is_empty() {
                d.memory = memory(f);
                d.busy_pct = f.get("GPU_UTIL").map(|u| *u as u32);
            } else {
                d.instances.push(Instance {
                    uuid: format!("{}/gi{id}", d.key),
                    name: profile.clone(),
                    gpu_instance: id.parse().ok(),
                    memory: memory(f),
                });
            }
        }
        if d.memory.is_none() && !d.instances.is_empty() {
            // a divided device is exported by its instances only
            let sum = |get: fn(&Memory) -> u64| {
                d.instances
                    .iter()
                    .filter_map(|i| i.memory.as_ref().map(get))
                    .sum()
            };
            d.memory = Some(Memory {
                total: sum(|m| m.total),
                used: sum(|m| m.used),
                reserved: None,
                free: sum(|m| m.free),
            });
            d.troubles
                .push("memory is the sum over the instances that are exported".into());
        } else if d.memory.is_none() {
            d.troubles
                .push("the endpoint exports no FB_USED and FB_FREE of it".into());
        }
        out.push(d);
    }
    out
}

/// What `tonnage watch --prometheus` exports.
fn own(samples: &[Sample]) -> Vec<DeviceReading> {
    let mut out: Vec<DeviceReading> = Vec::new();
    for s in samples {
        let Some(what) = s.name.strip_prefix("tonnage_device_") else {
            continue;
        };
        let Some(key) = s.label("device") else {
            continue;
        };
        let at = match out.iter().position(|d| d.key == key) {
            Some(i) => i,
            None => {
                let index = s.label("index").and_then(|g| g.parse().ok()).unwrap_or(0);
                let name = s.label("name").unwrap_or("GPU");
                out.push(DeviceReading::new(
                    Source::Tonnage,
                    index,
                    key.into(),
                    name.into(),
                ));
                out.len() - 1
            }
        };
        let d = &mut out[at];
        let value = s.value.max(0.0) as u64;
        if let "memory_total_bytes"
        | "memory_used_bytes"
        | "memory_free_bytes"
        | "memory_reserved_bytes" = what
        {
            let m = d.memory.get_or_insert_default();
            match what {
                "memory_total_bytes" => m.total = value,
                "memory_used_bytes" => m.used = value,
                "memory_free_bytes" => m.free = value,
                _ => m.reserved = Some(value),
            }
        } else if what == "busy_percent" {
            d.busy_pct = u32::try_from(value).ok();
        } else if what == "process_memory_bytes"
            && let Some(pid) = s.label("pid").and_then(|p| p.parse().ok())
        {
            d.processes.push(Process {
                pid,
                bytes: Some(value),
                owner: s.label("owner").map(str::to_string),
                command: s.label("command").map(str::to_string),
                ..Process::default()
            });
        }
    }
    out
}
