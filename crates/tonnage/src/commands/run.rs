//! `tonnage run`: a command, unchanged, and what it takes.

use super::watch::now_ms;
use crate::Status;
use crate::observed;
use crate::output::Output;
use clap::Args;
use std::collections::VecDeque;
use std::io::{Read, Seek, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tonnage_host::device::{Readers, System};
use tonnage_host::publish;
use tonnage_host::record::{self, Begin, End, Store};
use tonnage_host::sampler::Sampler;

/// Of its error output, this much is kept for an out-of-memory text.
const TAIL: usize = 256 << 10;

/// `run`
#[derive(Args, Debug)]
pub struct RunArgs {
    /// The job that the command does (default: read from a configuration among its arguments)
    #[arg(long, value_name = "FILE")]
    pub job: Option<PathBuf>,
    /// The card of the verdict (default: the one that is here, as it is now)
    #[arg(long, value_name = "ID")]
    pub gpu: Option<String>,
    /// Seconds from sample to sample (default: 0.1 in the first minute, 0.25 up to ten, then 1)
    #[arg(long, value_name = "SECONDS")]
    pub interval: Option<f64>,
    /// Keep no recording
    #[arg(long)]
    pub no_record: bool,
    /// Pass its standard error through, to explain an out-of-memory error in it (a file is read afterwards without this)
    #[arg(long)]
    pub read_stderr: bool,
    /// Have PyTorch's allocator publish its figures (as the package in `python/` does where it is installed)
    #[arg(long)]
    pub hook: bool,
    /// Say nothing but what goes wrong
    #[arg(long, short)]
    pub quiet: bool,
    /// The command
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// All that is said goes to standard error: the command's output is its own.
pub fn say(text: &str) {
    let mut e = std::io::stderr().lock();
    let _ = e.write_all(text.as_bytes()).and_then(|()| e.flush());
}

pub fn trouble(what: &str) {
    say(&format!("tonnage: {what}; the run is not affected\n"));
}

pub fn run(a: &RunArgs, out: &Output) -> Status {
    guard_threads();
    let interval = match a.interval {
        Some(s) if !(0.01..=3600.0).contains(&s) => {
            trouble("--interval is 0.01 to 3600 seconds: the default is taken");
            None
        }
        s => s.map(Duration::from_secs_f64),
    };
    let prediction = crate::prediction::predict(a, out);
    let published = publish::folder();
    if let Some(p) = &published {
        let _ = std::fs::create_dir_all(p);
    }
    let system = System::default();
    let readers = match Readers::local(&system) {
        Ok(r) => Some(r),
        Err(e) => {
            if !a.quiet {
                say(&format!("tonnage: {e}: host memory only is recorded\n"));
            }
            None
        }
    };
    let mut sampler = Sampler::new(readers, &system.root, published.clone());
    let (devices, _) = sampler.before();
    let begun = now_ms();
    let begin = Begin {
        begun_ms: begun,
        command: a.command.clone(),
        folder: std::env::current_dir().map_or_else(|_| String::new(), |p| p.display().to_string()),
        pid: None,
        job: prediction.as_ref().and_then(|p| p.1.clone()),
        prediction: prediction.as_ref().map(|p| p.0.to_string()),
    };
    let mut store = None;
    if !a.no_record {
        match open(&begin, &devices) {
            Ok(s) => store = Some(s),
            Err(e) => trouble(&format!("no recording: {e}")),
        }
    }
    // before the command starts, so that no signal falls between
    let signals = Signals::install();
    let log = file_of_stderr();
    let mut command = Command::new(&a.command[0]);
    command.args(&a.command[1..]);
    let mark = format!("{}.{begun}", std::process::id());
    command.env("TONNAGE_RUN", &mark);
    if let Some(p) = &published {
        command.env("TONNAGE_PUBLISH", p);
    }
    if a.hook {
        match hook() {
            Ok(path) => {
                command.env("PYTHONPATH", path);
            }
            Err(e) => trouble(&format!("no hook: {e}")),
        }
    }
    if a.read_stderr {
        command.stderr(Stdio::piped());
    }
    let mut child = match command.spawn() {
        Ok(c) => c,
        Err(e) => {
            say(&format!("tonnage: {}: {e}\n", a.command[0]));
            let code = if e.kind() == std::io::ErrorKind::NotFound {
                127
            } else {
                126
            };
            if let Some((mut s, id)) = store {
                let end = End {
                    ended_ms: now_ms(),
                    exit_code: Some(code),
                    trouble: Some(e.to_string()),
                    ..End::default()
                };
                let _ = s.end(id, &end);
            }
            std::process::exit(code);
        }
    };
    signals.forward_to(child.id());
    let tail = child.stderr.take().map(tee);
    sampler.follow(child.id(), &format!("TONNAGE_RUN={mark}"));
    let done = Arc::new(AtomicBool::new(false));
    let pid = child.id();
    let recorder = std::thread::Builder::new().name("recorder".into()).spawn({
        let done = Arc::clone(&done);
        move || recorded(sampler, store, pid, interval, &done)
    });
    let status = wait(&mut child);
    done.store(true, Ordering::Relaxed);
    let ended = now_ms();
    let kept = match recorder {
        Ok(r) => {
            r.thread().unpark();
            // a device that hangs in its driver must not hold the command's status back
            let begun = Instant::now();
            while !r.is_finished() && begun.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(2));
            }
            if r.is_finished() { r.join().ok() } else { None }
        }
        Err(e) => {
            trouble(&format!("no recording: {e}"));
            None
        }
    };
    let (code, signal) = codes(status);
    let text = tail
        .and_then(Tail::end)
        .or_else(|| log.and_then(|l| l.rest()));
    if let Some((sampler, store)) = kept {
        if a.hook && sampler.framework.is_none() && !a.quiet {
            say("tonnage: --hook: no PyTorch program of this command used a device\n");
        }
        let oom = sampler
            .out_of_memory
            .clone()
            .or_else(|| text.and_then(|t| found_oom(&t)));
        let end = End {
            ended_ms: ended,
            exit_code: code,
            signal,
            framework: sampler.framework.clone(),
            out_of_memory: oom,
            trouble: sampler.trouble.clone(),
        };
        if let Some((mut s, id)) = store {
            let summary = s.end(id, &end).and_then(|()| s.load(id));
            match summary {
                Ok(r) if !a.quiet => {
                    say(&format!(
                        "\ntonnage {}",
                        observed::text(&observed::summary(&r), &out.style)
                    ));
                }
                Ok(_) => {}
                Err(e) => trouble(&format!("the recording has no end: {e}")),
            }
        }
    } else {
        trouble("the recorder does not answer: the recording has no end");
    }
    // as shells say it
    std::process::exit(code.unwrap_or_else(|| 128 + signal.unwrap_or(0)))
}

/// A defect outside the main thread ends that thread's work and nothing else: the command goes on and its status is passed on.
fn guard_threads() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |defect| {
        if std::thread::current().name() == Some("main") {
            before(defect);
            return;
        }
        say(&format!(
            "tonnage: a defect of ours; the run is not affected\n  = {defect}\n"
        ));
        // returning would abort the process
        loop {
            std::thread::park();
        }
    }));
}

/// PYTHONPATH with the hook in front.
fn hook() -> Result<std::ffi::OsString, String> {
    let data = record::folder().ok_or("no folder for the user's data")?;
    let at = crate::hook::folder(&data).map_err(|e| format!("{}: {e}", data.display()))?;
    crate::hook::python_path(&at).ok_or_else(|| format!("{}: not a search path", at.display()))
}

fn open(begin: &Begin, devices: &[record::RunDevice]) -> Result<(Store, i64), record::RecordError> {
    let folder = record::folder().ok_or(record::RecordError::NoFolder)?;
    let mut s = Store::open(&folder)?;
    let id = s.begin(begin, devices)?;
    Ok((s, id))
}

type Recorded = (Sampler, Option<(Store, i64)>);

fn recorded(
    mut sampler: Sampler,
    mut store: Option<(Store, i64)>,
    pid: u32,
    interval: Option<Duration>,
    done: &AtomicBool,
) -> Recorded {
    let begun = Instant::now();
    if let Some((s, id)) = &mut store
        && let Err(e) = s.started(*id, pid)
    {
        trouble(&format!("recording: {e}"));
    }
    let mut failed = false;
    while !done.load(Ordering::Relaxed) {
        let from = Instant::now();
        let points = sampler.sample(now_ms());
        if let Some((s, id)) = &mut store
            && let Err(e) = s.sample(*id, &points)
            && !std::mem::replace(&mut failed, true)
        {
            trouble(&format!("a sample is lost: {e}"));
            sampler.trouble = Some(format!("samples were lost: {e}"));
        }
        let every = interval.unwrap_or_else(|| match begun.elapsed().as_secs() {
            0..60 => Duration::from_millis(100),
            60..600 => Duration::from_millis(250),
            _ => Duration::from_secs(1),
        });
        // a sample that takes long (a slow driver) makes the next one later, never the recorder busy
        let rest = every
            .saturating_sub(from.elapsed())
            .max(from.elapsed().min(Duration::from_secs(10)));
        let until = Instant::now() + rest;
        while Instant::now() < until && !done.load(Ordering::Relaxed) {
            std::thread::park_timeout(until.saturating_duration_since(Instant::now()));
        }
    }
    // a program may say why it ended after the last sample
    let words = sampler.last_words(now_ms());
    if let Some((s, id)) = &mut store
        && !words.is_empty()
        && let Err(e) = s.sample(*id, &words)
    {
        trouble(&format!("its last figures are lost: {e}"));
    }
    (sampler, store)
}

fn wait(child: &mut Child) -> std::io::Result<ExitStatus> {
    loop {
        match child.wait() {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            r => return r,
        }
    }
}

fn codes(status: std::io::Result<ExitStatus>) -> (Option<i32>, Option<i32>) {
    let Ok(s) = status else {
        return (Some(70), None);
    };
    #[cfg(unix)]
    {
        use std::os::unix::process::ExitStatusExt;
        (s.code(), s.signal())
    }
    #[cfg(not(unix))]
    {
        (s.code(), None)
    }
}

/// Copies the command's error output to ours and keeps its end.
fn tee(mut from: std::process::ChildStderr) -> Tail {
    let kept = Arc::new(Mutex::new(VecDeque::new()));
    let shared = Arc::clone(&kept);
    let copier = std::thread::spawn(move || {
        let mut piece = [0u8; 16 << 10];
        let mut open = true;
        while let Ok(n) = from.read(&mut piece) {
            if n == 0 {
                break;
            }
            if open {
                open = std::io::stderr().lock().write_all(&piece[..n]).is_ok();
            }
            if let Ok(mut t) = shared.lock() {
                let t: &mut VecDeque<u8> = &mut t;
                t.extend(&piece[..n]);
                let over = t.len().saturating_sub(TAIL);
                t.drain(..over);
            }
        }
    });
    Tail { kept, copier }
}

/// The end of the error output so far.
struct Tail {
    kept: Arc<Mutex<VecDeque<u8>>>,
    copier: std::thread::JoinHandle<()>,
}

impl Tail {
    /// When the command has ended. Something that it left behind may hold the pipe open: that is not waited for.
    fn end(self) -> Option<Vec<u8>> {
        let begun = Instant::now();
        while !self.copier.is_finished() && begun.elapsed() < Duration::from_secs(1) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let t = self.kept.lock().ok()?;
        Some(t.iter().copied().collect())
    }
}

/// Standard error, where it is a file: it is read when the command has ended.
struct ErrorFile {
    path: PathBuf,
    from: u64,
}

fn file_of_stderr() -> Option<ErrorFile> {
    let path = std::fs::read_link("/proc/self/fd/2").ok()?;
    let m = path.metadata().ok().filter(std::fs::Metadata::is_file)?;
    Some(ErrorFile {
        path,
        from: m.len(),
    })
}

impl ErrorFile {
    /// The end of what was written since.
    fn rest(&self) -> Option<Vec<u8>> {
        let mut f = std::fs::File::open(&self.path).ok()?;
        let n = f.metadata().ok()?.len();
        let from = self.from.min(n).max(n.saturating_sub(TAIL as u64));
        f.seek(std::io::SeekFrom::Start(from)).ok()?;
        let mut t = Vec::new();
        f.take(TAIL as u64).read_to_end(&mut t).ok()?;
        Some(t)
    }
}

/// The text, where an out-of-memory error is in it.
fn found_oom(tail: &[u8]) -> Option<String> {
    let mut s = tonnage_explain::oom::Scanner::default();
    s.feed(tail);
    let found = s.finish();
    let log = tonnage_explain::oom::log::Log::of("stderr", &found);
    let failures = serde_json::to_value(&log).ok()?["failures"]
        .as_array()
        .map_or(0, Vec::len);
    (failures > 0).then(|| String::from_utf8_lossy(tail).into_owned())
}

/// Signals that would end us are the command's: those of the terminal reach it by themselves, those that a process sends us are handed on.
pub struct Signals {
    #[cfg(unix)]
    to: Arc<std::sync::atomic::AtomicU32>,
}

#[cfg(unix)]
impl Signals {
    /// From now on.
    pub fn install() -> Signals {
        use signal_hook::consts::*;
        use signal_hook::iterator::SignalsInfo;
        use signal_hook::iterator::exfiltrator::WithOrigin;
        use signal_hook::low_level::siginfo::Cause;
        let to = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let ignored = ignored();
        let ours = [
            SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGCONT,
        ]
        .into_iter()
        // what is ignored (nohup) stays ignored, here and in the command
        .filter(|s| ignored & (1 << (s - 1)) == 0);
        let shared = Arc::clone(&to);
        match SignalsInfo::<WithOrigin>::new(ours) {
            Ok(mut all) => {
                let started = std::thread::Builder::new()
                    .name("signals".into())
                    .spawn(move || {
                        for origin in all.forever() {
                            let by_terminal = matches!(origin.cause, Cause::Kernel);
                            // the command may not be there yet
                            let mut pid = shared.load(Ordering::Acquire);
                            while pid == 0 {
                                std::thread::sleep(Duration::from_millis(1));
                                pid = shared.load(Ordering::Acquire);
                            }
                            let target = i32::try_from(pid)
                                .ok()
                                .and_then(rustix::process::Pid::from_raw);
                            let signal = rustix::process::Signal::from_named_raw(origin.signal);
                            if let (false, Some(p), Some(s)) = (by_terminal, target, signal) {
                                let _ = rustix::process::kill_process(p, s);
                            }
                        }
                    });
                if let Err(e) = started {
                    trouble(&format!("signals are not handed on: {e}"));
                }
            }
            Err(e) => trouble(&format!("signals are not handed on: {e}")),
        }
        Signals { to }
    }
    /// The command's process.
    pub fn forward_to(&self, pid: u32) {
        self.to.store(pid, Ordering::Release);
    }
}

#[cfg(not(unix))]
impl Signals {
    /// From now on.
    pub fn install() -> Signals {
        Signals {}
    }
    /// The command's process.
    pub fn forward_to(&self, _: u32) {}
}

/// The signals that this process was started to ignore.
#[cfg(unix)]
fn ignored() -> u64 {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|t| {
            let line = t.lines().find_map(|l| l.strip_prefix("SigIgn:"))?;
            u64::from_str_radix(line.trim(), 16).ok()
        })
        .unwrap_or(0)
}
