//! Serving engines under `dry-run`. TONNAGE_TEST_VLLM_PYTHON names a Python with vLLM 0.33 (9 GB, so continuous integration has none);
//! without it the test of vLLM's own start says so and ends. What needs no vLLM is tested always.

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
fn llama_cpp_and_other_commands_of_vllm_are_refused_with_what_to_use() {
    for (command, says) in [
        (
            vec!["llama-server", "-m", "x.gguf"],
            "estimate --gpu ID -- llama-server",
        ),
        (vec!["vllm", "bench", "m"], "vllm serve"),
    ] {
        let o = tonnage(&[&["dry-run", "--"], command.as_slice()].concat());
        assert_eq!(o.status.code(), Some(4), "{}", err(&o));
        assert!(err(&o).contains(says), "{}", err(&o));
        assert!(o.stdout.is_empty());
    }
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
