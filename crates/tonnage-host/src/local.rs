//! Folders, and the cache that huggingface_hub keeps.

use crate::files::{ModelFiles, Origin, Store, json, tensors};
use crate::name::is_commit;
use crate::{Env, HostError, Revision, check_id};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use tonnage_model::readers::safetensors::{Header, Progress, header};

/// A folder as a place with files.
struct Folder(PathBuf);

impl Folder {
    fn open(&self, file: &str) -> Result<Option<(File, u64)>, HostError> {
        let path = self.0.join(file);
        let fail = |e: std::io::Error| HostError::Unreadable {
            path: path.clone(),
            problem: e.to_string(),
        };
        let meta = match std::fs::metadata(&path) {
            Ok(m) => m,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(fail(e)),
        };
        // a pipe or a device would keep us waiting
        if !meta.is_file() {
            return Err(fail(std::io::Error::other("not a file")));
        }
        Ok(Some((File::open(&path).map_err(fail)?, meta.len())))
    }
}

impl Store for Folder {
    fn name(&self, file: &str) -> String {
        self.0.join(file).display().to_string()
    }

    fn small(&self, file: &str, most: u64) -> Result<Option<Vec<u8>>, HostError> {
        let Some((f, len)) = self.open(file)? else {
            return Ok(None);
        };
        let large = HostError::TooLarge {
            url: self.name(file),
            most,
        };
        if len > most {
            return Err(large);
        }
        let mut bytes = Vec::new();
        f.take(most + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| HostError::Unreadable {
                path: self.0.join(file),
                problem: e.to_string(),
            })?;
        if bytes.len() as u64 > most {
            return Err(large);
        }
        Ok(Some(bytes))
    }

    fn header(&self, file: &str) -> Result<Option<Header>, HostError> {
        let Some((mut f, len)) = self.open(file)? else {
            return Ok(None);
        };
        let mut first = Vec::new();
        loop {
            let damaged = |error| HostError::Damaged {
                name: self.name(file),
                error,
            };
            match header(&first, Some(len)).map_err(damaged)? {
                Progress::Done(h) => return Ok(Some(h)),
                Progress::Need(n) => {
                    let had = first.len() as u64;
                    (&mut f)
                        .take(n - had)
                        .read_to_end(&mut first)
                        .and_then(|got| match got {
                            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
                            _ => Ok(()),
                        })
                        .map_err(|e| HostError::Unreadable {
                            path: self.0.join(file),
                            problem: e.to_string(),
                        })?;
                }
            }
        }
    }

    fn others(&self) -> Vec<String> {
        let mut all: Vec<String> = std::fs::read_dir(&self.0)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok())
            .filter(|n| n.ends_with(".safetensors") && !n.starts_with("adapter_"))
            .take(10_000)
            .collect();
        all.sort();
        // the same weights a second time, under their first publisher's names
        if all.iter().any(|n| !n.starts_with("consolidated")) {
            all.retain(|n| !n.starts_with("consolidated"));
        }
        all
    }
}

/// Reads a folder: `config.json` or `adapter_config.json`, generation settings, headers.
///
/// # Errors
/// Neither of the two is there, or a file cannot be read or is damaged.
pub fn folder(path: &Path) -> Result<ModelFiles, HostError> {
    read(path, Origin::Folder(path.into()), None)?.ok_or_else(|| HostError::NotAModel(path.into()))
}

/// Is this a folder with a model in it?
pub fn is_model_folder(path: &Path) -> bool {
    ["config.json", "adapter_config.json"]
        .iter()
        .any(|f| path.join(f).is_file())
}

fn read(
    path: &Path,
    from: Origin,
    commit: Option<String>,
) -> Result<Option<ModelFiles>, HostError> {
    let store = Folder(path.into());
    let config = json(&store, "config.json")?;
    let adapter = if config.is_none() {
        json(&store, "adapter_config.json")?
    } else {
        None
    };
    if config.is_none() && adapter.is_none() {
        return Ok(None);
    }
    let mut files = ModelFiles {
        from,
        commit,
        generation: json(&store, "generation_config.json")?,
        tensors: None,
        notes: Vec::new(),
        config,
        adapter,
    };
    if files.config.is_some() {
        match tensors(&store)? {
            Ok(t) => files.tensors = Some(t),
            Err(why) => files.notes.push(why),
        }
    }
    Ok(Some(files))
}

/// The entry of the cache for a model and revision; None where there is none, or its configuration was not downloaded.
///
/// # Errors
/// An entry that is there and damaged.
pub fn cached(env: &Env, id: &str, revision: &Revision) -> Result<Option<ModelFiles>, HostError> {
    check_id(id)?;
    let Some(cache) = &env.cache else {
        return Ok(None);
    };
    let entry = cache.join(format!("models--{}", id.replace('/', "--")));
    let commit = if revision.is_commit() {
        revision.as_str().to_string()
    } else {
        match small_text(&entry.join("refs").join(revision.as_str()), 256) {
            Some(t) if is_commit(t.trim()) => t.trim().to_string(),
            _ => return Ok(None),
        }
    };
    let snapshot = entry.join("snapshots").join(&commit);
    if !snapshot.is_dir() {
        return Ok(None);
    }
    read(&snapshot, Origin::Cache(snapshot.clone()), Some(commit))
}

/// The beginning of a text file, if there is such a file.
pub(crate) fn small_text(path: &Path, most: u64) -> Option<String> {
    if !std::fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut t = String::new();
    File::open(path)
        .ok()?
        .take(most)
        .read_to_string(&mut t)
        .ok()?;
    Some(t)
}
