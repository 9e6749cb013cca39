//! `tonnage run` with real commands, and what it has recorded, against a stand-in of the driver's library.
#![cfg(target_os = "linux")]

mod standin;

use serde_json::Value;
use standin::{Machine, card, err, out};
use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

fn machine() -> Machine {
    Machine::new(&format!(
        "{}live|0|$DIR/live\nlog|$DIR/queries\n",
        card("0:1000000000")
    ))
}

fn run(m: &Machine, flags: &[&str], script: &str) -> Output {
    m.run(&[&["run"], flags, &["--", "sh", "-c", script]].concat())
}

fn json(m: &Machine, args: &[&str]) -> Value {
    let o = m.run(&[args, &["--format", "json"]].concat());
    assert!(o.status.success(), "{args:?}: {}", err(&o));
    serde_json::from_str(&out(&o)).expect("JSON")
}

/// A job of the acceptance tests that is quick to simulate.
const JOB: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/seeds/gpt-configs/tiny.json"
);

#[test]
fn the_commands_status_and_output_are_its_own() {
    let m = machine();
    for (script, code) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("kill -9 $$", 137),
        ("kill -SEGV $$", 139),
    ] {
        assert_eq!(run(&m, &[], script).status.code(), Some(code), "{script}");
    }
    let o = m.run(&["run", "--", "/no/such/program"]);
    assert_eq!(o.status.code(), Some(127), "{}", err(&o));
    assert!(err(&o).contains("/no/such/program"));
    let o = m.run(&["run", "--", "/etc/passwd"]);
    assert_eq!(o.status.code(), Some(126));
    // input and output pass through, our words are on standard error only
    let mut c = m
        .tonnage(&["run", "--", "sh", "-c", "cat; echo error >&2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    c.stdin
        .take()
        .expect("a pipe")
        .write_all(b"\x00\xffin\n")
        .expect("written");
    let o = c.wait_with_output().expect("ends");
    assert_eq!(o.stdout, b"\x00\xffin\n");
    assert!(err(&o).starts_with("error\n"), "{}", err(&o));
    let list = json(&m, &["history"]);
    let runs = list["runs"].as_array().expect("runs");
    assert_eq!(runs.len(), 7);
    let ends: Vec<_> = runs
        .iter()
        .rev()
        .map(|r| (r["exit_code"].as_i64(), r["signal"].as_i64()))
        .collect();
    assert_eq!(
        ends[..4],
        [
            (Some(0), None),
            (Some(7), None),
            (None, Some(9)),
            (None, Some(11))
        ]
    );
}

#[test]
fn a_million_lines_of_log_pass_unchanged() {
    let m = machine();
    let wanted = Command::new("seq")
        .arg("1000000")
        .output()
        .expect("seq")
        .stdout;
    let o = run(&m, &["--quiet"], "seq 1000000");
    assert!(o.stdout == wanted, "standard output");
    let o = run(&m, &["--quiet", "--read-stderr"], "seq 1000000 >&2");
    assert!(o.stderr == wanted, "standard error, passed through");
}

#[test]
fn processes_that_it_starts_are_counted_with_it() {
    let m = machine();
    // three processes hold 1, 2 and 4 GiB at the same time; the last outlives its parent
    let script = "hold() { sh -c 'echo $1 > live/$$; sleep 1.2' x $1; }
        echo 1073741824 > live/$$
        (hold 2147483648 &) ; (hold 4294967296 &) ; sleep 1.2";
    let o = run(&m, &["--interval", "0.05"], script);
    assert!(o.status.success(), "{}", err(&o));
    let s = json(&m, &["history", "show", "1"]);
    let d = &s["devices"][0];
    assert_eq!(d["device"]["measured_bytes"], 7u64 << 30, "{d}");
    assert_eq!(d["others_bytes"], 1_000_000_000, "what was there before");
    assert_eq!(d["peak_used_bytes"], (7u64 << 30) + 1_000_000_000);
    assert!(s["peak_host_resident_bytes"].as_u64() > Some(1 << 20));
    assert!(s["samples"].as_u64() >= Some(10), "{s}");
}

#[test]
fn signals_reach_the_command_once() {
    let m = machine();
    // sent to us: handed on
    let count = "n=0; trap 'n=$((n+1))' TERM; echo ready; i=0; while [ $i -lt 8 ]; do sleep 0.1; i=$((i+1)); done; exit $((40+n))";
    let mut c = m
        .tonnage(&["run", "--quiet", "--", "sh", "-c", count])
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut ready = [0u8; 6];
    c.stdout
        .as_mut()
        .expect("a pipe")
        .read_exact(&mut ready)
        .expect("ready");
    kill("-TERM", c.id());
    assert_eq!(c.wait().expect("ends").code(), Some(41));
    // a command that does not end by itself
    let mut c = m
        .tonnage(&["run", "--quiet", "--", "sleep", "600"])
        .spawn()
        .expect("starts");
    std::thread::sleep(Duration::from_millis(600));
    kill("-TERM", c.id());
    assert_eq!(c.wait().expect("ends").code(), Some(143));
    // typed: the terminal gives it to both, and the command has it once
    let line = format!(
        "'{}' run -- sh -c \"{}\"; echo status $?",
        env!("CARGO_BIN_EXE_tonnage"),
        count.replace("TERM", "INT").replace('$', "\\$")
    );
    let mut c = Command::new("script");
    m.environment(&mut c);
    let mut c = c
        .args(["-qec", &line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script starts");
    let mut screen = c.stdout.take().expect("a pipe");
    let mut seen = Vec::new();
    let mut piece = [0u8; 256];
    while !String::from_utf8_lossy(&seen).contains("ready") {
        let n = screen.read(&mut piece).expect("read");
        assert!(n > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&piece[..n]);
    }
    let mut keys = c.stdin.take().expect("a pipe");
    keys.write_all(b"\x03").expect("typed");
    screen.read_to_end(&mut seen).expect("read");
    c.wait().expect("ends");
    let text = String::from_utf8_lossy(&seen);
    assert!(text.contains("status 41"), "{text}");
    assert!(
        text.contains("run 3: ended with status 41"),
        "the report comes after it: {text}"
    );
}

fn kill(signal: &str, pid: u32) {
    let s = Command::new("kill")
        .args([signal, &pid.to_string()])
        .status();
    assert!(s.expect("kill").success());
}

#[test]
fn ignored_signals_stay_ignored() {
    let m = machine();
    let script = format!(
        "trap '' HUP; exec '{}' run --quiet -- sh -c 'echo ready; kill -HUP $$; sleep 0.2; exit 5'",
        env!("CARGO_BIN_EXE_tonnage")
    );
    let mut c = Command::new("sh");
    m.environment(&mut c);
    assert_eq!(
        c.args(["-c", &script])
            .output()
            .expect("starts")
            .status
            .code(),
        Some(5)
    );
}

#[test]
fn k33_the_estimate_the_verdict_as_it_is_now_and_the_run() {
    let m = machine();
    let o = run(&m, &["--job", JOB], "echo 300000000 > live/$$; sleep 0.5");
    let said = err(&o);
    assert_eq!(o.status.code(), Some(0), "{said}");
    let before = said
        .split("\ntonnage run")
        .next()
        .expect("the announcement");
    assert!(before.contains("peak allocated"), "{said}");
    assert!(
        before.contains("NVIDIA GeForce RTX 4090 (as it is now, 22.63 GiB free): fits"),
        "{said}"
    );
    assert!(
        said.contains("device     measured 286.10 MiB, predicted"),
        "{said}"
    );
    let s = json(&m, &["history", "show", "1"]);
    let p = s["devices"][0]["device"]["predicted_bytes"]
        .as_u64()
        .expect("predicted");
    let direct: Value = serde_json::from_str(&out(
        &m.run(&["estimate", JOB, "--gpu", "rtx-4090", "--format", "json"])
    ))
    .expect("JSON");
    assert_eq!(
        Some(p),
        direct["peak"]["device"]["expected"].as_u64(),
        "the prediction that was recorded is the estimate"
    );
    // read from the command's own configuration
    let config = m.path("train.json");
    std::fs::copy(JOB, &config).expect("copied");
    let o = m.run(&["run", "--", "sh", "-c", "exit 0", "--config=train.json"]);
    assert!(err(&o).contains("peak allocated"), "{}", err(&o));
}

#[test]
fn k33_nothing_of_ours_prevents_the_run() {
    let m = machine();
    std::fs::write(m.path("bad.json"), "{\"model\": 3").expect("written");
    let runs = |o: &Output| {
        assert_eq!(o.status.code(), Some(9), "{}", err(o));
        assert_eq!(out(o), "it ran\n");
    };
    let script = "echo it ran; exit 9";
    // a job that cannot be read, or is not there; a card that nobody knows
    for flags in [
        &["--job", "bad.json"][..],
        &["--job", "none.toml"],
        &["--job", JOB, "--gpu", "gtx-nothing"],
    ] {
        let o = run(&m, flags, script);
        runs(&o);
        let said = err(&o);
        assert!(said.contains("the run is not affected"), "{said}");
        assert!(said.contains("error: "), "the cause: {said}");
    }
    // no place for recordings
    let mut c = m.tonnage(&["run", "--", "sh", "-c", script]);
    let o = c
        .env("TONNAGE_DATA", "/proc/none")
        .output()
        .expect("starts");
    runs(&o);
    assert!(
        err(&o).contains("no recording: /proc/none/history.db"),
        "{}",
        err(&o)
    );
    std::fs::create_dir_all(m.path("damaged")).expect("made");
    std::fs::write(m.path("damaged/history.db"), vec![7u8; 8192]).expect("written");
    let mut c = m.tonnage(&["run", "--", "sh", "-c", script]);
    let o = c
        .env("TONNAGE_DATA", m.path("damaged"))
        .output()
        .expect("starts");
    runs(&o);
    assert!(err(&o).contains("not a database"), "{}", err(&o));
    // no device
    let mut c = m.tonnage(&["run", "--", "sh", "-c", script]);
    let o = c
        .env("LD_LIBRARY_PATH", m.path("live"))
        .output()
        .expect("starts");
    runs(&o);
    assert!(
        err(&o).contains("host memory only is recorded"),
        "{}",
        err(&o)
    );
    // a device that is lost on the way
    let lost = Machine::new(&format!("{}fail|*|0|15|3\n", card("0:1000000000")));
    let o = run(
        &lost,
        &["--interval", "0.05"],
        "sleep 0.6; echo it ran; exit 9",
    );
    runs(&o);
}

#[test]
fn a_leak_is_named_with_its_size_a_step() {
    let m = machine();
    // 120 steps, each 8 MiB more, as the process publishes them
    let script = r#"i=0; while [ $i -lt 120 ]; do
        b=$((2147483648 + i * 8388608))
        printf '{"schema":"tonnage.process/1","pid":%d,"framework":"torch 2.11.0","step":%d,"devices":[{"index":0,"allocated_bytes":%d,"reserved_bytes":%d,"peak_allocated_bytes":%d,"peak_reserved_bytes":%d,"inactive_split_bytes":4096,"alloc_retries":2}]}' $$ $i $b $((b+1048576)) $b $((b+1048576)) > "$TONNAGE_PUBLISH/tmp"
        mv "$TONNAGE_PUBLISH/tmp" "$TONNAGE_PUBLISH/$$.json"; i=$((i+1)); sleep 0.03; done"#;
    let o = run(&m, &["--interval", "0.02"], script);
    assert!(o.status.success(), "{}", err(&o));
    let s = json(&m, &["history", "show", "1"]);
    standin::conforms("run", &s);
    let g = &s["devices"][0]["growth"];
    assert_eq!(
        (&g["of"], &g["unit"], &g["finding"]),
        (&"allocated".into(), &"step".into(), &"leak".into()),
        "{g}"
    );
    let slope = g["slope"].as_f64().expect("a slope") / f64::from(8 << 20);
    assert!((slope - 1.0).abs() < 0.05, "{slope} of 8 MiB");
    assert!(g["full_in"].as_f64().is_some_and(|f| f > 100.0));
    assert!(
        err(&o).contains("the cache was given back 2 times"),
        "{}",
        err(&o)
    );
}

#[test]
fn an_out_of_memory_error_is_explained() {
    let m = machine();
    let text = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.56 GiB of which 1.25 GiB is free. Including non-PyTorch memory, this process has 22.30 GiB memory in use. Of the allocated memory 21.50 GiB is allocated by PyTorch, and 352.50 MiB is reserved by PyTorch but unallocated.";
    std::fs::write(m.path("oom.txt"), format!("step 12\n{text}\n")).expect("written");
    let o = run(&m, &["--read-stderr"], "cat oom.txt >&2; exit 1");
    assert_eq!(o.status.code(), Some(1));
    assert!(err(&o).contains("Why it ran out of memory"), "{}", err(&o));
    // standard error in a file, which is not touched
    let file = std::fs::File::create(m.path("stderr.txt")).expect("made");
    let s = m
        .tonnage(&[
            "run",
            "--quiet",
            "--",
            "sh",
            "-c",
            "cat oom.txt >&2; exit 1",
        ])
        .stderr(file)
        .status()
        .expect("starts");
    assert_eq!(s.code(), Some(1));
    assert_eq!(m.read("stderr.txt"), m.read("oom.txt"));
    for id in ["1", "2"] {
        let text = out(&m.run(&["history", "show", id]));
        assert!(text.contains("2.00 GiB"), "{text}");
    }
}

#[test]
fn history_lists_compares_exports_and_makes_records() {
    let m = machine();
    let o = m.run(&["history"]);
    assert!(out(&o).contains("no recordings yet"), "{}", err(&o));
    let e: Value = serde_json::from_str(&out(
        &m.run(&["estimate", JOB, "--gpu", "rtx-4090", "--format", "json"])
    ))
    .expect("JSON");
    let peak = |l: &str| e["peak"][l]["expected"].as_u64().expect("a peak");
    let (a, r) = (peak("allocated"), peak("reserved"));
    let script = format!(
        r#"printf '{{"schema":"tonnage.process/1","pid":%d,"framework":"torch 2.11.0","step":3,"devices":[{{"index":0,"allocated_bytes":1,"reserved_bytes":2,"peak_allocated_bytes":{a},"peak_reserved_bytes":{r}}}]}}' $$ > "$TONNAGE_PUBLISH/$$.json"; sleep 0.4"#
    );
    run(&m, &["--job", JOB], &script);
    run(&m, &[], "sleep 0.2");
    let text = out(&m.run(&["history"]));
    assert_eq!(text.lines().count(), 3, "{text}");
    let text = out(&m.run(&["history", "compare", "1", "2"]));
    assert!(
        text.contains("allocated") && text.contains("predicted"),
        "{text}"
    );
    let text = out(&m.run(&["history", "export", "1", "--format", "csv"]));
    let whole = json(&m, &["history", "export", "1"]);
    standin::conforms("recording", &whole);
    standin::conforms("history", &json(&m, &["history"]));
    standin::conforms("history", &json(&m, &["history", "compare", "1", "2"]));
    assert_eq!(
        text.lines().count(),
        1 + whole["samples"].as_array().map_or(0, Vec::len)
    );
    let columns = text.lines().next().expect("a head").split(',').count();
    assert!(text.lines().all(|l| l.split(',').count() == columns));
    let o = m.run(&["history", "record", "1"]);
    assert!(o.status.success(), "{}", err(&o));
    std::fs::write(m.path("runs.jsonl"), &o.stdout).expect("written");
    let v = json(&m, &["validate", "runs.jsonl"]);
    for metric in ["peak_allocated", "peak_reserved"] {
        let row = v["rows"]
            .as_array()
            .and_then(|r| r.iter().find(|r| r["metric"] == metric))
            .expect(metric);
        assert_eq!(row["error_pct"], 0.0, "{row}");
        assert!(row["unsupported"].is_null(), "{row}");
    }
    for bad in [&["history", "show", "99"][..], &["history", "record", "2"]] {
        let o = m.run(bad);
        assert!(matches!(o.status.code(), Some(2 | 3)), "{bad:?}");
        assert!(!err(&o).is_empty());
    }
}

/// Kills the recorder at a moment, and looks at what is left.
fn killed_after(m: &Machine, wait: Duration) {
    let _ = std::fs::remove_file(m.path("queries"));
    let before = count(m);
    let mut c = m
        .tonnage(&[
            "run",
            "--quiet",
            "--interval",
            "0.01",
            "--",
            "sh",
            "-c",
            "echo $$ > pid; exec sleep 2",
        ])
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    std::thread::sleep(wait);
    c.kill().expect("killed");
    c.wait().expect("waited");
    // the first query is the look before the run
    let taken = std::fs::read_to_string(m.path("queries"))
        .map_or(0, |t| t.lines().count().saturating_sub(1)) as u64;
    let all = json(m, &["history", "--most", "1"]);
    let runs = count(m);
    if runs == before {
        assert!(
            taken <= 1,
            "{taken} samples and no recording after {wait:?}"
        );
    } else {
        let r = &all["runs"][0];
        let kept = r["samples"].as_u64().expect("samples");
        // both counts are exact unless two samples fell into one millisecond
        assert!(
            kept + 1 >= taken,
            "{kept} of {taken} samples after {wait:?}"
        );
        assert!(r["ended_unix_ms"].is_null());
        assert!(
            m.run(&["history", "export", &r["id"].to_string(), "--format", "csv"])
                .status
                .success()
        );
    }
    if let Ok(pid) = std::fs::read_to_string(m.path("pid")) {
        let alive = std::path::Path::new("/proc").join(pid.trim()).exists();
        assert!(alive, "the command goes on");
        let _ = Command::new("kill").arg(pid.trim()).status();
        let _ = std::fs::remove_file(m.path("pid"));
    }
}

fn count(m: &Machine) -> u64 {
    json(m, &["history", "--most", "1"])["runs"][0]["id"]
        .as_u64()
        .unwrap_or(0)
}

fn killed_often(times: u32) {
    let m = machine();
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..times {
        // xorshift: other moments every time, the same in every run of the test
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        killed_after(&m, Duration::from_micros(x % 300_000));
    }
    let db = tonnage_host::record::Store::open(&m.path("data")).expect("opens");
    assert_eq!(db.check().expect("examined"), "ok");
}

#[test]
fn a_recording_survives_the_recorders_end_at_any_moment() {
    killed_often(30);
}

#[test]
#[ignore = "some minutes; run by hand: --ignored"]
fn a_recording_survives_the_recorders_end_at_a_thousand_moments() {
    killed_often(1000);
}
