//! Text in files for every type that parses; plain integers where a format says so.
use crate::{ByteDelta, Bytes, BytesPerSecond, Count, Dtype, GgmlType, ScalarType};
use serde::de::{Deserializer, Error as _, Unexpected, Visitor};
use serde::ser::Serializer;
use std::fmt;
use std::marker::PhantomData;

struct Text<T> {
    what: &'static str,
    /// An integer is refused with the same error as its digits would be (a bare number).
    integers: bool,
    of: PhantomData<T>,
}

impl<'de, T> Visitor<'de> for Text<T>
where
    T: std::str::FromStr,
    T::Err: fmt::Display,
{
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
    fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<T, E> {
        match self.integers {
            true => n.to_string().parse().map_err(E::custom),
            false => Err(E::invalid_type(Unexpected::Unsigned(n), &self)),
        }
    }
    fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<T, E> {
        match self.integers {
            true => n.to_string().parse().map_err(E::custom),
            false => Err(E::invalid_type(Unexpected::Signed(n), &self)),
        }
    }
}

macro_rules! as_text {
    ($type:ty, $integers:expr, $what:expr, |$value:ident| $text:expr) => {
        impl serde::Serialize for $type {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                let $value = self;
                to.collect_str(&$text)
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.deserialize_any(Text {
                    what: $what,
                    integers: $integers,
                    of: PhantomData,
                })
            }
        }
    };
}

const BYTES: &str = "an amount of memory with its unit, such as \"80 GB\" or \"80 GiB\"";
as_text!(Bytes, true, BYTES, |b| b.exact());
as_text!(ByteDelta, true, BYTES, |b| b.exact());
as_text!(
    BytesPerSecond,
    true,
    "a bandwidth such as \"900 GB/s\"",
    |r| format_args!("{}/s", Bytes(r.0).exact())
);
as_text!(Count, true, "a count such as \"7B\" or 1000", |c| c.exact());
as_text!(ScalarType, false, "a dtype such as \"bfloat16\"", |t| t);
as_text!(GgmlType, false, "a ggml type such as \"q4_K\"", |t| t);
as_text!(
    Dtype,
    false,
    "a stored format such as \"bfloat16\" or \"nf4\"",
    |d| d
);

/// For machine formats whose fields are declared to be integers of bytes:
/// `#[serde(with = "tonnage_units::int_bytes")]`. Files that people write use the type itself, whose
/// text has a unit and which refuses a bare number.
pub mod int_bytes {
    use super::*;

    /// Writes the integer.
    pub fn serialize<S: Serializer>(bytes: &Bytes, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(bytes.0)
    }
    /// Reads a non-negative integer and nothing else.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        serde::Deserialize::deserialize(from)
            .map(Bytes)
            .map_err(D::Error::custom)
    }
}
