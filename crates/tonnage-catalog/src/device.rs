//! What lies between a framework's allocator and the card: the CUDA context, the libraries' code, and the part of the
//! memory that the driver keeps. None of it can be executed here, so each figure is a range with its source.
//!
//! ```text
//! device used by a process = context + libraries + reserved by the allocator (+ NCCL and graphs, not in this module)
//! what CUDA calls total    = what the driver reports - reserved by the driver
//! ```
//!
//! The expected figures are for one process on Linux with a current driver and lazily loaded kernels. The table
//! `tests/data/context-observations.csv` has the out-of-memory texts that check them.

use crate::gpu::{Gpu, Vendor};

const MIB: u64 = 1 << 20;
const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;

/// A figure in bytes with its bounds and where they come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Lower bound.
    pub low: u64,
    /// Most likely.
    pub expected: u64,
    /// Upper bound.
    pub high: u64,
    /// Where the figures are from.
    pub source: &'static str,
}

/// The operating system, as far as the driver's memory model goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Os {
    /// Linux on the machine itself.
    #[default]
    Linux,
    /// Windows with its display driver model (WDDM).
    Windows,
    /// Linux inside Windows.
    Wsl,
}

/// When kernels are loaded onto the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModuleLoading {
    /// On first use (`CUDA_MODULE_LOADING=LAZY`).
    Lazy,
    /// All of a library at its start.
    Eager,
}

/// What the device level depends on besides the card. The default is a current driver on Linux.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stack {
    /// CUDA version of the framework's build, `(major, minor)`; `None`: current.
    pub cuda: Option<(u16, u16)>,
    /// Driver branch, e.g. 570; `None`: current.
    pub driver: Option<u16>,
    /// Set explicitly by the user; `None`: what PyTorch does for this CUDA version.
    pub module_loading: Option<ModuleLoading>,
    /// Operating system.
    pub os: Os,
}

impl Stack {
    /// PyTorch asks for lazy loading in builds for CUDA 11.7 and later (pytorch/pytorch issue 109888).
    pub fn loading(&self) -> ModuleLoading {
        self.module_loading.unwrap_or(match self.cuda {
            Some(version) if version < (11, 7) => ModuleLoading::Eager,
            _ => ModuleLoading::Lazy,
        })
    }
}

/// What a process takes on the device outside its allocator, and what the driver keeps from everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceOverhead {
    /// The process's CUDA context, before its first kernel.
    pub context: Range,
    /// Code and handles that libraries load in the first training steps (cuBLAS, cuDNN, flash attention). Not their
    /// workspaces: PyTorch takes those from its allocator.
    pub libraries: Range,
    /// The difference between the driver's total and CUDA's. Already left out of [`usable`]: never subtract both.
    pub reserved_by_driver: Range,
}

/// How a usable figure is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Basis {
    /// CUDA's total was seen for this card.
    Seen,
    /// The driver's total was seen for this card; what the driver keeps follows cards of its size.
    FromDriverTotal,
    /// The driver's total follows a sibling card's pattern.
    FromPattern,
    /// A share of unified memory, by the vendor's default.
    UnifiedShare,
}

/// The memory that a process can get on an otherwise idle card, in bytes: what CUDA calls total.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usable {
    /// Lower bound.
    pub low: u64,
    /// Most likely.
    pub expected: u64,
    /// Upper bound.
    pub high: u64,
    /// How it is known.
    pub basis: Basis,
    /// Where the figures are from.
    pub source: String,
}

/// Why a device has no figures.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No reported total is known; the marketed figure is not used in its place.
    #[error("{id}: no total memory reported by a driver is known for it; give the usable memory")]
    NoReportedTotal {
        /// The GPU.
        id: String,
    },
    /// No measurement of contexts on this vendor's devices is known.
    #[error("{id}: no measured context or library sizes are known for this vendor")]
    NoContextFigures {
        /// The GPU.
        id: String,
    },
    /// Error correction cannot be switched on this card, or its setting for the known figure is not known.
    #[error("{id}: the effect of error correction on its memory is not known")]
    EccUnknown {
        /// The GPU.
        id: String,
    },
}

/// Bare contexts that were measured, in MiB.
struct Measured {
    ids: &'static [&'static str],
    mib: u64,
    source: &'static str,
}

static MEASURED: &[Measured] = &[
    Measured {
        ids: &["rtx-4060-ti-8gb", "rtx-4060-ti-16gb"],
        mib: 107,
        source: "107 MiB measured with cudaMemGetInfo (ggml-org/llama.cpp pull 23604)",
    },
    Measured {
        ids: &["rtx-3090"],
        mib: 256,
        source: "256 MiB measured, torch 2.7.1+cu128, driver 610 (invoke-ai/InvokeAI issue 9413)",
    },
    Measured {
        ids: &["rtx-6000-ada"],
        mib: 426,
        source: "426 MiB measured, torch 2.10+cu130 (unslothai/unsloth-zoo pull 1053)",
    },
    Measured {
        ids: &[
            "rtx-pro-6000-blackwell",
            "rtx-pro-6000-blackwell-maxq",
            "rtx-pro-6000-blackwell-server",
        ],
        mib: 555,
        source: "555 MiB measured with cudaMemGetInfo (ggml-org/llama.cpp pull 23604; which of the three cards is not said)",
    },
    Measured {
        ids: &["rtx-4090"],
        mib: 384,
        source: "384 MiB reported (vllm-project/vllm issue 12059, second hand)",
    },
    Measured {
        ids: &[
            "a100-sxm4-40gb",
            "a100-sxm4-80gb",
            "a100-pcie-40gb",
            "a100-pcie-80gb",
        ],
        mib: 414,
        source: "414 MiB: NVML used minus reserved in a torch process (a public profiler's test; which A100 is not said)",
    },
    Measured {
        ids: &["h100-sxm"],
        mib: 520,
        source: "520 MiB reported (vllm-project/vllm issue 12059, second hand)",
    },
    Measured {
        ids: &["b200"],
        mib: 612,
        source: "612 MiB measured with torch mem_get_info, CUDA 13 (a public log; 692 to 712 once kernels are loaded)",
    },
];

/// The context by the number of threads that the card can hold: 8 MiB + 1.94 KiB for each.
///
/// Derived from the first four cards of [`MEASURED`]; the other four, which it was not derived from, are within 5 %.
fn context_model(gpu: &Gpu) -> Option<u64> {
    let threads = u64::from(gpu.sm_count?) * u64::from(gpu.max_threads_per_sm?);
    Some(8 * MIB + threads * (194 * KIB) / 100)
}

fn context(gpu: &Gpu, stack: &Stack) -> Range {
    if stack.loading() == ModuleLoading::Eager {
        return Range {
            low: 700 * MIB,
            expected: 1001 * MIB,
            high: 1700 * MIB,
            source: "eager loading: 721 MiB (GTX 1080) and 1687 MiB (RTX 3090) with torch 1.8.2 (pytorch issue 55277), \
                     1001 MiB (RTX 3090, torch 1.7; pytorch issue 54564)",
        };
    }
    let model = context_model(gpu);
    let measured = MEASURED.iter().find(|m| m.ids.contains(&gpu.id.as_str()));
    // Upper edge: contexts reported together with the process's first kernels reach 1.2 times the model.
    let upper = |v: u64| v + v / 5;
    let current = match (model, measured) {
        (_, Some(m)) => Range {
            low: (m.mib * MIB).min(model.unwrap_or(m.mib * MIB)),
            expected: m.mib * MIB,
            high: upper((m.mib * MIB).max(model.unwrap_or(0))),
            source: m.source,
        },
        (Some(v), None) => Range {
            low: v - v / 20,
            expected: v,
            high: upper(v),
            source: "8 MiB + 1.94 KiB x multiprocessors x resident threads; within 5 % of eight measured cards, this one \
                     not among them",
        },
        (None, None) => Range {
            low: 120 * MIB,
            expected: 300 * MIB,
            high: 550 * MIB,
            source: "several cards: 120 to 550 MiB (ggml-org/llama.cpp pull 20595), 300 to 400 after the first operations \
                     (pytorch issue 107667)",
        },
    };
    if stack.driver.is_some_and(|d| d < 560) {
        // The measurements are from driver branches 560 and later: keep the middle, take the wide bounds.
        return Range {
            low: current.low.min(120 * MIB),
            high: current.high.max(550 * MIB),
            source: "as for driver branch 560 and later; bounds 120 to 550 MiB as reported for several older set-ups \
                     (ggml-org/llama.cpp pull 20595)",
            ..current
        };
    }
    current
}

fn libraries(stack: &Stack) -> Range {
    match stack.loading() {
        ModuleLoading::Lazy => Range {
            low: 0,
            expected: 81 * MIB,
            high: 300 * MIB,
            source: "median of 19 out-of-memory texts with a known card: process minus allocator minus context \
                     (-4 to 248 MiB)",
        },
        ModuleLoading::Eager => Range {
            low: 0,
            expected: 0,
            high: 300 * MIB,
            source: "eager loading: part of the context's figure",
        },
    }
}

/// What a current Linux driver (branch 535 and later) keeps, by the card's reported total in MiB: bounds of all cards
/// whose two totals were both seen, and the middle one. `gpus.csv` has the pairs.
static KEPT: &[(u64, Range)] = &[
    (
        26 * 1024,
        Range {
            low: 327 * MIB,
            expected: 450 * MIB,
            high: 490 * MIB,
            source: "cards up to 24 GB: 327 (RTX 4080) to 484 MiB (RTX 4090)",
        },
    ),
    (
        52 * 1024,
        Range {
            low: 415 * MIB,
            expected: 602 * MIB,
            high: 680 * MIB,
            source: "cards of 32 to 48 GB: 415 (A100 40GB) to 669 MiB (L40S)",
        },
    ),
    (
        90 * 1024,
        Range {
            low: 465 * MIB,
            expected: 551 * MIB,
            high: 890 * MIB,
            source: "cards of 80 GB: 465 (H100) to 886 MiB (A100 80GB)",
        },
    ),
    (
        u64::MAX,
        Range {
            low: 586 * MIB,
            expected: 640 * MIB,
            high: 730 * MIB,
            source: "cards of 96 GB and more: 586 (H20) to 728 MiB (B200)",
        },
    ),
];

/// What the driver keeps of a card that reports `total` MiB.
fn kept(gpu: &Gpu, stack: &Stack, total: u64) -> Range {
    if stack.os != Os::Linux {
        return Range {
            low: 0,
            expected: MIB,
            high: 1024 * MIB,
            source: "Windows: CUDA's total is the card's less 1 MiB (RTX 3090 24575, RTX 4090 24563, RTX 5080 16302), under \
                     WSL sometimes less; what the desktop takes comes on top",
        };
    }
    if gpu.compute_capability.is_some_and(|c| c.major < 7) {
        return Range {
            low: 70 * MIB,
            expected: 104 * MIB,
            high: 110 * MIB,
            source: "Pascal: 73 (GTX 1080) to 104 MiB (P100)",
        };
    }
    if stack.driver.is_some_and(|d| d < 535) {
        return Range {
            low: 218 * MIB,
            expected: 310 * MIB,
            high: 652 * MIB,
            source: "drivers before 535: 224 (V100) to 652 MiB (A40), RTX 3090 308 to 317",
        };
    }
    if let Some(t) = &gpu.cuda_total {
        return Range {
            low: total.saturating_sub(t.high) * MIB,
            expected: total.saturating_sub(t.expected) * MIB,
            high: total.saturating_sub(t.low) * MIB,
            source: "the driver's total less CUDA's, both seen for this card",
        };
    }
    KEPT.iter()
        .find(|(limit, _)| total <= *limit)
        .map_or(KEPT[KEPT.len() - 1].1, |(_, range)| *range)
}

fn unified(gpu: &Gpu) -> bool {
    gpu.memory_type.contains("LPDDR") || gpu.memory_type.contains("unified")
}

/// Both of the process's own parts and the driver's, in bytes, for one process on an NVIDIA card.
///
/// # Errors
/// [`DeviceError::NoContextFigures`] for other vendors, [`DeviceError::NoReportedTotal`] where the card's total is unknown.
pub fn device_overhead(gpu: &Gpu, stack: &Stack) -> Result<DeviceOverhead, DeviceError> {
    if gpu.vendor != Vendor::Nvidia {
        return Err(DeviceError::NoContextFigures { id: gpu.id.clone() });
    }
    let reserved_by_driver = match gpu.memory_mib_reported {
        Some(total) if !unified(gpu) => kept(gpu, stack, total.get()),
        _ => return Err(DeviceError::NoReportedTotal { id: gpu.id.clone() }),
    };
    Ok(DeviceOverhead {
        context: context(gpu, stack),
        libraries: libraries(stack),
        reserved_by_driver,
    })
}

/// What CUDA (or the vendor's runtime) calls the card's total memory, in bytes. Never the marketed figure.
///
/// # Errors
/// [`DeviceError::NoReportedTotal`] where no driver's figure is known.
pub fn usable(gpu: &Gpu, stack: &Stack) -> Result<Usable, DeviceError> {
    if gpu.vendor == Vendor::Apple {
        // The working set's default is two thirds of the memory up to 36 GB and three quarters above; memory is sold in GiB.
        let total = u64::from(gpu.memory_gb_marketed.get()) * GIB;
        let expected = if gpu.memory_gb_marketed.get() <= 36 {
            total / 3 * 2
        } else {
            total / 4 * 3
        };
        return Ok(Usable {
            low: total / 3 * 2,
            expected,
            high: total / 4 * 3,
            basis: Basis::UnifiedShare,
            source: "Metal's recommended working set: two thirds to three quarters of the machine's memory".to_owned(),
        });
    }
    let total = match gpu.memory_mib_reported {
        Some(total) if !unified(gpu) => total.get(),
        _ => return Err(DeviceError::NoReportedTotal { id: gpu.id.clone() }),
    };
    let pattern = if gpu.reported_seen {
        Basis::FromDriverTotal
    } else {
        Basis::FromPattern
    };
    if gpu.vendor != Vendor::Nvidia {
        // ROCm's total is the driver's: 24560 MiB and 16368 MiB cards print 23.98 and 15.98 GiB.
        return Ok(Usable {
            low: total * MIB,
            expected: total * MIB,
            high: total * MIB,
            basis: pattern,
            source: format!("{total} MiB reported by the driver ({})", gpu.source),
        });
    }
    let keeps = kept(gpu, stack, total);
    let left = |kept: u64| (total * MIB).saturating_sub(kept);
    let seen = gpu
        .cuda_total
        .as_ref()
        .filter(|t| left(keeps.expected) == t.expected * MIB);
    Ok(Usable {
        low: left(keeps.high),
        expected: left(keeps.expected),
        high: left(keeps.low),
        basis: if seen.is_some() { Basis::Seen } else { pattern },
        source: match seen {
            Some(t) => t.source.clone(),
            None => format!(
                "{total} MiB reported by the driver, less what it keeps: {}",
                keeps.source
            ),
        },
    })
}

/// The card with error correction on or off: GDDR cards give up one sixteenth of their memory for it, HBM cards nothing.
/// (49140 x 15/16 = 46068, 24564 x 15/16 = 23028: both seen for the same cards.)
///
/// # Errors
/// [`DeviceError::EccUnknown`] where the setting behind the catalog's figure is not known.
pub fn with_ecc(gpu: &Gpu, on: bool) -> Result<Gpu, DeviceError> {
    if gpu.memory_type.starts_with("HBM") || gpu.ecc == Some(on) {
        return Ok(gpu.clone());
    }
    let unknown = || DeviceError::EccUnknown { id: gpu.id.clone() };
    let (Some(_), Some(total)) = (gpu.ecc, gpu.memory_mib_reported) else {
        return Err(unknown());
    };
    let other = if on {
        total.get() * 15 / 16
    } else {
        // 46068 and 23028 come back as 49140 and 24564: the lost part is rounded up to 4 MiB.
        (total.get() * 16).div_ceil(15).next_multiple_of(4)
    };
    let mut changed = gpu.clone();
    changed.memory_mib_reported = Some(other.try_into().map_err(|_| unknown())?);
    changed.ecc = Some(on);
    changed.reported_seen = false;
    changed.cuda_total = None;
    Ok(changed)
}
