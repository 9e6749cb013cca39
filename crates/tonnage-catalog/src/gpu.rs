//! GPUs: one row of `catalog/gpus.csv` each, found by id, alias or the driver's name, parsed one at a time.

use std::num::{NonZeroU32, NonZeroU64};

use crate::csv;
use crate::gpu_file::Row;
pub use crate::gpu_file::{COLUMNS, GpuFileError};
use crate::gpu_file::{REQUIRED, column_index};
use crate::key::{normalise, without_vendor};
use crate::lookup::{LookupError, equal_range, nearest};

static TEXT: &str = include_str!(concat!(env!("OUT_DIR"), "/gpus.csv"));
static KEYS: &[(&str, u8, u16)] = include!(concat!(env!("OUT_DIR"), "/gpus_keys.rs"));
static ROWS: &[(u32, u32)] = include!(concat!(env!("OUT_DIR"), "/gpus_rows.rs"));

/// Whose device it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vendor {
    /// CUDA devices.
    Nvidia,
    /// ROCm devices.
    Amd,
    /// Arc, Data Center GPU Max, Gaudi.
    Intel,
    /// Metal devices.
    Apple,
}

/// CUDA compute capability, `major.minor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ComputeCapability {
    /// Generation.
    pub major: u8,
    /// Variant.
    pub minor: u8,
}

/// Dense matrix rates in TFLOP/s (TOP/s for int8), without sparsity. `None`: not published or not supported.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Single precision outside the matrix units.
    pub fp32: Option<f64>,
    /// TF32.
    pub tf32: Option<f64>,
    /// Half precision.
    pub fp16: Option<f64>,
    /// bfloat16.
    pub bf16: Option<f64>,
    /// FP8.
    pub fp8: Option<f64>,
    /// 8-bit integers.
    pub int8: Option<f64>,
    /// FP4.
    pub fp4: Option<f64>,
}

/// What CUDA calls the device's total memory, in MiB, as seen in public logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaTotal {
    /// Smallest seen.
    pub low: u64,
    /// With a current driver.
    pub expected: u64,
    /// Largest seen.
    pub high: u64,
    /// Where.
    pub source: String,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct Gpu {
    /// Our id, e.g. `h100-sxm`.
    pub id: String,
    /// The driver's name.
    pub name: String,
    /// Vendor.
    pub vendor: Vendor,
    /// Architecture's name.
    pub architecture: String,
    /// NVIDIA only.
    pub compute_capability: Option<ComputeCapability>,
    /// AMD only: the compiler's target, e.g. `gfx942`.
    pub gfx: Option<String>,
    /// The figure on the box, in the vendor's GB. Not usable for a prediction: see [`crate::device::usable`].
    pub memory_gb_marketed: NonZeroU32,
    /// What the driver (`nvidia-smi`) reports in total, in MiB.
    pub memory_mib_reported: Option<NonZeroU64>,
    /// Whether that figure was seen in a public listing; otherwise it follows a sibling card's pattern.
    pub reported_seen: bool,
    /// Whether that figure holds with error correction on (`Some(true)`) or off, where it makes a difference.
    pub ecc: Option<bool>,
    /// What CUDA calls total, where it was seen.
    pub cuda_total: Option<CudaTotal>,
    /// e.g. `HBM3`.
    pub memory_type: String,
    /// GB/s (10^9).
    pub bandwidth_gb_s: Option<f64>,
    /// Matrix rates.
    pub rates: Rates,
    /// Links, in words.
    pub interconnect: String,
    /// Board power in watts.
    pub tdp_w: Option<u32>,
    /// bfloat16 arithmetic.
    pub bf16: bool,
    /// FP8 matrix arithmetic.
    pub fp8: bool,
    /// FlashAttention-2 runs on it.
    pub flash_attention2: bool,
    /// Year of release.
    pub release_year: Option<u16>,
    /// Multiprocessors.
    pub sm_count: Option<u32>,
    /// Where `sm_count` is from.
    pub sm_source: String,
    /// Resident threads per multiprocessor, by compute capability (CUDA programming guide, table of technical
    /// specifications per compute capability).
    pub max_threads_per_sm: Option<u32>,
    /// Other names.
    pub aliases: Vec<String>,
    /// Where the row's figures are from.
    pub source: String,
    /// `high`, `medium-high`, `medium`, `low`, or empty.
    pub confidence: String,
    /// When the row was last written (ISO date), or empty.
    pub recorded: String,
    /// Remarks.
    pub notes: String,
}

impl Gpu {
    /// Whether `key` (normalised) is one of this GPU's names of a kind: 0 id, 1 driver's name, 2 alias.
    fn has_name(&self, key: &str, kind: u8) -> bool {
        match kind {
            0 => normalise(&self.id) == key,
            1 => normalise(&self.name) == key,
            _ => {
                self.aliases.iter().any(|a| normalise(a) == key)
                    || without_vendor(&self.name).is_some_and(|n| normalise(n) == key)
            }
        }
    }
}

fn builtin_row(n: usize) -> Result<Gpu, GpuFileError> {
    let line = n + 2;
    let Some(&(a, b)) = ROWS.get(n) else {
        return Err(GpuFileError::Quoting { line });
    };
    let fields =
        csv::fields(&TEXT[a as usize..b as usize]).ok_or(GpuFileError::Quoting { line })?;
    Gpu::from_row(Row::new(line, fields))
}

/// The catalog of GPUs: the built-in rows and, before them, the caller's.
#[derive(Clone, Debug, Default)]
pub struct Gpus {
    own: Vec<Gpu>,
}

impl Gpus {
    /// The built-in rows only. Costs nothing: rows are parsed when asked for.
    pub const fn builtin() -> Self {
        Self { own: Vec::new() }
    }

    /// The built-in rows with those of `text` (a CSV with a header, columns in any order, at least `id`, `name`, `vendor`,
    /// `memory_gb_marketed`, `source`) before them. A row whose id is built in replaces it.
    ///
    /// # Errors
    /// The first line that cannot be taken, and why.
    pub fn with_overlay(text: &str) -> Result<Self, GpuFileError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut lines = text.lines().enumerate();
        let header = lines.next().map_or("", |(_, l)| l);
        let header = csv::fields(header).ok_or(GpuFileError::Quoting { line: 1 })?;
        let mut place = Vec::with_capacity(header.len());
        for column in &header {
            let column = column.trim();
            let Some(n) = column_index(column) else {
                let all = COLUMNS.iter().map(|c| (*c, (*c).to_owned()));
                return Err(GpuFileError::UnknownColumn {
                    column: column.to_owned(),
                    nearest: nearest(column, all).into_iter().next(),
                });
            };
            if place.contains(&n) {
                return Err(GpuFileError::DuplicateColumn(COLUMNS[n].to_owned()));
            }
            place.push(n);
        }
        for column in REQUIRED {
            if !place.iter().any(|n| COLUMNS[*n] == column) {
                return Err(GpuFileError::MissingColumn(column));
            }
        }
        let mut own: Vec<Gpu> = Vec::new();
        for (n, text) in lines {
            let line = n + 1;
            if text.trim().is_empty() || text.starts_with('#') {
                continue;
            }
            let found = csv::fields(text).ok_or(GpuFileError::Quoting { line })?;
            if found.len() != place.len() {
                return Err(GpuFileError::FieldCount {
                    line,
                    found: found.len(),
                    expected: place.len(),
                });
            }
            let mut fields = vec![String::new(); COLUMNS.len()];
            for (value, n) in found.into_iter().zip(&place) {
                fields[*n] = value;
            }
            let gpu = Gpu::from_row(Row::new(line, fields))?;
            let key = normalise(&gpu.id);
            if key.is_empty() {
                return Err(GpuFileError::Field {
                    line,
                    column: "id",
                    value: gpu.id,
                    problem: "needs a letter or a digit",
                });
            }
            if own.iter().any(|g| normalise(&g.id) == key) {
                return Err(GpuFileError::DuplicateId { line, id: gpu.id });
            }
            own.push(gpu);
        }
        Ok(Self { own })
    }

    /// These rows and `more`'s.
    ///
    /// # Errors
    /// Both have a row of the same id.
    pub fn and(mut self, more: Gpus) -> Result<Gpus, GpuFileError> {
        if let Some(twice) = more.own.iter().find(|g| self.replaced(&g.id)) {
            return Err(GpuFileError::DuplicateId {
                line: 1,
                id: twice.id.clone(),
            });
        }
        self.own.extend(more.own);
        Ok(self)
    }

    /// Whether the caller's rows replace the built-in row `id`.
    fn replaced(&self, id: &str) -> bool {
        let key = normalise(id);
        self.own.iter().any(|g| normalise(&g.id) == key)
    }

    /// The GPUs that `name` stands for: by id, else by the driver's name, else by alias; the caller's rows before ours.
    fn matches(&self, name: &str) -> Vec<Gpu> {
        let key = normalise(name);
        if key.is_empty() {
            return Vec::new();
        }
        let hits = equal_range(KEYS, &key);
        for kind in 0..=2 {
            let own: Vec<Gpu> = self
                .own
                .iter()
                .filter(|g| g.has_name(&key, kind))
                .cloned()
                .collect();
            if !own.is_empty() {
                return own;
            }
            let found: Vec<Gpu> = hits
                .iter()
                .filter(|hit| hit.1 == kind)
                .filter_map(|hit| builtin_row(usize::from(hit.2)).ok())
                .filter(|g| !self.replaced(&g.id))
                .collect();
            if !found.is_empty() {
                return found;
            }
        }
        Vec::new()
    }

    /// The GPU with this id, driver's name or alias. Case, spaces and punctuation do not matter; parts of names never match.
    ///
    /// # Errors
    /// [`LookupError::Ambiguous`] when the name stands for several, [`LookupError::Unknown`] when for none.
    pub fn find(&self, name: &str) -> Result<Gpu, LookupError> {
        let mut found = self.matches(name);
        match found.len() {
            1 => Ok(found.remove(0)),
            0 => Err(LookupError::Unknown {
                what: "GPU",
                name: name.to_owned(),
                nearest: self.nearest(name),
            }),
            _ => Err(LookupError::Ambiguous {
                what: "GPU",
                name: name.to_owned(),
                candidates: found.into_iter().map(|g| g.id).collect(),
            }),
        }
    }

    /// The GPU that a driver names, told apart by its total memory in MiB (as the driver or as CUDA gives it) where
    /// several cards have the name: an RTX 3080 with 10 and with 12 GB.
    ///
    /// # Errors
    /// As [`Gpus::find`]; ambiguous too when no candidate's figure is within 5 % of `total_mib`, or two are.
    pub fn find_driver(&self, name: &str, total_mib: u64) -> Result<Gpu, LookupError> {
        let near = |g: &Gpu| {
            g.memory_mib_reported
                .is_some_and(|m| m.get().abs_diff(total_mib) * 20 <= m.get())
        };
        // The names of a family's cards are often one: look at every card of that name and of that alias.
        let mut found = self.matches(name);
        let short = without_vendor(name).map(|s| s.strip_prefix("GeForce ").unwrap_or(s));
        if !found.iter().any(near) {
            let more = short.map_or_else(Vec::new, |s| self.matches(s));
            if more.iter().any(near) {
                found = more;
            }
        }
        let candidates: Vec<String> = found.iter().map(|g| g.id.clone()).collect();
        if found.len() > 1
            || !found
                .first()
                .is_none_or(|g| near(g) || g.memory_mib_reported.is_none())
        {
            found.retain(near);
        }
        match found.len() {
            1 => Ok(found.remove(0)),
            _ if candidates.is_empty() => self.find(name),
            _ => Err(LookupError::Ambiguous {
                what: "GPU",
                name: name.to_owned(),
                candidates,
            }),
        }
    }

    fn nearest(&self, name: &str) -> Vec<String> {
        let key = normalise(name);
        let own: Vec<(String, String)> = self
            .own
            .iter()
            .map(|g| (normalise(&g.id), g.id.clone()))
            .collect();
        let builtin = KEYS
            .iter()
            .filter_map(|k| Some((k.0, builtin_row(usize::from(k.2)).ok()?.id)));
        nearest(
            &key,
            own.iter()
                .map(|(k, id)| (k.as_str(), id.clone()))
                .chain(builtin),
        )
    }

    /// Every GPU: the caller's rows, then the built-in ones that they do not replace, parsed as the iterator goes.
    pub fn iter(&self) -> impl Iterator<Item = Gpu> + '_ {
        self.own.iter().cloned().chain(
            (0..ROWS.len())
                .filter_map(|n| builtin_row(n).ok())
                .filter(|g| !self.replaced(&g.id)),
        )
    }
}

/// [`Gpus::find`] among the built-in rows.
///
/// # Errors
/// As [`Gpus::find`].
pub fn gpu(name: &str) -> Result<Gpu, LookupError> {
    Gpus::builtin().find(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_builtin_row_parses() {
        for n in 0..ROWS.len() {
            if let Err(e) = builtin_row(n) {
                panic!("catalog/gpus.csv: {e}");
            }
        }
        assert!(ROWS.len() >= 216);
        let header = TEXT.lines().next().unwrap_or_default();
        assert_eq!(header, COLUMNS.join(","));
    }
}
