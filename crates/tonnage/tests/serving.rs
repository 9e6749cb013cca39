//! Serving engines at the command line: llama.cpp's model files and command lines, vLLM's, what fits; the text against snapshots.
//! `BLESS=1 cargo test -p tonnage --test serving` writes the snapshots anew.

use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Output};

fn tonnage(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tonnage"))
        .args(["--width", "100", "--ascii"])
        .args(args)
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap()
}

fn text(args: &[&str], code: i32) -> String {
    let o = tonnage(args);
    let err = String::from_utf8_lossy(&o.stderr).into_owned();
    assert_eq!(o.status.code(), Some(code), "{args:?}\n{err}");
    String::from_utf8(o.stdout).unwrap() + &err
}

fn json(args: &[&str], code: i32) -> Value {
    serde_json::from_str(&text(args, code)).unwrap()
}

fn snapshot(name: &str, found: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/snapshots")
        .join(format!("{name}.txt"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, expected, "{name}");
}

#[test]
fn a_model_file_with_a_card() {
    let args = [
        "estimate",
        "gemma-3-270m.Q4_K_M",
        "--context-len",
        "8192",
        "--gpu",
        "rtx-3060-12gb",
    ];
    snapshot("serving-gemma", &text(&args, 0));
}

#[test]
fn a_file_is_read_like_the_recorded_header() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gemma-3-270m.Q4_K_M.gguf");
    let gz = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../groundtruth/gguf/gemma-3-270m.Q4_K_M.gguf-header.gz");
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(
        &mut flate2::read::GzDecoder::new(std::fs::File::open(gz).unwrap()),
        &mut bytes,
    )
    .unwrap();
    std::fs::write(&path, &bytes).unwrap();
    let p = path.to_str().unwrap();
    let file = json(&["estimate", p, "-c", "8192", "--format", "json"], 0);
    let own = json(
        &[
            "estimate",
            "gemma-3-270m.Q4_K_M",
            "-c",
            "8192",
            "--format",
            "json",
        ],
        0,
    );
    assert_eq!(file["lines"], own["lines"]);
    // a header alone is said to be truncated, with the size that it should have
    let notes = file["notes"].to_string();
    assert!(notes.contains("246604992"), "{notes}");
    // damaged: an error, not a panic
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let t = text(&["estimate", p], 3);
    assert!(t.contains("GGUF"), "{t}");
}

/// The parts sum to the lines, the lines to the totals, and the figures are those of the recorded run.
#[test]
fn every_byte_has_an_owner() {
    let cases = [
        vec![
            "llama-2-7b.Q4_0",
            "-ngl",
            "20",
            "-c",
            "4096",
            "-ctk",
            "q8_0",
        ],
        vec!["qwen3-30b-a3b.Q4_K_M", "-c", "8192", "--cpu-moe"],
        vec!["mamba-130m.F16", "-c", "4096"],
        vec![
            "llama-3.1-8b.Q4_K_M",
            "-c",
            "8192",
            "--gpu-count",
            "2",
            "--gpu",
            "rtx-4090",
        ],
        vec!["llama-3.1-8b.Q4_K_M", "-c", "8192", "--device", "none"],
    ];
    for mut c in cases {
        c.insert(0, "estimate");
        c.extend(["--format", "json"]);
        let a = json(&c, 0);
        assert_eq!(a["schema"], "tonnage.serving/1");
        let lines = a["lines"].as_array().unwrap();
        for l in lines {
            let parts = l["parts"].as_array().unwrap();
            if !parts.is_empty() {
                let sum: u64 = parts.iter().map(|p| p["bytes"].as_u64().unwrap()).sum();
                assert_eq!(sum, l["bytes"].as_u64().unwrap(), "{c:?} {l}");
            }
        }
        for t in a["totals"].as_array().unwrap() {
            let sum: u64 = lines
                .iter()
                .filter(|l| l["device"] == t["device"])
                .map(|l| l["bytes"].as_u64().unwrap())
                .sum();
            assert_eq!(sum, t["bytes"].as_u64().unwrap(), "{c:?}");
        }
    }
}

#[test]
fn k9_cache_per_token() {
    let token = |model: &str, more: &[&str]| {
        let mut args = vec!["estimate", model, "-c", "4096", "--format", "json"];
        args.extend(more);
        json(&args, 0)["cache"].clone()
    };
    assert_eq!(token("llama-2-7b.F16", &[])["bytes_per_token"], 524_288);
    // grouped heads: 8 of 64
    let c = token("llama-3.1-70b.Q4_K_M", &[]);
    assert_eq!(c["bytes_per_token"], 327_680);
    // 8 sequences of 2,048 tokens: 8.59 GB
    let c = token("llama-2-7b.F16", &["-c", "16384", "-np", "8"]);
    assert_eq!(c["bytes"], 8_589_934_592_u64);
    assert_eq!(c["context_len"], 2048);
    // a quantised cache: 34 bytes for 32 values
    let c = token("llama-2-7b.F16", &["-ctk", "q8_0", "-ctv", "q8_0"]);
    assert_eq!(c["bytes_per_token"], 524_288 / 64 * 34);
}

#[test]
fn ollama_and_vllm_and_the_rest_by_name() {
    for (args, code, words) in [
        (
            vec!["estimate", "--", "sglang", "serve", "m"],
            2,
            "SGLang sizes its cache by the card: --gpu ID is needed",
        ),
        (
            vec!["estimate", "--", "ollama", "run", "llama3.2:3b"],
            4,
            "llama3.2:3b",
        ),
        (
            vec!["estimate", "--", "vlm", "serve", "m"],
            2,
            "did you mean vllm?",
        ),
        (
            vec!["estimate", "--", "vllm", "serve", "Qwen/Qwen2.5-7B"],
            2,
            "--gpu ID is needed",
        ),
        (
            vec![
                "estimate",
                "--gpu",
                "rtx-4090",
                "--",
                "vllm",
                "serve",
                "Qwen/Qwen2.5-7B",
                "--max-model-length",
                "5",
            ],
            2,
            "did you mean --max-model-len?",
        ),
        (
            vec![
                "estimate",
                "--gpu",
                "rtx-4090",
                "--",
                "vllm",
                "serve",
                "Qwen/Qwen2.5-7B",
                "--enable-lora",
            ],
            4,
            "--enable-lora is not modelled",
        ),
        (
            vec!["estimate", "llama-2-7b.Q4_0", "--ctxsize", "4"],
            2,
            "did you mean --ctx-size?",
        ),
        (
            vec!["estimate", "llama-2-7b.Q4_0", "-ctk", "q4_K"],
            2,
            "q8_0",
        ),
        (
            vec!["fit", "llama-2-7b.Q4_1", "--gpu", "rtx-4090"],
            2,
            "did you mean llama-2-7b.Q4_",
        ),
    ] {
        let t = text(&args, code);
        assert!(t.contains(words), "{args:?}\n{t}");
    }
}

#[test]
fn llama_server_refuses_in_its_own_words() {
    let t = text(
        &[
            "estimate",
            "llama-2-7b.Q4_0",
            "-c",
            "4096",
            "-ctv",
            "q8_0",
            "-fa",
            "off",
        ],
        1,
    );
    assert!(t.contains("quantized V cache requires flash_attn"), "{t}");
}

#[test]
fn vllm_on_a_card() {
    let line = [
        "estimate",
        "--gpu",
        "rtx-4090",
        "--",
        "vllm",
        "serve",
        "Qwen/Qwen2.5-7B",
    ];
    let mut short = line.to_vec();
    short.extend([
        "--max-model-len",
        "8192",
        "--port=8001",
        "--disable-log-stats",
    ]);
    snapshot("serving-vllm", &text(&short, 0));
    // the model's whole length is refused, and every remedy is one
    let t = text(&line, 1);
    snapshot("serving-vllm-refused", &t);
    let longest = t.split("maximum model length is ").nth(1).unwrap();
    let longest: u64 = longest.split('.').next().unwrap().parse().unwrap();
    let with = |n: u64, code| {
        let n = n.to_string();
        let mut a = line.to_vec();
        a.extend(["--max-model-len", n.as_str()]);
        text(&a, code)
    };
    with(longest, 0);
    with(longest + 1, 1);
}

/// The limits are the estimator's own: the flags of each point, given to `estimate`, have the same verdict.
#[test]
fn what_fits_and_the_next_that_does_not() {
    let card = ["--gpu", "rtx-3060-12gb"];
    let a = ["fit", "qwen3-30b-a3b.Q4_K_M", card[0], card[1]];
    snapshot("fit-qwen3-30b-a3b", &text(&a, 0));
    let f = json(&["fit", a[1], card[0], card[1], "--format", "json"], 0);
    assert_eq!(f["schema"], "tonnage.fit/1");
    let mut asked = 0;
    for l in f["limits"].as_array().unwrap() {
        for (point, code) in [("fits", 0), ("next", 1)] {
            let Some(flags) = l[point]["flags"].as_str() else {
                continue;
            };
            let mut args = vec!["estimate", card[0], card[1], "--", "llama-server"];
            if !flags.contains("-m ") {
                args.extend(["-m", a[1]]);
            }
            args.extend(flags.split(' '));
            text(&args, code);
            asked += 1;
        }
    }
    assert!(asked >= 6, "{asked}");
    snapshot(
        "fit-vllm-qwen2.5-7b",
        &text(
            &[
                "fit",
                "--gpu",
                "rtx-4090",
                "--",
                "vllm",
                "serve",
                "Qwen/Qwen2.5-7B",
            ],
            0,
        ),
    );
}

#[test]
fn sglang_by_its_own_fraction() {
    let of = |more: &[&str], code: i32| {
        let mut args = vec!["estimate", "--gpu", "h100-sxm", "--format", "json", "--"];
        args.extend(["sglang", "serve", "--model-path", "Qwen/Qwen2.5-7B"]);
        args.extend(more);
        json(&args, code)
    };
    let bytes = |v: &serde_json::Value, name: &str| -> f64 {
        v["lines"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|l| l["component"] == name)
            .map(|l| l["bytes"].as_f64().unwrap())
            .sum()
    };
    let v = of(&["--mem-fraction-static", "0.8"], 0);
    assert_eq!(v["engine"], "SGLang");
    // 28 layers, 4 heads of 128 for keys and values, 16 bits
    assert_eq!(v["cache"]["bytes_per_token"], 57_344);
    // what is kept free is a fifth of what was free, and weights and pool are the rest
    let kept = bytes(&v, "activations");
    let rest = bytes(&v, "weights") + bytes(&v, "kv_cache");
    assert!((rest / kept - 4.0).abs() < 1e-4, "{rest} {kept}");
    assert!(v["notes"][0].as_str().unwrap().starts_with("unverified"));
    // the pool's page comes on top, and a limit is kept
    let v = of(&["--max-total-tokens", "100000", "--page-size", "64"], 0);
    assert_eq!(v["cache"]["tokens"], 99_968);
    assert_eq!(v["cache"]["bytes"], (99_968 + 64) * 57_344_u64);
    let v = of(&["--mem-fraction-static", "0.1"], 1);
    assert!(
        v["refused"]["message"]
            .as_str()
            .unwrap()
            .starts_with("Loaded weights leave no GPU memory for the KV cache")
    );
    let o = tonnage(&[
        "estimate",
        "--gpu",
        "h100-sxm",
        "--",
        "sglang",
        "serve",
        "m",
        "--enable-lora",
    ]);
    assert_eq!(o.status.code(), Some(4));
}
