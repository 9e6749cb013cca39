//! Which PyTorch wheels have kernels for a capability.

/// A sentence: where to get kernels for a capability (one number: 61 is 6.1). From the wheels' build lists
/// (pytorch `.ci/manywheel/build_cuda.sh`): CUDA 12.6 has 5.0 6.0 7.0 7.5 8.0 8.6 9.0 (torch 2.6 and later), 12.8 has
/// 7.5 8.0 8.6 9.0 10.0 12.0 (torch 2.7 and later; 7.0 too from 2.8 on), 13.0 has 7.5 and later. Code of 5.0 and 6.0
/// runs on 5.2, 6.1 and so on.
pub fn advice(arch: u32) -> String {
    match arch {
        0..35 => "No wheel of PyTorch 1.x or 2.x has kernels for this card.".into(),
        35..50 => "The last wheels for Kepler cards are torch 2.0 and earlier with CUDA 11.7 or 11.8 (3.7).".into(),
        50..70 => wheel("cu126", "2.6"),
        70..75 => wheel("cu126", "2.6"),
        75..100 => wheel("cu126", "2.6"),
        _ => wheel("cu128", "2.7"),
    }
}

fn wheel(index: &str, since: &str) -> String {
    format!(
        "A wheel that has: torch {since} or later for CUDA {}.{} (pip install torch --index-url \
         https://download.pytorch.org/whl/{index}).",
        &index[2..4],
        &index[4..]
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_a_wheel() {
        assert!(super::advice(61).contains("cu126") && super::advice(120).contains("cu128"));
        assert!(super::advice(61).contains("CUDA 12.6"));
    }
}
