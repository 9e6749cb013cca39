//! What a forward section comes to once its names are resolved: the parts of a model that a description can say.

use super::forward::{Activation, FfnKind, Kind, LossPlace, NormPosition, Pool};
use crate::arch::BatchLayout;
use crate::common::{self, mha::Mha};
use crate::layers::{Dropout, Embedding, LayerNorm, Linear, RmsNorm};
use crate::net::{ModuleId, ParamId};
use crate::run::Run;
use std::rc::Rc;
use tonnage_sim::Tensor;
use tonnage_sim::ops;

/// A norm of the model.
#[derive(Clone, Copy, Debug)]
pub enum Norm {
    Layer(LayerNorm),
    Rms(RmsNorm),
    Fused(ModuleId, Option<ParamId>),
}

impl Norm {
    pub(super) fn forward(&self, m: &Run, x: &Tensor) -> Tensor {
        match self {
            Norm::Layer(n) => n.forward(m, x),
            Norm::Rms(n) => n.forward(m, x),
            Norm::Fused(id, w) => m.within(*id, || ops::rms_norm(&m.cx, x, w.map(|p| m.weight(p)))),
        }
    }
}

pub(super) fn activate(a: Activation, m: &Run, x: &Tensor) -> Tensor {
    match a {
        Activation::Relu => ops::relu(&m.cx, x),
        Activation::Gelu | Activation::GeluTanh => ops::gelu(&m.cx, x),
        Activation::GeluNew => common::activation::gelu_new(m, x),
        Activation::Silu => ops::silu(&m.cx, x),
        Activation::Tanh => ops::tanh(&m.cx, x),
    }
}

/// A call of one tensor outside the layers.
#[derive(Clone, Copy, Debug)]
pub enum Call {
    Linear(Linear),
    Norm(Norm),
    Dropout(Dropout),
    Activation(Activation),
}

impl Call {
    pub(super) fn forward(&self, m: &Run, x: &Tensor) -> Tensor {
        match self {
            Call::Linear(l) => l.forward(m, x),
            Call::Norm(n) => n.forward(m, x),
            Call::Dropout(d) => d.forward(m, x),
            Call::Activation(a) => activate(*a, m, x),
        }
    }
}

/// Where the first hidden states come from.
#[derive(Clone, Debug)]
pub enum Source {
    Tokens {
        embedding: Embedding,
        types: Option<Embedding>,
        kept: bool,
    },
    Features {
        steps: Vec<Call>,
        class_token: Option<ParamId>,
    },
}

#[derive(Clone, Copy, Debug)]
pub enum Places {
    None,
    Embedding {
        table: Embedding,
        ids_first: bool,
    },
    Parameter(ParamId),
    /// Module and number of its buffer.
    Buffer(ModuleId, usize),
    Rotary {
        dim: u64,
        module: Option<ModuleId>,
    },
}

/// How scores become weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoreKind {
    Explicit,
    Sdpa,
    Job,
}

/// One head of a per-head attention.
#[derive(Clone, Debug)]
pub struct OneHead {
    pub id: ModuleId,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    /// Number of the mask among the module's buffers.
    pub mask: Option<usize>,
    pub dropout: Option<Dropout>,
}

#[derive(Clone, Debug)]
pub enum Projections {
    Separate([Linear; 3]),
    /// With the sizes of its three parts.
    Fused(Linear, [u64; 3]),
    PerHead(Vec<OneHead>),
    Torch(Mha),
}

#[derive(Clone, Debug)]
pub struct AttentionPlan {
    pub id: ModuleId,
    pub projections: Projections,
    pub head_dim: u64,
    pub heads: u64,
    /// Query heads that share a key head.
    pub groups: u64,
    pub norms: [Option<Norm>; 2],
    pub scores: ScoreKind,
    pub softmax_fp32: bool,
    /// Module and number of the mask buffer.
    pub mask: Option<(ModuleId, usize)>,
    /// Dropout of the weights: its probability, and its module where it has one.
    pub dropout: f64,
    pub dropout_module: Option<ModuleId>,
    /// The output projection; torch's own module holds it itself.
    pub out: Linear,
    /// A dropout that the module itself applies to its output.
    pub own_dropout: Option<Dropout>,
    pub causal: bool,
}

#[derive(Clone, Debug)]
pub struct FfnPlan {
    pub module: Option<ModuleId>,
    pub kind: FfnKind,
    pub activation: Activation,
    pub activation_module: Option<ModuleId>,
    pub gate: Option<Linear>,
    pub up: Linear,
    pub down: Linear,
    pub inner_dropout: Option<Dropout>,
    /// A dropout that the module itself applies to its output.
    pub own_dropout: Option<Dropout>,
}

#[derive(Clone, Debug)]
pub struct LayerPlan {
    pub id: ModuleId,
    pub attention_norm: Norm,
    pub attention: AttentionPlan,
    /// Dropouts that the layer applies to what its two parts return.
    pub attention_dropout: Option<Dropout>,
    pub ffn_norm: Norm,
    pub ffn: FfnPlan,
    pub ffn_dropout: Option<Dropout>,
    pub order: NormPosition,
}

/// A forward section, resolved.
#[derive(Clone, Debug)]
pub struct Plan {
    pub kind: Kind,
    pub source: Source,
    pub places: Places,
    pub input_norm: Option<Norm>,
    pub input_dropout: Option<Dropout>,
    /// The module around the stack of layers; None: the root.
    pub stack: Option<ModuleId>,
    pub layers: Vec<Rc<LayerPlan>>,
    pub final_norm: Option<Norm>,
    pub pool: Pool,
    pub head: Vec<Call>,
    pub loss: LossPlace,
    pub shift: bool,
    pub smoothing: bool,
    pub layout: BatchLayout,
}
