//! `fit` over the catalog's cards and 40 settings of a job: the time of one answer, on one thread and on two.

#![allow(missing_docs)]

use mimalloc::MiMalloc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use tonnage_catalog::Gpus;
use tonnage_core::Job;
use tonnage_plan::cards::{Class, Here, classes, grid};

// as the program
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Milliseconds that this process has run on processors; elsewhere than on Unix the clock's.
fn processor() -> f64 {
    #[cfg(unix)]
    {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        t.tv_sec as f64 * 1e3 + t.tv_nsec as f64 / 1e6
    }
    #[cfg(not(unix))]
    {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_secs_f64() * 1e3
    }
}

fn settings(job: &[(&str, &str)]) -> Vec<Job> {
    let mut out = vec![];
    for batch in ["1", "2", "4", "8", "16"] {
        for seq in ["256", "512", "768", "1024"] {
            for checkpointing in ["none", "full"] {
                let mut j = Job::new("bench", "flags");
                for (k, v) in job.iter().chain(&[
                    ("train.micro_batch_size", batch),
                    ("train.seq_len", seq),
                    ("train.activation_checkpointing", checkpointing),
                ]) {
                    j.set_text(k, v).unwrap_or_else(|e| panic!("{k}={v}: {e}"));
                }
                out.push(j);
            }
        }
    }
    out
}

fn answer(jobs: &[Job], all: &[Class], threads: usize) -> usize {
    let (next, simulated) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        let mut own = 0;
        while let Some(j) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            assert!(grid::outcomes(j, all, &mut own).is_ok());
        }
        simulated.fetch_add(own, Ordering::Relaxed);
    };
    std::thread::scope(|s| {
        for _ in 1..threads {
            s.spawn(work);
        }
        work();
    });
    simulated.into_inner()
}

fn main() {
    let (all, none) = classes(Gpus::builtin().iter(), Here::default());
    let cards: usize = all.iter().map(|c| c.cards.len()).sum();
    println!(
        "{} cards: {cards} in {} classes of kernels, {} without figures",
        cards + none.len(),
        all.len(),
        none.len()
    );
    for (name, job) in [
        (
            "GPT-2, bf16 autocast",
            &[("model", "gpt2"), ("train.precision", "bf16-mixed")][..],
        ),
        (
            "Llama-3.2-1B, bf16",
            &[
                ("model", "meta-llama/Llama-3.2-1B"),
                ("train.precision", "bf16"),
            ],
        ),
        (
            "Llama-2-7B, LoRA",
            &[
                ("model", "meta-llama/Llama-2-7b-hf"),
                ("model.dtype", "bf16"),
                ("train.precision", "bf16-mixed"),
                ("lora.r", "16"),
                ("lora.targets", "all-linear"),
            ],
        ),
    ] {
        let jobs = settings(job);
        for threads in [1, 2] {
            let mut times = vec![];
            let mut n = 0;
            for _ in 0..5 {
                let (at, cpu) = (Instant::now(), processor());
                n = answer(&jobs, &all, threads);
                times.push((processor() - cpu, at.elapsed().as_secs_f64() * 1e3));
            }
            times.sort_by(|a, b| a.0.total_cmp(&b.0));
            println!(
                "{name}: {} settings, {n} simulations, {threads} thread(s): {:.0} ms of processors (median), {:.0} ms (least), {:.0} ms by the clock",
                jobs.len(),
                times[2].0,
                times[0].0,
                times[2].1
            );
        }
    }
}
