//! Lists the recorded model headers (`groundtruth/gguf`) so that the program can carry them.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let data = manifest.join("../../groundtruth/gguf");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", data.display());
    let mut names: Vec<String> = fs::read_dir(&data)
        .map(|d| {
            d.filter_map(|e| {
                let name = e.ok()?.file_name().into_string().ok()?;
                Some(name.strip_suffix(".gguf-header.gz")?.to_string())
            })
            .collect()
        })
        .unwrap_or_default();
    names.sort();
    let mut text = String::from("static HEADERS: &[(&str, &[u8])] = &[\n");
    for n in names {
        let path = data.join(format!("{n}.gguf-header.gz"));
        let _ = writeln!(
            text,
            "    ({n:?}, include_bytes!({:?})),",
            path.display().to_string()
        );
    }
    text.push_str("];\n");
    fs::write(out.join("headers.rs"), text).expect("OUT_DIR is writable");
}
