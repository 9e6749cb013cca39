//! `tonnage doctor`, its block read again, and the card that is here as the verdict's default.
#![cfg(target_os = "linux")]

mod standin;

use serde_json::Value;
use standin::{Machine, card, err, out};

const JOB: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/seeds/gpt-configs/tiny.json"
);

#[test]
fn a_block_is_replayed_from_what_was_pasted() {
    let m = Machine::new(&card("0:20000000000"));
    // as a user's shell would have it
    let bin = m.path("bin");
    std::fs::create_dir_all(&bin).expect("made");
    let python = "#!/bin/sh\nprintf 'version: 3.11.9\\nprogram: venv/python3\\ntorch: 2.11.0+cu130\\ntorch built for: cuda 13.0\\n'\n";
    std::fs::write(bin.join("python3"), python).expect("written");
    let _ = std::process::Command::new("chmod")
        .args(["+x", "bin/python3"])
        .current_dir(m.dir.path())
        .status();
    let path = format!(
        "{}:{}",
        bin.display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let o = m
        .tonnage(&["doctor"])
        .env("PATH", path)
        .env("CUDA_VISIBLE_DEVICES", "")
        .env_remove("VIRTUAL_ENV")
        .env_remove("CONDA_PREFIX")
        .output()
        .expect("starts");
    let text = out(&o);
    assert!(o.status.success(), "{}", err(&o));
    for said in [
        "nvidia: 570.86.15",
        "cuda at most: 12.8",
        "name: NVIDIA GeForce RTX 4090",
        "free: 5298468864 bytes",
        "torch: 2.11.0+cu130",
        "gpu 0: rtx-4090 in the catalog",
        "gpu 0: only 4.93 GiB of 23.99 GiB is free now",
        "torch is built for CUDA 13.0 and the driver speaks 12.8 at most",
        "CUDA_VISIBLE_DEVICES hides every GPU",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    let mut c = m.tonnage(&["doctor", "--format", "json"]);
    let o = c.output().expect("starts");
    standin::conforms("doctor", &serde_json::from_slice(&o.stdout).expect("JSON"));
    // pasted into an issue, quoted, and read on a machine that has nothing
    let pasted = format!(
        "Hello, this is my machine:\n\n{}\nThanks!\n",
        text.lines().map(|l| format!("> {l}\n")).collect::<String>()
    );
    std::fs::write(m.path("issue.txt"), pasted).expect("written");
    let mut c = m.tonnage(&["doctor", "--from", "issue.txt"]);
    let o = c.env("LD_LIBRARY_PATH", "").output().expect("starts");
    assert_eq!(out(&o), text, "{}", err(&o));
    let o = m.run(&["doctor", "--from", "nvml.txt"]);
    assert_eq!(o.status.code(), Some(3));
    assert!(err(&o).contains("tonnage doctor"), "{}", err(&o));
}

#[test]
fn recorded_blocks_say_what_they_said() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/doctor");
    let m = Machine::new("");
    let mut n = 0;
    for f in std::fs::read_dir(dir).expect("recorded").flatten() {
        let path = f.path();
        let text = std::fs::read_to_string(&path).expect("read");
        let o = m.run(&["doctor", "--from", &path.display().to_string()]);
        assert_eq!(out(&o), text, "{}", path.display());
        n += 1;
    }
    assert!(n >= 2, "{n} blocks");
}

#[test]
fn the_card_that_is_here_is_the_default_of_every_verdict() {
    let m = Machine::new(&card("0:24000000000"));
    let json = |args: &[&str]| -> Value {
        serde_json::from_str(&out(&m.run(&[args, &["--format", "json"]].concat()))).expect("JSON")
    };
    let first = |v: &Value| v["verdicts"][0]["cases"][0][1].clone();
    // named: the card, idle; auto or nothing: the card here, with what it has left
    let idle = first(&json(&["estimate", JOB, "--gpu", "rtx-4090"]));
    assert!(idle["free_now_bytes"].is_null());
    let now = json(&["estimate", JOB, "--gpu", "auto"]);
    let v = first(&now);
    assert_eq!(
        v["free_now_bytes"],
        25_757_220_864u64 - 458_752_000 - 24_000_000_000
    );
    assert_eq!(v["usable_bytes"], 25_757_220_864u64 - 458_752_000);
    assert!(v["available_bytes"].as_u64() < idle["available_bytes"].as_u64());
    assert_eq!(first(&json(&["estimate", JOB])), v, "nothing named");
    // a card that is nearly full changes the answer and the status
    let large = ["estimate", JOB, "--batch-size", "16"];
    let on = |gpu: &str| m.run(&[&large[..], &["--gpu", gpu]].concat()).status.code();
    assert_eq!((on("rtx-4090"), on("auto")), (Some(0), Some(1)));
    // without a device, auto is refused and nothing is assumed
    let mut c = m.tonnage(&["estimate", JOB, "--gpu", "auto"]);
    let o = c.env("TONNAGE_NO_DEVICE", "1").output().expect("starts");
    assert_eq!(o.status.code(), Some(4));
    assert!(err(&o).contains("--gpu auto: no GPU"), "{}", err(&o));
    // a card that the catalog does not know
    let other = Machine::new("device|NVIDIA Q9000|GPU-1|0|1000000000000|0\nused|0|0:1\n");
    let o = other.run(&["estimate", JOB, "--gpu", "auto"]);
    assert_eq!(o.status.code(), Some(4), "{}", err(&o));
    assert!(err(&o).contains("Q9000"), "{}", err(&o));
    assert_eq!(other.run(&["estimate", JOB]).status.code(), Some(0));
    // the engines' cards too
    let serve = |gpu: &str| json(&["fit", "qwen3-8b.Q4_K_M", "--gpu", gpu]);
    assert_ne!(serve("rtx-4090"), serve("auto"));
    assert_eq!(json(&["fit", "qwen3-8b.Q4_K_M"]), serve("auto"));
}
