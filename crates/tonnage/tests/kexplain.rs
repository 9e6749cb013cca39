//! The verbs `explain` and `calibrate` (K27, K30, K32).

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

fn tonnage(data: &Path, args: &[&str], input: &[u8]) -> (i32, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tonnage"))
        .args(args)
        .env("TONNAGE_DATA", data)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let o = child.wait_with_output().unwrap();
    (
        o.status.code().unwrap(),
        String::from_utf8(o.stdout).unwrap(),
        String::from_utf8(o.stderr).unwrap(),
    )
}

const DATA: &str = "crates/tonnage-explain/tests/data/snapshot";

#[test]
fn k30_a_log_from_standard_input() {
    let d = tempfile::tempdir().unwrap();
    let log = b"step 1\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 376.00 MiB. GPU 0 has a total capacity of 3.95 GiB of which 354.88 MiB is free. Including non-PyTorch memory, this process has 3.55 GiB memory in use. Of the allocated memory 1.72 GiB is allocated by PyTorch, and 740.00 MiB is reserved by PyTorch but unallocated.\n";
    let (code, text, _) = tonnage(d.path(), &["explain", "-"], log);
    assert_eq!(code, 0);
    assert!(text.starts_with("standard input: fragmentation"), "{text}");
    assert!(
        text.contains("expandable_segments:True [up to 740.00 MiB]"),
        "{text}"
    );
    let (_, json, _) = tonnage(d.path(), &["explain", "-", "--format", "json"], log);
    let v: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(v["schema"], "tonnage.explain/1");
    assert_eq!(v["failures"][0]["message"]["tried_bytes"], 376 << 20);
    assert_eq!(v["failures"][0]["line"], 2);
    let (code, text, _) = tonnage(d.path(), &["explain", "-"], b"all is well\n");
    assert!(
        code == 0 && text.starts_with("No out-of-memory message in 2 lines"),
        "{text}"
    );
}

#[test]
fn k30_the_jobs_own_changes_are_simulated() {
    let d = tempfile::tempdir().unwrap();
    let job = d.path().join("job.toml");
    let (code, toml, e) = tonnage(
        d.path(),
        &[
            "estimate",
            "--model",
            "gpt2",
            "--seq-len",
            "256",
            "--batch-size",
            "4",
            "--write-job",
        ],
        b"",
    );
    assert_eq!(code, 0, "{e}");
    std::fs::write(&job, toml).unwrap();
    let log = b"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.53 GiB. GPU 0 has a total capacity of 3.95 GiB of which 354.88 MiB is free. Of the allocated memory 3.12 GiB is allocated by PyTorch, and 40.00 MiB is reserved by PyTorch but unallocated.\n";
    let (code, json, e) = tonnage(
        d.path(),
        &[
            "explain",
            "-",
            "--job",
            job.to_str().unwrap(),
            "--format",
            "json",
        ],
        log,
    );
    assert_eq!(code, 0, "{e}");
    let v: serde_json::Value = serde_json::from_str(&json).unwrap();
    let changes = v["failures"][0]["diagnosis"]["changes"].as_array().unwrap();
    let saved: Vec<u64> = changes
        .iter()
        .filter(|c| c["at_most"] == false)
        .map(|c| c["frees_bytes"].as_u64().unwrap())
        .collect();
    assert!(
        !saved.is_empty() && saved.is_sorted_by(|a, b| a >= b),
        "{changes:?}"
    );
    assert!(v["job"]["peak_allocated_bytes"].as_u64().unwrap() > 0);
}

#[test]
fn k27_snapshots_as_text_json_and_a_page() {
    let d = tempfile::tempdir().unwrap();
    let (a, b) = (
        format!("{DATA}/plain-a.p4.pickle.gz"),
        format!("{DATA}/plain-b.p4.pickle.gz"),
    );
    let (code, text, e) = tonnage(
        d.path(),
        &["explain", &b, "--replay", "expandable_segments:True"],
        b"",
    );
    assert_eq!(code, 0, "{e}");
    assert!(
        text.contains("154.51 MiB allocated, 192.00 MiB reserved"),
        "{text}"
    );
    assert!(text.contains("expandable_segments:True: peak"), "{text}");
    let (_, json, _) = tonnage(d.path(), &["explain", &b, "--format", "json"], b"");
    let v: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(v["devices"][0]["peak"]["allocated_bytes"], 162015232);
    let (_, page, _) = tonnage(d.path(), &["explain", &b, "--format", "html"], b"");
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    assert!(!page.contains("http") && page.matches("<svg").count() == 2);
    let (code, text, _) = tonnage(d.path(), &["explain", &a, &b], b"");
    assert!(
        code == 0
            && text.starts_with("9.00 MiB more allocated")
            && text.contains("one stack looks like a leak"),
        "{text}"
    );
    let (code, _, e) = tonnage(d.path(), &["explain", "-"], b"\x80\x04cos\nsystem\n.");
    assert!(
        code == 3 && e.contains("os.system") && e.contains("run code"),
        "{code} {e}"
    );
}

#[test]
fn k32_a_calibration_is_kept_and_always_shown() {
    let d = tempfile::tempdir().unwrap();
    let job = d.path().join("job.toml");
    let (_, toml, _) = tonnage(
        d.path(),
        &[
            "estimate",
            "--model",
            "gpt2",
            "--seq-len",
            "256",
            "--batch-size",
            "4",
            "--write-job",
        ],
        b"",
    );
    std::fs::write(&job, toml).unwrap();
    let job = job.to_str().unwrap();
    let gpu = ["--gpu", "rtx-3090"];
    let (code, text, e) = tonnage(d.path(), &[&["calibrate", job], &gpu[..]].concat(), b"");
    assert!(code == 0 && text.contains("No measured run"), "{text} {e}");
    let (_, before, _) = tonnage(d.path(), &[&["estimate", job], &gpu[..]].concat(), b"");
    let (_, json, _) = tonnage(
        d.path(),
        &[&["calibrate", job, "--format", "json"], &gpu[..]].concat(),
        b"",
    );
    let v: serde_json::Value = serde_json::from_str(&json).unwrap();
    let raw = v["raw"]["reserved_bytes"].as_u64().unwrap();
    let measured = raw + raw / 50;
    let amount = format!("{measured} B");
    let (code, text, e) = tonnage(
        d.path(),
        &[&["calibrate", job, "--reserved", &amount], &gpu[..]].concat(),
        b"",
    );
    assert!(
        code == 0 && text.contains("Calibrated by one run on rtx-3090"),
        "{text} {e}"
    );
    let (_, json, _) = tonnage(
        d.path(),
        &[&["calibrate", job, "--format", "json"], &gpu[..]].concat(),
        b"",
    );
    let v: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(v["raw"]["reserved_bytes"], raw);
    assert_eq!(
        v["calibrated"]["reserved"]["bytes"]
            .as_u64()
            .unwrap()
            .abs_diff(measured)
            / 2,
        0
    );
    // estimate says the same as before, and then the correction
    let (_, after, _) = tonnage(d.path(), &[&["estimate", job], &gpu[..]].concat(), b"");
    assert!(
        after.starts_with(&before) && after[before.len()..].contains("Calibrated by one run"),
        "{after}"
    );
    let (_, text, _) = tonnage(d.path(), &["calibrate", "--forget"], b"");
    assert_eq!(text, "1 runs forgotten\n");
}
