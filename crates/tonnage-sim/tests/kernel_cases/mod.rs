//! From a fixture's operator name and arguments to the rule's call.
use serde_json::Value;
use tonnage_sim::kernels::*;
use tonnage_units::ScalarType;

/// The arguments of one recorded case.
pub struct Args<'a>(pub &'a Value);

impl Args<'_> {
    pub fn n(&self, key: &str) -> u64 {
        self.0[key]
            .as_u64()
            .unwrap_or_else(|| panic!("{key} in {}", self.0))
    }
    pub fn flag(&self, key: &str) -> bool {
        self.0[key].as_bool().unwrap_or(false)
    }
    pub fn list(&self, key: &str) -> Vec<u64> {
        let list = self.0[key]
            .as_array()
            .unwrap_or_else(|| panic!("{key} in {}", self.0));
        list.iter().map(|v| v.as_u64().expect("number")).collect()
    }
    pub fn dtype(&self, key: &str) -> ScalarType {
        match self.0[key].as_str() {
            Some("f64") => ScalarType::F64,
            Some("f32") => ScalarType::F32,
            Some("f16") => ScalarType::F16,
            Some("bf16") => ScalarType::BF16,
            Some("i64") => ScalarType::I64,
            Some("i32") => ScalarType::I32,
            Some("u8") => ScalarType::U8,
            Some("bool") => ScalarType::Bool,
            other => panic!("dtype {other:?}"),
        }
    }
    pub fn mask(&self, i: usize) -> bool {
        self.0["mask"][i].as_bool().expect("mask")
    }
    pub fn reduction(&self) -> Reduction {
        match self.n("reduction") {
            0 => Reduction::None,
            1 => Reduction::Mean,
            _ => Reduction::Sum,
        }
    }
    pub fn tensor(&self) -> Strided {
        let shape = self.list("shape");
        if self.0["strides"].is_null() {
            Strided::contiguous(&shape)
        } else {
            Strided::new(&shape, &self.list("strides"), self.n("offset"))
        }
    }
}

/// The script that the rule predicts for a recorded case.
pub fn rule(op: &str, a: &Args, dev: &KernelDevice) -> Steps {
    match op {
        "sum" => reduction(ReduceOp::Sum, a, dev),
        "mean" => reduction(ReduceOp::Mean, a, dev),
        "norm" => reduction(ReduceOp::Norm, a, dev),
        "amax" | "max" => reduction(ReduceOp::Extreme, a, dev),
        "max_dim" => reduction(ReduceOp::ExtremeWithIndex, a, dev),
        "argmax" => reduction(ReduceOp::ArgExtreme, a, dev),
        "all" | "any" => reduction(ReduceOp::AnyAll, a, dev),
        "var" => reduction(ReduceOp::Var, a, dev),
        "embedding_dense_backward" => embedding_dense_backward(
            a.n("n"),
            a.n("v"),
            a.n("d"),
            a.dtype("dtype"),
            !a.flag("strided"),
            !a.flag("expanded"),
            dev,
        ),
        "layer_norm" => Steps::outputs(3),
        "layer_norm_backward" => layer_norm_backward(
            a.n("m"),
            a.n("n"),
            a.dtype("dtype"),
            [a.mask(0), a.mask(1), a.mask(2)],
            dev,
        ),
        "rms_norm" => Steps::outputs(2),
        "rms_norm_backward" => rms_norm_backward(
            a.n("m"),
            a.n("n"),
            a.dtype("dtype"),
            [a.mask(0), a.mask(1)],
            dev,
        ),
        "group_norm" => group_norm(a.n("b"), a.n("c"), a.n("s"), a.dtype("dtype"), true),
        "group_norm_backward" => group_norm_backward(
            a.n("b"),
            a.n("c"),
            a.n("s"),
            a.n("g"),
            a.dtype("dtype"),
            [a.mask(0), a.mask(1), a.mask(2)],
        ),
        "batch_norm" => batch(a).forward(a.flag("train")),
        "batch_norm_backward" => batch(a).backward(),
        "native_batch_norm" => batch(a).native_forward(a.flag("train")),
        "native_batch_norm_backward" => batch(a).native_backward(),
        "only_results" => Steps::outputs(a.n("results") as u8),
        "softmax_backward" => softmax_backward(a.n("n") * a.dtype("dtype").size()),
        "mse" | "smooth_l1" => pointwise_loss(a.n("n"), a.dtype("dtype"), a.reduction(), dev),
        "bce" => bce_with_logits(a.n("n"), a.dtype("dtype"), a.reduction(), dev),
        "flash" => attention(a).flash_forward(dev),
        "flash_backward" => attention(a).flash_backward(a.flag("gcopy"), a.flag("ocopy")),
        "efficient" => attention(a).efficient_forward(true),
        "efficient_backward" => attention(a).efficient_backward(a.flag("gcopy"), dev),
        "cudnn_sdpa" => attention(a).cudnn_forward(),
        "cudnn_sdpa_backward" => attention(a).cudnn_backward(),
        "boolean_mask" => boolean_mask_case(a),
        "safe_softmax" => safe_softmax(a.n("rows"), a.n("width"), a.dtype("dtype"), dev),
        "addmm" | "linear" | "mm" => {
            let mut s = Steps::outputs(1);
            s.alloc(cublas_workspace(dev));
            if op != "mm" && addmm_uses_lt(a.n("n"), a.n("k"), a.flag("row"), a.flag("beta1")) {
                s.alloc(CUBLASLT_WORKSPACE);
            }
            s
        }
        "grouped_mm" => grouped_mm(a.n("groups"), a.dtype("dtype") == ScalarType::BF16, dev),
        "sort" => sort(a.n("rows"), a.n("width"), a.dtype("dtype"), dev).expect("covered"),
        "cumsum" => {
            cumsum(a.n("n"), a.dtype("dtype"), a.dtype("out"), a.flag("whole")).expect("covered")
        }
        "nonzero" => nonzero(a.n("n"), 1, 0, dev),
        "index_put" => {
            index_put_accumulate(a.n("k"), a.n("n"), a.n("slots"), a.flag("checked"), dev)
        }
        "dropout" => {
            let mut s = Steps::new();
            s.output(1);
            s.output(0);
            s
        }
        "conv" => convolution(a.n("xcopy"), a.n("wcopy")),
        "conv_backward" => {
            let x = a.list("x");
            let depthwise = native_depthwise(
                [x[0], x[1], x[2], x[3]],
                a.n("groups"),
                a.n("kernel"),
                a.n("stride"),
                a.dtype("dtype"),
                a.flag("last"),
            );
            let mask = [a.mask(0), a.mask(1), a.mask(2)];
            let copied = a.flag("gcopy");
            convolution_backward(&a.tensor(), a.dtype("dtype"), copied, depthwise, mask, dev)
        }
        "foreach_norm" => {
            let (n, dtype) = (a.list("n"), a.dtype("dtype"));
            let mut s = Steps::new();
            let scratch = s.alloc(foreach_norm_scratch(n.iter().copied(), dtype));
            (0..n.len()).for_each(|i| s.output(i as u8));
            s.free(scratch);
            s
        }
        _ => panic!("no rule for {op}"),
    }
}

fn batch(a: &Args) -> BatchNorm {
    let shape = a.list("shape");
    BatchNorm {
        batch: shape[0],
        channels: shape[1],
        spatial: shape[2..].iter().product(),
        dims: shape.len() as u32,
        dtype: a.dtype("dtype"),
        weight: a.dtype("weight"),
        channels_last: a.flag("last"),
    }
}

fn attention(a: &Args) -> Attention {
    let s = a.list("shape");
    Attention {
        batch: s[0],
        heads: s[1],
        kv_heads: s[2],
        q_len: s[3],
        kv_len: s[4],
        head_dim: s[5],
        dtype: a.dtype("dtype"),
        dropout: a.flag("dropout"),
    }
}

/// A whole `F.scaled_dot_product_attention` with a boolean mask in fp32 without a graph.
fn boolean_mask_case(a: &Args) -> Steps {
    let (x, rows) = (attention(a), a.n("rows"));
    let bytes = rows * x.kv_len * x.dtype.size();
    let mut s = Steps::new();
    let mask = s.inline(&boolean_mask(x.dtype), &[bytes])[0];
    let mut pad = None;
    if !x.kv_len.is_multiple_of(8) {
        pad = s.alloc(padded_mask_bytes(rows, x.kv_len, x.dtype));
        s.free(mask);
    }
    s.extend(&x.efficient_forward(false), 0);
    s.free(if pad.is_some() { pad } else { mask });
    s
}

fn reduction(op: ReduceOp, a: &Args, dev: &KernelDevice) -> Steps {
    let dims = a.list("dims").iter().fold(0, |m, d| m | 1 << d);
    let x = a.tensor();
    reduce(
        op,
        &x,
        a.dtype("dtype"),
        dims,
        a.flag("keep"),
        a.dtype("out"),
        dev,
    )
}
