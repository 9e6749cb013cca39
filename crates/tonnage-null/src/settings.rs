//! What the environment asks for: devices, report, world. The contract is in the crate's README.

use serde::Deserialize;
use std::path::PathBuf;

/// The only layout of a device file that this library reads.
pub const DEVICE_SCHEMA: &str = "tonnage.null-device/1";

/// The devices of one machine, as the program wrote them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// [`DEVICE_SCHEMA`].
    pub schema: String,
    /// What NVML and the driver say their version is.
    #[serde(default = "default_driver")]
    pub driver_version: String,
    /// In the order of their indices.
    pub devices: Vec<Device>,
}

fn default_driver() -> String {
    "580.65.06".to_string()
}

/// One card. Sizes are bytes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// The catalog's identifier, for the report only.
    #[serde(default)]
    pub id: String,
    /// The name that the driver gives.
    pub name: String,
    /// Compute capability, `major.minor`.
    #[serde(deserialize_with = "capability")]
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub sms: u32,
    /// What `cudaMemGetInfo` calls total.
    pub total_bytes: u64,
    /// Charged once for each process that uses the device.
    #[serde(default)]
    pub context_bytes: u64,
    /// Held by others before the run.
    #[serde(default)]
    pub used_bytes: u64,
    /// Resident threads of one multiprocessor.
    #[serde(default)]
    pub threads_per_sm: Option<u32>,
    /// Shared memory of one multiprocessor.
    #[serde(default)]
    pub shared_per_sm_bytes: Option<u32>,
    /// Shared memory that one block may ask for.
    #[serde(default)]
    pub shared_per_block_bytes: Option<u32>,
    /// Second-level cache.
    #[serde(default)]
    pub l2_bytes: Option<u32>,
    /// Clock of the multiprocessors.
    #[serde(default)]
    pub clock_khz: Option<u32>,
    /// Clock of the memory.
    #[serde(default)]
    pub memory_clock_khz: Option<u32>,
    /// Width of the memory's bus.
    #[serde(default)]
    pub memory_bus_bits: Option<u32>,
    /// Error correction is on.
    #[serde(default)]
    pub ecc: Option<bool>,
}

fn capability<'de, D: serde::Deserializer<'de>>(d: D) -> Result<(u32, u32), D::Error> {
    let text = String::deserialize(d)?;
    text.split_once('.')
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
        .filter(|&(major, minor)| (3..100).contains(&major) && minor < 10)
        .ok_or_else(|| serde::de::Error::custom(format!("capability {text:?} is not like \"8.6\"")))
}

impl Device {
    /// Capability as one number: 8.6 is 86.
    pub fn arch(&self) -> u32 {
        self.capability.0 * 10 + self.capability.1
    }

    /// Resident threads of one multiprocessor (CUDA C++ Programming Guide, table of technical specifications per
    /// compute capability).
    pub fn threads_per_sm(&self) -> u32 {
        self.threads_per_sm.unwrap_or(match self.arch() {
            75 => 1024,
            86..=89 | 110.. => 1536,
            _ => 2048,
        })
    }

    /// Shared memory of one multiprocessor (same table).
    pub fn shared_per_sm(&self) -> u32 {
        let kib = match self.arch() {
            52 | 61 | 70 | 72 => 96,
            75 | 50 | 60 | 53 | 62 => 64,
            80 | 87 => 164,
            86 | 89 | 120..=129 => 100,
            90..=119 => 228,
            _ => 96,
        };
        self.shared_per_sm_bytes.unwrap_or(kib << 10)
    }

    /// Second-level cache; 40 MiB where the file has no figure.
    pub fn l2(&self) -> u32 {
        self.l2_bytes.unwrap_or(40 << 20)
    }

    /// Clock of the multiprocessors in kHz.
    pub fn clock(&self) -> u32 {
        self.clock_khz.unwrap_or(1_410_000)
    }

    /// Clock of the memory in kHz.
    pub fn memory_clock(&self) -> u32 {
        self.memory_clock_khz.unwrap_or(1_215_000)
    }

    /// Width of the memory's bus.
    pub fn bus_bits(&self) -> u32 {
        self.memory_bus_bits.unwrap_or(5120)
    }

    /// Error correction; on where the file does not say.
    pub fn ecc(&self) -> bool {
        self.ecc.unwrap_or(true)
    }

    /// Shared memory that one block may opt in to: that of the multiprocessor less 1 KiB from 8.0 on (same table).
    pub fn shared_per_block(&self) -> u32 {
        self.shared_per_block_bytes.unwrap_or(match self.arch() {
            0..70 => 48 << 10,
            70 | 72 => 96 << 10,
            75 => 64 << 10,
            _ => self.shared_per_sm() - 1024,
        })
    }
}

/// Everything that the environment says.
#[derive(Debug, Default)]
pub struct Settings {
    /// None where no device was asked for or the file cannot be used.
    pub machine: Option<Machine>,
    /// Where the report goes.
    pub report: Option<PathBuf>,
    /// Every allocation is a line of the report.
    pub allocations: bool,
    /// No announcement, no mark in the name.
    pub quiet: bool,
    /// Mailbox of a world of several processes.
    pub world_dir: Option<PathBuf>,
    /// World size and rank of a single process that plays one rank.
    pub world: Option<(u32, u32)>,
    /// Sentences for the user about what could not be used.
    pub complaints: Vec<String>,
}

impl Settings {
    /// Reads the environment and the device file.
    pub fn from_environment() -> Settings {
        let var = |name| std::env::var_os(name).filter(|v| !v.is_empty());
        let number = |name| var(name).and_then(|v| v.to_str()?.parse::<u32>().ok());
        let mut settings = Settings {
            report: var("TONNAGE_NULL_REPORT").map(PathBuf::from),
            allocations: var("TONNAGE_NULL_ALLOCATIONS").is_some_and(|v| v != "0"),
            quiet: var("TONNAGE_NULL_QUIET").is_some_and(|v| v != "0"),
            world_dir: var("TONNAGE_NULL_WORLD_DIR").map(PathBuf::from),
            world: number("TONNAGE_NULL_WORLD").zip(number("TONNAGE_NULL_RANK")),
            ..Settings::default()
        };
        if let Some(value) = var("TONNAGE_NULL_DEVICE") {
            let text = match value.to_str() {
                Some(inline) if inline.trim_start().starts_with('{') => Ok(inline.to_string()),
                _ => {
                    std::fs::read_to_string(&value).map_err(|e| format!("{}: {e}", value.display()))
                }
            };
            match text.and_then(|t| parse_machine(&t)) {
                Ok(machine) => settings.machine = Some(machine),
                Err(e) => settings
                    .complaints
                    .push(format!("TONNAGE_NULL_DEVICE: {e}")),
            }
        }
        settings
    }
}

/// Reads a device file's text.
pub fn parse_machine(text: &str) -> Result<Machine, String> {
    let machine: Machine = serde_json::from_str(text).map_err(|e| e.to_string())?;
    if machine.schema != DEVICE_SCHEMA {
        return Err(format!(
            "schema {:?} is not {DEVICE_SCHEMA:?}",
            machine.schema
        ));
    }
    if machine.devices.len() > crate::MAX_DEVICES {
        return Err(format!("more than {} devices", crate::MAX_DEVICES));
    }
    for d in &machine.devices {
        if d.total_bytes == 0 || d.total_bytes > 1 << 40 {
            return Err(format!(
                "{}: total_bytes {} is not a card's",
                d.name, d.total_bytes
            ));
        }
        if d.context_bytes.saturating_add(d.used_bytes) > d.total_bytes {
            return Err(format!(
                "{}: context and used bytes exceed the total",
                d.name
            ));
        }
    }
    Ok(machine)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = r#"{"schema":"tonnage.null-device/1","devices":[{"name":"T","capability":"8.6","sms":28,"total_bytes":12000000000}]}"#;

    #[test]
    fn figures_of_the_capability_where_the_file_has_none() {
        let d = parse_machine(ONE).unwrap().devices.remove(0);
        assert_eq!(
            (
                d.arch(),
                d.threads_per_sm(),
                d.shared_per_sm(),
                d.shared_per_block()
            ),
            (86, 1536, 102400, 101376)
        );
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        assert!(
            parse_machine(&ONE.replace("sms", "smx"))
                .unwrap_err()
                .contains("smx")
        );
        assert!(
            parse_machine(&ONE.replace("8.6", "86"))
                .unwrap_err()
                .contains("86")
        );
        assert!(parse_machine(&ONE.replace("device/1", "device/2")).is_err());
    }
}
