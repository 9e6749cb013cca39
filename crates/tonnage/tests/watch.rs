//! `tonnage watch` against a stand-in of the driver's library and endpoints of the tests' own.
#![cfg(target_os = "linux")]

mod standin;

use serde_json::Value;
use standin::{Machine, card, err, out};
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const GIB: u64 = 1 << 30;

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}")))
        .collect()
}

#[test]
fn k28_the_peak_shown_is_the_maximum_of_the_log() {
    // up to 20 GiB in the fourth sample, then down
    let m = Machine::new(&card("0:1073741824 3:21474836480 5:2147483648"));
    for log in ["log.csv", "log.jsonl"] {
        let o = m.run(&[
            "watch",
            "--samples",
            "8",
            "--interval",
            "0.05",
            "--log",
            log,
            "--format",
            "json",
        ]);
        assert!(o.status.success(), "{}", err(&o));
        let shown = lines(&out(&o));
        assert_eq!(shown.len(), 8);
        let peak = shown[7]["devices"][0]["peak_used_bytes"].as_u64();
        let text = m.read(log);
        let logged: Vec<u64> = if log.ends_with("csv") {
            let head: Vec<&str> = text.lines().next().expect("a head").split(',').collect();
            let at = head
                .iter()
                .position(|h| *h == "used_bytes")
                .expect("a column");
            text.lines()
                .skip(1)
                .map(|l| l.split(',').nth(at).and_then(|v| v.parse().ok()).expect(l))
                .collect()
        } else {
            lines(&text)
                .iter()
                .map(|v| {
                    v["devices"][0]["memory"]["used_bytes"]
                        .as_u64()
                        .expect("used")
                })
                .collect()
        };
        assert_eq!(logged.len(), 8, "every sample is in the log");
        assert_eq!(peak, logged.iter().max().copied(), "{log}");
        assert_eq!(peak, Some(20 * GIB));
    }
}

#[test]
fn k28_no_device_is_one_sentence_and_status_4() {
    let root = tempfile::tempdir().expect("a folder");
    let o = Command::new(env!("CARGO_BIN_EXE_tonnage"))
        .args(["watch", "--once", "--root"])
        .arg(root.path())
        .output()
        .expect("starts");
    assert_eq!(o.status.code(), Some(4), "{}", err(&o));
    assert!(o.stdout.is_empty());
    let said = err(&o);
    assert!(
        said.contains("no GPU that can be read is in this machine"),
        "{said}"
    );
    for v in ["NVIDIA", "AMD", "Intel", "Apple"] {
        assert!(said.contains(v), "{v} is named: {said}");
    }
    assert!(said.lines().count() <= 2, "{said}");
}

#[test]
fn k28_an_alert_at_a_fraction() {
    let m = Machine::new(&card("0:24000000000"));
    let o = m.run(&["watch", "--once", "--alert", "0.9"]);
    assert_eq!(o.status.code(), Some(1));
    assert!(
        err(&o).contains("alert: GPU 0 (NVIDIA GeForce RTX 4090) is 94.9 % full"),
        "{}",
        err(&o)
    );
    let o = m.run(&["watch", "--once", "--alert", "0.96"]);
    assert_eq!(o.status.code(), Some(0), "{}", err(&o));
    for bad in [["--alert", "90"], ["--interval", "0"], ["--log", "x.txt"]] {
        let o = m.run(&[&["watch", "--once"], &bad[..]].concat());
        assert_eq!(o.status.code(), Some(2), "{bad:?}");
    }
}

#[test]
fn k29_every_figure_has_its_name_unit_and_source() {
    let me = std::process::id();
    let script = format!(
        "{}process|0|{me}|3221225472|compute|-|0\nprocess|0|{me}|3221225472|graphics|-|0\nprocess|0|4000000|unknown|graphics|-|0\n",
        card("0:5368709120")
    );
    let m = Machine::new(&script);
    let published = format!(
        r#"{{"schema":"tonnage.process/1","pid":{me},"at_unix_ms":1,"framework":"torch 2.11.0","step":7,"devices":[{{"index":0,
            "allocated_bytes":1073741824,"reserved_bytes":2147483648,"peak_allocated_bytes":1,"peak_reserved_bytes":2}}]}}"#
    );
    std::fs::write(m.path(&format!("publish/{me}.json")), published).expect("written");
    let o = m.run(&["watch", "--once", "--width", "140"]);
    let text = out(&o);
    assert!(o.status.success(), "{}", err(&o));
    assert!(
        text.contains(
            "used 5.00 GiB of 23.56 GiB (21.2 %), free 18.56 GiB, the driver keeps 437.50 MiB"
        ),
        "{text}"
    );
    assert!(text.contains("[NVML]"), "{text}");
    assert!(
        text.contains("device 3.00 GiB, its allocator: reserved 2.00 GiB, allocated 1.00 GiB"),
        "{text}"
    );
    assert!(text.contains("4000000 -: device not told"), "{text}");
    // the process' own name and owner, once though it computes and draws
    assert_eq!(text.matches(&format!("  {me} ")).count(), 1, "{text}");
    assert!(text.contains("watch"), "the command: {text}");
    assert!(
        !text.contains("MB") && !text.contains("GB"),
        "binary units only: {text}"
    );
    let o = m.run(&["watch", "--once", "--format", "json"]);
    let v = &lines(&out(&o))[0];
    assert_eq!(v["schema"], "tonnage.watch/1");
    standin::conforms("watch", v);
    let said: Value = serde_json::from_str(&m.read(&format!("publish/{me}.json"))).expect("JSON");
    standin::conforms("process", &said);
    let d = &v["devices"][0];
    assert_eq!(d["source"], "nvml");
    assert_eq!(d["memory"]["reserved_bytes"], 458_752_000);
    let sum = ["used_bytes", "free_bytes", "reserved_bytes"]
        .map(|k| d["memory"][k].as_u64().expect(k))
        .iter()
        .sum::<u64>();
    assert_eq!(Some(sum), d["memory"]["total_bytes"].as_u64());
    let p = d["processes"]
        .as_array()
        .and_then(|a| a.iter().find(|p| p["pid"] == me))
        .expect("the process");
    assert_eq!(
        (&p["what"], &p["bytes"]),
        (&"both".into(), &(3 * GIB).into())
    );
}

#[test]
fn a_device_falls_off_the_bus_and_the_other_goes_on() {
    let second = "device|NVIDIA A100-SXM4-80GB|GPU-2|00000000:02:00.0|85899345920|629145600\nused|1|0:1000000000\n";
    let m = Machine::new(&format!(
        "{}{second}fail|nvmlDeviceGetHandleByIndex|0|15|3\nfail|nvmlDeviceGetMemoryInfo|0|15|3\n",
        card("0:5000000000")
    ));
    let o = m.run(&[
        "watch",
        "--samples",
        "5",
        "--interval",
        "0.05",
        "--format",
        "json",
    ]);
    assert!(o.status.success(), "{}", err(&o));
    let all = lines(&out(&o));
    for v in &all {
        standin::conforms("watch", v);
    }
    assert!(all[2]["devices"][0]["memory"].is_object());
    for v in &all[3..] {
        let d = &v["devices"][0];
        assert!(d["memory"].is_null());
        assert_eq!(d["name"], "NVIDIA GeForce RTX 4090", "it keeps its name");
        assert_eq!(d["peak_used_bytes"], 5_000_000_000u64, "and its peak");
        assert!(
            d["troubles"][0]
                .as_str()
                .is_some_and(|t| t.contains("fallen off the bus")),
            "{d}"
        );
        assert!(v["devices"][1]["memory"].is_object());
    }
}

#[test]
fn errors_of_the_library_are_sentences() {
    for (code, said) in [
        (9, "the NVIDIA driver is not loaded"),
        (18, "restart after the driver's update"),
    ] {
        let m = Machine::new(&format!("{}fail|nvmlInit|*|{code}|0\n", card("0:1")));
        let o = m.run(&["watch", "--once"]);
        assert_eq!(o.status.code(), Some(4));
        assert!(err(&o).contains(said), "{}", err(&o));
    }
    // one device's memory that may not be read is no reason to be silent about the rest
    let m = Machine::new(&format!(
        "{}fail|nvmlDeviceGetMemoryInfo|0|4|0\nfail|nvmlDeviceGetComputeRunningProcesses|0|999|0\n",
        card("0:1")
    ));
    let o = m.run(&["watch", "--once"]);
    assert_eq!(o.status.code(), Some(0));
    let text = out(&o);
    assert!(text.contains("memory: this user may not ask"), "{text}");
    assert!(text.contains("processes:"), "{text}");
}

#[test]
fn mig_instances_are_shown_each_with_its_own_memory() {
    let m = Machine::new(
        "device|NVIDIA A100-SXM4-40GB|GPU-9|00000000:07:00.0|42949672960|600000000\nused|0|0:6000000000\n\
         mig|0|0|NVIDIA A100-SXM4-40GB MIG 1g.5gb|MIG-a|5100273664|1000000000\n\
         mig|0|3|NVIDIA A100-SXM4-40GB MIG 3g.20gb|MIG-b|20937965568|5000000000\n\
         process|0|4000001|900000000|compute|0|0\nprocess|0|4000002|4900000000|compute|3|0\n",
    );
    let o = m.run(&["watch", "--once", "--format", "json"]);
    assert!(o.status.success(), "{}", err(&o));
    let v = &lines(&out(&o))[0];
    standin::conforms("watch", v);
    let d = &v["devices"][0];
    let i = d["instances"].as_array().expect("instances");
    assert_eq!(i.len(), 2);
    assert_eq!(i[1]["memory"]["used_bytes"], 5_000_000_000u64);
    assert_eq!(
        (&i[0]["uuid"], &i[1]["gpu_instance"]),
        (&"MIG-a".into(), &3.into())
    );
    assert_eq!(d["processes"].as_array().map(Vec::len), Some(2), "{d}");
    assert!(
        out(&m.run(&["watch", "--once"]))
            .contains("MIG NVIDIA A100-SXM4-40GB MIG 3g.20gb: used 4.66 GiB of 19.50 GiB")
    );
}

/// Serves one text to everybody, for the test's life.
fn endpoint(text: &'static str) -> String {
    let l = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = l.local_addr().expect("an address").to_string();
    std::thread::spawn(move || {
        for mut s in l.incoming().flatten() {
            let mut buf = [0; 2048];
            let _ = s.read(&mut buf);
            let n = text.len();
            let _ = write!(
                s,
                "HTTP/1.1 200 OK\r\nContent-Length: {n}\r\nConnection: close\r\n\r\n{text}"
            );
        }
    });
    at
}

#[test]
fn a_cluster_through_the_dcgm_exporter() {
    let at = endpoint(concat!(
        "# HELP DCGM_FI_DEV_FB_USED Framebuffer memory used (in MiB).\n# TYPE DCGM_FI_DEV_FB_USED gauge\n",
        "DCGM_FI_DEV_FB_FREE{gpu=\"0\",UUID=\"GPU-a\",pci_bus_id=\"00000000:07:00.0\",device=\"nvidia0\",modelName=\"NVIDIA A100-SXM4-40GB\",Hostname=\"node1\",pod=\"train-0\",namespace=\"ml\"} 30000\n",
        "DCGM_FI_DEV_FB_USED{gpu=\"0\",UUID=\"GPU-a\",pci_bus_id=\"00000000:07:00.0\",device=\"nvidia0\",modelName=\"NVIDIA A100-SXM4-40GB\",Hostname=\"node1\",pod=\"train-0\",namespace=\"ml\"} 10337\n",
        "DCGM_FI_DEV_FB_RESERVED{gpu=\"0\",UUID=\"GPU-a\",modelName=\"NVIDIA A100-SXM4-40GB\",Hostname=\"node1\"} 623\n",
        "DCGM_FI_DEV_GPU_UTIL{gpu=\"0\",UUID=\"GPU-a\",modelName=\"NVIDIA A100-SXM4-40GB\",Hostname=\"node1\"} 97\n",
        "DCGM_FI_DEV_GPU_TEMP{gpu=\"0\",UUID=\"GPU-a\",Hostname=\"node1\"} 60\n",
        "DCGM_FI_DEV_FB_USED{gpu=\"1\",UUID=\"GPU-b\",modelName=\"NVIDIA A100-SXM4-40GB\",GPU_I_PROFILE=\"1g.5gb\",GPU_I_ID=\"7\",Hostname=\"node1\"} 12\n",
        "DCGM_FI_DEV_FB_FREE{gpu=\"1\",UUID=\"GPU-b\",modelName=\"NVIDIA A100-SXM4-40GB\",GPU_I_PROFILE=\"1g.5gb\",GPU_I_ID=\"7\",Hostname=\"node1\"} 4852\n",
    ));
    let run = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_tonnage"))
            .args(args)
            .output()
            .expect("starts")
    };
    let o = run(&["watch", "--once", "--format", "json", "--remote", &at]);
    assert!(o.status.success(), "{}", err(&o));
    let v = &lines(&out(&o))[0];
    let d = &v["devices"][0];
    assert_eq!(
        (&d["host"], &d["source"], &d["busy_pct"]),
        (&"node1".into(), &"dcgm".into(), &97.into())
    );
    assert_eq!(d["memory"]["used_bytes"], 10337u64 << 20);
    assert_eq!(d["memory"]["total_bytes"], 40960u64 << 20);
    assert_eq!(v["devices"][1]["instances"][0]["name"], "1g.5gb");
    assert_eq!(v["devices"][1]["memory"]["used_bytes"], 12u64 << 20);
    // something else answers, or nothing does
    let other = endpoint("<html>hello</html>\n");
    let o = run(&["watch", "--once", "--remote", &other]);
    assert_eq!(o.status.code(), Some(4));
    assert!(
        err(&o).contains("line 1 is not Prometheus text"),
        "{}",
        err(&o)
    );
    let o = run(&["watch", "--once", "--remote", "http://127.0.0.1:9/metrics"]);
    assert_eq!(o.status.code(), Some(4));
    assert!(
        err(&o).contains("http://127.0.0.1:9/metrics"),
        "{}",
        err(&o)
    );
}

#[test]
fn the_exporter_speaks_what_the_reader_reads() {
    let me = std::process::id();
    let m = Machine::new(&format!(
        "{}process|0|{me}|3000000000|compute|-|0\n",
        card("0:5000000000 4:7000000000 6:1000")
    ));
    let mut child = m
        .tonnage(&["watch", "--interval", "0.05", "--prometheus", "127.0.0.1:0"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut said = String::new();
    let mut pipe = child.stderr.take().expect("a pipe");
    let mut byte = [0u8; 1];
    while !said.ends_with('\n') && pipe.read(&mut byte).is_ok_and(|n| n == 1) {
        said.push(char::from(byte[0]));
    }
    let url = said
        .trim()
        .strip_prefix("metrics at ")
        .expect(&said)
        .to_string();
    std::thread::sleep(Duration::from_millis(900));
    let run = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_tonnage"))
            .args(args)
            .output()
            .expect("starts")
    };
    let o = run(&["watch", "--once", "--format", "json", "--remote", &url]);
    let page = tonnage_host_text(&url);
    child.kill().expect("killed");
    child.wait().expect("waited");
    assert!(o.status.success(), "{}", err(&o));
    let d = &lines(&out(&o))[0]["devices"][0];
    assert_eq!(
        d["memory"],
        serde_json::json!({"total_bytes": 25_757_220_864u64, "used_bytes": 1000, "reserved_bytes": 458_752_000, "free_bytes": 25_757_220_864u64 - 458_752_000 - 1000})
    );
    assert_eq!(
        (&d["processes"][0]["pid"], &d["processes"][0]["bytes"]),
        (&me.into(), &3_000_000_000u64.into())
    );
    let samples = tonnage_host::metrics::parse(&page).expect("the text format");
    let value = |n: &str| samples.iter().find(|s| s.name == n).map(|s| s.value);
    assert_eq!(value("tonnage_device_memory_used_peak_bytes"), Some(7e9));
    assert_eq!(value("tonnage_device_up"), Some(1.0));
    assert!(page.ends_with("# EOF\n"));
    for s in &samples {
        let types = page
            .lines()
            .filter(|l| **l == format!("# TYPE {} gauge", s.name))
            .count();
        assert_eq!(types, 1, "{} has its type once", s.name);
    }
}

fn tonnage_host_text(url: &str) -> String {
    let at = url
        .trim_start_matches("http://")
        .trim_end_matches("/metrics");
    let mut s = std::net::TcpStream::connect(at).expect("connects");
    s.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        .expect("asked");
    let mut t = String::new();
    s.read_to_string(&mut t).expect("answered");
    t.split_once("\r\n\r\n").expect("a body").1.to_string()
}

/// In a pseudo-terminal, between two looks at the terminal's settings.
fn in_terminal(m: &Machine, program: &str, input: &[u8], wait: Duration) -> String {
    let mut c = Command::new("script");
    m.environment(&mut c);
    let line = format!(
        "stty rows 40 cols 120; stty -a > before; {program}; echo status $?; stty -a > after"
    );
    let mut child = c
        .args(["-qec", &line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script starts");
    let mut keys = child.stdin.take().expect("a pipe");
    let mut screen = child.stdout.take().expect("a pipe");
    let reader = std::thread::spawn(move || {
        let mut t = Vec::new();
        let _ = screen.read_to_end(&mut t);
        String::from_utf8_lossy(&t).into_owned()
    });
    std::thread::sleep(wait);
    keys.write_all(input).expect("typed");
    let begun = Instant::now();
    while child.try_wait().expect("waits").is_none() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(keys);
    reader.join().expect("read")
}

#[test]
fn k28_the_monitor_in_a_terminal_and_the_terminal_afterwards() {
    let tonnage = format!(
        "'{}' watch --interval 0.1 --log log.csv",
        env!("CARGO_BIN_EXE_tonnage")
    );
    for (how, program, keys) in [
        ("q", tonnage.clone(), &b"q"[..]),
        ("Ctrl-C", tonnage.clone(), &b"\x03"[..]),
        (
            "a signal",
            format!("{tonnage} & sleep 1.5; kill $!; wait $!"),
            &b""[..],
        ),
    ] {
        // a job in the background is not given the keys: it is stopped by the signal below, in the foreground of a shell of its own
        let program = if how == "a signal" {
            format!(
                "sh -c '(sleep 1.5; kill $(cat pid)) & echo $$ > pid; exec {}'",
                tonnage.replace('\'', "\"")
            )
        } else {
            program
        };
        let m = Machine::new(&card("0:1073741824 3:21474836480 5:2147483648"));
        let screen = in_terminal(&m, &program, keys, Duration::from_millis(1500));
        assert!(
            screen.contains("\x1b[?1049h") && screen.contains("\x1b[?1049l"),
            "{how}: the second screen"
        );
        let shown = screen
            .rfind("\x1b[?25h")
            .expect("the cursor is shown again");
        assert!(
            screen
                .rfind("\x1b[?25l")
                .is_none_or(|hidden| hidden < shown),
            "{how}"
        );
        assert!(screen.contains("NVIDIA GeForce RTX 4090"), "{how}");
        assert!(
            screen.contains("status 0"),
            "{how}: {}",
            &screen[screen.len().saturating_sub(200)..]
        );
        assert!(
            screen.contains("peak 20.00 GiB used (NVML)"),
            "{how}: the summary after it"
        );
        assert_eq!(
            m.read("before"),
            m.read("after"),
            "{how}: the terminal's settings"
        );
        let log = m.read("log.csv");
        let most = log
            .lines()
            .skip(1)
            .filter_map(|l| l.split(',').nth(5)?.parse::<u64>().ok())
            .max();
        assert_eq!(most, Some(20 * GIB));
    }
}
