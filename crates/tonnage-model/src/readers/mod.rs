//! Readers of model files: bytes in, typed values or typed errors out. No file is opened here, nothing panics, and memory stays within
//! a small multiple of the input, which is limited.

pub mod config;
pub mod error;
pub mod gguf;
pub mod index;
pub mod json;
pub mod safetensors;

pub use config::Config;
pub use error::{Format, Position, Problem, ReadError};
pub use index::Index;
pub use safetensors::{Header, Progress, StoredTensor, StoredType};
