//! Turns `catalog/` into tables that are searched without parsing: sorted keys with row offsets for the CSV files,
//! and one blob of minified `config.json` texts with a sorted index.
#[path = "src/csv.rs"]
mod csv;
#[path = "src/key.rs"]
mod key;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// A row's bytes in the file and its fields.
type Row = (usize, usize, Vec<String>);

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let data = manifest.join("../../catalog");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", data.display());
    gpus(&data, &out);
    instances(&data, &out);
    models(&data, &out);
}

/// Copies a CSV to the output folder and returns its header and rows with their byte ranges.
fn table(data: &Path, out: &Path, name: &str) -> (Vec<String>, Vec<Row>) {
    let text =
        fs::read_to_string(data.join(name)).unwrap_or_else(|e| panic!("catalog/{name}: {e}"));
    fs::write(out.join(name), &text).expect("OUT_DIR is writable");
    let mut at = 0;
    let mut header = Vec::new();
    let mut rows = Vec::new();
    for (n, line) in text.split_inclusive('\n').enumerate() {
        let body = line.trim_end_matches(['\n', '\r']);
        let fields =
            csv::fields(body).unwrap_or_else(|| panic!("catalog/{name}:{}: bad quoting", n + 1));
        if n == 0 {
            header = fields;
        } else {
            assert_eq!(
                fields.len(),
                header.len(),
                "catalog/{name}:{}: number of fields",
                n + 1
            );
            rows.push((at, at + body.len(), fields));
        }
        at += line.len();
    }
    (header, rows)
}

fn column(header: &[String], name: &str) -> usize {
    header
        .iter()
        .position(|h| h == name)
        .unwrap_or_else(|| panic!("no column {name}"))
}

fn write_index(out: &Path, file: &str, rows: &[Row], mut keys: Vec<(String, u8, usize)>) {
    keys.sort();
    keys.dedup();
    let mut s = String::from("&[\n");
    for (key, kind, row) in &keys {
        let _ = writeln!(s, "({key:?},{kind},{row}),");
    }
    s.push(']');
    fs::write(out.join(format!("{file}_keys.rs")), s).expect("OUT_DIR is writable");
    let mut s = String::from("&[");
    for (a, b, _) in rows {
        let _ = write!(s, "({a},{b}),");
    }
    s.push(']');
    fs::write(out.join(format!("{file}_rows.rs")), s).expect("OUT_DIR is writable");
}

fn gpus(data: &Path, out: &Path) {
    let (header, rows) = table(data, out, "gpus.csv");
    let (id, name, aliases) = (
        column(&header, "id"),
        column(&header, "name"),
        column(&header, "aliases"),
    );
    let mut keys = Vec::new();
    for (n, (_, _, f)) in rows.iter().enumerate() {
        keys.push((key::normalise(&f[id]), 0, n));
        keys.push((key::normalise(&f[name]), 1, n));
        if let Some(short) = key::without_vendor(&f[name]) {
            keys.push((key::normalise(short), 2, n));
        }
        for alias in f[aliases].split(';').filter(|a| !a.trim().is_empty()) {
            keys.push((key::normalise(alias), 2, n));
        }
    }
    write_index(out, "gpus", &rows, keys);
}

fn instances(data: &Path, out: &Path) {
    let (header, rows) = table(data, out, "instances.csv");
    let (provider, instance) = (column(&header, "provider"), column(&header, "instance"));
    let mut keys = Vec::new();
    for (n, (_, _, f)) in rows.iter().enumerate() {
        let name = f[instance].to_lowercase();
        keys.push((format!("{}/{name}", f[provider].to_lowercase()), 0, n));
        keys.push((name, 1, n));
    }
    write_index(out, "instances", &rows, keys);
}

/// JSON without the white space outside its strings. Python's writer leaves `Infinity` and `NaN` bare, which is not JSON;
/// no such field has an effect on sizes, so the embedded text has `null` there.
fn minify(text: &str) -> String {
    let (mut out, mut in_string, mut escaped) = (String::with_capacity(text.len()), false, false);
    for c in text.chars() {
        if in_string {
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else if c.is_ascii_whitespace() {
            continue;
        } else {
            in_string = c == '"';
        }
        out.push(c);
        if !in_string {
            for word in ["-Infinity", "Infinity", "NaN"] {
                if out.ends_with(word) {
                    out.truncate(out.len() - word.len());
                    out.push_str("null");
                }
            }
        }
    }
    out
}

fn models(data: &Path, out: &Path) {
    let folder = data.join("models");
    let index = fs::read_to_string(folder.join("INDEX.jsonl")).expect("catalog/models/INDEX.jsonl");
    let mut rows: Vec<serde_json::Value> = index
        .lines()
        .filter(|l| !l.trim().is_empty())
        .enumerate()
        .map(|(n, l)| {
            serde_json::from_str(l)
                .unwrap_or_else(|e| panic!("catalog/models/INDEX.jsonl:{}: {e}", n + 1))
        })
        .collect();
    let text = |v: &serde_json::Value, k: &str| v[k].as_str().map(str::to_owned);
    rows.sort_by_key(|r| text(r, "id").expect("id").to_lowercase());
    let mut blob = String::new();
    let mut table = String::from("&[\n");
    let mut short = Vec::new();
    for (n, r) in rows.iter().enumerate() {
        let id = text(r, "id").expect("id");
        let dir = text(r, "dir").expect("dir");
        let raw = fs::read_to_string(folder.join(&dir).join("config.json"))
            .unwrap_or_else(|e| panic!("catalog/models/{dir}/config.json: {e}"));
        let config = minify(&raw);
        serde_json::from_str::<serde_json::Value>(&config)
            .unwrap_or_else(|e| panic!("catalog/models/{dir}/config.json: {e}"));
        let _ = writeln!(
            table,
            "Model {{ id: {id:?}, key: {:?}, offset: {}, len: {}, model_type: {:?}, torch_dtype: {:?}, params_exact: {:?}, \
             params_basis: {:?}, checkpoint_total: {:?}, source: {:?}, confidence: {:?} }},",
            id.to_lowercase(),
            blob.len(),
            config.len(),
            text(r, "model_type").expect("model_type"),
            text(r, "torch_dtype"),
            r["params_exact"].as_u64(),
            text(r, "params_basis"),
            r["hf_total_numel"].as_u64(),
            text(r, "source").expect("source"),
            text(r, "confidence").expect("confidence"),
        );
        blob.push_str(&config);
        let name = id.rsplit('/').next().unwrap_or(&id).to_lowercase();
        short.push((name, n));
    }
    table.push(']');
    short.sort();
    let mut s = String::from("&[\n");
    for (name, n) in short {
        let _ = writeln!(s, "({name:?},{n}),");
    }
    s.push(']');
    fs::write(out.join("models.blob"), blob).expect("OUT_DIR is writable");
    fs::write(out.join("models.rs"), table).expect("OUT_DIR is writable");
    fs::write(out.join("models_short.rs"), s).expect("OUT_DIR is writable");
}
