//! Optimizers over several parameter groups.

use super::{Optimizer, OptimizerKind, State, bnb, create};
use crate::context::Cx;
use crate::tensor::Tensor;

/// Makes the optimizer `kind` over parameter groups; `step` then takes all groups' parameters, one group after the other.
///
/// Those of `torch.optim` run each group's step whole, so list temporaries span one group only (torch 2.11, torch/optim/adamw.py and
/// its neighbours; case `gpt2-small-trainer-fp32-adamw_foreach-b4-s512-ga4`). The others go parameter by parameter and share what
/// they share over all groups. `wide`, one for each parameter: bitsandbytes keeps its states in 32 bit.
pub fn create_grouped(
    kind: OptimizerKind,
    cx: &Cx,
    groups: &[Vec<Tensor>],
    wide: &[bool],
) -> Box<dyn Optimizer> {
    match kind {
        OptimizerKind::Adam { .. }
        | OptimizerKind::Sgd { .. }
        | OptimizerKind::RmsProp { .. }
        | OptimizerKind::Adagrad { .. }
        | OptimizerKind::Muon => Box::new(Grouped {
            parts: groups
                .iter()
                .map(|g| (g.len(), create(kind, cx, g)))
                .collect(),
        }),
        OptimizerKind::Adafactor { .. } | OptimizerKind::Lion => create(kind, cx, &groups.concat()),
        OptimizerKind::Bnb {
            algorithm,
            eight_bit,
            paged,
        } => Box::new(bnb::Bnb8::new(algorithm, eight_bit, paged, wide.len()).keep_wide(wide)),
    }
}

/// One optimizer for each group, with the number of its parameters.
struct Grouped {
    parts: Vec<(usize, Box<dyn Optimizer>)>,
}

impl Optimizer for Grouped {
    fn step(&mut self, cx: &Cx, params: &[Tensor]) {
        let mut rest = params;
        for (n, part) in &mut self.parts {
            let (own, next) = rest.split_at(*n);
            part.step(cx, own);
            rest = next;
        }
    }

    fn states(&self) -> Vec<State<'_>> {
        let mut first = 0;
        let mut out = Vec::new();
        for (n, part) in &self.parts {
            out.extend(part.states().into_iter().map(|s| State {
                parameter: first + s.parameter,
                ..s
            }));
            first += n;
        }
        out
    }

    fn managed_bytes(&self) -> u64 {
        self.parts.iter().map(|(_, p)| p.managed_bytes()).sum()
    }

    fn scales_gradients(&self) -> bool {
        self.parts.iter().any(|(_, p)| p.scales_gradients())
    }
}
