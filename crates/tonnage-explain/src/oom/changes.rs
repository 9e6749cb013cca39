//! What to change, in the order in which it helps, with the bytes where the text tells them.

use super::cause::{Cause, Diagnosis, idle};
use super::{Framework, Message};
use serde::Serialize;

/// One change.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// What to do, as one sentence.
    pub what: String,
    /// The setting or flag, ready to paste.
    pub setting: Option<String>,
    /// Bytes that it frees or adds, where known.
    pub frees_bytes: Option<u64>,
    /// Whether those bytes are at most so many (true), or measured or simulated (false).
    pub at_most: bool,
}

fn change(what: impl Into<String>, setting: Option<&str>, frees: Option<u64>) -> Change {
    Change {
        what: what.into(),
        setting: setting.map(str::to_string),
        frees_bytes: frees,
        at_most: true,
    }
}

fn conf(m: &Message) -> &'static str {
    match m.framework {
        Framework::PyTorchRocm => "PYTORCH_HIP_ALLOC_CONF",
        Framework::PyTorchNpu => "PYTORCH_NPU_ALLOC_CONF",
        Framework::PyTorchXpu => "PYTORCH_ALLOC_CONF",
        _ => "PYTORCH_CUDA_ALLOC_CONF",
    }
}

/// By cause, then by framework.
pub(super) fn of(m: &Message, d: &Diagnosis) -> Vec<Change> {
    use Framework as F;
    let mut out = Vec::new();
    match d.cause {
        Cause::Fragmentation if m.framework.is_torch() => {
            let set = format!("{}=expandable_segments:True", conf(m));
            out.push(change(
                "let segments grow in place, so that free pieces can be joined",
                Some(&set),
                idle(m),
            ));
            let set = format!("{}=max_split_size_mb:128", conf(m));
            out.push(change(
                "where expandable segments are not supported: keep large blocks whole",
                Some(&set),
                idle(m),
            ));
            out.push(change("keep shapes alike from step to step (pad or bucket lengths), so that blocks are reused", None, None));
        }
        Cause::Fragmentation => {
            out.push(change(
                "make the largest buffers smaller: a smaller batch, or rematerialization",
                None,
                None,
            ));
        }
        Cause::OtherProcess if m.framework == F::Vllm => {
            if let (Some(f), Some(t)) = (m.bytes("free_bytes"), m.bytes("total_bytes"))
                && t > 0
                && m.bytes("desired_bytes").is_some()
            {
                let u = (f as f64 / t as f64 * 100.0).floor() / 100.0;
                out.push(change(
                    "ask for no more than is free",
                    Some(&format!("--gpu-memory-utilization {u:.2}")),
                    None,
                ));
            }
            out.push(change(
                "end the other processes on the device, then start",
                None,
                d.others_bytes,
            ));
        }
        Cause::OtherProcess => {
            let listed: Vec<(i64, u64)> = m
                .figures
                .get("processes")
                .and_then(|p| p.as_array())
                .map(|l| {
                    l.iter()
                        .filter_map(|p| Some((p[0].as_i64()?, p[1].as_u64()?)))
                        .collect()
                })
                .unwrap_or_default();
            if listed.len() > 1 {
                let names: Vec<String> = listed
                    .iter()
                    .map(|(p, b)| format!("{p} ({})", tonnage_units::Bytes(*b)))
                    .collect();
                out.push(change(
                    format!("end the process that is not yours: {}", names.join(", ")),
                    None,
                    d.others_bytes,
                ));
            } else {
                out.push(change("end the other processes on the device (tonnage watch lists them), or use another device", Some("CUDA_VISIBLE_DEVICES"), d.others_bytes));
            }
        }
        Cause::Graphs => {
            out.push(change(
                "capture fewer graphs, or none",
                Some(graph_setting(m)),
                m.bytes("private_pool_bytes"),
            ));
            out.push(change(
                "share one pool between the graphs, and drop their outputs before the next capture",
                None,
                None,
            ));
        }
        Cause::Leak => {
            out.push(change("find what holds the growing memory: tonnage explain A.pickle B.pickle on two memory snapshots", None, None));
            out.push(change("keep no tensors across steps: loss.item(), detach() what is logged, no growing lists on the device", None, None));
        }
        Cause::DriverLimit => {
            out.push(change("raise the limit outside of the framework: WSL's memory (.wslconfig), the container's, ulimit -v; then try again", None, None));
        }
        Cause::HostMemory => {
            match m.figures.get("kind").and_then(|k| k.as_str()) {
                Some("shared_memory") => out.push(change(
                    "give the container more shared memory",
                    Some("--shm-size=16g"),
                    None,
                )),
                _ => out.push(change(
                    "fewer loader workers, smaller pinned buffers, no offloading to the host",
                    None,
                    None,
                )),
            }
            if m.framework == F::Ollama || m.framework == F::LlamaCpp {
                out.insert(
                    0,
                    change(
                        "a smaller quantisation or a shorter context",
                        None,
                        d.missing_bytes,
                    ),
                );
            }
        }
        Cause::PoolSetting => pool(m, d, &mut out),
        Cause::TooBig | Cause::Unknown => too_big(m, d, &mut out),
    }
    // what others hold is worth knowing whatever the cause
    if let (Some(o), Some(t)) = (d.others_bytes, m.bytes("tried_bytes"))
        && d.cause != Cause::OtherProcess
        && o >= t.max(1 << 30)
        && m.framework.is_torch()
    {
        out.push(change(
            "end the other processes on the device (tonnage watch lists them)",
            None,
            Some(o),
        ));
    }
    if out.is_empty() || (d.cause == Cause::Fragmentation && m.framework.is_torch()) {
        too_big(m, d, &mut out);
    }
    out
}

fn graph_setting(m: &Message) -> &'static str {
    match m.framework {
        Framework::Sglang => "--disable-cuda-graph, or a smaller --cuda-graph-max-bs",
        Framework::Vllm => "--enforce-eager, or fewer cudagraph_capture_sizes",
        _ => {
            "--enforce-eager (vLLM), mode=\"default\" instead of \"reduce-overhead\" (torch.compile)"
        }
    }
}

fn pool(m: &Message, d: &Diagnosis, out: &mut Vec<Change>) {
    use Framework as F;
    let kind = m.figures.get("kind").and_then(|k| k.as_str()).unwrap_or("");
    match m.framework {
        F::Vllm => {
            if let Some(n) = m.bytes("estimated_max_len").or(m.bytes("kv_cache_tokens")) {
                let per = m
                    .bytes("kv_needed_bytes")
                    .zip(m.bytes("max_model_len"))
                    .filter(|p| p.1 > 0);
                let saved = per.map(|(b, l)| {
                    b - (u128::from(b) * u128::from(n.min(l)) / u128::from(l)) as u64
                });
                out.push(change(
                    "a shorter longest request",
                    Some(&format!("--max-model-len {n}")),
                    saved,
                ));
            } else if kind != "sampler_warmup" {
                out.push(change(
                    "a shorter longest request",
                    Some("--max-model-len"),
                    None,
                ));
            }
            if kind == "sampler_warmup" {
                out.push(change(
                    "fewer sequences at once",
                    Some("--max-num-seqs 64"),
                    None,
                ));
                out.push(change(
                    "leave more beside the cache",
                    Some("a lower --gpu-memory-utilization"),
                    None,
                ));
            } else {
                out.push(change(
                    "a larger share of the device",
                    Some("a higher --gpu-memory-utilization"),
                    d.missing_bytes,
                ));
                out.push(change(
                    "a cache of 8 bits",
                    Some("--kv-cache-dtype fp8"),
                    m.bytes("kv_needed_bytes").map(|b| b / 2),
                ));
                out.push(change(
                    "a quantised checkpoint, or more devices",
                    Some("--tensor-parallel-size"),
                    None,
                ));
            }
        }
        F::Sglang if kind == "no_kv_memory" => {
            out.push(change(
                "a larger share for weights and cache together",
                Some("a higher --mem-fraction-static"),
                None,
            ));
            out.push(change(
                "a quantised checkpoint, or more devices",
                Some("--tp"),
                None,
            ));
        }
        F::Sglang => {
            out.push(change(
                "smaller pieces of prefill",
                Some("a lower --chunked-prefill-size"),
                None,
            ));
            out.push(change(
                "fewer requests at once",
                Some("a lower --max-running-requests"),
                None,
            ));
        }
        F::Tgi => {
            out.push(change(
                "a smaller prefill budget",
                Some("a lower --max-batch-prefill-tokens"),
                None,
            ));
            if m.bytes("total_tokens").is_some() {
                out.push(change(
                    "a smaller token budget",
                    Some("a lower --max-batch-total-tokens"),
                    None,
                ));
            }
        }
        F::OnnxRuntime => {
            out.push(change(
                "raise the arena's limit",
                Some("gpu_mem_limit"),
                d.missing_bytes,
            ));
            out.push(change(
                "let the arena grow by what is asked for, not by powers of two",
                Some("arena_extend_strategy=kSameAsRequested"),
                None,
            ));
            out.push(change("a smaller batch", None, d.missing_bytes));
        }
        F::Nccl | F::Cublas | F::Cudnn | F::CudaLibrary => {
            out.push(change(
                "leave memory beside the allocator",
                Some("torch.cuda.set_per_process_memory_fraction(0.95)"),
                None,
            ));
            out.push(change("return what is cached before the library starts: create its handle or communicator early, torch.cuda.empty_cache()", None, None));
            if m.framework == F::Nccl {
                out.push(change(
                    "smaller buffers of NCCL",
                    Some("NCCL_BUFFSIZE=1048576"),
                    None,
                ));
                out.push(change(
                    "fewer channels of NCCL",
                    Some("NCCL_MAX_NCHANNELS=4"),
                    None,
                ));
            }
            if m.framework == F::Cublas {
                out.push(change(
                    "rule out an index out of range: run once on the CPU, or with",
                    Some("CUDA_LAUNCH_BLOCKING=1"),
                    None,
                ));
            }
        }
        F::Ollama => {
            out.push(change(
                "let Ollama choose the layers",
                Some("num_gpu unset"),
                None,
            ));
            out.push(change("a shorter context", Some("num_ctx"), None));
        }
        f if f.is_torch() => {
            out.push(change(
                "raise or drop the memory fraction",
                Some("set_per_process_memory_fraction / per_process_memory_fraction"),
                m.bytes("total_bytes")
                    .zip(m.bytes("allowed_bytes"))
                    .map(|(t, a)| t.saturating_sub(a)),
            ));
        }
        _ => {}
    }
}

fn too_big(m: &Message, d: &Diagnosis, out: &mut Vec<Change>) {
    use Framework as F;
    match m.framework {
        F::LlamaCpp | F::Ollama => {
            match m.figures.get("stage").and_then(|s| s.as_str()) {
                Some("compute") => out.push(change(
                    "smaller pieces of prefill",
                    Some("--ubatch-size 128"),
                    m.bytes("tried_bytes").map(|t| t / 4 * 3),
                )),
                Some("kv_cache") => {
                    out.push(change(
                        "half of the context",
                        Some("--ctx-size"),
                        m.bytes("tried_bytes").map(|t| t / 2),
                    ));
                    out.push(change(
                        "a cache of 8 bits",
                        Some("--cache-type-k q8_0 --cache-type-v q8_0"),
                        m.bytes("tried_bytes").map(|t| t - t / 32 * 17),
                    ));
                }
                _ => {}
            }
            out.push(change(
                "fewer layers on the device",
                Some("--n-gpu-layers"),
                None,
            ));
            out.push(change(
                "experts on the host, where the model is a mixture",
                Some("--n-cpu-moe"),
                None,
            ));
            out.push(change("a smaller quantisation", None, None));
        }
        F::Jax => {
            out.push(change(
                "donate the arguments that are overwritten",
                Some("jax.jit(..., donate_argnums=...)"),
                m.bytes("xla_parameter_bytes"),
            ));
            out.push(change(
                "recompute activations",
                Some("jax.checkpoint"),
                m.bytes("xla_temp_bytes"),
            ));
            out.push(change(
                "a smaller batch, or accumulate gradients",
                None,
                d.missing_bytes,
            ));
            out.push(change(
                "a larger share of the device than the default of 75 %",
                Some("XLA_PYTHON_CLIENT_MEM_FRACTION=0.95"),
                None,
            ));
        }
        F::XlaTpu => {
            out.push(change(
                "recompute activations",
                Some("jax.checkpoint / remat_policy"),
                m.bytes("program_bytes"),
            ));
            out.push(change(
                "a smaller batch on each device, or more sharding",
                None,
                d.missing_bytes,
            ));
        }
        F::TensorFlow => {
            out.push(change("a smaller batch", None, d.missing_bytes));
            out.push(change(
                "do not let one process take the whole device",
                Some("TF_FORCE_GPU_ALLOW_GROWTH=true"),
                None,
            ));
            out.push(change(
                "16-bit computation",
                Some("tf.keras.mixed_precision.set_global_policy(\"mixed_float16\")"),
                None,
            ));
        }
        F::PyTorchMps => {
            out.push(change("a smaller batch or image", None, d.missing_bytes));
            out.push(change(
                "return what is cached between steps",
                Some("torch.mps.empty_cache()"),
                None,
            ));
            out.push(change(
                "lift the limit; the system may swap",
                Some("PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0"),
                None,
            ));
        }
        F::OnnxRuntime => {
            out.push(change("a smaller batch", None, d.missing_bytes));
            out.push(change(
                "let the arena grow by what is asked for, not by powers of two",
                Some("arena_extend_strategy=kSameAsRequested"),
                None,
            ));
        }
        F::Mlx => out.push(change(
            "a smaller batch, shorter lengths or a quantised model",
            None,
            None,
        )),
        F::Host => {}
        _ => {
            let missing = d.missing_bytes;
            out.push(change("half of the micro-batch with twice the accumulation: activations halve, the result stays", Some("per_device_train_batch_size / gradient_accumulation_steps"), missing));
            out.push(change(
                "recompute activations",
                Some("gradient_checkpointing=True"),
                missing,
            ));
            out.push(change("shorter sequences", None, missing));
            out.push(change(
                "smaller optimizer states",
                Some("optim=adamw_bnb_8bit"),
                missing,
            ));
            out.push(change("tonnage plan JOB --gpu G ranks these for your job, with their bytes (explain --job JOB)", None, None));
        }
    }
}
