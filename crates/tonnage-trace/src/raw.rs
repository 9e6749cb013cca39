//! What the recorder wrote (`crates/tonnage/python/tonnage_recorder.py`), made into a [`Trace`]: block sizes by [`Tracker`], components by
//! [`classify`].

use crate::classify::{self, Born, Frames, Tagged};
use crate::trace::{
    Event, Figures, Header, Interner, ModelFigures, Place, Refusal, Trace, TraceError,
};
use crate::track::Tracker;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use tonnage_core::footprint::Component;
use tonnage_sim::alloc::AllocatorConfig;

/// The recorder's format.
pub const FORMAT: &str = "tonnage.raw/1";

/// What the recorder says of the process.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RawHead {
    pub schema: String,
    pub reason: String,
    pub pid: u64,
    pub device: u32,
    pub argv: Vec<String>,
    pub versions: BTreeMap<String, Option<String>>,
    pub rank: u32,
    pub world: u32,
    pub local_rank: u32,
    pub name: String,
    pub total: u64,
    pub settings: String,
    pub peaks: Figures,
    pub end: Figures,
    pub retries: u64,
    pub first: u64,
    pub seconds: f64,
    pub recorder_seconds: f64,
    pub ooms: Vec<RawOom>,
    pub notes: Vec<String>,
    #[serde(flatten)]
    pub model: ModelFigures,
}

/// A refusal as the observer saw it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RawOom {
    pub asked: u64,
    pub total: u64,
    pub free: u64,
    pub allocated: u64,
    pub reserved: u64,
    pub meta: String,
    pub frames: Vec<(String, u32, String)>,
}

fn bad(line: usize, what: impl Into<String>) -> TraceError {
    TraceError::Line {
        line,
        what: what.into(),
    }
}

/// `step~micro-batch~phase~module~where~amp`.
struct Meta {
    place: Place,
    /// The user's line where the recorder knew one (backward runs on a thread without Python frames).
    line: String,
    empty_cache: bool,
    /// The thread that made the event has said nothing of itself.
    nothing: bool,
}

fn meta(text: &str) -> Meta {
    let nothing = text.is_empty();
    let mut f = text.split('~');
    let mut next = || f.next().unwrap_or_default();
    let step = next().parse().unwrap_or(-1);
    let micro_batch = next().parse().unwrap_or(0);
    let phase = next().to_string();
    let module = next().to_string();
    let line = next();
    let node = next().to_string();
    Meta {
        place: Place {
            step,
            micro_batch,
            phase: if phase.is_empty() {
                "load".into()
            } else {
                phase
            },
            module,
            node,
        },
        line: if line == "empty_cache" {
            String::new()
        } else {
            line.into()
        },
        empty_cache: line == "empty_cache",
        nothing,
    }
}

/// Reads a recording. `root` is a folder that user files are shown relative to.
///
/// # Errors
/// [`TraceError`] with the line.
pub fn parse(text: &str, root: &str) -> Result<Trace, TraceError> {
    let mut lines = text.lines().enumerate();
    let (_, first) = lines.next().ok_or(TraceError::Empty)?;
    let head: RawHead = serde_json::from_str(first).map_err(|e| bad(1, e.to_string()))?;
    if head.schema != FORMAT {
        return Err(TraceError::Version(head.schema));
    }
    let config = AllocatorConfig::parse(&head.settings).unwrap_or_default();
    let mut tracker = Tracker::new(config);
    let mut t = Trace::default();
    let (mut places, mut sites) = (Interner::new(), Interner::new());
    let mut metas: Vec<Meta> = Vec::new();
    // from which allocation on a thread without a remark is where
    let mut turns: Vec<(u64, usize)> = Vec::new();
    let mut said: Vec<Meta> = Vec::new();
    let mut turn = 0;
    let mut frames = Frames::new(root);
    let mut live: HashMap<u64, (u32, bool)> = HashMap::new();
    // which allocations were made at an address: (number among all allocations of the process, id)
    let mut by_address: HashMap<u64, Vec<(u64, u32)>> = HashMap::new();
    let mut tagged: Vec<Tagged> = Vec::new();
    let mut born: Vec<Born> = Vec::new();
    let mut count = head.first;
    let mut whole = false;
    for (i, line) in lines {
        let n = i + 1;
        let v: Vec<Value> = match serde_json::from_str(line) {
            Ok(v) => v,
            // a process that was killed while it wrote
            Err(_) if !text.ends_with('\n') => break,
            Err(e) => return Err(bad(n, e.to_string())),
        };
        let kind = v.first().and_then(Value::as_str).unwrap_or_default();
        let number = |k: usize| v.get(k).and_then(Value::as_u64).unwrap_or(0);
        let string = |k: usize| v.get(k).and_then(Value::as_str).unwrap_or_default();
        let m = number(4) as usize;
        while turns.get(turn + 1).is_some_and(|t| t.0 <= count) {
            turn += 1;
        }
        let here = match (metas.get(m), turns.get(turn)) {
            (Some(x), Some((from, k))) if x.nothing && *from <= count => said.get(*k),
            (x, _) => x,
        };
        match kind {
            "M" => metas.push(meta(string(1))),
            "W" => {
                turns.push((number(1), said.len()));
                said.push(meta(string(2)));
            }
            "F" => frames.frame(string(1), number(2) as u32, string(3)),
            "K" => {
                let ids = v.get(1).and_then(Value::as_array).cloned();
                let ids: Vec<u32> = ids
                    .unwrap_or_default()
                    .iter()
                    .filter_map(|x| x.as_u64())
                    .map(|x| x as u32)
                    .collect();
                frames.stack(&ids);
            }
            "S" => {
                tracker.segment(number(1), number(2), false);
                t.events.push(Event::SegmentAlloc { bytes: number(2) });
            }
            "P" => {
                tracker.segment(number(1), number(2), true);
                t.events.push(Event::SegmentAlloc { bytes: number(2) });
            }
            "s" | "p" => {
                tracker.unsegment(number(1), number(2));
                t.events.push(Event::SegmentFree {
                    bytes: number(2),
                    asked: metas.get(m).is_some_and(|x| x.empty_cache),
                });
            }
            "a" => {
                let meta = here.ok_or_else(|| bad(n, "an unknown mark"))?;
                let (address, requested) = (number(1), number(2));
                let id = born.len() as u32;
                count += 1;
                by_address.entry(address).or_default().push((count, id));
                let block = tracker.alloc(address, requested);
                let stack = number(5) as u32;
                let mut site = frames.site(stack);
                if site.source.is_empty() && !meta.line.is_empty() {
                    site.source = frames.shown(&meta.line);
                }
                let place = frames.place(stack, &meta.place);
                let p = places.get(place, &mut t.places);
                let s = sites.get(site, &mut t.sites);
                t.events.push(Event::Alloc {
                    id,
                    requested,
                    block,
                    place: p,
                    site: s,
                    stream: number(3),
                });
                born.push(Born {
                    place: p,
                    requested,
                    block,
                    stack,
                    ended: None,
                });
                live.insert(address, (id, false));
            }
            "q" => {
                if let Some((id, gone)) = live.get_mut(&number(1))
                    && !*gone
                {
                    *gone = true;
                    let meta = here.ok_or_else(|| bad(n, "an unknown mark"))?;
                    let place = places.get(meta.place.clone(), &mut t.places);
                    born[*id as usize].ended = Some(place);
                    t.events.push(Event::Free { id: *id, place });
                }
            }
            "c" => {
                tracker.reusable(number(1));
                if let Some((id, _)) = live.remove(&number(1)) {
                    let at_once = matches!(t.events.last(), Some(Event::Free { id: last, .. }) if *last == id);
                    if !at_once {
                        t.events.push(Event::Reusable { id });
                    }
                }
            }
            "T" => {
                let (upto, category) = (number(1), string(2).to_string());
                for x in v.get(3).and_then(Value::as_array).into_iter().flatten() {
                    let at = |k: usize| x.get(k).and_then(Value::as_u64).unwrap_or(0);
                    let found = by_address
                        .get(&at(0))
                        .and_then(|all| all.iter().rev().find(|(k, _)| *k <= upto));
                    if let Some((_, id)) = found {
                        tagged.push(Tagged {
                            id: *id,
                            category: category.clone(),
                            bytes: at(1),
                            name: x.get(2).and_then(Value::as_str).unwrap_or("").into(),
                        });
                    }
                }
            }
            "E" => whole = true,
            _ => {}
        }
    }
    if born.is_empty() && head.ooms.is_empty() {
        return Err(TraceError::Empty);
    }
    (t.components, t.names) = classify::all(&t.places, &born, &tagged, &frames);
    t.header = header(head, whole, &mut frames);
    Ok(t)
}

fn header(head: RawHead, whole: bool, frames: &mut Frames) -> Header {
    let refusals = head
        .ooms
        .iter()
        .map(|o| {
            let m = meta(&o.meta);
            let mut source = frames.user_line(&o.frames);
            if source.is_empty() && !m.line.is_empty() {
                source = frames.shown(&m.line);
            }
            Refusal {
                asked: o.asked,
                total: o.total,
                free: o.free,
                allocated: o.allocated,
                reserved: o.reserved,
                step: m.place.step,
                phase: m.place.phase,
                module: m.place.module,
                source,
            }
        })
        .collect();
    Header {
        schema: crate::trace::SCHEMA.into(),
        gpu: String::new(),
        device_name: head.name,
        total_bytes: head.total,
        command: head.argv,
        versions: head
            .versions
            .into_iter()
            .filter_map(|(k, v)| Some((k, v?)))
            .collect(),
        rank: head.rank,
        world: head.world.max(1),
        settings: head.settings,
        ended: if whole { head.reason } else { "partial".into() },
        peaks: head.peaks,
        end: head.end,
        retries: head.retries,
        model: head.model,
        refusals,
        notes: head.notes,
        seconds: head.seconds,
        recorder_seconds: head.recorder_seconds,
    }
}

/// Highest of each over the events; reserved from the segments.
pub fn figures(t: &Trace) -> Figures {
    let (mut now, mut top) = (Figures::default(), Figures::default());
    let mut sizes: HashMap<u32, (u64, u64)> = HashMap::new();
    for e in &t.events {
        match *e {
            Event::Alloc {
                id,
                requested,
                block,
                ..
            } => {
                now.allocated += block;
                now.requested += requested;
                sizes.insert(id, (block, requested));
            }
            Event::Free { id, .. } => {
                if let Some((b, r)) = sizes.remove(&id) {
                    now.allocated -= b;
                    now.requested -= r;
                }
            }
            Event::Reusable { .. } => {}
            Event::SegmentAlloc { bytes } => now.reserved += bytes,
            Event::SegmentFree { bytes, .. } => now.reserved = now.reserved.saturating_sub(bytes),
        }
        top = top.max(now);
    }
    top
}

/// A component by the recorder's word.
pub(crate) fn tag(category: &str) -> Option<Component> {
    Component::ALL
        .iter()
        .find(|c| c.name() == category)
        .copied()
}
