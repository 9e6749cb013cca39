//! A model hub: the configuration, the index, and of each safetensors file eight bytes of length and the header.

use crate::files::{ModelFiles, Origin, Store, json, tensors};
use crate::http::{Answer, Client};
use crate::name::is_commit;
use crate::{Env, HostError, Revision};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use tonnage_model::readers::safetensors::{Header, Progress, header};

/// Bytes of all headers of one model together; those of the largest published models are below 40 MB.
const ALL_HEADERS: u64 = 256 << 20;
/// Requests at a time.
const AT_ONCE: usize = 8;

/// Bytes of a file, and the file's length where the answer says it.
pub(crate) type Part = (Vec<u8>, Option<u64>);
/// What became of a file's header; None: not tried.
type Slot = Option<Result<Option<Header>, HostError>>;

pub(crate) struct Hub<'a> {
    client: Client,
    env: &'a Env,
    id: &'a str,
    revision: &'a Revision,
    /// What the first answer said, so that all files are of one commit.
    commit: Mutex<Option<String>>,
    headers: AtomicU64,
}

/// Fetches what is needed of a model.
///
/// # Errors
/// Offline, unreachable, refused, or an answer that is not what it should be.
pub(crate) fn fetch(env: &Env, id: &str, revision: &Revision) -> Result<ModelFiles, HostError> {
    if let Some(variable) = env.offline {
        return Err(HostError::Offline {
            id: id.into(),
            cache: env.cache.clone(),
            variable,
        });
    }
    let hub = Hub::new(Client::new(env)?, env, id, revision);
    let config = json(&hub, "config.json")?;
    let adapter = if config.is_none() {
        json(&hub, "adapter_config.json")?
    } else {
        None
    };
    if config.is_none() && adapter.is_none() {
        return Err(HostError::NoConfig { id: id.into() });
    }
    let mut notes = Vec::new();
    // the configuration is enough for an answer: without headers only the check of the count is missing
    let stored = match config.as_ref().map(|_| tensors(&hub)) {
        None => None,
        Some(Ok(Ok(t))) => Some(t),
        Some(Ok(Err(why))) => {
            notes.push(why);
            None
        }
        Some(Err(e)) => {
            notes.push(format!("the parameter count is not checked: {e}"));
            None
        }
    };
    let commit = hub.commit();
    Ok(ModelFiles {
        from: Origin::Hub(env.endpoint.clone()),
        commit,
        config,
        generation: None,
        adapter,
        tensors: stored,
        notes,
    })
}

impl<'a> Hub<'a> {
    pub(crate) fn new(
        client: Client,
        env: &'a Env,
        id: &'a str,
        revision: &'a Revision,
    ) -> Hub<'a> {
        Hub {
            client,
            env,
            id,
            revision,
            commit: Mutex::new(None),
            headers: AtomicU64::new(0),
        }
    }
}

impl Hub<'_> {
    /// At most the bytes `first..first + len`, fewer where the file ends, and the file's length where the answer says it.
    pub(crate) fn some(&self, file: &str, first: u64, len: u64) -> Result<Option<Part>, HostError> {
        let Some(mut answer) = self.get(file, Some((first, first + len - 1)))? else {
            return Ok(None);
        };
        let total = answer
            .header("Content-Range")
            .and_then(|r| r.rsplit_once('/')?.1.parse().ok());
        // where ranges are not known, the file comes from its beginning
        let skip = if answer.status == 206 { 0 } else { first };
        let mut bytes = answer.read(skip + len)?;
        let skip = (skip as usize).min(bytes.len());
        bytes.drain(..skip);
        Ok(Some((bytes, total)))
    }

    pub(crate) fn commit(&self) -> Option<String> {
        self.commit
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn url(&self, file: &str) -> String {
        let revision = self.commit().unwrap_or_else(|| self.revision.segment());
        let mut name = String::new();
        for b in file.bytes() {
            if b.is_ascii_alphanumeric() || b"-_.~/".contains(&b) {
                name.push(b as char);
            } else {
                name.push_str(&format!("%{b:02X}"));
            }
        }
        format!(
            "{}/{}/resolve/{revision}/{name}",
            self.env.endpoint, self.id
        )
    }

    /// An answer of success; None where the file is not there.
    fn get(&self, file: &str, range: Option<(u64, u64)>) -> Result<Option<Answer>, HostError> {
        let answer = self.client.get(&self.url(file), range)?;
        if let Some(c) = answer.header("X-Repo-Commit").filter(|c| is_commit(c)) {
            self.commit
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert(c);
        }
        let code = answer.header("X-Error-Code").unwrap_or_default();
        let (endpoint, id) = (self.env.endpoint.clone(), self.id.to_string());
        let token = self.client.has_token();
        Err(match (answer.status, code.as_str()) {
            (200..=299, _) => return Ok(Some(answer)),
            (404, "EntryNotFound") => return Ok(None),
            (404, "RevisionNotFound") => HostError::NoRevision {
                id,
                revision: self.revision.as_str().into(),
            },
            (404, "RepoNotFound") => HostError::NotFound { endpoint, id },
            // mirrors often give no code: a first file that is missing is a missing model
            (404, _) if self.commit().is_none() && file == "config.json" => {
                HostError::NotFound { endpoint, id }
            }
            (404, _) => return Ok(None),
            (401 | 403, "GatedRepo") => HostError::Gated {
                endpoint,
                id,
                token,
            },
            (status @ (401 | 403), _) => HostError::Refused {
                host: self.client.host(),
                id,
                status,
                message: answer.header("X-Error-Message").unwrap_or_default(),
                token,
            },
            (status, _) => HostError::Status {
                url: answer.url,
                status,
            },
        })
    }

    /// The bytes `first..first + len`, and the file's length where the answer says it.
    fn part(&self, file: &str, first: u64, len: u64) -> Result<Option<Part>, HostError> {
        let Some(mut answer) = self.get(file, Some((first, first + len - 1)))? else {
            return Ok(None);
        };
        let bad = |problem: &str| HostError::BadAnswer {
            url: self.url(file),
            problem: problem.into(),
        };
        let (skip, total) = if answer.status == 206 {
            let range = answer.header("Content-Range").unwrap_or_default();
            let (span, total) = range
                .strip_prefix("bytes ")
                .and_then(|r| r.split_once('/'))
                .ok_or_else(|| bad("a part without Content-Range"))?;
            if !span.starts_with(&format!("{first}-")) {
                return Err(bad("another part than the one that was asked for"));
            }
            (0, total.parse().ok())
        } else {
            // ranges are not known there: the file from its beginning, of which we take what we need
            (first, None)
        };
        let mut bytes = answer.read(skip + len)?;
        if (bytes.len() as u64) < skip + len {
            return Err(bad("the answer is too short"));
        }
        bytes.drain(..skip as usize);
        Ok(Some((bytes, total)))
    }
}

impl Store for Hub<'_> {
    fn name(&self, file: &str) -> String {
        self.url(file)
    }

    fn small(&self, file: &str, most: u64) -> Result<Option<Vec<u8>>, HostError> {
        match self.get(file, None)? {
            Some(answer) => answer.all(most).map(Some),
            None => Ok(None),
        }
    }

    fn header(&self, file: &str) -> Result<Option<Header>, HostError> {
        let mut first = Vec::new();
        let mut total = None;
        loop {
            let damaged = |error| HostError::Damaged {
                name: self.name(file),
                error,
            };
            match header(&first, total).map_err(damaged)? {
                Progress::Done(h) => return Ok(Some(h)),
                Progress::Need(n) => {
                    let had = first.len() as u64;
                    let len = n - had;
                    if self.headers.fetch_add(len, Ordering::Relaxed) + len > ALL_HEADERS {
                        return Err(HostError::TooLarge {
                            url: format!("the headers of {}", self.id),
                            most: ALL_HEADERS,
                        });
                    }
                    let Some((part, length)) = self.part(file, had, len)? else {
                        return Ok(None);
                    };
                    total = total.or(length);
                    first.extend(part);
                }
            }
        }
    }

    fn headers(&self, files: &[String]) -> Result<Vec<Option<Header>>, HostError> {
        let next = AtomicUsize::new(0);
        let found: Vec<Mutex<Slot>> = files.iter().map(|_| Mutex::new(None)).collect();
        std::thread::scope(|s| {
            for _ in 0..AT_ONCE.min(files.len()) {
                s.spawn(|| {
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        let (Some(file), Some(slot)) = (files.get(n), found.get(n)) else {
                            break;
                        };
                        let result = self.header(file);
                        if result.is_err() {
                            next.store(files.len(), Ordering::Relaxed); // the others need not try
                        }
                        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
                    }
                });
            }
        });
        let mut out = Vec::with_capacity(files.len());
        let mut failed = None;
        for slot in found {
            match slot.into_inner().unwrap_or_else(PoisonError::into_inner) {
                Some(Ok(h)) => out.push(h),
                Some(Err(e)) => failed = failed.or(Some(e)),
                None => {}
            }
        }
        match failed {
            Some(e) => Err(e),
            None => Ok(out),
        }
    }
}
