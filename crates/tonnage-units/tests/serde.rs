//! What files may say.
#![cfg(feature = "serde")]
use serde_json::{from_str, json, to_value};
use tonnage_units::{Bytes, BytesPerSecond, Count, Dtype, ScalarType};

#[test]
fn k35_a_bare_number_in_a_file_is_an_error() {
    assert_eq!(
        from_str::<Bytes>("\"80 GB\"").unwrap(),
        Bytes(80_000_000_000)
    );
    for text in ["80", "80.5", "\"80\"", "-80", "null", "[80]"] {
        assert!(from_str::<Bytes>(text).is_err(), "{text}");
    }
    let error = from_str::<Bytes>("80").unwrap_err().to_string();
    assert!(
        error.contains("`80 GB` (decimal)") && error.contains("`80 GiB` (binary)"),
        "{error}"
    );
}

#[test]
fn text_and_integers() {
    assert_eq!(to_value(Bytes(24 << 30)).unwrap(), json!("24 GiB"));
    assert_eq!(to_value(Bytes(12_345)).unwrap(), json!("12345 B"));
    assert_eq!(from_str::<Count>("1000").unwrap(), Count(1000));
    assert_eq!(from_str::<Count>("\"7B\"").unwrap(), Count(7_000_000_000));
    assert_eq!(
        to_value(BytesPerSecond(900_000_000_000)).unwrap(),
        json!("900 GB/s")
    );
    assert_eq!(
        from_str::<ScalarType>("\"torch.bfloat16\"").unwrap(),
        ScalarType::BF16
    );
    assert!(from_str::<ScalarType>("16").is_err());
    let format: Dtype = from_str("\"nf4-dq\"").unwrap();
    assert_eq!(to_value(format).unwrap(), json!("nf4-dq"));
}

#[test]
fn machine_formats_have_integers() {
    #[derive(serde::Serialize, serde::Deserialize, Debug, PartialEq)]
    struct Row {
        #[serde(with = "tonnage_units::int_bytes")]
        peak: Bytes,
    }
    let row = Row {
        peak: Bytes(u64::MAX),
    };
    let text = serde_json::to_string(&row).unwrap();
    assert_eq!(text, "{\"peak\":18446744073709551615}");
    assert_eq!(from_str::<Row>(&text).unwrap(), row);
    assert!(from_str::<Row>("{\"peak\":-1}").is_err());
    assert!(from_str::<Row>("{\"peak\":\"80 GB\"}").is_err());
}
