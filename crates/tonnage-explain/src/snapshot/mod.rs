//! PyTorch's memory snapshots (`torch.cuda.memory._dump_snapshot`): read without running anything, in memory below their own size;
//! what was alive at the peak, by stack and category; where free memory lies; what grew between two; the same requests under other settings.
//!
//! Formats: pickle protocols 2 to 5 ([`pickle`]), the same as JSON ([`json`]), and what PyTorch's profiler writes of memory ([`profiler`]).

// a device's trace is one range of events
#[allow(clippy::single_range_in_vec_init)]
mod build;
pub mod category;
mod chunked;
pub mod diff;
pub mod history;
mod input;
pub mod json;
pub mod pickle;
pub mod profiler;
pub mod replay;
pub mod report;

pub use build::Builder;
pub use category::Category;
pub use chunked::Chunked;
pub use history::History;

use rustc_hash::FxHashMap;

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// Byte offset and what is wrong there.
    #[error("byte {0}: {1}")]
    Bad(u64, String),
    #[error(
        "byte {0}: the file asks to run code ({1}); a memory snapshot has only numbers, texts, lists and dictionaries, so this is refused"
    )]
    Code(u64, String),
    #[error("more than {0} {1}: the file is refused")]
    Limit(u64, &'static str),
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("no memory snapshot: {0}")]
    NotASnapshot(&'static str),
}

/// Bounds on what a file may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Objects (lists, dictionaries, tuples) of the file.
    pub objects: u64,
    /// Values on the reader's stack.
    pub stack: u64,
    /// Bytes of distinct texts.
    pub text: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            objects: 500_000_000,
            stack: 4_000_000,
            text: 1 << 30,
            bytes: 64 << 30,
        }
    }
}

/// A frame of a stack: numbers of texts, and the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    pub name: u32,
    pub file: u32,
    pub line: u32,
}

/// What an event of a trace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Alloc,
    FreeRequested,
    FreeCompleted,
    SegmentAlloc,
    SegmentFree,
    SegmentMap,
    SegmentUnmap,
    Snapshot,
    Oom,
    /// Anything else (annotations, events of the host).
    Other,
}

impl Action {
    /// By PyTorch's word.
    pub fn of(word: &str) -> Action {
        match word {
            "alloc" => Action::Alloc,
            "free_requested" => Action::FreeRequested,
            "free_completed" => Action::FreeCompleted,
            "segment_alloc" => Action::SegmentAlloc,
            "segment_free" => Action::SegmentFree,
            "segment_map" => Action::SegmentMap,
            "segment_unmap" => Action::SegmentUnmap,
            "snapshot" => Action::Snapshot,
            "oom" => Action::Oom,
            _ => Action::Other,
        }
    }
}

/// One event, 40 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// The address; of `oom` the device's free bytes.
    pub addr: u64,
    /// Bytes asked for (alloc, free), of the segment (segment_*), rounded (oom).
    pub size: u64,
    pub time_us: u64,
    pub stream: u64,
    /// Number of the stack.
    pub stack: u32,
    pub action: Action,
}

/// What a block's state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Allocated,
    /// Freed, but another stream still uses it.
    Pending,
    Inactive,
}

/// A block of a segment.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    pub address: u64,
    pub size: u64,
    pub requested: u64,
    pub stack: u32,
    pub state: State,
}

/// A segment with its blocks.
#[derive(Clone, Debug)]
pub struct Segment {
    pub device: u32,
    pub address: u64,
    pub total: u64,
    pub allocated: u64,
    pub active: u64,
    pub requested: u64,
    pub stream: u64,
    pub small: bool,
    pub expandable: bool,
    /// (0, 0) is the default pool; another is a private one (CUDA graphs).
    pub pool: (u64, u64),
    /// Range of [`Snapshot::blocks`].
    pub blocks: std::ops::Range<usize>,
}

/// A snapshot.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub texts: Texts,
    pub frames: Vec<Frame>,
    pub stacks: Stacks,
    pub segments: Vec<Segment>,
    pub blocks: Vec<Block>,
    pub events: Chunked<Event>,
    /// Of each device its range of events, oldest first.
    pub traces: Vec<std::ops::Range<usize>>,
    /// `allocator_settings` as texts.
    pub settings: Vec<(String, String)>,
    /// Bytes of the file.
    pub bytes: u64,
}

impl Snapshot {
    /// Devices that have a segment or an event.
    pub fn devices(&self) -> Vec<u32> {
        let traced = self.traces.iter().enumerate().filter(|t| !t.1.is_empty());
        let mut all: Vec<u32> = traced
            .map(|t| t.0 as u32)
            .chain(self.segments.iter().map(|s| s.device))
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The events of a device.
    pub fn trace(&self, device: u32) -> impl Iterator<Item = &Event> {
        let range = self.traces.get(device as usize).cloned().unwrap_or(0..0);
        self.events.range(range)
    }

    /// `file:line name` of each frame, innermost first.
    pub fn stack(&self, id: u32) -> impl Iterator<Item = (Frame, String)> {
        self.stacks.get(id).iter().map(|f| {
            let f = self.frames[*f as usize];
            (
                f,
                format!(
                    "{}:{} {}",
                    self.texts.get(f.file),
                    f.line,
                    self.texts.get(f.name)
                ),
            )
        })
    }
}

/// Distinct texts in one piece of memory.
#[derive(Debug)]
pub struct Texts {
    all: String,
    ends: Vec<u64>,
    known: FxHashMap<u64, Vec1>,
}

/// One number, rarely more (equal hashes).
#[derive(Debug, Clone)]
enum Vec1 {
    One(u32),
    #[allow(clippy::box_collection)] // a second word would make every entry larger
    More(Box<Vec<u32>>),
}

impl Default for Texts {
    fn default() -> Texts {
        let mut t = Texts {
            all: String::new(),
            ends: Vec::new(),
            known: FxHashMap::default(),
        };
        t.add("");
        t
    }
}

fn hash<T: std::hash::Hash + ?Sized>(t: &T) -> u64 {
    use std::hash::Hasher;
    let mut h = rustc_hash::FxHasher::default();
    t.hash(&mut h);
    h.finish()
}

/// The number under `key` for which `same` holds, or `next` put there.
fn intern(
    known: &mut FxHashMap<u64, Vec1>,
    key: u64,
    next: u32,
    same: impl Fn(u32) -> bool,
) -> u32 {
    match known.entry(key) {
        std::collections::hash_map::Entry::Vacant(v) => {
            v.insert(Vec1::One(next));
            next
        }
        std::collections::hash_map::Entry::Occupied(mut o) => match o.get_mut() {
            Vec1::One(a) if same(*a) => *a,
            Vec1::One(a) => {
                let first = *a;
                o.insert(Vec1::More(Box::new(vec![first, next])));
                next
            }
            Vec1::More(all) => {
                if let Some(a) = all.iter().find(|a| same(**a)) {
                    return *a;
                }
                all.push(next);
                next
            }
        },
    }
}

impl Texts {
    fn at(all: &str, ends: &[u64], id: u32) -> usize {
        let _ = all;
        if id == 0 {
            0
        } else {
            ends[id as usize - 1] as usize
        }
    }

    /// The number of a text; 0 is the empty one.
    pub fn add(&mut self, s: &str) -> u32 {
        let next = self.ends.len() as u32;
        let Texts { all, ends, known } = self;
        let id = intern(known, hash(s), next, |a| {
            &all[Texts::at(all, ends, a)..ends[a as usize] as usize] == s
        });
        if id == next {
            all.push_str(s);
            ends.push(all.len() as u64);
        }
        id
    }

    /// A text by its number.
    pub fn get(&self, id: u32) -> &str {
        &self.all[Texts::at(&self.all, &self.ends, id)..self.ends[id as usize] as usize]
    }

    /// Bytes of all.
    pub fn bytes(&self) -> u64 {
        self.all.len() as u64
    }
}

/// Distinct stacks: lists of numbers of frames, innermost first; number 0 is the empty one.
#[derive(Debug)]
pub struct Stacks {
    all: Vec<u32>,
    ends: Vec<u64>,
    known: FxHashMap<u64, Vec1>,
}

impl Default for Stacks {
    fn default() -> Stacks {
        let mut s = Stacks {
            all: Vec::new(),
            ends: Vec::new(),
            known: FxHashMap::default(),
        };
        s.add(&[]);
        s
    }
}

impl Stacks {
    /// The number of a stack.
    pub fn add(&mut self, frames: &[u32]) -> u32 {
        let next = self.ends.len() as u32;
        let Stacks { all, ends, known } = self;
        let begin = |a: u32| {
            if a == 0 {
                0
            } else {
                ends[a as usize - 1] as usize
            }
        };
        let id = intern(known, hash(frames), next, |a| {
            &all[begin(a)..ends[a as usize] as usize] == frames
        });
        if id == next {
            all.extend_from_slice(frames);
            ends.push(all.len() as u64);
        }
        id
    }

    /// The frames of a stack.
    pub fn get(&self, id: u32) -> &[u32] {
        let begin = if id == 0 {
            0
        } else {
            self.ends[id as usize - 1] as usize
        };
        &self.all[begin..self.ends[id as usize] as usize]
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Never: the empty stack is always there.
    pub fn is_empty(&self) -> bool {
        false
    }
}
