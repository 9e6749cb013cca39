//! Which optimizer: algorithm, implementation, and the names by which jobs call it.

/// How torch runs the step of Adam or SGD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Implementation {
    /// Lists of tensors (`foreach=True`, torch's default on CUDA).
    Foreach,
    /// One kernel (`fused=True`).
    Fused,
    /// One parameter after the other (`foreach=False`).
    ForLoop,
}

/// Algorithms of bitsandbytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bnb {
    /// Adam and AdamW: two states.
    Adam,
    /// AdEMAMix: a double first state and a second one.
    AdEmaMix,
    /// Lion: one state.
    Lion,
    /// RMSprop: one state.
    RmsProp,
}

/// An optimizer with the options that decide what it allocates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OptimizerKind {
    /// `torch.optim.Adam` and `AdamW`. `coupled_decay`: Adam with a nonzero `weight_decay`, which AdamW never has.
    Adam {
        implementation: Implementation,
        amsgrad: bool,
        coupled_decay: bool,
    },
    /// `torch.optim.SGD`; `momentum` and `decay`: nonzero `momentum`, `weight_decay`.
    Sgd {
        implementation: Implementation,
        momentum: bool,
        decay: bool,
    },
    /// `torch.optim.RMSprop` (foreach).
    RmsProp {
        momentum: bool,
        centered: bool,
        decay: bool,
    },
    /// `torch.optim.Adagrad` (foreach); its state is made in the constructor.
    Adagrad { decay: bool },
    /// `transformers.optimization.Adafactor` with a given learning rate (`scale_parameter=False, relative_step=False`, as `Trainer`
    /// makes it); `momentum`: `beta1` is set.
    Adafactor { momentum: bool },
    /// lion-pytorch.
    Lion,
    /// `torch.optim.Muon` (2-D parameters only).
    Muon,
    /// bitsandbytes; `paged` states of at least 100,000 elements are managed memory.
    Bnb {
        algorithm: Bnb,
        eight_bit: bool,
        paged: bool,
    },
}

/// A name that no optimizer here has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown optimizer {name:?}")]
pub struct UnknownOptimizer {
    pub name: String,
}

const fn adam(implementation: Implementation) -> OptimizerKind {
    OptimizerKind::Adam {
        implementation,
        amsgrad: false,
        coupled_decay: false,
    }
}

const fn bnb(algorithm: Bnb, eight_bit: bool, paged: bool) -> OptimizerKind {
    OptimizerKind::Bnb {
        algorithm,
        eight_bit,
        paged,
    }
}

use Implementation::{ForLoop, Foreach, Fused};

/// Names of the records and of `TrainingArguments.optim` (transformers 5.17, training_args.py, trainer_optimizer.py), then common ones.
const NAMES: &[(&str, OptimizerKind)] = &[
    ("adamw_foreach", adam(Foreach)),
    ("adamw_fused", adam(Fused)),
    ("adamw_forloop", adam(ForLoop)),
    (
        "sgd",
        OptimizerKind::Sgd {
            implementation: Foreach,
            momentum: false,
            decay: false,
        },
    ),
    (
        "sgd_momentum",
        OptimizerKind::Sgd {
            implementation: Foreach,
            momentum: true,
            decay: false,
        },
    ),
    ("adafactor", OptimizerKind::Adafactor { momentum: false }),
    (
        "rmsprop",
        OptimizerKind::RmsProp {
            momentum: false,
            centered: false,
            decay: false,
        },
    ),
    ("adagrad", OptimizerKind::Adagrad { decay: false }),
    ("lion", OptimizerKind::Lion),
    ("muon", OptimizerKind::Muon),
    ("adamw8bit", bnb(Bnb::Adam, true, false)),
    ("paged_adamw8bit", bnb(Bnb::Adam, true, true)),
    ("paged_adamw32bit", bnb(Bnb::Adam, false, true)),
    ("adamw32bit", bnb(Bnb::Adam, false, false)),
    ("lion32bit", bnb(Bnb::Lion, false, false)),
    ("lion8bit", bnb(Bnb::Lion, true, false)),
    ("paged_lion32bit", bnb(Bnb::Lion, false, true)),
    ("paged_lion8bit", bnb(Bnb::Lion, true, true)),
    ("ademamix", bnb(Bnb::AdEmaMix, false, false)),
    ("ademamix8bit", bnb(Bnb::AdEmaMix, true, false)),
    ("paged_ademamix32bit", bnb(Bnb::AdEmaMix, false, true)),
    ("paged_ademamix8bit", bnb(Bnb::AdEmaMix, true, true)),
    ("rmsprop_bnb", bnb(Bnb::RmsProp, false, false)),
    ("rmsprop_bnb_8bit", bnb(Bnb::RmsProp, true, false)),
    // other names for the same
    ("adamw", adam(Foreach)),
    ("adamw_torch", adam(Foreach)),
    ("adamw_torch_fused", adam(Fused)),
    ("adam", adam(Foreach)),
    ("adam_foreach", adam(Foreach)),
    ("adam_fused", adam(Fused)),
    ("adam_forloop", adam(ForLoop)),
    ("lion_pytorch", OptimizerKind::Lion),
    ("adam8bit", bnb(Bnb::Adam, true, false)),
    ("adamw_8bit", bnb(Bnb::Adam, true, false)),
    ("adamw_bnb_8bit", bnb(Bnb::Adam, true, false)),
    ("paged_adamw_8bit", bnb(Bnb::Adam, true, true)),
    ("paged_adamw_32bit", bnb(Bnb::Adam, false, true)),
    ("paged_adamw", bnb(Bnb::Adam, false, true)),
    ("lion_8bit", bnb(Bnb::Lion, true, false)),
    ("lion_32bit", bnb(Bnb::Lion, false, false)),
    ("paged_lion_8bit", bnb(Bnb::Lion, true, true)),
    ("paged_lion_32bit", bnb(Bnb::Lion, false, true)),
    ("ademamix_8bit", bnb(Bnb::AdEmaMix, true, false)),
    ("paged_ademamix_32bit", bnb(Bnb::AdEmaMix, false, true)),
    ("paged_ademamix_8bit", bnb(Bnb::AdEmaMix, true, true)),
    ("rmsprop_bnb_32bit", bnb(Bnb::RmsProp, false, false)),
];

impl OptimizerKind {
    /// The kind by a name of the records, of `TrainingArguments(optim=...)`, or a common one; case and `-` against `_` do not matter.
    pub fn parse(name: &str) -> Result<OptimizerKind, UnknownOptimizer> {
        let key = name.trim().to_ascii_lowercase().replace('-', "_");
        let found = NAMES.iter().find(|(n, _)| *n == key);
        found.map(|(_, k)| *k).ok_or_else(|| UnknownOptimizer {
            name: name.to_owned(),
        })
    }

    /// The preferred name; None for option combinations that have no name of their own.
    pub fn name(self) -> Option<&'static str> {
        NAMES.iter().find(|(_, k)| *k == self).map(|(n, _)| *n)
    }

    /// Every name that [`OptimizerKind::parse`] takes.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|(n, _)| *n)
    }
}

impl std::str::FromStr for OptimizerKind {
    type Err = UnknownOptimizer;
    fn from_str(s: &str) -> Result<OptimizerKind, UnknownOptimizer> {
        OptimizerKind::parse(s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_unique_and_parses() {
        let names: std::collections::BTreeSet<_> = OptimizerKind::names().collect();
        assert_eq!(names.len(), NAMES.len());
        for (n, k) in NAMES {
            assert_eq!(OptimizerKind::parse(n), Ok(*k));
        }
        assert_eq!(
            OptimizerKind::parse("AdamW_Torch-Fused").unwrap().name(),
            Some("adamw_fused")
        );
        assert_eq!(
            OptimizerKind::parse("adamw_apex").unwrap_err().to_string(),
            "unknown optimizer \"adamw_apex\""
        );
    }
}
