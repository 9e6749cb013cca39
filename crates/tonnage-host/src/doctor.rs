//! What machine, driver and libraries say, as facts: sections of names and values, in an order that does not change. Texts are kept as they
//! were said, amounts in bytes, so that a printed block is the facts again ([`parse`]).

use crate::device::nvml::Nvidia;
use crate::device::{Readers, System};
use crate::process::Procs;
use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The first line of a block, without the program's version.
pub const HEADER: &str = "tonnage doctor (tonnage.doctor/1)";

/// A section: `machine`, `driver`, `gpu 0`, `python`, `settings`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Section {
    pub name: String,
    pub facts: Vec<(String, String)>,
}

impl Section {
    fn new(name: &str) -> Section {
        Section {
            name: name.into(),
            facts: Vec::new(),
        }
    }
    fn add(&mut self, key: &str, value: impl ToString) {
        // a fact is one line
        let v = value.to_string().replace(['\n', '\r'], " ");
        let v = v.trim();
        if !v.is_empty() {
            self.facts.push((key.into(), v.into()));
        }
    }
    /// A fact's value.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.facts.iter().find(|f| f.0 == key).map(|f| f.1.as_str())
    }
    /// A fact in bytes.
    pub fn bytes(&self, key: &str) -> Option<u64> {
        self.get(key)?.strip_suffix(" bytes")?.parse().ok()
    }
}

/// The block's text.
pub fn block(sections: &[Section]) -> String {
    let mut t = format!("{HEADER}\n");
    for s in sections {
        let _ = writeln!(t, "{}", s.name);
        for (k, v) in &s.facts {
            let _ = writeln!(t, "  {k}: {v}");
        }
    }
    t
}

/// Reads a block again: what stands before it (a message that it was pasted into), quotation marks and the findings after it do not matter.
///
/// # Errors
/// No block is in the text.
pub fn parse(text: &str) -> Result<Vec<Section>, String> {
    let mut lines = text
        .lines()
        .map(|l| l.trim_start_matches("> ").trim_end())
        .skip_while(|l| *l != HEADER);
    lines
        .next()
        .ok_or_else(|| format!("no line is \"{HEADER}\""))?;
    let mut out: Vec<Section> = Vec::new();
    for l in lines {
        if l.is_empty() || l.starts_with("```") || l == "findings" {
            break;
        }
        match l.strip_prefix("  ") {
            None => out.push(Section::new(l)),
            Some(f) => {
                let (k, v) = f
                    .split_once(": ")
                    .ok_or_else(|| format!("\"{l}\" is no fact"))?;
                out.last_mut()
                    .ok_or_else(|| format!("\"{l}\" is in no section"))?
                    .add(k, v);
            }
        }
    }
    Ok(out)
}

/// Variables that change what a framework does with memory.
const SETTINGS: &[&str] = &[
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "CUDA_MODULE_LOADING",
    "CUDA_LAUNCH_BLOCKING",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_HIP_ALLOC_CONF",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "CUBLAS_WORKSPACE_CONFIG",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "TF_FORCE_GPU_ALLOW_GROWTH",
    "VLLM_ATTENTION_BACKEND",
    "HF_HUB_OFFLINE",
];

/// Of this machine.
pub fn gather(system: &System) -> Vec<Section> {
    let mut out = vec![machine(&system.root), driver(system)];
    out.extend(gpus(system));
    out.push(python());
    let mut settings = Section::new("settings");
    for k in SETTINGS {
        if let Ok(v) = std::env::var(k) {
            settings.add(k, if v.is_empty() { "(empty)".into() } else { v });
        }
    }
    // a heading with nothing below it says nothing
    if !settings.facts.is_empty() {
        out.push(settings);
    }
    out
}

fn text(root: &Path, path: &str) -> Option<String> {
    let t = std::fs::read_to_string(root.join(path)).ok()?;
    Some(t.trim().to_string()).filter(|t| !t.is_empty())
}

fn machine(root: &Path) -> Section {
    let mut s = Section::new("machine");
    s.add("tonnage", env!("CARGO_PKG_VERSION"));
    s.add(
        "system",
        format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
    );
    if let Some(v) = text(root, "proc/sys/kernel/osrelease") {
        if v.to_ascii_lowercase().contains("microsoft") {
            s.add("inside", "Windows (WSL)");
        }
        s.add("kernel", v);
    }
    let release = text(root, "etc/os-release").unwrap_or_default();
    if let Some(n) = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")) {
        s.add("distribution", n.trim_matches('"'));
    }
    if let Ok(n) = std::thread::available_parallelism() {
        s.add("processors", n);
    }
    if let Some((total, available)) = Procs::new(root).machine() {
        s.add("memory", format!("{total} bytes"));
        s.add("memory available", format!("{available} bytes"));
    }
    let limit = text(root, "sys/fs/cgroup/memory.max")
        .or_else(|| text(root, "sys/fs/cgroup/memory/memory.limit_in_bytes"));
    if let Some(n) = limit
        .and_then(|l| l.parse::<u64>().ok())
        .filter(|n| *n < 1 << 60)
    {
        s.add("memory limit of the container", format!("{n} bytes"));
    }
    s
}

fn driver(system: &System) -> Section {
    let mut s = Section::new("driver");
    match Nvidia::open(system.nvml.as_deref()) {
        Ok(n) => {
            let v = n.versions();
            s.add("nvidia", v.driver.unwrap_or_else(|e| e));
            s.add("cuda at most", v.cuda.unwrap_or_else(|e| e));
        }
        Err(e) => s.add("nvidia", format!("no: {e}")),
    }
    let version = |m: &str| text(&system.root, &format!("sys/module/{m}/version"));
    for module in ["nvidia", "amdgpu", "i915", "xe"] {
        if system.root.join("sys/module").join(module).is_dir() {
            s.add(
                &format!("kernel module {module}"),
                version(module).unwrap_or_else(|| "loaded".into()),
            );
        }
    }
    if let Some(v) = text(&system.root, "opt/rocm/.info/version") {
        s.add("rocm", v);
    }
    s
}

fn gpus(system: &System) -> Vec<Section> {
    let all = match Readers::local(system).and_then(|mut r| r.read()) {
        Ok(a) => a,
        Err(e) => {
            let mut s = Section::new("gpus");
            s.add("none", e);
            return vec![s];
        }
    };
    all.iter()
        .map(|d| {
            let mut s = Section::new(&format!("gpu {}", d.index));
            s.add("name", &d.name);
            s.add("said by", d.source.name());
            if let Some(p) = &d.pci {
                s.add("pci", p);
            }
            if let Some(m) = &d.memory {
                s.add("total", format!("{} bytes", m.total));
                if let Some(r) = m.reserved {
                    s.add("reserved by the driver", format!("{r} bytes"));
                }
                s.add("used", format!("{} bytes", m.used));
                s.add("free", format!("{} bytes", m.free));
            }
            s.add("processes", d.processes.len());
            for i in &d.instances {
                s.add("instance", &i.name);
            }
            for t in &d.troubles {
                s.add("trouble", t);
            }
            s
        })
        .collect()
}

/// Reads versions from the packages' metadata: nothing heavy is imported.
const SCRIPT: &str = r#"
import sys, importlib.util as u, importlib.metadata as m, os, re
print("version:", sys.version.split()[0])
print("program:", os.path.basename(os.path.dirname(os.path.dirname(sys.executable))) + "/" + os.path.basename(sys.executable))
for p in "torch torchvision transformers accelerate peft trl bitsandbytes flash-attn xformers deepspeed vllm sglang jax tensorflow triton tonnage".split():
    try:
        print(p + ":", m.version(p))
    except Exception:
        continue
    if p == "torch":
        try:
            s = u.find_spec("torch")
            t = open(os.path.join(os.path.dirname(s.origin), "version.py")).read()
            for k in ("cuda", "hip"):
                f = re.search(r"^%s(?:: [^=]+)? = ['\"]([^'\"]+)['\"]" % k, t, re.M)
                if f:
                    print("torch built for:", k, f.group(1))
        except Exception:
            pass
"#;

fn python() -> Section {
    let mut s = Section::new("python");
    let set = |k: &str| std::env::var_os(k).filter(|v| !v.is_empty());
    let own = ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().find_map(|k| {
        let dir = PathBuf::from(set(k)?);
        let p = if cfg!(windows) {
            dir.join("Scripts/python.exe")
        } else {
            dir.join("bin/python")
        };
        p.is_file().then_some(p)
    });
    let tried = own
        .into_iter()
        .chain(["python3", "python"].map(PathBuf::from));
    for p in tried {
        if let Some(t) = output(Command::new(p).args(["-c", SCRIPT])) {
            for l in t.lines() {
                if let Some((k, v)) = l.split_once(": ") {
                    s.add(k, v);
                }
            }
            return s;
        }
    }
    s.add("none", "no python3 answers on the search path");
    s
}

/// What a command prints, within ten seconds.
fn output(c: &mut Command) -> Option<String> {
    let mut child = c
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(s)) if s.success() => break,
            Ok(None) if begun.elapsed() < Duration::from_secs(10) => {
                std::thread::sleep(Duration::from_millis(5));
            }
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
    let mut t = String::new();
    child.stdout.take()?.read_to_string(&mut t).ok()?;
    Some(t)
}
