//! Architectures: a file each, from configuration fields to modules and a forward pass.

pub mod agi2;
pub mod bert;
pub mod convnext;
pub mod deepseek;
pub mod distilbert;
pub mod falcon;
pub mod gemma2;
pub mod gemma3;
pub mod gpt2;
pub mod gpt_neox;
pub mod gpt_oss;
pub mod gpt_per_head;
pub mod litgpt;
pub mod llama;
pub mod llama_2024;
pub mod mixtral;
pub mod nanogpt;
pub mod opt;
pub mod phi;
pub mod phi3;
pub mod pose;
pub mod resnet;
pub mod roberta;
pub mod spoter;
pub mod t5;
pub mod timm;
pub mod vit;
pub mod whisper;

use crate::cache::{Cache, CacheKind};
use crate::error::ModelError;
use crate::net::Net;
use crate::run::Run;
use crate::stack::Stack;
use std::rc::Rc;
use tonnage_sim::{Cx, Tensor, ops};

/// The tensors of one call, on the device.
#[derive(Clone, Default)]
pub struct Batch {
    /// [B, C, H, W] images, [B, mel, T] audio features or [S, B, F] poses, fp32
    pub features: Option<Tensor>,
    /// [B, S] int64
    pub input_ids: Option<Tensor>,
    /// [B, S] or [B] int64
    pub labels: Option<Tensor>,
    /// [B, S] int64
    pub attention_mask: Option<Tensor>,
    /// [B, 1, S, K] of the sliding layers where the caller prepares a mask for each kind of layer (`attention_mask` is then of the
    /// full ones).
    pub sliding_mask: Option<Tensor>,
    /// What the mask says: some positions are padding, so a mask tensor is built from it.
    pub padded: bool,
    /// [B, S] int64 where the caller passes them (generation), else the model makes its own.
    pub position_ids: Option<Tensor>,
    /// Logits of this many last positions only (`logits_to_keep`); None: of all.
    pub keep: Option<u64>,
}

impl Batch {
    /// The hidden states [B, S, D] of the positions whose logits are wanted (`hidden_states[:, slice_indices, :]`).
    pub fn last(&self, cx: &Cx, h: &Tensor) -> Tensor {
        let s = h.size(1);
        let n = self.keep.map_or(s, |k| k.min(s));
        ops::slice(cx, h, 1, s - n, n)
    }
}

/// What a call returns; the caller decides how long it lives.
#[derive(Default)]
pub struct Output {
    pub loss: Option<Tensor>,
    pub logits: Option<Tensor>,
    /// Other tensors of the returned object (caches, hidden states), in its order.
    pub rest: Vec<Tensor>,
}

/// The tensors that a described model's call takes, in the script's order: features or ids, the mask an encoder needs, labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchLayout {
    /// Numbers a position of continuous input [B, S, F]; None: token ids [B, S].
    pub features: Option<u64>,
    /// The model takes a padding mask [B, S] in every call: bool beside features, int64 beside ids.
    pub mask: bool,
    /// Labels [B, S] and not [B].
    pub label_each: bool,
    /// The longest S and what limits it.
    pub longest: Option<(u64, String)>,
    /// The most elements of one tensor for each sample and position, and for each sample and pair of positions.
    pub widest: (u64, u64),
}

/// Which kinds of attention mask a model's layers need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masks {
    /// Of full attention.
    pub full: bool,
    /// Of layers that look back this many tokens.
    pub window: Option<u64>,
}

/// An `EncoderDecoderCache`.
#[derive(Clone)]
pub struct Caches {
    pub own: Rc<Cache>,
    pub cross: Rc<Cache>,
}

impl Caches {
    /// Two that grow by concatenation; the second one only once.
    pub fn dynamic() -> Caches {
        Caches {
            own: Rc::new(Cache::new(CacheKind::Dynamic)),
            cross: Rc::new(Cache::new(CacheKind::Dynamic)),
        }
    }
}

/// The two halves of an encoder-decoder in a generation.
pub trait EncoderDecoder {
    /// The encoder's hidden states for ids [B, S].
    fn encode(&self, m: &Rc<Run>, ids: &Tensor, mask: Option<&Tensor>) -> Tensor;
    /// Logits [B, S, V] of the decoder's tokens; `mask` is the encoder's.
    fn decode(
        &self,
        m: &Rc<Run>,
        ids: &Tensor,
        encoded: &Tensor,
        mask: Option<&Tensor>,
        caches: &Caches,
    ) -> Tensor;
}

/// A forward pass.
pub trait Arch {
    /// Does every attention layer hand its keys and values to the call's cache, and does the head take [`Batch::keep`]?
    fn generates(&self) -> bool {
        false
    }
    /// Does every attention layer hand its keys and values to the call's cache, whatever the head?
    fn caches(&self) -> bool {
        self.generates()
    }
    /// The masks that its layers need: full, and with this window.
    fn masks(&self) -> Masks {
        Masks {
            full: true,
            window: None,
        }
    }
    /// Encoder and decoder apart, where a generation runs the one once and the other for each token.
    fn encoder_decoder(&self) -> Option<&dyn EncoderDecoder> {
        None
    }
    /// The model's own loop generates, without a cache: the most tokens of one call.
    fn by_hand(&self) -> Option<u64> {
        None
    }
    /// What a batch holds, where the architecture's name does not say it.
    fn layout(&self) -> Option<&BatchLayout> {
        None
    }
    /// Takes what the last call's Python autograd functions keep on their `ctx` as attributes: unlike saved tensors it lives as
    /// long as the graph, that is, as long as the caller holds a result with a `grad_fn`.
    fn contexts(&self) -> Vec<Tensor> {
        Vec::new()
    }
    fn forward(&self, m: &Rc<Run>, batch: &Batch) -> Output;
}

/// A model ready to load.
pub struct Built {
    pub net: Net,
    pub arch: Rc<dyn Arch>,
}

/// The task head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// The class the family trains by default.
    Default,
    CausalLm,
    MaskedLm,
    SequenceClassification,
    /// The model alone (`AutoModel`): its hidden states, and the pooler's output where it has one.
    Base,
    /// [`Head::Base`] and the mean of its hidden states over the mask, normalised: an embedding model's usual head.
    Embedding,
}

impl Head {
    /// As a job names it.
    pub fn name(&self) -> &'static str {
        match self {
            Head::Default => "default",
            Head::CausalLm => "causal-lm",
            Head::MaskedLm => "masked-lm",
            Head::SequenceClassification => "classification",
            Head::Base => "base",
            Head::Embedding => "embedding",
        }
    }
}

/// Builds `model_type` from its configuration fields (absent ones take the library's defaults).
pub fn build(
    model_type: &str,
    config: &serde_json::Value,
    head: Head,
    stack: &Stack,
) -> Result<Built, ModelError> {
    head_exists(model_type, head)?;
    match model_type {
        "agi2" => agi2::build(config, head),
        "bert" => bert::build(config, head, stack),
        "t5" => t5::build(config, head, stack),
        "whisper" => whisper::build(config, head),
        "vit" => vit::build(config, head, stack),
        "roberta" => roberta::build(config, head, stack),
        "deepseek_v2" | "deepseek_v3" => deepseek::build(model_type, config, head, stack),
        "distilbert" => distilbert::build(config, head),
        "falcon" => falcon::build(config, head, stack),
        "gemma3" if config.get("text_config").is_none() => gemma3::build(config, head, stack),
        "gemma3_text" => gemma3::build(config, head, stack),
        "gpt2" => gpt2::build(config, head, stack),
        "gpt_neox" => gpt_neox::build(config, head, stack),
        "gpt_oss" => gpt_oss::build(config, head, stack),
        "gpt_per_head" => gpt_per_head::build(config, head),
        "mixtral" => mixtral::build(config, head, stack),
        "nanogpt" => nanogpt::build(config, head),
        "gemma2" => gemma2::build(config, head, stack),
        "opt" => opt::build(config, head),
        "phi" => phi::build(config, head, stack),
        "phi3" => phi3::build(config, head, stack),
        "litgpt" => litgpt::build(config),
        "pose" => pose::build(config, head),
        "llama" if stack.llama_2024() => llama_2024::build(config, stack),
        "resnet" => resnet::build(config, head),
        "spoter" => spoter::build(config, head),
        "timm" => timm::build(config, head),
        "llama" | "qwen2" | "qwen3" | "mistral" => llama::build(model_type, config, head, stack),
        _ => Err(ModelError::NoForward(model_type.to_string())),
    }
}

/// Refuses a head that the family has no forward for; never another one in its place.
fn head_exists(model_type: &str, head: Head) -> Result<(), ModelError> {
    let heads: &[Head] = match model_type {
        "bert" | "roberta" => &[
            Head::MaskedLm,
            Head::SequenceClassification,
            Head::Base,
            Head::Embedding,
        ],
        "distilbert" => &[Head::MaskedLm, Head::SequenceClassification],
        "llama" | "mistral" | "qwen2" | "qwen3" => &[
            Head::CausalLm,
            Head::SequenceClassification,
            Head::Base,
            Head::Embedding,
        ],
        "vit" | "resnet" | "timm" | "spoter" | "pose" => &[Head::SequenceClassification],
        "t5" | "whisper" => &[],
        _ => &[Head::CausalLm],
    };
    if head == Head::Default || heads.contains(&head) {
        return Ok(());
    }
    let names: Vec<&str> = heads.iter().map(Head::name).collect();
    Err(ModelError::field(
        "head",
        format!(
            "`{}` has no forward with {model_type}; {}",
            head.name(),
            if names.is_empty() {
                "leave it out".into()
            } else {
                format!("there is {}", names.join(", "))
            }
        ),
    ))
}

/// Reads an architecture's typed fields, naming the field that does not fit.
pub fn fields<T: serde::de::DeserializeOwned>(config: &serde_json::Value) -> Result<T, ModelError> {
    serde_json::from_value(config.clone()).map_err(|e| ModelError::Json(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_without_a_forward_is_refused_by_name() {
        let stack = Stack::default();
        let config = serde_json::json!({});
        for (t, head) in [
            ("gpt2", Head::SequenceClassification),
            ("phi3", Head::MaskedLm),
            ("bert", Head::CausalLm),
            ("t5", Head::CausalLm),
        ] {
            let Err(e) = build(t, &config, head, &stack) else {
                panic!("{t} with {head:?} was built");
            };
            let text = e.to_string();
            assert!(text.contains(head.name()) && text.contains(t), "{text}");
        }
    }
}
