//! What a block is: by its tag, else by when it was made and when it ends, as the recorded breakdowns do.

use super::analysis::Block;
use serde::Serialize;
use tonnage_sim::OpId;
use tonnage_sim::timeline::{Category, Phase};

/// The owner class of a byte (DESIGN section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Component {
    Parameters,
    QuantState,
    Buffers,
    Gradients,
    OptimizerState,
    /// What backward needs, of the layers.
    SavedActivations,
    /// Of those, the S x S maps of an attention that computes its scores explicitly.
    AttentionScores,
    /// The vocabulary logits, their copies and the loss.
    LogitsAndLoss,
    /// Low precision copies of weights made by autocast.
    AutocastCopies,
    KvCache,
    /// Gone before the phase ends.
    Temporaries,
    Inputs,
    /// What the script's variables keep from step to step.
    HeldOutputs,
    /// cuBLAS and cuBLASLt.
    Workspaces,
    /// Held by the allocator and in no tensor: cached blocks, fragments.
    AllocatorCache,
    DeviceContext,
    Libraries,
}

impl Component {
    /// Every component, in the order of reports.
    pub const ALL: [Component; 17] = [
        Component::Parameters,
        Component::QuantState,
        Component::Buffers,
        Component::Gradients,
        Component::OptimizerState,
        Component::SavedActivations,
        Component::AttentionScores,
        Component::LogitsAndLoss,
        Component::AutocastCopies,
        Component::KvCache,
        Component::Temporaries,
        Component::Inputs,
        Component::HeldOutputs,
        Component::Workspaces,
        Component::AllocatorCache,
        Component::DeviceContext,
        Component::Libraries,
    ];

    /// The name in JSON and for `--explain`.
    pub fn name(self) -> &'static str {
        match self {
            Component::Parameters => "parameters",
            Component::QuantState => "quant_state",
            Component::Buffers => "buffers",
            Component::Gradients => "gradients",
            Component::OptimizerState => "optimizer_state",
            Component::SavedActivations => "saved_activations",
            Component::AttentionScores => "attention_scores",
            Component::LogitsAndLoss => "logits_and_loss",
            Component::AutocastCopies => "autocast_copies",
            Component::KvCache => "kv_cache",
            Component::Temporaries => "temporaries",
            Component::Inputs => "inputs",
            Component::HeldOutputs => "held_outputs",
            Component::Workspaces => "workspaces",
            Component::AllocatorCache => "allocator_cache",
            Component::DeviceContext => "device_context",
            Component::Libraries => "libraries",
        }
    }

    /// The name in text.
    pub fn title(self) -> &'static str {
        match self {
            Component::Parameters => "parameters",
            Component::QuantState => "quantisation scales",
            Component::Buffers => "buffers",
            Component::Gradients => "gradients",
            Component::OptimizerState => "optimizer states",
            Component::SavedActivations => "saved activations",
            Component::AttentionScores => "attention scores (saved)",
            Component::LogitsAndLoss => "logits and loss",
            Component::AutocastCopies => "autocast weight copies",
            Component::KvCache => "KV cache",
            Component::Temporaries => "temporaries",
            Component::Inputs => "inputs",
            Component::HeldOutputs => "held outputs",
            Component::Workspaces => "cuBLAS workspaces",
            Component::AllocatorCache => "cached by the allocator",
            Component::DeviceContext => "CUDA context",
            Component::Libraries => "libraries",
        }
    }

    /// What it is, in a sentence.
    pub fn what(self) -> &'static str {
        match self {
            Component::Parameters => {
                "every tensor of the model that is a parameter, adapters included"
            }
            Component::QuantState => "block scales and code tables of quantised weights",
            Component::Buffers => {
                "tensors of the model that are no parameters (masks, rotary tables)"
            }
            Component::Gradients => "gradients of trained parameters",
            Component::OptimizerState => "moments and step counters",
            Component::SavedActivations => {
                "made in forward, freed in the same micro-batch's backward"
            }
            Component::AttentionScores => {
                "softmax, dropout mask and dropped scores of explicit attention, kept for backward"
            }
            Component::LogitsAndLoss => {
                "the head's output, its fp32 copies, log-softmax and its gradient"
            }
            Component::AutocastCopies => {
                "weights cast to the autocast type, kept until backward has used them"
            }
            Component::KvCache => {
                "keys and values of earlier tokens, and what else a generation step hands on"
            }
            Component::Temporaries => "made and freed within one phase",
            Component::Inputs => "the batch on the device",
            Component::HeldOutputs => "outputs that outlive their step in a variable",
            Component::Workspaces => "scratch of matrix products, one for each thread",
            Component::AllocatorCache => {
                "peak reserved less peak allocated: cached blocks and fragments in segments"
            }
            Component::DeviceContext => "the CUDA context of the process, outside the allocator",
            Component::Libraries => "code and handles of libraries, outside the allocator",
        }
    }
}

/// What the classifier knows about the model's modules.
pub struct Modules<'a> {
    pub names: &'a [String],
    /// Does the loss run over a vocabulary?
    pub has_logits: bool,
}

const HEADS: [&str; 6] = [
    "lm_head",
    "embed_out",
    "cls",
    "score",
    "classifier",
    "vocab_projector",
];

impl<'a> Modules<'a> {
    /// Of a simulated model.
    pub fn of(names: &'a [String]) -> Modules<'a> {
        let has_logits = names.iter().any(|m| {
            ["lm_head", "embed_out", "cls"]
                .iter()
                .any(|h| m == h || m.ends_with(&format!(".{h}")))
        });
        Modules { names, has_logits }
    }

    /// The path of a module; empty for the root and for what belongs to no module.
    pub fn name(&self, module: u32) -> &str {
        self.names.get(module as usize).map_or("", String::as_str)
    }

    fn is_head(&self, module: u32) -> bool {
        let name = self.name(module);
        let first = name.split('.').next().unwrap_or("");
        HEADS.contains(&first) || name.rsplit('.').next().is_some_and(|l| HEADS.contains(&l))
    }

    fn is_attention(&self, module: u32) -> bool {
        let mut parts = self.name(module).rsplit('.');
        let last = parts.next().unwrap_or("");
        // the module itself, or the dropout of its scores; what follows the output projection is no score
        last.contains("attn")
            || last.contains("attention")
            || last == "self"
            || parts.any(|p| p == "heads")
    }
}

fn loss_op(op: OpId) -> bool {
    [
        OpId::LOG_SOFTMAX,
        OpId::LOG_SOFTMAX_BACKWARD,
        OpId::NLL_LOSS,
        OpId::NLL_LOSS_BACKWARD,
    ]
    .contains(&op)
}

/// The component of a block.
pub fn component(b: &Block, modules: &Modules) -> Component {
    match b.tag {
        Some(Category::Parameters) => return Component::Parameters,
        Some(Category::Buffers) => return Component::Buffers,
        Some(Category::QuantState) => return Component::QuantState,
        Some(Category::Gradients) => return Component::Gradients,
        Some(Category::OptimizerState) => return Component::OptimizerState,
        Some(Category::Inputs) => return Component::Inputs,
        Some(Category::KvCache) => return Component::KvCache,
        Some(Category::Workspace) => return Component::Workspaces,
        Some(Category::AutocastCopy) => return Component::AutocastCopies,
        None => {}
    }
    let Some(born) = b.born else {
        return Component::Temporaries;
    };
    let end = b.died.map(|m| (m.step, m.micro_batch, m.phase));
    let logits = modules.has_logits
        && (loss_op(b.op)
            || (born.phase == Phase::Forward && modules.is_head(b.module))
            || (b.op == OpId::TO_COPY
                && (modules.is_head(b.module) || modules.name(b.module).is_empty())));
    match born.phase {
        Phase::Forward => {
            if logits {
                return Component::LogitsAndLoss;
            }
            if end == Some((born.step, born.micro_batch, Phase::Forward)) {
                Component::Temporaries
            } else if end == Some((born.step, born.micro_batch, Phase::Backward)) {
                let scores = [OpId::SOFTMAX, OpId::DROPOUT].contains(&b.op)
                    && modules.is_attention(b.module);
                if scores {
                    Component::AttentionScores
                } else {
                    Component::SavedActivations
                }
            } else {
                Component::HeldOutputs
            }
        }
        Phase::Backward if logits => Component::LogitsAndLoss,
        Phase::Prefill | Phase::Decode
            if modules.has_logits
                && (modules.is_head(b.module)
                    || (b.op == OpId::TO_COPY && modules.name(b.module).is_empty())) =>
        {
            Component::LogitsAndLoss
        }
        _ => Component::Temporaries,
    }
}

/// A module path with its numbers replaced: `model.layers.*.mlp`.
pub fn pattern(name: &str) -> String {
    if name.is_empty() {
        return "(model)".into();
    }
    name.split('.')
        .map(|p| {
            if !p.is_empty() && p.bytes().all(|c| c.is_ascii_digit()) {
                "*"
            } else {
                p
            }
        })
        .collect::<Vec<_>>()
        .join(".")
}
