//! SkyPilot's task (skypilot-org/skypilot 0.14.1, `sky/utils/schemas.py`, `sky/resources.py`).
//!
//! Its names of cards are those of its catalog (skypilot-org/skypilot-catalog, `catalogs/v7/common/accelerators.csv`). A card that it has no
//! name for is asked for by maker and memory, `NVIDIA:24GB:1` (`Resources._parse_accelerators_from_str`).

use super::{Ask, gib, quoted};
use crate::export::{File, Options, Written};
use std::fmt::Write;
use tonnage_catalog::gpu::Vendor;
use tonnage_core::{Diagnostic, Job};

/// SkyPilot's name, the cards that it stands for.
const NAMES: &[(&str, &[&str])] = &[
    ("A10", &["a10"]),
    ("A100", &["a100-pcie-40gb", "a100-sxm4-40gb"]),
    ("A100-80GB", &["a100-pcie-80gb", "a100-sxm4-80gb"]),
    ("A10G", &["a10g"]),
    ("A40", &["a40"]),
    ("B200", &["b200"]),
    ("GH200", &["gh200-96gb"]),
    ("H100", &["h100-sxm", "h100-pcie"]),
    ("H100-NVL", &["h100-nvl"]),
    ("H200", &["h200-sxm"]),
    ("L4", &["l4"]),
    ("L40", &["l40"]),
    ("L40S", &["l40s"]),
    ("MI300X", &["mi300x"]),
    ("P100", &["p100-pcie-16gb"]),
    ("RTX3060", &["rtx-3060-12gb"]),
    ("RTX3090", &["rtx-3090"]),
    ("RTX4080", &["rtx-4080"]),
    ("RTX4090", &["rtx-4090"]),
    ("RTX5090", &["rtx-5090"]),
    ("RTX6000-Ada", &["rtx-6000-ada"]),
    ("RTXA4000", &["rtx-a4000"]),
    ("RTXA5000", &["rtx-a5000"]),
    ("RTXA6000", &["rtx-a6000"]),
    ("T4", &["t4"]),
    ("T4g", &["t4g"]),
    ("V100", &["v100-pcie-16gb", "v100-sxm2-16gb"]),
    ("V100-32GB", &["v100-pcie-32gb", "v100-sxm2-32gb"]),
];

/// `--to skypilot`
pub fn write(job: &Job, options: &Options) -> Result<Written, Vec<Diagnostic>> {
    Ask::of_job(job, options).map(|a| of(&a))
}

fn accelerators(ask: &Ask) -> String {
    let known = NAMES
        .iter()
        .find(|n| n.1.contains(&ask.gpu.id.as_str()))
        .map(|n| n.0.to_string());
    match ask.gpu_type.clone().or(known) {
        Some(name) => format!("{name}:{}", ask.gpus),
        None => format!(
            "{}:{}GB:{}",
            match ask.gpu.vendor {
                Vendor::Amd => "AMD",
                _ => "NVIDIA",
            },
            ask.gpu.memory_gb_marketed,
            ask.gpus
        ),
    }
}

/// The task of a request.
pub fn of(ask: &Ask) -> Written {
    let mut t = ask.comments();
    let _ = write!(
        t,
        "name: {}\nnum_nodes: 1\nresources:\n  accelerators: {}\n",
        quoted(&ask.name),
        quoted(&accelerators(ask))
    );
    if let Some(n) = ask.host_floor() {
        let _ = writeln!(t, "  memory: {}", quoted(&format!("{}+", gib(n))));
    }
    if let Some(i) = &ask.image {
        let _ = writeln!(t, "  image_id: {}", quoted(&format!("docker:{i}")));
    }
    let _ = writeln!(t, "run: {}", quoted(&ask.start));
    let name = format!("{}.sky.yaml", ask.name);
    Written {
        command: Some(format!("sky launch {name}")),
        files: vec![File {
            name,
            text: t,
            what: "SkyPilot's task".into(),
        }],
        notes: ask.notes.clone(),
    }
}
