//! Writes the functions that the sources do not: for each name in `symbols/`, what it does by rule.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

/// Names that stay the real library's: constants and texts, which need no device.
const REAL: &[&str] = &[
    "cublasLtGetVersion",
    "cublasLtGetCudartVersion",
    "cublasLtGetProperty",
    "cublasGetProperty",
    "cublasGetCudartVersion",
    "cudnnGetVersion",
    "cudnnGetCudartVersion",
    "cudnnGetProperty",
    "cudnnGetErrorString",
    "cudnnGetLastErrorString",
    "cusolverGetProperty",
    "cusolverGetVersion",
    "cusparseGetProperty",
    "cusparseGetErrorName",
    "cusparseGetErrorString",
    "cufftGetVersion",
    "cufftGetProperty",
    "curandGetVersion",
    "curandGetProperty",
    "ncclGetVersion",
];

/// Words in the names of functions that answer the host.
const ASKING: &[&str] = &[
    "Get",
    "Size",
    "size",
    "Query",
    "Open",
    "Import",
    "Export",
    "Plan",
    "Estim",
    "estim",
    "SpGEMM_",
    "Find",
    "nnz",
    "Nnz",
    "Callback",
    "Heuristic",
    "Check",
    "Alloc",
    "Malloc",
];

fn main() {
    println!("cargo::rerun-if-changed=symbols");
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-changed=build.rs");
    let mut written = BTreeSet::new();
    for entry in std::fs::read_dir("src").expect("src").flatten() {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        for line in text.lines() {
            let line = line.trim_start();
            let line = line.strip_prefix("pub extern \"C\" ").unwrap_or(line);
            if let Some(rest) = line.strip_prefix("fn ") {
                let name = rest
                    .split(|c: char| !c.is_alphanumeric() && c != '_')
                    .next()
                    .unwrap_or("");
                written.insert(name.to_string());
            }
        }
    }
    // name -> (place among the integer arguments, width, how many follow one another)
    let mut zeros: BTreeMap<String, (usize, &str, usize)> = BTreeMap::new();
    for line in std::fs::read_to_string("symbols/workspaces.txt")
        .expect("workspaces")
        .lines()
    {
        let mut words = line.split_whitespace();
        if let (Some(name), Some(place), Some(width), Some(count)) =
            (words.next(), words.next(), words.next(), words.next())
        {
            let width = if width == "8" { "u64" } else { "u32" };
            zeros.insert(
                name.to_string(),
                (
                    place.parse().expect("place"),
                    width,
                    count.parse().expect("count"),
                ),
            );
        }
    }
    let (mut done, mut made, mut refused) =
        (String::new(), String::new(), BTreeMap::<i32, String>::new());
    let (mut zero, mut zero_two) = (String::new(), String::new());
    for (file, code) in [
        ("cudart", 801),
        ("cuda", 801),
        ("cublas", 15),
        ("cudnn", 3000),
        ("cusolver", 9),
        ("cusparse", 10),
        ("cufft", 16),
        ("curand", 201),
        ("nccl", 5),
        ("cusparselt", 10),
    ] {
        let list = std::fs::read_to_string(Path::new("symbols").join(format!("{file}.txt")))
            .expect("symbols");
        for name in list
            .lines()
            .filter(|n| !written.contains(*n) && !REAL.contains(n))
        {
            let math = !matches!(file, "cudart" | "cuda" | "nccl" | "cusparselt");
            if let Some((place, width, count)) = zeros.get(name) {
                let before: String = (0..*place).map(|i| format!("_a{i} ")).collect();
                let to = if *count == 2 {
                    &mut zero_two
                } else {
                    &mut zero
                };
                writeln!(to, "{name} {width} ({before});").expect("text");
            } else if math
                && (name.contains("Create") || name.contains("_create"))
                && !name.contains("Identity")
            {
                writeln!(made, "{name}").expect("text");
            } else if math && !ASKING.iter().any(|w| name.contains(w)) {
                writeln!(done, "{name}").expect("text");
            } else {
                writeln!(refused.entry(code).or_default(), "{name}").expect("text");
            }
        }
    }
    let mut out = format!(
        "done! {{ {done} }}\nmade! {{ {made} }}\nzero! {{ {zero} }}\nzero_two! {{ {zero_two} }}\n"
    );
    for (code, names) in refused {
        writeln!(out, "refused! {{ {code} {names} }}").expect("text");
    }
    let to = std::env::var("OUT_DIR").expect("OUT_DIR");
    std::fs::write(Path::new(&to).join("rest.rs"), out).expect("rest.rs");
}
