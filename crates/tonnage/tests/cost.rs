//! What observing costs, and that it disturbs nothing.
#![cfg(target_os = "linux")]

mod standin;

use standin::{Machine, card, err};
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn machine() -> Machine {
    Machine::new(&format!("{}live|0|$DIR/live\n", card("0:1000000000")))
}

/// Time that a process has had on a core, in nanoseconds.
fn busy(pid: u32) -> u64 {
    std::fs::read_dir(format!("/proc/{pid}/task"))
        .expect("tasks")
        .flatten()
        .filter_map(|task| {
            let t = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            t.split_whitespace().next()?.parse::<u64>().ok()
        })
        .sum()
}

/// Percent of a core over some seconds.
fn cost(pid: u32, seconds: u64) -> f64 {
    let (from, at) = (busy(pid), Instant::now());
    std::thread::sleep(Duration::from_secs(seconds));
    100.0 * (busy(pid) - from) as f64 / at.elapsed().as_nanos() as f64
}

/// The monitor in a terminal of that size.
fn monitor(m: &Machine, columns: u32, interval: &str) -> (Child, u32) {
    let line = format!(
        "stty cols {columns} rows 40; echo $$ > pid; exec '{}' watch --interval {interval}",
        env!("CARGO_BIN_EXE_tonnage")
    );
    let mut c = Command::new("script");
    m.environment(&mut c);
    let mut c = c
        .args(["-qec", &line, "/dev/null"])
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script starts");
    let mut screen = c.stdout.take().expect("a pipe");
    std::thread::spawn(move || {
        let mut piece = [0u8; 4096];
        while screen.read(&mut piece).is_ok_and(|n| n > 0) {}
    });
    let begun = Instant::now();
    let mut pid = None;
    while pid.is_none() && begun.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(200));
        let said = std::fs::read_to_string(m.path("pid")).unwrap_or_default();
        pid = said.trim().parse().ok();
    }
    if pid.is_none() {
        let _ = c.kill();
        let _ = c.wait();
    }
    (c, pid.expect("the monitor starts"))
}

fn quit(mut c: Child) {
    let mut keys = c.stdin.take().expect("a pipe");
    keys.write_all(b"q").expect("typed");
    assert!(c.wait().expect("ends").success());
}

#[test]
fn watching_and_ceasing_to_watch_do_not_disturb_the_child() {
    let m = machine();
    let signals = "HUP INT QUIT USR1 USR2 PIPE ALRM TERM CHLD CONT TSTP TTIN TTOU";
    let script = format!(
        "n=0; for s in {signals}; do trap \"n=\\$((n+1)); echo $s\" $s; done
        echo 2000000000 > live/$$; while read line; do :; done; exit $n"
    );
    let mut c = Command::new("sh");
    m.environment(&mut c);
    let mut child = c
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let state = |k: &str| {
        let t = std::fs::read_to_string(format!("/proc/{}/status", child.id())).expect("status");
        let line = t.lines().find(|l| l.starts_with(k)).map(String::from);
        line.expect("a line")
            .split_whitespace()
            .nth(1)
            .map(String::from)
    };
    for _ in 0..3 {
        let (watch, _) = monitor(&m, 100, "0.05");
        std::thread::sleep(Duration::from_millis(400));
        assert_eq!(state("TracerPid").as_deref(), Some("0"));
        assert_ne!(state("State").as_deref(), Some("T"));
        quit(watch);
    }
    drop(child.stdin.take());
    let o = child.wait_with_output().expect("ends");
    assert_eq!(
        (o.status.code(), o.stdout.as_slice()),
        (Some(0), &b""[..]),
        "{}",
        err(&o)
    );
}

#[test]
#[ignore = "measures time; run by hand in a release build: --ignored --nocapture"]
fn the_drawn_monitors_own_cost() {
    for columns in [80, 200] {
        let m = machine();
        let (c, pid) = monitor(&m, columns, "1");
        std::thread::sleep(Duration::from_secs(2));
        let pct = cost(pid, 25);
        println!("{pct:.3} % of a core at one sample a second, {columns} columns");
        quit(c);
        assert!(pct <= 1.0);
    }
}

#[test]
#[ignore = "measures time; run by hand: --ignored --nocapture"]
fn the_recorders_own_cost() {
    let m = machine();
    let begun = Instant::now();
    let mut c = m
        .tonnage(&["run", "--quiet", "--interval", "1", "--", "sleep", "30"])
        .spawn()
        .expect("starts");
    std::thread::sleep(Duration::from_secs(1));
    let pct = cost(c.id(), 25);
    println!("{pct:.3} % of a core at one sample a second");
    c.wait().expect("ends");
    println!(
        "{:.1} s for a command of 30 s",
        begun.elapsed().as_secs_f64()
    );
    assert!(pct <= 1.0);
}
