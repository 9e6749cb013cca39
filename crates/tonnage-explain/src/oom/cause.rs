//! Why it failed, from the message's own figures.

use super::{Change, Framework, Message, changes};
use crate::leak::Verdict;
use serde::Serialize;
use tonnage_units::Bytes;

/// Classes of causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// What the program keeps, and what it asked for, exceed the device.
    TooBig,
    /// Enough memory is held by the allocator, but in pieces.
    Fragmentation,
    /// Memory grew step by step until the device was full.
    Leak,
    /// Other processes have what is missing.
    OtherProcess,
    /// A limit or a pool that a setting made, not the device.
    PoolSetting,
    /// CUDA graphs hold it in pools of their own.
    Graphs,
    /// The host's memory, not the device's.
    HostMemory,
    /// The driver refused although the device says there is enough free: a limit outside of the framework.
    DriverLimit,
    /// The text has no figures that would tell.
    Unknown,
}

/// A message with its cause and what to change.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diagnosis {
    pub cause: Cause,
    /// One sentence with the figures that decide.
    pub why: String,
    /// At least so many bytes are missing, where the text tells.
    pub missing_bytes: Option<u64>,
    /// What other processes hold, where the text tells.
    pub others_bytes: Option<u64>,
    /// What to change, the most helpful first.
    pub changes: Vec<Change>,
}

/// A context and libraries of one process: above this, memory that is nobody's counts as another process's.
const OWN_EXTRA: u64 = 1 << 30;

fn say(b: u64) -> Bytes {
    Bytes(b)
}

/// The allocator's reserved bytes, however the text says them.
pub(super) fn reserved(m: &Message) -> Option<u64> {
    m.bytes("reserved_bytes").or_else(|| {
        let a = m.bytes("allocated_bytes")?;
        Some(
            a + m.bytes("reserved_unallocated_bytes")? + m.bytes("private_pool_bytes").unwrap_or(0),
        )
    })
}

/// Reserved and not in use: what another layout could give.
pub(super) fn idle(m: &Message) -> Option<u64> {
    m.bytes("reserved_unallocated_bytes").or_else(|| {
        let own = m.bytes("active_bytes").or(m.bytes("allocated_bytes"))?;
        Some(m.bytes("reserved_bytes")?.saturating_sub(own))
    })
}

/// What other processes hold.
pub(super) fn others(m: &Message) -> Option<u64> {
    let used = m
        .bytes("total_bytes")?
        .checked_sub(m.bytes("free_bytes")?)?;
    if let Some(own) = m.bytes("process_bytes") {
        return Some(used.saturating_sub(own));
    }
    let reserved = reserved(m)?;
    if let Some(list) = m.figures.get("processes").and_then(|p| p.as_array()) {
        let sizes: Vec<u64> = list.iter().filter_map(|p| p[1].as_u64()).collect();
        // containers list their own process by the host's number: it is the one that holds what this one reserved
        if let Some(own) = sizes.iter().filter(|s| **s + (64 << 20) >= reserved).min() {
            return Some(sizes.iter().sum::<u64>() - own);
        }
    }
    Some(used.saturating_sub(reserved).saturating_sub(OWN_EXTRA))
}

impl Diagnosis {
    /// Of one message; `leak` is what the log's own memory figures said before it.
    pub fn of(m: &Message, leak: Option<&Verdict>) -> Diagnosis {
        let mut d = class(m);
        if let Some(v) = leak
            && matches!(
                d.cause,
                Cause::TooBig | Cause::Unknown | Cause::Fragmentation
            )
        {
            d.cause = Cause::Leak;
            d.why = format!(
                "memory grew until the device was full: {}",
                v.sentence("step")
            );
        }
        d.changes = changes::of(m, &d);
        d
    }
}

fn simple(cause: Cause, why: impl Into<String>) -> Diagnosis {
    Diagnosis {
        cause,
        why: why.into(),
        missing_bytes: None,
        others_bytes: None,
        changes: Vec::new(),
    }
}

fn class(m: &Message) -> Diagnosis {
    use Framework as F;
    let kind = m.figures.get("kind").and_then(|k| k.as_str()).unwrap_or("");
    match m.framework {
        f if f.is_torch() => torch(m),
        F::PyTorchMps => mps(m),
        F::Jax | F::TensorFlow => xla(m),
        F::XlaTpu => {
            let mut d = simple(
                Cause::TooBig,
                "the program needs more than the memory space has",
            );
            d.missing_bytes = m
                .bytes("exceeded_bytes")
                .or_else(|| m.bytes("tried_bytes")?.checked_sub(m.bytes("free_bytes")?));
            if let (Some(f), Some(t)) = (m.bytes("free_bytes"), m.bytes("tried_bytes"))
                && f >= t
            {
                d.cause = Cause::Fragmentation;
                d.why = format!("{} are free, but not in one piece of {}", say(f), say(t));
            } else if let (Some(u), Some(t)) = (m.bytes("used_bytes"), m.bytes("total_bytes")) {
                d.why = format!("the program uses {} of {}", say(u), say(t));
            }
            d
        }
        F::Vllm => vllm(m, kind),
        F::Sglang => match kind {
            "unbalanced" => simple(
                Cause::OtherProcess,
                "some devices have less free memory than others: other processes hold it",
            ),
            "graph_capture" => simple(
                Cause::Graphs,
                "capturing the CUDA graphs needs memory beside the pool that --mem-fraction-static made",
            ),
            _ => simple(
                Cause::PoolSetting,
                "the pool that --mem-fraction-static made has no room for the cache",
            ),
        },
        F::Tgi => simple(
            Cause::PoolSetting,
            "the warm-up with the configured token budgets does not fit",
        ),
        F::LlamaCpp | F::Ollama => ggml(m, kind),
        F::OnnxRuntime if m.bytes("available_bytes").is_some() => {
            let mut d = simple(
                Cause::PoolSetting,
                "the arena's own limit (gpu_mem_limit) is reached, not the device's",
            );
            d.missing_bytes = m
                .bytes("tried_bytes")
                .zip(m.bytes("available_bytes"))
                .and_then(|(t, a)| t.checked_sub(a));
            d
        }
        F::OnnxRuntime => simple(
            Cause::TooBig,
            "the arena could not grow by the buffer that was asked for",
        ),
        F::Nccl if kind == "host" || kind == "shared_memory" => simple(
            Cause::HostMemory,
            "NCCL's buffers in the host's (shared) memory found no room",
        ),
        F::Nccl => simple(
            Cause::PoolSetting,
            "NCCL allocates beside the framework's allocator, which left no room on the device",
        ),
        F::Cublas | F::Cudnn | F::CudaLibrary => simple(
            Cause::PoolSetting,
            "the library's handle or workspace is allocated beside the framework's allocator, which left no room (an earlier index out of range shows the same text)",
        ),
        F::Cuda => simple(
            Cause::Unknown,
            "the driver refused an allocation; the text has no figures",
        ),
        F::Mlx => simple(
            Cause::TooBig,
            "one buffer is larger than the device allows, or the device is full",
        ),
        F::Paddle => torch(m),
        F::Host => simple(
            Cause::HostMemory,
            "the host's memory ended, not the device's",
        ),
        _ => simple(Cause::Unknown, "the text has no figures"),
    }
}

fn torch(m: &Message) -> Diagnosis {
    let Some(tried) = m.bytes("tried_bytes") else {
        let rejected = m.figures.get("kind").is_some_and(|k| k == "rejected");
        return if rejected {
            simple(
                Cause::PoolSetting,
                "the request was refused because of per_process_memory_fraction",
            )
        } else {
            simple(Cause::Unknown, "the text has no figures")
        };
    };
    let free = m.bytes("free_bytes");
    let idle = idle(m);
    let others = others(m);
    let fill = |mut d: Diagnosis| {
        d.missing_bytes = free.map(|f| tried.saturating_sub(f)).filter(|n| *n > 0);
        d.others_bytes = others;
        d
    };
    let total = m.bytes("total_bytes");
    if let Some(t) = total.filter(|t| tried > *t) {
        return fill(simple(
            Cause::TooBig,
            format!(
                "one request of {} is larger than the whole device ({})",
                say(tried),
                say(t)
            ),
        ));
    }
    if let Some(v) = m.bytes("private_pool_bytes").filter(|v| *v >= tried) {
        return fill(simple(
            Cause::Graphs,
            format!(
                "{} lie in private pools (CUDA graphs), which nothing else may use; {} were asked for",
                say(v),
                say(tried)
            ),
        ));
    }
    if let Some(i) = idle.filter(|i| *i > tried) {
        return fill(simple(
            Cause::Fragmentation,
            format!(
                "{} are reserved and not in use, more than the {} asked for, but in pieces",
                say(i),
                say(tried)
            ),
        ));
    }
    if let (Some(allowed), Some(r), Some(f)) = (m.bytes("allowed_bytes"), reserved(m), free)
        && (f >= tried || total.is_some_and(|t| allowed < t))
        && r.saturating_add(tried) > allowed
    {
        return fill(simple(
            Cause::PoolSetting,
            format!(
                "a memory fraction allows {} of the device, and {} are reserved already",
                say(allowed),
                say(r)
            ),
        ));
    }
    if let Some(f) = free.filter(|f| *f >= tried) {
        return fill(simple(
            Cause::DriverLimit,
            format!(
                "the device shows {} free and refused {}: a limit outside of the framework (WSL's or a container's memory, address space), or another process had it at that moment",
                say(f),
                say(tried)
            ),
        ));
    }
    if let (Some(o), Some(f)) = (others, free)
        && o >= (256 << 20)
        && f + o >= tried
        && o >= total.unwrap_or(0) / 20
    {
        return fill(simple(
            Cause::OtherProcess,
            format!(
                "other processes hold {} of the device; with them gone the {} would fit",
                say(o),
                say(tried)
            ),
        ));
    }
    let mut d = fill(simple(
        Cause::TooBig,
        "what is in use, and the request, exceed the device",
    ));
    if let (Some(a), Some(t)) = (m.bytes("allocated_bytes"), total) {
        d.why = format!(
            "{} are in use of {}, and {} more do not fit",
            say(a),
            say(t),
            say(tried)
        );
    }
    d
}

fn mps(m: &Message) -> Diagnosis {
    let mut d = simple(Cause::TooBig, "the device's recommended limit is reached");
    let get = |k| m.bytes(k);
    if let (Some(a), Some(l), Some(t)) = (
        get("allocated_bytes"),
        get("allowed_bytes"),
        get("tried_bytes"),
    ) {
        let other = get("other_bytes").unwrap_or(0);
        d.missing_bytes = Some((a + other + t).saturating_sub(l));
        d.others_bytes = Some(other);
        if other > a && a + t <= l {
            d.cause = Cause::OtherProcess;
            d.why = format!(
                "{} are allocations outside of the tensors (other programs, cached graphs), {} are tensors",
                say(other),
                say(a)
            );
        } else {
            d.why = format!(
                "{} of tensors, {} of others and {} more exceed the limit of {}",
                say(a),
                say(other),
                say(t),
                say(l)
            );
        }
    }
    d
}

fn xla(m: &Message) -> Diagnosis {
    if m.figures.get("kind").is_some_and(|k| k == "host") {
        return simple(Cause::HostMemory, "pinned memory of the host ended");
    }
    let mut d = simple(Cause::TooBig, "the program's buffers exceed the device");
    if let Some(t) = m.bytes("tried_bytes") {
        d.why = format!("{} in one buffer found no room", say(t));
        if let (Some(l), Some(u)) = (m.bytes("limit_bytes"), m.bytes("in_use_bytes")) {
            d.why = format!(
                "{} of {} are in use, and {} more found no room",
                say(u),
                say(l),
                say(t)
            );
            d.missing_bytes = Some((u + t).saturating_sub(l)).filter(|n| *n > 0);
            if u + t <= l {
                d.cause = Cause::Fragmentation;
            }
        }
        if let Some(f) = m.bytes("xla_fragmentation_bytes").filter(|f| *f > t) {
            d.cause = Cause::Fragmentation;
            d.why = format!(
                "{} of the program's buffers are fragmentation, more than the {} asked for",
                say(f),
                say(t)
            );
        }
    }
    if let (Some(p), Some(x), Some(o)) = (
        m.bytes("xla_parameter_bytes"),
        m.bytes("xla_temp_bytes"),
        m.bytes("xla_live_out_bytes"),
    ) {
        d.why += &format!(
            " (parameters {}, temporaries {}, outputs {})",
            say(p),
            say(x),
            say(o)
        );
    }
    if !m.fatal {
        d.why += "; a warning, the program goes on";
    }
    d
}

fn vllm(m: &Message, kind: &str) -> Diagnosis {
    if let (Some(f), Some(w)) = (m.bytes("free_bytes"), m.bytes("desired_bytes")) {
        let mut d = simple(
            Cause::OtherProcess,
            format!(
                "{} are free at the start and gpu_memory_utilization wants {}: other processes hold the rest",
                say(f),
                say(w)
            ),
        );
        d.missing_bytes = Some(w.saturating_sub(f));
        d.others_bytes = m.bytes("total_bytes").map(|t| t.saturating_sub(f));
        return d;
    }
    match kind {
        "sampler_warmup" => simple(
            Cause::PoolSetting,
            "the cache took all of the budget, and the sampler's warm-up found none",
        ),
        "profiling_disturbed" => simple(
            Cause::OtherProcess,
            "another process changed the device's free memory while it was measured",
        ),
        _ => {
            let mut d = simple(
                Cause::PoolSetting,
                "after weights and activations the budget leaves no memory for the cache",
            );
            if let (Some(n), Some(a)) = (m.bytes("kv_needed_bytes"), m.bytes("kv_available_bytes"))
            {
                d.missing_bytes = Some(n.saturating_sub(a));
                d.why = format!(
                    "one request of the full length needs {} of cache, {} are left",
                    say(n),
                    say(a)
                );
            } else if let (Some(l), Some(t)) =
                (m.bytes("max_model_len"), m.bytes("kv_cache_tokens"))
            {
                d.why = format!("the cache holds {t} tokens, one request may have {l}");
            }
            d
        }
    }
}

fn ggml(m: &Message, kind: &str) -> Diagnosis {
    if kind == "system_memory"
        || kind == "host"
        || kind == "host_pinned"
        || m.figures.get("backend").is_some_and(|b| b == "CPU")
    {
        let mut d = simple(
            Cause::HostMemory,
            "the host's memory is too small for the model",
        );
        d.missing_bytes = m
            .bytes("required_bytes")
            .zip(m.bytes("available_bytes"))
            .map(|(r, a)| r.saturating_sub(a));
        return d;
    }
    if kind == "layout" {
        return simple(
            Cause::PoolSetting,
            "the number of layers on the device is fixed (num_gpu) and they do not fit",
        );
    }
    let what = match m.figures.get("stage").and_then(|s| s.as_str()) {
        Some("weights") => "the weights",
        Some("kv_cache") => "the KV cache",
        Some("compute") => "the compute buffers",
        _ => "a buffer",
    };
    let mut d = simple(Cause::TooBig, format!("{what} found no room on the device"));
    if let Some(t) = m.bytes("tried_bytes") {
        d.why = format!(
            "{what} need {} in one buffer, and the device has less free",
            say(t)
        );
    }
    d
}
