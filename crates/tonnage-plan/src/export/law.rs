//! What a file says against what the job says.

use super::format::{Format, Kind};
use tonnage_core::Job;
use tonnage_core::doc::{Diagnostic, Value};
use tonnage_core::job::{SETTINGS, Setting};

/// A setting in which two jobs differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    pub key: &'static str,
    /// What the first job has, its default included.
    pub ours: Option<Value>,
    pub theirs: Option<Value>,
}

/// Does this setting say anything in this job? (Adapters' settings in a job without adapters do not.)
fn applies(job: &Job, s: &Setting) -> bool {
    let table = s.key.split_once('.').map_or("", |(t, _)| t);
    match (table, s.key) {
        ("lora", _) => job.given("lora.r").is_some(),
        ("quant", _) => job.given("quant.format").is_some(),
        ("generate", _) => job.word("work.kind") == "generate",
        (_, "train.checkpoint_every" | "train.checkpoint_reentrant") => {
            job.word("train.activation_checkpointing") != "none"
        }
        (_, "train.loss_chunks") => job.word("train.loss") == "chunked",
        (_, "train.hold" | "train.zero_grad") => job.word("train.loop") == "plain",
        (_, "train.freeze_embeddings") => job.flag("train.freeze_embeddings"),
        _ => true,
    }
}

/// What `all-linear` adapts in every model that a format without the word knows.
const ALL_LINEAR: [&str; 7] = [
    "down_proj",
    "gate_proj",
    "k_proj",
    "o_proj",
    "q_proj",
    "up_proj",
    "v_proj",
];

/// Targets of adapters as a set: their order decides nothing.
fn target_set(v: Option<&Value>) -> Option<Vec<String>> {
    let mut names: Vec<String> = match v? {
        Value::Text(t) => vec![t.clone()],
        Value::List(l) => l
            .iter()
            .filter_map(|n| n.text().map(String::from))
            .collect(),
        _ => return None,
    };
    if names.iter().any(|n| n == "all-linear") {
        names = ALL_LINEAR.map(String::from).to_vec();
    }
    names.sort_unstable();
    names.dedup();
    Some(names)
}

fn same(a: Option<&Value>, b: Option<&Value>) -> bool {
    let plain = |v: &Value| match v {
        Value::Float(f) => serde_json::json!(f),
        Value::Int(i) => serde_json::json!(*i as f64),
        v => v.to_json(),
    };
    match (a, b) {
        (Some(a), Some(b)) => plain(a) == plain(b),
        (None, None) => true,
        _ => false,
    }
}

/// The settings in which two jobs differ, defaults counted as said.
pub fn differences(ours: &Job, theirs: &Job) -> Vec<Difference> {
    SETTINGS
        .iter()
        .filter(|s| applies(ours, s) || applies(theirs, s))
        .filter_map(|s| {
            let value = |j: &Job| applies(j, s).then(|| j.get(s.key)).flatten();
            let (a, b) = (value(ours), value(theirs));
            let same = match s.key {
                "lora.targets" => target_set(a.as_ref()) == target_set(b.as_ref()),
                _ => same(a.as_ref(), b.as_ref()),
            };
            (!same).then_some(Difference {
                key: s.key,
                ours: a,
                theirs: b,
            })
        })
        .collect()
}

fn shown(v: Option<&Value>) -> String {
    match v {
        Some(Value::Text(t)) => t.clone(),
        Some(Value::Float(f)) => format!("{f:?}"),
        Some(v) => v.shown(),
        None => "absent".into(),
    }
}

/// Why a format has no place for a setting, and the way out, where one is known.
fn why(format: &str, key: &str) -> Option<&'static str> {
    match (format, key) {
        ("hf", "lora.r") => Some("run_clm.py has no adapters: trl, axolotl and llamafactory have"),
        ("hf", "quant.format") => {
            Some("run_clm.py packs no weights: trl, axolotl and llamafactory do")
        }
        ("deepspeed", "train.precision") => Some(
            "DeepSpeed's own bf16 and fp16 keep fp32 copies, which is not simulated: autocast is said in the trainer's file",
        ),
        ("accelerate", "train.precision") => Some(
            "accelerate knows autocast alone: weights in half precision are loaded so by the script",
        ),
        _ => None,
    }
}

/// Holds what was read back against the job; `back` gets the job's model file and uncertain settings.
///
/// # Errors
/// What the job gives and the file does not say.
pub fn check(
    job: &Job,
    back: &mut Job,
    format: &Format,
) -> Result<Vec<Diagnostic>, Vec<Diagnostic>> {
    back.resolved.clone_from(&job.resolved);
    back.description.clone_from(&job.description);
    let mut bad = Vec::new();
    let mut notes = Vec::new();
    let mut otherwise = Vec::new();
    let all = differences(job, back);
    for d in all
        .iter()
        .filter(|d| format.keys.is_empty() || format.keys.contains(&d.key))
    {
        let (ours, theirs) = (shown(d.ours.as_ref()), shown(d.theirs.as_ref()));
        if job.given(d.key).is_some() {
            // of a table that the format has no place for, the key that makes it
            let table = d.key.split_once('.').map_or("", |(t, _)| t);
            let first = match table {
                "lora" => "lora.r",
                "quant" => "quant.format",
                _ => d.key,
            };
            if first != d.key && back.given(first).is_none() {
                continue;
            }
            let would = match &d.theirs {
                None => "there is no place for it".into(),
                Some(_) => format!("it would be `{theirs}`"),
            };
            bad.push(
                Diagnostic::error(
                    "cannot-express",
                    format!(
                        "`{}` = {ours} cannot be said in a file for {}: {would}",
                        d.key, format.name
                    ),
                )
                .help(match (why(format.name, d.key), &d.theirs) {
                    (Some(w), _) => w.to_string(),
                    (None, None) if table == "model" => {
                        "export to another format: `tonnage export` lists them".into()
                    }
                    (None, None) => {
                        format!("leave `{first}` out, or export to another format")
                    }
                    (None, Some(_)) => {
                        format!("set `{}` to `{theirs}`, or export to another format", d.key)
                    }
                }),
            );
        } else if d.theirs.is_some() && d.key != "lora.alpha" {
            otherwise.push(match d.ours {
                Some(_) => format!("`{}` = {theirs} (alone: {ours})", d.key),
                None => format!("`{}` = {theirs}", d.key),
            });
        }
    }
    if !otherwise.is_empty() {
        notes.push(Diagnostic::note(
            "as-the-tool-does",
            format!(
                "what the job leaves open is as {} has it: {}",
                format.name,
                otherwise.join(", ")
            ),
        ));
    }
    if format.kind != Kind::Companion && job.uncertain.len() != back.uncertain.len() {
        let keys: Vec<_> = job.uncertain.iter().map(|u| u.key.as_str()).collect();
        notes.push(Diagnostic::note(
            "expected-only",
            format!(
                "the file holds the expected values; the job's alternatives ({}) are not in it",
                keys.join(", ")
            ),
        ));
    }
    if bad.is_empty() { Ok(notes) } else { Err(bad) }
}
