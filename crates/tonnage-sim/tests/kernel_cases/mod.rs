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
            dev,
        ),
        _ => panic!("no rule for {op}"),
    }
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
