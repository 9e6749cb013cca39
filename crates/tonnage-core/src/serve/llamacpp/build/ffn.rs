//! Feed-forward blocks (src/llama-graph.cpp `build_ffn`, `build_moe_ffn`).

use super::Builder;
use crate::serve::llamacpp::error::Error;
use crate::serve::llamacpp::ggml::{Id, Unary};
use crate::serve::llamacpp::hparams::Gating;

/// The activation of a feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Gate and up apart, one fused node (silu or gelu).
    Gated,
    /// Gate and up in one matrix.
    Fused,
    /// No gate.
    Plain(Unary),
}

/// Most experts of a token (`LLAMA_MAX_EXPERTS`).
const MAX_USED: u64 = 1024;

/// What a block of experts does besides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Moe {
    /// Chosen weights are normalised.
    pub norm: bool,
    pub gating: Gating,
}

impl Builder<'_> {
    /// `build_ffn`. `suffix` is empty, or `_shexp` for shared experts.
    pub(super) fn ffn(&mut self, l: usize, cur: Id, suffix: &str, act: Act) -> Result<Id, Error> {
        let up = self.layer(l, &format!("ffn_up{suffix}.weight"))?;
        let mut up = self.mm(up, cur);
        if let Some(b) = self.layer_opt(l, &format!("ffn_up{suffix}.bias")) {
            up = self.g.add(up, b);
        }
        let mut x = match act {
            Act::Gated => {
                let gate = self.layer(l, &format!("ffn_gate{suffix}.weight"))?;
                let mut gate = self.mm(gate, cur);
                if let Some(b) = self.layer_opt(l, &format!("ffn_gate{suffix}.bias")) {
                    gate = self.g.add(gate, b);
                }
                self.g.glu_split(gate, up)
            }
            Act::Fused => self.g.glu(up),
            Act::Plain(op) => self.g.unary(op, up),
        };
        let down = self.layer(l, &format!("ffn_down{suffix}.weight"))?;
        x = self.mm(down, x);
        if let Some(b) = self.layer_opt(l, &format!("ffn_down{suffix}.bias")) {
            x = self.g.add(x, b);
        }
        Ok(x)
    }

    /// `build_moe_ffn`.
    pub(super) fn moe(&mut self, l: usize, cur: Id, how: Moe) -> Result<Id, Error> {
        let h = self.x.h;
        let (experts, used) = (h.n_expert, h.n_expert_used);
        if used == 0 || used > MAX_USED {
            return Err(Error::Unsupported(format!("{used} experts of a token")));
        }
        let (width, n) = (self.g.get(cur).ne[0], self.g.get(cur).ne[1]);
        let gate_inp = self.layer(l, "ffn_gate_inp.weight")?;
        let mut logits = self.mm(gate_inp, cur);
        if let Some(b) = self.layer_opt(l, "ffn_gate_inp.bias") {
            logits = self.g.add(logits, b);
        }
        let probs = match how.gating {
            Gating::Softmax => self.g.soft_max(logits, None, None),
            Gating::Sigmoid => self.g.unary(Unary::Sigmoid, logits),
            Gating::SoftmaxWeight => logits,
        };
        let mut choice = probs;
        if let Some(b) = self.layer_opt(l, "exp_probs_b.bias") {
            choice = self.g.add(probs, b);
        }
        if h.n_expert_groups > 1 {
            choice = self.groups(choice, experts, n);
        }
        let ids = self.g.argsort_top_k(choice, used);
        let probs = self.g.reshape(probs, [1, experts, n, 1]);
        let mut weights = self.g.get_rows(probs, ids);
        if how.gating == Gating::SoftmaxWeight {
            weights = self.g.reshape(weights, [used, n, 1, 1]);
            weights = self.g.soft_max(weights, None, None);
            weights = self.g.reshape(weights, [1, used, n, 1]);
        }
        if how.norm {
            weights = self.g.reshape(weights, [used, n, 1, 1]);
            let sum = self.g.sum_rows(weights);
            let sum = self.g.clamp(sum);
            weights = self.g.div(weights, sum);
            weights = self.g.reshape(weights, [1, used, n, 1]);
        }
        if h.expert_scale != 0.0 && h.expert_scale != 1.0 {
            weights = self.g.scale(weights);
        }
        self.g.expand(weights);

        let cur = self.g.reshape(cur, [width, 1, n, 1]);
        let (gate, up) = match self.layer_opt(l, "ffn_gate_up_exps.weight") {
            Some(w) => {
                let both = self.g.mul_mat_id(w, cur, ids);
                let t = self.g.get(both);
                let (ne, nb) = (t.ne, t.nb);
                let half = [ne[0] / 2, ne[1], ne[2]];
                let gate = self.g.view_3d(both, half, nb[1], nb[2]);
                (gate, self.g.view_3d(both, half, nb[1], nb[2]))
            }
            None => {
                let up = self.expert(l, "up", cur, ids)?;
                (self.expert(l, "gate", cur, ids)?, up)
            }
        };
        let x = self.g.glu_split(gate, up);
        let x = self.expert(l, "down", x, ids)?;
        let x = self.g.mul(x, weights);
        self.g.expand(x);

        // a view of each chosen expert, then their sum
        let nb = self.g.get(x).nb[2];
        let mut views = Vec::new();
        for _ in 0..used {
            let v = self.g.view_2d(x, width, n, nb);
            self.g.expand(v);
            views.push(v);
        }
        let mut sum = views[0];
        for v in &views[1..] {
            sum = self.g.add(sum, *v);
            self.g.expand(sum);
        }
        if used == 1 {
            sum = self.g.cont(sum);
        }
        Ok(sum)
    }

    /// One of the experts' products with its bias.
    fn expert(&mut self, l: usize, which: &str, cur: Id, ids: Id) -> Result<Id, Error> {
        let w = self.layer(l, &format!("ffn_{which}_exps.weight"))?;
        let n = self.g.get(cur).ne[0];
        self.rows(w, n);
        let x = self.g.mul_mat_id(w, cur, ids);
        Ok(match self.layer_opt(l, &format!("ffn_{which}_exps.bias")) {
            Some(b) => self.g.add_id(x, b, ids),
            None => x,
        })
    }

    /// Only experts of the best groups can be chosen (DeepSeek-V3).
    fn groups(&mut self, probs: Id, experts: u64, n: u64) -> Id {
        let (groups, kept) = (self.x.h.n_expert_groups, self.x.h.n_group_used);
        let each = experts / groups;
        let by_group = self.g.reshape(probs, [each, groups, n, 1]);
        let best = self.g.argsort_top_k(by_group, 2);
        let single = self.g.reshape(by_group, [1, each, groups, n]);
        let scores = self.g.get_rows(single, best);
        let ne = self.g.get(scores).ne;
        let scores = self.g.reshape(scores, [ne[1], ne[2], ne[3], 1]);
        let scores = self.g.sum_rows(scores);
        let ne = self.g.get(scores).ne;
        let scores = self.g.reshape(scores, [ne[1], ne[2], 1, 1]);
        let chosen = self.g.argsort_top_k(scores, kept);
        let rows = self.g.get_rows(by_group, chosen);
        let none = self.g.fill(by_group);
        let masked = self.g.set_rows(none, rows, chosen);
        self.g.reshape(masked, [experts, n, 1, 1])
    }
}
