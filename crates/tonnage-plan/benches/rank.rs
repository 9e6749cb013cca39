//! Settings ranked a second (DESIGN section 8: 10,000 on two cores), and the whole plan. Besides the clock's, the time on processors is
//! printed, of both threads together: on a shared machine only that says what the ranking costs.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use mimalloc::MiMalloc;
use tonnage_core::Job;
use tonnage_plan::plan::{Allow, Options, Silent, Workers, plan, rank};

// as the program
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Seconds that this process has run on processors; elsewhere than on Unix the clock's.
fn processor() -> f64 {
    #[cfg(unix)]
    {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        t.tv_sec as f64 + t.tv_nsec as f64 / 1e9
    }
    #[cfg(not(unix))]
    {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_secs_f64()
    }
}

struct Threads(usize);

impl Workers for Threads {
    fn each(&self, n: usize, f: &(dyn Fn(usize) + Sync)) {
        let next = AtomicUsize::new(0);
        std::thread::scope(|s| {
            for _ in 0..self.0 {
                s.spawn(|| {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        if i >= n {
                            break;
                        }
                        f(i);
                    }
                });
            }
        });
    }
}

fn job(settings: &[(&str, &str)]) -> Job {
    let mut j = Job::new("bench", "flags");
    for (k, v) in settings {
        j.set_text(k, v).expect("a setting");
    }
    j
}

fn main() {
    let lora = [
        ("model", "meta-llama/Llama-2-7b-hf"),
        ("seq-len", "2048"),
        ("batch-size", "8"),
        ("accumulation", "8"),
        ("precision", "bf16"),
        ("lora-r", "16"),
        ("lora-targets", "all-linear"),
    ];
    let full = [
        ("model", "Qwen/Qwen2.5-0.5B"),
        ("seq-len", "1024"),
        ("batch-size", "60"),
        ("precision", "bf16-mixed"),
    ];
    for (name, settings, gpu) in [
        ("7B LoRA", &lora[..], "rtx-4090"),
        ("0.5B full", &full[..], "rtx-4090"),
    ] {
        for allow in [vec![], vec![Allow::Optimizer, Allow::Offload, Allow::Batch]] {
            let o = Options {
                allow,
                ..Options::new(gpu)
            };
            for threads in [1, 2] {
                let (t, cpu) = (Instant::now(), processor());
                let (c, s) = rank(&job(settings), &o, &Threads(threads), &Silent).expect("ranked");
                let seconds = t.elapsed().as_secs_f64();
                let cpu = processor() - cpu;
                println!(
                    "{name}, {} allowed, {threads} threads: {} settings ({} not simulable) in {seconds:.2} s, {:.0} a second; {:.0} a second of one processor",
                    o.allow.len(),
                    c.len(),
                    s.unsupported,
                    c.len() as f64 / seconds,
                    c.len() as f64 / cpu
                );
            }
            if o.allow.is_empty() {
                let t = Instant::now();
                let p = plan(&job(settings), &o, &Threads(2), &Silent).expect("planned");
                println!(
                    "{name}: a plan in {:.2} s, {} simulated in full",
                    t.elapsed().as_secs_f64(),
                    p.searched.simulated
                );
            }
        }
    }
}
