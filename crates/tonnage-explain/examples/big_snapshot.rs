//! A synthetic memory snapshot of any size, and how long and with how much memory it is read.
//!
//!     cargo run --release -p tonnage-explain --example big_snapshot -- write FILE BYTES
//!     cargo run --release -p tonnage-explain --example big_snapshot -- read FILE

use std::fs::File;
use std::io::{BufWriter, Write};
use std::time::Instant;
use tonnage_explain::snapshot::report::Report;
use tonnage_explain::snapshot::{Limits, pickle};

/// Writes what Python's pickler writes (protocol 4): texts and frames through the memo.
struct Pickler<W: Write> {
    out: W,
    bytes: u64,
    memo: u32,
    texts: std::collections::HashMap<String, u32>,
}

impl<W: Write> Pickler<W> {
    fn put(&mut self, b: &[u8]) {
        self.out.write_all(b).expect("written");
        self.bytes += b.len() as u64;
    }
    fn memoize(&mut self) -> u32 {
        self.put(&[0x94]);
        self.memo += 1;
        self.memo - 1
    }
    fn get(&mut self, i: u32) {
        if i < 256 {
            self.put(&[b'h', i as u8]);
        } else {
            self.put(b"j");
            self.put(&i.to_le_bytes());
        }
    }
    fn text(&mut self, s: &str) {
        if let Some(i) = self.texts.get(s) {
            let i = *i;
            return self.get(i);
        }
        self.put(&[0x8c, s.len() as u8]);
        self.put(s.as_bytes());
        let i = self.memoize();
        self.texts.insert(s.to_string(), i);
    }
    fn int(&mut self, n: u64) {
        match n {
            0..=255 => self.put(&[b'K', n as u8]),
            256..=65535 => self.put(&[b'M', n as u8, (n >> 8) as u8]),
            65536..=0x7fff_ffff => {
                self.put(b"J");
                self.put(&(n as u32).to_le_bytes());
            }
            _ => {
                let b = n.to_le_bytes();
                let mut len = 8 - n.leading_zeros() as usize / 8;
                // the sign's bit must stay clear
                if b[len - 1] >= 0x80 {
                    len += 1;
                }
                self.put(&[0x8a, len as u8]);
                self.put(&[&b[..], &[0]].concat()[..len]);
            }
        }
    }
}

fn write(path: &str, size: u64) {
    let mut p = Pickler {
        out: BufWriter::with_capacity(1 << 20, File::create(path).expect("created")),
        bytes: 0,
        memo: 0,
        texts: std::collections::HashMap::new(),
    };
    p.put(&[0x80, 4, b'}']);
    p.memoize();
    p.put(b"(");
    p.text("segments");
    p.put(b"]");
    p.memoize();
    p.text("device_traces");
    p.put(b"]");
    p.memoize();
    p.put(b"]");
    p.memoize();
    // frames, then stacks of them, each written where it is first used
    let mut frames: Vec<u32> = Vec::new();
    let mut stacks: Vec<u32> = Vec::new();
    let mut seed = 7u64;
    let mut random = move |n: u64| {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (seed >> 33) % n
    };
    let mut live: Vec<(u64, u64)> = Vec::new();
    let (mut time, mut top, mut i) = (1_700_000_000_000_000u64, 0x7f00_0000_0000u64, 0u64);
    while p.bytes < size {
        p.put(b"(");
        for _ in 0..1000 {
            let free = live.len() > 4000 || (i % 3 == 2 && !live.is_empty());
            let (addr, bytes) = if free {
                let k = random(live.len() as u64) as usize;
                live.swap_remove(k)
            } else {
                let bytes = 512 * (1 + random(8192));
                top += 8 << 20;
                (top, bytes)
            };
            for action in if free {
                &["free_requested", "free_completed"][..]
            } else {
                &["segment_alloc", "alloc"][..]
            } {
                p.put(b"}");
                p.memoize();
                p.put(b"(");
                p.text("action");
                p.text(action);
                p.text("addr");
                p.int(addr);
                p.text("size");
                p.int(if *action == "segment_alloc" {
                    8 << 20
                } else {
                    bytes
                });
                p.text("stream");
                p.int(0);
                p.text("time_us");
                time += 3;
                p.int(time);
                p.text("compile_context");
                p.text("N/A");
                p.text("user_metadata");
                p.text("");
                p.text("frames");
                // a new stack for one event in forty, of thirty frames
                if i % 40 == 0 || stacks.is_empty() {
                    p.put(b"]");
                    let me = p.memoize();
                    p.put(b"(");
                    for _ in 0..30 {
                        if frames.len() < 3000 {
                            p.put(b"}");
                            frames.push(p.memo);
                            p.memoize();
                            p.put(b"(");
                            p.text("name");
                            p.text(["forward", "backward", "_call_impl", "step"][frames.len() % 4]);
                            p.text("filename");
                            p.text(&format!(
                                "site-packages/torch/nn/modules/file{}.py",
                                frames.len() % 200
                            ));
                            p.text("line");
                            p.int(frames.len() as u64);
                            p.put(b"u");
                        } else {
                            let f = frames[random(3000) as usize];
                            p.get(f);
                        }
                    }
                    p.put(b"e");
                    stacks.push(me);
                } else {
                    let s = stacks[random(stacks.len() as u64) as usize];
                    p.get(s);
                }
                p.put(b"u");
                i += 1;
            }
            if !free {
                live.push((addr, bytes));
            }
        }
        p.put(b"e");
    }
    p.put(b"au.");
    p.out.flush().expect("written");
    println!("{} bytes, {i} events, {} stacks", p.bytes, stacks.len());
}

fn peak_rss() -> u64 {
    let s = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = s
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:"))
        .unwrap_or("0");
    line.trim()
        .trim_end_matches(" kB")
        .trim()
        .parse::<u64>()
        .unwrap_or(0)
        * 1024
}

fn main() {
    let a: Vec<String> = std::env::args().collect();
    match (a.get(1).map(String::as_str), a.get(2), a.get(3)) {
        (Some("write"), Some(file), Some(size)) => write(file, size.parse().expect("a number")),
        (Some("read"), Some(file), None) => {
            let start = Instant::now();
            let s =
                pickle::read(File::open(file).expect("opened"), Limits::default()).expect("read");
            let read = start.elapsed();
            let memory = peak_rss();
            let r = Report::of(file, &s, 20);
            let d = &r.devices[0];
            println!(
                "read {:.2} s, {:.2} of the file's size; with the report {:.2} s, {:.2}; {} events, peak {} bytes",
                read.as_secs_f64(),
                memory as f64 / s.bytes as f64,
                start.elapsed().as_secs_f64(),
                peak_rss() as f64 / s.bytes as f64,
                d.events,
                d.peak.allocated_bytes
            );
        }
        _ => eprintln!("write FILE BYTES | read FILE"),
    }
}
