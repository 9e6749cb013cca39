//! The edge to the machine.
//!
//! Where a model's files are: a local folder, an entry of the Hugging Face cache, or a model hub. Only configurations and the headers of
//! safetensors and GGUF files are read, never a weight.
//!
//! The devices and processes of this machine ([`device`], [`process`], [`publish`]), what other machines export ([`metrics`]), and the
//! recordings of runs ([`record`]).

pub mod device;
pub mod doctor;
mod env;
mod error;
mod files;
mod gguf;
mod http;
mod hub;
mod inventory;
mod local;
pub mod metrics;
mod name;
mod ollama;
pub mod process;
pub mod publish;
pub mod record;
mod remote;
pub mod sampler;

pub use env::{Env, Secret};
pub use error::HostError;
pub use files::{ModelFiles, Origin};
pub use gguf::{GgufFile, gguf};
pub use inventory::{Comparison, Group, compare};
pub use local::{cached, folder, is_model_folder};
pub use name::{Revision, check_id};
pub use ollama::{OllamaModel, ollama, ollama_stores};
pub use remote::{RemoteGguf, remote_gguf};

/// The files of a model by its hub id: from the cache where it has them, else from the hub.
///
/// # Errors
/// An id or revision that cannot be one, a damaged file, and everything that keeps the hub from answering.
pub fn find(env: &Env, id: &str, revision: Option<&str>) -> Result<ModelFiles, HostError> {
    check_id(id)?;
    let revision = Revision::parse(revision.unwrap_or("main"))?;
    if let Some(files) = local::cached(env, id, &revision)? {
        return Ok(files);
    }
    hub::fetch(env, id, &revision)
}
