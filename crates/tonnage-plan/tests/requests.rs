//! Requests for machines say what the estimate says, in the form that each scheduler's own schema has; engines' command lines read back.
//!
//! `data/*.json` are cut from Kubernetes 1.37 (batch/v1 Job), KubeRay's custom resource (ray.io/v1 RayJob) and SkyPilot 0.14.1
//! (`sky.utils.schemas`): types, names and what is required, without descriptions; `any` where a request does not go.

use serde_json::Value;
use std::process::{Command as Process, Stdio};
use tonnage_core::Job;
use tonnage_core::footprint::{self, estimate};
use tonnage_core::serve::command;
use tonnage_plan::export::request::{Wants, label};
use tonnage_plan::export::{Exported, Options, export, find, serve, yaml};

fn job(more: &[(&str, &str)]) -> Job {
    let mut j = Job::new("test", "flags");
    let own = [
        ("name", "Llama 3.2: a LoRA (1B)"),
        ("model.id", "gpt2"),
        ("train.seq_len", "512"),
        ("train.micro_batch_size", "4"),
        ("train.precision", "bf16-mixed"),
    ];
    for (k, v) in own.iter().chain(more) {
        j.set_text(k, v)
            .unwrap_or_else(|e| panic!("{k} = {v}: {e}"));
    }
    j
}

fn options(gpu: &str) -> Options {
    Options {
        gpu: Some(gpu.into()),
        request: Wants {
            start: Some("accelerate launch train.py --say 'it \"is\" $HOME'".into()),
            queue: Some("team-a".into()),
            image: Some("registry/train:1".into()),
            tokens: Some(3e9),
            ..Wants::default()
        },
        ..Options::default()
    }
}

fn made(format: &str, job: &Job, o: &Options) -> Exported {
    export(job, find(format).unwrap(), o).unwrap_or_else(|e| panic!("{format}: {e:?}"))
}

fn text(e: &Exported) -> &str {
    &e.files[0].text
}

fn tree(text: &str) -> Value {
    yaml::parse("x.yaml", text).unwrap().root.value.to_json()
}

/// Holds a value against a schema of `data/`.
fn check(v: &Value, schema: &Value, at: &str) {
    if schema.get("any").is_some() {
        return;
    }
    let kind = match v {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let wanted = match &schema["type"] {
        Value::String(t) => vec![t.as_str()],
        Value::Array(a) => a.iter().filter_map(Value::as_str).collect(),
        _ => vec![],
    };
    let fits = |t: &&str| *t == kind || (*t == "number" && kind == "integer");
    assert!(
        wanted.is_empty() || wanted.iter().any(fits),
        "{at}: {kind}, not {wanted:?}"
    );
    if let Some(all) = schema["enum"].as_array() {
        assert!(all.contains(v), "{at}: {v} is not one of {all:?}");
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        assert!(v.get(name.as_str().unwrap()).is_some(), "{at} lacks {name}");
    }
    for (k, x) in v.as_object().into_iter().flatten() {
        let here = format!("{at}.{k}");
        match (schema["properties"].get(k), schema.get("values")) {
            (Some(s), _) | (None, Some(s)) => check(x, s, &here),
            // a custom resource leaves metadata open
            _ if at.ends_with("metadata") => {}
            _ => panic!("{here} is not known"),
        }
    }
    for (i, x) in v.as_array().into_iter().flatten().enumerate() {
        check(x, &schema["items"], &format!("{at}[{i}]"));
    }
}

fn schema(name: &str) -> Value {
    let text = match name {
        "kubernetes" => include_str!("data/kubernetes-job.json"),
        "ray" => include_str!("data/kuberay-rayjob.json"),
        _ => include_str!("data/skypilot-task.json"),
    };
    serde_json::from_str(text).unwrap()
}

fn promised(job: &Job, gpu: &str) -> (u64, u64) {
    let o = footprint::Options {
        gpu: Some(gpu.into()),
        expected_only: true,
        ..footprint::Options::default()
    };
    let f = estimate(job, &o).unwrap().footprint;
    (
        f.peak.device.expected,
        f.model.param_bytes + f.model.buffer_bytes,
    )
}

#[test]
fn k18_a_request_asks_for_what_the_estimate_says() {
    let j = job(&[]);
    let (device, host) = promised(&j, "a100-sxm4-80gb");
    for format in ["slurm", "skypilot", "kubernetes", "ray"] {
        let e = made(format, &j, &options("a100-sxm4-80gb"));
        let shown = tonnage_units::Bytes(device).to_string();
        assert!(
            text(&e).contains(&format!("a device holds {shown}")),
            "{format}"
        );
        assert!(
            e.notes
                .iter()
                .all(|n| n.code != "not-in-the-job" || n.message.contains("word"))
        );
        let v = match format {
            "slurm" => Value::Null,
            _ => tree(text(&e)),
        };
        match format {
            "skypilot" => {
                check(&v, &schema(format), "task");
                assert_eq!(v["resources"]["accelerators"], "A100-80GB:1");
                let floor = format!("{}+", host.div_ceil(1 << 30));
                assert_eq!(v["resources"]["memory"], floor);
                assert_eq!(v["resources"]["image_id"], "docker:registry/train:1");
                assert!(v["run"].as_str().unwrap().contains("'it \"is\" $HOME'"));
            }
            "kubernetes" | "ray" => {
                check(&v, &schema(format), "job");
                assert_eq!(v["spec"]["suspend"], true);
                assert_eq!(v["metadata"]["name"], "llama-3-2-a-lora-1b");
                let labels = &v["metadata"]["labels"];
                assert_eq!(labels["kueue.x-k8s.io/queue-name"], "team-a");
                let pod = if format == "ray" {
                    &v["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
                } else {
                    &v["spec"]["template"]["spec"]
                };
                let asked = &pod["containers"][0]["resources"];
                assert_eq!(asked["requests"]["nvidia.com/gpu"], "1");
                assert_eq!(asked["limits"]["nvidia.com/gpu"], "1");
                let mib = format!("{}Mi", host.div_ceil(1 << 20));
                assert_eq!(asked["requests"]["memory"], mib);
                assert!(asked["limits"].get("memory").is_none());
                let at = "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0/matchExpressions/0";
                let node = pod.pointer(at).unwrap();
                assert_eq!(node["key"], "nvidia.com/gpu.product");
                assert_eq!(node["values"][0], "NVIDIA-A100-SXM4-80GB");
            }
            _ => {}
        }
    }
}

#[test]
fn a_batch_script_is_one() {
    let j = job(&[]);
    let mut o = options("a100-sxm4-80gb");
    o.request.host = Some(33 << 30);
    let e = made("slurm", &j, &o);
    let asked: Vec<&str> = text(&e)
        .lines()
        .filter_map(|l| l.strip_prefix("#SBATCH --"))
        .collect();
    let get = |k: &str| {
        asked
            .iter()
            .find_map(|l| l.split_once('=').filter(|(n, _)| *n == k))
            .unwrap_or_else(|| panic!("no {k} in {asked:?}"))
            .1
    };
    assert_eq!(get("gpus-per-node"), "nvidia_a100-sxm4-80gb:1");
    assert_eq!(
        (get("mem"), get("partition"), get("nodes")),
        ("33G", "team-a", "1")
    );
    // the limit is the far end of the time's range
    let (days, rest) = get("time").split_once('-').unwrap();
    let clock: Vec<f64> = rest.split(':').map(|n| n.parse().unwrap()).collect();
    let hours = days.parse::<f64>().unwrap() * 24.0 + clock[0] + clock[1] / 60.0;
    let said = text(&e).lines().find(|l| l.starts_with("# time")).unwrap();
    let far: f64 = said
        .rsplit(' ')
        .next()
        .unwrap()
        .trim_end_matches(')')
        .parse()
        .unwrap();
    assert!((hours - far).abs() < 0.1, "{hours} against {said}");
    // options stand before the first command, or sbatch does not read them
    let first = text(&e)
        .lines()
        .position(|l| !l.starts_with('#') && !l.is_empty())
        .unwrap();
    let last = text(&e)
        .lines()
        .position(|l| l.starts_with("#SBATCH --output"))
        .unwrap();
    assert!(last < first);
    let checked = Process::new("bash")
        .args(["-n", "-c", text(&e)])
        .stderr(Stdio::piped())
        .output();
    // where there is a bash
    if let Ok(o) = checked {
        assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
    }
    // without the memory of the host a limit is not made of a floor
    o.request.host = None;
    assert!(!text(&made("slurm", &j, &o)).contains("--mem="));
    o.request.gpu_type = Some("a100".into());
    assert!(text(&made("slurm", &j, &o)).contains("--gpus-per-node=a100:1\n"));
}

#[test]
fn k21_a_price_stands_with_its_date_and_source() {
    let j = job(&[]);
    let mut o = options("a10g");
    let price = |o: &Options| {
        let e = made("skypilot", &j, o);
        let l = text(&e).lines().find(|l| l.starts_with("# price"));
        l.map(String::from)
    };
    let l = price(&o).unwrap();
    assert!(
        l.contains("aws/g5.xlarge at $1.006 an hour (us-east-1, 2026-07-20, "),
        "{l}"
    );
    o.request.price = Some(0.5);
    assert_eq!(
        price(&o).unwrap(),
        "# price: your price at $0.500 an hour (given by --price)"
    );
    // no instance has it: no price
    o = options("rtx-2060-6gb");
    assert_eq!(price(&o), None);
}

#[test]
fn what_is_not_given_is_said() {
    let j = job(&[("gpu", "rtx-4090")]);
    let e = made("kubernetes", &j, &Options::default());
    let all: Vec<&str> = e.notes.iter().map(|n| n.message.as_str()).collect();
    for what in ["starts the job", "size of the work", "image", "queue"] {
        assert!(all.iter().any(|m| m.contains(what)), "{what}: {all:?}");
    }
    let none = job(&[]);
    let bad = export(&none, find("slurm").unwrap(), &Options::default()).unwrap_err();
    assert!(bad[0].message.contains("names a card"), "{bad:?}");
    // what does not fit is written, and said
    let big = job(&[("gpu", "gtx-1050-ti"), ("train.micro_batch_size", "64")]);
    let e = made("skypilot", &big, &Options::default());
    assert!(e.notes.iter().any(|n| n.code == "does-not-fit"));
    assert_eq!(tree(text(&e))["resources"]["accelerators"], "NVIDIA:4GB:1");
}

/// Every card of the catalog has names that its scheduler can take.
#[test]
fn every_card_has_names_that_are_words() {
    let j = job(&[]);
    for g in tonnage_catalog::Gpus::builtin().iter() {
        let Ok(e) = export(&j, find("kubernetes").unwrap(), &options(&g.id)) else {
            continue;
        };
        let v = tree(text(&e));
        check(&v, &schema("kubernetes"), &g.id);
        let at = "/spec/template/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0/matchExpressions/0/values";
        for n in v.pointer(at).unwrap().as_array().unwrap() {
            let n = n.as_str().unwrap();
            let ok = n
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
            assert!(ok && n.len() <= 63, "{}: {n}", g.id);
        }
    }
}

#[test]
fn labels_are_dns_labels() {
    for (text, name) in [
        ("GPT2", "gpt2"),
        ("7B QLoRA!", "job-7b-qlora"),
        ("--", "job"),
        ("a  b_c", "a-b-c"),
    ] {
        assert_eq!(label(text), name);
    }
    assert!(label(&"é x".repeat(99)).len() <= 54);
}

#[test]
fn an_engines_line_reads_back_as_it_was() {
    for line in [
        "vllm serve Qwen/Qwen2.5-7B --max-model-len 8K -tp 2 --gpu_memory_utilization=0.85 --enforce-eager --port 9000",
        "vllm serve 'a b' --no-enable-prefix-caching --dtype half --served-model-name x y --kv-cache-dtype fp8",
        "llama-server -m 'my model.gguf' -c 16384 -np 4 -fa on -ctk q8_0 --port 80 --no-mmap",
        "llama-cli -hf a/b:Q4_K_M -ngl 20",
    ] {
        let a = command::parse(&serve::words(line)).unwrap();
        let written = serve::launch(&a);
        let b = command::parse(&serve::words(&written)).unwrap();
        assert_eq!(serve::launch(&b), written);
        match (a, b) {
            (command::Command::Vllm(mut a), command::Command::Vllm(mut b)) => {
                // the typed spelling of what does not decide about memory may differ
                (a.not_memory, b.not_memory) = (vec![], vec![]);
                assert_eq!(format!("{a:?}"), format!("{b:?}"));
            }
            (command::Command::Llama(a), command::Command::Llama(b)) => {
                assert_eq!(format!("{a:?}"), format!("{b:?}"));
            }
            _ => panic!("{line}: another engine"),
        }
    }
}

#[test]
fn a_job_that_generates_is_served() {
    let j = job(&[
        ("work.kind", "generate"),
        ("generate.prompt_len", "500"),
        ("generate.new_tokens", "12"),
        ("generate.batch_size", "3"),
        ("model.dtype", "bf16"),
    ]);
    let e = made("vllm", &j, &Options::default());
    assert_eq!(
        e.command.as_deref(),
        Some("vllm serve gpt2 --max-model-len 512 --max-num-seqs 3 --dtype bfloat16")
    );
    let o = Options {
        gguf: Some("gpt2.gguf".into()),
        ..Options::default()
    };
    let e = made("llama-server", &j, &o);
    // each slot has its part of the context
    assert_eq!(
        e.command.as_deref(),
        Some("llama-server -m gpt2.gguf --ctx-size 1536 --parallel 3")
    );
    let refused =
        |j: &Job, to: &str| export(j, find(to).unwrap(), &Options::default()).unwrap_err();
    assert!(refused(&j, "llama-server")[0].message.contains("GGUF"));
    assert_eq!(refused(&job(&[]), "vllm")[0].code, "cannot-express");
    let mut beams = j.clone();
    beams.set_text("generate.beams", "4").unwrap();
    assert!(
        refused(&beams, "vllm")[0]
            .message
            .contains("generate.beams")
    );
}
