//! Ollama's store on this machine: a manifest names the blob that is the model file (Ollama's `types/model/name.go`, `manifest/manifest.go`:
//! `manifests/HOST/NAMESPACE/MODEL/TAG`, `blobs/sha256-...`). Nothing is asked of the registry.

use crate::HostError;
use crate::local::small_text;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A model of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OllamaModel {
    /// The GGUF blob.
    pub file: PathBuf,
    /// `PARAMETER num_ctx` of its Modelfile.
    pub num_ctx: Option<u64>,
    /// It also has a projector, which Ollama loads beside it.
    pub projector: bool,
}

/// A manifest or a parameter file above this is none.
const SMALL: u64 = 1 << 20;

/// Where the store may be, by a lookup of variables: `OLLAMA_MODELS`, else the user's, else the system service's.
pub fn ollama_stores(var: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    if let Some(p) = var("OLLAMA_MODELS").filter(|v| !v.is_empty()) {
        return vec![PathBuf::from(p)];
    }
    let home = var("HOME")
        .or_else(|| var("USERPROFILE"))
        .filter(|v| !v.is_empty());
    home.map(|h| PathBuf::from(h).join(".ollama/models"))
        .into_iter()
        .chain([PathBuf::from("/usr/share/ollama/.ollama/models")])
        .collect()
}

/// `[HOST/][NAMESPACE/]MODEL[:TAG]` as the path below `manifests`.
fn manifest_path(name: &str) -> Option<PathBuf> {
    let (path, tag) = match name.rsplit_once(':') {
        // a host's port has a slash after it
        Some((p, t)) if !t.contains('/') => (p, t),
        _ => (name, "latest"),
    };
    let mut parts: Vec<&str> = path.split('/').collect();
    if parts.len() == 1 {
        parts.insert(0, "library");
    }
    if parts.len() == 2 {
        parts.insert(0, "registry.ollama.ai");
    }
    parts.push(tag);
    // a host's port is the only place of a colon
    let good = |(i, p): (usize, &&str)| {
        let first = p.bytes().next();
        p.len() <= 350
            && first.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
            && p.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b) || (i == 0 && b == b':'))
    };
    (parts.len() == 4 && parts.iter().enumerate().all(good)).then(|| parts.iter().collect())
}

/// Finds a model by its name in the first store that has it.
///
/// # Errors
/// A name that cannot be one; a store without it; a manifest that is damaged or names no model.
pub fn ollama(stores: &[PathBuf], name: &str) -> Result<OllamaModel, HostError> {
    let below = manifest_path(name).ok_or_else(|| HostError::BadOllamaName(name.into()))?;
    let manifest = stores
        .iter()
        .map(|s| (s, s.join("manifests").join(&below)))
        .find(|(_, m)| m.is_file());
    let Some((store, manifest)) = manifest else {
        return Err(HostError::NotInOllama {
            name: name.into(),
            stores: stores.to_vec(),
        });
    };
    let bad = |problem: &str| HostError::Unreadable {
        path: manifest.clone(),
        problem: problem.into(),
    };
    let text = small_text(&manifest, SMALL).ok_or_else(|| bad("not a manifest"))?;
    let v: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| bad(&format!("not a manifest: {e}")))?;
    let layers = v["layers"].as_array().ok_or_else(|| bad("no layers"))?;
    let of = |kind: &str| {
        layers
            .iter()
            .find(|l| l["mediaType"] == format!("application/vnd.ollama.image.{kind}"))
            .and_then(|l| l["digest"].as_str())
    };
    let model = of("model").ok_or_else(|| bad("no layer is a model"))?;
    let file = blob(store, model).ok_or_else(|| bad("the model's digest is none"))?;
    let num_ctx = of("params")
        .and_then(|d| small_text(&blob(store, d)?, SMALL))
        .and_then(|t| serde_json::from_str::<serde_json::Value>(&t).ok())
        .and_then(|p| p["num_ctx"].as_u64());
    Ok(OllamaModel {
        file,
        num_ctx,
        projector: of("projector").is_some(),
    })
}

fn blob(store: &Path, digest: &str) -> Option<PathBuf> {
    let hex = digest.strip_prefix("sha256:")?;
    let good = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    good.then(|| store.join("blobs").join(format!("sha256-{hex}")))
}
