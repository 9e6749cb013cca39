//! `tonnage run`: what is estimated of the command itself, and the Python hook with real PyTorch on the null device.
//! TONNAGE_TEST_PYTHON names a Python with a CUDA build of torch (`.ci/run` makes one); without it those tests say so and end.
#![cfg(target_os = "linux")]

mod dry;
mod standin;

use dry::python;
use serde_json::Value;
use standin::{Machine, card, err, out};
use std::os::unix::fs::PermissionsExt;

const HERE: &str = env!("CARGO_MANIFEST_DIR");

fn machine() -> Machine {
    Machine::new(&format!("{}live|0|$DIR/live\n", card("0:1000000000")))
}

/// A program of that name that takes device memory for a moment.
fn engine(m: &Machine, name: &str) -> String {
    let path = m.path(name);
    std::fs::write(
        &path,
        "#!/bin/sh\necho \"$@\"\necho 6000000000 > live/$$\nsleep 0.5\nexit 5\n",
    )
    .expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
    path.display().to_string()
}

fn shown(m: &Machine, id: &str) -> Value {
    let o = m.run(&["history", "show", id, "--format", "json"]);
    serde_json::from_str(&out(&o)).expect("JSON")
}

#[test]
fn k33_an_engines_command_is_estimated_before_it_starts() {
    let m = machine();
    let vllm = engine(&m, "vllm");
    let words = ["serve", "Qwen/Qwen3-0.6B", "--max-model-len", "4096"];
    let o = m.run(&[&["run", "--", &vllm][..], &words].concat());
    let said = err(&o);
    assert_eq!(o.status.code(), Some(5), "{said}");
    assert_eq!(
        out(&o).trim(),
        words.join(" "),
        "the command is as it was given"
    );
    let first = said.lines().next().expect("a line");
    assert!(
        first.starts_with("tonnage: Qwen/Qwen3-0.6B on vLLM 0.33.0: device 0 "),
        "{said}"
    );
    assert!(
        said.contains("NVIDIA GeForce RTX 4090 (as it is now, 22.63 GiB usable): "),
        "{said}"
    );
    // what it took is compared with the estimate of the same command
    let direct = m.run(
        &[
            &["estimate", "--gpu", "auto", "--format", "json", "--", &vllm][..],
            &words,
        ]
        .concat(),
    );
    let direct: Value = serde_json::from_str(&out(&direct)).expect("JSON");
    let d = &shown(&m, "1")["devices"][0]["device"];
    assert!(direct["totals"][0]["bytes"].as_u64() > Some(1 << 30));
    assert_eq!(
        d["predicted_bytes"], direct["totals"][0]["bytes"],
        "{direct}"
    );
    assert_eq!(d["measured_bytes"], 6_000_000_000u64);

    let llama = engine(&m, "llama-server");
    let o = m.run(&[
        "run",
        "--",
        &llama,
        "-m",
        "gemma-3-270m.Q4_K_M",
        "-c",
        "8192",
    ]);
    let said = err(&o);
    assert!(said.contains("on llama.cpp 0.5.0: device 0 "), "{said}");
    assert!(said.contains("usable): fits"), "{said}");
    // on a card that is not here, idle
    let o = m.run(&[
        "run",
        "--gpu",
        "rtx-3060-12gb",
        "--",
        &llama,
        "-m",
        "gemma-3-270m.Q4_K_M",
    ]);
    assert!(err(&o).contains("(idle, 11.63 GiB usable)"), "{}", err(&o));
}

#[test]
fn k33_a_command_that_cannot_be_estimated_says_why_and_runs() {
    let m = machine();
    let vllm = engine(&m, "vllm");
    for (words, cause) in [
        (
            &["serve", "Qwen/Qwen3-0.6B", "--enable-lora"][..],
            "--enable-lora",
        ),
        (
            &["serve", "Qwen/Qwen3-0.6B", "--max-modl-len", "1"],
            "--max-modl-len",
        ),
    ] {
        let o = m.run(&[&["run", "--", &vllm][..], words].concat());
        let said = err(&o);
        assert_eq!(o.status.code(), Some(5), "{said}");
        let first = said.lines().next().expect("a line");
        assert!(
            first.starts_with("tonnage: no estimate of this command: ")
                && first.contains(cause)
                && first.ends_with("the run is not affected"),
            "{said}"
        );
    }
    // no engine, no configuration: nothing to say
    let o = m.run(&["run", "--", "sh", "-c", "exit 3"]);
    assert_eq!(o.status.code(), Some(3));
    assert!(!err(&o).contains("no estimate"), "{}", err(&o));
}

#[test]
fn k33_the_job_is_the_configuration_that_is_one() {
    let m = machine();
    let job = format!("{HERE}/tests/seeds/gpt-configs/tiny.json");
    std::fs::copy(job, m.path("train.json")).expect("copied");
    // the launcher's own file comes first
    std::fs::write(m.path("launcher.yaml"), "num_processes: 1\n").expect("written");
    let script = [
        "run",
        "--",
        "sh",
        "-c",
        "exit 0",
        "--config_file",
        "launcher.yaml",
    ];
    let o = m.run(&[&script[..], &["train.py", "--config", "train.json"]].concat());
    let said = err(&o);
    assert!(
        said.starts_with("tonnage: ") && said.contains("peak allocated"),
        "{said}"
    );
    assert!(said.contains("as it is now"), "{said}");
    assert!(!said.contains("no estimate"), "{said}");
    let o = m.run(&script);
    let said = err(&o);
    assert!(
        said.starts_with("tonnage: no estimate of launcher.yaml: "),
        "{said}"
    );
}

#[test]
fn k29_the_hook_publishes_what_pytorch_says_of_itself() {
    let Some(p) = python("k29_the_hook_publishes_what_pytorch_says_of_itself") else {
        return;
    };
    // the device of the stand-in has the UUID of the null device
    let script = format!("{}live|0|$DIR/live\n", card("0:1000000000")).replace(
        "GPU-11111111-2222-3333-4444-555555555555",
        "GPU-746f6e6e-6167-6500-6e75-000000000000",
    );
    let m = Machine::new(&script);
    let me = env!("CARGO_BIN_EXE_tonnage");
    let program = format!("{HERE}/tests/scripts/hooked.py");
    let command = [me, "dry-run", "--gpu", "rtx-4090", "--", &p, &program];
    let o = m.run(&[&["run", "--hook", "--interval", "0.05", "--"][..], &command].concat());
    let said = err(&o);
    assert_eq!(o.status.code(), Some(1), "the script's own status: {said}");
    let figures: Value = serde_json::from_str(&m.read("figures.json")).expect("JSON");
    let s = shown(&m, "1");
    standin::conforms("run", &s);
    let d = &s["devices"][0];
    for level in ["allocated", "reserved"] {
        assert_eq!(d[level]["measured_bytes"], figures[level], "{level}: {d}");
    }
    assert_eq!(d["device"]["measured_bytes"], 700u64 << 20, "{d}");
    let reserved = figures["reserved"].as_u64().expect("bytes");
    assert_eq!(d["context_bytes"], (700u64 << 20) - reserved);
    assert_eq!(s["framework"].as_str().map(|f| &f[..8]), Some("torch 2."));
    assert_eq!(
        (&d["growth"]["unit"], &d["growth"]["of"]),
        (&"step".into(), &"allocated".into())
    );
    // the error that ended it, by its own text, with standard error left alone
    let text = s["out_of_memory"].as_str().expect("a text");
    assert!(
        text.contains("OutOfMemoryError: CUDA out of memory. Tried to allocate 256.00 GiB"),
        "{text}"
    );
    assert!(said.contains("Why it ran out of memory"), "{said}");
    // without the flag and without the package, nothing is published
    let o = m.run(&[&["run", "--"][..], &command].concat());
    assert_eq!(o.status.code(), Some(1));
    assert!(shown(&m, "2")["framework"].is_null());
}

#[test]
fn k29_the_packaged_hook_arms_itself_in_runs_only() {
    let Some(p) = python("k29_the_packaged_hook_arms_itself_in_runs_only") else {
        return;
    };
    let m = machine();
    let site = m.path("site").display().to_string();
    let package = m.path("package");
    let o = std::process::Command::new("cp")
        .args(["-r", &format!("{HERE}/../../python")])
        .arg(&package)
        .status();
    assert!(o.expect("cp").success());
    let o = std::process::Command::new(&p)
        .args(["-m", "pip", "install", "-q", "--no-index", "--no-deps"])
        .args(["--disable-pip-version-check", "--target", &site])
        .arg(&package)
        .output()
        .expect("pip");
    assert!(o.status.success(), "{}", err(&o));
    let ask = "import site, sys; site.addsitedir(sys.argv[1]); h = sys.modules.get('tonnage_hook'); print(bool(h and h._hook))";
    let alone = std::process::Command::new(&p)
        .args(["-c", ask, &site])
        .env_remove("TONNAGE_PUBLISH")
        .output()
        .expect("starts");
    assert_eq!(out(&alone).trim(), "False", "{}", err(&alone));
    let o = m.run(&["run", "--quiet", "--", &p, "-c", ask, &site]);
    assert_eq!(out(&o).trim(), "True", "{}", err(&o));
}
