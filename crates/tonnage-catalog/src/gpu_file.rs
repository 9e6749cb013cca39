//! The lines of a GPU file: columns, errors, and one line to one [`Gpu`].

use std::num::{NonZeroU32, NonZeroU64};

use crate::gpu::{ComputeCapability, CudaTotal, Gpu, Rates, Vendor};

/// The columns of a GPU file, in the order of the built-in one.
pub const COLUMNS: [&str; 35] = [
    "id",
    "name",
    "vendor",
    "architecture",
    "compute_capability",
    "memory_gb_marketed",
    "memory_mib_reported",
    "memory_type",
    "bandwidth_gb_s",
    "fp32_tflops",
    "tf32_tflops_dense",
    "fp16_tflops_dense",
    "bf16_tflops_dense",
    "fp8_tflops_dense",
    "int8_tops_dense",
    "fp4_tflops_dense",
    "interconnect",
    "tdp_w",
    "bf16_support",
    "fp8_support",
    "flash_attn2_support",
    "release_year",
    "source",
    "confidence",
    "aliases",
    "notes",
    "sm_count",
    "sm_source",
    "max_threads_per_sm",
    "cuda_total_mib_low",
    "cuda_total_mib_expected",
    "cuda_total_mib_high",
    "cuda_total_source",
    "ecc",
    "recorded",
];
/// Columns a row cannot leave empty: a number without its source is not taken.
pub(crate) const REQUIRED: [&str; 5] = ["id", "name", "vendor", "memory_gb_marketed", "source"];

/// What is wrong with a GPU file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpuFileError {
    /// The header has a column that is not known.
    #[error("line 1: unknown column \"{column}\"{}", nearest.as_ref().map(|n| format!("; did you mean \"{n}\"?")).unwrap_or_default())]
    UnknownColumn {
        /// As written.
        column: String,
        /// The most similar known column.
        nearest: Option<String>,
    },
    /// A column is named twice.
    #[error("line 1: column \"{0}\" appears twice")]
    DuplicateColumn(String),
    /// A needed column is not in the header.
    #[error("line 1: column \"{0}\" is missing")]
    MissingColumn(&'static str),
    /// Quotes do not match.
    #[error("line {line}: bad quoting")]
    Quoting {
        /// Line, from 1.
        line: usize,
    },
    /// The number of fields differs from the header's.
    #[error("line {line}: {found} fields, the header has {expected}")]
    FieldCount {
        /// Line, from 1.
        line: usize,
        /// Fields on this line.
        found: usize,
        /// Fields in the header.
        expected: usize,
    },
    /// A field does not hold what its column means.
    #[error("line {line}: {column} = \"{value}\": {problem}")]
    Field {
        /// Line, from 1.
        line: usize,
        /// Column.
        column: &'static str,
        /// As written.
        value: String,
        /// What was expected.
        problem: &'static str,
    },
    /// Two rows have one id.
    #[error("line {line}: id \"{id}\" appears twice")]
    DuplicateId {
        /// Line, from 1.
        line: usize,
        /// The id.
        id: String,
    },
}

type Field = (&'static str, String);

/// One line's fields in the order of [`COLUMNS`]; columns that the file lacks are empty.
pub(crate) struct Row {
    line: usize,
    fields: Vec<String>,
}

pub(crate) fn column_index(name: &str) -> Option<usize> {
    COLUMNS.iter().position(|c| *c == name)
}

impl Row {
    pub(crate) fn new(line: usize, fields: Vec<String>) -> Self {
        Self { line, fields }
    }

    fn take(&mut self, column: &'static str) -> String {
        match column_index(column) {
            Some(n) => std::mem::take(&mut self.fields[n]).trim().to_owned(),
            None => String::new(),
        }
    }

    fn wrong(&self, (column, value): Field, problem: &'static str) -> GpuFileError {
        GpuFileError::Field {
            line: self.line,
            column,
            value,
            problem,
        }
    }

    fn parse<T: std::str::FromStr>(
        &mut self,
        column: &'static str,
        problem: &'static str,
    ) -> Result<Option<T>, GpuFileError> {
        let text = self.take(column);
        if text.is_empty() {
            return Ok(None);
        }
        text.parse()
            .map(Some)
            .map_err(|_| self.wrong((column, text), problem))
    }

    /// A rate or bandwidth: finite and above zero.
    fn rate(&mut self, column: &'static str) -> Result<Option<f64>, GpuFileError> {
        let value: Option<f64> = self.parse(column, "expected a number above zero")?;
        match value {
            Some(v) if !(v.is_finite() && v > 0.0) => {
                Err(self.wrong((column, v.to_string()), "expected a number above zero"))
            }
            other => Ok(other),
        }
    }

    fn flag(&mut self, column: &'static str) -> Result<bool, GpuFileError> {
        match self.take(column).as_str() {
            "true" => Ok(true),
            "false" | "" => Ok(false),
            other => Err(self.wrong((column, other.to_owned()), "expected true or false")),
        }
    }
}

impl Gpu {
    /// One GPU from a line of a file.
    pub(crate) fn from_row(mut row: Row) -> Result<Self, GpuFileError> {
        const WHOLE: &str = "expected a whole number above zero";
        for column in REQUIRED {
            if column_index(column).is_none_or(|n| row.fields[n].trim().is_empty()) {
                return Err(row.wrong((column, String::new()), "must not be empty"));
            }
        }
        let vendor = match row.take("vendor").to_ascii_lowercase().as_str() {
            "nvidia" => Vendor::Nvidia,
            "amd" => Vendor::Amd,
            "intel" => Vendor::Intel,
            "apple" => Vendor::Apple,
            other => {
                return Err(row.wrong(
                    ("vendor", other.to_owned()),
                    "expected NVIDIA, AMD, Intel or Apple",
                ));
            }
        };
        let (mut compute_capability, mut gfx) = (None, None);
        let cc = row.take("compute_capability");
        if cc.starts_with("gfx") {
            gfx = Some(cc);
        } else if !cc.is_empty() {
            let parsed = cc
                .split_once('.')
                .and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
            let Some((major, minor)) = parsed else {
                return Err(row.wrong(("compute_capability", cc), "expected MAJOR.MINOR or gfx..."));
            };
            compute_capability = Some(ComputeCapability { major, minor });
        }
        let Some(memory_gb_marketed) = row.parse("memory_gb_marketed", WHOLE)? else {
            return Err(row.wrong(("memory_gb_marketed", String::new()), WHOLE));
        };
        let memory_mib_reported: Option<NonZeroU64> = row.parse("memory_mib_reported", WHOLE)?;
        let totals: [Option<u64>; 3] = [
            row.parse("cuda_total_mib_low", WHOLE)?,
            row.parse("cuda_total_mib_expected", WHOLE)?,
            row.parse("cuda_total_mib_high", WHOLE)?,
        ];
        let total_source = row.take("cuda_total_source");
        let cuda_total = match totals {
            [None, None, None] => None,
            [Some(low), Some(expected), Some(high)]
                if low > 0 && low <= expected && expected <= high && !total_source.is_empty() =>
            {
                Some(CudaTotal {
                    low,
                    expected,
                    high,
                    source: total_source,
                })
            }
            _ => {
                return Err(row.wrong(
                    (
                        "cuda_total_mib_expected",
                        totals[1].map(|v| v.to_string()).unwrap_or_default(),
                    ),
                    "low, expected and high in order, with a source, or none of them",
                ));
            }
        };
        let ecc = match row.take("ecc").as_str() {
            "" => None,
            "on" => Some(true),
            "off" => Some(false),
            other => {
                return Err(row.wrong(("ecc", other.to_owned()), "expected on, off or nothing"));
            }
        };
        let notes = row.take("notes");
        Ok(Self {
            id: row.take("id"),
            name: row.take("name"),
            vendor,
            architecture: row.take("architecture"),
            compute_capability,
            gfx,
            memory_gb_marketed,
            memory_mib_reported,
            // The built-in file marks figures that follow a sibling's pattern; a user's own figure counts as seen.
            reported_seen: memory_mib_reported.is_some() && !notes.contains("mib:pattern"),
            ecc,
            cuda_total,
            memory_type: row.take("memory_type"),
            bandwidth_gb_s: row.rate("bandwidth_gb_s")?,
            rates: Rates {
                fp32: row.rate("fp32_tflops")?,
                tf32: row.rate("tf32_tflops_dense")?,
                fp16: row.rate("fp16_tflops_dense")?,
                bf16: row.rate("bf16_tflops_dense")?,
                fp8: row.rate("fp8_tflops_dense")?,
                int8: row.rate("int8_tops_dense")?,
                fp4: row.rate("fp4_tflops_dense")?,
            },
            interconnect: row.take("interconnect"),
            tdp_w: row.parse("tdp_w", WHOLE)?,
            bf16: row.flag("bf16_support")?,
            fp8: row.flag("fp8_support")?,
            flash_attention2: row.flag("flash_attn2_support")?,
            release_year: row.parse("release_year", "expected a year")?,
            sm_count: row
                .parse::<NonZeroU32>("sm_count", WHOLE)?
                .map(NonZeroU32::get),
            sm_source: row.take("sm_source"),
            max_threads_per_sm: row
                .parse::<NonZeroU32>("max_threads_per_sm", WHOLE)?
                .map(NonZeroU32::get),
            aliases: row
                .take("aliases")
                .split(';')
                .map(|a| a.trim().to_owned())
                .filter(|a| !a.is_empty())
                .collect(),
            source: row.take("source"),
            confidence: row.take("confidence"),
            recorded: row.take("recorded"),
            notes,
        })
    }
}
