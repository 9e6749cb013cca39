//! LLM.int8() linear layers (bitsandbytes 0.50.2, bitsandbytes/nn/modules.py `Linear8bitLt` and `Int8Params`,
//! autograd/_functions.py `MatMul8bitLt`, backends/cuda/ops.py).
//!
//! The autograd function keeps its input in an attribute, not as a saved tensor: it lives as long as the graph, so gradient
//! checkpointing does not free it, and it is still there in the optimizer step.

use super::quant::{cast_bias, load_bias};
use crate::net::ModuleId;
use crate::run::{Leaf, Run};
use smallvec::smallvec;
use std::cell::RefCell;
use tonnage_sim::OpId;
use tonnage_sim::autograd::{CustomBackward, Grads, Saved};
use tonnage_sim::ops::{self, plain};
use tonnage_sim::timeline::Category;
use tonnage_sim::{Cx, ScalarType, Shape, Tensor};

/// `bnb.nn.Linear8bitLt` with `has_fp16_weights=False`.
pub struct Linear8bit {
    weight: Tensor,
    /// Row scales, fp32.
    scales: Tensor,
    bias: RefCell<Option<Tensor>>,
    /// A threshold is set: outlier columns are looked for.
    outliers: bool,
}

impl Linear8bit {
    /// `Int8Params.to("cuda")`: an fp16 copy on the device, scales, the int8 weight; then the bias.
    pub fn quantise(cx: &Cx, output: u64, input: u64, outliers: bool, bias: bool) -> Linear8bit {
        let half = cx.empty(OpId::LOAD, Shape::new(&[output, input]), ScalarType::F16);
        let scales = cx.empty(OpId::LOAD, Shape::new(&[output]), ScalarType::F32);
        let weight = cx.empty(OpId::LOAD, Shape::new(&[output, input]), ScalarType::I8);
        drop(half);
        cx.tag(&weight, Category::Parameters);
        cx.tag(&scales, Category::QuantState);
        let bias = RefCell::new(bias.then(|| load_bias(cx, output)));
        Linear8bit {
            weight,
            scales,
            bias,
            outliers,
        }
    }

    /// `int8_vectorwise_quant`: row scales and int8 rows; with a threshold, the search for outlier columns, of which none is found.
    fn quantise_rows(&self, cx: &Cx, x: &Tensor) -> (Tensor, Tensor) {
        let op = OpId::INT8_QUANT;
        let scales = cx.empty(op, Shape::new(&[x.size(0)]), ScalarType::F32);
        let rows = plain(cx, op, x, ScalarType::I8);
        if self.outliers {
            let abs = plain(cx, op, x, x.dtype);
            let found = plain(cx, op, &abs, ScalarType::Bool);
            drop(abs);
            drop(ops::all(cx, &found));
            if x.size(0) > 1 {
                // out_row[:, outlier_cols] = 0: the number as a tensor
                drop(cx.empty(op, Shape::new(&[]), ScalarType::I8));
            }
            drop(found);
        }
        (rows, scales)
    }

    /// `MatMul8bitLt.forward` on rows of `x`.
    fn product(&self, cx: &Cx, x: &Tensor) -> Tensor {
        let half = if x.dtype == ScalarType::F16 {
            x.detach()
        } else {
            plain(cx, OpId::TO_COPY, x, ScalarType::F16)
        };
        let (rows, scales) = self.quantise_rows(cx, &half);
        drop(half);
        let shape = Shape::new(&[x.size(0), self.weight.size(0)]);
        let sums = cx.empty(OpId::INT8_MM, shape, ScalarType::I32);
        let y = cx.empty(OpId::INT8_MM, shape, ScalarType::F16);
        let work = [1, x.size(0), self.weight.size(0), self.weight.size(1)];
        cx.product_work(OpId::INT8_MM, ScalarType::I8, work);
        let y = if x.dtype == ScalarType::F16 {
            y
        } else {
            plain_dropping(cx, y, x.dtype)
        };
        drop(sums);
        drop(rows);
        drop(scales);
        y
    }
}

fn plain_dropping(cx: &Cx, t: Tensor, dtype: ScalarType) -> Tensor {
    let y = plain(cx, OpId::INT8_MM, &t, dtype);
    drop(t);
    y
}

struct MatMul8bit {
    weight: Tensor,
    scales: Tensor,
    /// Kept until the graph goes.
    _input: Tensor,
}

impl CustomBackward for MatMul8bit {
    fn backward(&self, cx: &Cx, s: &Saved, grads: &mut Grads) -> Grads {
        let g = grads[0].as_ref().expect("gradient");
        let rows = Shape::new(&[g.numel() / self.weight.size(0).max(1), self.weight.size(0)]);
        let g = ops::contiguous(cx, &ops::reshape(cx, g, rows));
        let (shape, dtype) = (s.inputs[0].shape, s.inputs[0].dtype);
        // CB.to(dtype, copy=True).mul_(SCB / 127)
        let w = plain(cx, OpId::TO_COPY, &self.weight, dtype);
        drop(plain(cx, OpId::MUL, &self.scales, ScalarType::F32));
        let g = if g.dtype == dtype {
            g
        } else {
            plain(cx, OpId::TO_COPY, &g, dtype)
        };
        let y = ops::matmul(cx, &g, &w);
        drop(g);
        drop(w);
        smallvec![Some(ops::view(cx, &y, shape))]
    }
}

impl Leaf for Linear8bit {
    fn forward(&self, m: &Run, _: ModuleId, x: &Tensor) -> Tensor {
        let cx = &m.cx;
        // the bias is added in the kernel or in place
        drop(cast_bias(cx, &self.bias, x.dtype));
        let n = cx.node(OpId::INT8_MM, &[x]);
        let width = x.size(-1);
        let active = n.active();
        let (y, input) = cx.with_grad(false, || {
            let flat = ops::reshape(cx, x, Shape::new(&[x.numel() / width.max(1), width]));
            let y = self.product(cx, &flat);
            (
                ops::view(cx, &y, x.shape.with(-1, self.weight.size(0))),
                flat,
            )
        });
        let mut ys = [y];
        if active {
            let f = MatMul8bit {
                weight: self.weight.clone(),
                scales: self.scales.clone(),
                _input: input.detach(),
            };
            n.finish_custom(cx, &mut ys, Box::new(f));
        }
        drop(input);
        let [y] = ys;
        y
    }
    fn trainable(&self) -> Vec<(String, Tensor)> {
        vec![]
    }
    fn parameters(&mut self, f: &mut dyn FnMut(&mut Tensor)) {
        f(&mut self.weight);
        if let Some(b) = self.bias.get_mut() {
            f(b);
        }
    }
    /// `int8_vectorwise_dequant`: `A * stats.view(-1, 1) * (1 / 127)` in fp32.
    fn dense_weight(&self, m: &Run) -> Option<Tensor> {
        let t = plain(&m.cx, OpId::DEQUANTIZE, &self.weight, ScalarType::F32);
        Some(plain(&m.cx, OpId::DEQUANTIZE, &t, ScalarType::F32))
    }
    fn bias(&self) -> Option<Tensor> {
        self.bias.borrow().clone()
    }
}
