//! llama.cpp and what is built of ggml: ggml-cuda.cu, ggml-alloc.c, ggml-backend, ggml-vulkan.cpp, ggml-metal, llama-model, llama-context.

use super::text::{after, amount, amount_after, floor, integer, strip_prefix};
use super::{Framework, Message, Parsed, Site};

/// The lines that belong to one failure: from the anchor's own line on, as long as they speak of it.
fn group<'a>(site: &Site<'a>) -> (&'a str, usize) {
    let text = &site.text[..floor(site.text, 3000)];
    let mut end = 0;
    // line ends also where a JSON string has them escaped
    for (i, line) in text.split_inclusive('\n').enumerate().take(14) {
        let s = strip_prefix(line.trim_end());
        let ours = [
            "alloc",
            "buffer",
            "llama",
            "ggml",
            "failed",
            "rror",
            "graph_reserve",
            "srv",
            "main:",
            "common_",
            "~",
        ]
        .iter()
        .any(|w| s.contains(w));
        let next = i > 0
            && (s.contains("Malloc failed") || s.contains("Device memory allocation of size"));
        if i > 0 && (!ours || next) {
            break;
        }
        end += line.len();
    }
    (&text[..end], end)
}

fn named<'a>(s: &'a str, what: &str) -> Option<(&'a str, i64)> {
    for (i, _) in s.match_indices(what) {
        let r = &s[i + what.len()..];
        if let Some((name, size)) = r.split_once(" buffer of size ")
            && name.len() < 40
            && !name.contains(' ')
            && let Some((n, _)) = integer(size)
        {
            return Some((name, n));
        }
    }
    None
}

fn finish(site: &Site, mut m: Message) -> Parsed {
    let (raw, used) = group(site);
    let s = super::text::flatten(raw);
    if let Some((name, size)) = named(&s, "failed to allocate ") {
        m.figures.insert("tried_bytes", size.into());
        m.set("backend", name);
        let digits: String = name
            .chars()
            .rev()
            .take_while(char::is_ascii_digit)
            .collect();
        m.set_integer(
            "gpu_index",
            digits.chars().rev().collect::<String>().parse().ok(),
        );
    } else if let Some(r) = after(&s, "unable to allocate ")
        && let Some(name) = r.split(' ').next()
        && r.starts_with(&format!("{name} buffer"))
    {
        m.set("backend", name);
    }
    let has = |w: &str| s.contains(w);
    let stage = if has("gallocr")
        || has("compute buffer")
        || has("compute pp buffer")
        || has("compute tg buffer")
    {
        Some("compute")
    } else if has("kv cache")
        || has("kv_cache")
        || has("self-attention cache")
        || has("KV cache")
        || has("cache buffer")
    {
        Some("kv_cache")
    } else if has("alloc_tensor_range")
        || has("unable to allocate")
        || has("error loading model")
        || site.before.contains("alloc_tensor_range")
    {
        Some("weights")
    } else if has("in function alloc") || has("ggml_cuda_pool") {
        Some("temporary")
    } else {
        None
    };
    let stage = if site.before.contains("gallocr") {
        Some("compute")
    } else {
        stage
    };
    if let Some(stage) = stage {
        m.set("stage", stage);
    }
    m.format = match stage {
        Some("compute") => "ggml compute",
        Some("kv_cache") => "ggml kv cache",
        Some("weights") => "ggml weights",
        _ => "ggml",
    };
    let ollama = [
        "llama runner",
        "llama-server process has terminated",
        "ollama",
    ];
    if ollama
        .iter()
        .any(|w| site.context.contains(w) || s.contains(w))
    {
        m.framework = Framework::Ollama;
    }
    Some((m, used.max(16)))
}

/// `... allocating 144817.04 MiB on device 0: cudaMalloc failed: out of memory` and the lines after it.
pub fn cuda(site: &Site) -> Parsed {
    let mut m = Message::new(Framework::LlamaCpp, "ggml");
    if let Some(r) = after(site.before, "allocating ") {
        m.set_amount("tried_bytes", amount(r).map(|a| a.0));
    }
    m.set_integer(
        "gpu_index",
        after(site.before, "on device ")
            .and_then(integer)
            .map(|n| n.0),
    );
    finish(site, m)
}

/// `ggml_vulkan: Device memory allocation of size N failed.`
pub fn vulkan(site: &Site) -> Parsed {
    let s = site.flat(200);
    let mut m = Message::new(Framework::LlamaCpp, "ggml vulkan");
    m.set_integer("tried_bytes", Some(integer(after(&s, "of size ")?)?.0));
    let vulkan = site.before.contains("vulkan");
    let r = finish(site, m);
    r.map(|(mut m, n)| {
        if vulkan {
            m.set("backend", "Vulkan");
        }
        (m, n)
    })
}

/// `vk::Device::allocateMemory: ErrorOutOfDeviceMemory` alone.
pub fn vulkan_error(_: &Site) -> Parsed {
    let mut m = Message::new(Framework::LlamaCpp, "vulkan");
    m.set("backend", "Vulkan");
    Some((m, 22))
}

/// `ggml_aligned_malloc: insufficient memory (attempted to allocate 2287 MB)`.
pub fn host(site: &Site) -> Parsed {
    let s = site.flat(200);
    let mut m = Message::new(Framework::LlamaCpp, "ggml host");
    m.set_amount("tried_bytes", amount_after(&s, "to allocate "));
    m.set("backend", "CPU");
    m.set("kind", "host");
    finish(site, m)
}

/// `failed to allocate ...`: a ggml buffer without its first line, Metal, pinned memory; otherwise XLA's driver line.
pub fn failed_or_xla(site: &Site) -> Parsed {
    let s = site.flat(300);
    let r = s.strip_prefix("failed to allocate ")?;
    if named(&s, "failed to allocate ").is_some_and(|n| r.starts_with(n.0)) {
        return finish(site, Message::new(Framework::LlamaCpp, "ggml"));
    }
    if let Some(t) = r.strip_prefix("buffer, size =") {
        let mut m = Message::new(Framework::LlamaCpp, "ggml metal");
        m.set_amount("tried_bytes", Some(amount(t)?.0));
        m.set("backend", "Metal");
        return finish(site, m);
    }
    if let Some((a, t)) = amount(r)
        && t.starts_with(" of pinned memory")
    {
        let mut m = Message::new(Framework::LlamaCpp, "ggml pinned host memory");
        m.fatal = false;
        m.set_amount("tried_bytes", Some(a));
        m.set("kind", "host_pinned");
        return Some((m, 40));
    }
    let ggml = ["llama_", "graph_reserve", "ggml_"]
        .iter()
        .any(|w| site.before.contains(w));
    let what = [
        "buffer for kv cache",
        "compute buffers",
        "compute pp buffers",
        "compute tg buffers",
    ];
    if ggml && what.iter().any(|w| r.starts_with(w)) {
        return finish(site, Message::new(Framework::LlamaCpp, "ggml"));
    }
    super::xla::driver(site)
}
