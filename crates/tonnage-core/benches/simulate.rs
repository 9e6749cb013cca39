//! The speed that DESIGN section 8 sets: nanoseconds an event, simulation and allocator together.
//!
//! Prints events and ns/event for a few jobs (first run in the process and median of warm runs), then criterion's own figures.

use criterion::{Criterion, criterion_group, criterion_main};
use mimalloc::MiMalloc;
use serde_json::json;
use std::hint::black_box;
use tonnage_core::validate::torch_run;
use tonnage_core::{Spec, simulate};

// as the program
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn spec(
    family: &str,
    args: serde_json::Value,
    precision: &str,
    batch: u64,
    seq: u64,
    lora: bool,
) -> Spec {
    let mut config = json!({"kind": "train", "model": {"family": family, "args": args}, "gpu": "a100-sxm4-80gb",
        "precision": precision, "batch": batch, "seq": seq, "optim": "adamw_foreach"});
    if lora {
        config["peft"] = json!({"r": 16, "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]});
        config["ckpt"] = json!(true);
    }
    torch_run::spec(&json!({"config": config, "versions": {}})).expect("a valid job")
}

fn jobs() -> Vec<(&'static str, Spec)> {
    let llama7 = json!({"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000});
    let llama1 = json!({"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": true});
    vec![
        ("gpt2", spec("gpt2", json!({}), "fp32", 4, 1024, false)),
        ("llama-1b", spec("llama", llama1, "bf16", 2, 1024, false)),
        (
            "llama-2-7b",
            spec("llama", llama7.clone(), "bf16", 1, 2048, false),
        ),
        (
            "llama-2-7b-lora",
            spec("llama", llama7, "bf16", 1, 2048, true),
        ),
    ]
}

fn once(s: &Spec) -> usize {
    let Ok(sim) = simulate(s) else { return 0 };
    black_box(torch_run::figures(&sim.timeline).peak_reserved);
    sim.timeline.events.len()
}

/// Nanoseconds that this thread has run (not those that it waited on a shared machine); elsewhere than on Unix the wall clock's.
fn clock() -> u64 {
    #[cfg(unix)]
    {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
    }
    #[cfg(not(unix))]
    {
        static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
        let start = START.get_or_init(std::time::Instant::now);
        start.elapsed().as_nanos() as u64
    }
}

fn report(c: &mut Criterion) {
    for (name, s) in jobs() {
        let t = clock();
        let events = once(&s);
        if events == 0 {
            println!("{name}: not supported");
            continue;
        }
        let first = clock() - t;
        let mut warm: Vec<_> = (0..100)
            .map(|_| {
                let t = clock();
                once(&s);
                clock() - t
            })
            .collect();
        warm.sort_unstable();
        let ns = |d: u64| d as f64 / events as f64;
        println!(
            "{name}: {events} events, first {:.1} ns/event, warm {:.1} (median; least {:.1}), first/warm {:.2}",
            ns(first),
            ns(warm[50]),
            ns(warm[0]),
            ns(first) / ns(warm[50])
        );
        c.bench_function(name, |b| b.iter(|| once(&s)));
    }
}

criterion_group!(benches, report);
criterion_main!(benches);
