//! The JSON form of a snapshot, read as a stream.

use super::build::{Builder, Item, Value};
use super::{Limits, Snapshot, SnapshotError};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use std::cell::RefCell;
use std::fmt;
use std::io::Read;

struct Seed<'a>(&'a RefCell<Builder>, Limits);

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a memory snapshot")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Int(v))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Int(v as i64))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Value::Float(v))
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::None)
    }
    fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<Value, E> {
        let mut b = self.0.borrow_mut();
        let id = b.text(v);
        if b.snapshot.texts.bytes() > self.1.text {
            return Err(E::custom("too much text"));
        }
        Ok(Value::Text(id))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut a: A) -> Result<Value, A::Error> {
        let mut item = Item::EmptyList;
        let mut frames = Vec::new();
        while let Some(v) = a.next_element_seed(Seed(self.0, self.1))? {
            // stacks are made at once
            if matches!(v, Value::Item(Item::Frame(_))) && matches!(item, Item::EmptyList) {
                frames.push(v);
                continue;
            }
            item = self.0.borrow_mut().extend(item, &[v]);
        }
        if !frames.is_empty() {
            item = self.0.borrow_mut().extend(item, &frames);
        }
        Ok(Value::Item(item))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut a: A) -> Result<Value, A::Error> {
        let mut pairs = Vec::with_capacity(12);
        while let Some(k) = a.next_key_seed(Seed(self.0, self.1))? {
            let v = a.next_value_seed(Seed(self.0, self.1))?;
            if pairs.len() < 4096 {
                pairs.push((k, v));
            }
        }
        Ok(Value::Item(match pairs.is_empty() {
            true => Item::EmptyDict,
            false => self.0.borrow_mut().dict(&pairs),
        }))
    }
}

/// Reads a snapshot that was written as JSON.
///
/// # Errors
/// It is no JSON, or no snapshot.
pub fn read<R: Read>(from: R, limits: Limits) -> Result<Snapshot, SnapshotError> {
    let builder = RefCell::new(Builder::default());
    let mut d = serde_json::Deserializer::from_reader(from.take(limits.bytes));
    let top = Seed(&builder, limits).deserialize(&mut d)?;
    let bytes = 0;
    let mut s = match top {
        Value::Item(Item::Top) => builder.into_inner().finish(),
        Value::Item(Item::Segments(..)) => Some(builder.into_inner().snapshot),
        _ => None,
    }
    .ok_or(SnapshotError::NotASnapshot(
        "an object with `segments` and `device_traces` is expected",
    ))?;
    s.bytes = bytes;
    Ok(s)
}
