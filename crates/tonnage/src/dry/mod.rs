//! Running a command on the null device with the recorder in its Python.

pub mod llama;
pub mod null;
pub mod python;
pub mod recording;
pub mod run;
pub mod script;
pub mod vllm;
pub mod watch;
