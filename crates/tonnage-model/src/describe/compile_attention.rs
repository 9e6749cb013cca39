//! The attention of a described layer: projections, heads, masks.

use super::compile::{Compiler, Result};
use super::forward::{Attention, AttentionKind, Kind as Flow, Position, Scores};
use super::plan::{AttentionPlan, OneHead, Projections, ScoreKind};
use crate::common::mha::Mha;
use crate::layers::{Dropout, Linear};
use crate::net::ModuleId;

/// The longest input that a mask buffer allows, and its words.
type Limit = Option<(u64, String)>;

/// How many heads, and how wide.
struct Heads {
    all: u64,
    kv: u64,
    dim: u64,
}

impl AttentionPlan {
    /// Query heads.
    pub fn heads(&self) -> u64 {
        match &self.projections {
            Projections::PerHead(h) => h.len() as u64,
            _ => self.heads,
        }
    }
}

impl<'a> Compiler<'a> {
    fn heads(&self, a: &'a Attention) -> Result<Heads> {
        let all = self.whole(&a.heads)?;
        let kv = match &a.kv_heads {
            Some(e) => self.whole(e)?,
            None => all,
        };
        let dim = self.whole(&a.head_dim)?;
        if all % kv != 0 {
            return Err(self.fault(
                "attention.kv_heads",
                format!("{kv} key and value heads cannot be shared by {all} heads: {kv} must divide {all}"),
            ));
        }
        if kv != all
            && matches!(
                a.kind,
                AttentionKind::PerHead | AttentionKind::TorchMultihead
            )
        {
            return Err(self.fault(
                "attention.kv_heads",
                "belongs to kind = \"separate\" or \"fused\"",
            ));
        }
        Ok(Heads { all, kv, dim })
    }

    /// What a kind does not know must not be given.
    fn consistent(&self, a: &Attention) -> Result<()> {
        use AttentionKind::*;
        let misplaced = |given: bool, place: &str, kinds: &str| {
            if given {
                Err(self.fault(
                    &format!("attention.{place}"),
                    format!("belongs to kind = {kinds} only"),
                ))
            } else {
                Ok(())
            }
        };
        let k = a.kind;
        misplaced(
            a.per_head.is_some() && k != PerHead,
            "per_head",
            "\"per_head\"",
        )?;
        misplaced(a.qkv.is_some() && k != Fused, "qkv", "\"fused\"")?;
        for (name, given) in [("q", &a.q), ("k", &a.k), ("v", &a.v)] {
            misplaced(
                given.is_some() && !matches!(k, Separate | PerHead),
                name,
                "\"separate\" or \"per_head\"",
            )?;
        }
        let normed = a.q_norm.is_some() || a.k_norm.is_some();
        misplaced(
            normed && !matches!(k, Separate | Fused),
            "q_norm",
            "\"separate\" or \"fused\"",
        )?;
        let rotary = matches!(self.f.position, Position::Rotary { .. });
        if rotary && !matches!(k, Separate | Fused) {
            return Err(self.fault(
                "position.rotary",
                "needs attention of kind \"separate\" or \"fused\"",
            ));
        }
        if k == PerHead && a.scores != Scores::Explicit {
            return Err(self.fault(
                "attention.scores",
                "of kind = \"per_head\" are \"explicit\": each head computes its own",
            ));
        }
        if k == TorchMultihead && a.scores != Scores::Sdpa {
            return Err(self.fault(
                "attention.scores",
                "of torch's own module are \"sdpa\" in training",
            ));
        }
        if k == TorchMultihead && self.f.kind == Flow::Decoder {
            return Err(self.fault(
                "attention.kind",
                "torch's own module has no causal mask here; describe it as \"fused\"",
            ));
        }
        if a.mask_buffer.is_some() && (self.f.kind == Flow::Encoder || a.scores == Scores::Sdpa) {
            return Err(self.fault(
                "attention.mask_buffer",
                "belongs to a decoder with explicit scores; a buffer that is not used is only listed in its block",
            ));
        }
        if a.softmax_fp32 && (a.scores == Scores::Sdpa || !matches!(a.kind, Separate | Fused)) {
            return Err(self.fault(
                "attention.softmax_fp32",
                "belongs to explicit scores of kind \"separate\" or \"fused\"",
            ));
        }
        if a.dropout.is_some() && a.weights_dropout.is_some() {
            return Err(self.fault(
                "attention.dropout",
                "and `weights_dropout` both say it; keep one",
            ));
        }
        Ok(())
    }

    /// A square mask buffer: its number among the module's buffers, and what it allows.
    fn mask_buffer(&self, path: &str, name: &Option<String>) -> Result<(Option<usize>, Limit)> {
        let Some(name) = name else {
            return Ok((None, None));
        };
        let full = format!("{path}.{name}");
        let (_, i, shape) = self.buffer("attention.mask_buffer", &full)?;
        let n = shape.ndim() as isize;
        if n < 2 || shape.size(n - 1) != shape.size(n - 2) || {
            let t = shape.size(n - 1);
            shape.numel() != t * t
        } {
            return Err(self.fault(
                "attention.mask_buffer",
                format!("`{full}` must be square: [T, T], with ones in front if need be"),
            ));
        }
        let t = shape.size(n - 1);
        Ok((
            Some(i),
            Some((t, format!("the mask buffer `{full}` is {t} x {t}"))),
        ))
    }

    /// The attention of the layer at `layer`, the dropout that the layer applies after it, the limit of its mask.
    pub(super) fn attention(
        &mut self,
        a: &'a Attention,
        layer: &str,
        d: u64,
    ) -> Result<(AttentionPlan, Option<Dropout>, Limit)> {
        self.consistent(a)?;
        let path = match &a.module {
            Some(m) => format!("{layer}.{m}"),
            None => layer.to_string(),
        };
        let id = self.module("attention.module", &path)?;
        let h = self.heads(a)?;
        let (q_width, kv_width) = (h.all * h.dim, h.kv * h.dim);
        let mut out = None;
        if a.kind != AttentionKind::TorchMultihead {
            let name = format!("{path}.{}", a.out);
            out = Some(self.fitting("attention.out", &name, q_width, d)?);
        }
        let (mut mask, mut limit) = (None, None);
        let projections = match a.kind {
            AttentionKind::Separate => {
                let mut ls = Vec::new();
                for (place, n, w) in [
                    ("attention.q", &a.q, q_width),
                    ("attention.k", &a.k, kv_width),
                    ("attention.v", &a.v, kv_width),
                ] {
                    let n = n.as_ref().ok_or_else(|| self.fault(place, "is missing"))?;
                    ls.push(self.fitting(place, &format!("{path}.{n}"), d, w)?);
                }
                Projections::Separate([ls[0], ls[1], ls[2]])
            }
            AttentionKind::Fused => {
                let Some(n) = &a.qkv else {
                    return Err(self.fault("attention.qkv", "is missing"));
                };
                let all = q_width + 2 * kv_width;
                let l = self.fitting("attention.qkv", &format!("{path}.{n}"), d, all)?;
                Projections::Fused(l, [q_width, kv_width, kv_width])
            }
            AttentionKind::PerHead => {
                let (heads, l) = self.per_head(a, &path, d, &h)?;
                limit = l;
                Projections::PerHead(heads)
            }
            AttentionKind::TorchMultihead => {
                let (mha, o) = self.torch(a, id, &path, d, &h)?;
                out = Some(o);
                Projections::Torch(mha)
            }
        };
        if matches!(
            projections,
            Projections::Separate(_) | Projections::Fused(..)
        ) {
            let (i, l) = self.mask_buffer(&path, &a.mask_buffer)?;
            (mask, limit) = (i.map(|i| (id, i)), l);
        }
        if let Position::Rotary { dim, .. } = &self.f.position
            && self.whole(dim)? != h.dim
        {
            return Err(self.fault(
                "position.rotary.dim",
                format!("must be the head size {}: rotary positions over a part of a head are not modelled", h.dim),
            ));
        }
        let mut norms = [None, None];
        for (slot, place, n) in [
            (0, "attention.q_norm", &a.q_norm),
            (1, "attention.k_norm", &a.k_norm),
        ] {
            if let Some(n) = n {
                norms[slot] = Some(self.norm(place, &format!("{path}.{n}"), h.dim)?);
            }
        }
        let (mut dropout, mut dropout_module) = (0.0, None);
        if let Some(e) = &a.dropout {
            dropout = self.scope.probability(e)?;
        } else if let (Some(n), false) = (&a.weights_dropout, a.kind == AttentionKind::PerHead) {
            let m = self.dropout("attention.weights_dropout", &format!("{path}.{n}"))?;
            (dropout, dropout_module) = (m.p, Some(m.id));
        }
        let after = match &a.out_dropout {
            Some(n) => Some(self.dropout("attention.out_dropout", &format!("{layer}.{n}"))?),
            None => None,
        };
        // a dropout inside the module is called by the module, one beside it by the layer
        let inside = |n: &String| {
            let module = a.module.as_ref();
            module.is_none_or(|m| n.starts_with(&format!("{m}.")))
        };
        let own =
            a.kind != AttentionKind::TorchMultihead && a.out_dropout.as_ref().is_some_and(inside);
        let (own_dropout, layers_dropout) = if own { (after, None) } else { (None, after) };
        let out = out.ok_or_else(|| self.fault("attention.out", "is missing"))?;
        Ok((
            AttentionPlan {
                id,
                projections,
                head_dim: h.dim,
                heads: h.all,
                groups: h.all / h.kv,
                norms,
                scores: match a.scores {
                    Scores::Explicit => ScoreKind::Explicit,
                    Scores::Sdpa => ScoreKind::Sdpa,
                    Scores::Job => ScoreKind::Job,
                },
                softmax_fp32: a.softmax_fp32,
                mask,
                dropout,
                dropout_module,
                out,
                own_dropout,
                causal: self.f.kind == Flow::Decoder,
            },
            layers_dropout,
            limit,
        ))
    }

    fn per_head(
        &mut self,
        a: &'a Attention,
        path: &str,
        d: u64,
        h: &Heads,
    ) -> Result<(Vec<OneHead>, Limit)> {
        let Some(container) = &a.per_head else {
            return Err(self.fault(
                "attention.per_head",
                "is missing: the container of the heads",
            ));
        };
        let container = self.module("attention.per_head", &format!("{path}.{container}"))?;
        let children = self.net.module(container).children.clone();
        if children.len() as u64 != h.all {
            return Err(self.fault(
                "attention.heads",
                format!(
                    "says {} heads, `{}` holds {}",
                    h.all,
                    self.net.module(container).name,
                    children.len()
                ),
            ));
        }
        let (mut heads, mut limit) = (Vec::with_capacity(children.len()), None);
        for id in children {
            let head = self.net.module(id).name.clone();
            let mut linear = |place: &str, n: &Option<String>| {
                let n = n.as_ref().ok_or_else(|| self.fault(place, "is missing"))?;
                self.fitting(place, &format!("{head}.{n}"), d, h.dim)
            };
            let q: Linear = linear("attention.q", &a.q)?;
            let k = linear("attention.k", &a.k)?;
            let v = linear("attention.v", &a.v)?;
            let (mask, l) = self.mask_buffer(&head, &a.mask_buffer)?;
            limit = limit.or(l);
            let dropout = match &a.weights_dropout {
                Some(n) => Some(self.dropout("attention.weights_dropout", &format!("{head}.{n}"))?),
                None => None,
            };
            heads.push(OneHead {
                id,
                q,
                k,
                v,
                mask,
                dropout,
            });
        }
        Ok((heads, limit))
    }

    /// `nn.MultiheadAttention` with its output projection.
    fn torch(
        &mut self,
        a: &'a Attention,
        id: ModuleId,
        path: &str,
        d: u64,
        h: &Heads,
    ) -> Result<(Mha, Linear)> {
        if a.out != "out_proj" {
            return Err(self.fault("attention.out", "of torch's own module is named `out_proj`"));
        }
        if h.all * h.dim != d {
            return Err(self.fault(
                "attention.head_dim",
                format!(
                    "{} heads of {} are {} numbers, the model has {d}",
                    h.all,
                    h.dim,
                    h.all * h.dim
                ),
            ));
        }
        let (w, ws) = self.param("attention.module", &format!("{path}.in_proj_weight"))?;
        let (b, bs) = self.param("attention.module", &format!("{path}.in_proj_bias"))?;
        if ws.ndim() != 2 || ws.size(0) != 3 * d || ws.size(1) != d {
            return Err(self.fault(
                "attention.module",
                format!(
                    "`{path}.in_proj_weight` must have the sizes [{}, {d}]",
                    3 * d
                ),
            ));
        }
        if bs.ndim() != 1 || bs.size(0) != 3 * d {
            return Err(self.fault(
                "attention.module",
                format!("`{path}.in_proj_bias` must have the sizes [{}]", 3 * d),
            ));
        }
        let out = self.fitting("attention.out", &format!("{path}.out_proj"), d, d)?;
        if self.net.find(out.0, "bias").is_none() {
            return Err(self.fault("attention.out", format!("`{path}.out_proj` needs its bias")));
        }
        let dropout = match (&a.dropout, &a.weights_dropout) {
            (Some(e), _) => self.scope.probability(e)?,
            (None, Some(n)) => {
                self.dropout("attention.weights_dropout", &format!("{path}.{n}"))?
                    .p
            }
            (None, None) => 0.0,
        };
        Ok((Mha::of(id, w, b, out, h.all, dropout), out))
    }
}
