//! Which Python a command runs, and what its torch is.

use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tonnage_core::Diagnostic;
use tonnage_core::verdict::Device;

/// What the environment's torch says of itself, without importing it.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Torch {
    pub version: Option<String>,
    pub cuda: Option<String>,
    pub hip: Option<String>,
}

/// The file that a command's first word names.
fn resolve(word: &str) -> Option<PathBuf> {
    if word.contains('/') {
        let p = PathBuf::from(word);
        return p.is_file().then_some(p);
    }
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|d| d.join(word))
        .find(|p| p.is_file())
}

fn is_python(p: &Path) -> bool {
    p.file_name()
        .and_then(|n| n.to_str())
        .and_then(|n| n.strip_prefix("python"))
        .is_some_and(|v| v.bytes().all(|b| b.is_ascii_digit() || b == b'.'))
}

/// The interpreter in a script's first lines: `#!/venv/bin/python`, `#!/usr/bin/env python3`, and the form that installers
/// write for long paths (`#!/bin/sh`, then `'''exec' /venv/bin/python "$0" "$@"`).
fn shebang(text: &str) -> Option<PathBuf> {
    let mut lines = text.lines();
    let first = lines.next()?.strip_prefix("#!")?.trim();
    let mut words = first.split_whitespace();
    let mut program = PathBuf::from(words.next()?);
    if program.file_name().is_some_and(|n| n == "env") {
        program = resolve(words.find(|w| !w.starts_with('-'))?)?;
    }
    if is_python(&program) {
        return Some(program);
    }
    let second = lines.next()?.strip_prefix("'''exec' ")?;
    let path = match second.strip_prefix('"') {
        Some(rest) => rest.split('"').next()?,
        None => second.split_whitespace().next()?,
    };
    Some(PathBuf::from(path)).filter(|p| is_python(p))
}

/// The Python that a command runs; `None`: it cannot be told (a shell script, another launcher).
///
/// # Errors
/// The command does not exist.
pub fn of(command: &[String]) -> Result<Option<PathBuf>, Diagnostic> {
    let word = command.first().map_or("", String::as_str);
    let Some(file) = resolve(word) else {
        let bad = Diagnostic::error("no-command", format!("{word}: no such command"));
        return Err(if word.ends_with(".py") {
            bad.help(format!(
                "a script needs its Python in front: -- python {word}"
            ))
        } else {
            bad
        });
    };
    if is_python(&file) {
        return Ok(Some(file));
    }
    let mut head = vec![0u8; 4096];
    let n = std::fs::File::open(&file)
        .and_then(|mut f| std::io::Read::read(&mut f, &mut head))
        .unwrap_or(0);
    Ok(shebang(&String::from_utf8_lossy(&head[..n])))
}

const QUESTION: &str = "
import importlib.util, json, os
s = importlib.util.find_spec('torch')
r = dict(version=None, cuda=None, hip=None)
if s is not None and s.origin:
    g = {}
    exec(open(os.path.join(os.path.dirname(s.origin), 'version.py')).read(), g)
    r = dict(version=str(g.get('__version__')), cuda=g.get('cuda'), hip=g.get('hip'))
print(json.dumps(r))
";

/// Asks an interpreter for its torch.
///
/// # Errors
/// The interpreter does not run.
pub fn torch(python: &Path) -> Result<Torch, Diagnostic> {
    let fail = |e: String| {
        Diagnostic::error(
            "no-python",
            format!("{} does not run: {e}", python.display()),
        )
    };
    let out = Command::new(python)
        .args(["-c", QUESTION])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| fail(e.to_string()))?;
    let text = String::from_utf8_lossy(&out.stdout);
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).map_err(|_| {
        let error = String::from_utf8_lossy(&out.stderr);
        fail(error.lines().last().unwrap_or("no answer").to_string())
    })
}

/// A torch that can be dry-run, or how to get one.
///
/// # Errors
/// What is missing and how to get it; code `unavailable`.
pub fn check(python: &Path, torch: &Torch, card: Option<&Device>) -> Result<(), Diagnostic> {
    let p = python.display();
    let capability = card.and_then(|d| d.gpu.compute_capability.as_ref());
    // builds for CUDA 12.8 begin with 7.5, those for 12.6 with 5.0 (pytorch, .ci/manywheel/build_cuda.sh)
    let old = capability.is_some_and(|c| (c.major, c.minor) < (7, 5));
    let get = format!(
        "a CUDA build installs without a GPU: {p} -m pip install torch --index-url https://download.pytorch.org/whl/{}",
        if old { "cu126" } else { "cu128" }
    );
    let bad = |m: String| Err(Diagnostic::error("unavailable", m).help(get.clone()));
    match (&torch.version, &torch.cuda, &torch.hip) {
        (None, ..) => bad(format!("{p} has no torch")),
        (Some(v), None, Some(_)) => bad(format!(
            "torch {v} of {p} is a ROCm build; the null device stands in for CUDA"
        )),
        (Some(v), None, None) => bad(format!("torch {v} of {p} is a build without CUDA")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreters_of_scripts() {
        let direct = shebang("#!/opt/venv/bin/python3.11\nimport x\n").unwrap();
        assert_eq!(direct, PathBuf::from("/opt/venv/bin/python3.11"));
        let long = "#!/bin/sh\n'''exec' /a/very/long/path/bin/python \"$0\" \"$@\"\n' '''\n";
        assert_eq!(
            shebang(long).unwrap(),
            PathBuf::from("/a/very/long/path/bin/python")
        );
        let spaced = "#!/bin/sh\n'''exec' \"/a b/bin/python3\" \"$0\" \"$@\"\n";
        assert_eq!(shebang(spaced).unwrap(), PathBuf::from("/a b/bin/python3"));
        assert_eq!(shebang("#!/bin/bash\npython x.py\n"), None);
        assert_eq!(shebang("\x7fELF"), None);
        assert!(is_python(Path::new("/usr/bin/python3.13")));
        assert!(!is_python(Path::new("/usr/bin/python3-config")));
    }

    #[test]
    fn builds_without_cuda_are_refused_with_the_way_out() {
        let p = Path::new("/v/bin/python");
        let t = |v: Option<&str>, c: Option<&str>, h: Option<&str>| Torch {
            version: v.map(Into::into),
            cuda: c.map(Into::into),
            hip: h.map(Into::into),
        };
        let card = |id| Device::of(tonnage_catalog::gpu(id).unwrap()).unwrap();
        assert!(check(p, &t(Some("2.11.0"), Some("13.0"), None), None).is_ok());
        for (id, index) in [("gtx-1050-ti", "cu126"), ("rtx-4090", "cu128")] {
            let d = check(p, &t(None, None, None), Some(&card(id))).unwrap_err();
            assert!(d.help.unwrap_or_default().ends_with(index), "{id}");
        }
        for (torch, says) in [
            (t(None, None, None), "has no torch"),
            (t(Some("2.11.0+cpu"), None, None), "a build without CUDA"),
            (t(Some("2.11.0+rocm"), None, Some("7.0")), "ROCm"),
        ] {
            let d = check(p, &torch, None).unwrap_err();
            assert_eq!(d.code, "unavailable");
            assert!(d.message.contains(says), "{}", d.message);
            assert!(d.help.unwrap_or_default().contains("pip install torch"));
        }
    }
}
