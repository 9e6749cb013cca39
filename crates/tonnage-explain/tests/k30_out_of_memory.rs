//! K30: out-of-memory texts: sizes, cause class, ordered changes with bytes; logs of any size.

use serde_json::Value;
use tonnage_explain::oom::{Cause, Diagnosis, Framework, Message, Scanner, parse};

fn records() -> Vec<Value> {
    include_str!("../../../groundtruth/oom-messages-dev.jsonl")
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

fn cause(text: &str) -> Cause {
    Diagnosis::of(&parse(text).unwrap(), None).cause
}

fn figure(m: &Message, key: &str) -> i64 {
    m.get(key)
        .and_then(|v| v.as_i64())
        .unwrap_or_else(|| panic!("{key} of {m:?}"))
}

#[test]
fn k30_every_field_of_every_recorded_message() {
    let all = records();
    assert_eq!(all.len(), 58);
    let mut wrong = Vec::new();
    for r in &all {
        let id = &r["id"];
        let m = parse(r["text"].as_str().unwrap());
        let Some(m) = m else {
            wrong.push(format!("{id}: not found"));
            continue;
        };
        if m.framework.name() != r["framework"].as_str().unwrap() {
            wrong.push(format!("{id}: {:?} is {}", m.framework, r["framework"]));
        }
        for (k, v) in r["expected"].as_object().unwrap() {
            if m.get(k).as_ref() != Some(v) {
                wrong.push(format!("{id} {k}: {:?}, expected {v}", m.get(k)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn k30_fragmentation_is_named_when_reserved_minus_allocated_exceeds_the_request() {
    for r in records() {
        let m = parse(r["text"].as_str().unwrap()).unwrap();
        let d = Diagnosis::of(&m, None);
        assert!(!d.changes.is_empty() && !d.why.is_empty(), "{}", r["id"]);
        let of = |k: &str| m.bytes(k);
        let idle = of("reserved_unallocated_bytes")
            .or_else(|| of("reserved_bytes")?.checked_sub(of("allocated_bytes")?));
        if let (Some(i), Some(t)) = (idle, of("tried_bytes"))
            && m.framework.is_torch()
            && of("total_bytes").is_none_or(|c| t <= c)
            && of("private_pool_bytes").is_none_or(|v| v < t)
        {
            assert_eq!(
                d.cause == Cause::Fragmentation,
                i > t,
                "{}: {:?}",
                r["id"],
                d
            );
            if i > t {
                assert!(
                    d.changes[0]
                        .setting
                        .as_deref()
                        .unwrap()
                        .contains("expandable_segments")
                );
                assert_eq!(d.changes[0].frees_bytes, Some(i));
            }
        }
    }
}

#[test]
fn k30_causes() {
    let of = |id: &str| {
        let r = records()
            .into_iter()
            .find(|r| r["id"] == format!("oom-dev-{id}"))
            .unwrap();
        cause(r["text"].as_str().unwrap())
    };
    assert_eq!(of("002"), Cause::Fragmentation);
    assert_eq!(of("014"), Cause::DriverLimit);
    assert_eq!(of("015"), Cause::TooBig); // 128 GiB at once
    assert_eq!(of("017"), Cause::TooBig);
    // 798 MiB idle for a request of 768 MiB; but 59 GiB are not this process's, and that is said too
    assert_eq!(of("022"), Cause::Fragmentation);
    let r = records().swap_remove(21);
    let d = Diagnosis::of(&parse(r["text"].as_str().unwrap()).unwrap(), None);
    assert!(d.others_bytes.unwrap() > 59 << 30);
    assert!(d.changes.iter().any(|c| c.frees_bytes == d.others_bytes));
    assert_eq!(of("025"), Cause::Graphs);
    assert_eq!(of("026"), Cause::Graphs);
    assert_eq!(of("028"), Cause::TooBig);
    assert_eq!(of("042"), Cause::PoolSetting);
    assert_eq!(of("044"), Cause::OtherProcess);
    assert_eq!(of("046"), Cause::TooBig);
    assert_eq!(of("055"), Cause::PoolSetting);
    assert_eq!(of("057"), Cause::OtherProcess);
}

#[test]
fn k30_formats_beyond_the_recorded_ones() {
    let t = |s: &str| parse(s).unwrap_or_else(|| panic!("{s}"));
    let m = t(
        "torch.OutOfMemoryError: XPU out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 11.93 GiB of which 5.62 MiB is free. Of the allocated memory 10.43 GiB is allocated by PyTorch, and 94.57 MiB is reserved by PyTorch but unallocated.",
    );
    assert_eq!(m.framework, Framework::PyTorchXpu);
    assert_eq!(figure(&m, "tried_bytes"), 20 << 20);
    assert_eq!(figure(&m, "free_bytes"), 5892997);
    let m = t(
        "torch.OutOfMemoryError: Allocation on device 0 would exceed allowed memory. (out of memory)\nCurrently allocated     : 22.43 GiB\nRequested               : 4.07 GiB\nDevice limit            : 16.00 GiB\nFree (according to CUDA): 0 bytes\nPyTorch limit (set by user-supplied memory fraction)\n                        : 17179869184.00 GiB",
    );
    assert_eq!(figure(&m, "allocated_bytes"), 24084029112);
    assert_eq!(figure(&m, "total_bytes"), 16 << 30);
    assert_eq!(figure(&m, "free_bytes"), 0);
    assert!(m.get("allowed_bytes").is_none());
    let m = t(
        "(VllmWorker rank=1 pid=133288) ERROR 03-19 07:27:53 [multiproc_executor.py:375] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.74 GiB. GPU 1 has a total capacity of 23.57 GiB of which 605.88 MiB is free. Process 133288 has 22.97 GiB memory in use.",
    );
    assert_eq!((figure(&m, "rank"), figure(&m, "gpu_index")), (1, 1));
    let m = t(
        "ValueError: Free memory on device cuda:3 (84.11/287.98 GiB) on startup is less than desired GPU memory utilization (0.95, 273.59 GiB). Decrease",
    );
    assert_eq!(figure(&m, "gpu_index"), 3);
    assert_eq!(figure(&m, "free_bytes"), 90312424817);
    let m = t(
        "ValueError: To serve at least one request with the models's max seq len (32768), (2.00 GB KV cache is needed, which is larger than the available KV cache memory (0.78 GB). Try increasing",
    );
    assert_eq!(figure(&m, "kv_needed_bytes"), 2 << 30);
    let m = t(
        "ValueError: To serve at least one request with the model's max seq len (131072), 9.5 GiB KV cache is needed, which is larger than the available KV cache memory\n(6.91 GiB). Based on the available memory, the estimated maximum model length is 91520.",
    );
    assert_eq!(
        (
            figure(&m, "kv_available_bytes"),
            figure(&m, "estimated_max_len")
        ),
        (7419556004, 91520)
    );
    let m = t(
        "RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy requests. Please try lowering",
    );
    assert_eq!(
        (m.framework, figure(&m, "max_num_seqs")),
        (Framework::Vllm, 1024)
    );
    let m = t(
        "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static. Current value: mem_fraction_static=0.85",
    );
    assert_eq!(m.get("mem_fraction_static"), Some(0.85.into()));
    let m = t(
        "Prefill out of memory. Try to lower your batch size.\nTry to allocate 4096 tokens.\nAvailable full tokens: 3136 (full_available_size=3136 + full_evictable_size_=0)",
    );
    assert_eq!(
        (figure(&m, "tried_tokens"), figure(&m, "available_tokens")),
        (4096, 3136)
    );
    let m = t(
        "RuntimeError: Not enough memory to handle 4096 prefill tokens. You need to decrease `--max-batch-prefill-tokens`",
    );
    assert_eq!(figure(&m, "prefill_tokens"), 4096);
    assert!(m.get("total_tokens").is_none());
    let m = t("Error: model requires more system memory (44.0 GiB) than is available (7.6 GiB)");
    assert_eq!(
        (m.framework, figure(&m, "required_bytes")),
        (Framework::Ollama, 44 << 30)
    );
    let m = t(
        "ggml_vulkan: Device memory allocation of size 1879048192 failed.\nggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory\nllama_kv_cache_init: failed to allocate buffer for kv cache",
    );
    assert_eq!(figure(&m, "tried_bytes"), 1879048192);
    assert_eq!(m.get("stage"), Some("kv_cache".into()));
    let m = t("ggml_metal_buffer_init: error: failed to allocate buffer, size =  9093.12 MiB");
    assert_eq!(figure(&m, "tried_bytes"), 9534827397);
    let m = t(
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 1825.82 MiB on device 0: cudaMalloc failed: out of memory\nggml_gallocr_reserve_n_impl: failed to allocate CUDA0 buffer of size 1914513024",
    );
    assert_eq!(
        (figure(&m, "tried_bytes"), m.get("stage")),
        (1914513024, Some("compute".into()))
    );
    let m = t(
        "BFCArena::AllocateRawInternal Available memory of 34699008 is smaller than requested bytes of 945041920",
    );
    assert_eq!(
        (figure(&m, "available_bytes"), figure(&m, "tried_bytes")),
        (34699008, 945041920)
    );
    let m = t(
        "XlaRuntimeError: RESOURCE_EXHAUSTED: Error loading program 'jit_step': Attempting to reserve 29.49G at the bottom of memory. That was not possible. There are 147.64M free, 0B reserved, and 147.64M reservable.",
    );
    assert_eq!(
        (m.framework, figure(&m, "free_bytes")),
        (Framework::XlaTpu, 154811761)
    );
    let m = t(
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space vmem. Used 44.05M of 32.00M vmem. Exceeded vmem capacity by 12.05M.",
    );
    assert_eq!(figure(&m, "exceeded_bytes"), 12635341);
    let m = t(
        "2023 W external/xla/xla/tsl/framework/bfc_allocator.cc:501] Allocator (GPU_0_bfc) ran out of memory trying to allocate 3.00GiB (rounded to 3221225472)requested by op",
    );
    assert_eq!(
        (m.framework, figure(&m, "rounded_bytes"), m.fatal),
        (Framework::Jax, 3221225472, true)
    );
    let m = t(
        "RuntimeError: [enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 68719476736 bytes. Error code 12 (Cannot allocate memory)",
    );
    assert_eq!(figure(&m, "tried_bytes"), 64 << 30);
    let m = t(
        "[123.4] Out of memory: Killed process 4242 (python3) total-vm:90000000kB, anon-rss:62914560kB, file-rss:0kB",
    );
    assert_eq!(
        (figure(&m, "pid"), figure(&m, "process_bytes")),
        (4242, 60 << 30)
    );
    let m = t(
        "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    );
    assert_eq!(m.get("call"), Some("cublasCreate(handle)".into()));
    assert!(parse("RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasSgemm(...)`").is_none());
    let m = t(
        "torch.distributed.DistBackendError: NCCL error\nncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'",
    );
    assert_eq!(m.framework, Framework::Nccl);
    assert_eq!(
        t("torch.OutOfMemoryError: CUDA out of memory.").framework,
        Framework::PyTorch
    );
    assert!(t("RuntimeError: MPS backend out of memory (MPS allocated: 26.50 GB, max allowed: 81.60 GB). Tried to allocate 10.00 KB on shared pool.").get("other_bytes").is_none());
}

#[test]
fn k30_a_log_of_any_size_is_streamed_and_has_all_its_errors() {
    let texts: Vec<String> = records()
        .iter()
        .map(|r| r["text"].as_str().unwrap().to_string())
        .collect();
    // pieces that cut lines, characters and messages anywhere
    for piece in [1usize, 7, 4096, 1 << 20] {
        let mut s = Scanner::default();
        let mut sent = 0u64;
        let mut log: Vec<u8> = Vec::new();
        let mut push = |s: &mut Scanner, t: &str, last: bool| {
            log.extend_from_slice(t.as_bytes());
            if log.len() > (1 << 20) || last {
                for p in log.chunks(piece) {
                    s.feed(p);
                }
                sent += log.len() as u64;
                log.clear();
            }
        };
        let filler =
            "INFO epoch 3 step 120 loss 2.31 ünïcode ▁▂▃ lr 3e-4 throughput 1200 tokens/s\n"
                .repeat(if piece < 100 { 30 } else { 600 });
        for t in &texts {
            push(&mut s, &filler, false);
            push(&mut s, t, false);
            push(&mut s, "\n\n", false);
        }
        push(&mut s, &filler, true);
        let found = s.finish();
        assert_eq!(found.bytes, sent);
        // each text's first failure is there, in order
        let mut at = 0;
        for t in &texts {
            let m = parse(t).unwrap();
            let i = found.errors[at..].iter().position(|e| {
                e.message.framework == m.framework
                    && m.bytes("tried_bytes") == e.message.bytes("tried_bytes")
            });
            // a text that is the same as an earlier one is counted there
            if let Some(i) = i {
                at += i;
            } else {
                assert!(
                    found
                        .errors
                        .iter()
                        .any(|e| e.message.figures == m.figures && e.times > 1),
                    "{t}"
                );
            }
        }
        assert!(found.errors.len() >= 55, "{}", found.errors.len());
        assert!(found.errors.windows(2).all(|w| w[0].line <= w[1].line));
    }
}

#[test]
fn k30_a_leak_is_named_by_the_logs_own_figures() {
    let mut log = String::new();
    for step in 0..300u64 {
        log += &format!(
            "step: {step}  loss: 2.1  memory: {:.2}GiB\n",
            10.0 + step as f64 * 0.04 + (step * 37 % 11) as f64 * 0.01
        );
    }
    log += "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 192.00 MiB. GPU 0 has a total capacity of 23.57 GiB of which 46.50 MiB is free. Including non-PyTorch memory, this process has 23.51 GiB memory in use. Of the allocated memory 22.91 GiB is allocated by PyTorch, and 48.28 MiB is reserved by PyTorch but unallocated.\n";
    let mut s = Scanner::default();
    s.feed(log.as_bytes());
    let found = s.finish();
    let e = &found.errors[0];
    assert_eq!(e.line, 301);
    let d = Diagnosis::of(&e.message, e.leak.as_ref());
    assert_eq!(d.cause, Cause::Leak, "{d:?}");
    assert!((e.leak.as_ref().unwrap().slope / (0.04 * 1073741824.0) - 1.0).abs() < 0.1);
}

#[test]
fn k30_logs_of_powershell_and_coloured_logs() {
    let text = "\u{1b}[1;36m(EngineCore_DP0 pid=1)\u{1b}[0;0m CUDA out of memory. Tried to allocate 1.00 GiB.\r\nGPU 0 has a total capacity of 8.00 GiB of which 0 bytes is free.\r\n";
    let wide: Vec<u8> = [0xff, 0xfe]
        .into_iter()
        .chain(text.encode_utf16().flat_map(u16::to_le_bytes))
        .collect();
    for bytes in [text.as_bytes(), &wide] {
        let mut s = Scanner::default();
        for p in bytes.chunks(3) {
            s.feed(p);
        }
        let f = s.finish();
        assert_eq!(f.errors.len(), 1);
        assert_eq!(figure(&f.errors[0].message, "total_bytes"), 8 << 30);
    }
}
