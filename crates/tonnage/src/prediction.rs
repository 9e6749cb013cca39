//! What `tonnage run` says before the command starts: the estimate, and the verdict for the card as it is now.

use crate::commands::run::{RunArgs, say, trouble};
use crate::output::Output;
use serde_json::Value;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tonnage_units::Bytes;

/// An estimate that takes longer is left out: the run does not wait for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is estimated: a job, or the command itself where it is a serving engine's.
enum Asked {
    Job(PathBuf),
    Engine,
}

/// The prediction's JSON and the job as TOML; both made by this program in a process of its own, so that nothing there can touch the run.
pub fn predict(a: &RunArgs, out: &Output) -> Option<(Value, Option<String>)> {
    let engine = || {
        let other = ["unknown-engine", "bad-command"];
        match tonnage_core::serve::command::parse(&a.command) {
            Err(d) if other.contains(&d.code) || is_python_without_engine(&a.command) => None,
            _ => Some(Asked::Engine),
        }
    };
    let asked: Vec<Asked> = match &a.job {
        Some(j) => vec![Asked::Job(j.clone())],
        None => match engine() {
            Some(e) => vec![e],
            None => configurations(&a.command),
        },
    };
    let ask = |what: &Asked, extra: &[&str]| -> Result<String, String> {
        let me = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut c = Command::new(me);
        c.arg("estimate").args(extra);
        for f in &out.catalogs.files {
            c.arg("--catalog").arg(f);
        }
        if let Some(g) = &a.gpu {
            c.args(["--gpu", g]);
        }
        match what {
            Asked::Job(j) => c.arg(j),
            Asked::Engine => c.arg("--").args(&a.command),
        };
        c.stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        answer(c)
    };
    let mut complaint = None;
    for what in &asked {
        match ask(what, &["--format", "json"]) {
            Ok(t) => {
                let v: Value = serde_json::from_str(&t).ok()?;
                if !a.quiet {
                    say(&match what {
                        Asked::Job(_) => announced(&v, out),
                        Asked::Engine => announced_engine(&v, a.gpu.as_deref(), out),
                    });
                }
                let job = match what {
                    Asked::Job(_) => ask(what, &["--write-job"]).ok(),
                    Asked::Engine => None,
                };
                return Some((v, job));
            }
            Err(e) => complaint = complaint.or(Some((what, e))),
        }
    }
    if let Some((what, e)) = complaint {
        let (name, e) = match what {
            Asked::Job(j) => (j.display().to_string(), e),
            Asked::Engine => ("this command".into(), e),
        };
        // a file among the arguments that is no job is nobody's mistake: one line
        if a.job.is_some() {
            say(&format!("{}\n", e.trim_end()));
            trouble(&format!("no estimate of {name}"));
        } else if !a.quiet {
            let line = e.lines().next().unwrap_or("no answer");
            let line = line.strip_prefix("error: ").unwrap_or(line);
            trouble(&format!("no estimate of {name}: {line}"));
        }
    }
    None
}

/// `python -m` of something that is no engine.
fn is_python_without_engine(command: &[String]) -> bool {
    let known = ["vllm.", "sglang."];
    command
        .iter()
        .position(|w| w == "-m")
        .and_then(|i| command.get(i + 1))
        .is_some_and(|m| !known.iter().any(|k| m.starts_with(k)))
}

/// Its standard output, or what it complained of.
fn answer(mut c: Command) -> Result<String, String> {
    let mut child = c.spawn().map_err(|e| e.to_string())?;
    let read = |r: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut t = String::new();
            if let Some(mut r) = r {
                let _ = r.read_to_string(&mut t);
            }
            t
        })
    };
    let said = read(child.stdout.take().map(|r| Box::new(r) as _));
    let complained = read(child.stderr.take().map(|r| Box::new(r) as _));
    let begun = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(s)) => break s,
            Ok(None) if begun.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(2));
            }
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!(
                    "the estimate takes more than {} s",
                    PATIENCE.as_secs()
                ));
            }
        }
    };
    let text = said.join().unwrap_or_default();
    // 1: it does not fit, which is an answer
    if matches!(status.code(), Some(0 | 1)) && !text.is_empty() {
        Ok(text)
    } else {
        Err(complained.join().unwrap_or_default())
    }
}

/// Files among the command's arguments that may be a job.
fn configurations(command: &[String]) -> Vec<Asked> {
    command
        .iter()
        .skip(1)
        .map(|w| w.split_once('=').map_or(w.as_str(), |(_, v)| v))
        .map(Path::new)
        .filter(|p| {
            let ending = p.extension().and_then(|e| e.to_str());
            matches!(ending, Some("json" | "toml" | "yaml" | "yml"))
                && p.metadata().is_ok_and(|m| m.is_file() && m.len() < 1 << 20)
        })
        // the launcher's file comes before the script's
        .take(4)
        .map(|p| Asked::Job(p.to_path_buf()))
        .collect()
}

/// A serving engine's estimate in a few lines.
fn announced_engine(v: &Value, gpu: Option<&str>, out: &Output) -> String {
    let word = |k: &str| v[k].as_str().unwrap_or("?").to_string();
    let bytes = |x: &Value| {
        x.as_u64().map_or_else(
            || "?".into(),
            |b| Bytes(b).display(out.style.units).to_string(),
        )
    };
    let mut t = format!(
        "tonnage: {} on {} {}:",
        word("model"),
        word("engine"),
        word("engine_version")
    );
    for row in v["totals"].as_array().into_iter().flatten() {
        let at = row["device"]
            .as_u64()
            .map_or("host".into(), |n| format!("device {n}"));
        t += &format!(" {at} {},", bytes(&row["bytes"]));
    }
    t.truncate(t.len() - 1);
    t.push('\n');
    for row in v["fits"].as_array().into_iter().flatten() {
        let outcome = match row["outcome"].as_str() {
            Some("fits") => "fits",
            Some("tight") => "tight",
            _ => "does not fit",
        };
        let state = match gpu {
            None | Some(crate::here::AUTO) => "as it is now, ",
            Some(_) => "idle, ",
        };
        t += &format!(
            "tonnage: {} ({state}{} usable): {outcome}, {}\n",
            row["name"].as_str().unwrap_or("card"),
            bytes(&row["usable_bytes"]),
            row["why"].as_str().unwrap_or("")
        );
    }
    if let Some(m) = v["refused"]["message"].as_str() {
        t += &format!("tonnage: it will refuse to start: {m}\n");
    }
    t
}

/// The estimate in a few lines.
fn announced(v: &Value, out: &Output) -> String {
    let amount = |l: &str| {
        v["peak"][l]["expected"].as_u64().map_or_else(
            || "?".into(),
            |b| Bytes(b).display(out.style.units).to_string(),
        )
    };
    let mut t = format!(
        "tonnage: {}: peak allocated {}, reserved {}, device {}\n",
        v["job"].as_str().unwrap_or("the job"),
        amount("allocated"),
        amount("reserved"),
        amount("device")
    );
    for row in v["verdicts"].as_array().into_iter().flatten() {
        let Some(c) = row["cases"][0][1].as_object() else {
            continue;
        };
        let bytes = |k: &str| {
            c.get(k)
                .and_then(Value::as_u64)
                .map(|b| Bytes(b).display(out.style.units).to_string())
        };
        let word = match c.get("outcome").and_then(Value::as_str) {
            Some("fits") => "fits",
            Some("tight") => "tight",
            _ => "does not fit",
        };
        let free = match bytes("free_now_bytes") {
            Some(f) => format!("as it is now, {f} free"),
            None => format!("idle, {} usable", bytes("usable_bytes").unwrap_or_default()),
        };
        t += &format!(
            "tonnage: {} ({free}): {word}, {}\n",
            c.get("name").and_then(Value::as_str).unwrap_or("card"),
            c.get("why").and_then(Value::as_str).unwrap_or("")
        );
    }
    t
}
