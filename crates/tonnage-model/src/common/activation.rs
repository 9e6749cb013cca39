//! Activation functions by their names in configurations (transformers 5.17, src/transformers/activations.py, ACT2FN).

use crate::error::ModelError;
use crate::run::Run;
use tonnage_sim::Tensor;
use tonnage_sim::ops;

/// An entry of ACT2FN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// One kernel, in either approximation.
    Gelu,
    /// `NewGELUActivation`, composed of elementwise operators.
    GeluNew,
    Relu,
    Silu,
    Tanh,
}

impl Activation {
    /// By name; `field` is where the name stands.
    pub fn parse(field: &str, name: &str) -> Result<Activation, ModelError> {
        Ok(match name {
            "gelu" | "gelu_pytorch_tanh" => Activation::Gelu,
            "gelu_new" => Activation::GeluNew,
            "relu" => Activation::Relu,
            "silu" | "swish" => Activation::Silu,
            "tanh" => Activation::Tanh,
            _ => {
                return Err(ModelError::field(
                    field,
                    format!(
                        "`{name}` is not modelled; known: gelu, gelu_new, gelu_pytorch_tanh, relu, silu, tanh"
                    ),
                ));
            }
        })
    }

    /// Elementwise, same shape.
    pub fn forward(self, m: &Run, x: &Tensor) -> Tensor {
        match self {
            Activation::Gelu => ops::gelu(&m.cx, x),
            Activation::GeluNew => gelu_new(m, x),
            Activation::Relu => ops::relu(&m.cx, x),
            Activation::Silu => ops::silu(&m.cx, x),
            Activation::Tanh => ops::tanh(&m.cx, x),
        }
    }
}

/// `NewGELUActivation`: 0.5 * x * (1 + tanh(c * (x + 0.044715 * x^3))).
pub fn gelu_new(m: &Run, x: &Tensor) -> Tensor {
    let cx = &m.cx;
    let half = ops::mul_scalar(cx, x);
    let cube = ops::pow_scalar(cx, x);
    let scaled = ops::mul_scalar(cx, &cube);
    drop(cube);
    let sum = ops::add(cx, x, &scaled);
    drop(scaled);
    let arg = ops::mul_scalar(cx, &sum);
    drop(sum);
    let t = ops::tanh(cx, &arg);
    drop(arg);
    let one = ops::add_scalar(cx, &t);
    drop(t);
    let y = ops::mul(cx, &half, &one);
    drop(half);
    drop(one);
    y
}

/// Soft capping, `cap * tanh(x / cap)`, with the name rebound line by line (modeling_gemma2.py; case
/// `gemma2-tiny-plain-bf16-adamw_foreach-b2-s256-eager`).
pub fn soft_cap(m: &Run, mut x: Tensor) -> Tensor {
    x = ops::div_scalar(&m.cx, &x);
    x = ops::tanh(&m.cx, &x);
    ops::mul_scalar(&m.cx, &x)
}
