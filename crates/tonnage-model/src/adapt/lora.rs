//! LoRA on linear modules (peft 0.21.2, src/peft/tuners/lora/layer.py `Linear.forward`, bnb.py `Linear4bit.forward` and
//! `Linear8bitLt.forward`). rsLoRA only changes a number: it costs nothing.

use super::dora;
use super::target::{self, Targets};
use crate::error::ModelError;
use crate::net::{Kind, ModuleId, Net};
use crate::run::{Leaf, Run};
use tonnage_sim::OpId;
use tonnage_sim::ops::{self, plain};
use tonnage_sim::timeline::Category;
use tonnage_sim::{ScalarType, Shape, Tensor};

/// peft's `LoraConfig`, as far as memory depends on it.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraOptions {
    pub r: u64,
    pub targets: Targets,
    /// `exclude_modules`
    pub exclude: Vec<String>,
    /// `layers_to_transform`
    pub layers: Option<Vec<u64>>,
    pub dropout: f64,
    /// `autocast_adapter_dtype`: 16-bit adapters become fp32.
    pub fp32_adapters: bool,
    /// `use_dora`
    pub dora: bool,
}

impl LoraOptions {
    /// Rank `r` on `targets`, with peft's defaults but for the dropout.
    pub fn new(r: u64, targets: Targets, dropout: f64) -> LoraOptions {
        LoraOptions {
            r,
            targets,
            exclude: vec![],
            layers: None,
            dropout,
            fp32_adapters: true,
            dora: false,
        }
    }
}

/// What the wrapped module's weight is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    Dense,
    FourBit,
    EightBit,
}

/// The sizes of a linear module: (input, output).
pub(crate) fn sizes(net: &Net, id: ModuleId) -> (u64, u64) {
    match net.module(id).kind {
        Kind::Linear { input, output } | Kind::Conv1d { input, output } => (input, output),
        k => unreachable!("a target is linear, not {k:?}"),
    }
}

/// Elements of the adapters: r * (in + out) a module, and its output width for DoRA's magnitudes. Counted without a device.
pub fn adapter_params(net: &Net, o: &LoraOptions) -> Result<u64, ModelError> {
    let modules = target::select(net, &o.targets, &o.exclude, o.layers.as_deref())?;
    let one = |id: &ModuleId| {
        let (i, out) = sizes(net, *id);
        o.r * (i + out) + if o.dora { out } else { 0 }
    };
    Ok(modules.iter().map(one).sum())
}

/// A linear module with an adapter.
pub struct LoraLinear {
    inner: Option<Box<dyn Leaf>>,
    base: Base,
    pub(crate) a: Tensor,
    pub(crate) b: Tensor,
    /// DoRA's magnitudes.
    pub(crate) magnitude: Option<Tensor>,
    dropout: f64,
    fan_in_fan_out: bool,
}

/// `get_peft_model`: freezes the base, makes A and B of every target in the base's dtype, then (unless `autocast_adapter_dtype` is
/// off) turns 16-bit ones into fp32, module after module.
pub fn apply(
    m: &mut Run,
    o: &LoraOptions,
    base: impl Fn(&Run, ModuleId) -> (Base, Option<ScalarType>),
) -> Result<(), ModelError> {
    if o.r == 0 {
        return Err(ModelError::field("r", "an adapter of rank 0"));
    }
    let modules = target::select(&m.net, &o.targets, &o.exclude, o.layers.as_deref())?;
    m.freeze_all();
    let cx = m.cx.clone();
    for id in &modules {
        let old = cx.set_module(id.0);
        let (i, out) = sizes(&m.net, *id);
        let (base, dtype) = base(m, *id);
        let dtype = dtype.unwrap_or(ScalarType::F32);
        let a = cx.empty(OpId::LOAD, Shape::new(&[o.r, i]), dtype);
        let b = cx.empty(OpId::LOAD, Shape::new(&[out, o.r]), dtype);
        let inner = m.take_replaced(*id);
        let fan_in_fan_out = matches!(m.net.module(*id).kind, Kind::Conv1d { .. });
        let mut leaf = LoraLinear {
            inner,
            base,
            a,
            b,
            magnitude: None,
            dropout: o.dropout,
            fan_in_fan_out,
        };
        if o.dora {
            leaf.magnitude = Some(dora::init(m, *id, &leaf));
        }
        m.replace(*id, Box::new(leaf));
        cx.set_module(old);
    }
    for id in &modules {
        let old = cx.set_module(id.0);
        let mut leaf = m.take_replaced(*id).expect("just put there");
        leaf.adapters(&mut |t| {
            if o.fp32_adapters && matches!(t.dtype, ScalarType::F16 | ScalarType::BF16) {
                *t = plain(&cx, OpId::TO_COPY, t, ScalarType::F32);
            }
            cx.tag(t, Category::Parameters);
            *t = cx.require_grad(t.clone());
        });
        m.replace(*id, leaf);
        cx.set_module(old);
    }
    Ok(())
}

impl LoraLinear {
    /// The module below the adapter.
    pub(crate) fn base_forward(&self, m: &Run, id: ModuleId, x: &Tensor) -> Tensor {
        match &self.inner {
            Some(l) => l.forward(m, id, x),
            None => m.plain_linear(id, x),
        }
    }
    /// peft's `dequantize_module_weight(base_layer)`.
    pub(crate) fn weight(&self, m: &Run, id: ModuleId) -> Tensor {
        let packed = self.inner.as_ref().and_then(|l| l.dense_weight(m));
        packed.unwrap_or_else(|| m.weight(m.net.module(id).params[0].1).detach())
    }
    /// The base's bias.
    pub(crate) fn bias(&self, m: &Run, id: ModuleId) -> Option<Tensor> {
        match &self.inner {
            Some(l) => l.bias(),
            None => m.net.find(id, "bias").map(|p| m.weight(p).clone()),
        }
    }
    pub(crate) fn base(&self) -> Base {
        self.base
    }
    pub(crate) fn fan_in_fan_out(&self) -> bool {
        self.fan_in_fan_out
    }
    /// `deepcopy(base_layer)`.
    pub(crate) fn copy_base(&self, m: &Run) -> Vec<Tensor> {
        self.inner.as_ref().map_or(vec![], |l| l.deep_copy(m))
    }
    fn dropped(&self, m: &Run) -> f64 {
        if m.training { self.dropout } else { 0.0 }
    }

    /// `lora_B(lora_A(dropout(x)))`; each argument dies when the call that took it returns.
    fn low_rank(&self, m: &Run, x: &Tensor) -> Tensor {
        let cx = &m.cx;
        let d = ops::dropout(cx, x, self.dropped(m));
        let low = ops::linear(cx, &d, &self.a, None);
        drop(d);
        let y = ops::linear(cx, &low, &self.b, None);
        drop(low);
        y
    }

    /// lora.Linear: the input is cast to the adapter's dtype always, the result back at the end.
    fn dense(&self, m: &Run, id: ModuleId, x: &Tensor) -> Tensor {
        let cx = &m.cx;
        let mut result = self.base_forward(m, id, x);
        let dtype = result.dtype;
        let x = ops::to_dtype(cx, x, self.a.dtype);
        if self.magnitude.is_some() {
            result = dora::forward(m, id, self, &x, result, self.dropped(m));
        } else {
            let y = self.low_rank(m, &x);
            let scaled = ops::mul_scalar(cx, &y);
            drop(y);
            let sum = ops::add(cx, &result, &scaled);
            drop(scaled);
            result = sum;
        }
        let out = ops::to_dtype(cx, &result, dtype);
        drop(result);
        out
    }

    /// The bitsandbytes variants: casts only outside autocast; the 4-bit one clones the base's result.
    fn quantised(&self, m: &Run, id: ModuleId, x: &Tensor) -> Tensor {
        let cx = &m.cx;
        let mut result = self.base_forward(m, id, x);
        if self.base == Base::FourBit {
            result = ops::clone(cx, &result);
        }
        let convert = cx.autocast_dtype().is_none();
        let expected = result.dtype;
        let x = if convert {
            ops::to_dtype(cx, x, self.a.dtype)
        } else {
            x.clone()
        };
        if self.magnitude.is_some() {
            result = dora::forward(m, id, self, &x, result, self.dropped(m));
            return if convert {
                ops::to_dtype(cx, &result, expected)
            } else {
                result
            };
        }
        let y = self.low_rank(m, &x);
        let mut output = ops::mul_scalar(cx, &y);
        drop(y);
        if convert {
            output = ops::to_dtype(cx, &output, expected);
        }
        result = ops::add(cx, &result, &output);
        // frame locals: x before output
        drop(x);
        drop(output);
        result
    }
}

impl Leaf for LoraLinear {
    fn forward(&self, m: &Run, id: ModuleId, x: &Tensor) -> Tensor {
        if self.base == Base::Dense {
            self.dense(m, id, x)
        } else {
            self.quantised(m, id, x)
        }
    }
    fn trainable(&self) -> Vec<(String, Tensor)> {
        let mut v = vec![
            ("lora_A.weight".to_string(), self.a.clone()),
            ("lora_B.weight".to_string(), self.b.clone()),
        ];
        v.extend(
            self.magnitude
                .iter()
                .map(|t| ("lora_magnitude_vector.weight".to_string(), t.clone())),
        );
        v
    }
    fn parameters(&mut self, f: &mut dyn FnMut(&mut Tensor)) {
        if let Some(l) = &mut self.inner {
            l.parameters(f);
        }
        self.adapters(f);
    }
    fn adapters(&mut self, f: &mut dyn FnMut(&mut Tensor)) {
        f(&mut self.a);
        f(&mut self.b);
        if let Some(t) = &mut self.magnitude {
            f(t);
        }
    }
    fn dense_weight(&self, m: &Run) -> Option<Tensor> {
        self.inner.as_ref().and_then(|l| l.dense_weight(m))
    }
    fn bias(&self) -> Option<Tensor> {
        self.inner.as_ref().and_then(|l| l.bias())
    }
}
