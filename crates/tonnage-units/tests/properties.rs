//! Properties over all amounts and formats.
use proptest::prelude::*;
use tonnage_units::{ByteDelta, ByteStyle, Bytes, Count, Dtype, GgmlType, LayoutError, Storage};

fn amounts() -> impl Strategy<Value = u64> {
    // every size of number as often as every other
    (0u32..64, any::<u64>()).prop_map(|(shift, n)| n >> shift)
}

fn units() -> impl Strategy<Value = (&'static str, u128)> {
    prop::sample::select(vec![
        ("B", 1),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
    ])
}

fn formats() -> impl Strategy<Value = Dtype> {
    let names = "float32 bfloat16 float8_e4m3fn uint8 nf4 nf4-dq fp4-b128 nf4-dq-b4096-bfloat16 llm-int8 \
                 gptq-2bit-g64 gptq-3bit-g128 gptq-4bit-gall gptq-8bit-g32-bfloat16 awq-4bit-g128 \
                 awq-gemv-4bit-g64 hqq-8bit-g64 hqq-4bit-g64 hqq-3bit-g64 hqq-2bit-gall-axis0 hqq-1bit-g8 \
                 fp8-tensor fp8-channel-static fp8-128x128 fp8-128x128-e8m0 mxfp4 nvfp4 nvfp4-static";
    let mut all: Vec<Dtype> = names
        .split_whitespace()
        .map(|n| n.parse().unwrap())
        .collect();
    all.extend(GgmlType::ALL.iter().copied().map(Dtype::from));
    prop::sample::select(all)
}

proptest! {
    #[test]
    fn exact_text_round_trips(n in amounts(), d in any::<i64>()) {
        prop_assert_eq!(Bytes(n).exact().parse(), Ok(Bytes(n)));
        prop_assert_eq!(Count(n).exact().parse(), Ok(Count(n)));
        prop_assert_eq!(Count(n).grouped().parse(), Ok(Count(n)));
        prop_assert_eq!(ByteDelta(d.into()).exact().parse(), Ok(ByteDelta(d.into())));
    }

    /// Printed text is within half a printed digit of the amount, in a number below the next unit.
    #[test]
    fn printed_text_is_near(n in amounts()) {
        for (style, base) in [(ByteStyle::Iec, 1024u64), (ByteStyle::Si, 1000)] {
            let text = Bytes(n).display(style).to_string();
            let whole: u64 = text.split(['.', ' ']).next().unwrap().parse().unwrap();
            prop_assert!(whole < base);
            let Ok(read) = text.parse::<Bytes>() else {
                prop_assert_eq!(text, "16.00 EiB"); // one more than the largest
                continue;
            };
            let unit = match text.rsplit(' ').next().unwrap() {
                "B" => { prop_assert_eq!(read.0, n); continue; }
                unit => format!("1 {unit}").parse::<Bytes>().unwrap().0,
            };
            // half a hundredth of the unit, and the byte that the reading rounds to
            prop_assert!(read.0.abs_diff(n) <= unit / 200 + 1, "{} {}", n, text);
        }
    }

    /// GB and GiB are different amounts of the same number, in the ratio of their units.
    #[test]
    fn gb_and_gib(n in 0u64..1_000_000_000) {
        let si: Bytes = format!("{n} GB").parse().unwrap();
        let iec: Bytes = format!("{n} GiB").parse().unwrap();
        prop_assert_eq!(u128::from(si.0) << 30, u128::from(iec.0) * 1_000_000_000);
        prop_assert_eq!(si.exact().parse(), Ok(si));
    }

    /// A decimal is read exactly: compared with its fraction in 128-bit integers.
    #[test]
    fn decimals_are_exact(whole in 0u64..1_000_000, fraction in 0u64..1_000_000, (name, unit) in units()) {
        let text = format!("{whole}.{fraction:06} {name}");
        let millionths = (u128::from(whole) * 1_000_000 + u128::from(fraction)) * unit;
        let expected = (millionths + 500_000) / 1_000_000;
        match text.parse::<Bytes>() {
            Ok(bytes) => prop_assert_eq!(u128::from(bytes.0), expected),
            Err(e) => prop_assert!(unit == 1 && fraction != 0, "{}: {}", text, e),
        }
    }

    #[test]
    fn differences(a in amounts(), b in amounts()) {
        let (a, b) = (Bytes(a), Bytes(b));
        prop_assert_eq!(b.checked_add_delta(a - b), Some(a));
        prop_assert_eq!((a - b).magnitude().0, a.0.abs_diff(b.0));
        prop_assert_eq!((a + b).0, a.0.saturating_add(b.0));
        prop_assert_eq!(Bytes::checked_sum([a, b]), a.checked_add(b));
    }

    /// No input makes a parser panic, and what one accepts round-trips.
    #[test]
    fn parsers_are_total(text in "\\PC{0,40}", odd in "[-+ 0-9._,eEgGiIbBkKmMtTnafNF/sq:x]{0,24}") {
        for text in [text, odd] {
            if let Ok(b) = text.parse::<Bytes>() {
                prop_assert_eq!(b.exact().parse(), Ok(b));
            }
            if let Ok(c) = text.parse::<Count>() {
                prop_assert_eq!(c.exact().parse(), Ok(c));
            }
            if let Ok(f) = text.parse::<Dtype>() {
                prop_assert_eq!(f.to_string().parse(), Ok(f));
            }
            let _ = text.parse::<ByteDelta>();
            let _ = text.parse::<tonnage_units::TokensPerSecond>();
            let _ = text.parse::<tonnage_units::BytesPerSecond>();
        }
    }

    /// Names round-trip; a stored weight's bytes are the sum of its tensors, grow with its rows, and
    /// are within the format's bits a value.
    #[test]
    fn formats_hold(format in formats(), r in 1u64..64, c in 1u64..16) {
        prop_assert_eq!(format.to_string().parse(), Ok(format));
        let (rows, cols) = (r * 32, c * 256);
        let storages = format.storages(rows, cols).unwrap();
        let sum: Bytes = storages.iter().map(Storage::bytes).sum();
        prop_assert_eq!(format.bytes(rows, cols), Ok(sum));
        prop_assert!(format.bytes(rows + 32, cols).unwrap() > sum);
        let bits = sum.0 as f64 * 8.0 / (rows * cols) as f64;
        prop_assert!((1.0..=70.0).contains(&bits), "{}", bits);
        prop_assert!(storages.iter().all(|s| s.numel > 0));
    }

    /// Any shape is stored or refused, never a panic.
    #[test]
    fn any_shape(format in formats(), rows in amounts(), cols in amounts()) {
        match format.bytes(rows, cols) {
            Ok(_) | Err(LayoutError::NotDivisible { .. } | LayoutError::Overflow { .. } | LayoutError::Ggml(_)) => {}
            Err(e) => prop_assert!(false, "{}", e),
        }
        let _ = format.storages_flat(cols);
    }
}
