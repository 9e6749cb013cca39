//! Leaf modules: how they register and what they compute.

use crate::net::{Kind, ModuleId, NetBuilder, ParamId};
use crate::run::Run;
use tonnage_sim::{ScalarType, Tensor, ops};

/// `nn.Linear`.
#[derive(Clone, Copy, Debug)]
pub struct Linear(pub ModuleId);

impl Linear {
    pub fn new(b: &mut NetBuilder, name: &str, input: u64, output: u64, bias: bool) -> Linear {
        b.scope_kind(name, Kind::Linear { input, output }, |b| {
            b.param("weight", &[output, input]);
            if bias {
                b.param("bias", &[output]);
            }
            Linear(b.id())
        })
    }
    /// A head whose weight is another module's parameter.
    pub fn tied(
        b: &mut NetBuilder,
        name: &str,
        input: u64,
        output: u64,
        weight: ParamId,
        bias: bool,
    ) -> Linear {
        b.scope_kind(name, Kind::Linear { input, output }, |b| {
            b.tie("weight", weight);
            if bias {
                b.param("bias", &[output]);
            }
            Linear(b.id())
        })
    }
    /// `[..., input] -> [..., output]`, through whatever adapter or quantised weight sits here.
    pub fn forward(&self, m: &Run, x: &Tensor) -> Tensor {
        m.within(self.0, || m.linear(self.0, x))
    }
}

/// transformers' `Conv1D`.
#[derive(Clone, Copy, Debug)]
pub struct Conv1d(pub ModuleId);

impl Conv1d {
    pub fn new(b: &mut NetBuilder, name: &str, input: u64, output: u64) -> Conv1d {
        b.scope_kind(name, Kind::Conv1d { input, output }, |b| {
            b.param("weight", &[input, output]);
            b.param("bias", &[output]);
            Conv1d(b.id())
        })
    }
    pub fn forward(&self, m: &Run, x: &Tensor) -> Tensor {
        m.within(self.0, || m.linear(self.0, x))
    }
}

/// `nn.Embedding`.
#[derive(Clone, Copy, Debug)]
pub struct Embedding(pub ModuleId, pub ParamId);

impl Embedding {
    pub fn new(b: &mut NetBuilder, name: &str, rows: u64, width: u64) -> Embedding {
        b.scope_kind(name, Kind::Embedding { rows, width }, |b| {
            let p = b.param("weight", &[rows, width]);
            Embedding(b.id(), p)
        })
    }
    pub fn forward(&self, m: &Run, ids: &Tensor) -> Tensor {
        let y = m.within(self.0, || ops::embedding(&m.cx, ids, m.weight(self.1)));
        m.embedded(self.0, y)
    }
}

/// `nn.LayerNorm` over the last dimension.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm {
    pub id: ModuleId,
    weight: Option<ParamId>,
    bias: Option<ParamId>,
}

impl LayerNorm {
    pub fn new(b: &mut NetBuilder, name: &str, width: u64, weight: bool, bias: bool) -> LayerNorm {
        b.scope_kind(name, Kind::Norm, |b| LayerNorm {
            weight: weight.then(|| b.param("weight", &[width])),
            bias: bias.then(|| b.param("bias", &[width])),
            id: b.id(),
        })
    }
    /// Of a module that is registered already.
    pub fn of(id: ModuleId, weight: Option<ParamId>, bias: Option<ParamId>) -> LayerNorm {
        LayerNorm { id, weight, bias }
    }
    pub fn forward(&self, m: &Run, x: &Tensor) -> Tensor {
        m.within(self.id, || {
            ops::layer_norm(
                &m.cx,
                x,
                self.weight.map(|p| m.weight(p)),
                self.bias.map(|p| m.weight(p)),
            )
        })
    }
}

/// `nn.Dropout`: nothing in eval mode or at p = 0.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    pub id: ModuleId,
    pub p: f64,
}

impl Dropout {
    pub fn new(b: &mut NetBuilder, name: &str, p: f64) -> Dropout {
        b.scope_kind(name, Kind::Dropout, |b| Dropout { id: b.id(), p })
    }
    pub fn forward(&self, m: &Run, x: &Tensor) -> Tensor {
        if !m.training {
            return x.clone();
        }
        m.within(self.id, || ops::dropout(&m.cx, x, self.p))
    }
}

/// The composed RMS norm of Llama-like models (`LlamaRMSNorm`): fp32 inside, scaled in the input's dtype.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm {
    pub id: ModuleId,
    weight: ParamId,
}

impl RmsNorm {
    pub fn new(b: &mut NetBuilder, name: &str, width: u64) -> RmsNorm {
        b.scope_kind(name, Kind::Norm, |b| RmsNorm {
            weight: b.param("weight", &[width]),
            id: b.id(),
        })
    }
    /// Of a module that is registered already.
    pub fn of(id: ModuleId, weight: ParamId) -> RmsNorm {
        RmsNorm { id, weight }
    }
    pub fn forward(&self, m: &Run, x: &Tensor) -> Tensor {
        m.within(self.id, || {
            let cx = &m.cx;
            let f = ops::to_dtype(cx, x, ScalarType::F32);
            let square = ops::pow_scalar(cx, &f);
            let variance = ops::mean(cx, &square, &[-1], true);
            drop(square);
            let eps = ops::add_scalar(cx, &variance);
            let r = ops::rsqrt(cx, &eps);
            drop(eps);
            let h = ops::mul(cx, &f, &r);
            drop(r);
            drop(f);
            let low = ops::to_dtype(cx, &h, x.dtype);
            let y = ops::mul(cx, m.weight(self.weight), &low);
            drop(low);
            drop(h);
            drop(variance);
            y
        })
    }
}

/// The RMS norm of Gemma models (`Gemma3RMSNorm`): scaled by `1 + weight` in fp32, cast back at the end
/// (transformers 5.17 and 4.57.6, src/transformers/models/gemma3/modeling_gemma3.py; case `gemma3-tiny-plain-bf16-sdpa`).
#[derive(Clone, Copy, Debug)]
pub struct GemmaNorm {
    pub id: ModuleId,
    weight: ParamId,
}

impl GemmaNorm {
    pub fn new(b: &mut NetBuilder, name: &str, width: u64) -> GemmaNorm {
        b.scope_kind(name, Kind::Norm, |b| GemmaNorm {
            weight: b.param("weight", &[width]),
            id: b.id(),
        })
    }
    /// Over the last dimension, same shape and dtype.
    pub fn forward(&self, m: &Run, x: &Tensor) -> Tensor {
        m.within(self.id, || {
            let cx = &m.cx;
            let f = ops::to_dtype(cx, x, ScalarType::F32);
            let square = ops::pow_scalar(cx, &f);
            let variance = ops::mean(cx, &square, &[-1], true);
            drop(square);
            let eps = ops::add_scalar(cx, &variance);
            drop(variance);
            let r = ops::rsqrt(cx, &eps);
            drop(eps);
            let mut output = ops::mul(cx, &f, &r);
            drop(r);
            drop(f);
            let w = ops::to_dtype(cx, m.weight(self.weight), ScalarType::F32);
            let scale = ops::add_scalar(cx, &w);
            drop(w);
            output = ops::mul(cx, &output, &scale);
            drop(scale);
            ops::to_dtype(cx, &output, x.dtype)
        })
    }
}
