//! The pickle machine: protocols 2 to 5, the opcodes of numbers, texts, lists, dictionaries and tuples, memo by reference. Nothing of a
//! file is ever run: what would call something is refused by name. The one exception are type tags of PyTorch's own C++ writer and
//! `OrderedDict`, which are known and need no code.

use super::build::{Builder, Item, Value};
use super::input::Input;
use super::{Chunked, Limits, Snapshot, SnapshotError};
use rustc_hash::FxHashMap;
use std::io::Read;

/// A value on the stack.
#[derive(Clone, Copy, Debug)]
enum V {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(u32),
    Obj(u32),
    /// A function that is known and need not run.
    Tag,
    OrderedDict,
}

/// A little-endian number of two's complement; what is larger than 64 bits is cut.
fn long(b: &[u8]) -> i64 {
    let mut out = [match b.last() {
        Some(h) if *h >= 0x80 => 0xff,
        _ => 0,
    }; 8];
    let n = b.len().min(8);
    out[..n].copy_from_slice(&b[..n]);
    i64::from_le_bytes(out)
}

struct Machine<R> {
    input: Input<R>,
    builder: Builder,
    stack: Vec<V>,
    marks: Vec<usize>,
    objects: Chunked<Item>,
    /// By number; objects below `TEXT`, texts below `OTHER`, else an index of `others`.
    memo: Chunked<u32>,
    /// The first of them as they are: keys and words of events are remembered early.
    quick: [V; 256],
    sparse: FxHashMap<u32, V>,
    others: Vec<V>,
    /// The first value of the last tuple.
    first: V,
    scratch: Vec<Value>,
    pairs: Vec<(Value, Value)>,
    limits: Limits,
}

const TEXT: u32 = 1 << 31;
const OTHER: u32 = 3 << 30;

impl<R: Read> Machine<R> {
    fn bad<T>(&self, what: &str) -> Result<T, SnapshotError> {
        Err(SnapshotError::Bad(self.input.offset(), what.into()))
    }

    #[inline]
    fn value(&self, v: V) -> Value {
        match v {
            V::Obj(i) => Value::Item(
                self.objects
                    .get(i as usize)
                    .copied()
                    .unwrap_or(Item::Ignored),
            ),
            V::Int(n) => Value::Int(n),
            V::Text(t) => Value::Text(t),
            V::Bool(b) => Value::Bool(b),
            V::Float(f) => Value::Float(f),
            V::None => Value::None,
            V::Tag | V::OrderedDict => Value::Item(Item::Ignored),
        }
    }

    fn object(&mut self, item: Item) -> Result<(), SnapshotError> {
        let n = self.objects.len();
        if n as u64 >= self.limits.objects.min(u64::from(TEXT)) {
            return Err(SnapshotError::Limit(self.limits.objects, "objects"));
        }
        self.objects.push(item);
        self.stack.push(V::Obj(n as u32));
        Ok(())
    }

    fn pop(&mut self) -> Result<V, SnapshotError> {
        if self.marks.last().is_some_and(|m| *m >= self.stack.len()) {
            return self.bad("a mark where a value is needed");
        }
        match self.stack.pop() {
            Some(v) => Ok(v),
            None => self.bad("the stack is empty"),
        }
    }

    fn mark(&mut self) -> Result<usize, SnapshotError> {
        match self.marks.pop() {
            Some(m) if m <= self.stack.len() => Ok(m),
            _ => self.bad("no mark"),
        }
    }

    /// The object below position `at`.
    fn below(&self, at: usize) -> Result<usize, SnapshotError> {
        match at.checked_sub(1).and_then(|i| self.stack.get(i)) {
            Some(V::Obj(i)) => Ok(*i as usize),
            _ => self.bad("a list or a dictionary is needed"),
        }
    }

    fn append(&mut self, at: usize) -> Result<(), SnapshotError> {
        let i = self.below(at)?;
        let mut values = std::mem::take(&mut self.scratch);
        values.clear();
        values.extend(self.stack[at..].iter().map(|v| self.value(*v)));
        self.stack.truncate(at);
        let now = self.objects.get(i).copied().unwrap_or(Item::Ignored);
        let item = self.builder.extend(now, &values);
        if let Some(o) = self.objects.get_mut(i) {
            *o = item;
        }
        self.scratch = values;
        Ok(())
    }

    fn set(&mut self, at: usize) -> Result<(), SnapshotError> {
        let i = self.below(at)?;
        if (self.stack.len() - at) % 2 == 1 {
            return self.bad("a key without a value");
        }
        // an event, which most dictionaries are, needs no list of pairs
        if let Some(V::Text(t)) = self.stack.get(at)
            && self.builder.begins_event(*t)
            && let Some(o) = self.objects.get(i)
            && *o == Item::EmptyDict
        {
            let item = self.event(at);
            self.stack.truncate(at);
            if let Some(o) = self.objects.get_mut(i) {
                *o = item;
            }
            return Ok(());
        }
        let mut pairs = std::mem::take(&mut self.pairs);
        pairs.clear();
        pairs.extend(
            self.stack[at..]
                .chunks_exact(2)
                .map(|c| (self.value(c[0]), self.value(c[1]))),
        );
        self.stack.truncate(at);
        let now = self.objects.get(i).copied();
        let item = match now {
            Some(Item::EmptyDict) => self.builder.dict(&pairs),
            _ => Item::Ignored,
        };
        if let Some(o) = self.objects.get_mut(i) {
            *o = item;
        }
        self.pairs = pairs;
        Ok(())
    }

    fn event(&mut self, at: usize) -> Item {
        let mut e = Builder::NO_EVENT;
        for c in self.stack[at..].chunks_exact(2) {
            let V::Text(k) = c[0] else { continue };
            let v = match c[1] {
                V::Int(n) => Value::Int(n),
                V::Text(t) => Value::Text(t),
                V::Obj(_) => self.value(c[1]),
                other => self.value(other),
            };
            self.builder.event_field(&mut e, k, v);
        }
        self.builder.end_event(e)
    }

    fn put(&mut self, index: u32) -> Result<(), SnapshotError> {
        let Some(v) = self.stack.last().copied() else {
            return self.bad("nothing to remember");
        };
        let code = match v {
            V::Obj(i) => i,
            V::Text(t) if t < OTHER - TEXT => TEXT + t,
            other => {
                self.others.push(other);
                OTHER + (self.others.len() as u32 - 1).min(u32::MAX - OTHER)
            }
        };
        if let Some(q) = self.quick.get_mut(index as usize) {
            *q = v;
        }
        if index as usize == self.memo.len() {
            self.memo.push(code);
        } else if let Some(m) = self.memo.get_mut(index as usize) {
            *m = code;
        } else {
            if self.sparse.len() as u64 >= self.limits.stack {
                return Err(SnapshotError::Limit(self.limits.stack, "memo entries"));
            }
            self.sparse.insert(index, v);
        }
        Ok(())
    }

    fn get(&mut self, index: u32) -> Result<(), SnapshotError> {
        let v = match self.memo.get(index as usize) {
            Some(c) if *c < TEXT => V::Obj(*c),
            Some(c) if *c < OTHER => V::Text(*c - TEXT),
            Some(c) => self
                .others
                .get((*c - OTHER) as usize)
                .copied()
                .unwrap_or(V::None),
            None => match self.sparse.get(&index) {
                Some(v) => *v,
                None => return self.bad("a value that was never remembered"),
            },
        };
        self.stack.push(v);
        Ok(())
    }

    fn text(&mut self, n: u64) -> Result<(), SnapshotError> {
        // most texts are short and lie in the buffer
        let id = if n <= 4096 {
            let b = self.input.take(n as usize)?;
            match std::str::from_utf8(b) {
                Ok(s) => self.builder.text(s),
                Err(_) => {
                    let s = String::from_utf8_lossy(b).into_owned();
                    self.builder.text(&s)
                }
            }
        } else {
            let s = self.input.text(n)?;
            self.builder.text(&s)
        };
        if self.builder.snapshot.texts.bytes() > self.limits.text {
            return Err(SnapshotError::Limit(self.limits.text, "bytes of text"));
        }
        self.stack.push(V::Text(id));
        Ok(())
    }

    fn tuple(&mut self, at: usize) -> Result<(), SnapshotError> {
        if at > self.stack.len() || self.marks.last().is_some_and(|m| *m > at) {
            return self.bad("a tuple of more than there is");
        }
        self.first = self.stack.get(at).copied().unwrap_or(V::None);
        let mut values = std::mem::take(&mut self.scratch);
        values.clear();
        values.extend(self.stack[at..].iter().map(|v| self.value(*v)));
        self.stack.truncate(at);
        let item = self.builder.tuple(&values);
        self.scratch = values;
        self.object(item)
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), SnapshotError> {
        let v = match (module, name) {
            (
                "torch.jit._pickle",
                "restore_type_tag" | "build_intlist" | "build_doublelist" | "build_boollist",
            ) => V::Tag,
            ("collections", "OrderedDict") => V::OrderedDict,
            _ => {
                return Err(SnapshotError::Code(
                    self.input.offset(),
                    format!("{module}.{name}"),
                ));
            }
        };
        self.stack.push(v);
        Ok(())
    }

    fn tuple_of(&mut self, n: usize) -> Result<(), SnapshotError> {
        match self.stack.len().checked_sub(n) {
            Some(at) => self.tuple(at),
            None => self.bad("a tuple of more than there is"),
        }
    }

    fn run(&mut self) -> Result<(), SnapshotError> {
        loop {
            if self.stack.len() as u64 > self.limits.stack
                || self.marks.len() as u64 > self.limits.stack
            {
                return Err(SnapshotError::Limit(
                    self.limits.stack,
                    "values on the stack",
                ));
            }
            let op = self.input.byte()?;
            match op {
                // the frequent ones first
                b'h' => {
                    let i = self.input.byte()?;
                    if usize::from(i) >= self.memo.len() {
                        self.get(u32::from(i))?;
                    } else {
                        self.stack.push(self.quick[usize::from(i)]);
                    }
                }
                b'j' => {
                    let i = self.input.u32()?;
                    self.get(i)?;
                }
                0x94 => {
                    let i = self.memo.len() as u32;
                    self.put(i)?;
                }
                b'J' => {
                    let n = self.input.u32()? as i32;
                    self.stack.push(V::Int(i64::from(n)));
                }
                b'K' => {
                    let n = self.input.byte()?;
                    self.stack.push(V::Int(i64::from(n)));
                }
                b'M' => {
                    let n = self.input.u16()?;
                    self.stack.push(V::Int(n as i64));
                }
                0x8a => {
                    let n = usize::from(self.input.byte()?);
                    let v = long(self.input.take(n)?);
                    self.stack.push(V::Int(v));
                }
                0x8b => {
                    let n = self.input.u32()?;
                    if n > 1024 {
                        return self.bad("a number of more than 1024 bytes");
                    }
                    let v = long(self.input.take(n as usize)?);
                    self.stack.push(V::Int(v));
                }
                0x8c => {
                    let n = self.input.byte()?;
                    self.text(u64::from(n))?;
                }
                b'X' => {
                    let n = self.input.u32()?;
                    self.text(u64::from(n))?;
                }
                0x8d => {
                    let n = self.input.u64()?;
                    self.text(n)?;
                }
                b'(' => self.marks.push(self.stack.len()),
                b'}' => self.object(Item::EmptyDict)?,
                b']' => self.object(Item::EmptyList)?,
                b'u' => {
                    let at = self.mark()?;
                    self.set(at)?;
                }
                b'e' => {
                    let at = self.mark()?;
                    self.append(at)?;
                }
                b'a' => {
                    let at = self.stack.len().saturating_sub(1);
                    self.append(at)?;
                }
                b's' => {
                    let at = self.stack.len().saturating_sub(2);
                    self.set(at)?;
                }
                b'N' => self.stack.push(V::None),
                0x88 => self.stack.push(V::Bool(true)),
                0x89 => self.stack.push(V::Bool(false)),
                b'G' => {
                    let b = self.input.u64()?.swap_bytes();
                    self.stack.push(V::Float(f64::from_bits(b)));
                }
                b'q' => {
                    let i = self.input.byte()?;
                    self.put(u32::from(i))?;
                }
                b'r' => {
                    let i = self.input.u32()?;
                    self.put(i)?;
                }
                0x95 => {
                    self.input.u64()?;
                }
                0x80 => {
                    let p = self.input.byte()?;
                    if !(2..=5).contains(&p) {
                        return self.bad(&format!("pickle protocol {p}; 2 to 5 are read"));
                    }
                }
                b'.' => return Ok(()),
                b')' => {
                    self.first = V::None;
                    self.object(Item::Ignored)?;
                }
                b't' => {
                    let at = self.mark()?;
                    self.tuple(at)?;
                }
                0x85..=0x87 => self.tuple_of(usize::from(op - 0x84))?,
                b'l' => {
                    let at = self.mark()?;
                    let values: Vec<V> = self.stack.split_off(at);
                    self.object(Item::EmptyList)?;
                    let at = self.stack.len();
                    self.stack.extend(values);
                    self.append(at)?;
                }
                b'd' => {
                    let at = self.mark()?;
                    let values: Vec<V> = self.stack.split_off(at);
                    self.object(Item::EmptyDict)?;
                    let at = self.stack.len();
                    self.stack.extend(values);
                    self.set(at)?;
                }
                b'0' => {
                    // it may take a mark instead
                    if self.marks.last() == Some(&self.stack.len()) {
                        self.marks.pop();
                    } else {
                        self.pop()?;
                    }
                }
                b'1' => {
                    let at = self.mark()?;
                    self.stack.truncate(at);
                }
                b'2' => {
                    let v = self.pop()?;
                    self.stack.push(v);
                    self.stack.push(v);
                }
                b'U' | b'C' => {
                    let n = self.input.byte()?;
                    self.text(u64::from(n))?;
                }
                b'T' | b'B' => {
                    let n = self.input.u32()?;
                    self.text(u64::from(n))?;
                }
                0x8e | 0x96 => {
                    let n = self.input.u64()?;
                    self.text(n)?;
                }
                b'c' => {
                    let module = self.input.line()?;
                    let name = self.input.line()?;
                    self.global(&module, &name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (V::Text(n), V::Text(m)) = (name, module) else {
                        return self.bad("a name that is no text");
                    };
                    let texts = &self.builder.snapshot.texts;
                    let (m, n) = (texts.get(m).to_string(), texts.get(n).to_string());
                    self.global(&m, &n)?;
                }
                b'R' => {
                    let _arguments = self.pop()?;
                    match self.pop()? {
                        V::Tag => self.stack.push(self.first),
                        V::OrderedDict => self.object(Item::EmptyDict)?,
                        _ => return Err(SnapshotError::Code(self.input.offset(), "REDUCE".into())),
                    }
                }
                0x81 | 0x92 | b'b' | b'i' | b'o' | b'P' | b'Q' | 0x82..=0x84 => {
                    return Err(SnapshotError::Code(
                        self.input.offset(),
                        format!("opcode 0x{op:02x}"),
                    ));
                }
                _ => return self.bad(&format!("opcode 0x{op:02x} is none of protocols 2 to 5")),
            }
        }
    }
}

/// Reads a pickled snapshot of any size: memory stays below the file's.
///
/// # Errors
/// The file is broken, exceeds the limits, asks to run code, or is no snapshot.
pub fn read<R: Read>(from: R, limits: Limits) -> Result<Snapshot, SnapshotError> {
    let input = Input::new(from, limits.bytes);
    let mut m = Machine {
        input,
        builder: Builder::default(),
        stack: Vec::new(),
        marks: Vec::new(),
        objects: Chunked::default(),
        memo: Chunked::default(),
        quick: [V::None; 256],
        sparse: FxHashMap::default(),
        others: Vec::new(),
        first: V::None,
        scratch: Vec::new(),
        pairs: Vec::new(),
        limits,
    };
    m.run()?;
    let bytes = m.input.offset();
    let top = m.stack.last().map(|v| m.value(*v));
    let Machine { builder, .. } = m;
    let mut s = match top {
        Some(Value::Item(Item::Top)) => builder.finish(),
        // `_snapshot()["segments"]` alone, as the first versions wrote it
        Some(Value::Item(Item::Segments(..))) => Some(builder.snapshot),
        _ => None,
    }
    .ok_or(SnapshotError::NotASnapshot(
        "a dictionary with `segments` and `device_traces` is expected",
    ))?;
    s.bytes = bytes;
    Ok(s)
}
