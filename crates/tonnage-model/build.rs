//! Embeds `catalog/architectures/*.toml` as a table sorted by name.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let folder = manifest.join("../../catalog/architectures");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut files: Vec<(String, PathBuf)> = fs::read_dir(&folder)
        .expect("catalog/architectures is there")
        .filter_map(|e| {
            let path = e.expect("readable").path();
            let name = path.file_stem()?.to_str()?.to_string();
            (path.extension()? == "toml").then_some((name, path))
        })
        .collect();
    files.sort();
    let mut table = String::from("&[\n");
    for (name, path) in &files {
        let path = path.canonicalize().expect("readable");
        println!("cargo::rerun-if-changed={}", path.display());
        let _ = writeln!(table, "({name:?}, include_str!({path:?})),");
    }
    table.push(']');
    fs::write(out.join("architectures.rs"), table).expect("OUT_DIR is writable");
}
