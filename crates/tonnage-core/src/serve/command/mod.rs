//! An engine's command line as a job: `vllm serve ...`, `llama-server -m ...`. Every flag is known by its engine's table: what decides about
//! memory is read, what does not is listed, what is not modelled is refused by name, and what the engine does not know is an error.

pub mod llamacpp;
pub mod sglang;
pub mod vllm;

use crate::doc::Diagnostic;
use tonnage_units::nearest;

/// A command line, read.
#[derive(Clone, Debug)]
pub enum Command {
    Llama(Box<llamacpp::Llama>),
    Sglang(Box<sglang::Sglang>),
    Vllm(Box<vllm::Vllm>),
}

/// Reads a command line. The first words name the engine.
///
/// # Errors
/// No engine, one that is not modelled, and every flag that is unknown, lacks its value, or asks for what is not modelled.
pub fn parse(words: &[String]) -> Result<Command, Diagnostic> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    // variables before the command: FOO=1 vllm serve
    let env = words
        .iter()
        .take_while(|w| w.split_once('=').is_some_and(|(k, _)| is_variable(k)))
        .count();
    let words = &words[env..];
    let Some(first) = words.first() else {
        return Err(usage(
            "no command after `--`",
            "for example: -- vllm serve MODEL, or -- llama-server -m FILE.gguf",
        ));
    };
    let program = first
        .rsplit(['/', '\\'])
        .next()
        .unwrap_or(first)
        .trim_end_matches(".exe");
    let rest = &words[1..];
    match (program, rest.first().copied()) {
        ("llama-server", _) => llamacpp::parse(llamacpp::Tool::Server, rest),
        ("llama-cli", _) => llamacpp::parse(llamacpp::Tool::Cli, rest),
        ("llama-completion" | "main", _) => llamacpp::parse(llamacpp::Tool::Completion, rest),
        ("ollama", Some("run")) => llamacpp::ollama(&rest[1..]),
        ("vllm", Some("serve")) => vllm::parse(&rest[1..]),
        ("vllm", Some(other)) => Err(unsupported(format!("vllm {other}"), "vllm serve is")),
        (p, Some("-m")) if p.starts_with("python") => match rest.get(1).copied() {
            Some("vllm.entrypoints.openai.api_server" | "vllm.entrypoints.api_server") => {
                vllm::parse(&rest[2..])
            }
            Some("sglang.launch_server") => sglang::parse(&rest[2..]),
            other => Err(unsupported(
                format!("python -m {}", other.unwrap_or("")),
                "python -m vllm.entrypoints.openai.api_server is",
            )),
        },
        ("sglang", Some("serve")) => sglang::parse(&rest[1..]),
        ("sglang", other) => Err(unsupported(
            format!("sglang {}", other.unwrap_or("")),
            "sglang serve is",
        )),
        _ => {
            let known = [
                "llama-server",
                "llama-cli",
                "llama-completion",
                "vllm",
                "sglang",
                "ollama",
            ];
            let help = match nearest(program, known) {
                Some(n) => format!("did you mean {n}?"),
                None => {
                    "known: vllm serve, sglang serve, llama-server, llama-cli, ollama run".into()
                }
            };
            Err(Diagnostic::error(
                "unknown-engine",
                format!("`{program}` is not a serving engine that is known here"),
            )
            .help(help))
        }
    }
}

fn is_variable(k: &str) -> bool {
    !k.is_empty()
        && k.bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

pub(crate) fn unsupported(what: String, instead: &str) -> Diagnostic {
    Diagnostic::error("unsupported", format!("{what} is not modelled; {instead}"))
}

pub(crate) fn usage(message: impl Into<String>, help: impl Into<String>) -> Diagnostic {
    Diagnostic::error("bad-command", message).help(help)
}

/// How many words a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    Nothing,
    One,
    /// One, where the next word is no flag.
    Maybe,
    /// All up to the next flag.
    Many,
}

/// What a flag is to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Read.
    Memory,
    /// Listed.
    Unrelated,
    /// Refused by name.
    NotModelled,
}

/// Flags of one kind: a group of spellings a word, `-c|--ctx-size`; the last one is the canonical spelling.
pub(crate) struct Group(pub(crate) Role, pub(crate) Takes, pub(crate) &'static str);

/// A flag as it was given.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    /// Canonical spelling.
    pub name: &'static str,
    /// As typed.
    pub typed: String,
    pub role: Role,
    pub values: Vec<String>,
    /// `--no-NAME`.
    pub negated: bool,
}

impl Given {
    pub fn value(&self) -> &str {
        self.values.first().map_or("", String::as_str)
    }
    /// As on the command line.
    pub fn line(&self) -> String {
        let mut t = self.typed.clone();
        for v in &self.values {
            t.push(' ');
            t.push_str(&quoted(v));
        }
        t
    }
}

/// A word for a POSIX shell.
pub(crate) fn quoted(w: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(&b);
    if !w.is_empty() && w.bytes().all(plain) {
        return w.into();
    }
    format!("'{}'", w.replace('\'', "'\\''"))
}

/// The spelling of an engine's flags.
pub(crate) struct Syntax {
    pub engine: &'static str,
    pub groups: &'static [Group],
    /// `--flag=value`, `--flag_name` and `--no-flag` (Python's argparse as vLLM uses it).
    pub python: bool,
}

impl Syntax {
    fn names(&self) -> impl Iterator<Item = (&Group, &'static str)> {
        self.groups
            .iter()
            .flat_map(|g| g.2.split_ascii_whitespace().map(move |n| (g, n)))
    }

    fn find(&self, word: &str) -> Option<(&Group, &'static str)> {
        self.names().find_map(|(g, names)| {
            names.split('|').any(|n| n == word).then(|| {
                let canonical = names.rsplit('|').next().unwrap_or(names);
                (g, canonical)
            })
        })
    }

    /// Flags and other words.
    pub fn scan(&self, words: &[&str]) -> Result<(Vec<Given>, Vec<String>), Diagnostic> {
        let (mut flags, mut others) = (Vec::new(), Vec::new());
        let mut i = 0;
        while i < words.len() {
            let word = words[i];
            i += 1;
            if !is_flag(word) {
                others.push(word.to_string());
                continue;
            }
            let (mut name, mut attached) = (word.to_string(), None);
            if self.python {
                if let Some((n, v)) = word.split_once('=') {
                    (name, attached) = (n.to_string(), Some(v.to_string()));
                }
                if name.starts_with("--") {
                    name = name.replace('_', "-");
                }
            }
            let (mut found, mut negated) = (self.find(&name), false);
            if found.is_none()
                && self.python
                && let Some(positive) = name.strip_prefix("--no-")
            {
                found = self
                    .find(&format!("--{positive}"))
                    .filter(|(g, _)| g.1 == Takes::Nothing);
                negated = found.is_some();
            }
            let Some((group, canonical)) = found else {
                return Err(self.unknown(&name));
            };
            let next = || words.get(i).filter(|w| !is_flag(w)).map(|w| w.to_string());
            let values = match (group.1, attached) {
                (Takes::Nothing, None) => vec![],
                (Takes::Nothing, Some(v)) => {
                    return Err(usage(
                        format!("{word}: {name} takes no value (`{v}`)"),
                        format!("give {name} alone"),
                    ));
                }
                (_, Some(v)) => vec![v],
                (Takes::One, None) => match words.get(i) {
                    Some(v) => {
                        i += 1;
                        vec![v.to_string()]
                    }
                    None => {
                        return Err(usage(format!("{name} needs a value"), "nothing follows it"));
                    }
                },
                (Takes::Maybe, None) => {
                    let v = next();
                    i += usize::from(v.is_some());
                    v.into_iter().collect()
                }
                (Takes::Many, None) => {
                    let list: Vec<String> = words[i..]
                        .iter()
                        .take_while(|w| !is_flag(w))
                        .map(|w| w.to_string())
                        .collect();
                    i += list.len();
                    list
                }
            };
            if group.0 == Role::NotModelled && !negated {
                return Err(unsupported(
                    format!("{} with {name}", self.engine),
                    "the same command without it is",
                ));
            }
            flags.push(Given {
                name: canonical,
                typed: name,
                role: group.0,
                values,
                negated,
            });
        }
        Ok((flags, others))
    }

    fn unknown(&self, name: &str) -> Diagnostic {
        let d = Diagnostic::error(
            "unknown-flag",
            format!("{} has no flag `{name}`", self.engine),
        );
        let all = self.names().flat_map(|(_, n)| n.split('|'));
        match nearest(name, all) {
            Some(n) => d.help(format!("did you mean {n}?")),
            None => d,
        }
    }
}

/// `-x`, `--xyz`; not `-1`, `-`.
fn is_flag(w: &str) -> bool {
    let mut c = w.chars();
    c.next() == Some('-')
        && c.next()
            .is_some_and(|c| c == '-' || c.is_ascii_alphabetic())
}

/// A whole number.
pub(crate) fn count(flag: &str, v: &str) -> Result<u64, Diagnostic> {
    v.parse().map_err(|_| {
        usage(
            format!("{flag} {v}: not a whole number"),
            "for example 8192",
        )
    })
}
