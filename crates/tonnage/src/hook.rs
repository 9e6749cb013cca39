//! The Python hook (`python/`), for a run that asks for it without an installation.

use std::path::{Path, PathBuf};

const FILES: [(&str, &str); 2] = [
    (
        "sitecustomize.py",
        include_str!("../python/sitecustomize.py"),
    ),
    (
        "tonnage_hook.py",
        include_str!("../../../python/tonnage_hook.py"),
    ),
];

/// The folder for PYTHONPATH. It stays: what the command leaves behind may start a Python later.
pub fn folder(data: &Path) -> std::io::Result<PathBuf> {
    let at = data.join(concat!("hook-", env!("CARGO_PKG_VERSION")));
    std::fs::create_dir_all(&at)?;
    for (name, text) in FILES {
        let path = at.join(name);
        if std::fs::read_to_string(&path).is_ok_and(|t| t == text) {
            continue;
        }
        // whole or not at all, for a run that begins at the same moment
        let part = at.join(format!("{name}.{}", std::process::id()));
        std::fs::write(&part, text)?;
        std::fs::rename(&part, &path)?;
    }
    Ok(at)
}

/// PYTHONPATH with that folder in front.
pub fn python_path(folder: &Path) -> Option<std::ffi::OsString> {
    let old = std::env::var_os("PYTHONPATH").filter(|o| !o.is_empty());
    let all =
        std::iter::once(folder.to_path_buf()).chain(old.iter().flat_map(std::env::split_paths));
    std::env::join_paths(all).ok()
}
