//! Resolves a forward section against the module tree: every name must be there, every width must fit the one before.

use super::eval::Scope;
use super::expr::Expr;
use super::forward::{Ffn, FfnKind, Forward, Input, Kind as Flow, Norms, Pool, Position, Step};
use super::plan::{Call, FfnPlan, LayerPlan, Norm, Places, Plan, Source};
use crate::arch::BatchLayout;
use crate::error::ModelError;
use crate::layers::{Dropout, Embedding, LayerNorm, Linear, RmsNorm};
use crate::net::{Kind, ModuleId, Net, ParamId};
use std::collections::HashMap;
use std::rc::Rc;
use tonnage_sim::Shape;

pub(super) struct Compiler<'a> {
    pub(super) f: &'a Forward,
    pub(super) scope: &'a Scope<'a>,
    pub(super) net: &'a Net,
    names: HashMap<&'a str, ModuleId>,
    dropouts: &'a HashMap<ModuleId, f64>,
    /// Largest width met.
    widest: u64,
}

pub(super) type Result<T> = std::result::Result<T, ModelError>;

/// The plan of `f` over `net`, whose dropouts have these probabilities.
pub fn compile<'a>(
    f: &'a Forward,
    scope: &'a Scope<'a>,
    net: &'a Net,
    dropouts: &'a HashMap<ModuleId, f64>,
) -> Result<Plan> {
    let names = net
        .modules
        .iter()
        .enumerate()
        .map(|(i, m)| (m.name.as_str(), ModuleId(i as u32)))
        .collect();
    let mut c = Compiler {
        f,
        scope,
        net,
        names,
        dropouts,
        widest: 1,
    };
    c.plan()
}

impl<'a> Compiler<'a> {
    pub(super) fn fault(&self, place: &str, problem: impl AsRef<str>) -> ModelError {
        self.scope
            .fault(&format!("forward.{place}"), problem.as_ref())
    }

    pub(super) fn module(&self, place: &str, name: &str) -> Result<ModuleId> {
        self.names.get(name).copied().ok_or_else(|| {
            let hint = tonnage_units::nearest(name, self.names.keys().copied())
                .map_or(String::new(), |n| format!("; did you mean `{n}`?"));
            self.fault(place, format!("there is no module `{name}`{hint}"))
        })
    }

    fn kind_of(&self, id: ModuleId) -> &'static str {
        match self.net.module(id).kind {
            Kind::Linear { .. } | Kind::Conv1d { .. } => "a linear",
            Kind::Embedding { .. } => "an embedding",
            Kind::Norm => "a norm",
            Kind::Dropout => "a dropout",
            Kind::Conv2d => "a convolution",
            _ => "a block",
        }
    }

    fn not(&self, place: &str, id: ModuleId, wanted: &str) -> ModelError {
        let name = &self.net.module(id).name;
        self.fault(
            place,
            format!("`{name}` is {}, not {wanted}", self.kind_of(id)),
        )
    }

    /// A linear with its input and output width.
    fn linear(&self, place: &str, name: &str) -> Result<(Linear, u64, u64)> {
        let id = self.module(place, name)?;
        match self.net.module(id).kind {
            Kind::Linear { input, output } | Kind::Conv1d { input, output } => {
                Ok((Linear(id), input, output))
            }
            _ => Err(self.not(place, id, "a linear")),
        }
    }

    /// A linear of these widths.
    pub(super) fn fitting(
        &mut self,
        place: &str,
        name: &str,
        input: u64,
        output: u64,
    ) -> Result<Linear> {
        let (l, i, o) = self.linear(place, name)?;
        self.fits(place, name, "takes", i, input)?;
        self.fits(place, name, "gives", o, output)?;
        self.widest = self.widest.max(i).max(o);
        Ok(l)
    }

    fn fits(&self, place: &str, name: &str, verb: &str, is: u64, wanted: u64) -> Result<()> {
        if is == wanted {
            return Ok(());
        }
        Err(self.fault(
            place,
            format!("`{name}` {verb} {is} numbers, {wanted} are needed here"),
        ))
    }

    pub(super) fn norm(&self, place: &str, name: &str, width: u64) -> Result<Norm> {
        let id = self.module(place, name)?;
        if self.net.module(id).kind != Kind::Norm {
            return Err(self.not(place, id, "a norm"));
        }
        let (w, b) = (self.net.find(id, "weight"), self.net.find(id, "bias"));
        for p in [w, b].into_iter().flatten() {
            self.fits(
                place,
                name,
                "is over",
                self.net.param(p).shape.numel(),
                width,
            )?;
        }
        if b.is_some() && self.f.norms != Norms::Layer {
            return Err(self.fault(place, format!("`{name}` has a bias, an RMS norm has none")));
        }
        match (self.f.norms, w) {
            (Norms::Layer, w) => Ok(Norm::Layer(LayerNorm::of(id, w, b))),
            (Norms::RmsFused, w) => Ok(Norm::Fused(id, w)),
            (Norms::Rms, Some(w)) => Ok(Norm::Rms(RmsNorm::of(id, w))),
            (Norms::Rms, None) => Err(self.fault(
                place,
                format!("`{name}` has no weight, which norms = \"rms\" needs"),
            )),
        }
    }

    pub(super) fn dropout(&self, place: &str, name: &str) -> Result<Dropout> {
        let id = self.module(place, name)?;
        match self.dropouts.get(&id) {
            Some(p) => Ok(Dropout { id, p: *p }),
            None => Err(self.not(place, id, "a dropout")),
        }
    }

    fn embedding(
        &self,
        place: &str,
        name: &str,
        width: Option<u64>,
    ) -> Result<(Embedding, u64, u64)> {
        let id = self.module(place, name)?;
        match (self.net.module(id).kind, self.net.find(id, "weight")) {
            (Kind::Embedding { rows, width: w }, Some(p)) => {
                self.fits(place, name, "gives", w, width.unwrap_or(w))?;
                Ok((Embedding(id, p), rows, w))
            }
            _ => Err(self.not(place, id, "an embedding")),
        }
    }

    pub(super) fn param(&self, place: &str, name: &str) -> Result<(ParamId, Shape)> {
        match self.net.params.iter().position(|p| p.name == name) {
            Some(i) => Ok((ParamId(i as u32), self.net.params[i].shape)),
            None => {
                let bare = self.net.params.iter().map(|p| p.name.as_str());
                let hint = tonnage_units::nearest(name, bare)
                    .map_or(String::new(), |n| format!("; did you mean `{n}`?"));
                Err(self.fault(place, format!("there is no parameter `{name}`{hint}")))
            }
        }
    }

    /// A buffer by its full name: its module, its number there, its sizes.
    pub(super) fn buffer(&self, place: &str, name: &str) -> Result<(ModuleId, usize, Shape)> {
        let (owner, local) = name.rsplit_once('.').unwrap_or(("", name));
        let found = self.names.get(owner).and_then(|id| {
            let buffers = &self.net.module(*id).buffers;
            let i = buffers.iter().position(|b| b.name == name)?;
            Some((*id, i, buffers[i].shape))
        });
        found.ok_or_else(|| {
            let here = self.names.get(owner).map(|id| self.net.module(*id));
            let hint = here
                .and_then(|m| {
                    let locals = m.buffers.iter().map(|b| {
                        let n = b.name.as_str();
                        n.rsplit_once('.').map_or(n, |(_, l)| l)
                    });
                    tonnage_units::nearest(local, locals)
                })
                .map_or(String::new(), |n| format!("; did you mean `{n}`?"));
            self.fault(place, format!("there is no buffer `{name}`{hint}"))
        })
    }

    pub(super) fn whole(&self, e: &'a Expr) -> Result<u64> {
        self.scope.whole(e, 1, u64::from(u32::MAX))
    }

    /// Calls from a width on; the width after them (None at first: the first linear's input).
    fn calls(
        &mut self,
        place: &str,
        steps: &[Step],
        start: Option<u64>,
    ) -> Result<(Vec<Call>, Option<u64>, Option<u64>)> {
        let (mut first, mut width) = (start, start);
        let mut out = Vec::new();
        for step in steps {
            out.push(match step {
                Step::Activation(a) => Call::Activation(*a),
                Step::Module(name) => {
                    let id = self.module(place, name)?;
                    match self.net.module(id).kind {
                        Kind::Linear { input, output } | Kind::Conv1d { input, output } => {
                            let l =
                                self.fitting(place, name, width.unwrap_or(input), output)?;
                            first = first.or(Some(input));
                            width = Some(output);
                            Call::Linear(l)
                        }
                        Kind::Dropout => Call::Dropout(self.dropout(place, name)?),
                        Kind::Norm => {
                            let own = self.net.find(id, "weight");
                            let own = own.map(|p| self.net.param(p).shape.numel());
                            let Some(w) = width.or(own) else {
                                return Err(self.fault(
                                    place,
                                    format!("the width before `{name}` is not known"),
                                ));
                            };
                            first = first.or(Some(w));
                            width = Some(w);
                            Call::Norm(self.norm(place, name, w)?)
                        }
                        _ => {
                            return Err(self.fault(
                                place,
                                format!(
                                    "`{name}` is {}: name the linears, norms and dropouts inside it",
                                    self.kind_of(id)
                                ),
                            ));
                        }
                    }
                }
            });
        }
        Ok((out, first, width))
    }

    fn plan(&mut self) -> Result<Plan> {
        let f = self.f;
        let (source, features, d, class, input_norm, input_dropout) = self.source()?;
        let (places, limit) = self.places(d, u64::from(class))?;
        let mut longest = limit;
        let container = self.module("layers", &f.layers)?;
        let children = self.net.module(container).children.clone();
        if children.is_empty() {
            return Err(self.fault("layers", format!("`{}` has no layers", f.layers)));
        }
        let mut layers = Vec::with_capacity(children.len());
        for id in children {
            let (layer, limit) = self.layer(id, d)?;
            layers.push(Rc::new(layer));
            if let Some((rows, what)) = limit {
                let rows = rows.saturating_sub(u64::from(class));
                if longest.as_ref().is_none_or(|(n, _)| rows < *n) {
                    longest = Some((rows, what));
                }
            }
        }
        let final_norm = match &f.final_norm {
            Some(n) => Some(self.norm("final_norm", n, d)?),
            None => None,
        };
        if f.padding_mask && f.kind == Flow::Decoder {
            return Err(self.fault(
                "padding_mask",
                "belongs to kind = \"encoder\": a decoder's causal mask hides padding on its own",
            ));
        }
        if f.head.pool == Pool::None && class {
            return Err(self.fault(
                "head.pool",
                "with a class token must be first, last or mean: the token has no label",
            ));
        }
        let (head, ..) = self.calls("head.steps", &f.head.steps, Some(d))?;
        if !head.iter().any(|c| matches!(c, Call::Linear(_))) {
            return Err(self.fault("head.steps", "has no linear: there is nothing to train on"));
        }
        if f.loss.shift && f.head.pool != Pool::None {
            return Err(self.fault(
                "loss.shift",
                "belongs to a head over every position (pool = \"none\")",
            ));
        }
        if f.loss.shift && f.loss.label_smoothing.is_some() {
            return Err(self.fault("loss.label_smoothing", "and `shift` exclude each other"));
        }
        let smoothing = match &f.loss.label_smoothing {
            Some(e) => self.scope.probability(e)? > 0.0,
            None => false,
        };
        let heads = layers.iter().map(|l| l.attention.heads()).max();
        let stack = self.net.module(container).parent.filter(|p| p.0 != 0);
        Ok(Plan {
            kind: f.kind,
            source,
            places,
            input_norm,
            input_dropout,
            stack,
            layers,
            final_norm,
            pool: f.head.pool,
            head,
            loss: f.loss.place,
            shift: f.loss.shift,
            smoothing,
            layout: BatchLayout {
                features,
                mask: f.padding_mask,
                label_each: f.head.pool == Pool::None,
                longest,
                widest: (self.widest, heads.unwrap_or(1)),
            },
        })
    }

    #[allow(clippy::type_complexity)] // the parts of one section
    fn source(
        &mut self,
    ) -> Result<(
        Source,
        Option<u64>,
        u64,
        bool,
        Option<Norm>,
        Option<Dropout>,
    )> {
        let f = self.f;
        let (source, features, d, class, norm, dropout) = match &f.input {
            Input::Tokens {
                module,
                types,
                norm,
                dropout,
                kept,
            } => {
                let (embedding, _, d) = self.embedding("input.tokens.module", module, None)?;
                let types = match types {
                    Some(t) => Some(self.embedding("input.tokens.types", t, Some(d))?.0),
                    None => None,
                };
                let source = Source::Tokens {
                    embedding,
                    types,
                    kept: *kept,
                };
                (source, None, d, false, norm, dropout)
            }
            Input::Features {
                steps,
                class_token,
                norm,
                dropout,
            } => {
                let (steps, first, d) = self.calls("input.features.steps", steps, None)?;
                let (Some(first), Some(d)) = (first, d) else {
                    return Err(self.fault(
                        "input.features.steps",
                        "needs a linear or a norm: the width of the input is not known",
                    ));
                };
                let token = match class_token {
                    Some(t) => {
                        let (id, shape) = self.param("input.features.class_token", t)?;
                        if shape.ndim() != 3 || shape.numel() != d || shape.size(2) != d {
                            return Err(self.fault(
                                "input.features.class_token",
                                format!("`{t}` must have the sizes [1, 1, {d}]"),
                            ));
                        }
                        Some(id)
                    }
                    None => None,
                };
                let source = Source::Features {
                    steps,
                    class_token: token,
                };
                (source, Some(first), d, token.is_some(), norm, dropout)
            }
        };
        let norm = match norm {
            Some(n) => Some(self.norm("input.norm", n, d)?),
            None => None,
        };
        let dropout = match dropout {
            Some(n) => Some(self.dropout("input.dropout", n)?),
            None => None,
        };
        self.widest = self.widest.max(d).max(features.unwrap_or(1));
        Ok((source, features, d, class, norm, dropout))
    }

    /// Positions, and the longest input that their table allows with `extra` positions in front.
    fn places(&self, d: u64, extra: u64) -> Result<(Places, Option<(u64, String)>)> {
        let limit = |name: &str, rows: u64| {
            Some((
                rows.saturating_sub(extra),
                format!("the position table `{name}` has {rows} rows"),
            ))
        };
        let table = |name: &str, shape: &Shape| {
            if shape.ndim() == 3 && shape.size(0) == 1 && shape.size(2) == d {
                return Ok(limit(name, shape.size(1)));
            }
            Err(self.fault(
                "position.name",
                format!("`{name}` must have the sizes [1, positions, {d}]"),
            ))
        };
        Ok(match &self.f.position {
            Position::None => (Places::None, None),
            Position::Embedding { module, ids_first } => {
                let (e, rows, _) = self.embedding("position.module", module, Some(d))?;
                let places = Places::Embedding {
                    table: e,
                    ids_first: *ids_first,
                };
                (places, limit(module, rows))
            }
            Position::Parameter { name } => {
                let (id, shape) = self.param("position.name", name)?;
                (Places::Parameter(id), table(name, &shape)?)
            }
            Position::Buffer { name } => {
                let (id, i, shape) = self.buffer("position.name", name)?;
                (Places::Buffer(id, i), table(name, &shape)?)
            }
            Position::Rotary { dim, module } => {
                let n = self.whole(dim)?;
                if n % 2 != 0 {
                    return Err(self.fault(
                        "position.rotary.dim",
                        format!("{n} is odd; rotary positions turn pairs"),
                    ));
                }
                let module = match module {
                    Some(m) => Some(self.module("position.rotary.module", m)?),
                    None => None,
                };
                (Places::Rotary { dim: n, module }, None)
            }
        })
    }

    fn layer(&mut self, id: ModuleId, d: u64) -> Result<(LayerPlan, Option<(u64, String)>)> {
        let f = self.f;
        let path = self.net.module(id).name.clone();
        let inside = |name: &str| format!("{path}.{name}");
        let attention_norm = self.norm("attention_norm", &inside(&f.attention_norm), d)?;
        let ffn_norm = self.norm("ffn_norm", &inside(&f.ffn_norm), d)?;
        let (attention, attention_dropout, limit) = self.attention(&f.attention, &path, d)?;
        let mut ffn = self.ffn(&f.ffn, &path, d)?;
        let mut ffn_dropout = match &f.ffn.out_dropout {
            Some(n) => Some(self.dropout("ffn.out_dropout", &inside(n))?),
            None => None,
        };
        // a dropout inside the module is called by the module, one beside it by the layer
        if let (Some(n), Some(module)) = (&f.ffn.out_dropout, &f.ffn.module)
            && n.starts_with(&format!("{module}."))
        {
            ffn.own_dropout = ffn_dropout.take();
        }
        Ok((
            LayerPlan {
                id,
                attention_norm,
                attention,
                attention_dropout,
                ffn_norm,
                ffn,
                ffn_dropout,
                order: f.norm,
            },
            limit,
        ))
    }

    fn ffn(&mut self, f: &Ffn, layer: &str, d: u64) -> Result<FfnPlan> {
        let inside = |name: &str| format!("{layer}.{name}");
        let (_, _, inner) = self.linear("ffn.up", &inside(&f.up))?;
        let up = self.fitting("ffn.up", &inside(&f.up), d, inner)?;
        let down = self.fitting("ffn.down", &inside(&f.down), inner, d)?;
        let gate = match (f.kind, &f.gate) {
            (FfnKind::Gated, Some(g)) => Some(self.fitting("ffn.gate", &inside(g), d, inner)?),
            (FfnKind::Gated, None) => return Err(self.fault("ffn.gate", "is missing")),
            (FfnKind::Plain, Some(_)) => {
                return Err(self.fault("ffn.gate", "belongs to kind = \"gated\" only"));
            }
            (FfnKind::Plain, None) => None,
        };
        let around = |c: &Self, place: &str, name: &Option<String>| match name {
            Some(n) => c.module(place, &inside(n)).map(Some),
            None => Ok(None),
        };
        Ok(FfnPlan {
            module: around(self, "ffn.module", &f.module)?,
            kind: f.kind,
            activation: f.activation,
            activation_module: around(self, "ffn.activation_module", &f.activation_module)?,
            gate,
            up,
            down,
            inner_dropout: match &f.inner_dropout {
                Some(n) => Some(self.dropout("ffn.inner_dropout", &inside(n))?),
                None => None,
            },
            own_dropout: None,
        })
    }
}
