//! A job: what the user says (file, flags), what follows from it, and what is assumed.

mod check;
mod described;
mod limits;
mod read;
pub mod settings;
mod to_spec;
mod value;
mod write;

pub use check::Assumption;
pub use described::DescriptionFile;
pub use read::read_job;
pub use settings::{Kind, SETTINGS, Setting};
pub use to_spec::{DEFAULT_GPU, kernel_device};
pub use value::{find, setting};
pub use write::to_toml;

use crate::doc::{Diagnostic, Place, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where a value is from.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// The user's file says so.
    File(Place),
    /// A flag says so.
    Flag,
    /// It follows from what the source is known to do; the reason.
    Inferred(String),
}

/// A value that was given.
#[derive(Clone, Debug, PartialEq)]
pub struct Given {
    pub value: Value,
    pub origin: Origin,
}

/// A setting whose value is not known: the values to consider besides the expected one.
#[derive(Clone, Debug, PartialEq)]
pub struct Uncertain {
    /// A key of [`SETTINGS`], or of `model.config` as `model.config.<field>`.
    pub key: String,
    pub values: Vec<Value>,
    /// What it is about, in words.
    pub why: String,
}

/// A job as far as somebody said something; [`Job::get`] adds the defaults.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// The file it is from, or "command line".
    pub source: String,
    /// What kind of file that was, e.g. "AGI2 TOML".
    pub format: &'static str,
    given: BTreeMap<&'static str, Given>,
    pub uncertain: Vec<Uncertain>,
    /// Remarks of the reader: what was understood, what is not simulated.
    pub notes: Vec<Diagnostic>,
    /// Parts that the source asks for and that are not simulated; each is said in every output.
    pub unsupported: Vec<String>,
    /// The configuration that `model.id` stands for, where the caller has read it; `None`: the built-in one.
    pub resolved: Option<serde_json::Value>,
    /// The file of `model.description`, read.
    pub description: Option<Arc<DescriptionFile>>,
}

impl Job {
    /// A job about which nothing is said.
    pub fn new(source: &str, format: &'static str) -> Job {
        Job {
            source: source.into(),
            format,
            ..Job::default()
        }
    }

    /// What was said about a setting.
    pub fn given(&self, key: &str) -> Option<&Given> {
        self.given.get(key)
    }

    /// Everything that was said.
    pub fn all_given(&self) -> impl Iterator<Item = (&'static str, &Given)> {
        self.given.iter().map(|(k, g)| (*k, g))
    }

    /// Sets a setting by its key.
    ///
    /// # Errors
    /// The value is not one of its values, or there is no such setting.
    pub fn set(&mut self, key: &str, value: Value, origin: Origin) -> Result<(), String> {
        if let Some(field) = key.strip_prefix("model.config.") {
            return self.set_config_field(field, value, origin);
        }
        let s = setting(key).ok_or_else(|| format!("no setting is named `{key}`"))?;
        let value = s.accept(&value)?;
        self.forget_model(s.key);
        self.given.insert(s.key, Given { value, origin });
        Ok(())
    }

    /// Sets a setting as the command line gives it: by key, last part of the key, or flag.
    ///
    /// # Errors
    /// As [`Job::set`].
    pub fn set_text(&mut self, name: &str, text: &str) -> Result<(), String> {
        if let Some(field) = name.strip_prefix("model.config.") {
            let v = text
                .parse()
                .map(Value::Int)
                .or_else(|_| text.parse().map(Value::Bool))
                .unwrap_or(Value::Text(text.into()));
            return self.set_config_field(field, v, Origin::Flag);
        }
        let s = find(name)?;
        let value = s.parse(text)?;
        self.forget_model(s.key);
        self.given.insert(
            s.key,
            Given {
                value,
                origin: Origin::Flag,
            },
        );
        Ok(())
    }

    /// Another id is another configuration.
    fn forget_model(&mut self, key: &str) {
        if matches!(key, "model.id" | "model.revision" | "model.path") {
            self.resolved = None;
        }
    }

    fn set_config_field(
        &mut self,
        field: &str,
        value: Value,
        origin: Origin,
    ) -> Result<(), String> {
        let entry = self.given.entry("model.config").or_insert_with(|| Given {
            value: Value::Table(Vec::new()),
            origin: origin.clone(),
        });
        if let Value::Table(t) = &mut entry.value {
            t.retain(|(k, _)| k.name != field);
            t.push((
                crate::doc::Key {
                    span: 0..0,
                    name: field.into(),
                },
                crate::doc::Node { span: 0..0, value },
            ));
        }
        Ok(())
    }

    /// Takes a value back.
    pub fn unset(&mut self, key: &str) {
        self.given.remove(key);
    }

    /// The value of a setting: as given, else its default.
    pub fn get(&self, key: &str) -> Option<Value> {
        if let Some(g) = self.given.get(key) {
            return Some(g.value.clone());
        }
        let s = setting(key)?;
        if key == "train.clip_grad_norm" && self.word("train.loop") == "trainer" {
            return Some(Value::Float(1.0)); // transformers TrainingArguments.max_grad_norm
        }
        if key == "train.mask" {
            let ones = self.word("train.loop") == "trainer";
            return Some(Value::Text(if ones { "ones" } else { "absent" }.into()));
        }
        s.default.and_then(|d| s.parse(d).ok())
    }

    /// A text setting; empty where there is none.
    pub fn word(&self, key: &str) -> String {
        match self.get(key) {
            Some(Value::Text(t)) => t,
            _ => String::new(),
        }
    }

    /// A counted setting.
    pub fn count(&self, key: &str) -> Option<u64> {
        match self.get(key) {
            Some(Value::Int(i)) => u64::try_from(i).ok(),
            _ => None,
        }
    }

    /// A number.
    pub fn number(&self, key: &str) -> Option<f64> {
        match self.get(key) {
            Some(Value::Float(f)) => Some(f),
            Some(Value::Int(i)) => Some(i as f64),
            _ => None,
        }
    }

    /// A switch.
    pub fn flag(&self, key: &str) -> bool {
        self.get(key) == Some(Value::Bool(true))
    }

    /// A list of texts.
    pub fn texts(&self, key: &str) -> Vec<String> {
        match self.get(key) {
            Some(Value::List(l)) => l
                .iter()
                .filter_map(|n| n.text().map(String::from))
                .collect(),
            _ => Vec::new(),
        }
    }

    /// The job's name, or its model's.
    pub fn title(&self) -> String {
        let name = self.word("name");
        if !name.is_empty() {
            return name;
        }
        for key in ["model.id", "model.path", "model.type", "model.description"] {
            let w = self.word(key);
            if !w.is_empty() {
                return w;
            }
        }
        self.source.clone()
    }

    /// Samples of one optimizer step.
    pub fn effective_batch(&self) -> u64 {
        self.count("train.micro_batch_size").unwrap_or(1)
            * self.count("train.gradient_accumulation_steps").unwrap_or(1)
    }
}
