//! Dictionaries of a snapshot as they are read: each becomes what it is at once, so that no dictionary is kept.

use super::{Action, Block, Event, Frame, Segment, Snapshot, State, Vec1, hash, intern};
use rustc_hash::FxHashMap;

/// A value of a dictionary.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// Number of a text.
    Text(u32),
    /// A list, dictionary or tuple: what it became.
    Item(Item),
}

/// What a list or a dictionary became.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Item {
    /// Nothing in it yet: a list or a dictionary.
    EmptyList,
    EmptyDict,
    Frame(u32),
    Stack(u32),
    Event(u32),
    /// Consecutive events.
    Events(u32, u32),
    Block(u32),
    Blocks(u32, u32),
    Segment(u32),
    Segments(u32, u32),
    /// `real_size` and stack of an old block's history.
    Past(u32),
    Pasts(u32),
    /// Two numbers.
    Pair(u32),
    /// Traces of devices: the number of a list of ranges.
    Traces(u32),
    /// A dictionary of texts and numbers.
    Settings(u32),
    /// Anything that no snapshot needs.
    Ignored,
    /// The snapshot itself.
    Top,
}

/// Makes a snapshot of dictionaries.
#[derive(Debug, Default)]
pub struct Builder {
    pub snapshot: Snapshot,
    frames: FxHashMap<u64, Vec1>,
    pasts: Vec<(u64, u32)>,
    pairs: Vec<(u64, u64)>,
    traces: Vec<Vec<std::ops::Range<usize>>>,
    settings: Vec<Vec<(String, String)>>,
    keys: Keys,
    /// Segments are numbered as they are read; the top's list says which are of the device.
    top: bool,
}

macro_rules! keys {
    ($($name:ident = $text:literal),* $(,)?) => {
        /// What a key's text means, by the text's number.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Key { $($name),*, Unknown }

        fn key_of(text: &str) -> Key {
            match text {
                $($text => Key::$name,)*
                _ => Key::Unknown,
            }
        }
    };
}

keys! {
    Action = "action", Addr = "addr", Size = "size", Stream = "stream", TimeUs = "time_us", Frames = "frames",
    DeviceFree = "device_free", Name = "name", File = "filename", Line = "line", Address = "address",
    RequestedSize = "requested_size", State = "state", History = "history", RealSize = "real_size", Blocks = "blocks",
    Device = "device", TotalSize = "total_size", AllocatedSize = "allocated_size", ActiveSize = "active_size",
    SegmentType = "segment_type", PoolId = "segment_pool_id", Expandable = "is_expandable", Segments = "segments",
    DeviceTraces = "device_traces", Settings = "allocator_settings",
}

#[derive(Debug, Default)]
struct Keys {
    by_text: Vec<Option<Key>>,
    actions: Vec<Option<Action>>,
}

fn number(v: Value) -> u64 {
    match v {
        // addresses of some streams are negative where they were signed
        Value::Int(n) => n as u64,
        Value::Bool(b) => u64::from(b),
        Value::Float(f) if f >= 0.0 => f as u64,
        _ => 0,
    }
}

/// A size; no device has more than this, and sums of sizes must not wrap.
fn size(v: Value) -> u64 {
    number(v).min(1 << 50)
}

/// An address, such that an end of a block is one too.
fn address(v: Value) -> u64 {
    number(v).min(1 << 63)
}

impl Builder {
    #[inline]
    fn key(&mut self, text: u32) -> Key {
        match self.keys.by_text.get(text as usize) {
            Some(Some(k)) => *k,
            _ => self.new_key(text),
        }
    }

    #[cold]
    fn new_key(&mut self, text: u32) -> Key {
        let i = text as usize;
        let k = key_of(self.snapshot.texts.get(text));
        // keys are read early, so their numbers are small
        if i < 4096 {
            if self.keys.by_text.len() <= i {
                self.keys.by_text.resize(i + 1, None);
                self.keys.actions.resize(i + 1, None);
            }
            self.keys.by_text[i] = Some(k);
            self.keys.actions[i] = Some(Action::of(self.snapshot.texts.get(text)));
        }
        k
    }

    #[inline]
    fn action(&mut self, text: u32) -> Action {
        match self.keys.actions.get(text as usize) {
            Some(Some(a)) => *a,
            _ => {
                self.new_key(text);
                Action::of(self.snapshot.texts.get(text))
            }
        }
    }

    /// An event that says nothing yet.
    pub(super) const NO_EVENT: Event = Event {
        addr: 0,
        size: 0,
        time_us: 0,
        stream: 0,
        stack: 0,
        action: Action::Other,
    };

    /// Is a dictionary whose first key this is an event?
    #[inline]
    pub(super) fn begins_event(&mut self, key: u32) -> bool {
        self.key(key) == Key::Action
    }

    /// One entry of an event.
    #[inline]
    pub(super) fn event_field(&mut self, e: &mut Event, key: u32, v: Value) {
        match self.key(key) {
            Key::Action => {
                if let Value::Text(t) = v {
                    e.action = self.action(t);
                }
            }
            Key::Addr | Key::DeviceFree => e.addr = address(v),
            Key::Size => e.size = size(v),
            Key::Stream => e.stream = number(v),
            Key::TimeUs => e.time_us = number(v),
            Key::Frames => e.stack = self.stack_of(v),
            _ => {}
        }
    }

    /// The event is complete.
    pub(super) fn end_event(&mut self, e: Event) -> Item {
        let id = self.snapshot.events.len() as u32;
        self.snapshot.events.push(e);
        Item::Event(id)
    }

    #[inline]
    fn stack_of(&self, v: Value) -> u32 {
        match v {
            Value::Item(Item::Stack(s)) => s,
            _ => 0,
        }
    }

    /// A dictionary of `pairs`.
    pub fn dict(&mut self, pairs: &[(Value, Value)]) -> Item {
        // most are events; the keys that tell are among the first
        let mut kind = Key::Unknown;
        for (k, _) in pairs {
            let Value::Text(t) = k else { continue };
            let k = self.key(*t);
            match k {
                Key::Action
                | Key::File
                | Key::Blocks
                | Key::RealSize
                | Key::Segments
                | Key::DeviceTraces => {
                    kind = k;
                    break;
                }
                Key::State => kind = Key::State,
                _ => {}
            }
        }
        match kind {
            Key::Action => self.event(pairs),
            Key::File => self.frame(pairs),
            Key::State => self.block(pairs),
            Key::Blocks => self.segment(pairs),
            Key::RealSize => self.past(pairs),
            Key::Segments | Key::DeviceTraces => self.take_top(pairs),
            _ => self.other(pairs),
        }
    }

    fn event(&mut self, pairs: &[(Value, Value)]) -> Item {
        let mut e = Builder::NO_EVENT;
        for (k, v) in pairs {
            if let Value::Text(t) = k {
                self.event_field(&mut e, *t, *v);
            }
        }
        self.end_event(e)
    }

    fn frame(&mut self, pairs: &[(Value, Value)]) -> Item {
        let mut f = Frame {
            name: 0,
            file: 0,
            line: 0,
        };
        for (k, v) in pairs {
            let Value::Text(t) = k else { continue };
            match (self.key(*t), v) {
                (Key::Name, Value::Text(t)) => f.name = *t,
                (Key::File, Value::Text(t)) => f.file = *t,
                (Key::Line, v) => f.line = number(*v) as u32,
                _ => {}
            }
        }
        let next = self.snapshot.frames.len() as u32;
        let frames = &self.snapshot.frames;
        let id = intern(&mut self.frames, hash(&f), next, |a| {
            frames[a as usize] == f
        });
        if id == next {
            self.snapshot.frames.push(f);
        }
        Item::Frame(id)
    }

    fn block(&mut self, pairs: &[(Value, Value)]) -> Item {
        let mut b = Block {
            address: 0,
            size: 0,
            requested: 0,
            stack: 0,
            state: State::Inactive,
        };
        let mut asked = None;
        for (k, v) in pairs {
            let Value::Text(t) = k else { continue };
            match self.key(*t) {
                Key::Address => b.address = address(*v),
                Key::Size => b.size = size(*v),
                Key::RequestedSize => asked = Some(size(*v)),
                Key::Frames => b.stack = self.stack_of(*v),
                Key::State => {
                    if let Value::Text(t) = v {
                        b.state = match self.snapshot.texts.get(*t) {
                            "active_allocated" => State::Allocated,
                            "active_pending_free" | "active_awaiting_free" => State::Pending,
                            _ => State::Inactive,
                        };
                    }
                }
                Key::History => {
                    if let Value::Item(Item::Pasts(i)) = v {
                        let (size, stack) = self.pasts[*i as usize];
                        asked = asked.or(Some(size));
                        b.stack = stack;
                    }
                }
                _ => {}
            }
        }
        b.requested = asked.unwrap_or(b.size);
        let id = self.snapshot.blocks.len() as u32;
        self.snapshot.blocks.push(b);
        Item::Block(id)
    }

    fn past(&mut self, pairs: &[(Value, Value)]) -> Item {
        let mut p = (0, 0);
        for (k, v) in pairs {
            let Value::Text(t) = k else { continue };
            match self.key(*t) {
                Key::RealSize => p.0 = size(*v),
                Key::Frames => p.1 = self.stack_of(*v),
                _ => {}
            }
        }
        self.pasts.push(p);
        Item::Past(self.pasts.len() as u32 - 1)
    }

    fn segment(&mut self, pairs: &[(Value, Value)]) -> Item {
        let mut s = Segment {
            device: 0,
            address: 0,
            total: 0,
            allocated: 0,
            active: 0,
            requested: 0,
            stream: 0,
            small: false,
            expandable: false,
            pool: (0, 0),
            blocks: 0..0,
        };
        for (k, v) in pairs {
            let Value::Text(t) = k else { continue };
            match (self.key(*t), v) {
                (Key::Device, v) => s.device = number(*v) as u32,
                (Key::Address, v) => s.address = address(*v),
                (Key::TotalSize, v) => s.total = size(*v),
                (Key::AllocatedSize, v) => s.allocated = size(*v),
                (Key::ActiveSize, v) => s.active = size(*v),
                (Key::RequestedSize, v) => s.requested = size(*v),
                (Key::Stream, v) => s.stream = number(*v),
                (Key::Expandable, v) => s.expandable = number(*v) != 0,
                (Key::SegmentType, Value::Text(t)) => {
                    s.small = self.snapshot.texts.get(*t) == "small"
                }
                (Key::PoolId, Value::Item(Item::Pair(p))) => s.pool = self.pairs[*p as usize],
                (Key::Blocks, Value::Item(Item::Blocks(a, n))) => {
                    s.blocks = *a as usize..(*a + *n) as usize
                }
                _ => {}
            }
        }
        // older files have no addresses of blocks
        let blocks = &mut self.snapshot.blocks[s.blocks.clone()];
        if blocks.iter().all(|b| b.address == 0) {
            let mut at = s.address;
            for b in blocks {
                b.address = at;
                at = at.saturating_add(b.size);
            }
        }
        let id = self.snapshot.segments.len() as u32;
        self.snapshot.segments.push(s);
        Item::Segment(id)
    }

    fn other(&mut self, pairs: &[(Value, Value)]) -> Item {
        if pairs.len() > 64 {
            return Item::Ignored;
        }
        let texts = &self.snapshot.texts;
        let all = pairs
            .iter()
            .filter_map(|(k, v)| {
                let Value::Text(k) = k else { return None };
                let v = match v {
                    Value::Text(t) => texts.get(*t).to_string(),
                    Value::Int(n) => n.to_string(),
                    Value::Bool(b) => b.to_string(),
                    Value::Float(f) => f.to_string(),
                    Value::None => "None".into(),
                    Value::Item(_) => return None,
                };
                (v.len() < 1000).then(|| (texts.get(*k).to_string(), v))
            })
            .collect();
        // only one of them is kept: the last that a snapshot names
        if self.settings.len() >= 1024 {
            return Item::Ignored;
        }
        self.settings.push(all);
        Item::Settings(self.settings.len() as u32 - 1)
    }

    fn take_top(&mut self, pairs: &[(Value, Value)]) -> Item {
        let mut kept = None;
        for (k, v) in pairs {
            let Value::Text(t) = k else { continue };
            match (self.key(*t), v) {
                (Key::Segments, Value::Item(Item::Segments(a, n))) => {
                    kept = Some((*a as usize, *n as usize))
                }
                (Key::DeviceTraces, Value::Item(Item::Traces(i))) => {
                    self.snapshot.traces = std::mem::take(&mut self.traces[*i as usize]);
                }
                // of one device
                (Key::DeviceTraces, Value::Item(Item::Events(a, n))) => {
                    self.snapshot.traces = Vec::from([*a as usize..(*a + *n) as usize]);
                }
                (Key::Settings, Value::Item(Item::Settings(i))) => {
                    self.snapshot.settings = self.settings[*i as usize].clone();
                }
                _ => {}
            }
        }
        // segments of the host are numbered too
        let all = std::mem::take(&mut self.snapshot.segments);
        let (a, n) = kept.unwrap_or((0, 0));
        self.snapshot.segments = all.into_iter().skip(a).take(n).collect();
        self.top = true;
        Item::Top
    }

    /// A tuple.
    pub fn tuple(&mut self, values: &[Value]) -> Item {
        if let [
            a @ (Value::Int(_) | Value::Bool(_)),
            b @ (Value::Int(_) | Value::Bool(_)),
        ] = values
        {
            let p = (number(*a), number(*b));
            // few different ones
            let known = self.pairs.iter().rev().take(64).position(|q| *q == p);
            if let Some(i) = known {
                return Item::Pair((self.pairs.len() - 1 - i) as u32);
            }
            self.pairs.push(p);
            return Item::Pair(self.pairs.len() as u32 - 1);
        }
        Item::Ignored
    }

    /// A list that was `now` with `values` put to its end.
    pub fn extend(&mut self, now: Item, values: &[Value]) -> Item {
        let mut item = now;
        let mut i = 0;
        while i < values.len() {
            // frames come in runs
            if matches!(item, Item::EmptyList | Item::Stack(_))
                && let Value::Item(Item::Frame(_)) = values[i]
            {
                let run = values[i..]
                    .iter()
                    .take_while(|v| matches!(v, Value::Item(Item::Frame(_))))
                    .count();
                let mut all = match item {
                    Item::Stack(s) => self.snapshot.stacks.get(s).to_vec(),
                    _ => Vec::with_capacity(run),
                };
                for v in &values[i..i + run] {
                    if let Value::Item(Item::Frame(f)) = v {
                        all.push(*f);
                    }
                }
                item = Item::Stack(self.snapshot.stacks.add(&all));
                i += run;
                continue;
            }
            item = self.push(item, values[i]);
            i += 1;
        }
        item
    }

    fn push(&mut self, now: Item, v: Value) -> Item {
        let Value::Item(v) = v else {
            // two numbers may be a list too (JSON has no tuples)
            return match (now, v) {
                (Item::EmptyList, Value::Int(n)) => {
                    self.pairs.push((n as u64, 0));
                    Item::Pair(self.pairs.len() as u32 - 1)
                }
                (Item::Pair(p), Value::Int(n)) if p as usize == self.pairs.len() - 1 => {
                    self.pairs[p as usize].1 = n as u64;
                    now
                }
                _ => Item::Ignored,
            };
        };
        match (now, v) {
            (Item::EmptyList, Item::Event(e)) => Item::Events(e, 1),
            (Item::Events(a, n), Item::Event(e)) if a + n == e => Item::Events(a, n + 1),
            (Item::EmptyList, Item::Block(b)) => Item::Blocks(b, 1),
            (Item::Blocks(a, n), Item::Block(b)) if a + n == b => Item::Blocks(a, n + 1),
            (Item::EmptyList, Item::Segment(s)) => Item::Segments(s, 1),
            (Item::Segments(a, n), Item::Segment(s)) if a + n == s => Item::Segments(a, n + 1),
            (Item::EmptyList, Item::Past(p)) => Item::Pasts(p),
            // the first tells: what is allocated now
            (Item::Pasts(_), Item::Past(_)) => now,
            (Item::EmptyList, Item::Events(a, n)) => {
                self.traces.push(Vec::from([a as usize..(a + n) as usize]));
                Item::Traces(self.traces.len() as u32 - 1)
            }
            (Item::EmptyList, Item::EmptyList) => {
                self.traces.push(Vec::from([0..0]));
                Item::Traces(self.traces.len() as u32 - 1)
            }
            (Item::Traces(i), Item::Events(a, n)) => {
                self.traces[i as usize].push(a as usize..(a + n) as usize);
                now
            }
            (Item::Traces(i), Item::EmptyList) => {
                self.traces[i as usize].push(0..0);
                now
            }
            _ => Item::Ignored,
        }
    }

    /// The number of a text.
    pub fn text(&mut self, s: &str) -> u32 {
        self.snapshot.texts.add(s)
    }

    /// The snapshot, if one was read.
    pub fn finish(self) -> Option<Snapshot> {
        let Builder { snapshot, top, .. } = self;
        top.then_some(snapshot)
    }
}
