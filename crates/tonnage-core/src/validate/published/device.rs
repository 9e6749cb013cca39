//! GPUs as published rows name them.

use tonnage_sim::kernels::KernelDevice;

/// The kernel facts of a GPU named in a record, from the catalog: "NVIDIA A10G 24GB" is tried without its last words too. None where
/// the name is not a known GPU.
pub fn named(gpu: &str) -> Option<KernelDevice> {
    let words: Vec<&str> = gpu.split_whitespace().collect();
    (1..=words.len()).rev().find_map(|n| {
        let g = tonnage_catalog::gpu(&words[..n].join(" ")).ok()?;
        let c = g.compute_capability?;
        Some(KernelDevice::new(
            g.sm_count?,
            g.max_threads_per_sm?,
            (c.major, c.minor),
        ))
    })
}

/// What is assumed where a source does not name its GPU: an Ampere card. The sizes of some kernels' scratch buffers depend on it, no
/// more than a few MiB in these jobs.
pub const UNNAMED: KernelDevice = KernelDevice::A100;
