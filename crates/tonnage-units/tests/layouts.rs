//! Stored formats against tensors that the libraries themselves made.
use tonnage_units::block::{
    Awq, AwqKernel, Axis, Bnb4, Bnb4Kind, Fp8, Fp8Scales, Gptq, Hqq, HqqBits, NvFp4,
    OptimizerState, Place, StateKind,
};
use tonnage_units::{Bytes, Dtype, LayoutError, ScalarType, Storage};

/// Name, dtype and values of each storage.
type Made<'a> = &'a [(&'a str, ScalarType, u64)];
use ScalarType::{F16, F32, I8, I32, U8};

fn check(format: Dtype, (rows, cols): (u64, u64), made: Made<'_>) {
    let storages = format.storages(rows, cols).unwrap();
    let ours: Vec<_> = storages
        .iter()
        .map(|s| (s.name, s.dtype, s.numel))
        .collect();
    assert_eq!(ours, made, "{format} {rows} x {cols}");
    let sum = made.iter().map(|(_, t, n)| t.size() * n).sum();
    assert_eq!(format.bytes(rows, cols), Ok(Bytes(sum)));
}

/// `bitsandbytes.functional.quantize_4bit`, bitsandbytes 0.50.2 on torch 2.11: rows, columns, block
/// size, bytes of the weight, number of absmax, of nested absmax.
#[test]
fn bitsandbytes_4bit() {
    for (rows, cols, block, packed, absmax, nested) in [
        (4096, 4096, 64, 8_388_608, 262_144, 1024),
        (4096, 4096, 128, 8_388_608, 131_072, 512),
        (1536, 8960, 64, 6_881_280, 215_040, 840),
        (1536, 8960, 128, 6_881_280, 107_520, 420),
        (256, 1536, 64, 196_608, 6144, 24),
        (100, 100, 64, 5000, 157, 1),
        (100, 100, 128, 5000, 79, 1),
        (3, 7, 64, 11, 1, 1),
    ] {
        for kind in [Bnb4Kind::Nf4, Bnb4Kind::Fp4] {
            let mut format = Bnb4::new(kind, false);
            format.blocksize = block;
            let plain: Made<'_> = &[
                ("weight", U8, packed),
                ("absmax", F32, absmax),
                ("quant_map", F32, 16),
            ];
            check(Dtype::Bnb4(format), (rows, cols), plain);
            format.double_quant = true;
            let double: Made<'_> = &[
                ("weight", U8, packed),
                ("absmax", U8, absmax),
                ("quant_map", F32, 16),
                ("nested_absmax", F32, nested),
                ("nested_quant_map", F32, 256),
                ("nested_offset", F32, 1),
            ];
            check(Dtype::Bnb4(format), (rows, cols), double);
        }
    }
    // quant_storage: 1024 x 512 in bfloat16 is [131072, 1], in float32 [65536, 1]
    let mut format = Bnb4::new(Bnb4Kind::Nf4, false);
    for (t, words) in [(ScalarType::BF16, 131_072), (F32, 65_536)] {
        format.quant_storage = t;
        let made: Made<'_> = &[
            ("weight", t, words),
            ("absmax", F32, 8192),
            ("quant_map", F32, 16),
        ];
        check(Dtype::Bnb4(format), (1024, 512), made);
    }
    assert!(matches!(
        Dtype::Bnb4(format).storages(3, 3),
        Err(LayoutError::NotDivisible { .. })
    ));
    format.blocksize = 100;
    assert!(matches!(
        Dtype::Bnb4(format).storages(64, 64),
        Err(LayoutError::Setting { value: 100, .. })
    ));
}

/// `bitsandbytes.nn.Linear8bitLt(512, 384, has_fp16_weights=False).to("cuda")`.
#[test]
fn bitsandbytes_llm_int8() {
    check(
        Dtype::LlmInt8,
        (384, 512),
        &[("weight", I8, 196_608), ("SCB", F32, 384)],
    );
}

/// States after one `step()` of bitsandbytes 0.50.2's AdamW8bit, Lion8bit and AdEMAMix8bit.
#[test]
fn bitsandbytes_optimizer_states() {
    use Place::{Device, Managed, Shared};
    let states = |kind, numel, paged| -> Vec<_> {
        let mut state = OptimizerState::new(kind);
        state.paged = paged;
        let made = state.storages(numel).unwrap();
        let row = |s: Storage| (s.name, s.dtype, s.numel, s.place);
        made.into_iter().map(row).collect()
    };
    let maps = [("qmap1", F32, 256, Shared), ("qmap2", F32, 256, Shared)];
    for paged in [false, true] {
        let fp32 = [("state1", F32, 4095, Device), ("state2", F32, 4095, Device)];
        assert_eq!(states(StateKind::Two, 4095, paged), fp32);
        assert_eq!(states(StateKind::One, 4095, paged), fp32[..1]);
        for (n, blocks) in [(4096, 16), (5000, 20), (99_999, 391), (100_000, 391)] {
            let place = if paged && n == 100_000 {
                Managed
            } else {
                Device
            };
            let state1 = ("state1", U8, n, place);
            let absmax1 = ("absmax1", F32, blocks, Device);
            let two = [
                maps[0],
                maps[1],
                state1,
                ("state2", U8, n, place),
                absmax1,
                ("absmax2", F32, blocks, Device),
            ];
            assert_eq!(states(StateKind::Two, n, paged), two);
            assert_eq!(states(StateKind::One, n, paged), [maps[0], state1, absmax1]);
        }
        let ademamix = [("state1", F32, 8000, Device), ("state2", F32, 4000, Device)];
        assert_eq!(states(StateKind::AdEmaMix, 4000, paged), ademamix);
        let place = if paged { Managed } else { Device };
        let ademamix = [
            maps[0],
            maps[1],
            ("absmax1", F32, 782, Device),
            ("absmax2", F32, 391, Device),
            ("state1", U8, 200_000, place),
            ("state2", U8, 100_000, place),
        ];
        assert_eq!(states(StateKind::AdEmaMix, 100_000, paged), ademamix);
    }
    let mut state = OptimizerState::new(StateKind::Two);
    state.bits = 32;
    assert!(
        state
            .storages(5000)
            .unwrap()
            .iter()
            .all(|s| s.dtype == F32 && s.numel == 5000)
    );
    state.bits = 16;
    assert!(matches!(
        state.storages(5000),
        Err(LayoutError::Setting { value: 16, .. })
    ));
    assert!(
        OptimizerState::new(StateKind::Two)
            .storages(u64::MAX)
            .is_err()
    );
}

/// The buffers of AutoGPTQ 9f7d3707's `QuantLinear`: bits, group, in, out; values of each buffer.
#[test]
fn gptq() {
    for (bits, group, (cols, rows), qweight, qzeros, scales) in [
        (2, Some(128), (4096, 11008), 2_818_048, 22_016, 352_256),
        (3, Some(128), (4096, 11008), 4_227_072, 33_024, 352_256),
        (4, Some(128), (4096, 11008), 5_636_096, 44_032, 352_256),
        (8, Some(128), (4096, 11008), 11_272_192, 88_064, 352_256),
        (3, None, (11008, 4096), 4_227_072, 384, 4096),
        (4, None, (11008, 4096), 5_636_096, 512, 4096),
        (4, Some(128), (160, 96), 1920, 24, 192), // a short last group
        (8, Some(128), (160, 96), 3840, 48, 192),
    ] {
        let made: Made<'_> = &[
            ("qweight", I32, qweight),
            ("qzeros", I32, qzeros),
            ("scales", F16, scales),
            ("g_idx", I32, cols),
        ];
        check(Dtype::Gptq(Gptq::new(bits, group)), (rows, cols), made);
    }
    let four = Dtype::Gptq(Gptq::new(4, Some(128)));
    for (rows, cols, what) in [(64, 100, "in_features"), (100, 64, "out_features")] {
        let error = four.storages(rows, cols).unwrap_err();
        assert!(
            matches!(&error, LayoutError::NotDivisible { what: w, value: 100, by: 32, .. } if *w == what),
            "{error}"
        );
    }
    assert!(
        Dtype::Gptq(Gptq::new(5, Some(128)))
            .storages(64, 64)
            .is_err()
    );
    assert!(Dtype::Gptq(Gptq::new(4, Some(0))).storages(64, 64).is_err());
}

/// The buffers of AutoAWQ 88e4c76b's `WQLinear_GEMM` and `WQLinear_GEMV`.
#[test]
fn awq() {
    use AwqKernel::{Gemm, Gemv};
    for (kernel, group_size, (cols, rows), qweight, qzeros, scales) in [
        (Gemm, Some(128), (4096, 11008), 5_636_096, 44_032, 352_256),
        (Gemm, None, (4096, 1024), 524_288, 128, 1024),
        (Gemv, Some(128), (4096, 11008), 5_636_096, 44_032, 352_256),
        (Gemv, Some(64), (1536, 256), 49_152, 1024, 8192),
        (Gemv, Some(32), (1536, 8960), 1_720_320, 71_680, 573_440),
    ] {
        let made: Made<'_> = &[
            ("qweight", I32, qweight),
            ("qzeros", I32, qzeros),
            ("scales", F16, scales),
        ];
        check(Dtype::Awq(Awq { kernel, group_size }), (rows, cols), made);
    }
    let awq = |kernel, group| {
        Dtype::Awq(Awq {
            kernel,
            group_size: Some(group),
        })
    };
    assert!(awq(Gemm, 128).storages(64, 100).is_err());
    assert!(awq(Gemm, 128).storages(100, 128).is_err());
    assert!(matches!(
        awq(Gemv, 16).storages(64, 128),
        Err(LayoutError::Setting { .. })
    ));
}

/// `Quantizer.quantize` of hqq e0b1d00e on a 1536 x 256 weight: bits; dtype; packed values for axis 0
/// and 1 in groups of 64, and without groups.
#[test]
fn hqq() {
    use HqqBits::*;
    for (bits, t, axis0, axis1, none) in [
        (B8, U8, 393_216, 393_216, 393_216),
        (B6, U8, 393_216, 393_216, 393_216),
        (B5, U8, 393_216, 393_216, 393_216),
        (B4, U8, 196_608, 196_608, 196_608),
        (B3, I32, 43_008, 39_360, 39_424),
        (B2, U8, 98_304, 98_304, 98_304),
        (B1_58, U8, 98_304, 98_304, 98_304),
        (B1, U8, 49_152, 49_152, 49_152),
    ] {
        for (axis, group_size, packed, groups) in [
            (Axis::Zero, Some(64), axis0, 6144),
            (Axis::One, Some(64), axis1, 6144),
            (Axis::Zero, None, none, 256),
            (Axis::One, None, none, 1536),
        ] {
            let format = Hqq {
                bits,
                group_size,
                axis,
                compute: F16,
            };
            let made: Made<'_> = &[
                ("W_q", t, packed),
                ("scale", F16, groups),
                ("zero", F16, groups),
            ];
            check(Dtype::Hqq(format), (1536, 256), made);
        }
    }
    let wrong = |group, rows, cols| Dtype::Hqq(Hqq::new(B4, group)).storages(rows, cols);
    assert!(matches!(
        wrong(Some(12), 24, 24),
        Err(LayoutError::Setting { .. })
    ));
    assert!(matches!(
        wrong(Some(64), 3, 5),
        Err(LayoutError::NotDivisible { .. })
    ));
    assert!(matches!(
        wrong(None, 3, 8),
        Err(LayoutError::NotDivisible { .. })
    ));
}

/// Shapes as transformers 5.17.0 allocates them: `FP8Linear` rounds the blocks of DeepSeek-V3's
/// 576 x 7168 `kv_a_proj_with_mqa` up to [5, 56]; gpt-oss-20b's `gate_up_proj_blocks` is
/// [32, 2 * 2880, 2880 / 32, 16].
#[test]
fn small_floats() {
    use ScalarType::F8E4M3;
    let weight = ("weight", F8E4M3, 576 * 7168);
    check(
        Dtype::Fp8(Fp8::BLOCK_128),
        (576, 7168),
        &[weight, ("weight_scale_inv", F32, 280)],
    );
    let bytes = Fp8Scales::Block {
        rows: 128,
        cols: 128,
        e8m0: true,
    };
    check(
        Dtype::Fp8(Fp8::new(bytes)),
        (576, 7168),
        &[weight, ("weight_scale_inv", U8, 280)],
    );
    check(
        Dtype::Fp8(Fp8::new(Fp8Scales::Channel)),
        (576, 7168),
        &[weight, ("weight_scale", F32, 576)],
    );
    let fixed = Fp8 {
        scales: Fp8Scales::Tensor,
        static_activation: true,
    };
    check(
        Dtype::Fp8(fixed),
        (576, 7168),
        &[
            weight,
            ("weight_scale", F32, 1),
            ("activation_scale", F32, 1),
        ],
    );
    let empty = Fp8Scales::Block {
        rows: 0,
        cols: 128,
        e8m0: false,
    };
    assert!(Dtype::Fp8(Fp8::new(empty)).storages(576, 7168).is_err());

    check(
        Dtype::MxFp4,
        (32 * 5760, 2880),
        &[
            ("blocks", U8, 32 * 5760 * 90 * 16),
            ("scales", U8, 32 * 5760 * 90),
        ],
    );
    assert!(matches!(
        Dtype::MxFp4.storages(8, 48),
        Err(LayoutError::NotDivisible { by: 32, .. })
    ));

    let fixed = NvFp4 {
        static_activation: true,
    };
    let made: Made<'_> = &[
        ("weight", U8, 4096 * 2048),
        ("weight_scale", F8E4M3, 4096 * 256),
        ("weight_scale_2", F32, 1),
        ("input_scale", F32, 1),
    ];
    check(Dtype::NvFp4(fixed), (4096, 4096), made);
    check(Dtype::NvFp4(NvFp4::default()), (4096, 4096), &made[..3]);
    assert!(matches!(
        Dtype::NvFp4(fixed).storages(8, 24),
        Err(LayoutError::NotDivisible { by: 16, .. })
    ));
}

#[test]
fn plain_flat_and_impossible() {
    check(
        Dtype::Scalar(ScalarType::BF16),
        (151_936, 1536),
        &[("weight", ScalarType::BF16, 233_373_696)],
    );
    let nf4 = Dtype::Bnb4(Bnb4::new(Bnb4Kind::Nf4, true));
    assert_eq!(nf4.storages_flat(21), nf4.storages(3, 7));
    let awq: Dtype = "awq-4bit-g128".parse().unwrap();
    assert!(matches!(
        awq.storages_flat(4096),
        Err(LayoutError::NeedsMatrix { .. })
    ));
    let names = "bf16 nf4 nf4-dq llm-int8 gptq-3bit-g128 gptq-8bit-gall awq-4bit-g64 awq-gemv-4bit-g32 \
                 hqq-3bit-g64 hqq-8bit-gall fp8-tensor fp8-channel fp8-1x1 mxfp4 nvfp4 ggml:q6_K ggml:f64";
    for name in names.split_whitespace() {
        let format: Dtype = name.parse().unwrap();
        for (rows, cols) in [
            (u64::MAX, 2),
            (1 << 32, 1 << 31),
            (1 << 33, 1 << 31),
            (u64::MAX, u64::MAX),
        ] {
            // no panic, and no wrapped number: what is answered is at least a third of a bit a value
            if let Ok(bytes) = format.bytes(rows, cols) {
                assert!(
                    u128::from(bytes.0) * 24 > u128::from(rows) * u128::from(cols),
                    "{name}"
                );
            }
        }
        assert!(format.bytes(u64::MAX / 32 * 32, 1 << 20).is_err(), "{name}");
        let _ = format.storages(0, 0); // no panic
    }
}

/// Printed names of formats, and what they parse from.
#[test]
fn names() {
    for (text, printed) in [
        ("bf16", "bfloat16"),
        ("torch.float16", "float16"),
        ("NF4", "nf4"),
        ("nf4-dq-b64", "nf4-dq"),
        ("fp4-b128-bf16", "fp4-b128-bfloat16"),
        ("llm.int8()", "llm-int8"),
        ("llm-int8", "llm-int8"),
        ("gptq-4bit-g128", "gptq-4bit-g128"),
        ("gptq-g32-3bit-bf16", "gptq-3bit-g32-bfloat16"),
        ("awq-gemm-4bit-gall", "awq-4bit-gall"),
        ("awq-gemv-4bit-g128", "awq-gemv-4bit-g128"),
        ("hqq-1.58bit-g64-axis0", "hqq-1.58bit-g64-axis0"),
        ("hqq-4bit-g64-axis1-bf16", "hqq-4bit-g64-bfloat16"),
        ("fp8-128x128", "fp8-128x128"),
        ("fp8-128x128-e8m0-static", "fp8-128x128-e8m0-static"),
        ("fp8-channel", "fp8-channel"),
        ("mxfp4", "mxfp4"),
        ("nvfp4-static", "nvfp4-static"),
        ("q4_k", "ggml:q4_K"),
        ("GGML:MXFP4", "ggml:mxfp4"),
        ("ggml:bf16", "ggml:bf16"),
        ("int8", "int8"),
    ] {
        let format: Dtype = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(format.to_string(), printed);
        assert_eq!(printed.parse(), Ok(format));
    }
    for (text, fix) in [
        ("nf5", Some("nf4")),
        ("4bit", Some("nf4-dq")),
        ("8bit", Some("llm-int8")),
        ("bflot16", Some("bfloat16")),
        ("fp8", Some("`fp8-tensor`, `fp8-channel` or `fp8-128x128`")),
        ("gptq", Some("`gptq-4bit-g128` (`gall` for one group)")),
        ("gptq-4bit", Some("`gptq-4bit-g128` (`gall` for one group)")),
        ("nf4-dd", Some("`nf4`, `nf4-dq` or `nf4-dq-b128`")),
        ("awq-8bit-g128", Some("`awq-4bit-g128`")),
        (
            "hqq-7bit-g64",
            Some("`hqq-4bit-g64` or `hqq-4bit-g64-axis0`"),
        ),
        ("Q4_K_M", Some("q4_K")),
        ("ggml:q4-k", Some("q4_K")),
        ("something-else", None),
        ("", None),
    ] {
        let error = text.parse::<Dtype>().unwrap_err();
        assert_eq!(error.suggestion(), fix, "{text}: {error}");
    }
}
