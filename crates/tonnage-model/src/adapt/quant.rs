//! bitsandbytes' 4-bit linear layers (bitsandbytes 0.50.2, bitsandbytes/nn/modules.py `Linear4bit` and `Params4bit`,
//! functional.py `quantize_4bit` and `dequantize_4bit`, autograd/_functions.py `MatMul4Bit`, backends/cuda/ops.py `gemm_4bit`).

use super::gemm4;
use super::llm_int8::Linear8bit;
use super::target;
use crate::net::{Kind, ModuleId, Net};
use crate::run::{Leaf, Run};
use smallvec::smallvec;
use std::cell::RefCell;
use std::rc::Rc;
use tonnage_sim::OpId;
use tonnage_sim::autograd::{CustomBackward, Grads, Saved};
use tonnage_sim::ops::{self, plain};
use tonnage_sim::timeline::Category;
use tonnage_sim::work::WorkKind;
use tonnage_sim::{Cx, ScalarType, Shape, Tensor};

/// How weights are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quant {
    /// NF4 or FP4 (their memory is the same); `double`: the blocks' scales are packed too.
    FourBit { double: bool, compute: ScalarType },
    /// LLM.int8; `outliers`: a threshold above 0 is set (the library's default is 6), so each call looks for outlier columns. None
    /// are assumed to be found: how many there are depends on the data.
    Int8 { outliers: bool },
}

/// Which linear layers are replaced.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum QuantScope {
    /// As transformers does on loading (quantizers/base.py, get_keys_to_not_convert): all but the output embedding and what is tied
    /// to it.
    #[default]
    Library,
    /// All instances of `nn.Linear` itself whose last name component is not listed.
    Except(Vec<String>),
    /// None at all.
    Nothing,
}

/// The modules that get a packed weight, in the order of their conversion (parents in `named_modules()` order, then children).
pub fn replaced(net: &Net, scope: &QuantScope) -> Vec<ModuleId> {
    let head = target::output_embedding(net);
    let wanted = |id: &ModuleId| {
        let m = net.module(*id);
        let local = m.name.rsplit('.').next().unwrap_or("");
        // transformers' Conv1D too, where the library itself replaces (5.17.0, integrations/bitsandbytes.py, replace_with_bnb_linear)
        let conv = matches!(m.kind, Kind::Conv1d { .. }) && *scope == QuantScope::Library;
        (conv || matches!(m.kind, Kind::Linear { .. }))
            && match scope {
                QuantScope::Library => Some(*id) != head,
                QuantScope::Nothing => false,
                QuantScope::Except(names) => !names.iter().any(|n| n == local),
            }
    };
    net.preorder()
        .into_iter()
        .flat_map(|p| net.module(p).children.clone())
        .filter(wanted)
        .collect()
}

/// Modules with parameters that keep their dtype, by name: embeddings, norms, heads.
pub fn unquantised(net: &Net, scope: &QuantScope) -> Vec<String> {
    let packed = replaced(net, scope);
    let keeps = |id: &ModuleId| !net.module(*id).params.is_empty() && !packed.contains(id);
    net.preorder()
        .into_iter()
        .filter(keeps)
        .map(|id| net.module(id).name.clone())
        .collect()
}

/// Loads a model with packed weights: each replaced layer's weight goes to the device and is packed there, then its bias follows;
/// after that the rest is loaded as usual. Weights arrive in bf16.
pub fn load(m: &mut Run, q: Quant, scope: &QuantScope) {
    let cx = m.cx.clone();
    // the fp32 code of the scales, made at first use and kept (functional.py, name2qmap)
    let mut map: Option<Tensor> = None;
    for id in replaced(&m.net, scope) {
        let old = cx.set_module(id.0);
        let (input, output) = super::lora::sizes(&m.net, id);
        let bias = m.net.find(id, "bias").is_some();
        // a Conv1D's weight is stored [in, out]: the packer reads a transposed copy, and the loaded one lives on beside it
        let stored = matches!(m.net.module(id).kind, Kind::Conv1d { .. })
            .then(|| cx.empty(OpId::LOAD, Shape::new(&[input, output]), ScalarType::BF16));
        let leaf: Box<dyn Leaf> = match q {
            Quant::FourBit { double, compute } => {
                let packed = Packed4::quantise(&cx, output, input, double, &mut map);
                drop(stored);
                let bias = bias.then(|| load_bias(&cx, output));
                Box::new(Linear4bit {
                    packed: Rc::new(packed),
                    compute,
                    bias: RefCell::new(bias),
                })
            }
            Quant::Int8 { outliers } => {
                let l = Linear8bit::quantise(&cx, output, input, outliers, bias);
                drop(stored);
                Box::new(l)
            }
        };
        m.replace(id, leaf);
        cx.set_module(old);
    }
    if let Some(t) = map {
        m.kept.borrow_mut().push(t);
    }
    for id in m.net.postorder() {
        if !m.is_replaced(id) {
            m.load_module(id);
        }
    }
}

/// A bias as it is loaded beside a packed weight.
pub(crate) fn load_bias(cx: &Cx, n: u64) -> Tensor {
    let t = cx.empty(OpId::LOAD, Shape::new(&[n]), ScalarType::BF16);
    cx.tag(&t, Category::Parameters);
    t
}

const BLOCK: u64 = 64;
const NESTED_BLOCK: u64 = 256;

/// A packed weight with its statistics (`QuantState`).
struct Packed4 {
    output: u64,
    input: u64,
    weight: Tensor,
    /// One byte a block if nested, else fp32.
    absmax: Tensor,
    nested: bool,
    /// Code tables, second-level scales, offset.
    tables: Vec<Tensor>,
}

impl Packed4 {
    /// `Params4bit.to("cuda")`: the dense weight, scales, packed weight, tables; then, nested, the packed scales.
    fn quantise(
        cx: &Cx,
        output: u64,
        input: u64,
        double: bool,
        map: &mut Option<Tensor>,
    ) -> Packed4 {
        let f32s = |n: u64| cx.empty(OpId::LOAD, Shape::new(&[n]), ScalarType::F32);
        let bytes = |n: u64| cx.empty(OpId::LOAD, Shape::new(&[n]), ScalarType::U8);
        let n = output * input;
        let dense = cx.empty(OpId::LOAD, Shape::new(&[output, input]), ScalarType::BF16);
        let blocks = n.div_ceil(BLOCK);
        let mut absmax = f32s(blocks);
        let weight = bytes(n.div_ceil(2));
        let code = f32s(16);
        // data.div_(data.abs().max())
        let abs = f32s(16);
        let max = cx.empty(OpId::MAX, Shape::new(&[]), ScalarType::F32);
        drop(abs);
        drop(max);
        let mut tables = vec![code];
        if double {
            let offset = ops::mean(cx, &absmax, &[], false);
            let centred = f32s(blocks);
            if map.is_none() {
                *map = Some(f32s(256));
            }
            let absmax2 = f32s(blocks.div_ceil(NESTED_BLOCK));
            let small = bytes(blocks);
            let code2 = f32s(256);
            drop(centred);
            absmax = small;
            tables.extend([offset, absmax2, code2]);
        }
        drop(dense);
        cx.tag(&weight, Category::Parameters);
        cx.tag(&absmax, Category::QuantState);
        for t in &tables {
            cx.tag(t, Category::QuantState);
        }
        Packed4 {
            output,
            input,
            weight,
            absmax,
            nested: double,
            tables,
        }
    }

    /// The tensors of the `QuantState`, in the order of its attributes: scales, code, offset, and those of the scales.
    fn state(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.absmax).chain(&self.tables)
    }

    /// `dequantize_4bit`: the scales in fp32 (nested: unpacked, the offset added in place), then the weight in `dtype`.
    fn dequantise(&self, cx: &Cx, dtype: ScalarType) -> Tensor {
        let scales = self
            .nested
            .then(|| plain(cx, OpId::DEQUANTIZE, &self.absmax, ScalarType::F32));
        let w = cx.empty(
            OpId::DEQUANTIZE,
            Shape::new(&[self.output, self.input]),
            dtype,
        );
        drop(scales);
        w
    }

    /// Reading the packed weight and writing it unpacked.
    fn unpack_work(&self, cx: &Cx, dtype: ScalarType) {
        let n = self.output * self.input;
        let bytes = n / 2 + n * dtype.size();
        cx.work(OpId::GEMM_4BIT, WorkKind::Unpack, dtype, 0, bytes);
    }

    /// The operator `bitsandbytes::gemm_4bit`: a fused kernel, or the unpacked weight and `F.linear`.
    fn gemm(&self, cx: &Cx, x: &Tensor, bias: Option<&Tensor>) -> Tensor {
        let rows = x.numel() / self.input.max(1);
        let fused = cx.choice((x.dtype, rows, self.output, self.input), |a, card| {
            u64::from(gemm4::fused(card, a.0, a.1, a.2, a.3, BLOCK))
        });
        if fused == 1 {
            let x = ops::contiguous(cx, x);
            let flops = 2 * rows * self.output * self.input;
            let packed = self.output * self.input / 2;
            let moved = packed + (rows * (self.output + self.input)) * x.dtype.size();
            cx.work(OpId::GEMM_4BIT, WorkKind::Product, x.dtype, flops, moved);
            let y = cx.empty(OpId::GEMM_4BIT, x.shape.with(-1, self.output), x.dtype);
            drop(x);
            return y;
        }
        let scales = self.nested.then(|| {
            let raw = plain(cx, OpId::GEMM_4BIT, &self.absmax, ScalarType::F32);
            let shifted = plain(cx, OpId::GEMM_4BIT, &raw, ScalarType::F32);
            (shifted, raw)
        });
        let w = cx.empty(
            OpId::GEMM_4BIT,
            Shape::new(&[self.output, self.input]),
            x.dtype,
        );
        self.unpack_work(cx, x.dtype);
        let y = ops::linear(cx, x, &w, bias);
        if let Some((shifted, raw)) = scales {
            drop(shifted);
            drop(raw);
        }
        drop(w);
        y
    }
}

/// `bnb.nn.Linear4bit`.
pub struct Linear4bit {
    packed: Rc<Packed4>,
    compute: ScalarType,
    bias: RefCell<Option<Tensor>>,
}

struct MatMul4Bit(Rc<Packed4>);

impl CustomBackward for MatMul4Bit {
    fn backward(&self, cx: &Cx, s: &Saved, grads: &mut Grads) -> Grads {
        let g = grads[0].take().expect("gradient");
        let stored = self.0.dequantise(cx, ScalarType::BF16);
        self.0.unpack_work(cx, g.dtype);
        let w = plain_to(cx, stored, g.dtype);
        let flat = Shape::new(&[g.numel() / self.0.output.max(1), self.0.output]);
        let y = ops::matmul(cx, &ops::reshape(cx, &g, flat), &w);
        drop(w);
        grads[0] = Some(g);
        let shape = s.inputs[0].shape;
        smallvec![Some(y.shaped(shape))]
    }
}

/// `t.to(dtype)` of a temporary: the old one goes when the new one is there.
pub(crate) fn plain_to(cx: &Cx, t: Tensor, dtype: ScalarType) -> Tensor {
    if t.dtype == dtype {
        t
    } else {
        plain(cx, OpId::TO_COPY, &t, dtype)
    }
}

/// `bias.data = bias.data.to(dtype)`: done at the first call, and stays.
pub(crate) fn cast_bias(
    cx: &Cx,
    bias: &RefCell<Option<Tensor>>,
    dtype: ScalarType,
) -> Option<Tensor> {
    let mut b = bias.borrow_mut();
    if let Some(t) = b.as_mut().filter(|t| t.dtype != dtype && !cx.muted()) {
        *t = plain(cx, OpId::TO_COPY, t, dtype);
        cx.tag(t, Category::Parameters);
    }
    b.clone()
}

impl Leaf for Linear4bit {
    fn forward(&self, m: &Run, _: ModuleId, x: &Tensor) -> Tensor {
        let cx = &m.cx;
        let dtype = x.dtype;
        let x = ops::to_dtype(cx, x, self.compute);
        let bias = cast_bias(cx, &self.bias, x.dtype);
        let n = cx.node(OpId::GEMM_4BIT, &[&x]);
        let y = cx.with_grad(false, || self.packed.gemm(cx, &x, bias.as_ref()));
        let mut y = [y];
        n.finish_custom(cx, &mut y, Box::new(MatMul4Bit(self.packed.clone())));
        let [y] = y;
        let out = ops::to_dtype(cx, &y, dtype);
        drop(y);
        drop(x);
        out
    }
    fn trainable(&self) -> Vec<(String, Tensor)> {
        vec![]
    }
    fn parameters(&mut self, f: &mut dyn FnMut(&mut Tensor)) {
        // registered as nn.Linear does: weight, bias
        let mut w = self.packed.weight.clone();
        f(&mut w);
        if let Some(b) = self.bias.get_mut() {
            f(b);
        }
    }
    fn dense_weight(&self, m: &Run) -> Option<Tensor> {
        Some(self.packed.dequantise(&m.cx, ScalarType::BF16))
    }
    fn deep_copy(&self, m: &Run) -> Vec<Tensor> {
        let cx = &m.cx;
        // torch/_tensor.py, Tensor.__deepcopy__: the storage, then an empty tensor that is set to it
        let deep = |t: &Tensor| {
            let c = plain(cx, OpId::CLONE, t, t.dtype);
            drop(cx.empty(OpId::CLONE, Shape::new(&[]), t.dtype));
            c
        };
        // Params4bit copies its state and its data; the module's own reference to the state is copied again
        let mut v: Vec<Tensor> = self.packed.state().map(deep).collect();
        v.push(deep(&self.packed.weight));
        v.extend(
            self.bias
                .borrow()
                .iter()
                .map(|b| plain(cx, OpId::CLONE, b, b.dtype)),
        );
        v.extend(self.packed.state().map(deep));
        v
    }
    fn bias(&self) -> Option<Tensor> {
        self.bias.borrow().clone()
    }
}
