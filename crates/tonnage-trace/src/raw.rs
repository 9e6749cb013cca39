//! What the recorder wrote (`crates/tonnage/python/tonnage_writer.py`), made into a [`Trace`]: block sizes by [`Tracker`], components by
//! [`classify`].

use crate::classify::{self, Born, Frames, Tagged};
use crate::trace::{
    Event, Figures, Header, Interner, Missed, ModelFigures, Place, Refusal, Rest, Site, Sum, Trace,
    TraceError,
};
use crate::track::Tracker;
use serde::Deserialize;
use serde_json::Value;
use std::cmp::Ordering;
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
    pub rests: Vec<Rest>,
    pub missed: Option<Missed>,
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
    let mut r = Reader::new(config, root, head.first);
    for (i, line) in lines {
        let n = i + 1;
        if let Some((kind, x)) = event(line) {
            r.event(n, kind, x)?;
            continue;
        }
        match serde_json::from_str::<Vec<Value>>(line) {
            Ok(v) => r.line(n, &v)?,
            // a process that was killed while it wrote
            Err(_) if !text.ends_with('\n') => break,
            Err(e) => return Err(bad(n, e.to_string())),
        }
    }
    if r.born.is_empty() && head.ooms.is_empty() {
        return Err(TraceError::Empty);
    }
    let mut t = r.t;
    (t.components, t.names) = classify::all(&t.places, &r.born, &r.tagged, &r.frames);
    t.header = header(head, r.whole, &mut r.frames);
    Ok(t)
}

/// An event's line, `["a",address,bytes,stream,remark,stack]`: most of a recording.
fn event(line: &str) -> Option<(u8, [u64; 5])> {
    let inner = line.strip_prefix("[\"")?.strip_suffix(']')?;
    let (kind, rest) = inner.split_once("\",")?;
    let [kind] = kind.as_bytes() else { return None };
    let mut numbers = [0; 5];
    let mut words = rest.split(',');
    for x in &mut numbers {
        *x = words.next()?.parse().ok()?;
    }
    words.next().is_none().then_some((*kind, numbers))
}

/// A block of the allocator, as it is when the recording resumes; written as a list of its fields.
#[derive(Deserialize)]
struct Block {
    address: u64,
    bytes: u64,
    requested: u64,
    /// 1: in use; 2: its tensor is gone, another stream still uses it.
    state: u8,
    stream: u64,
}

/// A segment, likewise.
#[derive(Deserialize)]
struct Segment {
    address: u64,
    bytes: u64,
    /// Piece by piece (an expandable segment).
    grown: bool,
    /// Those that are not free.
    blocks: Vec<Block>,
}

/// Bytes asked for, bytes of the block, whether its tensor is gone.
type Kind = (u64, u64, bool);

impl Block {
    fn kind(&self) -> Kind {
        (self.requested, self.bytes, self.state == 2)
    }
}

/// What the framework asked its allocator for, and got.
struct Request {
    address: u64,
    bytes: u64,
    block: u64,
    stream: u64,
    stack: u32,
}

struct Reader {
    t: Trace,
    config: AllocatorConfig,
    tracker: Tracker,
    places: Interner<Place>,
    sites: Interner<Site>,
    metas: Vec<Meta>,
    /// From which allocation on a thread without a remark is where.
    turns: Vec<(u64, usize)>,
    said: Vec<Meta>,
    turn: usize,
    frames: Frames,
    /// By address: the allocation, and whether its tensor is gone.
    live: HashMap<u64, (u32, bool)>,
    /// Which allocations were made at an address: (number among all allocations of the process, id).
    by_address: HashMap<u64, Vec<(u64, u32)>>,
    tagged: Vec<Tagged>,
    born: Vec<Born>,
    count: u64,
    sum: Sum,
    whole: bool,
}

impl Reader {
    fn new(config: AllocatorConfig, root: &str, first: u64) -> Reader {
        Reader {
            t: Trace::default(),
            tracker: Tracker::new(config.clone()),
            config,
            places: Interner::new(),
            sites: Interner::new(),
            metas: Vec::new(),
            turns: Vec::new(),
            said: Vec::new(),
            turn: 0,
            frames: Frames::new(root),
            live: HashMap::new(),
            by_address: HashMap::new(),
            tagged: Vec::new(),
            born: Vec::new(),
            count: first,
            sum: Sum::default(),
            whole: false,
        }
    }

    /// What the recorder said of the place of an event with remark `m`.
    fn here(&mut self, n: usize, m: u64) -> Result<&Meta, TraceError> {
        while self
            .turns
            .get(self.turn + 1)
            .is_some_and(|t| t.0 <= self.count)
        {
            self.turn += 1;
        }
        let own = self.metas.get(m as usize);
        let here = match (own, self.turns.get(self.turn)) {
            (Some(x), Some((from, k))) if x.nothing && *from <= self.count => self.said.get(*k),
            _ => own,
        };
        here.ok_or_else(|| bad(n, "an unknown mark"))
    }

    fn event(&mut self, n: usize, kind: u8, x: [u64; 5]) -> Result<(), TraceError> {
        let [address, bytes, stream, m, stack] = x;
        if matches!(kind, b'S' | b'P' | b'a') {
            self.amount(n, address, bytes)?;
        }
        match kind {
            b'S' | b'P' => {
                self.tracker.segment(address, bytes, kind == b'P');
                self.t.events.push(Event::SegmentAlloc { bytes });
            }
            b's' | b'p' => {
                self.tracker.unsegment(address, bytes);
                let asked = self.metas.get(m as usize).is_some_and(|x| x.empty_cache);
                self.t.events.push(Event::SegmentFree { bytes, asked });
            }
            b'a' => {
                let meta = self.here(n, m)?;
                let (place, line) = (meta.place.clone(), meta.line.clone());
                let mut site = self.frames.site(stack as u32);
                if site.source.is_empty() && !line.is_empty() {
                    site.source = self.frames.shown(&line);
                }
                let place = self.frames.place(stack as u32, &place);
                self.count += 1;
                let block = self.tracker.alloc(address, bytes);
                let request = Request {
                    address,
                    bytes,
                    block,
                    stream,
                    stack: stack as u32,
                };
                self.begin(request, place, site);
            }
            b'q' => {
                if let Some((id, gone)) = self.live.get(&address).copied()
                    && !gone
                {
                    let place = self.here(n, m)?.place.clone();
                    self.live.insert(address, (id, true));
                    self.end(id, place);
                }
            }
            b'c' => {
                self.tracker.reusable(address);
                if let Some((id, _)) = self.live.remove(&address) {
                    let at_once = matches!(self.t.events.last(), Some(Event::Free { id: last, .. }) if *last == id);
                    if !at_once {
                        self.t.events.push(Event::Reusable { id });
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Is it a place and a size that a device can have?
    fn amount(&mut self, n: usize, address: u64, bytes: u64) -> Result<(), TraceError> {
        if address > 1 << 60 {
            return Err(bad(n, format!("no address: {address}")));
        }
        self.sum.add(bytes).map_err(|e| bad(n, e))?;
        Ok(())
    }

    fn begin(&mut self, r: Request, place: Place, site: Site) {
        let id = self.born.len() as u32;
        let all = self.by_address.entry(r.address).or_default();
        all.push((self.count, id));
        let place = self.places.get(place, &mut self.t.places);
        let site = self.sites.get(site, &mut self.t.sites);
        self.t.events.push(Event::Alloc {
            id,
            requested: r.bytes,
            block: r.block,
            place,
            site,
            stream: r.stream,
        });
        self.born.push(Born {
            place,
            requested: r.bytes,
            block: r.block,
            stack: r.stack,
            ended: None,
        });
        self.live.insert(r.address, (id, false));
    }

    fn end(&mut self, id: u32, place: Place) {
        let place = self.places.get(place, &mut self.t.places);
        self.born[id as usize].ended = Some(place);
        self.t.events.push(Event::Free { id, place });
    }

    fn line(&mut self, n: usize, v: &[Value]) -> Result<(), TraceError> {
        let number = |k: usize| v.get(k).and_then(Value::as_u64).unwrap_or(0);
        let string = |k: usize| v.get(k).and_then(Value::as_str).unwrap_or_default();
        match string(0) {
            "M" => self.metas.push(meta(string(1))),
            "W" => {
                self.turns.push((number(1), self.said.len()));
                self.said.push(meta(string(2)));
            }
            "F" => self.frames.frame(string(1), number(2) as u32, string(3)),
            "K" => {
                let ids = v.get(1).and_then(Value::as_array);
                let ids: Vec<u32> = ids
                    .into_iter()
                    .flatten()
                    .filter_map(|x| x.as_u64())
                    .map(|x| x as u32)
                    .collect();
                self.frames.stack(&ids);
            }
            "T" => {
                let found = v.get(3).and_then(Value::as_array);
                self.tags(number(1), string(2), found.map_or(&[], Vec::as_slice));
            }
            "B" => {
                let segments = v.get(3).cloned().unwrap_or_default();
                let segments: Vec<Segment> =
                    serde_json::from_value(segments).map_err(|e| bad(n, e.to_string()))?;
                let step = v.get(2).and_then(Value::as_i64);
                let step = step.and_then(|x| i32::try_from(x).ok()).unwrap_or(-1);
                for s in &segments {
                    self.amount(n, s.address, s.bytes)?;
                    for b in &s.blocks {
                        self.amount(n, b.address, b.bytes.max(b.requested))?;
                    }
                }
                self.resume(number(1), step, &segments);
            }
            "E" => self.whole = true,
            _ => {}
        }
        Ok(())
    }

    fn tags(&mut self, upto: u64, category: &str, found: &[Value]) {
        for x in found {
            let at = |k: usize| x.get(k).and_then(Value::as_u64).unwrap_or(0);
            let made = self.by_address.get(&at(0));
            let made = made.and_then(|all| all.iter().rev().find(|(k, _)| *k <= upto));
            if let Some((_, id)) = made {
                self.tagged.push(Tagged {
                    id: *id,
                    category: category.into(),
                    bytes: at(1),
                    name: x.get(2).and_then(Value::as_str).unwrap_or("").into(),
                });
            }
        }
    }

    /// Steps that repeated were left out, and the recording resumes before allocation `count` + 1. What lives where it lived is the same; what is elsewhere
    /// now is one of the same size (every step makes its tensors anew); the rest came or went in between.
    fn resume(&mut self, count: u64, step: i32, segments: &[Segment]) {
        self.count = count;
        let before = self.tracker.reserved();
        self.tracker = Tracker::new(self.config.clone());
        for s in segments {
            self.tracker.segment(s.address, s.bytes, s.grown);
        }
        let blocks: Vec<&Block> = segments.iter().flat_map(|s| &s.blocks).collect();
        let mut old = std::mem::take(&mut self.live);
        let mut came: Vec<&Block> = Vec::new();
        for b in blocks {
            self.tracker.hold(b.address, b.bytes);
            match old.get(&b.address) {
                Some((id, gone)) if self.kind(*id, *gone) == b.kind() => {
                    self.live.insert(b.address, (*id, *gone));
                    old.remove(&b.address);
                }
                _ => came.push(b),
            }
        }
        // the youngest first, so that the oldest is taken first from the end
        let mut ids: Vec<(u32, bool)> = old.into_values().collect();
        ids.sort_unstable_by_key(|x| std::cmp::Reverse(x.0));
        let mut moved: HashMap<Kind, Vec<u32>> = HashMap::new();
        for (id, gone) in ids {
            moved.entry(self.kind(id, gone)).or_default().push(id);
        }
        came.retain(|b| {
            let Some(id) = moved.get_mut(&b.kind()).and_then(Vec::pop) else {
                return true;
            };
            self.live.insert(b.address, (id, b.kind().2));
            let all = self.by_address.entry(b.address).or_default();
            all.push((count, id));
            false
        });
        let place = Place {
            step,
            phase: "between".into(),
            ..Place::default()
        };
        let mut left: Vec<(u32, bool)> = moved
            .into_iter()
            .flat_map(|(kind, ids)| ids.into_iter().map(move |id| (id, kind.2)))
            .collect();
        left.sort_unstable();
        for (id, gone) in left {
            if gone {
                self.t.events.push(Event::Reusable { id });
            } else {
                self.end(id, place.clone());
            }
        }
        match self.tracker.reserved().cmp(&before) {
            Ordering::Greater => self.t.events.push(Event::SegmentAlloc {
                bytes: self.tracker.reserved() - before,
            }),
            Ordering::Less => self.t.events.push(Event::SegmentFree {
                bytes: before - self.tracker.reserved(),
                asked: true,
            }),
            Ordering::Equal => {}
        }
        // blocks that only wait for another stream hold no tensor
        for b in came.into_iter().filter(|b| !b.kind().2) {
            let request = Request {
                address: b.address,
                bytes: b.requested,
                block: b.bytes,
                stream: b.stream,
                stack: 0,
            };
            self.begin(request, place.clone(), Site::default());
        }
    }

    /// What an allocation that moved is known again by.
    fn kind(&self, id: u32, gone: bool) -> Kind {
        let b = &self.born[id as usize];
        (b.requested, b.block, gone)
    }
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
        rests: head.rests,
        missed: head.missed,
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
