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

/// Parameters that want gradients: the group with decay, then the one without, each in the model's order.
pub fn by_decay(run: &Run) -> [Vec<Tensor>; 2] {
    let (with, without): (Vec<_>, Vec<_>) = run.trainable_named().into_iter().partition(decays);
    let tensors = |v: Vec<Trainable>| v.into_iter().map(|p| p.tensor).collect();
    [tensors(with), tensors(without)]
}
