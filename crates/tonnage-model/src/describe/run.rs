//! A described model on the simulator. The order of calls and the life of every tensor are those of the Python in
//! `docs/descriptions.md`; a description names no library version, so its forward is defined there and nowhere else.

use super::forward::{Kind, LossPlace, NormPosition, Pool};
use super::plan::{
    AttentionPlan, FfnPlan, LayerPlan, Norm, OneHead, Places, Plan, Projections, ScoreKind, Source,
    activate,
};
use crate::arch::{Arch, Batch, BatchLayout, Output};
use crate::common::{self, mha::canonical_mask};
use crate::layers::Dropout;
use crate::net::ModuleId;
use crate::run::{Attention as JobAttention, Run};
use std::rc::Rc;
use tonnage_sim::ops::{self, Reduction, SdpaArgs};
use tonnage_sim::{OpId, ScalarType, Shape, Tensor};

/// What the layers of one call share. Declared in the order in which it goes.
#[derive(Clone)]
struct Shared {
    /// Numbers to add to the scores, [B, S].
    padding: Option<Tensor>,
    /// True where a position must not look, [S, S].
    causal: Option<Tensor>,
    sin: Option<Tensor>,
    cos: Option<Tensor>,
}

impl Plan {
    fn explicit(&self, m: &Run) -> bool {
        self.layers.first().is_some_and(|l| l.attention.explicit(m))
    }

    fn shared(&self, m: &Run, x: &Tensor, mask: Option<&Tensor>) -> Shared {
        let cx = &m.cx;
        let s = x.size(1);
        let padding = mask.map(|k| canonical_mask(cx, k, x));
        let needs_causal = self.kind == Kind::Decoder
            && self.explicit(m)
            && self.layers.iter().any(|l| l.attention.needs_causal());
        let causal = needs_causal.then(|| {
            let ones = cx.empty(OpId::FULL, Shape::new(&[s, s]), ScalarType::Bool);
            let upper = cx.empty(OpId::BITWISE, Shape::new(&[s, s]), ScalarType::Bool);
            drop(ones);
            upper
        });
        let (mut cos, mut sin) = (None, None);
        if let Places::Rotary { dim, module } = self.places {
            let tables = || common::rope::tables(m, s, dim, x.dtype);
            let (c, n) = match module {
                Some(id) => m.within(id, tables),
                None => tables(),
            };
            (cos, sin) = (Some(c), Some(n));
        }
        Shared {
            padding,
            causal,
            sin,
            cos,
        }
    }

    /// The stack of layers, the frame of its own locals.
    fn layers(&self, m: &Rc<Run>, mut x: Tensor, mask: Option<&Tensor>) -> Tensor {
        let shared = self.shared(m, &x, mask);
        for (i, l) in self.layers.iter().enumerate() {
            x = if m.checkpoints(i) {
                let (l, m2, shared) = (l.clone(), m.clone(), shared.clone());
                m.cx.checkpoint(vec![x], move |_, t| {
                    let shared = &shared;
                    l.forward(&m2, &t[0], shared)
                })
            } else {
                l.forward(m, &x, &shared)
            };
        }
        drop(shared);
        x
    }
}

impl LayerPlan {
    fn part(
        &self,
        m: &Run,
        x: &Tensor,
        norm: &Norm,
        dropout: Option<&Dropout>,
        part: impl FnOnce(Tensor) -> Tensor,
    ) -> Tensor {
        let cx = &m.cx;
        let dropped = |inner: Tensor| match dropout {
            Some(d) => {
                let y = d.forward(m, &inner);
                drop(inner);
                y
            }
            None => inner,
        };
        match self.order {
            NormPosition::Pre => {
                let a = dropped(part(norm.forward(m, x)));
                ops::add(cx, x, &a)
            }
            NormPosition::Post => {
                let sum = {
                    let a = dropped(part(x.clone()));
                    ops::add(cx, x, &a)
                };
                norm.forward(m, &sum)
            }
        }
    }

    fn forward(&self, m: &Run, x: &Tensor, shared: &Shared) -> Tensor {
        m.within(self.id, || {
            let x = self.part(
                m,
                x,
                &self.attention_norm,
                self.attention_dropout.as_ref(),
                |h| {
                    let a = self.attention.forward(m, &h, shared);
                    drop(h);
                    a
                },
            );
            self.part(m, &x, &self.ffn_norm, self.ffn_dropout.as_ref(), |h| {
                self.ffn.forward(m, h)
            })
        })
    }
}

impl AttentionPlan {
    fn explicit(&self, m: &Run) -> bool {
        match self.scores {
            ScoreKind::Explicit => true,
            ScoreKind::Sdpa => false,
            ScoreKind::Job => m.options.attention == JobAttention::Eager,
        }
    }

    /// Does it take the causal mask of the call (and not one of its own)?
    fn needs_causal(&self) -> bool {
        match &self.projections {
            Projections::PerHead(heads) => heads.iter().any(|h| h.mask.is_none()),
            _ => self.mask.is_none(),
        }
    }

    fn p(&self, m: &Run) -> f64 {
        if m.training { self.dropout } else { 0.0 }
    }

    fn forward(&self, m: &Run, x: &Tensor, shared: &Shared) -> Tensor {
        if let Projections::Torch(mha) = &self.projections {
            return mha.forward(m, x, None, shared.padding.as_ref());
        }
        m.within(self.id, || match &self.projections {
            Projections::PerHead(heads) => self.per_head(m, x, heads, shared),
            _ => self.joint(m, x, shared),
        })
    }

    /// The output projection and the module's own dropout.
    fn output(&self, m: &Run, y: &Tensor) -> Tensor {
        let p = self.out.forward(m, y);
        match &self.own_dropout {
            Some(d) => d.forward(m, &p),
            None => p,
        }
    }

    fn per_head(&self, m: &Run, x: &Tensor, heads: &[OneHead], shared: &Shared) -> Tensor {
        let mut parts: Vec<Tensor> = heads.iter().map(|h| self.one(m, x, h, shared)).collect();
        let refs: Vec<&Tensor> = parts.iter().collect();
        let mut out = ops::cat(&m.cx, &refs, -1);
        // a list lets go of its last item first
        while let Some(h) = parts.pop() {
            drop(h);
        }
        out = self.output(m, &out);
        out
    }

    fn one(&self, m: &Run, x: &Tensor, h: &OneHead, shared: &Shared) -> Tensor {
        let cx = &m.cx;
        m.within(h.id, || {
            let s = x.size(1);
            let k = h.k.forward(m, x);
            let q = h.q.forward(m, x);
            let mut w = {
                let raw = ops::matmul(cx, &q, &ops::transpose(cx, &k, -2, -1));
                ops::mul_scalar(cx, &raw)
            };
            let own = h.mask.map(|i| (h.id, i));
            if self.causal {
                w = causal(m, &w, own, shared, s);
            }
            if let Some(p) = &shared.padding {
                w = ops::add(cx, &w, &ops::unsqueeze(cx, p, 1));
            }
            w = ops::softmax(cx, &w, None);
            if let Some(d) = &h.dropout {
                w = d.forward(m, &w);
            }
            let v = h.v.forward(m, x);
            let out = ops::matmul(cx, &w, &v);
            drop(k);
            drop(q);
            drop(w);
            drop(v);
            out
        })
    }

    /// Queries, keys and values [B, heads, S, head size].
    fn qkv(&self, m: &Run, x: &Tensor) -> [Tensor; 3] {
        let cx = &m.cx;
        let split = |y: &Tensor| {
            let (b, s, w) = (y.size(0), y.size(1), y.size(2));
            let shape = Shape::new(&[b, s, w / self.head_dim, self.head_dim]);
            ops::view(cx, y, shape)
        };
        let finish = |v: Tensor, n: Option<&Norm>| {
            let v = match n {
                Some(n) => n.forward(m, &v),
                None => v,
            };
            ops::transpose(cx, &v, 1, 2)
        };
        let norms = [self.norms[0].as_ref(), self.norms[1].as_ref(), None];
        match &self.projections {
            Projections::Fused(l, sizes) => {
                let fused = l.forward(m, x);
                let parts = ops::split(cx, &fused, sizes, 2);
                drop(fused);
                let out = [0, 1, 2].map(|i| finish(split(&parts[i]), norms[i]));
                drop(parts);
                out
            }
            Projections::Separate(ls) => [0, 1, 2].map(|i| {
                let y = ls[i].forward(m, x);
                let v = split(&y);
                drop(y);
                finish(v, norms[i])
            }),
            Projections::PerHead(_) | Projections::Torch(_) => {
                unreachable!("these attend on their own")
            }
        }
    }

    fn joint(&self, m: &Run, x: &Tensor, shared: &Shared) -> Tensor {
        let cx = &m.cx;
        let (b, s) = (x.size(0), x.size(1));
        let [mut q, mut k, mut v] = self.qkv(m, x);
        if let (Some(cos), Some(sin)) = (&shared.cos, &shared.sin) {
            let (q2, k2) = common::rope::apply(m, &q, &k, cos, sin);
            q = q2;
            k = k2;
        }
        let padding = shared
            .padding
            .as_ref()
            .map(|p| ops::view(cx, p, Shape::new(&[b, 1, 1, s])));
        let explicit = self.explicit(m);
        if self.groups > 1 && (explicit || padding.is_some()) {
            k = ops::repeat_kv(cx, &k, self.groups);
            v = ops::repeat_kv(cx, &v, self.groups);
        }
        let mut weights = None;
        let mut y = if explicit {
            let mut w = {
                let raw = ops::matmul(cx, &q, &ops::transpose(cx, &k, -2, -1));
                ops::mul_scalar(cx, &raw)
            };
            if self.causal {
                w = causal(m, &w, self.mask, shared, s);
            }
            if let Some(p) = &padding {
                w = ops::add(cx, &w, p);
            }
            w = if self.softmax_fp32 {
                let soft = ops::softmax(cx, &w, Some(ScalarType::F32));
                ops::to_dtype(cx, &soft, q.dtype)
            } else {
                ops::softmax(cx, &w, None)
            };
            w = match self.dropout_module {
                Some(id) => m.within(id, || ops::dropout(cx, &w, self.p(m))),
                None => ops::dropout(cx, &w, self.p(m)),
            };
            let y = ops::matmul(cx, &w, &v);
            weights = Some(w);
            y
        } else {
            let args = SdpaArgs {
                mask: padding.clone(),
                dropout: self.p(m),
                is_causal: self.causal,
                enable_gqa: self.groups > 1 && padding.is_none(),
                scale_given: false,
            };
            ops::sdpa(cx, &q, &k, &v, &args)
        };
        y = {
            let c = ops::contiguous(cx, &ops::transpose(cx, &y, 1, 2));
            let width = c.size(2) * c.size(3);
            ops::view(cx, &c, Shape::new(&[b, s, width]))
        };
        y = self.output(m, &y);
        drop(q);
        drop(k);
        drop(v);
        drop(padding);
        drop(weights);
        y
    }
}

/// Scores with minus infinity where a position must not look: by the module's own buffer [.., T, T] of ones and zeros, or by the
/// mask of the call.
fn causal(m: &Run, w: &Tensor, own: Option<(ModuleId, usize)>, shared: &Shared, s: u64) -> Tensor {
    let cx = &m.cx;
    let Some((id, i)) = own else {
        return match &shared.causal {
            Some(mask) => ops::masked_fill(cx, w, mask),
            None => w.clone(),
        };
    };
    let rows = ops::slice(cx, &m.buffers[id.0 as usize][i], -2, 0, s);
    let mask = ops::compare_scalar(cx, OpId::EQ, &ops::slice(cx, &rows, -1, 0, s));
    let filled = ops::masked_fill(cx, w, &mask);
    drop(mask);
    filled
}

impl FfnPlan {
    fn activate(&self, m: &Run, x: &Tensor) -> Tensor {
        match self.activation_module {
            Some(id) => m.within(id, || activate(self.activation, m, x)),
            None => activate(self.activation, m, x),
        }
    }

    /// A module is a call, which holds its argument; without one its lines stand in the layer and rebind the variable.
    fn forward(&self, m: &Run, x: Tensor) -> Tensor {
        match self.module {
            Some(id) => m.within(id, || self.inside(m, x, true)),
            None => self.inside(m, x, false),
        }
    }

    fn inside(&self, m: &Run, x: Tensor, call: bool) -> Tensor {
        let argument;
        let mut h = match &self.gate {
            Some(gate) => {
                let g = gate.forward(m, &x);
                let a = self.activate(m, &g);
                drop(g);
                let u = self.up.forward(m, &x);
                argument = Some(x).filter(|_| call);
                let p = ops::mul(&m.cx, &a, &u);
                drop(a);
                drop(u);
                p
            }
            None => {
                let u = self.up.forward(m, &x);
                argument = Some(x).filter(|_| call);
                self.activate(m, &u)
            }
        };
        if let Some(d) = &self.inner_dropout {
            h = d.forward(m, &h);
        }
        h = self.down.forward(m, &h);
        if let Some(d) = &self.own_dropout {
            h = d.forward(m, &h);
        }
        drop(argument);
        h
    }
}

/// A described model.
pub struct Model(pub Rc<Plan>);

/// What the frame of the model's call keeps beside the hidden states.
#[derive(Default)]
struct Locals {
    tokens: Option<Tensor>,
    types: Option<Tensor>,
    positions: Option<Tensor>,
}

impl Model {
    /// Hidden states [B, S, D] before the layers.
    fn input(&self, m: &Run, batch: &Batch, locals: &mut Locals) -> Tensor {
        let cx = &m.cx;
        let p = &*self.0;
        let mut x = match &p.source {
            Source::Tokens {
                embedding,
                types,
                kept,
            } => {
                let ids = batch
                    .input_ids
                    .as_ref()
                    .expect("the layout asks for input_ids");
                let s = ids.size(1);
                let range = || cx.empty(OpId::ARANGE, Shape::new(&[s]), ScalarType::I64);
                let table = match p.places {
                    Places::Embedding { table, ids_first } => Some((table, ids_first)),
                    _ => None,
                };
                let mut early = table.filter(|(_, first)| *first).map(|_| range());
                let mut own = Locals {
                    tokens: Some(embedding.forward(m, ids)),
                    ..Locals::default()
                };
                own.types = types.map(|t| {
                    let zeros = cx.empty(OpId::ZEROS, ids.shape, ScalarType::I64);
                    t.forward(m, &zeros)
                });
                own.positions = table.map(|(t, _)| {
                    let at = early.take().unwrap_or_else(range);
                    t.forward(m, &at)
                });
                let mut sum: Option<Tensor> = None;
                for part in [&own.tokens, &own.types, &own.positions] {
                    sum = match (sum, part) {
                        (None, part) => part.clone(),
                        (Some(a), Some(b)) => Some(ops::add(cx, &a, b)),
                        (a, None) => a,
                    };
                }
                if *kept {
                    *locals = own;
                }
                sum.expect("there are tokens")
            }
            Source::Features { steps, class_token } => {
                let features = batch
                    .features
                    .as_ref()
                    .expect("the layout asks for features");
                let mut x = features.clone();
                for step in steps {
                    x = step.forward(m, &x);
                }
                if let Some(t) = class_token {
                    x = {
                        let t = m.weight(*t);
                        let token = ops::expand(cx, t, t.shape.with(0, x.size(0)));
                        ops::cat(cx, &[&token, &x], 1)
                    };
                }
                if let Places::Embedding { table, .. } = p.places {
                    let range = cx.empty(OpId::ARANGE, Shape::new(&[x.size(1)]), ScalarType::I64);
                    let places = table.forward(m, &range);
                    x = ops::add(cx, &x, &places);
                }
                x
            }
        };
        let table = match p.places {
            Places::Parameter(id) => Some(m.weight(id)),
            Places::Buffer(id, i) => Some(&m.buffers[id.0 as usize][i]),
            _ => None,
        };
        if let Some(t) = table {
            x = {
                let cut = ops::slice(cx, t, 1, 0, x.size(1));
                ops::add(cx, &x, &cut)
            };
        }
        if let Some(n) = &p.input_norm {
            x = n.forward(m, &x);
        }
        if let Some(d) = &p.input_dropout {
            x = d.forward(m, &x);
        }
        x
    }

    /// True at padding, [B, S] with the class token's column in front.
    fn mask(&self, m: &Run, batch: &Batch, x: &Tensor) -> Option<Tensor> {
        let cx = &m.cx;
        let given = batch
            .attention_mask
            .as_ref()
            .filter(|_| self.0.layout.mask)?;
        let mut mask = given.clone();
        if given.dtype != ScalarType::Bool {
            mask = ops::compare_scalar(cx, OpId::EQ, &mask);
        }
        if mask.size(1) < x.size(1) {
            let first = cx.empty(OpId::ZEROS, Shape::new(&[x.size(0), 1]), ScalarType::Bool);
            mask = ops::cat(cx, &[&first, &mask], 1);
        }
        Some(mask)
    }

    fn loss(&self, m: &Run, y: &Tensor, labels: &Tensor) -> Tensor {
        let cx = &m.cx;
        if self.0.shift {
            return common::loss::causal_lm(m, y, labels);
        }
        let entropy = |y: &Tensor, l: &Tensor| {
            if self.0.smoothing {
                ops::cross_entropy_smoothed(cx, y, l, Reduction::Mean)
            } else {
                ops::cross_entropy(cx, y, l, Reduction::Mean)
            }
        };
        if self.0.pool != Pool::None {
            return entropy(y, labels);
        }
        let (n, classes) = (labels.numel(), y.size(-1));
        let flat = ops::view(cx, y, Shape::new(&[n, classes]));
        let target = ops::view(cx, labels, Shape::new(&[n]));
        entropy(&flat, &target)
    }
}

impl Arch for Model {
    fn layout(&self) -> Option<&BatchLayout> {
        Some(&self.0.layout)
    }

    fn forward(&self, m: &Rc<Run>, batch: &Batch) -> Output {
        let cx = &m.cx;
        let p = &*self.0;
        let mut locals = Locals::default();
        let mut x = self.input(m, batch, &mut locals);
        let mask = self.mask(m, batch, &x);
        x = match p.stack {
            // a call: the caller's variable holds the argument until it returns
            Some(id) => m.within(id, || p.layers(m, x.clone(), mask.as_ref())),
            None => p.layers(m, x, mask.as_ref()),
        };
        if let Some(n) = &p.final_norm {
            x = n.forward(m, &x);
        }
        let mut y = match p.pool {
            Pool::None => x.clone(),
            Pool::First | Pool::Last => ops::select(cx, &x, 1),
            Pool::Mean => ops::mean(cx, &x, &[1], false),
        };
        for call in &p.head {
            y = call.forward(m, &y);
        }
        let loss = |y: &Tensor| batch.labels.as_ref().map(|l| self.loss(m, y, l));
        let mut out = None;
        if p.loss == LossPlace::Model {
            out = loss(&y);
        }
        let Locals {
            tokens,
            types,
            positions,
        } = locals;
        drop(tokens);
        drop(types);
        drop(positions);
        drop(x);
        drop(mask);
        if p.loss == LossPlace::Script {
            out = loss(&y);
        }
        Output {
            loss: out,
            logits: Some(y),
            rest: vec![],
        }
    }
}
