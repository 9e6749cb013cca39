//! What a process says of its own allocator: a small file that it rewrites, `tonnage/PID.json` in the user's run folder.
//!
//! ```json
//! {"schema":"tonnage.process/1","pid":4242,"at_unix_ms":1790000000000,"framework":"torch 2.11.0","step":12,
//!  "devices":[{"index":0,"uuid":"GPU-...","allocated_bytes":1,"reserved_bytes":2,"peak_allocated_bytes":3,"peak_reserved_bytes":4,
//!              "requested_bytes":1,"inactive_split_bytes":0,"alloc_retries":0,"ooms":0}],
//!  "out_of_memory":null}
//! ```
//!
//! The writer writes `PID.json.tmp` and renames it, at the end of every step and at most ten times a second. `index` counts as the process
//! does (CUDA_VISIBLE_DEVICES), so `uuid` decides where it is given. `docs/observe.md` has the words.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The only version so far.
pub const SCHEMA: &str = "tonnage.process/1";

/// A file longer than this is not one of these.
const LONGEST: u64 = 1 << 20;

/// An allocator's figures of one device, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllocatorStats {
    #[serde(default)]
    pub index: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Live tensors.
    pub allocated_bytes: u64,
    /// Held by the allocator.
    pub reserved_bytes: u64,
    pub peak_allocated_bytes: u64,
    pub peak_reserved_bytes: u64,
    /// Before rounding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_bytes: Option<u64>,
    /// Free pieces of blocks that are in use elsewhere: what fragmentation holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inactive_split_bytes: Option<u64>,
    /// Times the whole cache was given back to satisfy a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alloc_retries: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ooms: Option<u64>,
}

/// The file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    pub schema: String,
    pub pid: u32,
    #[serde(default)]
    pub at_unix_ms: u64,
    #[serde(default)]
    pub framework: Option<String>,
    /// Steps of training that have ended.
    #[serde(default)]
    pub step: Option<u64>,
    #[serde(default)]
    pub devices: Vec<AllocatorStats>,
    /// The text of the last out-of-memory error.
    #[serde(default)]
    pub out_of_memory: Option<String>,
}

impl Published {
    /// The figures of a device, by UUID, else by number.
    pub fn on(&self, key: &str, index: u32) -> Option<&AllocatorStats> {
        let same = |u: &String| u == key || key.strip_prefix("GPU-") == Some(u);
        self.devices
            .iter()
            .find(|d| d.uuid.as_ref().is_some_and(same))
            .or_else(|| {
                self.devices
                    .iter()
                    .find(|d| d.uuid.is_none() && d.index == index)
            })
    }
}

/// Where they are: `$TONNAGE_PUBLISH`, else `$XDG_RUNTIME_DIR/tonnage`, else `tonnage-USER` in the folder of temporary files.
pub fn folder() -> Option<PathBuf> {
    folder_by(|k| std::env::var_os(k).filter(|v| !v.is_empty()))
}

/// The same by a lookup of variables.
pub fn folder_by(var: impl Fn(&str) -> Option<std::ffi::OsString>) -> Option<PathBuf> {
    if let Some(p) = var("TONNAGE_PUBLISH") {
        return Some(p.into());
    }
    if let Some(p) = var("XDG_RUNTIME_DIR") {
        return Some(PathBuf::from(p).join("tonnage"));
    }
    let user = var("USER").or_else(|| var("USERNAME"))?;
    let mut name = std::ffi::OsString::from("tonnage-");
    name.push(user);
    Some(std::env::temp_dir().join(name))
}

/// What a process publishes now. A file that is damaged, of another version, or of another process is none.
pub fn of_process(folder: &Path, pid: u32) -> Option<Published> {
    use std::io::Read;
    let file = std::fs::File::open(folder.join(format!("{pid}.json"))).ok()?;
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text).ok()?;
    let p: Published = serde_json::from_str(&text).ok()?;
    (p.schema == SCHEMA && p.pid == pid).then_some(p)
}
