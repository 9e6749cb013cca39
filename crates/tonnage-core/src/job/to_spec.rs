//! A job, complete, for the simulator.

use super::{Job, Origin};
use crate::doc::{Diagnostic, Value};
use crate::spec::{
    CacheChoice, Freeze, Generation, Hold, Loading, Loop, Mask, Precision, Spec, Work,
};
use tonnage_catalog::Gpu;
use tonnage_model::adapt::target::Targets;
use tonnage_model::adapt::{LoraOptions, Quant, QuantScope};
use tonnage_model::arch::Head;
use tonnage_model::stack::Version;
use tonnage_model::{Attention, Loss, Stack};
use tonnage_sim::checkpoint::{Checkpointing, Recompute};
use tonnage_sim::context::Accumulate;
use tonnage_sim::kernels::KernelDevice;
use tonnage_units::ScalarType;

/// The card whose kernels are assumed where none is named.
pub const DEFAULT_GPU: &str = "a100-sxm4-80gb";

/// The kernel-relevant figures of a card.
///
/// # Errors
/// The catalog does not know them (other vendors, missing rows).
pub fn kernel_device(gpu: &Gpu) -> Result<KernelDevice, Diagnostic> {
    match (gpu.sm_count, gpu.max_threads_per_sm, gpu.compute_capability) {
        (Some(sm), Some(threads), Some(cc)) => Ok(KernelDevice::new(sm, threads, (cc.major, cc.minor))),
        _ => Err(Diagnostic::error("unsupported", format!("{}: its multiprocessors or compute capability are not known, so its kernels cannot be simulated", gpu.id))
            .help("name an NVIDIA card of `tonnage gpus`")),
    }
}

impl Job {
    /// The model's type and configuration fields.
    ///
    /// # Errors
    /// The model is not known; `model.path` is resolved by the caller before this (it is a file).
    pub fn model_config(&self) -> Result<(String, serde_json::Value), Diagnostic> {
        let at = |d: Diagnostic, key: &str| match self.given(key).map(|g| &g.origin) {
            Some(Origin::File(p)) => d.at(p.clone()),
            _ => d,
        };
        let mut config = serde_json::Map::new();
        let id = self.word("model.id");
        if let Some(serde_json::Value::Object(o)) = &self.resolved {
            config = o.clone();
        } else if !id.is_empty() {
            let m = tonnage_catalog::model(&id).map_err(|e| {
                at(Diagnostic::error("unknown-model", e.to_string()).help("`tonnage models NAME` lists what is built in; any other model is named `organisation/name`, or by its folder or config.json (--model-path)"), "model.id")
            })?;
            let parsed = serde_json::from_str(m.config()).map_err(|e| {
                Diagnostic::error(
                    "defect",
                    format!("the catalog's configuration of {id} does not parse: {e}"),
                )
            })?;
            if let serde_json::Value::Object(o) = parsed {
                config = o;
            }
        } else if !self.word("model.path").is_empty() && self.given("model.config").is_none() {
            return Err(at(
                Diagnostic::error("unread", "the file of `model.path` was not read"),
                "model.path",
            ));
        }
        if let Some(Value::Table(t)) = self.given("model.config").map(|g| &g.value) {
            for (k, v) in t {
                config.insert(k.name.clone(), v.value.to_json());
            }
        }
        match &self.description {
            Some(d) => {
                let named = d.description.model_type.clone();
                return Ok((named, serde_json::Value::Object(config)));
            }
            None if self.given("model.description").is_some() => {
                return Err(at(
                    Diagnostic::error("unread", "the file of `model.description` was not read"),
                    "model.description",
                ));
            }
            None => {}
        }
        let said = self.word("model.type");
        let model_type = if said.is_empty() {
            config
                .get("model_type")
                .and_then(|v| v.as_str())
                .unwrap_or("")
                .to_string()
        } else {
            said
        };
        if model_type.is_empty() {
            return Err(at(
                Diagnostic::error("missing", "the configuration does not say its `model_type`")
                    .help("--model-type NAME"),
                "model.config",
            ));
        }
        let config = serde_json::Value::Object(config);
        self.config_sizes(&config)?;
        Ok((model_type, config))
    }

    /// The task head.
    pub fn head(&self) -> Head {
        match self.word("model.head").as_str() {
            "causal-lm" => Head::CausalLm,
            "masked-lm" => Head::MaskedLm,
            "classification" => Head::SequenceClassification,
            "base" => Head::Base,
            "embedding" => Head::Embedding,
            _ => Head::Default,
        }
    }

    /// The library versions.
    pub fn stack(&self) -> Stack {
        let version = |key: &str, or: Version| Version::parse(&self.word(key)).unwrap_or(or);
        let d = Stack::default();
        Stack {
            torch: version("stack.torch", d.torch),
            transformers: version("stack.transformers", d.transformers),
            peft: version("stack.peft", d.peft),
            accelerate: version("stack.accelerate", d.accelerate),
            bitsandbytes: version("stack.bitsandbytes", d.bitsandbytes),
        }
    }

    /// Which layers are checkpointed, and how. Where nobody says, `gradient_checkpointing_enable()` decides: reentrant in
    /// transformers 4, not in 5 (modeling_utils.py).
    fn checkpointing(&self) -> Option<Checkpointing> {
        let word = self.word("train.activation_checkpointing");
        let reentrant = match self.given("train.checkpoint_reentrant") {
            Some(_) => self.flag("train.checkpoint_reentrant"),
            None => !self.stack().transformers_5(),
        };
        let how = match word.as_str() {
            "selective" => Recompute::Selective,
            "full" if reentrant => Recompute::Reentrant,
            "full" => Recompute::NonReentrant,
            _ => return None,
        };
        Some(Checkpointing {
            every: self.count("train.checkpoint_every").unwrap_or(1) as u32,
            how,
        })
    }

    /// The job on this card.
    ///
    /// # Errors
    /// Everything that makes it impossible.
    pub fn spec(&self, gpu: &Gpu) -> Result<Spec, Vec<Diagnostic>> {
        let bad = self.contradictions();
        if !bad.is_empty() {
            return Err(bad);
        }
        let (mut model_type, config) = self.model_config().map_err(|d| vec![d])?;
        if self.description.is_some() {
            // whatever it is called, nothing that is known by name applies to it
            model_type = "described".into();
        }
        let device = kernel_device(gpu).map_err(|d| vec![d])?;
        let work = match self.word("work.kind").as_str() {
            "forward" => Work::Forward,
            "generate" => Work::Generate(self.generation()),
            _ => Work::Train,
        };
        let has_positions = !matches!(model_type.as_str(), "resnet" | "timm" | "vit" | "convnext");
        let generates = matches!(work, Work::Generate(_));
        let prompt = self.count("generate.prompt_len").filter(|_| generates);
        let seq = match prompt.or_else(|| self.count("train.seq_len")) {
            Some(n) => n,
            None if !has_positions => 0,
            None => {
                return Err(vec![
                    Diagnostic::error("missing", "no sequence length is given").help(
                        if generates {
                            "give `[generate] prompt_len` (--prompt-len N)"
                        } else {
                            "give `[train] seq_len` (--seq-len N)"
                        },
                    ),
                ]);
            }
        };
        self.check_length(seq, &config).map_err(|d| vec![d])?;
        self.limits(&config).map_err(|d| vec![d])?;
        Ok(Spec {
            work,
            model_type,
            description: self.description.as_ref().map(|d| d.description.clone()),
            config,
            head: self.head(),
            precision: match self.word("train.precision").as_str() {
                "bf16" => Precision::Pure(ScalarType::BF16),
                "fp16" => Precision::Pure(ScalarType::F16),
                "bf16-mixed" => Precision::Mixed(ScalarType::BF16),
                "fp16-mixed" => Precision::Mixed(ScalarType::F16),
                _ => Precision::Fp32,
            },
            weights: match self.word("model.dtype").as_str() {
                "fp32" => Some(ScalarType::F32),
                "bf16" => Some(ScalarType::BF16),
                "fp16" => Some(ScalarType::F16),
                _ => None,
            },
            loss: match self.word("train.loss").as_str() {
                "fused" => Loss::Liger,
                "cut" => Loss::Cut,
                "unsloth" => Loss::Unsloth,
                "chunked" => Loss::Chunked {
                    chunks: self.count("train.loss_chunks").unwrap_or(8) as u32,
                },
                _ => Loss::Library,
            },
            attention: match self.word("train.attention").as_str() {
                "eager" => Attention::Eager,
                "flash_attention_2" => Attention::FlashAttention2,
                _ => Attention::Sdpa,
            },
            batch: self
                .count(if generates {
                    "generate.batch_size"
                } else {
                    "train.micro_batch_size"
                })
                .unwrap_or(1),
            seq,
            target_len: self.count("train.target_len"),
            image: self.count("train.image_size").unwrap_or(224),
            steps: self.count("train.steps").unwrap_or(3) as u32,
            accumulation: self.count("train.gradient_accumulation_steps").unwrap_or(1) as u32,
            clip: self.number("train.clip_grad_norm").filter(|v| *v > 0.0),
            zero_grad_late: self.word("train.zero_grad") == "late",
            set_to_none: self.word("train.zero_grad") != "zero",
            hold: if self.word("train.hold") == "outputs" {
                Hold::Outputs
            } else {
                Hold::Loss
            },
            checkpoint: self.checkpointing(),
            driver: if self.word("train.loop") == "trainer" {
                Loop::Trainer
            } else {
                Loop::Plain
            },
            optimizer: self.word("train.optimizer"),
            lora: self.lora(),
            quant: match self.word("quant.format").as_str() {
                "nf4" => Some(Quant::FourBit {
                    double: self.flag("quant.double"),
                    compute: match self.word("quant.compute").as_str() {
                        "fp16" => ScalarType::F16,
                        "fp32" => ScalarType::F32,
                        _ => ScalarType::BF16,
                    },
                }),
                "int8" => Some(Quant::Int8 { outliers: true }),
                _ => None,
            },
            quant_scope: QuantScope::Library,
            kbit_prepare: self.flag("quant.kbit_preparation"),
            freeze: match (
                self.count("train.freeze_layers"),
                self.flag("train.freeze_embeddings"),
            ) {
                (None, false) => None,
                (layers, embeddings) => Some(Freeze {
                    layers: layers.unwrap_or(0),
                    embeddings,
                }),
            },
            mask: match self.word("train.mask").as_str() {
                "ones" => Mask::Ones,
                "padding" => Mask::Padding,
                _ => Mask::Absent,
            },
            use_cache: self.word("generate.cache") != "none",
            loading: if self.word("train.loading") == "device_map" {
                Loading::Warmup
            } else {
                Loading::To
            },
            device,
            stack: self.stack(),
            accumulate: Accumulate::InPlaceIfSole,
        })
    }

    /// What `[generate]` asks for.
    fn generation(&self) -> Generation {
        Generation {
            beams: self.count("generate.beams").unwrap_or(1),
            cache: match self.word("generate.cache").as_str() {
                "static" => CacheChoice::Static,
                "offloaded" => CacheChoice::Offloaded,
                "quantized" => CacheChoice::Quantized,
                _ => CacheChoice::Dynamic,
            },
            sample: self.flag("generate.sample"),
            eos: self.flag("generate.end_token"),
            ..Generation::greedy(self.count("generate.new_tokens").unwrap_or(1))
        }
    }

    /// The adapters, as peft reads them: a list of names, or one text that is `all-linear` or a regular expression.
    fn lora(&self) -> Option<LoraOptions> {
        let names = self.texts("lora.targets");
        let targets = match &names[..] {
            [one]
                if one.eq_ignore_ascii_case("all-linear")
                    || one.contains(['*', '(', '[', '|', '\\']) =>
            {
                Targets::from_string(one)
            }
            _ => Targets::Names(names),
        };
        let mut l = LoraOptions::new(
            self.count("lora.r")?,
            targets,
            self.number("lora.dropout").unwrap_or(0.05),
        );
        l.fp32_adapters = self.word("lora.adapter_dtype") != "base";
        l.dora = self.flag("lora.dora");
        Some(l)
    }

    /// A learned position table is a hard limit; rotary positions are not.
    fn check_length(&self, seq: u64, config: &serde_json::Value) -> Result<(), Diagnostic> {
        let limit = ["n_positions", "block_size", "block"]
            .iter()
            .find_map(|k| Some((*k, config.get(*k)?.as_u64()?)));
        match limit {
            Some((field, n)) if seq > n && config.get("rope_theta").is_none() => {
                let d = Diagnostic::error("contradiction", format!("sequence length {seq} is longer than the model's position table ({field} = {n})"))
                    .help(format!("--seq-len {n} or less"));
                Err(match self.given("train.seq_len").map(|g| &g.origin) {
                    Some(Origin::File(p)) => d.at(p.clone()),
                    _ => d,
                })
            }
            _ => Ok(()),
        }
    }
}
