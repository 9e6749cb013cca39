//! Whole-command time of `tonnage estimate` on a 7B LoRA job against an empty Rust program: `cargo bench -p tonnage --bench startup`.
//!
//! The programs take turns, so that a busy machine slows them alike. "No layers" is the same job with one layer: what is left is
//! start, reading, tables and printing. `TONNAGE_GGUF=FILE` adds a llama.cpp estimate of that file with 8192 tokens of context.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 60;

fn job(layers: u32) -> String {
    format!(
        "name = \"lora-7b\"\ngpu = \"a100-sxm4-80gb\"\n[model]\nid = \"meta-llama/Llama-2-7b-hf\"\nconfig = {{ num_hidden_layers = {layers} }}\n\
         [train]\nmicro_batch_size = 1\nseq_len = 2048\nprecision = \"bf16\"\noptimizer = \"adamw_foreach\"\nactivation_checkpointing = \"full\"\n\
         [lora]\nr = 16\nalpha = 32\ntargets = [\"q_proj\", \"k_proj\", \"v_proj\", \"o_proj\"]\n"
    )
}

/// An optimised program that does nothing.
fn empty(dir: &Path) -> PathBuf {
    let (source, program) = (dir.join("empty.rs"), dir.join("empty"));
    std::fs::write(&source, "fn main() {}\n").expect("a writable target folder");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let done = Command::new(rustc)
        .args(["--edition", "2024", "-O", "-o"])
        .arg(&program)
        .arg(&source)
        .status()
        .expect("rustc");
    assert!(done.success());
    program
}

fn time(command: &mut Command) -> Duration {
    let t = Instant::now();
    let status = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("the program runs");
    let t = t.elapsed();
    assert!(status.success(), "{command:?}: {status}");
    t
}

fn main() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let tonnage = env!("CARGO_BIN_EXE_tonnage");
    let file = |name: &str, layers| {
        let path = dir.join(name);
        std::fs::write(&path, job(layers)).expect("a writable target folder");
        path
    };
    let (whole, small) = (file("lora-7b.toml", 32), file("lora-7b-1.toml", 1));
    let estimate = |job: &Path| {
        let mut c = Command::new(tonnage);
        c.arg("estimate").arg(job);
        c
    };
    let mut version = Command::new(tonnage);
    version.arg("--version");
    let mut commands = vec![
        ("empty program", Command::new(empty(dir))),
        ("tonnage --version", version),
        ("estimate, 7B LoRA, one layer", estimate(&small)),
        ("estimate, 7B LoRA", estimate(&whole)),
    ];
    if let Some(file) = std::env::var_os("TONNAGE_GGUF") {
        let mut c = estimate(Path::new(&file));
        c.args(["--context-len", "8192"]);
        commands.push(("estimate, a GGUF file", c));
    }
    let mut times = vec![Vec::with_capacity(ROUNDS); commands.len()];
    for _ in 0..ROUNDS {
        for (t, (_, c)) in times.iter_mut().zip(&mut commands) {
            t.push(time(c));
        }
    }
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    times.iter_mut().for_each(|t| t.sort_unstable());
    let base = (times[0][0], times[0][ROUNDS / 2]);
    for (t, (name, _)) in times.iter().zip(&commands) {
        let (least, median) = (t[0], t[ROUNDS / 2]);
        println!(
            "{name:30} least {:7.2} ms ({:5.1} x empty)  median {:7.2} ms ({:5.1} x empty)",
            ms(least),
            ms(least) / ms(base.0),
            ms(median),
            ms(median) / ms(base.1)
        );
    }
}
