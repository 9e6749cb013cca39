//! Writes a memory snapshot of any size, in the form of `torch.cuda.memory._dump_snapshot`: `synthetic_snapshot MIB > big.pickle`.
//!
//! Every event has its own list of frames, whose members are shared by memo, as PyTorch's symbolizer leaves them; 600 megabytes of it are
//! about 2 million events. The events are those of an allocator: what they leave is what the segments list.

use std::io::{BufWriter, Write};

const SLOTS: u64 = 4096;
const SLOT: u64 = 2 << 20;
const SEGMENT_SLOTS: u64 = 16;
const BASE: u64 = 0x7f00_0000_0000;
/// Distinct frames, call paths, and frames a path.
const FRAMES: u64 = 3000;
const PATHS: u64 = 5000;
const DEPTH: u64 = 40;

/// Opcodes of the pickle protocol, and what has been memoized.
struct Pickle<W: Write> {
    to: W,
    written: u64,
    memo: u32,
    words: std::collections::HashMap<String, u32>,
    frames: Vec<Option<u32>>,
}

type Done = std::io::Result<()>;

impl<W: Write> Pickle<W> {
    fn raw(&mut self, b: &[u8]) -> Done {
        self.written += b.len() as u64;
        self.to.write_all(b)
    }
    fn memoize(&mut self) -> std::io::Result<u32> {
        self.raw(&[0x94])?;
        self.memo += 1;
        Ok(self.memo - 1)
    }
    fn get(&mut self, id: u32) -> Done {
        match u8::try_from(id) {
            Ok(b) => self.raw(&[b'h', b]),
            Err(_) => {
                self.raw(b"j")?;
                self.raw(&id.to_le_bytes())
            }
        }
    }
    fn word(&mut self, w: &str) -> Done {
        if let Some(&id) = self.words.get(w) {
            return self.get(id);
        }
        self.raw(&[0x8c, w.len() as u8])?;
        self.raw(w.as_bytes())?;
        let id = self.memoize()?;
        self.words.insert(w.into(), id);
        Ok(())
    }
    fn number(&mut self, n: u64) -> Done {
        match n {
            0..256 => self.raw(&[b'K', n as u8]),
            256..65536 => {
                self.raw(b"M")?;
                self.raw(&(n as u16).to_le_bytes())
            }
            65536..0x8000_0000 => {
                self.raw(b"J")?;
                self.raw(&(n as u32).to_le_bytes())
            }
            _ => {
                self.raw(&[0x8a, 8])?;
                self.raw(&n.to_le_bytes())
            }
        }
    }
    fn field(&mut self, k: &str, n: u64) -> Done {
        self.word(k)?;
        self.number(n)
    }
    fn open(&mut self, kind: u8) -> Done {
        self.raw(&[kind])?;
        self.memoize()?;
        self.raw(b"(")
    }
    fn frame(&mut self, i: u64) -> Done {
        if let Some(id) = self.frames[i as usize] {
            return self.get(id);
        }
        self.raw(b"}")?;
        let id = self.memoize()?;
        self.frames[i as usize] = Some(id);
        self.raw(b"(")?;
        self.word("name")?;
        self.word(&format!("function_{i}"))?;
        self.word("filename")?;
        self.word(&format!("/opt/site-packages/library/module_{}.py", i / 20))?;
        self.field("line", 10 + i % 20 * 30)?;
        self.raw(b"u")
    }
    fn stack(&mut self, path: u64) -> Done {
        self.word("frames")?;
        self.open(b']')?;
        for d in 0..DEPTH {
            // paths part towards their inner ends
            let own = path >> (d / 4).min(12);
            self.frame((own * 31 + d) % FRAMES)?;
        }
        self.raw(b"e")
    }
    fn event(&mut self, action: &str, addr: u64, size: u64, at: u64, path: u64) -> Done {
        self.open(b'}')?;
        self.word("action")?;
        self.word(action)?;
        self.field("addr", addr)?;
        self.field("size", size)?;
        self.field("stream", 0)?;
        self.field("time_us", 1_700_000_000_000_000 + at)?;
        self.word("compile_context")?;
        self.word("N/A")?;
        self.word("user_metadata")?;
        self.word("")?;
        self.stack(path)?;
        self.raw(b"u")
    }
}

fn main() -> std::io::Result<()> {
    let mib: u64 = std::env::args()
        .nth(1)
        .and_then(|a| a.parse().ok())
        .unwrap_or(1024);
    let mut p = Pickle {
        to: BufWriter::with_capacity(1 << 20, std::io::stdout().lock()),
        written: 0,
        memo: 0,
        words: std::collections::HashMap::new(),
        frames: vec![None; FRAMES as usize],
    };
    p.raw(&[0x80, 4])?;
    p.open(b'}')?;
    p.word("device_traces")?;
    p.open(b']')?;
    p.open(b']')?;
    let mut at = 0;
    for s in 0..SLOTS / SEGMENT_SLOTS {
        let size = SLOT * SEGMENT_SLOTS;
        p.event("segment_alloc", BASE + s * size, size, at, s)?;
        at += 1;
    }
    let mut live: Vec<Option<(u64, u64)>> = vec![None; SLOTS as usize];
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    while p.written < mib << 20 {
        for _ in 0..1000 {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            let (mut slot, path) = (x % SLOTS, (x >> 20 & 0xffff) % PATHS);
            if live[slot as usize].is_none() {
                // a free block is handed out from its beginning
                while slot % SEGMENT_SLOTS > 0 && live[slot as usize - 1].is_none() {
                    slot -= 1;
                }
            }
            let addr = BASE + slot * SLOT;
            match live[slot as usize].take() {
                Some((size, _)) => {
                    p.event("free_requested", addr, size, at, path)?;
                    p.event("free_completed", addr, size, at + 1, path)?;
                }
                None => {
                    // rounded to 512 bytes, it fills its slot
                    let size = SLOT - (x >> 40) % 500;
                    p.event("alloc", addr, size, at, path)?;
                    live[slot as usize] = Some((size, path));
                }
            }
            at += 2;
        }
        p.raw(b"e(")?;
    }
    p.raw(b"ee")?;
    p.word("segments")?;
    p.open(b']')?;
    for s in 0..SLOTS / SEGMENT_SLOTS {
        let total = SLOT * SEGMENT_SLOTS;
        let slots = s * SEGMENT_SLOTS..(s + 1) * SEGMENT_SLOTS;
        let of = |k: u64| live[k as usize];
        let used = slots.clone().filter(|&k| of(k).is_some()).count() as u64 * SLOT;
        let asked: u64 = slots.clone().filter_map(|k| of(k).map(|b| b.0)).sum();
        p.open(b'}')?;
        p.field("device", 0)?;
        p.field("address", BASE + s * total)?;
        p.field("total_size", total)?;
        p.field("allocated_size", used)?;
        p.field("active_size", used)?;
        p.field("requested_size", asked)?;
        p.field("stream", 0)?;
        p.word("segment_type")?;
        p.word("large")?;
        p.word("blocks")?;
        p.open(b']')?;
        let mut k = slots.start;
        while k < slots.end {
            // free slots beside each other are one block
            let mut n = 1;
            if of(k).is_none() {
                while k + n < slots.end && of(k + n).is_none() {
                    n += 1;
                }
            }
            p.open(b'}')?;
            p.field("address", BASE + k * SLOT)?;
            p.field("size", n * SLOT)?;
            p.field("requested_size", of(k).map_or(0, |b| b.0))?;
            p.word("state")?;
            p.word(if of(k).is_some() {
                "active_allocated"
            } else {
                "inactive"
            })?;
            if let Some((_, path)) = of(k) {
                p.stack(path)?;
            } else {
                p.word("frames")?;
                p.raw(b"]")?;
            }
            p.raw(b"u")?;
            k += n;
        }
        p.raw(b"eu")?;
    }
    p.raw(b"eu.")?;
    p.to.flush()
}
