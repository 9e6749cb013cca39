//! Dry runs that end otherwise than well, and what is inferred in them. As `dry_run.rs`, with real PyTorch where one is named; what needs
//! no torch is tested always.

mod dry;

use dry::*;
use std::process::Command;

/// Recurrent layers run by cuDNN's interface, and what is inferred of them is said.
#[test]
fn recurrent_layers() {
    let Some(p) = python("recurrent_layers") else {
        return;
    };
    let o = tonnage(&[
        "dry-run",
        "--gpu",
        "a100-sxm4-80gb",
        "--format",
        "json",
        "--",
        &p,
        &script("recurrent.py"),
    ]);
    assert!(o.status.success(), "{}", err(&o));
    let f = json(&o);
    let inferred = f["notes"].as_array().unwrap().iter();
    let mut inferred = inferred.filter(|n| n["code"] == "inferred");
    assert!(
        inferred
            .next()
            .unwrap()
            .to_string()
            .contains("recurrent layers")
    );
    // the script prints what each kind of layer has in its flat weights and what it counts by itself
    for line in err(&o).lines().filter(|l| l.starts_with("weights ")) {
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!(words[2], words[3], "{line}");
    }
    assert_eq!(err(&o).matches("weights ").count(), 5);
}

/// What a rank alone knows of objects is its own; what it does not know is said.
#[test]
fn objects_in_a_world_of_one_process() {
    let Some(p) = python("objects_in_a_world_of_one_process") else {
        return;
    };
    for rank in ["0", "3"] {
        let o = tonnage(&[
            "dry-run",
            "--world",
            "8",
            "--rank",
            rank,
            "--",
            &p,
            &script("objects.py"),
        ]);
        let text = out(&o);
        assert!(o.status.success(), "{text}\n{}", err(&o));
        assert!(
            text.contains(&format!(
                "all_gather [{rank}, {rank}, {rank}, {rank}, {rank}, {rank}, {rank}, {rank}]"
            )),
            "{text}"
        );
        if rank == "0" {
            assert!(
                text.contains("gather 8") && text.contains("broadcast {'seed': 5}"),
                "{text}"
            );
            assert!(text.contains("scatter 0"), "{text}");
        } else {
            assert!(text.contains("broadcast refused: tonnage: broadcast_object_list: this process runs alone as rank 3 of 8"), "{text}");
            assert!(
                text.contains("scatter refused: tonnage: scatter_object_list"),
                "{text}"
            );
        }
        assert!(!err(&o).contains("flight recorder dump"), "{}", err(&o));
    }
}

/// A script that is killed leaves what was recorded until then.
#[test]
fn a_killed_script_leaves_a_part() {
    let Some(p) = python("a_killed_script_leaves_a_part") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("part.jsonl.gz");
    let before = std::fs::read_dir(here("tests/scripts")).unwrap().count();
    let o = Command::new(BIN)
        .args([
            "dry-run",
            "--save",
            trace.to_str().unwrap(),
            "--",
            &p,
            &script("killed.py"),
        ])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert_eq!(o.status.code(), Some(137), "{}", err(&o));
    let text = format!("{}{}", out(&o), err(&o));
    assert!(text.contains("what had been written until then"), "{text}");
    assert!(
        err(&o).contains("null CUDA device, not a GPU"),
        "{}",
        err(&o)
    );
    assert!(
        err(&o).contains("device NVIDIA A100-SXM4-80GB (tonnage null device)")
            || text.contains("(tonnage null device)"),
        "{text}"
    );
    let v = json(&tonnage(&[
        "replay",
        trace.to_str().unwrap(),
        "--format",
        "json",
    ]));
    assert!(v["peak"]["allocated"].as_u64().unwrap() >= 64 << 20, "{v}");
    // nothing but the trace that was asked for
    let left: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["part.jsonl.gz"]);
    assert_eq!(
        std::fs::read_dir(here("tests/scripts")).unwrap().count(),
        before
    );
}

/// A wheel without kernels for the card: no footprint of the rest, and the wheel that has them.
#[test]
fn a_card_without_kernels() {
    let Some(p) = python("a_card_without_kernels") else {
        return;
    };
    let args = ["dry-run", "--gpu", "gtx-1050-ti", "--", &p];
    let spoter = here("../../examples/spoter/train.py").display().to_string();
    let o = tonnage(&[&args[..], &[&spoter]].concat());
    assert_eq!(o.status.code(), Some(1), "{}", err(&o));
    assert!(
        err(&o).contains("no kernels for capability 6.1"),
        "{}",
        err(&o)
    );
    assert!(
        err(&o).contains("https://download.pytorch.org/whl/cu126"),
        "{}",
        err(&o)
    );
    assert!(
        out(&o).contains("no kernels for NVIDIA GeForce GTX 1050 Ti"),
        "{}",
        out(&o)
    );
    assert!(!out(&o).contains(" fits "), "{}", out(&o));
}

/// A script that fails by itself is not told to fit.
#[test]
fn a_script_with_an_error_of_its_own() {
    let Some(p) = python("a_script_with_an_error_of_its_own") else {
        return;
    };
    let args = ["dry-run", "--verdict-exit", "--", &p, "-c"];
    let o = tonnage(&[&args[..], &["raise ValueError('mine')"]].concat());
    assert_eq!(o.status.code(), Some(3), "{}", err(&o));
    assert!(
        err(&o).contains("ended with status 1 before it used CUDA memory"),
        "{}",
        err(&o)
    );
    let late = "import torch; torch.empty(1 << 20, device='cuda'); raise ValueError('mine')";
    let o = tonnage(&[&args[..], &[late]].concat());
    assert_eq!(o.status.code(), Some(3), "{}", err(&o));
    assert!(out(&o).contains("(stopped with status 1)"), "{}", out(&o));
    assert!(out(&o).contains("not what a whole run uses"), "{}", out(&o));
}

/// Ctrl-C reaches the script, and what it did is told.
#[test]
fn an_interrupted_script_is_told() {
    let Some(p) = python("an_interrupted_script_is_told") else {
        return;
    };
    let text = "import os, signal, torch; x = torch.empty(1 << 20, device='cuda'); os.kill(os.getppid(), signal.SIGINT)\nimport time; time.sleep(60)";
    let o = tonnage(&["dry-run", "--", &p, "-c", text]);
    // what Python says, which depends on how far it has come
    assert!(matches!(o.status.code(), Some(1 | 130)), "{}", err(&o));
    assert!(err(&o).contains("KeyboardInterrupt"), "{}", err(&o));
    assert!(out(&o).contains("4.00 MiB"), "{}", out(&o));
}

#[test]
fn what_cannot_run_is_refused_in_a_sentence() {
    let o = tonnage(&["dry-run", "--", "llama-cli", "-m", "x.gguf"]);
    assert_eq!(o.status.code(), Some(4));
    assert!(err(&o).contains("tonnage estimate"), "{}", err(&o));
    // a server without the CUDA backend is told so, and how to get one
    let dir = tempfile::tempdir().unwrap();
    let server = dir.path().join("llama-server");
    std::fs::write(
        &server,
        "#!/bin/sh\necho 'version: 1 (abc)'\necho 'Available devices:'\n",
    )
    .unwrap();
    std::fs::set_permissions(&server, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let server = server.display().to_string();
    let o = tonnage(&["dry-run", "--", &server, "-m", "qwen2.5-1.5b.Q4_K_M"]);
    assert_eq!(o.status.code(), Some(4), "{}", err(&o));
    assert!(err(&o).contains("no CUDA backend"), "{}", err(&o));
    assert!(err(&o).contains("GGML_CUDA=ON"), "{}", err(&o));
    let o = tonnage(&["dry-run", "--gpu", "no-such-card", "--", "python3", "x.py"]);
    assert_eq!(o.status.code(), Some(2));
    let o = tonnage(&["dry-run", "--set", "batch=2", "--", "python3", "x.py"]);
    assert_eq!(o.status.code(), Some(2));
    assert!(err(&o).contains("{batch}"), "{}", err(&o));
    let o = tonnage(&["dry-run", "--", "/no/such/command"]);
    assert_eq!(o.status.code(), Some(2));
    let o = tonnage(&["dry-run", "--", "no-such-script.py"]);
    assert!(
        err(&o).contains("-- python no-such-script.py"),
        "{}",
        err(&o)
    );
    let o = tonnage(&["replay", "/no/such/trace"]);
    assert_eq!(o.status.code(), Some(3));
}

#[test]
fn one_rank_of_many() {
    let Some(p) = python("one_rank_of_many") else {
        return;
    };
    let o = tonnage(&[
        "dry-run",
        "--world",
        "64",
        "--rank",
        "5",
        "--format",
        "json",
        "--",
        &p,
        &script("fsdp.py"),
    ]);
    assert!(o.status.success(), "{}", err(&o));
    let f = json(&o);
    let two = record("dry-run.jsonl", "fsdp-2");
    let peak = f["peak"]["allocated"]["expected"].as_u64().unwrap();
    assert!(
        peak < two["peak_allocated_bytes"].as_u64().unwrap(),
        "{peak}"
    );
    assert!(f["job"].as_str().unwrap().contains("rank 5 of 64"));
}

/// Kernels of packages outside torch, each where it is installed: the script itself checks what they allocate.
#[test]
fn kernels_of_other_packages() {
    let Some(p) = python("kernels_of_other_packages") else {
        return;
    };
    for package in ["xformers", "liger", "sage", "fla"] {
        let o = tonnage(&[
            "dry-run",
            "--gpu",
            "a100-sxm4-80gb",
            "--",
            &p,
            &script("kernels.py"),
            package,
        ]);
        let text = out(&o);
        if err(&o).contains("is not installed") {
            eprintln!("!!! {package} is not installed: its kernels DID NOT RUN !!!");
            continue;
        }
        assert!(o.status.success(), "{text}\n{}", err(&o));
        assert!(text.contains(&format!("{package} ran")), "{text}");
    }
}
