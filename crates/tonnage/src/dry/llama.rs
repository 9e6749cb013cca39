//! llama.cpp's server on the null device: it is started as it is, its log of buffers is read, and it is ended once it has loaded its model.

use super::null::{self, Allocation};
use super::run;
use super::watch::{Listener, after, watch};
use crate::headers;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;
use tonnage_core::Diagnostic;

/// One buffer, as logged.
#[derive(Clone, Debug, PartialEq)]
pub struct Buffer {
    /// `CUDA0`, `CUDA_Host`, `CPU_Mapped`, ...
    pub name: String,
    /// The log's word: `model`, `KV`, `RS`, `compute`, `output`.
    pub kind: String,
    /// MiB with two digits, as printed.
    pub mib: String,
    /// What the null device gave for it; None for memory that it does not give.
    pub bytes: Option<u64>,
}

/// What the server's log says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    pub buffers: Vec<Buffer>,
    pub n_ctx: Option<u64>,
    pub n_ctx_seq: Option<u64>,
    pub n_seq_max: Option<u64>,
    /// (on devices, all), the output head counted as one.
    pub layers: Option<(u64, u64)>,
    pub flash_attention: Option<bool>,
    /// What `--fit` found and did, in its words.
    pub fit: Vec<String>,
    /// `--fit` put parts of layers elsewhere.
    pub parts_moved: bool,
    /// The engine's words where it does not start.
    pub refusal: Option<String>,
    pub complete: bool,
}

/// The whole number of a `name = value` line of the context.
fn setting(line: &str, name: &str) -> Option<u64> {
    let rest = after(line, &format!("llama_context: {name} "))?;
    rest.strip_prefix('=')?.trim().parse().ok()
}

/// `CUDA0 model buffer size = 934.70 MiB`, whatever stands before it.
fn buffer(line: &str) -> Option<Buffer> {
    let (left, right) = line.split_once(" buffer size =")?;
    let mib = right.trim().strip_suffix("MiB")?.trim();
    mib.parse::<f64>().ok()?;
    let (name, kind) = left.rsplit_once(": ")?.1.trim().split_once(' ')?;
    Some(Buffer {
        name: name.into(),
        kind: kind.trim().into(),
        mib: mib.into(),
        bytes: None,
    })
}

impl Listener for Said {
    /// Lines are llama.cpp 0.5.0's: `llama-model.cpp` ("model buffer size"), `llama-kv-cache.cpp`, `llama-memory-recurrent.cpp`,
    /// `llama-context.cpp` (settings, "output buffer size", "compute buffer size"), `common/fit.cpp`, `tools/server/server.cpp` ("model loaded").
    fn line(&mut self, line: &str) {
        if line.contains("fitting params to free memory took") {
            // what it tried may have been logged too
            self.buffers.clear();
        }
        if let Some(b) = buffer(line) {
            // a context that reserves once more replaces its buffer
            let again =
                |x: &&mut Buffer| b.kind == "compute" && (&x.name, &x.kind) == (&b.name, &b.kind);
            match self.buffers.iter_mut().find(again) {
                Some(old) => *old = b,
                None => self.buffers.push(b),
            }
            return;
        }
        let set = |to: &mut Option<u64>, name: &str| *to = setting(line, name).or(*to);
        set(&mut self.n_ctx, "n_ctx");
        set(&mut self.n_ctx_seq, "n_ctx_seq");
        set(&mut self.n_seq_max, "n_seq_max");
        if let Some(rest) = after(line, "load_tensors: offloaded ") {
            let counts = rest.split_once(" layers").and_then(|x| x.0.split_once('/'));
            self.layers = counts.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        }
        for (key, on) in [
            ("flash_attn            = enabled", true),
            ("flash_attn            = disabled", false),
            ("Flash Attention enabled", true),
            ("Flash Attention disabled", false),
            ("Flash Attention was auto, set to enabled", true),
            ("Flash Attention was auto, set to disabled", false),
        ] {
            if line.contains(key) {
                self.flash_attention = Some(on);
            }
        }
        for key in ["common_params_fit_impl: ", "common_fit_params: "] {
            let Some(text) = after(line, key) else {
                continue;
            };
            self.parts_moved |= text.contains("overflowing");
            if [
                "projected to use",
                "will leave",
                "context size reduced",
                "failed to fit",
                "- ",
            ]
            .iter()
            .any(|k| text.starts_with(k))
            {
                self.fit.push(text.into());
            }
        }
        if self.refusal.is_none() {
            self.refusal = [
                "ggml_backend_cuda_buffer_type_alloc_buffer: ",
                "llama_init_from_model: ",
                "llama_model_load: ",
                "error while loading the model: ",
            ]
            .iter()
            .find_map(|k| after(line, k))
            .filter(|m| {
                [
                    "cudaMalloc failed",
                    "failed to",
                    "error loading model",
                    "requires",
                ]
                .iter()
                .any(|k| m.contains(k))
            })
            .map(Into::into);
        }
        self.complete |= line.contains("model loaded") || line.contains("all slots are idle");
    }

    fn complete(&self) -> bool {
        self.complete
    }
}

/// Gives each buffer the bytes that the null device gave for it: the first allocation in its place that prints the same and is no other buffer's.
fn exact(buffers: &mut [Buffer], allocations: &[Allocation]) {
    let mut taken = vec![false; allocations.len()];
    for b in buffers {
        let device = match b.name.strip_prefix("CUDA") {
            Some("_Host") => None,
            Some(n) => match n.parse::<u64>() {
                Ok(n) => Some(n),
                Err(_) => continue,
            },
            None => continue,
        };
        let found = allocations.iter().enumerate().position(|(i, a)| {
            !taken[i] && !a.mapped && a.device == device && mib(a.bytes) == b.mib
        });
        if let Some(i) = found {
            taken[i] = true;
            b.bytes = Some(allocations[i].bytes);
        }
    }
}

/// As the engine prints a size.
pub fn mib(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / 1024.0 / 1024.0)
}

/// What came of it.
pub struct Done {
    pub said: Said,
    pub version: Option<String>,
    /// The command's own status; 0 where it was ended after it had loaded.
    pub code: i32,
    pub report: null::Report,
    pub seconds: f64,
    /// Flags that were added to the command.
    pub added: Vec<String>,
    /// What was made for this run.
    pub made: Vec<String>,
}

/// Is there a flag of these names?
fn given(command: &[String], names: &[&str]) -> bool {
    command.iter().any(|a| names.contains(&a.as_str()))
}

/// Flags without which the log has no buffers, and an address nobody else has.
fn added(command: &[String]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    if !given(command, &["-v", "--verbose", "--log-verbose"]) {
        out.extend(["--verbosity".into(), "4".into()]);
    }
    if !given(command, &["--host", "--port"]) {
        out.extend(["--host", "127.0.0.1", "--port", "0"].map(String::from));
    }
    out
}

/// A file of the model's full size, where only its header is there: the rest is a hole, which takes no room on the disk. None where the
/// file is whole (or in parts, which are the user's).
fn whole(model: &str, at: &Path) -> Result<Option<(PathBuf, String)>, Diagnostic> {
    let io = |e: std::io::Error| Diagnostic::error("unavailable", format!("{model}: {e}"));
    let path = Path::new(model);
    let (head, size, what) = if path.exists() {
        let found = tonnage_host::gguf(path).map_err(|e| crate::models::said(&e))?;
        if found.truncated.is_none() || found.files.len() > 1 {
            return Ok(None);
        }
        let mut head = Vec::new();
        std::fs::File::open(path)
            .and_then(|f| f.take(found.model.header_bytes).read_to_end(&mut head))
            .map_err(io)?;
        (head, found.model.file_bytes(), "the header of the file")
    } else {
        let Some((head, m)) = headers::bytes(model).zip(headers::read(model)) else {
            return Ok(None);
        };
        (head, m.file_bytes(), "the inventory that tonnage carries")
    };
    let file = at.join(path.file_name().unwrap_or(path.as_os_str()));
    std::fs::write(&file, head).map_err(io)?;
    std::fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .and_then(|f| f.set_len(size))
        .map_err(io)?;
    Ok(Some((
        file,
        format!("{model}: {what}, as a file of {size} bytes whose data is a hole"),
    )))
}

/// What a build says of itself and of its devices, on the null device.
fn build(plan: &run::Plan, at: &Path) -> Result<Option<String>, Diagnostic> {
    let name = &plan.command[0];
    let mut answers = Vec::new();
    for flag in ["--version", "--list-devices"] {
        let asked = [name.clone(), flag.into()];
        let one = run::Plan {
            command: &asked,
            ..*plan
        };
        let at = at.join(&flag[2..]);
        let (mut c, _) = prepare(&one, &at)?;
        let o = c
            .stdin(Stdio::null())
            .output()
            .map_err(|e| match e.kind() {
                std::io::ErrorKind::NotFound => {
                    Diagnostic::error("no-command", format!("{name}: no such command")).help(
                        "give the path of a build with the CUDA backend; without one, `tonnage estimate --gpu ID -- llama-server ...` computes its buffers",
                    )
                }
                _ => Diagnostic::error("no-command", format!("{name}: {e}")),
            })?;
        let text = [o.stdout, o.stderr].concat();
        answers.push(String::from_utf8_lossy(&text).into_owned());
    }
    let version = answers[0]
        .lines()
        .find_map(|l| after(l, "version: "))
        .map(String::from);
    let line = |l: &str| l.trim_start().starts_with("CUDA0:");
    if answers[1].lines().any(line) {
        return Ok(version);
    }
    let why = answers[1]
        .lines()
        .find(|l| {
            l.contains("error while loading shared libraries") || l.contains("failed to load")
        })
        .map(|l| format!(" ({})", l.trim()))
        .unwrap_or_default();
    Err(Diagnostic::error(
        "unavailable",
        format!(
            "{name}{}: `--list-devices` names no CUDA device, so this build has no CUDA backend{why}",
            version.map(|v| format!(" {v}")).unwrap_or_default()
        ),
    )
    .help(
        "build llama.cpp with -DGGML_CUDA=ON, take a release of it for CUDA, or put a libggml-cuda.so of the same version beside it (docs/dry-run.md); \
         `tonnage estimate --gpu ID -- llama-server -m FILE ...` needs none",
    ))
}

/// [`run::prepare`] for a program that brings no CUDA of its own.
fn prepare(plan: &run::Plan, at: &Path) -> Result<(std::process::Command, PathBuf), Diagnostic> {
    let io = |e: std::io::Error| Diagnostic::error("unavailable", e.to_string());
    std::fs::create_dir_all(at).map_err(io)?;
    let (mut c, report) = run::prepare(plan, at)?;
    null::with_cuda(&at.join("null")).map_err(io)?;
    // the context alone: the figure for libraries is PyTorch's
    let mut machine = null::devices(plan.device, plan.count, plan.unlimited)?;
    for d in machine["devices"].as_array_mut().into_iter().flatten() {
        d["context_bytes"] = plan.device.overhead.context.expected.into();
    }
    std::fs::write(at.join("devices.json"), machine.to_string()).map_err(io)?;
    c.env_remove("TONNAGE_RECORD_DIR")
        // where it aborts, its own message is enough
        .env("GGML_NO_BACKTRACE", "1")
        .env("TONNAGE_NULL_ALLOCATIONS", "1");
    Ok((c, report))
}

/// Starts the server, waits until it has loaded its model or failed, ends it. `model` is the word of the command that names the file.
///
/// # Errors
/// What keeps it from being started; code `unavailable` where the build has no CUDA backend.
pub fn run(plan: &run::Plan, model: &str) -> Result<Done, Diagnostic> {
    let io = |e: std::io::Error| Diagnostic::error("unavailable", e.to_string());
    let temp = tempfile::tempdir().map_err(io)?;
    let at = temp.path();
    let quiet = run::Plan {
        quiet: true,
        ..*plan
    };
    let version = build(&quiet, at)?;
    let mut command = plan.command.to_vec();
    let mut made = Vec::new();
    if let Some((file, what)) = whole(model, at)? {
        made.push(what);
        for w in command.iter_mut().filter(|w| *w == model) {
            *w = file.display().to_string();
        }
    }
    let plan = run::Plan {
        command: &command,
        ..*plan
    };
    let added = added(plan.command);
    let (mut c, report) = prepare(&plan, &at.join("run"))?;
    c.args(&added)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let started = Instant::now();
    let (mut said, code) = watch::<Said>(c, &plan.command[0])?;
    if said.complete {
        said.refusal = None;
    }
    let report = null::report(&report);
    if report.no_kernels {
        (said.complete, said.refusal) = (false, report.messages.first().cloned());
    }
    exact(&mut said.buffers, &report.allocations);
    Ok(Done {
        said,
        version,
        code,
        report,
        seconds: started.elapsed().as_secs_f64(),
        added,
        made,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dry::watch::read;

    #[test]
    fn a_start_is_read_from_the_log() {
        let mut s: Said = read(
            "0.00.1 I common_params_fit_impl: projected to use 1228 MiB of device memory vs. 11818 MiB of free device memory\n\
             0.00.1 I load_tensors:        CUDA0 model buffer size =     1.00 MiB\n\
             0.00.1 I common_fit_params: fitting params to free memory took 0.03 seconds\n\
             0.01.5 I load_tensors: offloaded 29/29 layers to GPU\n\
             0.01.6 I load_tensors:   CPU_Mapped model buffer size =   182.57 MiB\n\
             0.01.6 I load_tensors:        CUDA0 model buffer size =   934.70 MiB\n\
             0.01.6 I llama_context: n_seq_max             = 4\n\
             0.01.6 I llama_context: n_ctx                 = 8192\n\
             0.01.6 I llama_context: n_ctx_seq             = 8192\n\
             0.01.6 I llama_context: flash_attn            = auto\n\
             0.01.6 I llama_context: n_ctx_seq (8192) < n_ctx_train (32768) -- the full capacity of the model will not be utilized\n\
             0.01.6 I llama_context:  CUDA_Host  output buffer size =     2.32 MiB\n\
             0.01.6 I llama_kv_cache:      CUDA0 KV buffer size =   224.00 MiB\n\
             0.01.6 I resolve_fused_ops: Flash Attention enabled\n\
             0.01.6 I sched_reserve:      CUDA0 compute buffer size =    70.00 MiB\n\
             0.01.6 I sched_reserve:      CUDA0 compute buffer size =    69.51 MiB\n\
             0.01.7 I srv  llama_server: model loaded",
        );
        assert_eq!(
            (s.n_ctx, s.n_ctx_seq, s.n_seq_max),
            (Some(8192), Some(8192), Some(4))
        );
        assert_eq!((s.layers, s.flash_attention), (Some((29, 29)), Some(true)));
        assert!(s.complete && s.refusal.is_none() && s.fit.len() == 1);
        let all: Vec<_> = s
            .buffers
            .iter()
            .map(|b| (b.name.as_str(), b.kind.as_str(), b.mib.as_str()))
            .collect();
        assert_eq!(
            all,
            [
                ("CPU_Mapped", "model", "182.57"),
                ("CUDA0", "model", "934.70"),
                ("CUDA_Host", "output", "2.32"),
                ("CUDA0", "KV", "224.00"),
                ("CUDA0", "compute", "69.51"),
            ]
        );
        let one = |device, bytes| Allocation {
            device,
            mapped: false,
            bytes,
        };
        exact(
            &mut s.buffers,
            &[
                one(None, 2_430_976),
                one(Some(0), 980_104_704),
                one(Some(0), 234_881_024),
                one(Some(1), 72_886_400),
            ],
        );
        let bytes: Vec<_> = s.buffers.iter().map(|b| b.bytes).collect();
        // the last is another device's
        assert_eq!(
            bytes,
            [
                None,
                Some(980_104_704),
                Some(2_430_976),
                Some(234_881_024),
                None
            ]
        );
    }

    #[test]
    fn the_first_refusal_is_kept() {
        let s: Said = read(
            "0.00.2 E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 16384.00 MiB on device 0: cudaMalloc failed: out of memory\n\
             0.00.2 E alloc_tensor_range: failed to allocate CUDA0 buffer of size 17179869184\n\
             0.00.2 E llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache",
        );
        assert_eq!(
            s.refusal.as_deref(),
            Some("allocating 16384.00 MiB on device 0: cudaMalloc failed: out of memory")
        );
        assert!(!s.complete);
    }

    #[test]
    fn a_header_becomes_a_file_of_full_size_and_a_whole_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let name = "qwen2.5-1.5b.Q4_K_M";
        let (file, what) = whole(name, dir.path()).unwrap().unwrap();
        assert!(what.contains("tonnage carries"));
        let m = tonnage_host::gguf(&file).unwrap();
        assert!(m.truncated.is_none());
        assert_eq!(
            std::fs::metadata(&file).unwrap().len(),
            m.model.file_bytes()
        );
        assert!(
            whole(&file.display().to_string(), dir.path())
                .unwrap()
                .is_none()
        );
        let short = dir.path().join("short.gguf");
        std::fs::write(&short, headers::bytes(name).unwrap()).unwrap();
        let into = tempfile::tempdir().unwrap();
        let (again, _) = whole(&short.display().to_string(), into.path())
            .unwrap()
            .unwrap();
        assert_eq!(
            std::fs::metadata(again).unwrap().len(),
            m.model.file_bytes()
        );
        assert!(whole("no-such-model", dir.path()).unwrap().is_none());
    }

    #[test]
    fn flags_are_added_where_they_are_missing() {
        let words = |s: &str| s.split(' ').map(String::from).collect::<Vec<_>>();
        assert_eq!(added(&words("llama-server -m x")).len(), 6);
        assert_eq!(
            added(&words("llama-server -m x --port 9 -v")),
            Vec::<String>::new()
        );
    }
}
