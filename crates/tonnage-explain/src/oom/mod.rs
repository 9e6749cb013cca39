//! Out-of-memory texts: who failed, the figures in the text, why, and what to change.
//!
//! A log is streamed through a [`Scanner`]; its memory is bounded whatever the log's size. [`parse`] reads one text. A message's figures
//! are named as in the recorded messages (`groundtruth/oom-messages-dev.jsonl`): `tried_bytes`, `free_bytes`, ...; a figure that the text
//! does not have is absent. The formats are those of the frameworks' sources; each parser names the file.

mod cause;
mod changes;
mod engines;
mod ggml;
mod libraries;
pub mod log;
mod scan;
mod series;
mod tensorflow;
pub mod text;
mod torch;
mod xla;

pub use cause::{Cause, Diagnosis};
pub use changes::Change;
pub use scan::{Error, Found, Scanner};
pub use series::LogSeries;

use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use text::Amount;

/// Whose message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Framework {
    #[serde(rename = "pytorch")]
    PyTorch,
    #[serde(rename = "pytorch-rocm")]
    PyTorchRocm,
    #[serde(rename = "pytorch-npu")]
    PyTorchNpu,
    #[serde(rename = "pytorch-xpu")]
    PyTorchXpu,
    #[serde(rename = "pytorch-mps")]
    PyTorchMps,
    /// Any other device of PyTorch (MUSA, MLU, ...).
    #[serde(rename = "pytorch-other")]
    PyTorchOther,
    #[serde(rename = "jax")]
    Jax,
    #[serde(rename = "xla-tpu")]
    XlaTpu,
    #[serde(rename = "tensorflow")]
    TensorFlow,
    #[serde(rename = "vllm")]
    Vllm,
    #[serde(rename = "sglang")]
    Sglang,
    #[serde(rename = "tgi")]
    Tgi,
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
    #[serde(rename = "ollama")]
    Ollama,
    #[serde(rename = "onnxruntime")]
    OnnxRuntime,
    #[serde(rename = "nccl")]
    Nccl,
    #[serde(rename = "cublas")]
    Cublas,
    #[serde(rename = "cudnn")]
    Cudnn,
    /// cuSOLVER, cuSPARSE, cuFFT.
    #[serde(rename = "cuda-library")]
    CudaLibrary,
    /// The driver or the runtime itself, by whichever program.
    #[serde(rename = "cuda")]
    Cuda,
    #[serde(rename = "mlx")]
    Mlx,
    #[serde(rename = "paddle")]
    Paddle,
    /// The host's memory: CPU allocators, the kernel.
    #[serde(rename = "host")]
    Host,
}

impl Framework {
    /// As in JSON.
    pub fn name(self) -> String {
        serde_json::to_value(self)
            .ok()
            .and_then(|v| v.as_str().map(str::to_string))
            .unwrap_or_default()
    }

    /// One of PyTorch's own allocators.
    pub fn is_torch(self) -> bool {
        use Framework as F;
        matches!(
            self,
            F::PyTorch | F::PyTorchRocm | F::PyTorchNpu | F::PyTorchXpu | F::PyTorchOther
        )
    }
}

/// The figures of a text, by name.
pub type Figures = BTreeMap<&'static str, Value>;

/// One out-of-memory message.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Message {
    pub framework: Framework,
    /// Which form of the text, and since which version where that is known.
    pub format: &'static str,
    /// False where the text itself says that the program goes on.
    pub fatal: bool,
    #[serde(flatten)]
    pub figures: Figures,
}

impl Message {
    fn new(framework: Framework, format: &'static str) -> Message {
        Message {
            framework,
            format,
            fatal: true,
            figures: Figures::new(),
        }
    }

    fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.figures.entry(key).or_insert_with(|| value.into());
    }

    fn set_amount(&mut self, key: &'static str, a: Option<Amount>) {
        if let Some(a) = a {
            self.set(key, a.bytes);
        }
    }

    fn set_integer(&mut self, key: &'static str, n: Option<i64>) {
        if let Some(n) = n {
            self.set(key, n);
        }
    }

    /// A figure, if the text has it and it is not negative.
    pub fn bytes(&self, key: &str) -> Option<u64> {
        self.figures.get(key)?.as_u64()
    }

    /// A figure by name; also `fatal`.
    pub fn get(&self, key: &str) -> Option<Value> {
        if key == "fatal" {
            return Some(self.fatal.into());
        }
        self.figures.get(key).cloned()
    }
}

/// Reads one text: the first failure in it, with the figures of the lines that belong to it.
pub fn parse(text: &str) -> Option<Message> {
    let mut s = Scanner::default();
    s.feed(text.as_bytes());
    let found = s.finish();
    // a warning only where nothing failed
    let of = |fatal: bool| found.errors.iter().find(|e| e.message.fatal == fatal);
    let first = of(true).or_else(|| of(false))?;
    let mut m = first.message.clone();
    // a warning ahead of a failure has figures that the failure lacks
    for e in found.errors.iter().filter(|e| !e.message.fatal) {
        for (k, v) in &e.message.figures {
            m.figures.entry(k).or_insert_with(|| v.clone());
        }
    }
    Some(m)
}

/// What a parser is given.
pub(crate) struct Site<'a> {
    /// The text ahead of the anchor in its line.
    pub before: &'a str,
    /// The last few hundred characters ahead of the anchor, earlier lines included.
    pub context: &'a str,
    /// The text from the anchor on, bounded.
    pub text: &'a str,
}

impl Site<'_> {
    /// The text from the anchor on in one line of words, about `bytes` of it.
    fn flat(&self, bytes: usize) -> String {
        text::flatten(&self.text[..text::floor(self.text, bytes)])
    }
}

/// A parser's answer: the message and how many bytes of `text` it is made of.
pub(crate) type Parsed = Option<(Message, usize)>;

/// The words at which a parser begins.
type Anchor = (&'static str, fn(&Site) -> Parsed);

/// Words that begin a message, and who reads it from there. The first that reads it has it.
pub(crate) const ANCHORS: &[Anchor] = &[
    (
        "out of memory occurred when warming up sampler",
        engines::sampler,
    ),
    ("out of memory", torch::caching),
    ("memory allocation failed with", torch::warning),
    ("OOM on device", torch::warning),
    ("by rematerialization", xla::remat),
    ("Available KV cache memory:", engines::vllm_available),
    ("would exceed allowed memory", torch::malloc_async),
    ("MPS backend out of memory", torch::mps),
    ("Invalid buffer size:", torch::mps_buffer),
    ("DefaultCPUAllocator:", libraries::cpu_allocator),
    ("trying to allocate", xla::while_trying),
    ("Failed to allocate request for", xla::request),
    ("failed to allocate", ggml::failed_or_xla),
    ("failed to alloc", xla::driver),
    ("in memory space", xla::tpu_space),
    ("Attempting to allocate", xla::tpu_allocate),
    ("Attempting to reserve", xla::tpu_allocate),
    ("OOM when allocating tensor", tensorflow::tensor),
    ("ran out of memory trying to allocate", tensorflow::bfc),
    ("max seq len (", engines::vllm_length),
    (
        "No available memory for the cache blocks",
        engines::vllm_none,
    ),
    ("Free memory on device", engines::vllm_startup),
    ("Error in memory profiling", engines::vllm_profiling),
    ("Not enough memory to handle", engines::tgi),
    ("Not enough memory. Please try to increase", engines::sglang),
    ("fill out of memory. Try to lower", engines::sglang_tokens),
    ("Decode out of memory", engines::sglang_tokens),
    ("memory capacity is unbalanced", engines::sglang_unbalanced),
    ("Capture cuda graph failed", engines::sglang_graphs),
    ("apture CUDA graph failed", engines::sglang_graphs),
    ("Malloc failed: out of memory", ggml::cuda),
    ("Device memory allocation of size", ggml::vulkan),
    ("insufficient memory (attempted to allocate", ggml::host),
    ("requires more", engines::ollama),
    ("memory layout cannot be allocated", engines::ollama_layout),
    (
        "Failed to allocate memory for requested buffer of size",
        libraries::ort,
    ),
    ("Available memory of", libraries::ort_arena),
    ("NCCL WARN Cuda failure", libraries::nccl),
    ("NCCL WARN Failed to CUDA", libraries::nccl),
    ("NCCL WARN HIP failure", libraries::nccl),
    ("Cuda failure", libraries::nccl),
    ("HIP failure", libraries::nccl),
    ("creating shared memory segment", libraries::nccl_shm),
    ("CUBLAS_STATUS_", libraries::cublas),
    ("CUDNN_STATUS_", libraries::cudnn),
    ("CUSOLVER_STATUS_", libraries::other),
    ("CUSPARSE_STATUS_", libraries::other),
    ("CUFFT_ALLOC_FAILED", libraries::other),
    ("CUDA error: out of memory", libraries::driver),
    ("HIP error: out of memory", libraries::driver),
    ("CUDA driver error: out of memory", libraries::driver),
    ("CUDA failure 2: out of memory", libraries::driver),
    ("cudaErrorMemoryAllocation", libraries::driver),
    ("CUDA_ERROR_OUT_OF_MEMORY", libraries::driver),
    ("hipErrorOutOfMemory", libraries::driver),
    ("ErrorOutOfDeviceMemory", ggml::vulkan_error),
    ("CUDA error 2 at", libraries::driver),
    ("[metal::malloc]", libraries::mlx),
    (
        "kIOGPUCommandBufferCallbackErrorOutOfMemory",
        libraries::metal,
    ),
    ("Cannot allocate", libraries::paddle),
    ("Killed process", libraries::kernel),
    ("Unable to allocate", libraries::numpy),
    ("is killed by signal", libraries::loader),
];
