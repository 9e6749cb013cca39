//! Bytes, dtypes and shapes: strict parsing and printing.
mod scalar;
pub use scalar::ScalarType;
