//! A server on the null device: it is started, its log is read, and it is ended once it has started.

use std::io::{BufRead, BufReader, Write};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use tonnage_core::Diagnostic;

/// How long an ended server has to leave by itself.
const PATIENCE: Duration = Duration::from_secs(20);

/// What reads a log.
pub trait Listener: Default {
    /// Reads one line.
    fn line(&mut self, line: &str);
    /// The server has started.
    fn complete(&self) -> bool;
}

/// The words of a line after `key`.
pub fn after<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_once(key).map(|x| x.1.trim())
}

/// What a whole log says.
#[cfg(test)]
pub fn read<L: Listener>(log: &str) -> L {
    let mut said = L::default();
    log.lines().for_each(|l| said.line(l));
    said
}

/// Every line of a stream, as text.
fn lines(from: impl std::io::Read + Send + 'static, to: mpsc::Sender<String>) {
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut bytes = Vec::new();
        while let Ok(n) = from.read_until(b'\n', &mut bytes) {
            if n == 0 {
                break;
            }
            let _ = to.send(String::from_utf8_lossy(&bytes).into_owned());
            bytes.clear();
        }
    });
}

/// Starts a server, passes on what it prints, and ends it once it has started. Its own status; 0 where it was ended after its start.
///
/// # Errors
/// It cannot be started.
#[cfg(unix)]
pub fn watch<L: Listener>(mut c: Command, name: &str) -> Result<(L, i32), Diagnostic> {
    use rustix::process::{Pid, Signal, kill_process_group};
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    let io = |e: std::io::Error| Diagnostic::error("unavailable", e.to_string());
    // a group of its own, so that its workers can be ended with it; a terminal's interrupt then comes to us alone
    let mut child = c
        .process_group(0)
        .spawn()
        .map_err(|e| Diagnostic::error("no-command", format!("{name}: {e}")))?;
    let stop = Arc::new(AtomicBool::new(false));
    for s in [
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGHUP,
    ] {
        let _ = signal_hook::flag::register(s, Arc::clone(&stop));
    }
    let (to, from) = mpsc::channel();
    if let Some(s) = child.stdout.take() {
        lines(s, to.clone());
    }
    if let Some(s) = child.stderr.take() {
        lines(s, to);
    }
    let mut said = L::default();
    let take = |said: &mut L, line: String| {
        let _ = std::io::stderr().write_all(line.as_bytes());
        said.line(line.trim_end());
    };
    let mut ended = None;
    while !said.complete() && !stop.load(Ordering::Relaxed) {
        match from.recv_timeout(Duration::from_millis(200)) {
            Ok(line) => take(&mut said, line),
            Err(RecvTimeoutError::Timeout) => {
                ended = child.try_wait().map_err(io)?;
                if ended.is_some() {
                    break;
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let group = Pid::from_child(&child);
    let ours = said.complete() && ended.is_none();
    if ended.is_none() && (ours || stop.load(Ordering::Relaxed)) {
        let _ = kill_process_group(group, Signal::TERM);
    }
    let begun = Instant::now();
    let status = loop {
        if let Some(s) = ended.or(child.try_wait().map_err(io)?) {
            break s;
        }
        if begun.elapsed() > PATIENCE {
            let _ = kill_process_group(group, Signal::KILL);
        }
        while let Ok(line) = from.try_recv() {
            take(&mut said, line);
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    // workers that outlive their parent
    let _ = kill_process_group(group, Signal::KILL);
    while let Ok(line) = from.recv_timeout(Duration::from_millis(300)) {
        take(&mut said, line);
    }
    let code = match (ours, status.code()) {
        (true, _) => 0,
        (false, Some(c)) => c,
        (false, None) => 128 + status.signal().unwrap_or(0),
    };
    Ok((said, code))
}

/// Starts nothing.
///
/// # Errors
/// Always.
#[cfg(not(unix))]
pub fn watch<L: Listener>(_: Command, _: &str) -> Result<(L, i32), Diagnostic> {
    Err(Diagnostic::error("unavailable", "dry runs need Linux"))
}
