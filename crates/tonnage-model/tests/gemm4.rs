//! Which 4-bit products unpack their weight, against the library's own answers (tools/record_gemm4.py).

use tonnage_model::adapt::gemm4;
use tonnage_sim::ScalarType;
use tonnage_sim::kernels::KernelDevice;

const ROWS: [u64; 24] = [
    1, 4, 5, 6, 7, 8, 10, 12, 16, 20, 23, 32, 48, 64, 96, 128, 192, 256, 320, 384, 512, 768, 1024,
    1536,
];

#[test]
fn the_choice_of_the_kernel_is_the_librarys() {
    let mut cases = 0;
    for line in include_str!("fixtures/gemm4.txt").lines() {
        let f: Vec<&str> = line.split(' ').collect();
        let (major, minor) = f[1].split_once('.').unwrap();
        let d = KernelDevice::new(
            f[0].parse().unwrap(),
            2048,
            (major.parse().unwrap(), minor.parse().unwrap()),
        );
        let dtype = match f[2] {
            "bf16" => ScalarType::BF16,
            "fp16" => ScalarType::F16,
            _ => ScalarType::F32,
        };
        let (n, k): (u64, u64) = (f[3].parse().unwrap(), f[4].parse().unwrap());
        let bits = u64::from_str_radix(f[5], 16).unwrap();
        for (i, m) in ROWS.into_iter().enumerate() {
            assert_eq!(
                gemm4::fused(&d, dtype, m, n, k, 64),
                bits >> i & 1 == 1,
                "{line} rows {m}"
            );
            cases += 1;
        }
    }
    assert!(cases > 30_000, "{cases}");
}

#[test]
fn misaligned_blocks_and_many_rows_are_unpacked() {
    let d = KernelDevice::A100;
    assert!(gemm4::fused(&d, ScalarType::BF16, 1, 4096, 4096, 64));
    assert!(!gemm4::fused(&d, ScalarType::BF16, 1, 4096, 4100, 64));
    assert!(!gemm4::fused(&d, ScalarType::BF16, 1537, 12, 64, 64));
}
