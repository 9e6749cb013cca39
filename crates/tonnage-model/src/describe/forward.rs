//! The forward section of a description: how the described modules are called, for transformers of the usual build.
//!
//! This is the format; `compile` resolves it against the module tree, `run` executes it. Names are module paths: from the root,
//! or inside one layer where noted. The order of calls and the life of every tensor are documented in `docs/descriptions.md`.

use super::expr::Expr;
use serde::Deserialize;

/// A stack of equal layers between an input and a head.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forward {
    pub kind: Kind,
    pub input: Input,
    /// Added to the embedded input.
    #[serde(default)]
    pub position: Position,
    /// The model takes a padding mask [B, S] in every call (encoders only).
    #[serde(default)]
    pub padding_mask: bool,
    /// The module whose children 0, 1, ... are the layers.
    pub layers: String,
    pub norm: NormPosition,
    /// What every norm of the model computes.
    #[serde(default)]
    pub norms: Norms,
    /// Names inside a layer.
    pub attention_norm: String,
    pub attention: Attention,
    pub ffn_norm: String,
    pub ffn: Ffn,
    /// Root paths.
    pub final_norm: Option<String>,
    #[serde(default)]
    pub head: Head,
    #[serde(default)]
    pub loss: Loss,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Each position sees itself and earlier ones.
    Decoder,
    /// Each position sees all that are not padding.
    Encoder,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Input {
    /// The embedding module of token ids [B, S].
    Tokens {
        module: String,
        /// An embedding of token types, indexed by zeros.
        types: Option<String>,
        norm: Option<String>,
        dropout: Option<String>,
        /// The embeddings before the sum are local variables that live until the call returns.
        #[serde(default)]
        kept: bool,
    },
    /// Steps over continuous features [B, S, F], then a learned token in front of them.
    Features {
        steps: Vec<Step>,
        class_token: Option<String>,
        norm: Option<String>,
        dropout: Option<String>,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Position {
    #[default]
    None,
    /// An `nn.Embedding` indexed by position.
    Embedding {
        module: String,
        /// The position ids are made before the tokens are embedded.
        #[serde(default)]
        ids_first: bool,
    },
    /// A bare parameter [1, S, D], cut to the length.
    Parameter { name: String },
    /// A buffer [1, S, D], cut to the length.
    Buffer { name: String },
    /// Rotary, applied to queries and keys.
    Rotary {
        dim: Expr,
        /// The module that makes the tables (attribution only).
        module: Option<String>,
    },
}

/// Which kernel or formula a norm is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norms {
    /// `nn.LayerNorm`.
    #[default]
    Layer,
    /// The composed RMS norm of Llama-like models: fp32 inside, scaled in the input's type.
    Rms,
    /// `nn.RMSNorm`.
    RmsFused,
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
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attention {
    pub kind: AttentionKind,
    /// The module around it; without one its parts are the layer's own children.
    pub module: Option<String>,
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
    /// Norms over each head of queries and keys, relative to `module`.
    pub q_norm: Option<String>,
    pub k_norm: Option<String>,
    /// The container of the heads, for `per_head`.
    pub per_head: Option<String>,
    pub out: String,
    /// The buffer of a head (`per_head`) or of the module that holds the causal mask.
    pub mask_buffer: Option<String>,
    pub scores: Scores,
    /// Explicit scores: the softmax in fp32, its result cast back.
    #[serde(default)]
    pub softmax_fp32: bool,
    /// Dropout of the attention weights, where it is no module.
    pub dropout: Option<Expr>,
    /// Dropout modules: on the attention weights (relative to `module` or the head), and on the output (inside the layer).
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
    /// As the job's `attention` says: eager is explicit.
    Job,
}

/// Names are inside a layer.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ffn {
    pub kind: FfnKind,
    /// The module around it: it owns what has no module of its own, and calls the dropouts inside it.
    pub module: Option<String>,
    pub activation: Activation,
    /// The activation's module, where it has one (attribution only).
    pub activation_module: Option<String>,
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
    /// Composed of elementwise operators, as `NewGELUActivation`.
    GeluNew,
    Silu,
    Tanh,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Module(String),
    Activation(Activation),
}

/// Cross entropy: over every position, or over one row a sample where the head pools.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Loss {
    #[serde(default)]
    pub place: LossPlace,
    /// As transformers' `ForCausalLMLoss`: fp32 logits, labels padded by one and shifted.
    #[serde(default)]
    pub shift: bool,
    pub label_smoothing: Option<Expr>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossPlace {
    /// Inside the model's call, while its local variables live.
    #[default]
    Model,
    /// In the script, after the call.
    Script,
}
