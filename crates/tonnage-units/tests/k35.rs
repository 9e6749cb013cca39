//! K35: one unit convention, both shown on request, ASCII only.
use tonnage_units::{
    ByteDelta, ByteStyle, Bytes, BytesPerSecond, Count, Dtype, GgmlType, ScalarType,
};

#[test]
fn k35_gb_gib_round_trip() {
    for n in [1u64, 8, 12, 24, 40, 48, 80, 141, 192] {
        let (si, iec) = (Bytes(n * 1_000_000_000), Bytes(n << 30));
        assert_eq!(format!("{n} GB").parse(), Ok(si));
        assert_eq!(format!("{n} GiB").parse(), Ok(iec));
        assert_ne!(si, iec);
        // printed in its own convention and read again: the same bytes
        for (bytes, style) in [(si, ByteStyle::Si), (iec, ByteStyle::Iec)] {
            assert_eq!(bytes.display(style).to_string().parse(), Ok(bytes));
            assert_eq!(bytes.exact().parse(), Ok(bytes));
        }
        assert_eq!(iec.exact(), format!("{n} GiB"));
    }
}

#[test]
fn k35_both_conventions_on_request() {
    let bytes: Bytes = "14.96 GiB".parse().unwrap();
    assert_eq!(bytes, Bytes(16_063_177_687)); // 1496 * 2^30 / 100 = 16063177687.04
    assert_eq!(bytes.to_string(), "14.96 GiB");
    assert_eq!(bytes.display(ByteStyle::Si).to_string(), "16.06 GB");
    assert_eq!(
        bytes.display(ByteStyle::Both).to_string(),
        "14.96 GiB (16.06 GB)"
    );
    assert_eq!("both".parse(), Ok(ByteStyle::Both));
    // the marketed 80 GB
    let card: Bytes = "80 GB".parse().unwrap();
    assert_eq!(
        card.display(ByteStyle::Both).to_string(),
        "74.51 GiB (80.00 GB)"
    );
}

#[test]
fn k35_everything_printed_is_ascii() {
    let mut printed = vec![
        ByteDelta(-1_500_000_000)
            .display(ByteStyle::Both)
            .to_string(),
        BytesPerSecond(3_350_000_000_000).display(ByteStyle::Both),
        Count(6_738_415_616).to_string(),
        Count(6_738_415_616).grouped(),
    ];
    for shift in 0..64 {
        let bytes = Bytes(1 << shift);
        for style in [ByteStyle::Iec, ByteStyle::Si, ByteStyle::Both] {
            printed.push(bytes.display(style).to_string());
        }
    }
    printed.extend(ScalarType::ALL.iter().map(ToString::to_string));
    printed.extend(GgmlType::ALL.iter().map(|t| Dtype::from(*t).to_string()));
    for text in [
        "",
        "80",
        "80 gb",
        "-1 GB",
        "nan",
        "1,5 GB",
        "0.5 B",
        "1e9 B",
        "99999999 EiB",
    ] {
        printed.push(text.parse::<Bytes>().unwrap_err().to_string());
    }
    for text in printed {
        assert!(text.is_ascii() && !text.contains('\n'), "{text}");
    }
}

/// Input, and what the error suggests to write instead.
#[test]
fn k35_wrong_amounts_name_their_fix() {
    for (text, fix) in [
        ("80", "`80 GB` (decimal), `80 GiB` (binary) or `80 B`"),
        (
            "1_000",
            "`1_000 GB` (decimal), `1_000 GiB` (binary) or `1_000 B`",
        ),
        ("", "`80 GB` (decimal) or `80 GiB` (binary)"),
        ("80 gb", "GB (decimal) or GiB (binary)"),
        ("80 G", "GB (decimal) or GiB (binary)"),
        ("80 Gb", "GB (decimal) or GiB (binary)"),
        ("512 KB", "kB (1000 B) or KiB (1024 B)"),
        ("80Gi", "GiB"),
        ("80 gib", "GiB"),
        ("80 GIB", "GiB"),
        ("80 GigB", "GiB"),
        ("80 GBi", "GB"),
        ("80 tb", "TB"),
        ("5 bytes", "B"),
        ("-80 GB", "80 GB"),
        ("0.5 B", "1 B"),
        ("1.25 B", "1 B"),
        ("1,000 MB", "`1_000 MB`"),
        ("nan GB", "`80 GB` (decimal) or `80 GiB` (binary)"),
        ("-inf", "`80 GB` (decimal) or `80 GiB` (binary)"),
        ("20 EB", "18446744073709551615"),
        ("16 EiB", "18446744073709551615"),
        (
            "340282366920938463463374607431768211456 B",
            "18446744073709551615",
        ),
    ] {
        let error = text.parse::<Bytes>().unwrap_err();
        assert_eq!(error.suggestion(), Some(fix), "{text}: {error}");
        assert!(error.to_string().contains(fix), "{text}: {error}");
    }
    for text in [
        "GB",
        "80 parsecs",
        "1e9 B",
        "+80 GB",
        "1.0000000000000000001 GB",
        "8 0 GB",
        "80 GB 1",
    ] {
        assert!(text.parse::<Bytes>().is_err(), "{text}");
    }
    // 18 digits are still read, trailing zeros are free
    assert_eq!("1.50000000000000000000000 kB".parse(), Ok(Bytes(1500)));
    assert_eq!("15.999999999999999999 EiB".parse(), Ok(Bytes(u64::MAX)));
}

/// Text, bytes: computed with exact fractions, halves up.
#[test]
fn k35_exact_amounts() {
    for (text, bytes) in [
        ("80 GB", 80_000_000_000),
        ("80 GiB", 85_899_345_920),
        ("80GiB", 85_899_345_920),
        (" 80  GiB ", 85_899_345_920),
        ("0.1 GiB", 107_374_182), // 107374182.4
        ("0.3 GiB", 322_122_547), // 322122547.2
        ("0.7 MiB", 734_003),     // 734003.2
        ("0.0005 kB", 1),         // a half
        ("0.0004 kB", 0),
        ("1.1 TB", 1_100_000_000_000),
        ("1.1 TiB", 1_209_462_790_554), // ...553.6
        ("512 MiB", 536_870_912),
        ("1 MB", 1_000_000),
        ("4 KiB", 4096),
        ("4 kB", 4000),
        ("1_048_576 B", 1_048_576),
        ("2.0 B", 2),
        ("0 GB", 0),
        ("18446744073709551615 B", u64::MAX),
        ("9007199254740993 B", 9_007_199_254_740_993), // 2^53 + 1: not an f64
    ] {
        assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
    }
}
