//! Libraries and drivers: NCCL (src/include/alloc.h, checks.h), cuBLAS, cuDNN, cuSOLVER, cuSPARSE, cuFFT as PyTorch prints them
//! (aten/src/ATen/cuda/Exceptions.h), ONNX Runtime (core/framework/bfc_arena.cc), the CUDA runtime, MLX, Metal, the host.

use super::text::{after, amount, amount_after, amount_before, bytes, integer, rank};
use super::{Framework, Message, Parsed, Site};

/// The device in `node:2134736:2285781 [0] include/alloc.h:178 NCCL WARN`.
fn nccl_device(before: &str) -> Option<i64> {
    let open = before.rfind('[')?;
    integer(&before[open + 1..])
        .filter(|r| r.1.starts_with(']'))
        .map(|n| n.0)
}

/// `NCCL WARN Cuda failure 'out of memory'`, `NCCL WARN Failed to CUDA calloc N bytes`, `Last error: Cuda failure 'out of memory'`.
pub fn nccl(site: &Site) -> Parsed {
    let s = site.flat(700);
    let failure = s.contains("out of memory");
    let allocation = after(&s, "Failed to CUDA ");
    if !failure && allocation.is_none() {
        return None;
    }
    // without NCCL's own mark, the text must name it nearby
    if !s.starts_with("NCCL WARN") {
        let near = s[..super::text::floor(&s, 60)].contains("out of memory");
        if !near || !site.context.to_ascii_lowercase().contains("nccl") {
            return None;
        }
    }
    let mut m = Message::new(Framework::Nccl, "nccl");
    m.set_integer("rank", rank(site.before));
    let mut used = 20;
    if let Some(r) = allocation {
        m.format = if r.starts_with("host") {
            "nccl host alloc"
        } else {
            "nccl alloc"
        };
        let kind = ["host alloc", "calloc async", "calloc", "malloc"]
            .iter()
            .find(|k| r.starts_with(**k));
        if let Some(k) = kind {
            m.set_integer("tried_bytes", integer(&r[k.len()..]).map(|n| n.0));
            if *k == "host alloc" {
                m.set("kind", "host");
            }
        }
        used = site.text.find("Failed to CUDA").map_or(20, |i| i + 14);
    }
    m.set_integer("gpu_index", nccl_device(site.before));
    Some((m, used))
}

/// `Error while creating shared memory segment /dev/shm/nccl-x (size 9637888)`.
pub fn nccl_shm(site: &Site) -> Parsed {
    let s = site.flat(300);
    let mut m = Message::new(Framework::Nccl, "nccl shared memory");
    m.set("kind", "shared_memory");
    m.set_integer("tried_bytes", Some(integer(after(&s, "(size ")?)?.0));
    m.set_integer("gpu_index", nccl_device(site.before));
    Some((m, 20))
}

/// The call in backquotes after `when calling`.
fn call(m: &mut Message, s: &str) {
    if let Some(r) = after(s, "when calling ") {
        let r = r.trim_start();
        let name = match r.strip_prefix('`') {
            Some(r) => r.split('`').next(),
            None => r.split(' ').next(),
        };
        if let Some(n) = name.filter(|n| n.len() < 200) {
            m.set("call", n);
        }
    }
}

fn status<'a>(s: &'a str, known: &[&str]) -> Option<&'a str> {
    let end = s
        .find(|c: char| !(c.is_ascii_uppercase() || c == '_'))
        .unwrap_or(s.len());
    known.contains(&&s[..end]).then(|| &s[..end])
}

/// `CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)``; NOT_INITIALIZED of the same call is the same failure.
pub fn cublas(site: &Site) -> Parsed {
    let s = site.flat(400);
    let st = status(
        &s,
        &[
            "CUBLAS_STATUS_ALLOC_FAILED",
            "CUBLAS_STATUS_NOT_INITIALIZED",
        ],
    )?;
    let mut m = Message::new(Framework::Cublas, "cublas");
    call(&mut m, &s);
    let create = m
        .figures
        .get("call")
        .and_then(|c| c.as_str())
        .is_some_and(|c| c.contains("Create"));
    if st.ends_with("INITIALIZED") && !create {
        return None;
    }
    m.set("status", st);
    m.set_integer("rank", rank(site.before));
    m.set_integer(
        "gpu_index",
        after(&s, "GPU=").and_then(integer).map(|n| n.0),
    );
    Some((m, st.len()))
}

/// `cuDNN error: CUDNN_STATUS_ALLOC_FAILED`; NOT_INITIALIZED where the handle found no memory.
pub fn cudnn(site: &Site) -> Parsed {
    let s = site.flat(400);
    let known = [
        "CUDNN_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_NOT_INITIALIZED",
        "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
        "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    ];
    let st = status(&s, &known)?;
    let mut m = Message::new(Framework::Cudnn, "cudnn");
    m.set("status", st);
    call(&mut m, &s);
    m.set_integer("rank", rank(site.before));
    Some((m, st.len()))
}

/// cuSOLVER, cuSPARSE, cuFFT.
pub fn other(site: &Site) -> Parsed {
    let s = site.flat(400);
    let known = [
        "CUSOLVER_STATUS_ALLOC_FAILED",
        "CUSOLVER_STATUS_INTERNAL_ERROR",
        "CUSOLVER_STATUS_NOT_INITIALIZED",
        "CUSPARSE_STATUS_ALLOC_FAILED",
        "CUSPARSE_STATUS_INSUFFICIENT_RESOURCES",
        "CUFFT_ALLOC_FAILED",
    ];
    let st = status(&s, &known)?;
    let mut m = Message::new(Framework::CudaLibrary, "cuda library");
    call(&mut m, &s);
    let create = m
        .figures
        .get("call")
        .and_then(|c| c.as_str())
        .is_some_and(|c| c.contains("Create"));
    if !st.contains("ALLOC") && !st.contains("RESOURCES") && !create {
        return None;
    }
    m.set("status", st);
    Some((m, st.len()))
}

/// The runtime or the driver, without figures.
pub fn driver(site: &Site) -> Parsed {
    let s = site.flat(500);
    // frameworks name the constant in texts that have their own parser
    if s.starts_with("CUDA_ERROR_OUT") && site.context.contains("Failed to allocate") {
        return None;
    }
    if s.starts_with("CUDA error 2 at") && !s.contains("out of memory") {
        return None;
    }
    let ggml =
        s.starts_with("CUDA error 2 at") || s.contains("ggml") || site.context.contains("ggml_");
    let onnx = s.contains("expr=") || site.context.contains("onnxruntime");
    let mut m = Message::new(
        match () {
            () if ggml => Framework::LlamaCpp,
            () if onnx => Framework::OnnxRuntime,
            () => Framework::Cuda,
        },
        "cuda runtime",
    );
    m.set_integer("rank", rank(site.before));
    let index = ["current device: ", "GPU=", "device ordinal "];
    m.set_integer(
        "gpu_index",
        index
            .iter()
            .find_map(|w| after(&s, w))
            .and_then(integer)
            .map(|n| n.0),
    );
    if ggml && (s.contains("in function alloc") || s.contains("pool")) {
        m.set("stage", "temporary");
    }
    Some((m, 26))
}

/// `Failed to allocate memory for requested buffer of size N`, the node ahead of it.
pub fn ort(site: &Site) -> Parsed {
    let s = site.flat(300);
    let mut m = Message::new(Framework::OnnxRuntime, "ort bfc arena");
    m.set_integer("tried_bytes", Some(integer(after(&s, "of size ")?)?.0));
    ort_node(&mut m, site);
    Some((m, 30))
}

/// `Available memory of A is smaller than requested bytes of N`: the arena's own limit.
pub fn ort_arena(site: &Site) -> Parsed {
    let s = site.flat(300);
    let (a, r) = integer(after(&s, "memory of ")?)?;
    let (n, _) = integer(after(r, "requested bytes of ")?)?;
    let mut m = Message::new(Framework::OnnxRuntime, "ort arena limit");
    m.set("available_bytes", a);
    m.set("tried_bytes", n);
    ort_node(&mut m, site);
    Some((m, 30))
}

fn ort_node(m: &mut Message, site: &Site) {
    if let Some(r) = after(site.context, "Name:'").or_else(|| after(site.context, "Name: '"))
        && let Some((name, _)) = r.split_once('\'')
    {
        m.set("node", name);
    }
    if let Some(r) = after(site.context, "while running ")
        && let Some((op, _)) = r.split_once(" node")
        && !op.contains(' ')
    {
        m.set("op", op);
    }
}

/// `DefaultCPUAllocator: can't allocate memory: you tried to allocate N bytes`.
pub fn cpu_allocator(site: &Site) -> Parsed {
    let s = site.flat(300);
    let mut m = Message::new(Framework::Host, "torch cpu allocator");
    m.set_integer(
        "tried_bytes",
        Some(integer(after(&s, "tried to allocate ")?)?.0),
    );
    Some((m, 20))
}

/// `[metal::malloc] Attempting to allocate N bytes which is greater than the maximum allowed buffer size of M bytes.`
pub fn mlx(site: &Site) -> Parsed {
    let s = site.flat(300);
    let mut m = Message::new(Framework::Mlx, "mlx");
    m.set_amount(
        "tried_bytes",
        after(&s, "to allocate ").and_then(bytes).map(|a| a.0),
    );
    let limit = ["buffer size of ", "maximum allowed size of ", "limit of "];
    m.set_amount(
        "allowed_bytes",
        limit
            .iter()
            .find_map(|w| after(&s, w))
            .and_then(bytes)
            .map(|a| a.0),
    );
    m.figures.contains_key("tried_bytes").then_some((m, 40))
}

/// Metal's command buffers.
pub fn metal(site: &Site) -> Parsed {
    let ggml = site.context.contains("ggml");
    let m = Message::new(
        if ggml {
            Framework::LlamaCpp
        } else {
            Framework::Mlx
        },
        "metal command buffer",
    );
    Some((m, 40))
}

/// Paddle: `Out of memory error on GPU 0. Cannot allocate 1.2GB memory on GPU 0, 15GB memory has been allocated and available memory is only 200MB.`
pub fn paddle(site: &Site) -> Parsed {
    let s = site.flat(600);
    let (tried, r) = amount(s.strip_prefix("Cannot allocate ")?)?;
    let mut m = Message::new(Framework::Paddle, "paddle");
    m.set_amount("tried_bytes", Some(tried));
    m.set_integer("gpu_index", after(r, "GPU ").and_then(integer).map(|n| n.0));
    m.set_amount(
        "allocated_bytes",
        amount_before(r, " memory has been allocated"),
    );
    m.set_amount("free_bytes", amount_after(r, "available memory is only "));
    r.starts_with(" memory on").then_some((m, 20))
}

/// The kernel: `Out of memory: Killed process 1234 (python) total-vm:..kB, anon-rss:..kB`.
pub fn kernel(site: &Site) -> Parsed {
    let context = site.context.to_ascii_lowercase();
    if !context.contains("out of memory") && !context.contains("oom") {
        return None;
    }
    let s = site.flat(400);
    let (pid, r) = integer(after(&s, "Killed process ")?)?;
    let mut m = Message::new(Framework::Host, "kernel oom killer");
    m.set("kind", "killed");
    m.set("pid", pid);
    if let Some((name, _)) = after(r, "(").and_then(|r| r.split_once(')')) {
        m.set("process", name);
    }
    m.set_amount("process_bytes", amount_after(r, "anon-rss:"));
    Some((m, 20))
}

/// NumPy: `Unable to allocate 5.21 GiB for an array with shape (a, b) and data type float64`.
pub fn numpy(site: &Site) -> Parsed {
    let s = site.flat(300);
    let (a, r) = amount(s.strip_prefix("Unable to allocate ")?)?;
    let mut m = Message::new(Framework::Host, "numpy");
    m.set_amount("tried_bytes", Some(a));
    r.trim_start()
        .starts_with("for an array")
        .then_some((m, 20))
}

/// A data loader's worker: `DataLoader worker (pid 123) is killed by signal: Bus error. It is possible that dataloader's workers are out of
/// shared memory`, `... signal: Killed.`
pub fn loader(site: &Site) -> Parsed {
    if !site.context.contains("DataLoader worker") {
        return None;
    }
    let s = site.flat(200);
    let kind = match () {
        () if s.contains("Bus error") => "shared_memory",
        () if s.contains("Killed") => "killed",
        () => return None,
    };
    let mut m = Message::new(Framework::Host, "data loader");
    m.set("kind", kind);
    m.set_integer(
        "pid",
        after(site.context, "pid ")
            .or_else(|| after(site.context, "pid(s) "))
            .and_then(integer)
            .map(|n| n.0),
    );
    Some((m, 20))
}
