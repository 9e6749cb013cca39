//! The trace file: JSON lines, a header and one event a line, in order (docs/dry-run.md describes it). It is the format of the recorded
//! runs in `groundtruth/traces` with a header before it; those, without header, are read too.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use tonnage_core::footprint::Component;

/// The version of the file form.
pub const SCHEMA: &str = "tonnage.trace/1";
/// More allocations than this are no trace of ours.
const MAX_IDS: u64 = 1 << 28;

/// Bytes of a whole trace, so that no sum of them can be too large for its type.
#[derive(Default)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Adds an amount; an error's text where it cannot be one.
    pub(crate) fn add(&mut self, bytes: u64) -> Result<u64, String> {
        self.0 = self
            .0
            .checked_add(bytes)
            .filter(|s| *s <= 1 << 60)
            .ok_or_else(|| format!("{bytes} bytes: with those before more than any device has"))?;
        Ok(bytes)
    }
}

/// The three figures of the allocator, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    pub allocated: u64,
    pub reserved: u64,
    pub requested: u64,
}

impl Figures {
    /// The larger of each.
    pub fn max(self, o: Figures) -> Figures {
        Figures {
            allocated: self.allocated.max(o.allocated),
            reserved: self.reserved.max(o.reserved),
            requested: self.requested.max(o.requested),
        }
    }
}

/// A refused request, as the framework's observer was told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Refusal {
    /// Bytes asked for.
    pub asked: u64,
    pub total: u64,
    pub free: u64,
    pub allocated: u64,
    pub reserved: u64,
    /// Where it happened.
    pub step: i32,
    pub phase: String,
    pub module: String,
    /// The user's line.
    pub source: String,
}

/// The model as the recorder saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelFigures {
    /// Class names of the modules that were called.
    pub model: String,
    pub param_count: u64,
    pub trainable_count: u64,
    pub param_bytes: u64,
    pub buffer_bytes: u64,
}

/// Steps that made the same requests as those before them: their events are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rest {
    /// The first step that is left out, from 0.
    pub first: i32,
    /// How many before it make the cycle that repeats: one, or those of several optimizers.
    pub cycle: u32,
    /// How many are left out.
    pub steps: u32,
    /// How many of them did something besides, which is gone and passed no peak.
    pub other: u32,
    /// The step after them was unlike, which was known when it was over: it is left out too.
    pub broken: bool,
}

/// The allocator's peaks after a step of a [`Rest`] that passed those before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Missed {
    pub step: i32,
    pub allocated: u64,
    pub reserved: u64,
    pub requested: u64,
}

/// What the whole file is about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Header {
    pub schema: String,
    /// Catalog id of the card.
    pub gpu: String,
    pub device_name: String,
    pub total_bytes: u64,
    pub command: Vec<String>,
    pub versions: BTreeMap<String, String>,
    pub rank: u32,
    pub world: u32,
    /// The allocator's settings string.
    pub settings: String,
    /// `exit`, or `partial` where the process ended without a last word.
    pub ended: String,
    /// The framework's own peaks and levels at the end.
    pub peaks: Figures,
    pub end: Figures,
    /// Times the framework gave its whole cache back and tried again.
    pub retries: u64,
    pub model: ModelFigures,
    pub refusals: Vec<Refusal>,
    pub notes: Vec<String>,
    /// Steps that are not among the events.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rests: Vec<Rest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missed: Option<Missed>,
    /// Seconds from CUDA's first use to the end, and those that the recorder took.
    pub seconds: f64,
    pub recorder_seconds: f64,
}

/// When and where in the run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Place {
    /// -1: before the first step.
    pub step: i32,
    pub micro_batch: u32,
    pub phase: String,
    pub module: String,
    /// Autograd node, or other remarks (`amp`).
    pub node: String,
}

/// Which code.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Site {
    pub op: String,
    /// `file:line function` of the user's program.
    pub source: String,
}

/// One event. Ids count allocations from 0; `place` and `site` are indexes of [`Trace::places`] and [`Trace::sites`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Alloc {
        id: u32,
        /// Bytes asked for, and of the block that was given.
        requested: u64,
        block: u64,
        place: u32,
        site: u32,
        stream: u64,
    },
    /// The tensor is gone: allocated falls.
    Free {
        id: u32,
        place: u32,
    },
    /// Its block can be used again; written only where that is later than the free (another stream still used it).
    Reusable {
        id: u32,
    },
    SegmentAlloc {
        bytes: u64,
    },
    /// `asked`: by `empty_cache`; otherwise a full card forced it.
    SegmentFree {
        bytes: u64,
        asked: bool,
    },
}

/// A recorded run of one device in one process.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    pub header: Header,
    pub places: Vec<Place>,
    pub sites: Vec<Site>,
    pub events: Vec<Event>,
    /// What each allocation is, by id, and the name of the tensor where known.
    pub components: Vec<Component>,
    pub names: Vec<String>,
}

/// What is wrong with a file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    #[error("line {line}: {what}")]
    Line { line: usize, what: String },
    #[error("the trace says {0}; this program reads {SCHEMA}")]
    Version(String),
    #[error("the trace has no events")]
    Empty,
}

fn bad(line: usize, what: impl Into<String>) -> TraceError {
    TraceError::Line {
        line,
        what: what.into(),
    }
}

/// Gives equal values one number.
pub(crate) struct Interner<T>(HashMap<T, u32>);

impl<T: Clone + Eq + std::hash::Hash> Interner<T> {
    pub(crate) fn new() -> Self {
        Interner(HashMap::new())
    }
    pub(crate) fn get(&mut self, v: T, all: &mut Vec<T>) -> u32 {
        if let Some(i) = self.0.get(&v) {
            return *i;
        }
        let i = all.len() as u32;
        all.push(v.clone());
        self.0.insert(v, i);
        i
    }
}

/// The component of a recorded category: our own names, and those of the recorded runs in `groundtruth`.
pub fn component_of(category: &str) -> Component {
    if let Some(c) = Component::ALL.iter().find(|c| c.name() == category) {
        return *c;
    }
    match category {
        "saved_activation" => Component::SavedActivations,
        "autocast_weight_copy" => Component::AutocastCopies,
        "held_output" => Component::HeldOutputs,
        "cublas_workspace" | "cublaslt_workspace" => Component::Workspaces,
        "prefill_kept" | "decode_kept" => Component::KvCache,
        _ => Component::Temporaries,
    }
}

impl Trace {
    /// Reads a trace file's text.
    ///
    /// # Errors
    /// [`TraceError`] with the line.
    pub fn parse(text: &str) -> Result<Trace, TraceError> {
        let mut t = Trace::default();
        let (mut places, mut sites) = (Interner::new(), Interner::new());
        let mut live: HashMap<u32, bool> = HashMap::new();
        let mut sum = Sum::default();
        for (i, line) in text.lines().enumerate() {
            let n = i + 1;
            if line.trim().is_empty() {
                continue;
            }
            let v: Value = serde_json::from_str(line).map_err(|e| bad(n, e.to_string()))?;
            let Some(kind) = v.get("e").and_then(Value::as_str) else {
                let schema = v.get("schema").and_then(Value::as_str).unwrap_or("");
                if schema.is_empty() {
                    return Err(bad(n, "neither an event nor a header"));
                }
                if schema != SCHEMA {
                    return Err(TraceError::Version(schema.into()));
                }
                t.header = serde_json::from_value(v).map_err(|e| bad(n, e.to_string()))?;
                continue;
            };
            let number = |k: &str| v.get(k).and_then(Value::as_u64);
            let need = |k: &str| number(k).ok_or_else(|| bad(n, format!("{k} is missing")));
            let text = |k: &str| {
                v.get(k)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_string()
            };
            let whole = |k: &str| {
                v.get(k).and_then(|x| {
                    x.as_i64()
                        .or_else(|| x.as_str().and_then(|s| s.parse().ok()))
                })
            };
            let id = || -> Result<u32, TraceError> {
                let id = need("id")?;
                if id >= MAX_IDS {
                    return Err(bad(n, format!("id {id} is out of range")));
                }
                Ok(id as u32)
            };
            let place = Place {
                step: whole("st")
                    .and_then(|x| i32::try_from(x).ok())
                    .unwrap_or(-1),
                micro_batch: whole("mb").and_then(|x| u32::try_from(x).ok()).unwrap_or(0),
                phase: text("ph"),
                module: text("mod"),
                node: text("nd"),
            };
            match kind {
                "a" => {
                    let id = id()?;
                    if id as usize != t.components.len() {
                        return Err(bad(n, format!("allocation {id} out of order")));
                    }
                    let mut amount = |x| sum.add(x).map_err(|e| bad(n, e));
                    let requested = amount(need("req")?)?;
                    let block = amount(number("blk").unwrap_or(requested))?;
                    let site = Site {
                        op: text("op"),
                        source: text("src"),
                    };
                    t.events.push(Event::Alloc {
                        id,
                        requested,
                        block,
                        place: places.get(place, &mut t.places),
                        site: sites.get(site, &mut t.sites),
                        stream: number("stream").unwrap_or(0),
                    });
                    t.components.push(component_of(&text("cat")));
                    t.names.push(text("name"));
                    live.insert(id, true);
                }
                "f" => {
                    let id = id()?;
                    if live.insert(id, false) != Some(true) {
                        return Err(bad(n, format!("{id} is freed and not allocated")));
                    }
                    t.events.push(Event::Free {
                        id,
                        place: places.get(place, &mut t.places),
                    });
                }
                "reusable" => t.events.push(Event::Reusable { id: id()? }),
                "segment_alloc" => t.events.push(Event::SegmentAlloc {
                    bytes: sum.add(need("bytes")?).map_err(|e| bad(n, e))?,
                }),
                "segment_released" | "segment_freed" => t.events.push(Event::SegmentFree {
                    bytes: need("bytes")?,
                    asked: kind == "segment_released",
                }),
                other => return Err(bad(n, format!("unknown event {other:?}"))),
            }
        }
        if t.events.is_empty() {
            return Err(TraceError::Empty);
        }
        Ok(t)
    }

    /// The file's text.
    pub fn write(&self) -> String {
        let mut out = String::with_capacity(self.events.len() * 120);
        let header = Header {
            schema: SCHEMA.into(),
            ..self.header.clone()
        };
        let _ = writeln!(out, "{}", json!(header));
        for e in &self.events {
            let v = match *e {
                Event::Alloc {
                    id,
                    requested,
                    block,
                    place,
                    site,
                    stream,
                } => {
                    let p = &self.places[place as usize];
                    let s = &self.sites[site as usize];
                    let mut v = json!({"e": "a", "id": id, "req": requested, "blk": block, "st": p.step, "mb": p.micro_batch, "ph": p.phase,
                        "op": s.op, "mod": p.module, "nd": p.node, "cat": self.components[id as usize].name()});
                    let name = &self.names[id as usize];
                    if !name.is_empty() {
                        v["name"] = json!(name);
                    }
                    if !s.source.is_empty() {
                        v["src"] = json!(s.source);
                    }
                    if stream != 0 {
                        v["stream"] = json!(stream);
                    }
                    v
                }
                Event::Free { id, place } => {
                    let p = &self.places[place as usize];
                    json!({"e": "f", "id": id, "st": p.step, "mb": p.micro_batch, "ph": p.phase, "mod": p.module})
                }
                Event::Reusable { id } => json!({"e": "reusable", "id": id}),
                Event::SegmentAlloc { bytes } => json!({"e": "segment_alloc", "bytes": bytes}),
                Event::SegmentFree { bytes, asked } => {
                    json!({"e": if asked { "segment_released" } else { "segment_freed" }, "bytes": bytes})
                }
            };
            let _ = writeln!(out, "{v}");
        }
        out
    }

    /// Do the events say when segments were made? (Recorded runs without them: reserved is known only by replay.)
    pub fn has_segments(&self) -> bool {
        self.events
            .iter()
            .any(|e| matches!(e, Event::SegmentAlloc { .. }))
    }

    /// Streams that allocate.
    pub fn streams(&self) -> usize {
        let mut seen: Vec<u64> = Vec::new();
        for e in &self.events {
            if let Event::Alloc { stream, .. } = e
                && !seen.contains(stream)
            {
                seen.push(*stream);
            }
        }
        seen.len()
    }
}
