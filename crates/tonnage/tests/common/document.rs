//! A document against the program: compared, or rewritten where TONNAGE_BLESS=1 is set.

use std::path::{Path, PathBuf};

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub fn bless() -> bool {
    std::env::var_os("TONNAGE_BLESS").is_some()
}

/// Compares a file's text with what it should be; writes it where blessed.
pub fn same(path: &Path, old: &str, new: &str) {
    if old == new {
        return;
    }
    if bless() {
        std::fs::write(path, new).unwrap();
        return;
    }
    let first = old.lines().zip(new.lines()).find(|(a, b)| a != b);
    let lines = (old.lines().count(), new.lines().count());
    panic!(
        "{} is not what the program says (TONNAGE_BLESS=1 rewrites it); lines {lines:?}, the first that differs (file, program): {first:#?}",
        path.display()
    );
}
