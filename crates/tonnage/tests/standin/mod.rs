//! The stand-in for NVIDIA's management library, built once, and the program run against it.
#![allow(dead_code)] // each test file uses its own part

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The folder with the stand-in's `libnvidia-ml.so.1`.
pub fn library() -> &'static Path {
    static AT: OnceLock<PathBuf> = OnceLock::new();
    AT.get_or_init(|| {
        let source = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tonnage-host/tests/standin/nvml.rs"
        );
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
        // each test program builds its own under a name of its own, then puts it in place whole
        let own = dir.join(format!("nvml-{}", std::process::id()));
        std::fs::create_dir_all(&own).expect("a folder");
        let lib = own.join("libnvidia-ml.so.1");
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let o = Command::new(rustc)
            .args([
                "--edition",
                "2024",
                "--crate-type",
                "cdylib",
                "-C",
                "debuginfo=0",
            ])
            .arg(source)
            .arg("-o")
            .arg(&lib)
            .output()
            .expect("rustc starts");
        assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
        let shared = dir.join("nvml");
        std::fs::create_dir_all(&shared).expect("a folder");
        std::fs::rename(&lib, shared.join("libnvidia-ml.so.1")).expect("in place");
        let _ = std::fs::remove_dir_all(own);
        shared
    })
}

/// A machine with the devices of a script, and a home of its own.
pub struct Machine {
    pub dir: tempfile::TempDir,
}

impl Machine {
    /// By the stand-in's script.
    pub fn new(script: &str) -> Machine {
        let dir = tempfile::tempdir().expect("a folder");
        let text = script.replace("$DIR", &dir.path().display().to_string());
        std::fs::write(dir.path().join("nvml.txt"), text).expect("written");
        std::fs::create_dir_all(dir.path().join("live")).expect("a folder");
        std::fs::create_dir_all(dir.path().join("publish")).expect("a folder");
        Machine { dir }
    }
    /// A path in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }
    /// The program, to be started there.
    pub fn tonnage(&self, args: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_tonnage"));
        self.environment(&mut c);
        c.args(args);
        c
    }
    /// Another program, on the same machine.
    pub fn environment(&self, c: &mut Command) {
        c.current_dir(self.dir.path())
            .env("LD_LIBRARY_PATH", library())
            .env("TONNAGE_STANDIN_NVML", self.path("nvml.txt"))
            .env("TONNAGE_PUBLISH", self.path("publish"))
            .env("TONNAGE_DATA", self.path("data"))
            .env("TERM", "xterm-256color")
            .env("LANG", "C.UTF-8")
            .env_remove("NO_COLOR");
    }
    pub fn run(&self, args: &[&str]) -> Output {
        self.tonnage(args).output().expect("the program starts")
    }
}

pub fn out(o: &Output) -> String {
    String::from_utf8_lossy(&o.stdout).into_owned()
}

pub fn err(o: &Output) -> String {
    String::from_utf8_lossy(&o.stderr).into_owned()
}

/// One card of 24 GiB and what it holds by the number of the query.
pub fn card(used: &str) -> String {
    format!(
        "device|NVIDIA GeForce RTX 4090|GPU-11111111-2222-3333-4444-555555555555|00000000:01:00.0|25757220864|458752000\nbusy|0|37\nused|0|{used}\n"
    )
}

/// Checks an output against the program's own schema: types, required and unknown fields, constants.
pub fn conforms(name: &str, v: &serde_json::Value) {
    let o = Command::new(env!("CARGO_BIN_EXE_tonnage"))
        .args(["schema", name])
        .output()
        .expect("starts");
    let schema: serde_json::Value = serde_json::from_slice(&o.stdout).expect("a schema");
    part(&schema, &schema, v, name);
}

fn part(s: &serde_json::Value, root: &serde_json::Value, v: &serde_json::Value, at: &str) {
    if let Some(r) = s["$ref"].as_str() {
        let target = root
            .pointer(r.trim_start_matches('#'))
            .expect("a definition");
        return part(target, root, v, at);
    }
    if let Some(any) = s["anyOf"].as_array() {
        return if v.is_null() {
        } else {
            part(&any[0], root, v, at)
        };
    }
    if let Some(c) = s.get("const") {
        assert_eq!(v, c, "{at}");
    }
    if let Some(e) = s["enum"].as_array() {
        assert!(e.contains(v), "{at}: {v}");
    }
    let ok = match s["type"].as_str() {
        Some("object") => {
            let o = v.as_object().unwrap_or_else(|| panic!("{at}: {v}"));
            for r in s["required"].as_array().into_iter().flatten() {
                assert!(
                    o.contains_key(r.as_str().expect("a name")),
                    "{at}: {r} is missing"
                );
            }
            for (k, x) in o {
                match s["properties"].get(k) {
                    Some(p) => part(p, root, x, &format!("{at}.{k}")),
                    None => assert!(
                        s["additionalProperties"] != false,
                        "{at}: {k} is not in the schema"
                    ),
                }
            }
            true
        }
        Some("array") => {
            let a = v.as_array().unwrap_or_else(|| panic!("{at}: {v}"));
            for (i, x) in a.iter().enumerate() {
                part(&s["items"], root, x, &format!("{at}[{i}]"));
            }
            true
        }
        Some("string") => v.is_string(),
        Some("boolean") => v.is_boolean(),
        Some("number") => v.is_number(),
        Some("integer") => v.is_i64() || v.is_u64(),
        _ => true,
    };
    assert!(ok, "{at}: {v}");
}
