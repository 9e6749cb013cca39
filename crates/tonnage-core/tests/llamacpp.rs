//! llama.cpp to the byte: every recorded case, and every byte of an estimate has an owner.

use std::collections::BTreeMap;
use std::io::Read;
use tonnage_core::serve::llamacpp::{Buft, Device, Kind, Load, Settings, estimate};
use tonnage_core::validate::{Report, record_rows_with};
use tonnage_model::readers::gguf::{Gguf, Progress, header};
use tonnage_units::GgmlType;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../groundtruth/");

fn unpacked(path: &str) -> Option<Vec<u8>> {
    let f = std::fs::File::open(format!("{ROOT}{path}.gz")).ok()?;
    let mut out = Vec::new();
    flate2::read::GzDecoder::new(f).read_to_end(&mut out).ok()?;
    Some(out)
}

fn model(name: &str) -> Gguf {
    let bytes = unpacked(&format!("gguf/{name}.gguf-header")).unwrap();
    match header(&bytes, Some(bytes.len() as u64)).unwrap() {
        Progress::Done(g) => *g,
        Progress::Need(n) => panic!("{name} needs {n} bytes"),
    }
}

/// Metrics that are predicted on every row.
const EXACT: [&str; 13] = [
    "model_bytes",
    "context_bytes",
    "compute_bytes",
    "kv_mib",
    "rs_mib",
    "output_mib",
    "device_total_mib",
    "host_total_mib",
    "n_ctx_actual",
    "n_ctx_seq",
    "refusal",
    "cublas_workspace_bytes",
    "pool_bytes_prefill",
];

#[test]
fn every_recorded_case_to_the_byte() {
    let text = std::fs::read_to_string(format!("{ROOT}llamacpp-dev.jsonl")).unwrap();
    let mut file = |name: &str| unpacked(&format!("gguf/{name}"));
    let mut rows = Vec::new();
    for line in text.lines() {
        let record = serde_json::from_str(line).unwrap();
        rows.extend(record_rows_with(&record, &mut file).unwrap());
    }
    let off: Vec<_> = rows
        .iter()
        .filter(|r| r.unsupported.is_none() && r.error_pct > 0.0)
        .take(5)
        .collect();
    assert!(off.is_empty(), "{off:?}");
    let report = Report::of(rows);
    for metric in EXACT {
        let s = &report.summary[metric]["all"];
        assert_eq!((s.exact, s.unsupported), (s.n, 0), "{metric}: {s:?}");
    }
    let groups: BTreeMap<&str, usize> = report.summary["model_bytes"]
        .iter()
        .map(|(g, s)| (g.as_str(), s.n))
        .collect();
    let expected = [
        ("all", 3010),
        ("cpu", 524),
        ("full", 1751),
        ("multi", 184),
        ("partial", 449),
        ("vulkan", 102),
    ];
    assert_eq!(groups, BTreeMap::from(expected));
}

#[test]
fn every_file_has_the_size_that_its_header_says() {
    let text = std::fs::read_to_string(format!("{ROOT}llamacpp-dev.jsonl")).unwrap();
    let mut seen = BTreeMap::new();
    for line in text.lines() {
        let r: serde_json::Value = serde_json::from_str(line).unwrap();
        if !r["error"].is_null() {
            continue;
        }
        // the published file's header was cut
        if r["note"].is_null() || !r["note"].as_str().unwrap().contains("real file") {
            let name = r["gguf_header"].as_str().unwrap().to_string();
            seen.insert(name, (r["file_size"].clone(), r["tensor_bytes"].clone()));
        }
    }
    assert_eq!(seen.len(), 167);
    for (name, (size, tensors)) in seen {
        let g = model(name.strip_suffix(".gguf-header").unwrap());
        assert_eq!(serde_json::Value::from(g.file_bytes()), size, "{name}");
        let sum: u64 = g.tensors.iter().map(|t| t.bytes).sum();
        assert_eq!(serde_json::Value::from(sum), tensors, "{name}");
    }
}

#[test]
fn every_byte_has_an_owner() {
    let one = Device::default();
    for name in [
        "llama-3.1-8b.Q4_K_M",
        "qwen3-30b-a3b.IQ4_XS",
        "deepseek-v2-lite-nomla.Q4_0",
        "mamba-130m.Q8_0",
        "gemma-2-9b.Q3_K_M",
        "gpt2.Q2_K",
    ] {
        let g = model(name);
        for (devices, gpu_layers, load) in [
            (vec![one], 999, Load::Mmap),
            (vec![one], 5, Load::Read),
            (vec![one; 3], 999, Load::Mmap),
            (vec![], 0, Load::Mmap),
        ] {
            let settings = Settings {
                context_len: 4096,
                n_seq: 2,
                type_k: GgmlType::Q8_0,
                devices,
                gpu_layers,
                load,
                ..Settings::default()
            };
            let e = estimate(&g, &settings).unwrap();
            let mut all = 0;
            for b in &e.buffers {
                let sum: u64 = b.items.iter().map(|i| i.bytes).sum();
                assert_eq!(sum, b.bytes, "{name} {:?} {:?}", b.kind, b.buft);
                all += sum;
            }
            let devices: u64 = (0..3).map(|i| e.device_bytes(i)).sum();
            assert_eq!(devices + e.host_bytes(), all);
            // the largest stage of the graph is named
            let compute = e.buffers.iter().filter(|b| b.kind == Kind::Compute);
            for b in compute.filter(|b| b.bytes > 1 << 20) {
                let named: u64 = b.items.iter().map(|i| i.bytes).max().unwrap_or(0);
                assert!(named > 0, "{name} {:?}", b.buft);
            }
        }
    }
}

#[test]
fn the_cache_of_a_token_is_what_the_published_numbers_say() {
    for (name, expected) in [("llama-2-7b.F16", 524_288), ("llama-3.1-70b.F16", 327_680)] {
        let g = model(name);
        let at = |context_len| {
            let settings = Settings {
                context_len,
                ..Settings::default()
            };
            let e = estimate(&g, &settings).unwrap();
            e.bytes(Buft::Cuda(0), Kind::KvCache)
        };
        assert_eq!((at(8192) - at(4096)) / 4096, expected, "{name}");
    }
}

#[test]
fn what_a_file_lacks_is_named() {
    let good = model("llama-3.2-1b.Q4_K_M");
    let settings = Settings::default();
    let said = |change: &dyn Fn(&mut Gguf), s: &Settings| {
        let mut g = good.clone();
        change(&mut g);
        estimate(&g, s).unwrap_err().to_string()
    };
    type Change<'a> = &'a dyn Fn(&mut Gguf);
    let cases: [(Change, &str); 4] = [
        (
            &|g| drop(g.metadata.remove("llama.block_count")),
            "no `llama.block_count`",
        ),
        (
            &|g| {
                let key = "general.architecture".to_string();
                let name = tonnage_model::readers::gguf::Value::Text("bert".into());
                g.metadata.insert(key, name);
            },
            "architecture `bert` is not supported",
        ),
        (
            &|g| g.tensors.retain(|t| t.name != "blk.3.attn_q.weight"),
            "missing tensor 'blk.3.attn_q.weight'",
        ),
        (
            &|g| {
                let key = "llama.block_count".to_string();
                let many = tonnage_model::readers::gguf::Value::Unsigned(1 << 40);
                g.metadata.insert(key, many);
            },
            "`llama.block_count`",
        ),
    ];
    for (change, words) in cases {
        let message = said(change, &settings);
        assert!(message.contains(words), "{message}");
    }
    let settings = Settings {
        n_seq: 1000,
        ..Settings::default()
    };
    let message = said(&|_| {}, &settings);
    assert!(message.contains("n_seq_max must be <= 256"), "{message}");
}
