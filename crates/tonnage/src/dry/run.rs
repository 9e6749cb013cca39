//! One dry run: the environment, the process, what it left.

use super::{null, python, recording};
use crate::commands::run::Signals;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tonnage_core::Diagnostic;
use tonnage_core::verdict::Device;
use tonnage_explain::oom::Scanner;
use tonnage_explain::oom::log::Log;
use tonnage_trace::Trace;

const FILES: [(&str, &str); 9] = [
    (
        "sitecustomize.py",
        include_str!("../../python/sitecustomize.py"),
    ),
    (
        "tonnage_recorder.py",
        include_str!("../../python/tonnage_recorder.py"),
    ),
    (
        "tonnage_state.py",
        include_str!("../../python/tonnage_state.py"),
    ),
    (
        "tonnage_tags.py",
        include_str!("../../python/tonnage_tags.py"),
    ),
    (
        "tonnage_writer.py",
        include_str!("../../python/tonnage_writer.py"),
    ),
    (
        "tonnage_repeat.py",
        include_str!("../../python/tonnage_repeat.py"),
    ),
    (
        "tonnage_objects.py",
        include_str!("../../python/tonnage_objects.py"),
    ),
    (
        "tonnage_lone.py",
        include_str!("../../python/tonnage_lone.py"),
    ),
    (
        "tonnage_vllm.py",
        include_str!("../../python/tonnage_vllm.py"),
    ),
];

/// What to run and on what.
pub struct Plan<'a> {
    pub command: &'a [String],
    pub device: &'a Device,
    pub count: usize,
    /// (world, rank): one process as one of many.
    pub lone: Option<(u32, u32)>,
    pub unlimited: bool,
    pub quiet: bool,
    /// The script's output goes to standard error, because ours is for a program.
    pub aside: bool,
    /// More variables.
    pub env: &'a [(String, String)],
}

/// What came of it.
pub struct Done {
    /// The command's own status; 128 + signal where one ended it.
    pub code: i32,
    /// By rank, with the process id.
    pub traces: Vec<(u64, Trace)>,
    pub report: null::Report,
    pub bad: Vec<Diagnostic>,
    pub seconds: f64,
    /// What the script's standard error says went wrong.
    pub log: Log,
}

/// Is this a machine for it?
///
/// # Errors
/// A sentence; code `unavailable`.
pub fn platform() -> Result<(), Diagnostic> {
    if cfg!(all(
        target_os = "linux",
        target_arch = "x86_64",
        target_env = "gnu"
    )) {
        Ok(())
    } else {
        Err(Diagnostic::error(
            "unavailable",
            format!(
                "dry runs need Linux on x86-64 with glibc; this program is built for {} on {}",
                std::env::consts::OS,
                std::env::consts::ARCH
            ),
        )
        .help("`tonnage estimate` needs none of it"))
    }
}

/// A path list with an entry in front.
fn before(entry: &Path, variable: &str, separator: &str) -> String {
    match std::env::var(variable) {
        Ok(old) if !old.is_empty() => format!("{}{separator}{old}", entry.display()),
        _ => entry.display().to_string(),
    }
}

/// Is the command's torch one that can be run here?
///
/// # Errors
/// No such command, no torch, a build without CUDA.
pub fn check(command: &[String], card: &Device) -> Result<Option<python::Torch>, Diagnostic> {
    let Some(p) = python::of(command)? else {
        return Ok(None);
    };
    let t = python::torch(&p)?;
    python::check(&p, &t, Some(card))?;
    Ok(Some(t))
}

/// The command with the null device and the recorder around it, in a folder of its own; and where the device reports.
///
/// # Errors
/// What keeps it from being started.
pub fn prepare(plan: &Plan, at: &Path) -> Result<(Command, PathBuf), Diagnostic> {
    let io = |e: std::io::Error| Diagnostic::error("unavailable", e.to_string());
    let library = null::library()?;
    let null_dir = null::folder(at, &library).map_err(io)?;
    let hook = at.join("python");
    let record = at.join("record");
    let world_dir = at.join("world");
    for d in [&hook, &record, &world_dir] {
        std::fs::create_dir_all(d).map_err(io)?;
    }
    for (name, text) in FILES {
        std::fs::write(hook.join(name), text).map_err(io)?;
    }
    let devices = at.join("devices.json");
    let machine = null::devices(plan.device, plan.count, plan.unlimited)?;
    std::fs::write(&devices, machine.to_string()).map_err(io)?;
    let report: PathBuf = at.join("report.jsonl");
    let mut c = Command::new(&plan.command[0]);
    c.args(&plan.command[1..])
        .env(
            "LD_PRELOAD",
            before(&null_dir.join("libtonnage_null.so"), "LD_PRELOAD", ":"),
        )
        .env("LD_LIBRARY_PATH", before(&null_dir, "LD_LIBRARY_PATH", ":"))
        .env("PYTHONPATH", before(&hook, "PYTHONPATH", ":"))
        .env("TRITON_LIBCUDA_PATH", &null_dir)
        .env("TONNAGE_NULL_DEVICE", &devices)
        .env("TONNAGE_NULL_REPORT", &report)
        .env("TONNAGE_RECORD_DIR", &record)
        // what is visible is what was asked for
        .env_remove("CUDA_VISIBLE_DEVICES");
    if plan.quiet {
        c.env("TONNAGE_NULL_QUIET", "1");
    }
    match plan.lone {
        Some((world, rank)) => {
            c.env("TONNAGE_NULL_WORLD", world.to_string())
                .env("TONNAGE_NULL_RANK", rank.to_string())
                .env("TONNAGE_WORLD", world.to_string())
                .env("WORLD_SIZE", world.to_string())
                .env("RANK", rank.to_string())
                .env("LOCAL_RANK", "0")
                .env("LOCAL_WORLD_SIZE", "1")
                .env("MASTER_ADDR", "127.0.0.1")
                .env("MASTER_PORT", "29500");
        }
        None => {
            c.env("TONNAGE_NULL_WORLD_DIR", &world_dir);
        }
    }
    for (k, v) in plan.env {
        c.env(k, v);
    }
    Ok((c, report))
}

/// Runs.
///
/// # Errors
/// What keeps it from being started.
pub fn run(plan: &Plan) -> Result<Done, Diagnostic> {
    let io = |e: std::io::Error| Diagnostic::error("unavailable", e.to_string());
    let temp = tempfile::tempdir().map_err(io)?;
    let at = temp.path();
    let record = at.join("record");
    let (mut c, report) = prepare(plan, at)?;
    if plan.aside {
        c.stdout(Stdio::from(std::io::stderr()));
    }
    // Ctrl-C ends the script; what it had done until then is still told
    let signals = Signals::install();
    let started = std::time::Instant::now();
    c.stderr(Stdio::piped());
    let mut child = c
        .spawn()
        .map_err(|e| Diagnostic::error("no-command", format!("{}: {e}", plan.command[0])))?;
    signals.forward_to(child.id());
    // what the script says of its end is passed on, and read for an out-of-memory text
    let mut scanner = Scanner::default();
    if let Some(mut from) = child.stderr.take() {
        let mut piece = vec![0; 1 << 16];
        while let Ok(n) = from.read(&mut piece) {
            if n == 0 {
                break;
            }
            let _ = std::io::stderr().write_all(&piece[..n]);
            scanner.feed(&piece[..n]);
        }
    }
    let status = child.wait().map_err(io)?;
    let seconds = started.elapsed().as_secs_f64();
    #[cfg(unix)]
    let code = {
        use std::os::unix::process::ExitStatusExt;
        status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
    };
    #[cfg(not(unix))]
    let code = status.code().unwrap_or(1);
    let root = std::env::current_dir()
        .map(|d| d.display().to_string())
        .unwrap_or_default();
    let (mut traces, bad) = recording::collect(&record, &root);
    for (_, t) in &mut traces {
        t.header.gpu = plan.device.gpu.id.clone();
    }
    Ok(Done {
        code,
        traces,
        report: null::report(&report),
        bad,
        seconds,
        log: Log::of("the script", &scanner.finish()),
    })
}
