//! Bytes, counts, rates, dtypes and stored formats: strict parsing and printing.
//!
//! | to say | type |
//! | --- | --- |
//! | an amount of memory | [`Bytes`], difference [`ByteDelta`], printed by [`ByteStyle`] |
//! | a number of parameters or tokens | [`Count`] |
//! | a speed | [`BytesPerSecond`], [`TokensPerSecond`] |
//! | the element type of a plain tensor | [`ScalarType`] |
//! | how a weight or an optimizer state is stored | [`Dtype`] (and [`block`]): a list of [`Storage`] |
//! | a type of a GGUF tensor | [`GgmlType`] |
//!
//! Nothing here is guessed: `80` is not an amount of memory, `80 GB` and `80 GiB` are different
//! ones, and every error says what to write instead ([`UnitError::suggestion`]). All printed text
//! is ASCII. Decimal input is converted with integers only; no value passes through a float.
pub mod block;
mod bytes;
mod count;
mod decimal;
mod error;
mod ggml;
mod rate;
mod scalar;
#[cfg(feature = "serde")]
mod serde_text;
mod suggest;

pub use block::{Dtype, LayoutError, Storage};
pub use bytes::{ByteDelta, ByteStyle, Bytes};
pub use count::Count;
pub use error::UnitError;
pub use ggml::{GgmlError, GgmlType};
pub use rate::{BytesPerSecond, TokensPerSecond};
pub use scalar::ScalarType;
#[cfg(feature = "serde")]
pub use serde_text::int_bytes;
pub use suggest::nearest;
