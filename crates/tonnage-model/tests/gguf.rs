//! The reader of GGUF headers: each mistake is one clear error, nothing panics, and a prefix says how much more is needed.

use std::path::PathBuf;
use tonnage_model::readers::gguf::{
    FileError, Gguf, Progress, SplitName, Value, header, header_of, merge,
};

fn corpus() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/gguf_header")
}

fn file(name: &str) -> Vec<u8> {
    std::fs::read(corpus().join(name)).unwrap()
}

fn done(bytes: &[u8]) -> Gguf {
    match header(bytes, Some(bytes.len() as u64)) {
        Ok(Progress::Done(g)) => *g,
        other => panic!("{other:?}"),
    }
}

#[test]
fn hostile_headers() {
    let listed = [
        ("empty", "ends here"),
        ("magic", "not a GGUF file"),
        ("version_1", "version 1"),
        ("version_9", "version 9"),
        ("big_endian", "big endian"),
        ("too_many_tensors", "too many tensors"),
        ("too_many_values", "too many values"),
        ("value_twice", "`general.architecture`: the key stands"),
        ("tensor_twice", "`token_embd.weight`: the key stands"),
        ("type_of_value", "type 13 of a value"),
        ("array_of_arrays", "nested too deeply"),
        ("array_length", "too many items"),
        ("string_length", "bytes are too many"),
        ("key_length", "bytes are too many (at most 65535)"),
        ("bool_2", "2 is no truth value"),
        ("not_utf8", "not UTF-8"),
        ("removed_type", "q4_2 was removed"),
        ("unknown_type", "unknown ggml type id 99"),
        ("half_block", "not whole blocks of 32"),
        ("five_dims", "5 dimensions is impossible"),
        ("overflow", "more bytes than 64 bits"),
        ("overflow_rows", "more bytes than 64 bits"),
        ("bytes_overflow", "more bytes than 64 bits"),
        ("offset", "begins at byte 64 of the data, expected at 1024"),
        ("alignment_3", "no alignment"),
        ("alignment_text", "no alignment"),
        ("name_length", "at most 63"),
    ];
    for (name, words) in listed {
        let bytes = file(name);
        let message = header(&bytes, Some(bytes.len() as u64))
            .unwrap_err()
            .to_string();
        assert!(message.contains(words), "{name}: {message}");
        assert!(message.len() < 600, "{name}");
    }
    for entry in std::fs::read_dir(corpus()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        for cut in 0..=bytes.len().min(700) {
            let part = &bytes[..cut];
            match header(part, None) {
                Ok(Progress::Need(n)) => assert!(n > cut as u64),
                Ok(Progress::Done(g)) => assert!(g.header_bytes <= cut as u64),
                Err(_) => {}
            }
            // a file that ends here never asks for more
            assert!(!matches!(
                header(part, Some(cut as u64)),
                Ok(Progress::Need(_))
            ));
        }
    }
}

#[test]
fn a_changed_byte_never_panics_and_never_places_a_tensor_outside_the_data() {
    let good = file("good_arrays");
    for at in 0..good.len() {
        for byte in [0, 1, 7, 8, 9, 0x7f, 0x80, 0xff] {
            let mut bytes = good.clone();
            bytes[at] = byte;
            if let Ok(Progress::Done(g)) = header(&bytes, None) {
                for t in &g.tensors {
                    assert!(t.offset + t.bytes <= g.data_bytes, "{at} {byte}");
                }
            }
        }
    }
}

#[test]
fn values_shapes_and_sizes() {
    let g = done(&file("good"));
    assert_eq!(g.architecture(), Some("llama"));
    assert_eq!(g.get("block_count").and_then(Value::as_u64), Some(1));
    let q = g.tensor("blk.0.attn_q.weight").unwrap();
    assert_eq!((q.ne, q.bytes, q.offset), ([32, 32, 1, 1], 32 * 18, 1024));
    assert_eq!(q.elements(), 1024);
    // both are multiples of the alignment already
    assert_eq!(g.data_bytes, 1024 + 576);
    assert_eq!(g.file_bytes(), g.data_start + 1600);
    assert!(g.check_data(g.file_bytes()).is_ok());
    let short = g.check_data(g.header_bytes).unwrap_err().to_string();
    assert!(
        short.contains(&format!("up to {} bytes", g.file_bytes())),
        "{short}"
    );

    let a = done(&file("good_arrays"));
    let items = &a.metadata["a"].as_array().unwrap().items;
    assert_eq!(
        items,
        &[Value::Signed(1), Value::Signed(-2), Value::Signed(3)]
    );
    assert_eq!(a.metadata["b"].as_bool(), Some(true));
    assert_eq!(a.metadata["f"].as_f64(), Some(1.5));
    assert_eq!(a.metadata["q"].as_u64(), None);
    let long = done(&file("long_array"));
    let v = long.metadata["v"].as_array().unwrap();
    assert_eq!((v.len, v.items.len()), (5000, 0));
    let wide = done(&file("alignment_64"));
    assert_eq!((wide.alignment, wide.data_bytes), (64, 128));
    assert_eq!(wide.data_start % 64, 0);
}

#[test]
fn a_prefix_that_grows_reads_the_same_header_in_few_calls() {
    let bytes = file("long_array");
    let (mut have, mut calls) = (0u64, 0);
    let g = loop {
        calls += 1;
        match header(&bytes[..have as usize], Some(bytes.len() as u64)).unwrap() {
            Progress::Need(n) => have = n,
            Progress::Done(g) => break g,
        }
    };
    assert_eq!(*g, done(&bytes));
    assert!(calls < 20, "{calls}");
}

/// A file read a few bytes at a time says what its bytes say, mistakes included.
#[test]
fn a_file_is_read_as_its_bytes_are() {
    let mut seen = 0;
    for entry in std::fs::read_dir(corpus()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let len = bytes.len() as u64;
        let whole = match header(&bytes, Some(len)) {
            Ok(Progress::Done(g)) => Ok(format!("{g:?}")),
            Ok(Progress::Need(_)) => unreachable!("the whole file"),
            Err(e) => Err(e.to_string()),
        };
        let mut read = |at: u64, into: &mut [u8]| {
            let rest = &bytes[(at as usize).min(bytes.len())..];
            let n = rest.len().min(into.len()).min(7);
            into[..n].copy_from_slice(&rest[..n]);
            Ok::<_, ()>(n)
        };
        let parts = match header_of(len, &mut read) {
            Ok(g) => Ok(format!("{g:?}")),
            Err(FileError::Damaged(e)) => Err(e.to_string()),
            Err(FileError::Unread(())) => unreachable!("no read fails"),
        };
        assert_eq!(whole, parts);
        seen += 1;
    }
    assert!(seen > 25);
    let fails = header_of(100, |_, _| Err("disk"));
    assert!(matches!(fails, Err(FileError::Unread("disk"))));
}

#[test]
fn split_models() {
    let name = SplitName::parse("qwen-00002-of-00003.gguf").unwrap();
    assert_eq!((name.prefix.as_str(), name.no, name.count), ("qwen", 1, 3));
    assert_eq!(name.of(2), "qwen-00003-of-00003.gguf");
    for bad in ["qwen.gguf", "q-2-of-3.gguf", "q-00004-of-00003.gguf"] {
        assert_eq!(SplitName::parse(bad), None, "{bad}");
    }
    let part = |no: u64, names: &[&str], total: u64| {
        let mut g = done(&file("good"));
        g.tensors.truncate(names.len());
        for (t, n) in g.tensors.iter_mut().zip(names) {
            t.name = (*n).to_string();
        }
        for (k, v) in [
            ("split.no", no),
            ("split.count", 2),
            ("split.tensors.count", total),
        ] {
            g.metadata.insert(k.into(), Value::Unsigned(v));
        }
        g
    };
    let all = merge(vec![part(0, &["a", "b"], 3), part(1, &["c"], 3)]).unwrap();
    assert_eq!((all.tensors.len(), all.tensors[2].part), (3, 1));
    let errors = [
        (vec![part(0, &["a"], 1)], "split.count`: is 2, expected 1"),
        (
            vec![part(1, &["a"], 2), part(0, &["b"], 2)],
            "split.no`: is 1, expected 0",
        ),
        (
            vec![part(0, &["a"], 2), part(1, &["a"], 2)],
            "`a`: the key stands",
        ),
        (
            vec![part(0, &["a"], 5), part(1, &["b"], 5)],
            "split.tensors.count`: is 5, expected 2",
        ),
    ];
    for (parts, words) in errors {
        let message = merge(parts).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    }
    let single = done(&file("good"));
    assert_eq!(merge(vec![single.clone()]).unwrap(), single);
}
