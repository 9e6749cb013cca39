//! Models that are not built in, as a user meets them: folders, the cache, a hub, no network.

mod common;
#[path = "../../tonnage-host/tests/common/mod.rs"]
mod server;

use common::{stderr, stdout};
use serde_json::Value;
use server::{COMMIT, CONFIG, cache_entry, file, hub, safetensors, sharded, status, tensors};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// The program in `dir`, with nothing of the caller's Hugging Face settings.
fn run(dir: &Path, vars: &[(&str, &str)], args: &[&str]) -> Output {
    let mut c = Command::new(env!("CARGO_BIN_EXE_tonnage"));
    for (k, _) in std::env::vars() {
        if k.starts_with("HF_") || k.contains("HUGGING") || k.starts_with("TRANSFORMERS") {
            c.env_remove(k);
        }
    }
    c.args(args)
        .current_dir(dir)
        .env("HOME", dir)
        .env_remove("XDG_CACHE_HOME")
        .envs(vars.iter().copied())
        .output()
        .unwrap()
}

fn json(o: &Output) -> Value {
    serde_json::from_slice(&o.stdout).unwrap_or_else(|e| panic!("{e}: {}", stderr(o)))
}

/// Every note of an estimate.
fn notes(v: &Value) -> String {
    v["notes"].to_string()
}

const JOB: [&str; 8] = [
    "--seq-len",
    "16",
    "--precision",
    "fp32",
    "--format",
    "json",
    "--expected-only",
    "--model",
];

fn estimate<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["estimate"][..], &JOB, &[model], more].concat()
}

fn whole() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("config.json", CONFIG.into()),
        ("model.safetensors", safetensors(&tensors())),
    ]
}

#[test]
fn a_hub_id_is_a_model_and_gives_what_its_folder_gives() {
    let d = tempfile::tempdir().unwrap();
    let s = hub(whole());
    let url = s.url();
    let vars = [("HF_ENDPOINT", url.as_str())];
    let o = run(d.path(), &vars, &estimate("org/tiny", &[]));
    assert_eq!(o.status.code(), Some(0), "{}", stderr(&o));
    let from_hub = json(&o);
    assert!(
        notes(&from_hub).contains(&format!("from: {url} at {}", &COMMIT[..12])),
        "{}",
        notes(&from_hub)
    );
    assert!(
        !notes(&from_hub).contains("counted"),
        "{}",
        notes(&from_hub)
    );
    let folder = d.path().join("mine");
    std::fs::create_dir(&folder).unwrap();
    for (name, bytes) in whole() {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
    let before = s.requests().len();
    for how in [
        &["--model", "./mine"][..],
        &["--model-path", "mine"],
        &["--model", "mine"],
    ] {
        let args = [&["estimate"][..], &JOB[..7], how].concat();
        let v = json(&run(d.path(), &vars, &args));
        for part in ["peak", "components", "modules"] {
            assert_eq!(v[part], from_hub[part], "{how:?} {part}");
        }
    }
    assert_eq!(s.requests().len(), before, "a folder needs no hub");
    // what is built in needs none either
    let o = run(d.path(), &vars, &estimate("openai-community/gpt2", &[]));
    assert_eq!((o.status.code(), s.requests().len()), (Some(0), before));
    // and nothing was written
    let left: Vec<_> = std::fs::read_dir(d.path())
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert_eq!(left, ["mine"]);
}

#[test]
fn a_job_file_names_id_and_revision_and_mistakes_point_at_its_line() {
    let d = tempfile::tempdir().unwrap();
    let s = hub(whole());
    let url = s.url();
    let vars = [("HF_ENDPOINT", url.as_str())];
    let write = |text: &str| std::fs::write(d.path().join("job.toml"), text).unwrap();
    write("[model]\nid = \"org/tiny\"\nrevision = \"v1\"\n[train]\nseq_len = 16\n");
    let o = run(d.path(), &vars, &["estimate", "job.toml"]);
    assert_eq!(o.status.code(), Some(0), "{}", stderr(&o));
    assert!(s.paths()[0].contains("/resolve/v1/"), "{:?}", s.paths());
    write("[model]\nid = \"org/tiny\"\nrevision = \"v9\"\n[train]\nseq_len = 16\n");
    let o = run(d.path(), &vars, &["estimate", "job.toml"]);
    assert_eq!(o.status.code(), Some(3));
    let e = stderr(&o);
    assert!(
        e.contains("org/tiny has no revision `v9`") && e.contains("job.toml:2:"),
        "{e}"
    );
    write("[model]\ntype = \"gpt2\"\nrevision = \"v9\"\n");
    let o = run(d.path(), &vars, &["estimate", "job.toml"]);
    assert!(
        stderr(&o).contains("no `model.id` that has it"),
        "{}",
        stderr(&o)
    );
}

#[test]
fn the_cache_of_every_variable_is_found_without_a_network() {
    let d = tempfile::tempdir().unwrap();
    let hubs = [
        ("HF_HUB_CACHE", "a", "a"),
        ("HUGGINGFACE_HUB_CACHE", "b", "b"),
        ("HF_HOME", "c", "c/hub"),
        ("XDG_CACHE_HOME", "d", "d/huggingface/hub"),
        ("", "", ".cache/huggingface/hub"),
    ];
    for (variable, value, place) in hubs {
        cache_entry(&d.path().join(place), "org/tiny", &whole());
        let value = d.path().join(value);
        let mut vars = vec![("HF_HUB_OFFLINE", "1")];
        if !variable.is_empty() {
            vars.push((variable, value.to_str().unwrap()));
        }
        let o = run(d.path(), &vars, &estimate("org/tiny", &[]));
        assert_eq!(o.status.code(), Some(0), "{variable}: {}", stderr(&o));
        assert!(
            notes(&json(&o)).contains("Hugging Face cache at 0123"),
            "{variable}"
        );
        std::fs::remove_dir_all(d.path().join(place)).unwrap();
    }
}

#[test]
fn offline_is_refused_at_once() {
    let d = tempfile::tempdir().unwrap();
    let s = hub(whole());
    let url = s.url();
    let vars = [("HF_ENDPOINT", url.as_str()), ("HF_HUB_OFFLINE", "1")];
    run(d.path(), &vars, &["--version"]);
    let best = (0..5)
        .map(|_| {
            let start = Instant::now();
            let o = run(d.path(), &vars, &estimate("org/tiny", &[]));
            assert_eq!(o.status.code(), Some(4));
            let e = stderr(&o);
            assert!(
                e.contains("HF_HUB_OFFLINE forbids") && e.contains("unset HF_HUB_OFFLINE"),
                "{e}"
            );
            start.elapsed()
        })
        .min()
        .unwrap();
    assert!(best < Duration::from_millis(100), "{best:?}");
    assert!(s.requests().is_empty());
}

#[test]
fn gated_missing_and_unreachable_are_one_sentence_with_a_remedy() {
    let d = tempfile::tempdir().unwrap();
    let s = server::Server::new(|_| status(403, &[("X-Error-Code", "GatedRepo")]));
    let url = s.url();
    let o = run(
        d.path(),
        &[("HF_ENDPOINT", &url)],
        &estimate("org/gated", &[]),
    );
    let e = stderr(&o);
    assert_eq!(o.status.code(), Some(4));
    assert!(
        e.starts_with("error: org/gated is gated, and no token is given\n"),
        "{e}"
    );
    assert!(
        e.contains(&format!(
            "accept its conditions at {url}/org/gated, then set HF_TOKEN"
        )),
        "{e}"
    );
    std::fs::write(d.path().join("secret"), "hf_abc\n").unwrap();
    let path = d.path().join("secret");
    let vars = [
        ("HF_ENDPOINT", url.as_str()),
        ("HF_TOKEN_PATH", path.to_str().unwrap()),
    ];
    let o = run(d.path(), &vars, &estimate("org/gated", &[]));
    assert!(
        stderr(&o).contains("this token has no access to it") && !stderr(&o).contains("hf_abc"),
        "{}",
        stderr(&o)
    );
    assert_eq!(
        s.requests().last().unwrap().header("authorization"),
        Some("Bearer hf_abc")
    );
    // a slip in a built-in id is told from a missing model
    let s = server::Server::new(|_| status(401, &[]));
    let url = s.url();
    let o = run(
        d.path(),
        &[("HF_ENDPOINT", &url)],
        &estimate("meta-llama/Llama-2-7b-hff", &[]),
    );
    assert!(
        stderr(&o).contains("did you mean meta-llama/Llama-2-7b-hf"),
        "{}",
        stderr(&o)
    );
    let o = run(
        d.path(),
        &[("HF_ENDPOINT", "http://127.0.0.1:9")],
        &estimate("org/tiny", &[]),
    );
    assert_eq!(o.status.code(), Some(4));
    assert!(
        stderr(&o).contains("127.0.0.1:9 cannot be reached"),
        "{}",
        stderr(&o)
    );
    // a name without an organisation is never asked for
    let o = run(d.path(), &[("HF_ENDPOINT", &url)], &estimate("gtp2", &[]));
    assert_eq!(o.status.code(), Some(3));
    assert!(
        stderr(&o).contains("openai-community/gpt2"),
        "{}",
        stderr(&o)
    );
    for bad in ["../../etc/passwd", "org/na me", "a/b/c/d"] {
        let o = run(d.path(), &[("HF_ENDPOINT", &url)], &estimate(bad, &[]));
        assert_eq!(o.status.code(), Some(3), "{bad}");
        assert!(
            stderr(&o).contains("is not the id of a model"),
            "{}",
            stderr(&o)
        );
    }
}

#[test]
fn a_checkpoint_that_holds_something_else_is_a_note_that_names_it() {
    let d = tempfile::tempdir().unwrap();
    let mut t = tensors();
    t.push(("score.weight", &[2, 8]));
    let s = hub(vec![
        ("config.json", CONFIG.into()),
        ("model.safetensors", safetensors(&t)),
    ]);
    let url = s.url();
    let vars = [("HF_ENDPOINT", url.as_str())];
    let o = run(
        d.path(),
        &vars,
        &[
            "estimate",
            "--model",
            "org/tiny",
            "--seq-len",
            "16",
            "--width",
            "140",
        ],
    );
    let text = stdout(&o);
    assert!(
        text.contains("1_704 parameters, 1_688 are counted"),
        "{text}"
    );
    assert!(
        text.contains("only in the files: score.weight (16)"),
        "{text}"
    );
}

#[test]
fn models_shows_one_model_from_everywhere() {
    let d = tempfile::tempdir().unwrap();
    let mut files = vec![("config.json", Vec::from(CONFIG))];
    files.extend(sharded());
    let s = hub(files);
    let url = s.url();
    let vars = [("HF_ENDPOINT", url.as_str())];
    let o = run(d.path(), &vars, &["models", "org/tiny"]);
    let text = stdout(&o);
    assert!(
        text.starts_with("org/tiny: llama, 1_688 parameters\n"),
        "{text}"
    );
    assert!(
        text.contains("12 tensors in the safetensors headers, the same number of parameters"),
        "{text}"
    );
    let v = json(&run(
        d.path(),
        &vars,
        &["models", "org/tiny", "--format", "json"],
    ));
    assert_eq!(
        (v["parameters"].as_u64(), v["stored"]["equal"].as_bool()),
        (Some(1688), Some(true))
    );
    assert_eq!(v["commit"], COMMIT);
    let before = s.requests().len();
    let o = run(d.path(), &vars, &["models", "openai-community/gpt2"]);
    assert!(
        stdout(&o).starts_with("openai-community/gpt2: gpt2, 124_439_808 parameters\n"),
        "{}",
        stdout(&o)
    );
    assert!(stdout(&o).contains("built in"));
    assert_eq!(s.requests().len(), before);
    let o = run(
        d.path(),
        &[("HF_HUB_OFFLINE", "1")],
        &["models", "org/tiny"],
    );
    assert_eq!(o.status.code(), Some(4));
}

#[test]
fn an_adapter_is_its_base_model_with_lora() {
    let d = tempfile::tempdir().unwrap();
    let config = br#"{"peft_type":"LORA","base_model_name_or_path":"openai-community/gpt2","r":4,"lora_alpha":8,
        "target_modules":["c_attn"],"lora_dropout":0.0}"#;
    std::fs::write(d.path().join("adapter_config.json"), config).unwrap();
    let o = run(d.path(), &[("HF_HUB_OFFLINE", "1")], &estimate(".", &[]));
    let v = json(&o);
    // A: 768 x 4, B: 4 x 2304, twelve layers
    assert_eq!(v["model"]["trainable_count"], 12 * 4 * (768 + 2304));
    assert!(notes(&v).contains("an adapter"), "{}", notes(&v));
    let own = json(&run(d.path(), &[], &estimate(".", &["--lora-r", "8"])));
    assert_eq!(
        own["model"]["trainable_count"],
        12 * 8 * (768 + 2304),
        "what the user says goes first"
    );
    std::fs::write(
        d.path().join("adapter_config.json"),
        br#"{"peft_type":"IA3","base_model_name_or_path":"gpt2"}"#,
    )
    .unwrap();
    let o = run(d.path(), &[], &estimate(".", &[]));
    assert_eq!(o.status.code(), Some(4));
    assert!(
        stderr(&o).contains("adapters of the kind IA3"),
        "{}",
        stderr(&o)
    );
}

#[test]
fn a_sweep_may_go_over_models_of_a_hub() {
    let d = tempfile::tempdir().unwrap();
    let s = server::Server::new(|r| {
        if r.path.ends_with("config.json") {
            let layers = if r.path.contains("/two/") { "2" } else { "1" };
            let text = CONFIG.replace(
                "\"num_hidden_layers\":1",
                &format!("\"num_hidden_layers\":{layers}"),
            );
            file(r, text.as_bytes())
        } else {
            status(404, &[("X-Error-Code", "EntryNotFound")])
        }
    });
    let url = s.url();
    let args = [
        "compare",
        "--model",
        "org/one",
        "--seq-len",
        "16",
        "--sweep",
        "model=org/one,org/two",
        "--format",
        "json",
    ];
    let v = json(&run(d.path(), &[("HF_ENDPOINT", &url)], &args));
    let p = |n: usize| {
        v["jobs"][n]["footprint"]["model"]["base_param_count"]
            .as_u64()
            .unwrap()
    };
    assert_eq!((p(0), p(1)), (1688, 1688 + (1688 - 1032)));
}
