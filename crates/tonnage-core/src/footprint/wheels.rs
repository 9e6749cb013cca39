//! Whether the package index's wheel of a torch version has kernels for a card; the null device refuses the same cards at their first kernel.

use tonnage_catalog::gpu::ComputeCapability;
use tonnage_model::stack::Version;

/// CUDA of the wheel that `pip install torch==VERSION` fetches on Linux, and the capabilities that it has code for, from and to
/// (pytorch `.ci/manywheel/build_cuda.sh`; 2.2.2, 2.6.0, 2.9.1 and 2.11.0 as read from the wheels).
fn wheel(torch: Version) -> (&'static str, (u8, u8), u8) {
    match torch {
        t if t >= Version(2, 11, 0) => ("13.0", (7, 5), 12),
        t if t >= Version(2, 8, 0) => ("12.8", (7, 0), 12),
        t if t >= Version(2, 7, 0) => ("12.6", (5, 0), 9),
        t if t >= Version(2, 5, 0) => ("12.4", (5, 0), 9),
        _ => ("12.1", (5, 0), 9),
    }
}

/// A sentence where the wheel has no code for the card, with the one that has; PTX is not counted on.
pub fn no_kernels(name: &str, cc: ComputeCapability, torch: Version) -> Option<String> {
    let (cuda, from, to) = wheel(torch);
    let Version(major, minor, patch) = torch;
    let card = (cc.major, cc.minor);
    let instead = match card {
        c if c >= from && c.0 <= to => return None,
        c if c < (5, 0) => {
            "No later wheel has; torch 2.0 and earlier with CUDA 11.7 or 11.8 have them from 3.7 on"
                .into()
        }
        c if c < from => source("torch 2.6 or later for CUDA 12.6", "cu126"),
        _ => source("torch 2.7 or later for CUDA 12.8", "cu128"),
    };
    Some(format!(
        "the usual wheel of torch {major}.{minor}.{patch} (CUDA {cuda}) has no kernels for {name} (compute capability {}.{}): the figures are those of a build that has. {instead}",
        cc.major, cc.minor
    ))
}

fn source(what: &str, index: &str) -> String {
    format!("{what} has (pip install torch --index-url https://download.pytorch.org/whl/{index})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_that_a_wheel_has_no_code_for() {
        let said = |major, minor, torch| no_kernels("X", ComputeCapability { major, minor }, torch);
        for t in [Version(2, 2, 2), Version(2, 9, 1), Version(2, 11, 0)] {
            for (major, minor) in [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0)] {
                assert_eq!(said(major, minor, t), None);
            }
        }
        assert_eq!(said(6, 1, Version(2, 6, 0)), None);
        let old = said(6, 1, Version(2, 11, 0)).unwrap();
        assert!(
            old.contains("CUDA 13.0") && old.contains("whl/cu126"),
            "{old}"
        );
        assert!(said(7, 0, Version(2, 9, 1)).is_none() && said(7, 0, Version(2, 11, 0)).is_some());
        assert!(said(12, 0, Version(2, 6, 0)).unwrap().contains("whl/cu128"));
        assert!(said(3, 5, Version(2, 11, 0)).unwrap().contains("11.8"));
    }
}
