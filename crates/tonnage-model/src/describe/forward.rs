//! The forward section of a description: how the described modules are called, for transformers of the usual build.
//!
//! It is read and checked against the module tree here. Names are module paths: from the root, or inside one layer where noted.

use super::expr::Expr;
use crate::error::ModelError;
use crate::net::Net;
use serde::Deserialize;

/// A stack of equal layers between an input and a head.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forward {
    pub kind: Kind,
    pub input: Input,
    /// Added to the embedded input.
    #[serde(default)]
    pub position: Position,
    /// The module whose children 0, 1, ... are the layers.
    pub layers: String,
    pub norm: NormPosition,
    /// Names inside a layer.
    pub attention_norm: String,
    pub attention: Attention,
    pub ffn_norm: String,
    pub ffn: Ffn,
    /// Root paths.
    pub final_norm: Option<String>,
    #[serde(default)]
    pub head: Head,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Each position sees itself and earlier ones; the loss is next-token cross-entropy.
    Decoder,
    /// Each position sees all that are not padding.
    Encoder,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Input {
    /// The embedding module of token ids [B, S].
    Tokens {
        module: String,
        dropout: Option<String>,
    },
    /// Steps over continuous features [B, S, F], then a learned token in front of them.
    Features {
        steps: Vec<Step>,
        class_token: Option<String>,
        dropout: Option<String>,
    },
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Position {
    #[default]
    None,
    /// An `nn.Embedding` indexed by position.
    Embedding { module: String },
    /// A bare parameter [1, S, D], cut to the length.
    Parameter { name: String },
    /// A buffer [1, S, D], cut to the length.
    Buffer { name: String },
    /// Rotary, applied to queries and keys.
    Rotary { dim: Expr },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormPosition {
    /// x + f(norm(x))
    Pre,
    /// norm(x + f(x))
    Post,
}

/// Names are inside a layer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attention {
    pub kind: AttentionKind,
    pub module: String,
    pub heads: Expr,
    pub kv_heads: Option<Expr>,
    pub head_dim: Expr,
    /// Projections relative to `module` (for `per_head`: to `module.per_head.N`).
    #[serde(default)]
    pub q: Option<String>,
    #[serde(default)]
    pub k: Option<String>,
    #[serde(default)]
    pub v: Option<String>,
    #[serde(default)]
    pub qkv: Option<String>,
    /// The container of the heads, for `per_head`.
    pub per_head: Option<String>,
    pub out: String,
    /// The buffer of a head (`per_head`) or of the module that holds the causal mask.
    pub mask_buffer: Option<String>,
    pub scores: Scores,
    /// Dropout modules: on the attention weights and on the output.
    pub weights_dropout: Option<String>,
    pub out_dropout: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionKind {
    /// Three linears.
    Separate,
    /// One linear for all three.
    Fused,
    /// A module for each head, outputs concatenated.
    PerHead,
    /// `nn.MultiheadAttention`: bare parameters `in_proj_weight`, `in_proj_bias`.
    TorchMultihead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scores {
    /// matmul, scale, mask, softmax, dropout, matmul.
    Explicit,
    /// `scaled_dot_product_attention`.
    Sdpa,
}

/// Names are inside a layer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ffn {
    pub kind: FfnKind,
    pub activation: Activation,
    pub gate: Option<String>,
    pub up: String,
    pub down: String,
    /// Dropout modules: after the activation and on the output.
    pub inner_dropout: Option<String>,
    pub out_dropout: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FfnKind {
    /// down(act(up(x)))
    Plain,
    /// down(act(gate(x)) * up(x))
    Gated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    Relu,
    Gelu,
    GeluTanh,
    Silu,
    Tanh,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    #[serde(default)]
    pub pool: Pool,
    #[serde(default)]
    pub steps: Vec<Step>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// Every position.
    #[default]
    None,
    First,
    Last,
    Mean,
}

/// One call outside the layers: a module by its root path, or an activation.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Module(String),
    Activation(Activation),
}

impl Forward {
    /// Checks every name against the tree that the blocks describe.
    ///
    /// # Errors
    /// The first name that is not there, or a part that the kinds need and that is not given.
    pub fn check(&self, net: &Net, model_type: &str) -> Result<(), ModelError> {
        let fault = |place: &str, problem: String| ModelError::Description {
            model_type: model_type.to_string(),
            place: format!("forward.{place}"),
            problem,
        };
        let modules: std::collections::HashSet<&str> =
            net.modules.iter().map(|m| m.name.as_str()).collect();
        let module = |place: &str, name: &str| {
            if modules.contains(name) {
                Ok(())
            } else {
                Err(fault(place, format!("there is no module `{name}`")))
            }
        };
        let steps = |place: &str, steps: &[Step]| {
            steps.iter().try_for_each(|s| match s {
                Step::Module(name) => module(place, name),
                Step::Activation(_) => Ok(()),
            })
        };
        match &self.input {
            Input::Tokens { module: m, dropout } => {
                module("input.module", m)?;
                dropout
                    .iter()
                    .try_for_each(|d| module("input.dropout", d))?;
            }
            Input::Features {
                steps: s,
                class_token,
                dropout,
            } => {
                steps("input.steps", s)?;
                dropout
                    .iter()
                    .try_for_each(|d| module("input.dropout", d))?;
                if let Some(t) = class_token
                    .as_ref()
                    .filter(|t| !net.params.iter().any(|p| p.name == **t))
                {
                    return Err(fault(
                        "input.class_token",
                        format!("there is no parameter `{t}`"),
                    ));
                }
            }
        }
        match &self.position {
            Position::Embedding { module: m } => module("position.module", m)?,
            Position::Parameter { name } if !net.params.iter().any(|p| p.name == *name) => {
                return Err(fault(
                    "position.name",
                    format!("there is no parameter `{name}`"),
                ));
            }
            Position::Buffer { name }
                if !net
                    .modules
                    .iter()
                    .any(|m| m.buffers.iter().any(|b| b.name == *name)) =>
            {
                return Err(fault(
                    "position.name",
                    format!("there is no buffer `{name}`"),
                ));
            }
            _ => {}
        }
        module("layers", &self.layers)?;
        let layer = format!("{}.0", self.layers);
        let inside = |place: &str, name: &str| module(place, &format!("{layer}.{name}"));
        inside("attention_norm", &self.attention_norm)?;
        inside("ffn_norm", &self.ffn_norm)?;
        let a = &self.attention;
        inside("attention.module", &a.module)?;
        let base = match (a.kind, &a.per_head) {
            (AttentionKind::PerHead, Some(heads)) => format!("{}.{heads}.0", a.module),
            (AttentionKind::PerHead, None) => {
                return Err(fault(
                    "attention.per_head",
                    "is missing: the container of the heads".into(),
                ));
            }
            (_, Some(_)) => {
                return Err(fault(
                    "attention.per_head",
                    "belongs to kind = \"per_head\" only".into(),
                ));
            }
            (_, None) => a.module.clone(),
        };
        let needed: &[(&str, &Option<String>)] = match a.kind {
            AttentionKind::Fused => &[("attention.qkv", &a.qkv)],
            AttentionKind::TorchMultihead => &[],
            AttentionKind::Separate | AttentionKind::PerHead => &[
                ("attention.q", &a.q),
                ("attention.k", &a.k),
                ("attention.v", &a.v),
            ],
        };
        for (place, name) in needed {
            match name {
                Some(n) => inside(place, &format!("{base}.{n}"))?,
                None => return Err(fault(place, "is missing".into())),
            }
        }
        inside("attention.out", &format!("{}.{}", a.module, a.out))?;
        if let Some(buffer) = &a.mask_buffer {
            let name = format!("{layer}.{base}.{buffer}");
            if !net
                .modules
                .iter()
                .any(|m| m.buffers.iter().any(|b| b.name == name))
            {
                return Err(fault(
                    "attention.mask_buffer",
                    format!("there is no buffer `{name}`"),
                ));
            }
        }
        a.weights_dropout
            .iter()
            .try_for_each(|d| inside("attention.weights_dropout", &format!("{base}.{d}")))?;
        a.out_dropout
            .iter()
            .try_for_each(|d| inside("attention.out_dropout", d))?;
        let f = &self.ffn;
        inside("ffn.up", &f.up)?;
        inside("ffn.down", &f.down)?;
        match (f.kind, &f.gate) {
            (FfnKind::Gated, Some(g)) => inside("ffn.gate", g)?,
            (FfnKind::Gated, None) => return Err(fault("ffn.gate", "is missing".into())),
            (FfnKind::Plain, Some(_)) => {
                return Err(fault("ffn.gate", "belongs to kind = \"gated\" only".into()));
            }
            (FfnKind::Plain, None) => {}
        }
        for (place, d) in [
            ("ffn.inner_dropout", &f.inner_dropout),
            ("ffn.out_dropout", &f.out_dropout),
        ] {
            d.iter().try_for_each(|d| inside(place, d))?;
        }
        self.final_norm
            .iter()
            .try_for_each(|n| module("final_norm", n))?;
        steps("head.steps", &self.head.steps)
    }
}
