//! Which files of a model are read, wherever they are.

use crate::HostError;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tonnage_model::readers::{ReadError, StoredTensor, config, index, safetensors};

/// Where the files are from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Folder(PathBuf),
    /// The Hugging Face cache: the snapshot's folder.
    Cache(PathBuf),
    /// A hub: its address.
    Hub(String),
}

/// What was read of a model.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    pub from: Origin,
    /// The commit, where it is known.
    pub commit: Option<String>,
    /// `config.json`; None for an adapter's folder.
    pub config: Option<Value>,
    /// `generation_config.json` (local files only: a hub is not asked for it).
    pub generation: Option<Value>,
    /// `adapter_config.json`, where there is no `config.json`.
    pub adapter: Option<Value>,
    /// All tensors, by the safetensors headers; None where there are none or they are not complete.
    pub tensors: Option<Vec<StoredTensor>>,
    /// Why there are no tensors, and what else is to be known.
    pub notes: Vec<String>,
}

/// A place with files.
pub(crate) trait Store {
    /// The file's name in messages.
    fn name(&self, file: &str) -> String;
    /// A whole small file; None where there is none.
    fn small(&self, file: &str, most: u64) -> Result<Option<Vec<u8>>, HostError>;
    /// The header of a safetensors file; None where there is none.
    fn header(&self, file: &str) -> Result<Option<safetensors::Header>, HostError>;
    /// Several headers.
    fn headers(&self, files: &[String]) -> Result<Vec<Option<safetensors::Header>>, HostError> {
        files.iter().map(|f| self.header(f)).collect()
    }
    /// Safetensors files under unusual names.
    fn others(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A JSON file of the strict reader.
pub(crate) fn json(store: &dyn Store, file: &str) -> Result<Option<Value>, HostError> {
    let Some(bytes) = store.small(file, config::LIMITS.bytes)? else {
        return Ok(None);
    };
    let c = config::parse(&bytes).map_err(|e| damaged(store, file, e))?;
    Ok(Some(c.value().clone()))
}

fn damaged(store: &dyn Store, file: &str, error: ReadError) -> HostError {
    HostError::Damaged {
        name: store.name(file),
        error,
    }
}

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// The tensors of all files; in place of them the reason why they are not known.
pub(crate) fn tensors(store: &dyn Store) -> Result<Result<Vec<StoredTensor>, String>, HostError> {
    if let Some(bytes) = store.small(INDEX, index::LIMITS.bytes)? {
        let index = index::parse(&bytes).map_err(|e| damaged(store, INDEX, e))?;
        let found = store.headers(&index.shards)?;
        let mut headers = BTreeMap::new();
        for (file, header) in index.shards.iter().zip(found) {
            match header {
                Some(h) => headers.insert(file.clone(), h),
                None => {
                    let why = format!(
                        "{} is not there, although the index names it",
                        store.name(file)
                    );
                    return Ok(Err(why));
                }
            };
        }
        // a total that counts tied tensors twice, or a tensor that the index leaves out, is the file's defect, not the model's
        return Ok(match index.inventory(&headers) {
            Ok(all) => Ok(all.into_iter().cloned().collect()),
            Err(e) => {
                let all: Vec<_> = headers.into_values().flat_map(|h| h.tensors).collect();
                if e.field == "metadata.total_size" {
                    Ok(all)
                } else {
                    Err(damaged(store, INDEX, e).to_string())
                }
            }
        });
    }
    if let Some(h) = store.header(SINGLE)? {
        return Ok(Ok(h.tensors));
    }
    let others = store.others();
    if others.is_empty() {
        return Ok(Err(
            "no safetensors files: the parameters are counted, not checked".into(),
        ));
    }
    let found = store.headers(&others)?;
    Ok(Ok(found
        .into_iter()
        .flatten()
        .flat_map(|h| h.tensors)
        .collect()))
}

impl ModelFiles {
    /// Where it is from, in words.
    pub fn describe(&self) -> String {
        let at = self
            .commit
            .as_ref()
            .map_or_else(String::new, |c| format!(" at {}", &c[..12.min(c.len())]));
        match &self.from {
            Origin::Folder(p) => format!("folder {}", p.display()),
            Origin::Cache(_) => format!("Hugging Face cache{at}"),
            Origin::Hub(u) => format!("{u}{at}"),
        }
    }
}
