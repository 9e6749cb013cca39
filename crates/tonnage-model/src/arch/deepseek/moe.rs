//! The feed-forward blocks: a plain one, and experts chosen by groups beside shared ones.

use super::Config;
use crate::common::experts;
use crate::layers::Linear;
use crate::net::{Kind, ModuleId, NetBuilder, ParamId};
use crate::run::Run;
use std::rc::Rc;
use tonnage_sim::{OpId, ScalarType, Shape, Tensor, ops};

/// `mlp` of a layer.
pub enum FeedForward {
    Dense(Mlp),
    Routed(Moe),
}

/// Gate, up and down projections.
pub struct Mlp {
    id: ModuleId,
    act: ModuleId,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Mlp {
    pub fn new(b: &mut NetBuilder, name: &str, c: &Config, width: u64) -> Mlp {
        let (d, bias) = (c.hidden_size, c.mlp_bias && !c.v3);
        b.scope(name, |b| Mlp {
            id: b.id(),
            gate: Linear::new(b, "gate_proj", d, width, bias),
            up: Linear::new(b, "up_proj", d, width, bias),
            down: Linear::new(b, "down_proj", width, d, bias),
            act: b.scope("act_fn", |b| b.id()),
        })
    }

    pub fn forward(&self, m: &Run, x: &Tensor) -> Tensor {
        m.within(self.id, || {
            let gate = self.gate.forward(m, x);
            let a = m.within(self.act, || ops::silu(&m.cx, &gate));
            drop(gate);
            let up = self.up.forward(m, x);
            let p = ops::mul(&m.cx, &a, &up);
            drop(a);
            drop(up);
            self.down.forward(m, &p)
        })
    }
}

/// The experts' weights: packed in 5.x, modules of their own in 4.57, which are never reached here
/// (see [`crate::common::experts::unrouted`]).
enum Experts {
    Packed {
        id: ModuleId,
        act: ModuleId,
        gate_up: ParamId,
        down: ParamId,
    },
    Listed,
}

pub struct Moe {
    id: ModuleId,
    gate: ModuleId,
    weight: ParamId,
    experts: Experts,
    shared: Mlp,
    c: Rc<Config>,
}

impl Moe {
    pub fn new(b: &mut NetBuilder, c: &Rc<Config>, five: bool) -> Moe {
        let (d, e, f) = (c.hidden_size, c.n_routed_experts, c.moe_intermediate_size);
        b.scope("mlp", |b| {
            let experts = if five {
                b.scope_kind("experts", Kind::Other, |b| Experts::Packed {
                    id: b.id(),
                    gate_up: b.param("gate_up_proj", &[e, 2 * f, d]),
                    down: b.param("down_proj", &[e, d, f]),
                    act: b.scope("act_fn", |b| b.id()),
                })
            } else {
                b.scope("experts", |b| {
                    for i in 0..e {
                        Mlp::new(b, &i.to_string(), c, f);
                    }
                    Experts::Listed
                })
            };
            let (gate, weight) = b.scope_kind("gate", Kind::Other, |b| {
                let weight = b.param("weight", &[e, d]);
                if c.v3 {
                    b.buffer("e_score_correction_bias", &[e], None);
                }
                (b.id(), weight)
            });
            Moe {
                id: b.id(),
                gate,
                weight,
                experts,
                shared: Mlp::new(b, "shared_experts", c, f * c.n_shared_experts),
                c: c.clone(),
            }
        })
    }

    pub fn forward(&self, m: &Run, x: &Tensor) -> Tensor {
        m.within(self.id, || {
            let cx = &m.cx;
            // the gate makes a view of its own, before this block's
            let flat = || ops::view(cx, x, Shape::new(&[x.size(0) * x.size(1), x.size(2)]));
            let (logits, top, ids) = m.within(self.gate, || {
                let flat = flat();
                if self.c.v3 {
                    self.sigmoid_gate(m, &flat)
                } else {
                    self.softmax_gate(m, &flat)
                }
            });
            let flat = flat();
            let routed = match &self.experts {
                Experts::Packed {
                    id,
                    act,
                    gate_up,
                    down,
                } => m.within(*id, || {
                    let (up, down) = (m.weight(*gate_up), m.weight(*down));
                    let silu = |t: &Tensor| m.within(*act, || ops::silu(cx, t));
                    experts::grouped(m, &flat, &ids, &top, up, down, silu)
                }),
                Experts::Listed => {
                    let e = self.c.n_routed_experts;
                    experts::unreached(m, &flat, &ids, top.dtype, e)
                }
            };
            let routed = ops::view(cx, &routed, x.shape);
            let shared = self.shared.forward(m, x);
            let y = ops::add(cx, &routed, &shared);
            drop(shared);
            drop(routed);
            drop(logits);
            drop(top);
            drop(ids);
            y
        })
    }

    /// fp32 scores of all experts for the tokens `x` [T, D].
    fn logits(&self, m: &Run, x: &Tensor) -> Tensor {
        let cx = &m.cx;
        let h = ops::to_dtype(cx, x, ScalarType::F32);
        let w = ops::to_dtype(cx, m.weight(self.weight), ScalarType::F32);
        ops::linear(cx, &h, &w, None)
    }

    /// The best groups' experts stay, the others get a number that is never chosen. With the result what the frame holds until
    /// the choice is made.
    fn limited(
        &self,
        m: &Run,
        scores: &Tensor,
        groups: (u64, u64),
        by: Best,
    ) -> (Tensor, [Tensor; 4]) {
        let cx = &m.cx;
        let (t, e) = (scores.size(0), scores.size(1));
        let (n, top) = groups;
        let grouped = ops::view(cx, scores, Shape::new(&[t, n, e / n]));
        let group_scores = by.of(m, &grouped);
        drop(grouped);
        let (values, chosen) = ops::topk(cx, &group_scores, top);
        drop(values);
        let mask = ops::plain(cx, OpId::ZEROS_LIKE, &group_scores, group_scores.dtype);
        let wide = ops::unsqueeze(cx, &mask, -1);
        let wide = ops::expand(cx, &wide, Shape::new(&[t, n, e / n]));
        let score_mask = ops::reshape(cx, &wide, Shape::new(&[t, e]));
        drop(wide);
        let bools = ops::plain(cx, OpId::TO_COPY, &score_mask, ScalarType::Bool);
        let not = ops::plain(cx, OpId::BITWISE, &bools, ScalarType::Bool);
        drop(bools);
        let y = ops::masked_fill(cx, scores, &not);
        drop(not);
        (y, [group_scores, chosen, mask, score_mask])
    }

    /// V3: sigmoids and a correction decide, the plain sigmoids weigh. The router's logits, weights and ids [T, k].
    fn sigmoid_gate(&self, m: &Run, x: &Tensor) -> (Option<Tensor>, Tensor, Tensor) {
        let cx = &m.cx;
        let five = m.options.stack.transformers_5();
        let logits = self.logits(m, x);
        let scores = ops::sigmoid(cx, &logits);
        let choose = || {
            let mut choice = ops::add(cx, &scores, &m.buffers[self.gate.0 as usize][0]);
            let groups = self.c.groups().expect("V3 chooses by groups");
            let (limited, frame) = self.limited(m, &choice, groups, Best::SumOfTwo);
            choice = limited;
            let (values, ids) = ops::topk(cx, &choice, self.c.top_k());
            drop(values);
            (ids, five.then_some((choice, frame)))
        };
        // 4.57 decides without gradients in a frame of its own
        let (ids, frame) = if five {
            choose()
        } else {
            cx.with_grad(false, choose)
        };
        let mut top = ops::gather(cx, &scores, &ids);
        let mut denominator = None;
        if self.c.norm_topk_prob {
            let sum = ops::sum(cx, &top, &[-1], true);
            let by = denominator.insert(ops::add_scalar(cx, &sum));
            drop(sum);
            top = ops::div_(cx, top, by);
        }
        top = ops::mul_scalar(cx, &top);
        drop(scores);
        drop(denominator);
        drop(frame);
        (five.then_some(logits), top, ids)
    }

    /// V2: softmax of all, the best of them or of the best groups.
    fn softmax_gate(&self, m: &Run, x: &Tensor) -> (Option<Tensor>, Tensor, Tensor) {
        let cx = &m.cx;
        let logits = self.logits(m, x);
        let mut scores = ops::softmax(cx, &logits, Some(ScalarType::F32));
        let frame = self.c.groups().map(|groups| {
            let (limited, frame) = self.limited(m, &scores, groups, Best::Maximum);
            scores = limited;
            frame
        });
        let (mut top, ids) = ops::topk(cx, &scores, self.c.top_k());
        top = ops::mul_scalar(cx, &top);
        drop(scores);
        drop(frame);
        (Some(logits), top, ids)
    }
}

/// What a group is worth.
#[derive(Clone, Copy)]
enum Best {
    SumOfTwo,
    Maximum,
}

impl Best {
    /// [T, groups, experts of a group] -> [T, groups]
    fn of(self, m: &Run, grouped: &Tensor) -> Tensor {
        let cx = &m.cx;
        let (values, ids) = ops::topk(
            cx,
            grouped,
            if matches!(self, Best::SumOfTwo) { 2 } else { 1 },
        );
        drop(ids);
        match self {
            Best::SumOfTwo => ops::sum(cx, &values, &[-1], false),
            Best::Maximum => ops::squeeze(cx, &values, -1),
        }
    }
}
