//! Serving engines: vLLM (v0 worker.py, v1/core/kv_cache_utils.py, v1/worker/utils.py, gpu_model_runner.py), SGLang
//! (srt/model_executor/model_runner.py, srt/mem_cache/common.py), TGI (models/flash_causal_lm.py), Ollama (server/sched.go, llm/server.go).

use super::text::{after, amount, amount_after, amount_before, float, floor, integer, rank};
use super::{Framework, Message, Parsed, Site};

fn vllm(site: &Site, format: &'static str) -> Message {
    let mut m = Message::new(Framework::Vllm, format);
    m.set_integer("rank", rank(site.before));
    m
}

/// `the model's max seq len (L) is larger than the maximum number of tokens that can be stored in KV cache (T)`, and `max seq len (L), (N GiB
/// KV cache is needed, which is larger than the available KV cache memory (A GiB)`; the second is unbalanced in some versions.
pub fn vllm_length(site: &Site) -> Parsed {
    let s = site.flat(1500);
    let (len, r) = integer(after(&s, "max seq len (")?)?;
    let r = &r[..floor(r, 700)];
    let mut m = vllm(site, "vllm kv too small");
    m.set("max_model_len", len);
    if let Some(t) = after(r, "stored in KV cache (") {
        m.set_integer("kv_cache_tokens", integer(t).map(|n| n.0));
        return Some((m, 12));
    }
    let lower = r.to_ascii_lowercase();
    let i = lower.find(" kv cache is")?;
    m.format = "vllm kv needed";
    m.set_amount("kv_needed_bytes", amount_before(&r[..i + 9], " KV cache"));
    // `available KV cache memory (A GiB)`, `available KV Cache memory`, `the available (A GiB)`
    if let Some(t) = after(&r[i..], "larger than the available") {
        let open = t.find('(')?;
        m.set_amount("kv_available_bytes", amount(&t[open + 1..]).map(|a| a.0));
    }
    let estimated = ["maximum model length is ", "maximum model length: "];
    m.set_integer(
        "estimated_max_len",
        estimated
            .iter()
            .find_map(|w| after(r, w))
            .and_then(integer)
            .map(|n| n.0),
    );
    Some((m, 12))
}

/// `No available memory for the cache blocks`.
pub fn vllm_none(site: &Site) -> Parsed {
    let mut m = vllm(site, "vllm no kv memory");
    m.set("kind", "no_kv_memory");
    Some((m, 20))
}

/// `Available KV cache memory: -0.3 GiB`: of interest only where it is too little, as the line ahead of a failure.
pub fn vllm_available(site: &Site) -> Parsed {
    let s = site.flat(200);
    let a = amount_after(&s, "memory: ")?;
    let mut m = vllm(site, "vllm available kv");
    m.fatal = false;
    m.set_amount("kv_available_bytes", Some(a));
    (a.bytes <= 0).then_some((m, 20))
}

/// `Free memory on device [cuda:0 ](F/T GiB) on startup is less than desired GPU memory utilization (u, D GiB)`.
pub fn vllm_startup(site: &Site) -> Parsed {
    let s = site.flat(700);
    let (head, t) = s.split_once('(')?;
    let inside = &t[..t.find(')')?];
    let (free, total) = inside.split_once('/')?;
    let word = total.trim().split_once(' ')?.1;
    let with = |n: &str| amount(&format!("{} {word}", n.trim())).map(|a| a.0);
    let desired = after(t, "utilization (")?;
    let mut m = vllm(site, "vllm startup free check");
    m.set_amount(
        "free_bytes",
        with(free.trim_end_matches(|c: char| !c.is_ascii_digit())),
    );
    m.set_amount("total_bytes", amount(total).map(|a| a.0));
    let u = float(desired)?;
    m.set("gpu_memory_utilization", u);
    m.set_amount(
        "desired_bytes",
        desired
            .split_once(',')
            .and_then(|d| amount(d.1))
            .map(|a| a.0),
    );
    m.set_integer("gpu_index", after(head, ":").and_then(integer).map(|n| n.0));
    Some((m, 20))
}

/// `Error in memory profiling. Initial free memory X, current free memory Y`: another process freed memory while it was measured.
pub fn vllm_profiling(site: &Site) -> Parsed {
    let s = site.flat(500);
    let mut m = vllm(site, "vllm memory profiling");
    m.set("kind", "profiling_disturbed");
    let of = |w: &str| after(&s, w).and_then(super::text::bytes).map(|a| a.0);
    m.set_amount("initial_free_bytes", of("Initial free memory "));
    m.set_amount("free_bytes", of("urrent free memory "));
    Some((m, 20))
}

/// `CUDA out of memory occurred when warming up sampler with N dummy requests`.
pub fn sampler(site: &Site) -> Parsed {
    let s = site.flat(400);
    let what = ["sampler with ", "pooler (", "pooler with "];
    let mut m = vllm(site, "vllm sampler warm-up");
    m.set("kind", "sampler_warmup");
    m.set_integer(
        "max_num_seqs",
        what.iter()
            .find_map(|w| after(&s, w))
            .and_then(integer)
            .map(|n| n.0),
    );
    Some((m, 30))
}

/// `Not enough memory to handle [N total tokens with ]M prefill tokens`.
pub fn tgi(site: &Site) -> Parsed {
    let s = site.flat(400);
    let (n, r) = integer(after(&s, "to handle ")?)?;
    let mut m = Message::new(Framework::Tgi, "tgi warm-up");
    m.set_integer("rank", rank(site.before));
    let r = r.trim_start();
    if r.starts_with("total tokens") {
        m.set("total_tokens", n);
        m.set_integer(
            "prefill_tokens",
            after(r, "with ").and_then(integer).map(|n| n.0),
        );
    } else if r.starts_with("prefill tokens") {
        m.set("prefill_tokens", n);
    } else {
        return None;
    }
    Some((m, 20))
}

/// `Not enough memory. Please try to increase --mem-fraction-static.[ Current value: mem_fraction_static=0.85]`.
pub fn sglang(site: &Site) -> Parsed {
    let s = site.flat(400);
    let mut m = Message::new(Framework::Sglang, "sglang init");
    m.set_integer("rank", rank(site.before));
    m.set("kind", "no_kv_memory");
    if let Some(f) = after(&s, "mem_fraction_static=").and_then(float) {
        m.set("mem_fraction_static", f);
    }
    Some((m, 20))
}

/// `Prefill out of memory. Try to lower your batch size. Try to allocate N tokens. Available full tokens: M (...)`, also Decode.
pub fn sglang_tokens(site: &Site) -> Parsed {
    let s = site.flat(600);
    let mut m = Message::new(Framework::Sglang, "sglang tokens");
    m.set_integer("rank", rank(site.before));
    m.set(
        "kind",
        if s.starts_with("Decode") {
            "decode"
        } else {
            "prefill"
        },
    );
    m.set_integer(
        "tried_tokens",
        after(&s, "ry to allocate ").and_then(integer).map(|n| n.0),
    );
    let available = after(&s, "vailable ").and_then(|r| after(r, "tokens: "));
    m.set_integer("available_tokens", available.and_then(integer).map(|n| n.0));
    Some((m, 25))
}

/// `The memory capacity is unbalanced. Some GPUs may be occupied by other processes. pre_model_load_memory=.., local_gpu_memory=..` (GiB).
pub fn sglang_unbalanced(site: &Site) -> Parsed {
    let s = site.flat(500);
    let mut m = Message::new(Framework::Sglang, "sglang unbalanced");
    m.set("kind", "unbalanced");
    for (key, word) in [
        ("free_bytes", "min_per_gpu_memory="),
        ("free_bytes", "pre_model_load_memory="),
        ("local_free_bytes", "local_gpu_memory="),
    ] {
        let gib = after(&s, word).and_then(|r| {
            let number = r.split([',', ' ', ';']).next().unwrap_or("");
            amount(&format!("{number} GiB")).map(|a| a.0)
        });
        m.set_amount(key, gib);
    }
    Some((m, 20))
}

/// `Capture cuda graph failed: CUDA out of memory...`.
pub fn sglang_graphs(site: &Site) -> Parsed {
    let s = site.flat(1200);
    if !s.to_ascii_lowercase().contains("memory") {
        return None;
    }
    let mut m = Message::new(Framework::Sglang, "sglang graph capture");
    m.set_integer("rank", rank(site.before));
    m.set("kind", "graph_capture");
    m.set_amount("tried_bytes", amount_after(&s, "Tried to allocate "));
    m.set_amount("free_bytes", amount_after(&s, "of which "));
    m.set_amount("total_bytes", amount_after(&s, "total capacity of "));
    // the device's own text within this one is not a second failure
    let used = site.text.find("Tried to allocate").filter(|i| *i < 200);
    Some((m, used.unwrap_or(20)))
}

/// `model requires more system memory (44.0 GiB) than is available (7.6 GiB)`, also `gpu memory`.
pub fn ollama(site: &Site) -> Parsed {
    let s = site.flat(300);
    let mut m = Message::new(Framework::Ollama, "ollama model too large");
    let kind = match () {
        () if s.starts_with("requires more system memory") => "system_memory",
        () if s
            .to_ascii_lowercase()
            .starts_with("requires more gpu memory") =>
        {
            "gpu_memory"
        }
        () => return None,
    };
    m.set("kind", kind);
    m.set_amount("required_bytes", amount_after(&s, "memory ("));
    m.set_amount("available_bytes", amount_after(&s, "available ("));
    Some((m, 20))
}

/// `memory layout cannot be allocated[ with num_gpu = 48]`.
pub fn ollama_layout(site: &Site) -> Parsed {
    let s = site.flat(120);
    let mut m = Message::new(Framework::Ollama, "ollama layout");
    m.set("kind", "layout");
    m.set_integer(
        "num_gpu",
        after(&s, "num_gpu = ").and_then(integer).map(|n| n.0),
    );
    Some((m, 20))
}
