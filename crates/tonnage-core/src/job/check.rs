//! What is missing from a job, what contradicts itself, and what is assumed.

use super::settings::SETTINGS;
use super::{Job, Origin};
use crate::doc::{Diagnostic, Value};
use serde::Serialize;

/// A choice that the answer stands on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Assumption {
    pub key: String,
    pub value: String,
    /// `file:line`, `flag`, `default`, or `inferred`.
    pub origin: String,
    /// Why, where it is inferred.
    pub why: Option<String>,
    /// The flag that changes it.
    pub flag: String,
    pub what: String,
}

impl Job {
    /// Every choice with its origin; defaults of tables that the job does not have (no adapters: nothing about adapters) left out.
    pub fn assumptions(&self) -> Vec<Assumption> {
        let generates = self.word("work.kind") == "generate";
        let applies = |key: &str| match key.split_once('.').map_or("", |(t, _)| t) {
            "lora" => self.given("lora.r").is_some(),
            "quant" => self.given("quant.format").is_some(),
            "verdict" => false,
            "train" if self.word("work.kind") != "train" => {
                matches!(
                    key,
                    "train.micro_batch_size"
                        | "train.seq_len"
                        | "train.precision"
                        | "train.attention"
                        | "train.mask"
                        | "train.loading"
                )
            }
            _ => match key {
                "name" | "gpu" | "model.id" | "model.path" | "model.type" | "model.description"
                | "model.config" => false,
                k if k.starts_with("generate.") => generates,
                "stack.peft" => self.given("lora.r").is_some(),
                "stack.bitsandbytes" => {
                    self.given("quant.format").is_some()
                        || self.word("train.optimizer").contains("bit")
                }
                "stack.accelerate" => self.word("train.loop") == "trainer",
                "train.image_size" => self.given(key).is_some(),
                _ => true,
            },
        };
        SETTINGS
            .iter()
            .filter(|s| applies(s.key))
            .filter_map(|s| {
                let value = self.get(s.key)?;
                let (origin, why) = match self.given(s.key).map(|g| &g.origin) {
                    Some(Origin::File(p)) => (format!("{}:{}", p.file, p.line), None),
                    Some(Origin::Flag) => ("flag".into(), None),
                    Some(Origin::Inferred(why)) => ("inferred".into(), Some(why.clone())),
                    None => ("default".into(), None),
                };
                Some(Assumption {
                    key: s.key.into(),
                    value: match value {
                        Value::Text(t) => t,
                        Value::Float(f) => format!("{f:?}"),
                        Value::List(l) => l
                            .iter()
                            .filter_map(|n| n.text())
                            .collect::<Vec<_>>()
                            .join(", "),
                        v => v.shown(),
                    },
                    origin,
                    why,
                    flag: s.how_to_change(),
                    what: s.what.into(),
                })
            })
            .collect()
    }

    /// What makes the job impossible, before anything is simulated.
    pub fn contradictions(&self) -> Vec<Diagnostic> {
        let mut bad = Vec::new();
        let mut say = |key: &str, code: &'static str, message: String, help: &str| {
            let mut d = Diagnostic::error(code, message).help(help);
            if let Some(Origin::File(p)) = self.given(key).map(|g| &g.origin) {
                d = d.at(p.clone());
            }
            bad.push(d);
        };
        let has = |k: &str| self.given(k).is_some();
        let sources: Vec<_> = ["model.id", "model.path"]
            .into_iter()
            .filter(|k| has(k))
            .collect();
        if sources.len() > 1 {
            say(
                "model.path",
                "contradiction",
                "`model.id` and `model.path` both name a model".into(),
                "keep one of them",
            );
        }
        if has("model.revision") && !has("model.id") {
            say(
                "model.revision",
                "contradiction",
                "`model.revision` is given, but no `model.id` that has it".into(),
                "give `[model] id` (--model), or leave the revision out",
            );
        }
        if sources.is_empty()
            && !has("model.type")
            && !has("model.description")
            && !self.config_has("model_type")
        {
            say(
                "",
                "missing",
                format!("{}: no model is named", self.source),
                "give `[model] id = \"...\"` (--model), `path`, or `type` with `[model.config]`",
            );
        }
        let train = self.word("work.kind") == "train";
        if self.word("train.activation_checkpointing") == "selective"
            && self.flag("train.checkpoint_reentrant")
        {
            say(
                "train.checkpoint_reentrant",
                "contradiction",
                "reentrant checkpointing keeps nothing but the inputs: it cannot be selective"
                    .into(),
                "drop `checkpoint_reentrant`, or say `activation_checkpointing = \"full\"`",
            );
        }
        if self.word("work.kind") == "generate" && !has("generate.new_tokens") {
            say(
                "work.kind",
                "missing",
                "generating needs `new_tokens`".into(),
                "--new-tokens N",
            );
        }
        let adapters: Vec<_> = [
            "lora.alpha",
            "lora.targets",
            "lora.dropout",
            "lora.adapter_dtype",
            "lora.dora",
        ]
        .into_iter()
        .filter(|k| has(k))
        .collect();
        if let (Some(first), false) = (adapters.first(), has("lora.r")) {
            say(
                first,
                "missing",
                format!("`{first}` is given, but no rank"),
                "give `[lora] r` (--lora-r), or leave [lora] out to train all weights",
            );
        }
        if has("lora.r") && !has("lora.targets") && train {
            say(
                "lora.r",
                "missing",
                "LoRA needs its target modules".into(),
                "give `[lora] targets = [\"q_proj\", \"v_proj\"]` (--lora-targets q_proj,v_proj), or \"all-linear\"",
            );
        }
        if has("quant.format") && !has("lora.r") && train {
            say(
                "quant.format",
                "contradiction",
                format!(
                    "{} weights cannot be trained themselves",
                    self.word("quant.format")
                ),
                "add adapters (--lora-r N), or leave the quantisation out",
            );
        }
        let quant: Vec<_> = ["quant.double", "quant.kbit_preparation"]
            .into_iter()
            .filter(|k| has(k))
            .collect();
        if let (Some(first), false) = (quant.first(), has("quant.format")) {
            say(
                first,
                "contradiction",
                format!("`{first}` is given, but nothing is quantised"),
                "give `[quant] format` (--quant nf4), or leave it out",
            );
        }
        if has("quant.double") && self.word("quant.format") == "int8" {
            say(
                "quant.double",
                "contradiction",
                "int8 has no double quantisation".into(),
                "leave `double` out",
            );
        }
        if let Err(e) = self.allocator() {
            say(
                "allocator.conf",
                "bad-value",
                e.to_string(),
                "see PYTORCH_ALLOC_CONF in PyTorch's documentation",
            );
        }
        bad.extend(self.described_contradictions());
        bad
    }

    /// The allocator's settings.
    ///
    /// # Errors
    /// What PyTorch would refuse.
    pub fn allocator(
        &self,
    ) -> Result<tonnage_sim::alloc::AllocatorConfig, tonnage_sim::alloc::ConfigError> {
        tonnage_sim::alloc::AllocatorConfig::parse(&self.word("allocator.conf"))
    }

    pub(super) fn config_has(&self, field: &str) -> bool {
        matches!(self.given("model.config").map(|g| &g.value), Some(Value::Table(t)) if t.iter().any(|(k, _)| k.name == field))
    }
}
