//! What no recorded run shows. Everything here that a job uses is said in its footprint, in the word `unverified`; the lists of what
//! is recorded are checked against the records (tests/k_unverified.rs).

use crate::spec::{Spec, Work};
use tonnage_model::{Attention, Loss};
use tonnage_sim::optim::OptimizerKind;

/// Optimizers with at least one recorded training job, by their names here.
pub const RECORDED_OPTIMIZERS: &[&str] = &[
    "adamw_foreach",
    "adamw_fused",
    "adamw_forloop",
    "sgd",
    "sgd_momentum",
    "adafactor",
    "rmsprop",
    "adagrad",
    "lion",
    "muon",
    "adamw8bit",
    "paged_adamw8bit",
    "paged_adamw32bit",
    "adamw32bit",
    "lion32bit",
    "lion8bit",
    "paged_lion32bit",
    "paged_lion8bit",
    "ademamix",
    "ademamix8bit",
    "paged_ademamix32bit",
    "paged_ademamix8bit",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
];

/// Architectures with at least one recorded job.
pub const RECORDED_MODELS: &[&str] = &[
    "bert",
    "deepseek_v2",
    "deepseek_v3",
    "distilbert",
    "falcon",
    "gemma2",
    "gemma3",
    "gpt2",
    "gpt_neox",
    "gpt_oss",
    "gpt_per_head",
    "llama",
    "mistral",
    "mixtral",
    "nanogpt",
    "opt",
    "phi",
    "phi3",
    "pose",
    "qwen2",
    "qwen3",
    "resnet",
    "roberta",
    "spoter",
    "t5",
    "timm",
    "vit",
];

/// Architectures with at least one recorded generation.
pub const RECORDED_GENERATION: &[&str] = &[
    "deepseek_v2",
    "deepseek_v3",
    "falcon",
    "gemma2",
    "gemma3",
    "gpt2",
    "gpt_neox",
    "gpt_oss",
    "gpt_per_head",
    "llama",
    "mistral",
    "mixtral",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "t5",
];

/// What of the job rests on source code alone: each as a sentence that begins with `unverified`.
pub fn unverified(spec: &Spec) -> Vec<String> {
    let mut out = Vec::new();
    let mut say = |what: String| out.push(format!("unverified: {what}; no recorded run has it"));
    if spec.quant.is_some() && spec.model_type == "gpt2" {
        say("packed Conv1D layers: the weights after loading are as recorded, the products are not compared".into());
    }
    if spec.work == Work::Train {
        let recorded = spec
            .optimizer
            .parse::<OptimizerKind>()
            .ok()
            .and_then(OptimizerKind::name)
            .is_none_or(|n| RECORDED_OPTIMIZERS.contains(&n));
        if !recorded {
            say(format!("the optimizer `{}`", spec.optimizer));
        }
        if spec.loss == Loss::Unsloth {
            say("Unsloth's fused loss, in as many chunks as keep one within 4 GiB, none of it compiled".into());
        }
    }
    if matches!(spec.work, Work::Generate(_)) {
        let family = spec.model_type.trim_end_matches("_text");
        if spec.description.is_none() && !RECORDED_GENERATION.contains(&family) {
            say(format!("generation with `{}`", spec.model_type));
        }
        if !spec.use_cache && !spec.stack.transformers_5() {
            say("transformers 4 without a cache".into());
        }
    }
    if spec.attention == Attention::FlashAttention2 {
        say("flash_attention_2 (the flash-attn package, written from its source)".into());
    }
    // gemma3_text is the text part of gemma3, recorded under that name
    let model = spec.model_type.trim_end_matches("_text");
    // a description says for itself whether it is one of those that were compared
    if spec.description.is_none() && !RECORDED_MODELS.contains(&model) {
        say(format!("the architecture `{}`", spec.model_type));
    }
    out
}
