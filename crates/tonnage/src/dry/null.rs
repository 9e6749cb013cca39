//! The null device's side of a run: where the library is, what the devices are, what it reported.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tonnage_core::Diagnostic;
use tonnage_core::verdict::Device;

/// Names under which a process looks for the driver.
const NAMES: [&str; 5] = [
    "libtonnage_null.so",
    "libcuda.so.1",
    "libcuda.so",
    "libnvidia-ml.so.1",
    "libnvidia-ml.so",
];

/// The library: named by TONNAGE_NULL_LIB, or beside the program.
///
/// # Errors
/// Where it was looked for.
pub fn library() -> Result<PathBuf, Diagnostic> {
    if let Some(p) = std::env::var_os("TONNAGE_NULL_LIB").filter(|p| !p.is_empty()) {
        let p = PathBuf::from(p);
        return if p.is_file() {
            Ok(p.canonicalize().unwrap_or(p))
        } else {
            Err(Diagnostic::error(
                "unavailable",
                format!("TONNAGE_NULL_LIB: {}: no such file", p.display()),
            ))
        };
    }
    let here = std::env::current_exe()
        .ok()
        .and_then(|p| p.canonicalize().ok())
        .and_then(|p| Some(p.parent()?.to_path_buf()))
        .unwrap_or_default();
    let places = [
        here.join(NAMES[0]),
        here.join("deps").join(NAMES[0]),
        here.join("../lib").join(NAMES[0]),
        here.join("../lib/tonnage").join(NAMES[0]),
    ];
    places.iter().find(|p| p.is_file()).cloned().ok_or_else(|| {
        Diagnostic::error(
            "unavailable",
            format!("{} is not beside the program ({})", NAMES[0], here.display()),
        )
        .help("cargo build --release -p tonnage-null makes it; TONNAGE_NULL_LIB=PATH names it elsewhere")
    })
}

/// The folder that LD_LIBRARY_PATH gets: the library under the names of the driver.
///
/// # Errors
/// What the file system says.
pub fn folder(at: &Path, library: &Path) -> std::io::Result<PathBuf> {
    let dir = at.join("null");
    std::fs::create_dir_all(&dir)?;
    for n in NAMES {
        #[cfg(unix)]
        std::os::unix::fs::symlink(library, dir.join(n))?;
        #[cfg(not(unix))]
        std::fs::copy(library, dir.join(n)).map(|_| ())?;
    }
    Ok(dir)
}

/// The libraries of CUDA that programs without PyTorch's wheels are linked to, by their names in the folder: such a program does not even load
/// where they are missing.
///
/// # Errors
/// What the file system says.
pub fn with_cuda(dir: &Path) -> std::io::Result<()> {
    let library = dir.join(NAMES[0]).canonicalize()?;
    let versions = [("cudart", "11.0"), ("cublas", "11"), ("cublasLt", "11")]
        .into_iter()
        .chain(["12", "13"].into_iter().flat_map(|v| {
            ["cudart", "cublas", "cublasLt"]
                .into_iter()
                .map(move |n| (n, v))
        }))
        .chain([("nccl", "2")]);
    for (name, version) in versions {
        let to = dir.join(format!("lib{name}.so.{version}"));
        #[cfg(unix)]
        std::os::unix::fs::symlink(&library, to)?;
        #[cfg(not(unix))]
        std::fs::copy(&library, to).map(|_| ())?;
    }
    Ok(())
}

/// The device file for `count` cards of a kind. `unlimited` gives the card far more memory than it has, to see what a run wants.
///
/// # Errors
/// The catalog lacks a figure of the card.
pub fn devices(d: &Device, count: usize, unlimited: bool) -> Result<Value, Diagnostic> {
    let g = &d.gpu;
    let lacks = |what: &str| {
        Diagnostic::error(
            "unavailable",
            format!(
                "{}: its {what} is not known here, so it cannot be stood in for",
                g.id
            ),
        )
    };
    let cc = g
        .compute_capability
        .as_ref()
        .ok_or_else(|| lacks("compute capability"))?;
    let sms = g
        .sm_count
        .ok_or_else(|| lacks("number of multiprocessors"))?;
    let (_, outside, _) = d.outside();
    let total = if unlimited {
        // the most that the null device accepts
        1 << 40
    } else {
        d.usable.expected
    };
    let mut one = json!({"id": g.id, "name": g.name, "capability": format!("{}.{}", cc.major, cc.minor), "sms": sms, "total_bytes": total, "context_bytes": outside});
    if let Some(e) = g.ecc {
        one["ecc"] = json!(e);
    }
    Ok(json!({"schema": "tonnage.null-device/1", "devices": vec![one; count]}))
}

/// What the null device reported of a process's device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    pub pid: u64,
    pub device: u64,
    /// Everything that was allocated on it, the context left out.
    pub peak_allocated: u64,
}

/// One allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// None: pinned memory of the host.
    pub device: Option<u64>,
    /// Physical memory for reserved addresses, as pools grow by.
    pub mapped: bool,
    pub bytes: u64,
}

/// What the reports say.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub used: Vec<Used>,
    /// Refusals by design, missing functions, missing kernels; each once.
    pub messages: Vec<String>,
    /// What is inferred where a library's figure is not public; each once.
    pub inferred: Vec<String>,
    pub any: bool,
    /// Every allocation that succeeded, where that was asked for.
    pub allocations: Vec<Allocation>,
    /// A library has no code for the card.
    pub no_kernels: bool,
}

/// Reads the report file.
pub fn report(path: &Path) -> Report {
    let text = std::fs::read(path).unwrap_or_default();
    read(&String::from_utf8_lossy(&text))
}

fn read(text: &str) -> Report {
    let mut r = Report::default();
    for line in text.lines() {
        let Ok(v) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let number = |x: &Value, k: &str| x.get(k).and_then(Value::as_u64).unwrap_or(0);
        let pid = number(&v, "pid");
        let mut note = |x: &Value| {
            let (device, bytes) = (
                number(x, "device"),
                x.get("peak_allocated_bytes")
                    .or_else(|| x.get("allocated_bytes"))
                    .and_then(Value::as_u64)
                    .unwrap_or(0),
            );
            match r
                .used
                .iter_mut()
                .find(|u| (u.pid, u.device) == (pid, device))
            {
                Some(u) => u.peak_allocated = u.peak_allocated.max(bytes),
                None => r.used.push(Used {
                    pid,
                    device,
                    peak_allocated: bytes,
                }),
            }
        };
        match v.get("event").and_then(Value::as_str).unwrap_or_default() {
            "peak" => note(&v),
            "exit" => v
                .get("devices")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .for_each(note),
            kind @ ("no-kernels" | "missing-symbol" | "unsupported") => {
                r.no_kernels |= kind == "no-kernels";
                if let Some(m) = v.get("message").and_then(Value::as_str)
                    && !r.messages.iter().any(|x| x == m)
                {
                    r.messages.push(m.into());
                }
            }
            "inferred" => {
                if let Some(m) = v.get("message").and_then(Value::as_str)
                    && !r.inferred.iter().any(|x| x == m)
                {
                    r.inferred.push(m.into());
                }
            }
            "start" => r.any = true,
            "allocated" => r.allocations.push(Allocation {
                device: v.get("device").and_then(Value::as_u64),
                mapped: v.get("kind").and_then(Value::as_str) == Some("mapped"),
                bytes: number(&v, "bytes"),
            }),
            _ => {}
        }
    }
    r
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_up_to_where_it_breaks() {
        let text = r#"{"event":"start","pid":7,"schema":"tonnage.null-report/1"}
{"event":"peak","pid":7,"device":0,"bytes":500,"allocated_bytes":100}
{"event":"no-kernels","pid":7,"device":0,"message":"no kernels for 6.1"}
{"event":"no-kernels","pid":8,"device":0,"message":"no kernels for 6.1"}
{"event":"inferred","pid":7,"what":"cudnn-rnn","message":"a least"}
{"event":"allocated","pid":7,"device":0,"kind":"device","bytes":160}
{"event":"allocated","pid":7,"device":null,"kind":"pinned","bytes":32}
{"event":"exit","pid":7,"devices":[{"device":0,"peak_bytes":560,"peak_allocated_bytes":160}]}
{"event":"peak","pid":8,"dev"#;
        let r = read(text);
        assert!(r.any && r.no_kernels);
        assert_eq!(r.used.len(), 1);
        assert_eq!(r.used[0].peak_allocated, 160);
        assert_eq!(r.messages, ["no kernels for 6.1"]);
        assert_eq!(r.inferred, ["a least"]);
        let places: Vec<_> = r.allocations.iter().map(|a| (a.device, a.bytes)).collect();
        assert_eq!(places, [(Some(0), 160), (None, 32)]);
    }
}
