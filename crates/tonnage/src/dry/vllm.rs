//! vLLM's own server on the null device: it is started as it is, what it logs of its memory is read, and it is ended once it has started.

use super::watch::{Listener, after, watch};
use super::{null, run};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;
use tonnage_core::Diagnostic;

/// What the server's log says. Figures as printed (GiB with two digits, tokens exact).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    pub version: Option<String>,
    pub model_loading_gib: Option<f64>,
    pub available_kv_gib: Option<f64>,
    pub kv_tokens: Option<u64>,
    pub max_model_len: Option<u64>,
    pub max_concurrency: Option<f64>,
    pub graphs_gib: Option<f64>,
    /// vLLM's words where it does not start.
    pub refusal: Option<String>,
    /// What was replaced for this run, as the hooks say it.
    pub replaced: Vec<String>,
    /// The server had started.
    pub complete: bool,
}

/// The number at the start of a text, thousands separated by commas.
fn number(text: &str) -> Option<f64> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != ',' && c != '.')
        .unwrap_or(text.len());
    text[..end]
        .trim_end_matches(['.', ','])
        .replace(',', "")
        .parse()
        .ok()
}

/// A whole number likewise.
fn whole(text: &str) -> Option<u64> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != ',')
        .unwrap_or(text.len());
    text[..end].replace(',', "").parse().ok()
}

impl Listener for Said {
    /// Lines are vLLM 0.33's: `gpu/model_runner.py` ("Model loading took"), `gpu_worker.py` ("Available KV cache
    /// memory"), `core/kv_cache_utils.py` ("GPU KV cache size"), uvicorn's ("Application startup complete").
    fn line(&mut self, line: &str) {
        if let Some(t) = line.strip_prefix("tonnage: ") {
            if !self.replaced.iter().any(|x| x == t) {
                self.replaced.push(t.into());
            }
            return;
        }
        let set = |to: &mut Option<f64>, key: &str| {
            if let Some(v) = after(line, key).and_then(number) {
                *to = Some(v);
            }
        };
        set(&mut self.model_loading_gib, "Model loading took");
        set(&mut self.available_kv_gib, "Available KV cache memory:");
        if let Some(rest) = after(line, "Graph capturing finished in") {
            self.graphs_gib = after(rest, "took").and_then(number);
        }
        if let Some(rest) = after(line, "KV cache size:") {
            self.kv_tokens = whole(rest).or(self.kv_tokens);
            if let Some(rest) = after(rest, "Maximum concurrency for") {
                self.max_model_len = whole(rest);
                self.max_concurrency = after(rest, "per request:").and_then(number);
            }
        }
        if let Some(v) = after(line, "LLM engine (v") {
            self.version = v.split_once(')').map(|x| x.0.into());
        }
        // the innermost cause is printed first and is the one to keep
        if self.refusal.is_none() {
            self.refusal = ["ValueError: ", "torch.OutOfMemoryError: "]
                .iter()
                .find_map(|k| after(line, k))
                .filter(|m| {
                    [
                        "Free memory on device",
                        "To serve at least one request",
                        "No available memory",
                        "CUDA out of memory",
                    ]
                    .iter()
                    .any(|k| m.starts_with(k))
                })
                .map(Into::into);
        }
        self.complete |= line.contains("Application startup complete");
    }

    fn complete(&self) -> bool {
        self.complete
    }
}

/// What came of it.
pub struct Done {
    pub said: Said,
    /// The command's own status; 0 where it was ended after it had started.
    pub code: i32,
    pub report: null::Report,
    pub seconds: f64,
    /// Flags that were added to the command.
    pub added: Vec<String>,
}

/// Flags without which a folder of a configuration cannot be served: weights are not read (their values change nothing here), and
/// without a tokenizer's files none is made.
pub fn added(command: &[String], model: &str) -> Vec<String> {
    let given = |name: &str| {
        command
            .iter()
            .any(|a| a.replace('_', "-").split('=').next() == Some(name))
    };
    let mut out = Vec::new();
    if !given("--load-format") {
        out.extend(["--load-format".to_string(), "dummy".into()]);
    }
    let folder = Path::new(model);
    let bare = folder.is_dir()
        && ![
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer_config.json",
            "vocab.json",
            "tekken.json",
        ]
        .iter()
        .any(|f| folder.join(f).exists());
    if bare && !given("--skip-tokenizer-init") && !given("--tokenizer") {
        out.push("--skip-tokenizer-init".into());
    }
    out
}

/// Starts the server, waits until it has started or failed, ends it.
///
/// # Errors
/// What keeps it from being started.
pub fn run(plan: &run::Plan, model: &str) -> Result<Done, Diagnostic> {
    let io = |e: std::io::Error| Diagnostic::error("unavailable", e.to_string());
    let temp = tempfile::tempdir().map_err(io)?;
    let at = temp.path();
    let (mut c, report) = run::prepare(plan, at)?;
    let added = added(plan.command, model);
    let own = |name: &str| -> PathBuf { at.join(name) };
    c.args(&added)
        // vLLM's sizing is read from its log; the history of every allocation is not needed for it
        .env_remove("TONNAGE_RECORD_DIR")
        .env("TONNAGE_VLLM", "1")
        .env("VLLM_NO_USAGE_STATS", "1")
        .env("VLLM_LOGGING_COLOR", "0")
        // a cold start, and nothing that was tuned on the null device reaches the user's own caches
        .env("VLLM_CACHE_ROOT", own("vllm"))
        .env("TORCHINDUCTOR_CACHE_DIR", own("inductor"))
        .env("TRITON_CACHE_DIR", own("triton"))
        .env("FLASHINFER_WORKSPACE_BASE", own("flashinfer"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let started = Instant::now();
    let (said, code) = watch::<Said>(c, &plan.command[0])?;
    Ok(Done {
        said,
        code,
        report: null::report(&report),
        seconds: started.elapsed().as_secs_f64(),
        added,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dry::watch::read;

    #[test]
    fn a_start_is_read_from_the_log() {
        let s: Said = read(
            "(EngineCore pid=7) INFO 11-21 15:20:01 [core.py:120] Initializing a V1 LLM engine (v0.33.0) with config: model='x'\n\
             tonnage: FlashInfer's module sampling is not compiled: its kernels do nothing\n\
             tonnage: FlashInfer's module sampling is not compiled: its kernels do nothing\n\
             (EngineCore pid=7) INFO 11-21 15:20:05 [model_runner.py:429] Model loading took 15.0 GiB memory and 1.200000 seconds\n\
             (EngineCore pid=7) INFO 11-21 15:20:09 [gpu_worker.py:773] Available KV cache memory: 56.59 GiB\n\
             (EngineCore pid=7) INFO 11-21 15:20:09 [kv_cache_utils.py:1147] GPU KV cache size: 463,616 tokens, Maximum concurrency for 131,072 tokens per request: 3.54x\n\
             (EngineCore pid=7) INFO 11-21 15:20:20 [model_runner.py:1163] Graph capturing finished in 12 secs, took 0.25 GiB\n\
             INFO:     Application startup complete.",
        );
        assert_eq!(s.version.as_deref(), Some("0.33.0"));
        assert_eq!(
            (s.kv_tokens, s.max_model_len),
            (Some(463_616), Some(131_072))
        );
        assert_eq!((s.max_concurrency, s.graphs_gib), (Some(3.54), Some(0.25)));
        assert_eq!(
            (s.model_loading_gib, s.available_kv_gib),
            (Some(15.0), Some(56.59))
        );
        assert_eq!(s.replaced.len(), 1);
        assert!(s.complete && s.refusal.is_none());
    }

    #[test]
    fn the_first_refusal_is_kept_and_other_errors_are_none() {
        let s: Said = read(
            "(EngineCore pid=7) ERROR ValueError: To serve at least one request with the model's max seq len (131072), (16.0 GiB KV cache is needed\n\
             RuntimeError: Engine core initialization failed. See root cause above.",
        );
        assert!(
            s.refusal
                .unwrap()
                .starts_with("To serve at least one request")
        );
        assert_eq!(read::<Said>("ValueError: unrecognised model").refusal, None);
        assert!(!read::<Said>("ERROR: Application startup failed").complete);
    }

    #[test]
    fn flags_are_added_where_they_are_missing() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().display().to_string();
        let words = |s: &str| s.split(' ').map(String::from).collect::<Vec<_>>();
        assert_eq!(
            added(&words("vllm serve m"), &model),
            ["--load-format", "dummy", "--skip-tokenizer-init"]
        );
        assert!(
            added(
                &words("vllm serve m --load_format=dummy --tokenizer t"),
                &model
            )
            .is_empty()
        );
        std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
        assert_eq!(
            added(&words("vllm serve m --load-format auto"), &model),
            Vec::<String>::new()
        );
    }
}
