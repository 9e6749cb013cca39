//! What a document's words mean: a subject is a job, a setting of the document is settings of the job. Printed with every answer, corrected in a
//! bindings file beside the document.

use super::claim::{Claim, Phase, Settings};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tonnage_core::job::Origin;
use tonnage_core::{Diagnostic, Job, import};
use tonnage_units::nearest;

/// A bindings file (`GUIDE.md` has `GUIDE.audit.toml`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bindings {
    #[serde(default)]
    pub document: Document,
    /// Subjects of the document, first match wins.
    #[serde(default)]
    pub subject: Vec<SubjectRow>,
    /// Settings in the document's words.
    #[serde(default)]
    pub setting: Vec<SettingRow>,
    /// Corrections of single claims.
    #[serde(default)]
    pub claim: Vec<ClaimRow>,
}

/// `[document]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Document {
    /// A prediction within this part of the claim holds.
    pub tolerance: f64,
    /// The subject of claims that name none.
    pub subject: Option<String>,
}

impl Default for Document {
    fn default() -> Document {
        Document {
            tolerance: 0.1,
            subject: None,
        }
    }
}

/// `[[subject]]`: a name in the document is this job.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubjectRow {
    pub names: Vec<String>,
    /// Only in this phase.
    pub phase: Option<String>,
    /// A job file, beside the bindings file.
    pub file: Option<String>,
    /// A job as TOML text.
    pub job: Option<String>,
    /// Settings on top, by the job's names.
    #[serde(default)]
    pub set: BTreeMap<String, toml::Value>,
}

/// `[[setting]]`: a setting of the document is these settings of the job.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingRow {
    pub name: String,
    /// Only this value.
    pub value: Option<String>,
    pub phase: Option<String>,
    #[serde(default)]
    pub set: BTreeMap<String, toml::Value>,
}

/// `[[claim]]`: found by id, or by line and the number printed there.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimRow {
    pub id: Option<String>,
    pub line: Option<u64>,
    /// Not judged, and why.
    pub ignore: Option<String>,
    pub subject: Option<String>,
    pub phase: Option<String>,
    pub what: Option<String>,
    /// Settings in the document's words.
    #[serde(default)]
    pub settings: Settings,
}

/// A claim's job, and how it was found.
#[derive(Clone, Debug)]
pub struct Bound {
    pub job: Job,
    pub how: How,
}

/// Where a binding comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// The bindings file says it.
    Stated,
    /// The catalog has a model of that name, or a named reference of that size.
    Inferred,
}

/// Reads a job file that a bindings file names.
pub type OpenJob<'a> = &'a dyn Fn(&str) -> Result<Job, Vec<Diagnostic>>;

fn phase_named(word: &str) -> Option<Phase> {
    match word {
        "training" | "train" => Some(Phase::Training),
        "inference" | "generation" | "generate" => Some(Phase::Inference),
        _ => None,
    }
}

fn right_phase(row: Option<&str>, phase: Phase) -> bool {
    row.is_none_or(|p| phase_named(p) == Some(phase))
}

impl Bindings {
    /// Reads a bindings file.
    ///
    /// # Errors
    /// What is wrong, with line and column.
    pub fn parse(file: &str, text: &str) -> Result<Bindings, Diagnostic> {
        let b: Bindings = toml::from_str(text)
            .map_err(|e| Diagnostic::error("bad-bindings", format!("{file}: {e}")))?;
        let phases = b
            .subject
            .iter()
            .filter_map(|s| s.phase.as_deref())
            .chain(b.setting.iter().filter_map(|s| s.phase.as_deref()))
            .chain(b.claim.iter().filter_map(|s| s.phase.as_deref()));
        for p in phases {
            if phase_named(p).is_none() {
                let m = format!("{file}: the phase {p:?} is not known");
                return Err(Diagnostic::error("bad-bindings", m).help("training, or inference"));
            }
        }
        Ok(b)
    }

    /// Names of subjects.
    pub fn names(&self) -> Vec<String> {
        self.subject.iter().flat_map(|s| s.names.clone()).collect()
    }

    /// Corrects claims; returns (claim's id, reason) of those that are not to be judged.
    ///
    /// # Errors
    /// A correction that no claim answers to.
    pub fn correct(&self, claims: &mut [Claim]) -> Result<BTreeMap<String, String>, Diagnostic> {
        let mut ignored = BTreeMap::new();
        for row in &self.claim {
            let here = |c: &Claim| {
                row.id.as_ref().is_none_or(|i| *i == c.id)
                    && row.line.is_none_or(|l| l == c.line)
                    && (row.id.is_some() || row.line.is_some())
            };
            let mut met = false;
            for c in claims.iter_mut().filter(|c| here(c)) {
                met = true;
                if let Some(s) = &row.subject {
                    c.subject.clone_from(s);
                }
                if let Some(p) = row.phase.as_deref().and_then(phase_named) {
                    c.phase = p;
                }
                if let Some(p) = row.what.as_deref().and_then(super::claims_file::part) {
                    c.what = super::claim::What::Part(p);
                } else if row.what.as_deref() == Some("total") {
                    c.what = super::claim::What::Total;
                }
                c.settings
                    .extend(row.settings.iter().map(|(k, v)| (k.clone(), v.clone())));
                if let Some(why) = &row.ignore {
                    ignored.insert(c.id.clone(), why.clone());
                }
            }
            if !met {
                let name = row.id.clone().or(row.line.map(|l| format!("line {l}")));
                let m = format!(
                    "no claim at {}",
                    name.unwrap_or_else(|| "a row without id and line".into())
                );
                return Err(Diagnostic::error("bad-bindings", m)
                    .help("`tonnage audit FILE --claims` lists them"));
            }
        }
        if let Some(s) = &self.document.subject {
            for c in claims.iter_mut().filter(|c| c.subject.is_empty()) {
                c.subject.clone_from(s);
            }
        }
        Ok(ignored)
    }

    /// The job that a claim is about.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub fn job(&self, c: &Claim, open: OpenJob) -> Result<Bound, String> {
        let (mut job, how) = self.subject(c, open)?;
        for (k, v) in &c.settings {
            self.apply(&mut job, c.phase, k, v)?;
        }
        Ok(Bound { job, how })
    }

    fn subject(&self, c: &Claim, open: OpenJob) -> Result<(Job, How), String> {
        let row = self
            .subject
            .iter()
            .find(|s| s.names.contains(&c.subject) && right_phase(s.phase.as_deref(), c.phase));
        let said = |d: Vec<Diagnostic>| {
            d.iter()
                .map(|d| d.message.clone())
                .collect::<Vec<_>>()
                .join("; ")
        };
        let (mut job, how) = match row {
            Some(r) => {
                let job = match (&r.file, &r.job) {
                    (Some(f), None) => open(f).map_err(said)?,
                    (None, Some(t)) => import::read("bindings.toml", t).map_err(said)?,
                    _ => return Err(format!("{}: a subject has either file or job", c.subject)),
                };
                (job, How::Stated)
            }
            None => {
                // a bare size stands for the same named model as in `fit`
                let model = crate::cards::sizes::size(&c.subject).map_err(|d| d.message)?;
                let known = tonnage_catalog::model(&model.model)
                    .map_err(|_| format!("no binding for {:?}", c.subject))?;
                let mut job = Job::new("audit", "claim");
                job.set_text("model.id", known.id)?;
                (job, How::Inferred)
            }
        };
        if c.phase == Phase::Inference && job.word("work.kind") == "train" {
            set(&mut job, "work.kind", "generate")?;
            job.unset("lora.r");
            if job.get("generate.new_tokens").is_none() {
                set(&mut job, "generate.new_tokens", "1")?;
            }
        }
        for (k, v) in row.iter().flat_map(|r| &r.set) {
            set(&mut job, k, &shown(v))?;
        }
        Ok((job, how))
    }

    /// One setting of the document.
    fn apply(&self, job: &mut Job, phase: Phase, name: &str, value: &str) -> Result<(), String> {
        let row = self.setting.iter().find(|s| {
            s.name == name
                && s.value.as_ref().is_none_or(|v| v == value)
                && right_phase(s.phase.as_deref(), phase)
        });
        if let Some(r) = row {
            for (k, v) in &r.set {
                let v = shown(v);
                set(job, k, if v == "{}" { value } else { &v })?;
            }
            return Ok(());
        }
        let training = phase != Phase::Inference;
        match name {
            "batch_size" if training => set(job, "train.micro_batch_size", value),
            "batch_size" if job.word("work.kind") == "forward" => {
                set(job, "train.micro_batch_size", value)
            }
            "batch_size" => set(job, "generate.batch_size", value),
            // generation does not know the batch of the training
            "train_batch_size" | "case" => Ok(()),
            "seq_len" if training => set(job, "train.seq_len", value),
            "seq_len" => set(job, "generate.prompt_len", value),
            "max_length" => set(job, "generate.new_tokens", value),
            "precision" => precision(job, phase, value),
            "method" => method(job, value),
            "config" => value
                .split_whitespace()
                .try_for_each(|w| word(job, phase, w)),
            _ => {
                if tonnage_core::job::setting(name).is_some() {
                    return set(job, name, value);
                }
                let near = nearest(name, ["batch_size", "seq_len", "precision", "method"]);
                let hint = near.map_or(String::new(), |n| format!(" (did you mean {n}?)"));
                Err(format!("the setting {name} is not bound{hint}"))
            }
        }
    }
}

fn shown(v: &toml::Value) -> String {
    match v {
        toml::Value::String(s) => s.clone(),
        toml::Value::Array(l) => l.iter().map(shown).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

fn set(job: &mut Job, key: &str, value: &str) -> Result<(), String> {
    // a range of the document's own: its far end is what has to fit
    let far = value
        .split_once('-')
        .filter(|(a, b)| a.parse::<u64>().is_ok() && b.parse::<u64>().is_ok());
    let value = far.map_or(value, |(_, b)| b);
    if key == "train.seq_len"
        && job.given("model.config").is_some()
        && job.word("model.type") == "gpt_per_head"
    {
        job.set_text("model.config.block_size", value)?;
    }
    job.set_text(key, value).map_err(|e| format!("{key}: {e}"))
}

fn precision(job: &mut Job, phase: Phase, value: &str) -> Result<(), String> {
    match value {
        "8bit" | "int8" | "8-bit" => {
            job.set(
                "quant.format",
                tonnage_core::doc::Value::Text("int8".into()),
                Origin::Flag,
            )?;
            set(job, "model.dtype", "fp16")
        }
        "4bit" | "int4" | "4-bit" | "nf4" => {
            set(job, "quant.format", "nf4")?;
            set(job, "model.dtype", "fp16")
        }
        v if phase == Phase::Inference => set(job, "train.precision", v),
        v => set(job, "train.precision", v),
    }
}

fn method(job: &mut Job, value: &str) -> Result<(), String> {
    value
        .split(['-', ' '])
        .try_for_each(|w| word(job, Phase::Training, w))
}

/// One word of "lora fp16 checkpointing".
fn word(job: &mut Job, phase: Phase, w: &str) -> Result<(), String> {
    let adapters = |job: &mut Job| {
        if job.get("lora.r").is_none() {
            set(job, "lora.r", "16")?;
        }
        if job.texts("lora.targets").is_empty() {
            set(job, "lora.targets", default_targets(job))?;
        }
        Ok(())
    };
    match w {
        "full" => Ok(()),
        "lora" => adapters(job),
        "qlora" => {
            set(job, "quant.format", "nf4")?;
            set(job, "model.dtype", "bf16")?;
            set(job, "train.precision", "bf16-mixed")?;
            adapters(job)
        }
        "checkpointing" => set(job, "train.activation_checkpointing", "full"),
        // the method has said it
        "4bit" if job.get("quant.format").is_some() => Ok(()),
        "fp16" | "fp32" | "bf16" | "4bit" | "8bit" => precision(job, phase, w),
        other => Err(format!("the word {other} is not bound")),
    }
}

/// The modules that peft adapts where nobody names any (peft 0.21.2, src/peft/utils/constants.py,
/// TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING).
fn default_targets(job: &Job) -> &'static str {
    let model = job.model_config().map(|m| m.0).unwrap_or_default();
    match model.as_str() {
        "gpt2" => "c_attn",
        "gpt_neox" | "bloom" | "falcon" => "query_key_value",
        "phi" => "q_proj,v_proj,fc1,fc2",
        "phi3" => "qkv_proj",
        _ => "q_proj,v_proj",
    }
}
