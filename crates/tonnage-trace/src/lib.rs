//! Recorded allocations. Pure: bytes and text in, values out; the caller reads, unpacks and prints.
//!
//! [`raw`] reads what the recorder in a script's process wrote and works out what each block is; [`trace`] is the file format that is kept
//! and exchanged; [`footprint`] makes of it what `estimate` makes of a job; [`again`] runs it through our allocator under other settings;
//! [`scale`] makes a trace of another batch or length out of two or three; [`diff`] says where a prediction and a recording part.

pub mod again;
pub mod classify;
pub mod diff;
pub mod footprint;
pub mod raw;
pub mod scale;
pub mod trace;
pub mod track;

pub use trace::{Event, Figures, Header, Place, Site, Trace, TraceError};
