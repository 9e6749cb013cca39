//! The Trainer's two parameter groups: with weight decay and without.

use tonnage_model::Run;
use tonnage_model::net::Kind;
use tonnage_model::run::Trainable;
use tonnage_sim::Tensor;

/// `Trainer.get_decay_parameter_names`: no decay inside `nn.LayerNorm` and for names that match `bias`, `layernorm`, `rmsnorm`,
/// `(?:^|\.)norm(?:$|\.)` or `_norm(?:$|\.)` (transformers 5.17 and 4.57.6, trainer.py). Other norms' names all match.
fn decays(p: &Trainable) -> bool {
    let name = p.name.to_ascii_lowercase();
    let norm = name
        .split('.')
        .any(|part| part == "norm" || part.ends_with("_norm"));
    let named = ["bias", "layernorm", "rmsnorm"]
        .iter()
        .any(|w| name.contains(w));
    p.module != Kind::Norm && !norm && !named
}

/// The Trainer's parameters as its optimizer sees them.
pub struct Groups {
    /// With decay, then without, each in the model's order.
    pub params: [Vec<Tensor>; 2],
    /// Of each parameter: is it an embedding's weight? 8-bit optimizers keep 32-bit states for those (`create_optimizer`;
    /// case `llama-tiny-trainer-amp_bf16-adamw8bit`).
    pub embedding: Vec<bool>,
}

/// Parameters that want gradients, in the Trainer's groups.
pub fn by_decay(run: &Run) -> Groups {
    let (with, without): (Vec<_>, Vec<_>) = run.trainable_named().into_iter().partition(decays);
    let embedding = with
        .iter()
        .chain(&without)
        .map(|p| matches!(p.module, Kind::Embedding { .. }))
        .collect();
    let tensors = |v: Vec<Trainable>| v.into_iter().map(|p| p.tensor).collect();
    Groups {
        params: [tensors(with), tensors(without)],
        embedding,
    }
}
