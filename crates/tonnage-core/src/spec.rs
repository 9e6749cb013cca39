//! What is to be simulated: one job on one device, every choice explicit.

use std::sync::Arc;
use tonnage_model::adapt::{LoraOptions, Quant, QuantScope};
use tonnage_model::arch::{self, Built, Head};
use tonnage_model::describe::{self, Description};
use tonnage_model::{Attention, Loss, ModelError, Stack};
use tonnage_sim::checkpoint::Checkpointing;
use tonnage_sim::context::Accumulate;
use tonnage_sim::kernels::KernelDevice;
use tonnage_units::ScalarType;

/// What is really in memory (DESIGN section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// fp32 everywhere.
    Fp32,
    /// Weights, gradients and optimizer states in this 16-bit type.
    Pure(ScalarType),
    /// fp32 weights under autocast to this type; fp16 brings a GradScaler.
    Mixed(ScalarType),
}

impl Precision {
    /// The dtype of the stored weights.
    pub fn weights(self) -> ScalarType {
        match self {
            Precision::Pure(d) => d,
            _ => ScalarType::F32,
        }
    }
    /// The autocast dtype, if any.
    pub fn autocast(self) -> Option<ScalarType> {
        match self {
            Precision::Mixed(d) => Some(d),
            _ => None,
        }
    }
}

/// What the training script keeps in variables after the forward call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    Loss,
    /// The model's output object, so its logits too.
    Outputs,
}

/// Who drives the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loop {
    Plain,
    /// transformers' `Trainer`.
    Trainer,
}

/// The attention mask of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// Not passed.
    Absent,
    /// All ones.
    Ones,
    /// Some positions are padding.
    Padding,
}

/// How weights come onto the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loading {
    /// `model.to("cuda")`, a tensor at a time.
    To,
    /// `from_pretrained(device_map=...)`: one block of the model's size is reserved and given back first.
    Warmup,
}

/// Freezing the first layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freeze {
    pub layers: u64,
    pub embeddings: bool,
}

/// What is done with the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    Train,
    /// One call, all logits.
    Forward,
    /// A prompt of `seq` tokens, then new ones.
    Generate(Generation),
}

/// How `generate` keeps keys and values (where it does: [`Spec::use_cache`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheChoice {
    /// Grows with each token; sliding layers keep their window.
    #[default]
    Dynamic,
    /// Allocated once for prompt and new tokens.
    Static,
    /// On the host but for the layer at work: refused by name.
    Offloaded,
    /// Packed by quanto or HQQ: refused by name.
    Quantized,
}

/// What `generate` is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation {
    /// New tokens of each sequence.
    pub new: u64,
    /// 1: no beam search.
    pub beams: u64,
    pub cache: CacheChoice,
    /// Draw tokens (with the library's `top_k` of 50) instead of taking the best.
    pub sample: bool,
    /// The generation configuration names an end token.
    pub eos: bool,
}

impl Generation {
    /// `new` tokens, greedy, with a growing cache and no end token.
    pub fn greedy(new: u64) -> Generation {
        Generation {
            new,
            beams: 1,
            cache: CacheChoice::Dynamic,
            sample: false,
            eos: false,
        }
    }
}

/// A job, complete.
#[derive(Clone, Debug)]
pub struct Spec {
    pub work: Work,
    /// `llama`, `gpt2`, ...: a file of `tonnage_model::arch`.
    pub model_type: String,
    /// The model in data, in place of `model_type`'s own file.
    pub description: Option<Arc<Description>>,
    /// The architecture's configuration fields.
    pub config: serde_json::Value,
    pub head: Head,
    pub precision: Precision,
    /// Weights in another type than the precision's, e.g. bf16 under autocast.
    pub weights: Option<ScalarType>,
    pub attention: Attention,
    pub batch: u64,
    /// Tokens, frames or positions a sample; 0 where the model has none (images).
    pub seq: u64,
    /// Decoder length of encoder-decoder models.
    pub target_len: Option<u64>,
    /// Image side in pixels.
    pub image: u64,
    pub steps: u32,
    pub accumulation: u32,
    pub clip: Option<f64>,
    pub set_to_none: bool,
    /// `zero_grad()` stands between forward and backward (plain loop): old gradients live through the forward pass.
    pub zero_grad_late: bool,
    pub hold: Hold,
    pub checkpoint: Option<Checkpointing>,
    pub driver: Loop,
    pub optimizer: String,
    pub lora: Option<LoraOptions>,
    pub quant: Option<Quant>,
    /// Which layers a quantiser takes.
    pub quant_scope: QuantScope,
    /// `prepare_model_for_kbit_training`: what is not packed becomes fp32 (only where weights are packed and adapters trained).
    pub kbit_prepare: bool,
    /// The first N layers (and the embeddings) kept fixed.
    pub freeze: Option<Freeze>,
    pub mask: Mask,
    pub loss: Loss,
    pub use_cache: bool,
    pub loading: Loading,
    pub device: KernelDevice,
    pub stack: Stack,
    pub accumulate: Accumulate,
}

impl Spec {
    /// A call of ids and mask alone: an embedding model, or a decoder that classifies.
    pub fn called_bare(&self) -> bool {
        match self.head {
            Head::Base | Head::Embedding => true,
            Head::SequenceClassification => !ENCODERS.contains(&self.model_type.as_str()),
            _ => false,
        }
    }

    /// The model, ready to load.
    ///
    /// # Errors
    /// The configuration or the description does not make one.
    pub fn model(&self) -> Result<Built, ModelError> {
        let sequences = self.description.is_none() && self.called_bare();
        if self.work == Work::Train && sequences {
            return Err(ModelError::Unsupported(
                format!("training with the head `{}`", self.head.name()),
                "one forward call (`work.kind = \"forward\"`) is modelled".into(),
            ));
        }
        match &self.description {
            Some(d) => describe::model(d, &self.config),
            None => arch::build(&self.model_type, &self.config, self.head, &self.stack),
        }
    }
}

/// Models whose `classification` head is the class they are trained with.
const ENCODERS: &[&str] = &[
    "bert",
    "roberta",
    "distilbert",
    "vit",
    "resnet",
    "timm",
    "spoter",
    "pose",
];
