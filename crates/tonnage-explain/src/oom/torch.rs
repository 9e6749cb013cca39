//! PyTorch's allocators: c10/cuda/CUDACachingAllocator.cpp (1.0 to 2.15), CUDAMallocAsyncAllocator.cpp, XPUCachingAllocator.cpp,
//! aten/src/ATen/mps/MPSAllocator.mm, torch_npu's NPUCachingAllocator.cpp.

use super::text::{after, amount, amount_after, amount_before, integer, rank};
use super::{Framework, Message, Parsed, Site};

fn device(before: &str) -> Option<Framework> {
    let word = before
        .trim_end()
        .rsplit(|c: char| !c.is_ascii_alphanumeric())
        .next()
        .unwrap_or("");
    Some(match word {
        "CUDA" => Framework::PyTorch,
        "HIP" => Framework::PyTorchRocm,
        "NPU" => Framework::PyTorchNpu,
        "XPU" => Framework::PyTorchXpu,
        w if w.len() >= 2 && w.chars().all(|c| c.is_ascii_uppercase()) => Framework::PyTorchOther,
        _ => return None,
    })
}

/// `CUDA out of memory. Tried to allocate ...`, every form since 1.0.
pub fn caching(site: &Site) -> Parsed {
    let framework = device(site.context)?;
    let whole = site.flat(3000);
    // the next message of the log is not this one's
    let end = whole[1..]
        .find("out of memory")
        .map_or(whole.len(), |i| i + 1);
    let s = &whole[..end];
    let mut m = Message::new(framework, "torch");
    m.set_integer("rank", rank(site.before));
    if let Some(r) = s.strip_prefix("out of memory. Allocation was preemptively rejected") {
        m.format = "torch-2.15 rejected";
        m.set("kind", "rejected");
        m.set_amount("tried_bytes", amount_after(r, "Requested size: "));
        limits(&mut m, r);
        return Some((m, 20));
    }
    let Some(r) = s.strip_prefix("out of memory. Tried to allocate ") else {
        // a text that was cut short, or printed without its figures
        let said = site.before.contains("Error") && s.starts_with("out of memory");
        m.format = "torch (no figures)";
        return (said && matches!(framework, Framework::PyTorch | Framework::PyTorchRocm))
            .then_some((m, 13));
    };
    if r.starts_with("more than 1EB") {
        m.format = "torch-1EB";
        m.set("kind", "more_than_1eb");
        return Some((m, 20));
    }
    let (tried, r) = amount(r)?;
    m.set_amount("tried_bytes", Some(tried));
    let t = r.trim_start();
    if t.starts_with('(') {
        let inner = &t[1..t.find(')').unwrap_or(t.len())];
        let head = inner.split(';').next().unwrap_or("");
        m.set_integer(
            "gpu_index",
            head.split_whitespace()
                .nth(1)
                .and_then(integer)
                .map(|n| n.0),
        );
        for (key, words) in [
            ("total_bytes", " total capacity"),
            ("allocated_bytes", " already allocated"),
            ("active_bytes", " current active"),
            ("free_bytes", " free"),
            ("allowed_bytes", " allowed"),
            ("reserved_bytes", " reserved in total"),
            ("reserved_unallocated_bytes", " cached"),
        ] {
            m.set_amount(key, amount_before(inner, words));
        }
        let hint = t.contains("max_split_size_mb");
        m.format = match () {
            () if framework == Framework::PyTorchNpu => "torch_npu",
            () if inner.contains(" cached") => "torch-1.0..1.3",
            () if hint => "torch-1.10..2.0",
            () => "torch-1.4..1.9",
        };
        return Some((m, 20));
    }
    // the sentences end with what is reserved but unallocated
    let t = match t.find("but unallocated") {
        Some(i) => &t[..i + 15],
        None => &t[..super::text::floor(t, 700)],
    };
    let whose = after(t, "GPU ")
        .or_else(|| after(t, "NPU "))
        .or_else(|| after(t, "XPU "));
    m.set_integer("gpu_index", whose.and_then(integer).map(|n| n.0));
    let total = ["total capacity of ", "total capacty of "];
    m.set_amount("total_bytes", total.iter().find_map(|w| amount_after(t, w)));
    m.set_amount("free_bytes", amount_after(t, "of which "));
    m.set_amount("allowed_bytes", amount_before(t, " allowed"));
    m.set_amount("process_bytes", amount_after(t, "this process has "));
    let mut others = Vec::new();
    for (i, _) in t.match_indices("Process ") {
        if let Some((pid, r)) = integer(&t[i + 8..])
            && let Some((a, _)) = r.strip_prefix(" has ").and_then(amount)
        {
            others.push(serde_json::json!([pid, a.bytes]));
        }
    }
    if !others.is_empty() {
        m.set("processes", others);
    }
    m.set_amount(
        "allocated_bytes",
        amount_after(t, "Of the allocated memory "),
    );
    m.set_amount(
        "private_pool_bytes",
        amount_before(t, " allocated in private pools"),
    );
    let reserved = [
        " is reserved by PyTorch but unallocated",
        " is reserved by PyTorch",
    ];
    m.set_amount(
        "reserved_unallocated_bytes",
        reserved.iter().find_map(|w| amount_before(t, w)),
    );
    let hint = &whole[..end];
    m.format = match () {
        () if t.contains("capacty") => "torch-2.1",
        () if hint.contains("docs.pytorch.org") => "torch-2.8+",
        () if hint.contains("expandable_segments") => "torch-2.2+",
        () => "torch-2.x",
    };
    Some((m, 20))
}

/// The figures of sentences as in [`caching`], where only some are there.
fn limits(m: &mut Message, t: &str) {
    m.set_amount("total_bytes", amount_after(t, "total capacity of "));
    m.set_amount("free_bytes", amount_after(t, "of which "));
    m.set_amount("allowed_bytes", amount_before(t, " allowed"));
    m.set_amount(
        "allocated_bytes",
        amount_after(t, "Of the allocated memory "),
    );
}

/// `memory allocation failed with OOM on device 0 while trying to allocate N bytes (free: F, total: T)`: exact bytes, 2026.
pub fn warning(site: &Site) -> Parsed {
    let s = site.flat(600);
    let r = after(&s, "OOM on device ")?;
    let (index, r) = integer(r)?;
    let (tried, r) = amount(after(r, "trying to allocate ")?)?;
    let mut m = Message::new(Framework::PyTorch, "torch-2.1x warning");
    m.set_integer("rank", rank(site.before));
    m.set("gpu_index", index);
    m.set_amount("tried_bytes", Some(tried));
    let of = |w: &str| after(r, w).and_then(integer).map(|n| n.0);
    m.set_integer("free_bytes", of("free: "));
    m.set_integer("total_bytes", of("total: "));
    let raw = site.text.find("total").map_or(40, |i| i + 5);
    Some((m, raw.min(300)))
}

/// `Allocation on device 0 would exceed allowed memory. (out of memory)` and its table: backend:cudaMallocAsync.
pub fn malloc_async(site: &Site) -> Parsed {
    let s = site.flat(900);
    let mut m = Message::new(Framework::PyTorch, "torch cudaMallocAsync");
    m.set_integer("rank", rank(site.before));
    m.set_integer(
        "gpu_index",
        after(site.before, "on device ")
            .and_then(integer)
            .map(|n| n.0),
    );
    for (key, word) in [
        ("allocated_bytes", "Currently allocated"),
        ("tried_bytes", "Requested"),
        ("total_bytes", "Device limit"),
        ("free_bytes", "Free (according to CUDA)"),
        ("allowed_bytes", "memory fraction)"),
    ] {
        let r = after(&s, word).and_then(|r| r.trim_start().strip_prefix(':'));
        m.set_amount(key, r.and_then(amount).map(|a| a.0));
    }
    let raw = site.text.find("Free (according").map_or(28, |i| i + 16);
    Some((m, raw))
}

/// MPS: GB labels until 2.3, GiB later; both are 1024-based.
pub fn mps(site: &Site) -> Parsed {
    let s = site.flat(800);
    let mut m = Message::new(Framework::PyTorchMps, "mps");
    m.set_integer("rank", rank(site.before));
    m.set_amount("allocated_bytes", amount_after(&s, "MPS allocated: "));
    m.set_amount("other_bytes", amount_after(&s, "other allocations: "));
    m.set_amount("allowed_bytes", amount_after(&s, "max allowed: "));
    m.set_amount("tried_bytes", amount_after(&s, "Tried to allocate "));
    if let Some(r) = after(&s, "Tried to allocate ").and_then(|r| after(r, " on "))
        && let Some(pool) = ["private", "shared"].iter().find(|p| r.starts_with(**p))
    {
        m.set("pool", *pool);
    }
    m.format = if s.contains("GiB") {
        "mps GiB"
    } else {
        "mps GB (1024-based)"
    };
    Some((m, 25))
}

/// MPS: one tensor above the largest Metal buffer.
pub fn mps_buffer(site: &Site) -> Parsed {
    let s = site.flat(200);
    let mut m = Message::new(Framework::PyTorchMps, "mps buffer");
    m.set_amount("tried_bytes", Some(amount(after(&s, "buffer size: ")?)?.0));
    m.set("kind", "buffer_too_large");
    Some((m, 20))
}
