//! Readers of untrusted files: each mistake is one clear error; nothing panics.

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tonnage_model::count::count;
use tonnage_model::readers::{Header, Position, Problem, Progress, config, index, safetensors};

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|f| {
            let path = f.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(path).unwrap())
        })
        .collect();
    files.sort();
    assert!(files.len() >= 20, "{target}: {}", files.len());
    files
}

/// One outcome for each file of a corpus: "ok" or the message. Files that only a fuzzer added are run, but not listed.
fn outcomes(target: &str, run: impl Fn(&[u8]) -> Result<(), String>, listed: &[(&str, &str)]) {
    let results: BTreeMap<String, String> = corpus(target)
        .into_iter()
        .map(|(name, bytes)| {
            // every beginning of the file as well: a reader meets files that are still being written
            for cut in 0..bytes.len().min(300) {
                let _ = run(&bytes[..cut]);
            }
            let outcome = run(&bytes).err().unwrap_or_else(|| "ok".into());
            assert!(outcome.len() < 600, "{target}/{name}: {}", outcome.len());
            (name, outcome)
        })
        .collect();
    for (name, words) in listed {
        let outcome = &results[*name];
        if *words == "ok" {
            assert_eq!(outcome, "ok", "{target}/{name}");
        } else {
            assert!(outcome.contains(words), "{target}/{name}: {outcome}");
        }
    }
}

#[test]
fn hostile_configurations() {
    let run = |bytes: &[u8]| {
        let c = config::parse(bytes).map_err(|e| e.to_string())?;
        count(c.value()).map(drop).map_err(|e| e.to_string())
    };
    outcomes(
        "config_json",
        run,
        &[
            ("good", "ok"),
            ("empty", "line 1, column 1: the file ends here"),
            ("truncated_string", "the file ends here"),
            ("deep_lists", "nested too deeply (at most 32 levels)"),
            ("deep_objects", "nested too deeply"),
            (
                "duplicate_key",
                "line 2, column 2, `hidden_size`: the key stands here a second time",
            ),
            (
                "nested_duplicate",
                "`text_config.a`: the key stands here a second time",
            ),
            (
                "zero",
                "line 1, column 17, `hidden_size`: 0 is impossible (it must be from 1 to 1048576)",
            ),
            ("negative", "-1 is impossible"),
            ("enormous", "18446744073709551615 is impossible"),
            ("beyond_u64", "must be a whole number"),
            ("exponent", "too large a number"),
            (
                "nan",
                "`hidden_size`: a number that is not finite is impossible",
            ),
            ("infinity", "`hidden_size`: a number that is not finite"),
            ("float_size", "must be a whole number, is 64.5"),
            ("text_size", "must be a whole number, is a text"),
            (
                "heads",
                "`num_attention_heads`: 6 heads do not divide hidden_size 1024",
            ),
            (
                "kv_heads",
                "`num_key_value_heads`: 5 do not divide the 32 heads",
            ),
            ("nested", "`text_config.hidden_size`: 0 is impossible"),
            ("trailing_comma", "a key in double quotes"),
            ("comment", "`,` or `}`"),
            ("two_values", "something follows the end"),
            ("not_utf8", "line 1, column 8: not UTF-8"),
            ("bom", "a value is expected"),
            ("lone_surrogate", "half of a surrogate pair"),
            ("control", "a control character"),
            ("leading_zero", "not a number as JSON writes them"),
            ("list", "must be an object, is a list"),
            ("unknown_type", "did you mean `llama`?"),
            ("missing_type", "model_type: is missing"),
            ("pattern", "there is no character"),
        ],
    );
}

/// Equal, with fractions to the last place but one (the other parser does not round correctly by default).
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| same(v, w)))
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(v, w)| same(v, w))
        }
        (Value::Number(a), Value::Number(b)) if a.is_f64() && b.is_f64() => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            (a - b).abs() <= 4.0 * f64::EPSILON * a.abs()
        }
        _ => a == b,
    }
}

#[test]
fn every_embedded_configuration_passes() {
    for m in tonnage_catalog::models() {
        let c = config::parse(m.config().as_bytes()).unwrap_or_else(|e| panic!("{}: {e}", m.id));
        assert_eq!(c.model_type().unwrap(), m.model_type);
        let other: Value = serde_json::from_str(m.config()).unwrap();
        assert!(same(c.value(), &other), "{}", m.id);
    }
}

#[test]
fn a_field_is_found_in_its_file() {
    let text = "{\n  \"model_type\": \"gemma3\",\n  \"text_config\": {\n    \"é\": 1, \"hidden_size\": 8\n  }\n}";
    let c = config::parse(text.as_bytes()).unwrap();
    let at = c.position("text_config.hidden_size").unwrap();
    assert_eq!(
        at,
        Position {
            line: 4,
            column: 28
        }
    );
    assert_eq!(c.position("text_config.heads"), None);
    let big = format!("{{\"a\": \"{}\"}}", "x".repeat(9 << 20));
    let e = config::parse(big.as_bytes()).unwrap_err();
    assert!(
        matches!(
            e.problem,
            Problem::TooLarge {
                most: 8_388_608,
                ..
            }
        ),
        "{e}"
    );
    let many = format!("[{}1]", "1,".repeat(600_000));
    let e = config::parse(many.as_bytes()).unwrap_err();
    assert!(matches!(e.problem, Problem::TooMany { .. }), "{e}");
}

fn whole(bytes: &[u8]) -> Result<Header, String> {
    match safetensors::header(bytes, Some(bytes.len() as u64)) {
        Ok(Progress::Done(h)) => Ok(h),
        Ok(Progress::Need(n)) => panic!("{n} bytes of {} are there", bytes.len()),
        Err(e) => Err(e.to_string()),
    }
}

#[test]
fn hostile_headers() {
    outcomes(
        "safetensors_header",
        |bytes| {
            // without the length nothing may be demanded that a lying header could inflate
            if let Ok(Progress::Need(n)) = safetensors::header(bytes, None) {
                assert!(n <= 8 + safetensors::MAX_HEADER);
            }
            whole(bytes).map(drop)
        },
        &[
            ("good", "ok"),
            ("unsorted_names", "ok"),
            ("padded", "ok"),
            ("no_tensors", "ok"),
            ("zero_dim", "ok"),
            ("scalar", "ok"),
            ("unknown_dtype", "ok"),
            ("extra_field", "ok"),
            ("empty", "the length of the header (8 bytes) is expected"),
            ("short_length", "the length of the header"),
            (
                "length_max",
                "18446744073709551615 bytes are too many (at most 100000000)",
            ),
            ("length_over_limit", "100000001 bytes are too many"),
            ("length_zero", "cannot be an object"),
            ("length_beyond_file", "a header of 4000 bytes is expected"),
            (
                "overlap",
                "`b`: it begins at 8, inside the tensor that ends at 16",
            ),
            ("hole", "`b`: the 4 bytes before it belong to no tensor"),
            ("not_at_zero", "the 4 bytes before it"),
            (
                "out_of_file",
                "the tensors take 4000000 bytes, the file holds 16",
            ),
            (
                "file_longer",
                "the tensors take 16 bytes, the file holds 64",
            ),
            ("reversed", "it begins at 16, after its end at 0"),
            (
                "size_mismatch",
                "F32 of [5] is 160 bits, the offsets hold 128",
            ),
            ("overflow_shape", "too many elements"),
            ("huge_offsets", "the 18446744073709551599 bytes before it"),
            ("half_byte", "F4 of [3] is 12 bits"),
            ("duplicate_tensor", "`a`: the key stands here a second time"),
            (
                "duplicate_field",
                "`a.dtype`: the key stands here a second time",
            ),
            ("missing_dtype", "`a.dtype`: is missing"),
            ("missing_shape", "`a.shape`: is missing"),
            ("missing_offsets", "`a.data_offsets`: is missing"),
            ("three_offsets", "too many numbers in this list (at most 2)"),
            ("one_offset", "must be two numbers"),
            ("many_dims", "at most 64"),
            ("negative_dim", "a whole number that is not negative, is -1"),
            ("float_dim", "is 1.5"),
            ("metadata_number", "`format`: must be a text, is a number"),
            ("metadata_twice", "a second time"),
            ("list", "an object (`{`) is expected"),
            ("deep", "nested too deeply"),
            ("deep_extra", "nested too deeply"),
            ("not_utf8", "not UTF-8"),
            ("truncated_json", "the file ends here"),
            ("long_name", "nnn...`"),
        ],
    );
}

#[test]
fn a_header_by_range_requests() {
    let (_, bytes) = corpus("safetensors_header")
        .into_iter()
        .find(|(n, _)| n == "good")
        .unwrap();
    let Ok(Progress::Need(8)) = safetensors::header(&bytes[..0], None) else {
        panic!("eight bytes first");
    };
    let Ok(Progress::Need(n)) = safetensors::header(&bytes[..8], None) else {
        panic!("then the header");
    };
    assert_eq!(n, bytes.len() as u64 - 32);
    let Ok(Progress::Done(h)) = safetensors::header(&bytes[..n as usize], None) else {
        panic!("then it is read, without the tensors");
    };
    let seen: Vec<(&str, u64, u64)> = h
        .tensors
        .iter()
        .map(|t| (t.name.as_str(), t.elements(), t.bytes()))
        .collect();
    assert_eq!(seen, [("a", 4, 16), ("b", 4, 16)]);
    assert_eq!(h.metadata["format"], "pt");
}

/// Positions and duplicates cost no more than the text: a header in one line of 4 MB with 60,000 tensors.
#[test]
fn a_long_header_is_linear() {
    let mut json = String::from("{");
    for i in 0..60_000u64 {
        let (b, e) = (i * 4, i * 4 + 4);
        json += &format!(
            "\"model.layers.{i}.w\":{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[{b},{e}]}},"
        );
    }
    json.pop();
    json.push('}');
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    let Ok(Progress::Done(h)) = safetensors::header(&bytes, Some(bytes.len() as u64 + 240_000))
    else {
        panic!("a good header");
    };
    assert_eq!(h.tensors.len(), 60_000);
}

#[test]
fn hostile_indexes() {
    let run = |bytes: &[u8]| index::parse(bytes).map(drop).map_err(|e| e.to_string());
    let plain = "is not the plain name of a file";
    outcomes(
        "safetensors_index",
        run,
        &[
            ("good", "ok"),
            ("float_total", "ok"),
            ("empty_map", "ok"),
            ("fraction_total", "must be a whole number of bytes"),
            ("text_total", "must be a whole number of bytes, is a text"),
            ("no_map", "`weight_map`: is missing"),
            (
                "map_twice",
                "`weight_map`: the key stands here a second time",
            ),
            ("total_twice", "a second time"),
            (
                "duplicate",
                "`weight_map.a`: the key stands here a second time",
            ),
            ("file_parent", plain),
            ("file_absolute", plain),
            ("file_backslash", plain),
            ("file_dots", plain),
            ("file_empty", plain),
            ("file_drive", plain),
            ("file_control", plain),
            ("long_file", plain),
            ("number_file", "must be the name of a file, is a number"),
            ("list_map", "an object (`{`) is expected"),
            ("truncated", "the file ends here"),
            ("deep", "nested too deeply"),
        ],
    );
}

#[test]
fn index_and_headers_must_agree() {
    let tensor = |name: &str, begin: u64| safetensors::StoredTensor {
        name: name.into(),
        dtype: safetensors::StoredType {
            name: "F32".into(),
            bits: Some(32),
        },
        shape: vec![4],
        begin,
        end: begin + 16,
    };
    let file = |tensors: &[&str]| Header {
        tensors: tensors
            .iter()
            .enumerate()
            .map(|(i, n)| tensor(n, 16 * i as u64))
            .collect(),
        ..Header::default()
    };
    let index = |text: &str| index::parse(text.as_bytes()).unwrap();
    let i = index(r#"{"metadata":{"total_size":48},"weight_map":{"c":"2","a":"1","b":"1"}}"#);
    assert_eq!(i.shards, ["1", "2"]);
    let with = |one: &[&str], two: &[&str]| {
        let headers = BTreeMap::from([("1".to_string(), file(one)), ("2".to_string(), file(two))]);
        i.inventory(&headers)
            .map(|t| t.len())
            .map_err(|e| e.to_string())
    };
    assert_eq!(with(&["a", "b"], &["c"]), Ok(3));
    for (one, two, words) in [
        (
            &["a"][..],
            &["c"][..],
            "`b`: the index says 1, it is not there",
        ),
        (&["a"], &["b", "c"], "`b`: the index says 1, it is in 2"),
        (
            &["a", "b", "d"],
            &["c"],
            "`d`: a file holds it, the index does not name it",
        ),
        (&["a", "b"], &["b", "c"], "`b`: it is in 1 and in 2"),
    ] {
        let e = with(one, two).unwrap_err();
        assert!(e.contains(words), "{e}");
    }
    let e = i.inventory(&BTreeMap::new()).unwrap_err().to_string();
    assert!(e.contains("header is missing"), "{e}");
    let wrong = index(r#"{"metadata":{"total_size":47},"weight_map":{"a":"1"}}"#);
    let e = wrong
        .inventory(&BTreeMap::from([("1".to_string(), file(&["a"]))]))
        .unwrap_err()
        .to_string();
    assert!(e.contains("47 is not the sum of the tensors, 16"), "{e}");
}
