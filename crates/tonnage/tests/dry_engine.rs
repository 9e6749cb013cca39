//! Serving engines under `dry-run`. TONNAGE_TEST_VLLM_PYTHON names a Python with vLLM 0.33 (9 GB, so continuous integration has none);
//! without it the test of vLLM's own start says so and ends. TONNAGE_TEST_LLAMA_SERVER likewise names llama.cpp's server (0.5.0) with the CUDA
//! backend. What needs no engine is tested always.

mod dry;

use dry::{err, here, records, tonnage};
use serde_json::Value;

fn flags(r: &Value) -> Vec<&str> {
    r["flags"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| f.as_str().unwrap())
        .collect()
}

#[test]
fn other_programs_of_the_engines_are_refused_with_what_to_use() {
    for (command, says) in [
        (vec!["llama-bench", "-m", "x.gguf"], "only `llama-server`"),
        (vec!["ollama", "run", "x"], "llama-server itself"),
        (vec!["llama-server", "-hf", "a/b"], "-m FILE.gguf"),
        (vec!["vllm", "bench", "m"], "vllm serve"),
    ] {
        let o = tonnage(&[&["dry-run", "--"], command.as_slice()].concat());
        assert_eq!(o.status.code(), Some(4), "{}", err(&o));
        assert!(err(&o).contains(says), "{}", err(&o));
        assert!(o.stdout.is_empty());
    }
}

#[test]
fn a_server_that_is_not_there_is_said_so() {
    let o = tonnage(&[
        "dry-run",
        "--gpu",
        "rtx-4090",
        "--",
        "/nowhere/llama-server",
        "-m",
        "qwen2.5-1.5b.Q4_K_M",
    ]);
    assert_eq!(o.status.code(), Some(2));
    let said = err(&o);
    assert!(
        said.starts_with("error: /nowhere/llama-server: no such command"),
        "{said}"
    );
    assert!(
        said.contains("tonnage estimate --gpu ID -- llama-server"),
        "{said}"
    );
}

#[test]
fn committed_starts_of_vllm_are_what_estimate_says() {
    let all = records("dry-run-vllm.jsonl");
    assert!(!all.is_empty());
    for r in &all {
        let model = here("../../catalog/models").join(r["model"].as_str().unwrap());
        let model = model.display().to_string();
        let gpu = r["gpu"].as_str().unwrap();
        let o = tonnage(
            &[
                &[
                    "estimate", "--gpu", gpu, "--format", "json", "--", "vllm", "serve", &model,
                ],
                flags(r).as_slice(),
            ]
            .concat(),
        );
        let v: Value =
            serde_json::from_slice(&o.stdout).unwrap_or_else(|e| panic!("{e} {}", err(&o)));
        if let Some(refusal) = r["engine_says"]["refusal"].as_str() {
            let longest = |text: &str| {
                let (_, rest) = text
                    .split_once("estimated maximum model length is ")
                    .unwrap();
                rest.split(|c: char| !c.is_ascii_digit())
                    .next()
                    .unwrap()
                    .to_string()
            };
            let ours = v["refused"]["message"].as_str().unwrap();
            assert_eq!(longest(ours), longest(refusal), "{}", r["id"]);
            continue;
        }
        let (ours, theirs) = (&v["cache"]["tokens"], &r["engine_says"]["kv_tokens"]);
        assert_eq!(ours, theirs, "{}", r["id"]);
    }
}

#[test]
fn vllm_itself_starts_on_the_null_device_and_says_its_tokens() {
    let Some(python) = std::env::var("TONNAGE_TEST_VLLM_PYTHON")
        .ok()
        .filter(|p| !p.is_empty())
    else {
        eprintln!(
            "\n!!! vllm_itself_starts DID NOT RUN: set TONNAGE_TEST_VLLM_PYTHON to a Python with vLLM 0.33 !!!\n"
        );
        return;
    };
    for r in records("dry-run-vllm.jsonl")
        .iter()
        .filter(|r| r["test"] == true)
    {
        let model = here("../../catalog/models").join(r["model"].as_str().unwrap());
        let model = model.display().to_string();
        let server = [
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            &model,
        ];
        let o = tonnage(
            &[
                &[
                    "dry-run",
                    "--gpu",
                    r["gpu"].as_str().unwrap(),
                    "--format",
                    "json",
                    "--",
                    &python,
                ],
                server.as_slice(),
                flags(r).as_slice(),
            ]
            .concat(),
        );
        assert_eq!(o.status.code(), Some(0), "{}", err(&o));
        let v: Value = serde_json::from_slice(&o.stdout).unwrap();
        assert_eq!(
            v["engine_says"]["kv_tokens"], r["engine_says"]["kv_tokens"],
            "{}",
            r["id"]
        );
        assert_eq!(
            v["engine_says"]["max_concurrency"],
            r["engine_says"]["max_concurrency"]
        );
        assert_eq!((&v["equal"], &v["started"]), (&true.into(), &true.into()));
    }
}

/// (buffer, component) with its bytes, of an answer of `estimate`.
fn buffers(v: &Value) -> std::collections::BTreeMap<(String, String), u64> {
    let mut out = std::collections::BTreeMap::new();
    for l in v["lines"].as_array().unwrap() {
        let word = |k: &str| l[k].as_str().unwrap().to_string();
        *out.entry((word("buffer"), word("component"))).or_insert(0) +=
            l["bytes"].as_u64().unwrap();
    }
    out
}

#[test]
fn committed_starts_of_llama_server_are_what_estimate_says() {
    let all = records("dry-run-llama.jsonl");
    assert!(all.len() >= 20);
    let (mut exact, mut printed) = (0, 0);
    for r in &all {
        let (gpu, model, id) = (
            r["gpu"].as_str().unwrap(),
            r["model"].as_str().unwrap(),
            &r["id"],
        );
        let count = r["gpu_count"].to_string();
        let ask = [
            "estimate",
            "--gpu",
            gpu,
            "--gpu-count",
            &count,
            "--format",
            "json",
            "--",
            "llama-server",
            "-m",
            model,
        ];
        let o = tonnage(&[&ask[..], flags(r).as_slice()].concat());
        let v: Value =
            serde_json::from_slice(&o.stdout).unwrap_or_else(|e| panic!("{e} {}", err(&o)));
        if r["fit_predicted"] == false {
            let said = v["notes"].to_string();
            assert!(said.contains("which is not predicted"), "{id}: {said}");
            continue;
        }
        let says = &r["engine_says"];
        if says["refusal"].is_string() {
            assert_eq!(o.status.code(), Some(1), "{id}");
            if let Some(m) = v["refused"]["message"].as_str() {
                assert_eq!(m, says["refusal"].as_str().unwrap(), "{id}");
                continue;
            }
        } else {
            assert_eq!(o.status.code(), Some(0), "{id}");
        }
        if says["context_len"].is_u64() {
            assert_eq!(v["cache"]["tokens"], says["context_len"], "{id}");
        }
        let ours = buffers(&v);
        let theirs = r["buffers"].as_array().unwrap();
        for b in theirs {
            let key = (
                b["buffer"].as_str().unwrap().to_string(),
                b["component"].as_str().unwrap().to_string(),
            );
            let found = *ours
                .get(&key)
                .unwrap_or_else(|| panic!("{id}: no {key:?} in the estimate"));
            match b["bytes"].as_u64() {
                Some(n) => {
                    assert_eq!(found, n, "{id} {key:?}");
                    exact += 1;
                }
                // what CUDA does not give is known as logged
                None => {
                    let mib = format!("{:.2}", found as f64 / 1024.0 / 1024.0);
                    assert_eq!(mib.parse::<f64>().unwrap(), b["mib"], "{id} {key:?}");
                    printed += 1;
                }
            }
        }
        // nothing is foretold that the engine does not have
        if says["refusal"].is_null() {
            let kinds = [
                "weights",
                "kv_cache",
                "recurrent_state",
                "compute",
                "output",
            ];
            let of_engine = ours
                .iter()
                .filter(|((_, c), n)| kinds.contains(&c.as_str()) && **n > 5242)
                .count();
            assert_eq!(of_engine, theirs.len(), "{id}: {ours:?}");
        }
    }
    assert!(exact > 80 && printed > 15, "{exact} {printed}");
}

#[test]
fn llama_server_itself_starts_on_the_null_device_and_says_its_buffers() {
    let Some(server) = std::env::var("TONNAGE_TEST_LLAMA_SERVER")
        .ok()
        .filter(|p| !p.is_empty())
    else {
        eprintln!(
            "\n!!! llama_server_itself_starts DID NOT RUN: set TONNAGE_TEST_LLAMA_SERVER to a llama-server 0.5.0 with the CUDA backend !!!\n"
        );
        return;
    };
    let mut ran = 0;
    for r in records("dry-run-llama.jsonl")
        .iter()
        .filter(|r| r["test"] == true)
    {
        let count = r["gpu_count"].to_string();
        let ask = [
            "dry-run",
            "--gpu",
            r["gpu"].as_str().unwrap(),
            "--gpu-count",
            &count,
            "--format",
            "json",
            "--",
            &server,
            "-m",
            r["model"].as_str().unwrap(),
        ];
        let o = tonnage(&[&ask[..], flags(r).as_slice()].concat());
        let v: Value =
            serde_json::from_slice(&o.stdout).unwrap_or_else(|e| panic!("{e} {}", err(&o)));
        assert_eq!(v["equal"], true, "{} {v}", r["id"]);
        for key in ["context_len", "refusal"] {
            assert_eq!(v["engine_says"][key], r["engine_says"][key], "{}", r["id"]);
        }
        // equal for the context and layers that were foretold, not for those that the engine had chosen by then
        assert_ne!(v["estimate"]["of_the_engines_fit"], true, "{}", r["id"]);
        let refused = !r["engine_says"]["refusal"].is_null();
        assert_eq!(o.status.code() == Some(0), !refused, "{}", err(&o));
        for b in r["buffers"].as_array().unwrap() {
            let same = |x: &&Value| x["buffer"] == b["buffer"] && x["component"] == b["component"];
            let found = v["buffers"].as_array().unwrap().iter().find(same).unwrap();
            assert_eq!(found["engine_bytes"], b["bytes"], "{}", r["id"]);
            assert_eq!(found["engine_mib"], b["mib"], "{}", r["id"]);
        }
        ran += 1;
    }
    assert!(ran > 3);
}
