//! Model files of llama.cpp on a hub: which file a tag means, and of each part its header by growing ranges.

use crate::http::Client;
use crate::hub::Hub;
use crate::{Env, HostError, Revision, check_id};
use tonnage_model::readers::gguf::{Gguf, MAX_HEADER, Progress, SplitName, header, merge};

const FIRST: u64 = 256 << 10;
const GROWTH: u64 = 8;
/// The list of a repository's files.
const LISTING: u64 = 16 << 20;
/// Parts of one model.
const PARTS: u16 = 256;

/// A model on a hub.
#[derive(Clone, Debug)]
pub struct RemoteGguf {
    pub model: Gguf,
    /// Names in the repository, in order.
    pub files: Vec<String>,
    pub commit: Option<String>,
    /// Bytes that came over the network.
    pub fetched: u64,
}

/// Reads the headers of `REPO[:QUANTISATION]`; `file` names the file itself, as `--hf-file` does. Without a quantisation llama.cpp's order
/// is taken: Q4_K_M, then Q8_0, then the first model file (`common/download.cpp`).
///
/// # Errors
/// Offline, unreachable, refused; no such repository, or no such file in it; a file that is no GGUF.
pub fn remote_gguf(env: &Env, name: &str, file: Option<&str>) -> Result<RemoteGguf, HostError> {
    let (id, tag) = match name.split_once(':') {
        Some((id, t)) => (id, Some(t)),
        None => (name, None),
    };
    check_id(id)?;
    if let Some(variable) = env.offline {
        return Err(HostError::Offline {
            id: id.into(),
            cache: env.cache.clone(),
            variable,
        });
    }
    let revision = Revision::parse("main")?;
    let client = Client::new(env)?;
    let chosen = match file {
        Some(f) => f.to_string(),
        None => choose(&listing(&client, env, id)?, tag).ok_or_else(|| HostError::NoGguf {
            id: id.into(),
            tag: tag.map(str::to_string),
        })?,
    };
    let hub = Hub::new(client, env, id, &revision);
    let files: Vec<String> = match SplitName::parse(&chosen) {
        Some(s) if s.count <= PARTS => (0..s.count).map(|i| s.of(i)).collect(),
        _ => vec![chosen],
    };
    let (mut parts, mut fetched) = (Vec::new(), 0);
    for f in &files {
        parts.push(one(&hub, f, &mut fetched)?);
    }
    let model = merge(parts).map_err(|error| HostError::Damaged {
        name: files[0].clone(),
        error,
    })?;
    Ok(RemoteGguf {
        model,
        commit: hub.commit(),
        files,
        fetched,
    })
}

fn listing(client: &Client, env: &Env, id: &str) -> Result<Vec<String>, HostError> {
    let url = format!("{}/api/models/{id}", env.endpoint);
    let answer = client.get(&url, None)?;
    match answer.status {
        200..=299 => {}
        404 | 401 => {
            return Err(HostError::NotFound {
                endpoint: env.endpoint.clone(),
                id: id.into(),
            });
        }
        status => return Err(HostError::Status { url, status }),
    }
    let bytes = answer.all(LISTING)?;
    let v: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|e| HostError::BadAnswer {
            url,
            problem: e.to_string(),
        })?;
    let names = v["siblings"].as_array().into_iter().flatten();
    Ok(names
        .filter_map(|s| s["rfilename"].as_str())
        .filter(|n| n.ends_with(".gguf") && !n.contains("mmproj"))
        .map(str::to_string)
        .collect())
}

/// The file of a quantisation: the tag stands at the end of the name, before the part's number.
fn choose(files: &[String], tag: Option<&str>) -> Option<String> {
    let ends = |f: &str, tag: &str| {
        let stem = match SplitName::parse(f) {
            Some(s) if s.no > 0 => return false,
            Some(s) => s.prefix,
            None => f.trim_end_matches(".gguf").to_string(),
        };
        let (stem, tag) = (stem.to_ascii_uppercase(), tag.to_ascii_uppercase());
        stem.strip_suffix(&tag)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with(['-', '.', '_', '/']))
    };
    let find = |tag: &str| files.iter().find(|f| ends(f, tag)).cloned();
    match tag {
        Some(t) if !t.eq_ignore_ascii_case("latest") => find(t),
        _ => find("Q4_K_M")
            .or_else(|| find("Q8_0"))
            .or_else(|| files.first().cloned()),
    }
}

fn one(hub: &Hub<'_>, file: &str, fetched: &mut u64) -> Result<Gguf, HostError> {
    let mut bytes: Vec<u8> = Vec::new();
    let mut want = FIRST;
    loop {
        let have = bytes.len() as u64;
        let (more, total) = hub
            .some(file, have, want - have)?
            .ok_or(HostError::NoGguf {
                id: file.into(),
                tag: None,
            })?;
        *fetched += more.len() as u64;
        let ended = more.is_empty();
        bytes.extend(more);
        match header(&bytes, total) {
            Ok(Progress::Done(g)) => return Ok(*g),
            Ok(Progress::Need(n)) if !ended && (bytes.len() as u64) < MAX_HEADER => {
                want = n
                    .max((bytes.len() as u64).saturating_mul(GROWTH))
                    .min(MAX_HEADER)
                    .max(bytes.len() as u64 + 1);
                if let Some(t) = total {
                    want = want.min(t.max(bytes.len() as u64 + 1));
                }
            }
            Ok(Progress::Need(_)) => {
                return Err(HostError::BadAnswer {
                    url: file.into(),
                    problem: "the file ends in its header".into(),
                });
            }
            Err(error) => {
                return Err(HostError::Damaged {
                    name: file.into(),
                    error,
                });
            }
        }
    }
}
