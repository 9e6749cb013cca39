//! What the documents show is what the program does. With TONNAGE_BLESS=1 the documents are rewritten instead of compared.

mod common;
use common::document::{root, same};
use common::{stderr, stdout, tonnage};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tonnage_core::footprint::Options;
use tonnage_report::{Style, text};

/// README.md and every Markdown file below docs/.
fn documents() -> Vec<PathBuf> {
    let mut all = vec![root().join("README.md")];
    let mut folders = vec![root().join("docs")];
    while let Some(f) = folders.pop() {
        for e in std::fs::read_dir(f).unwrap().flatten() {
            let p = e.path();
            if p.is_dir() {
                folders.push(p);
            } else if p.extension().is_some_and(|x| x == "md") {
                all.push(p);
            }
        }
    }
    all.sort();
    all
}

/// The words of a command line; quotes hold words together.
fn words(line: &str) -> Vec<String> {
    let (mut out, mut word, mut quote, mut any) = (Vec::new(), String::new(), None, false);
    for c in line.chars() {
        match quote {
            Some(q) if c == q => quote = None,
            Some(_) => word.push(c),
            None if c == '\'' || c == '"' => (quote, any) = (Some(c), true),
            None if c == ' ' => {
                if any || !word.is_empty() {
                    out.push(std::mem::take(&mut word));
                }
                any = false;
            }
            None => word.push(c),
        }
    }
    if any || !word.is_empty() {
        out.push(word);
    }
    out
}

/// What a command of a document prints; None: it is no command of ours (the tests themselves, an installation).
fn answer(command: &str) -> Option<String> {
    let command = command.split(" # ").next().unwrap_or(command).trim();
    let (command, head) = match command.split_once(" | head -n ") {
        Some((c, n)) => (c, Some(n.trim().parse::<usize>().expect("head -n NUMBER"))),
        None => (command, None),
    };
    let args = command
        .strip_prefix("tonnage ")
        .or_else(|| command.strip_prefix("cargo run --release -- "))?;
    let args = words(args);
    let o = tonnage(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let code = o.status.code();
    assert!(
        matches!(code, Some(0 | 1)),
        "{command}: {code:?} {}",
        stderr(&o)
    );
    let all = stdout(&o);
    Some(match head {
        Some(n) => all.lines().take(n).map(|l| format!("{l}\n")).collect(),
        None => all,
    })
}

/// A command that needs what a test has not (a device, a log, a trained file): its verb and every flag are the program's.
fn accepted(command: &str, path: &Path) {
    let command = command.replace("cargo run --release -- ", "tonnage ");
    for own in command.split(" | ").filter(|p| p.starts_with("tonnage ")) {
        let own = own.split(" # ").next().unwrap_or(own);
        accepted_alone(own.split(" -- ").next().unwrap_or(own), path);
    }
}

fn accepted_alone(command: &str, path: &Path) {
    let words = words(command);
    let verb = words.get(1).expect("a verb");
    let mut help = vec![verb.as_str(), "--help"];
    // "tonnage history show 12": a verb of a verb
    if let Some(sub) = words.get(2).filter(|_| verb == "history") {
        help.insert(1, sub);
    }
    let o = tonnage(&help);
    assert_eq!(o.status.code(), Some(0), "{}: {command}", path.display());
    let known = stdout(&o);
    for flag in words.iter().filter(|w| w.starts_with("--")) {
        let flag = flag.split('=').next().unwrap_or(flag);
        assert!(
            known.contains(&format!("{flag} ")) || known.contains(&format!("{flag}\n")),
            "{}: `{command}`: {verb} has no {flag}",
            path.display()
        );
    }
}

#[test]
fn every_command_of_the_documents_runs_and_prints_what_stands_there() {
    let mut commands = 0;
    for path in documents() {
        let old = std::fs::read_to_string(&path).unwrap();
        let mut new = String::new();
        let mut lines = old.lines().peekable();
        let mut fence: Option<&str> = None;
        while let Some(line) = lines.next() {
            new += line;
            new.push('\n');
            if let Some(language) = line.strip_prefix("```") {
                fence = if fence.is_some() {
                    None
                } else {
                    Some(language)
                };
                continue;
            }
            let shows = line.trim_start();
            let ours =
                shows.starts_with("tonnage ") || shows.starts_with("cargo run --release -- ");
            let code = fence.is_some() || line.starts_with("    ");
            if ours && code {
                accepted(shows, &path);
            }
            let Some(command) = line.strip_prefix("$ ").filter(|_| fence == Some("console")) else {
                continue;
            };
            let mut shown = String::new();
            while let Some(next) = lines.next_if(|l| !l.starts_with("```") && !l.starts_with("$ "))
            {
                shown += next;
                shown.push('\n');
            }
            let Some(printed) = answer(command) else {
                assert!(
                    command.starts_with("cargo "),
                    "{}: {command}",
                    path.display()
                );
                new += &shown;
                continue;
            };
            commands += 1;
            // a command alone: that it runs is all that is said
            new += if shown.is_empty() { "" } else { &printed };
        }
        same(&path, &old, &new);
    }
    assert!(commands >= 5, "{commands}");
}

#[test]
fn every_example_has_an_answer() {
    let mut n = 0;
    for e in std::fs::read_dir(root().join("examples"))
        .unwrap()
        .flatten()
    {
        let p = e.path();
        if p.extension().is_none_or(|x| x != "toml") {
            continue;
        }
        n += 1;
        let o = tonnage(&[
            "estimate",
            p.to_str().unwrap(),
            "--expected-only",
            "--format",
            "json",
        ]);
        assert_eq!(o.status.code(), Some(0), "{}: {}", p.display(), stderr(&o));
        let v: Value = serde_json::from_slice(&o.stdout).unwrap();
        assert_eq!(v["schema"], "tonnage.footprint/1");
        assert!(v["peak"]["device"]["expected"].as_u64() > Some(0));
        // the claim that the job's source makes stands in the file's comment
        let text = std::fs::read_to_string(&p).unwrap();
        assert!(
            text.contains('#'),
            "{}: no comment says what it is",
            p.display()
        );
    }
    assert!(n >= 8, "{n}");
}

#[test]
fn the_readmes_job_as_text_at_three_widths() {
    let file = "examples/deepseek-qlora.toml";
    let source = std::fs::read_to_string(root().join(file)).unwrap();
    let job = tonnage_core::import::read(file, &source).unwrap();
    let f = common::run(&job, &Options::default()).footprint;
    for width in [60, 80, 120] {
        let style = Style {
            width,
            ..Style::default()
        };
        let t = text::footprint(&f, &style);
        assert!(t.is_ascii() && !t.contains('\x1b'), "{width}");
        for l in t.lines().filter(|l| l.len() > width) {
            // an address, or one word that cannot be divided
            assert!(
                l.contains("https://") || !l.trim().contains(' '),
                "{width}: {l}"
            );
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(format!("tests/snapshots/deepseek-qlora-{width}.txt"));
        let old = std::fs::read_to_string(&path).unwrap_or_default();
        same(&path, &old, &t);
    }
}

#[test]
fn in_a_pipe_there_is_no_colour_and_the_width_is_the_flags() {
    let args = ["estimate", "examples/gpt2.toml", "--gpu", "rtx-3060-12gb"];
    let plain = tonnage(&[&args[..], &["--width", "60"]].concat());
    let ascii = tonnage(&[&args[..], &["--width", "60", "--ascii"]].concat());
    assert_eq!(plain.stdout, ascii.stdout);
    assert!(plain.stdout.is_ascii() && !plain.stdout.contains(&0x1b));
    assert!(
        stdout(&plain).lines().all(|l| l.len() <= 60),
        "{}",
        stdout(&plain)
    );
    for more in [["gpus", "h100"], ["models", "llama-2"]] {
        let t = stdout(&tonnage(&more));
        assert!(t.is_ascii() && t.lines().all(|l| l.len() <= 80), "{t}");
    }
    // a reader that goes away ends the program, and nothing else
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_tonnage"))
        .arg("models")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let o = child.wait_with_output().unwrap();
    assert!(o.stderr.is_empty(), "{}", stderr(&o));
}
