//! Elementwise and view operators against the allocator's history of the framework (tools/record_operators.py): forward, backward,
//! then the result and the gradients go.

use ScalarType::{BF16, Bool, F32};
use tonnage_sim::autograd::backward_with;
use tonnage_sim::kernels::KernelDevice;
use tonnage_sim::ops::{self, op::OpId};
use tonnage_sim::{Accumulate, Cx, DeviceModel, EventKind, ScalarType, Shape, Tensor};

const RECORDED: &str = include_str!("fixtures/operators.txt");
const A: &[u64] = &[2, 3, 4, 5];

type F = fn(&Cx, &[Tensor]) -> Tensor;

/// Shape, dtype, and whether a gradient is wanted, of each input.
type Inputs = Vec<(&'static [u64], ScalarType, bool)>;

fn one() -> Inputs {
    vec![(A, F32, true)]
}
fn low() -> Inputs {
    vec![(A, BF16, true)]
}
fn two(b: &'static [u64], da: ScalarType, db: ScalarType, ga: bool, gb: bool) -> Inputs {
    vec![(A, da, ga), (b, db, gb)]
}
fn with(b: &'static [u64]) -> Inputs {
    two(b, F32, F32, true, true)
}
fn mask(b: &'static [u64]) -> Inputs {
    two(b, F32, Bool, true, false)
}

fn add(cx: &Cx, x: &[Tensor]) -> Tensor {
    ops::add(cx, &x[0], &x[1])
}
fn sub(cx: &Cx, x: &[Tensor]) -> Tensor {
    ops::sub(cx, &x[0], &x[1])
}
fn mul(cx: &Cx, x: &[Tensor]) -> Tensor {
    ops::mul(cx, &x[0], &x[1])
}
fn div(cx: &Cx, x: &[Tensor]) -> Tensor {
    ops::div(cx, &x[0], &x[1])
}
fn masked_fill(cx: &Cx, x: &[Tensor]) -> Tensor {
    ops::masked_fill(cx, &x[0], &x[1])
}
fn where_(cx: &Cx, x: &[Tensor]) -> Tensor {
    ops::where_(cx, &x[2], &x[0], &x[1])
}
/// `-f(x)`: the view is a temporary of the expression.
fn minus(cx: &Cx, x: Tensor) -> Tensor {
    ops::neg(cx, &x)
}
fn product(cx: &Cx, a: &Tensor, b: &Tensor) -> Tensor {
    ops::mul(cx, a, b)
}

fn case(name: &str) -> Option<(Inputs, F)> {
    let case: (Inputs, F) = match name {
        "neg" => (one(), |cx, x| ops::neg(cx, &x[0])),
        "add_scalar" => (one(), |cx, x| ops::add_scalar(cx, &x[0])),
        "rsub_scalar" => (one(), |cx, x| ops::rsub_scalar(cx, &x[0])),
        "mul_scalar" => (one(), |cx, x| ops::mul_scalar(cx, &x[0])),
        "div_scalar" => (one(), |cx, x| ops::div_scalar(cx, &x[0])),
        "pow" => (one(), |cx, x| ops::pow_scalar(cx, &x[0])),
        "pow_autocast" => (low(), |cx, x| {
            cx.autocast(Some(BF16), || ops::pow_scalar(cx, &x[0]))
        }),
        "rsqrt" => (one(), |cx, x| ops::rsqrt(cx, &x[0])),
        "rsqrt_autocast" => (low(), |cx, x| {
            cx.autocast(Some(BF16), || ops::rsqrt(cx, &x[0]))
        }),
        "sqrt" => (one(), |cx, x| ops::sqrt(cx, &x[0])),
        "reciprocal" => (one(), |cx, x| ops::reciprocal(cx, &x[0])),
        "exp" => (one(), |cx, x| ops::exp(cx, &x[0])),
        "log" => (one(), |cx, x| ops::log(cx, &x[0])),
        "cos" => (one(), |cx, x| ops::cos(cx, &x[0])),
        "sin" => (one(), |cx, x| ops::sin(cx, &x[0])),
        "abs" => (one(), |cx, x| ops::abs(cx, &x[0])),
        "silu" => (one(), |cx, x| ops::silu(cx, &x[0])),
        "gelu" => (one(), |cx, x| ops::gelu(cx, &x[0])),
        "tanh" => (one(), |cx, x| ops::tanh(cx, &x[0])),
        "sigmoid" => (one(), |cx, x| ops::sigmoid(cx, &x[0])),
        "relu" => (one(), |cx, x| ops::relu(cx, &x[0])),
        "softplus" => (one(), |cx, x| ops::softplus(cx, &x[0])),
        "clamp_min" => (one(), |cx, x| ops::clamp_scalar(cx, &x[0], true, false)),
        "clamp_both" => (one(), |cx, x| ops::clamp_scalar(cx, &x[0], true, true)),
        "dropout" => (one(), |cx, x| ops::dropout(cx, &x[0], 0.1)),
        "dropout_zero" => (one(), |cx, x| minus(cx, ops::dropout(cx, &x[0], 0.0))),
        "to_bf16" => (one(), |cx, x| ops::to_dtype(cx, &x[0], BF16)),
        "clone" => (one(), |cx, x| ops::clone(cx, &x[0])),
        "add" => (with(A), add),
        "add_broadcast" => (with(&[5]), add),
        "add_mixed" => (two(A, BF16, F32, true, true), add),
        "add_mixed_broadcast" => (two(&[5], F32, BF16, true, true), add),
        "sub" => (with(A), sub),
        "sub_broadcast" => (with(&[5]), sub),
        "mul" => (with(A), mul),
        "mul_broadcast" => (with(&[5]), mul),
        "mul_left" => (two(A, F32, F32, true, false), mul),
        "mul_right" => (two(A, F32, F32, false, true), mul),
        "mul_mixed" => (two(A, BF16, F32, true, true), mul),
        "mul_scalar_tensor" => (two(&[], BF16, F32, true, false), mul),
        "div" => (with(A), div),
        "div_broadcast" => (with(&[2, 3, 4, 1]), div),
        "masked_fill" => (mask(A), masked_fill),
        "masked_fill_broadcast" => (mask(&[4, 5]), masked_fill),
        "where" => (
            vec![(A, F32, true), (A, F32, true), (A, Bool, false)],
            where_,
        ),
        "where_left" => (
            vec![(A, F32, true), (A, F32, false), (&[4, 5], Bool, false)],
            where_,
        ),
        "mul_" => (two(A, F32, F32, true, false), |cx, x| {
            ops::mul_(cx, ops::mul_scalar(cx, &x[0]), &x[1])
        }),
        "add_" => (with(A), |cx, x| {
            ops::add_(cx, ops::mul_scalar(cx, &x[0]), &x[1])
        }),
        "relu_" => (one(), |cx, x| ops::relu_(cx, ops::mul_scalar(cx, &x[0]))),
        "masked_fill_" => (mask(A), |cx, x| {
            ops::masked_fill_(cx, ops::mul_scalar(cx, &x[0]), &x[1])
        }),
        "reshape_view" => (one(), |cx, x| {
            minus(cx, ops::reshape(cx, &x[0], Shape::new(&[6, 20])))
        }),
        "reshape_copy" => (one(), |cx, x| {
            let t = ops::transpose(cx, &x[0], 1, 2);
            minus(cx, ops::reshape(cx, &t, Shape::new(&[2, 4, 15])))
        }),
        "view_of_transposed_gradient" => (one(), |cx, x| {
            let v = ops::view(cx, &x[0], Shape::new(&[2, 12, 5]));
            ops::contiguous(cx, &ops::transpose(cx, &v, 1, 2))
        }),
        "heads" => (one(), |cx, x| {
            let v = ops::view(cx, &x[0], Shape::new(&[2, 3, 2, 2, 5]));
            ops::mul_scalar(cx, &ops::transpose(cx, &v, 1, 2))
        }),
        "contiguous" => (one(), |cx, x| {
            ops::contiguous(cx, &ops::transpose(cx, &x[0], 1, 2))
        }),
        "permute" => (one(), |cx, x| {
            ops::mul_scalar(cx, &ops::permute(cx, &x[0], &[3, 1, 0, 2]))
        }),
        "slice" => (one(), |cx, x| minus(cx, ops::slice(cx, &x[0], -1, 0, 2))),
        "slice_all" => (one(), |cx, x| minus(cx, ops::slice(cx, &x[0], 2, 0, 4))),
        "select" => (one(), |cx, x| minus(cx, ops::select(cx, &x[0], 1))),
        "unsqueeze" => (one(), |cx, x| minus(cx, ops::unsqueeze(cx, &x[0], 1))),
        "squeeze" => (vec![(&[2, 1, 5], F32, true)], |cx, x| {
            minus(cx, ops::squeeze(cx, &x[0], 1))
        }),
        "expand" => (vec![(&[2, 1, 5], F32, true)], |cx, x| {
            minus(cx, ops::expand(cx, &x[0], Shape::new(&[2, 3, 5])))
        }),
        "split" => (one(), |cx, x| {
            let p = ops::split(cx, &x[0], &[2, 2], -2);
            product(cx, &p[0], &p[1])
        }),
        "split_missing" => (one(), |cx, x| {
            ops::neg(cx, &ops::split(cx, &x[0], &[2, 2], -2)[1])
        }),
        "chunk" => (one(), |cx, x| {
            let p = ops::chunk(cx, &x[0], 3, 1);
            product(cx, &p[0], &p[2])
        }),
        "unbind" => (one(), |cx, x| {
            let p = ops::unbind(cx, &x[0], 1);
            product(cx, &p[0], &p[2])
        }),
        "cat" => (with(A), |cx, x| ops::cat(cx, &[&x[0], &x[1]], 1)),
        "cat_left" => (two(A, F32, F32, true, false), |cx, x| {
            ops::cat(cx, &[&ops::neg(cx, &x[0]), &x[1]], 1)
        }),
        "rotate_half" => (one(), |cx, x| {
            let a = ops::slice(cx, &x[0], -1, 0, 2);
            let b = ops::slice(cx, &x[0], -1, 2, 2);
            ops::cat(cx, &[&ops::neg(cx, &b), &a], -1)
        }),
        "stack" => (with(A), |cx, x| ops::stack(cx, &[&x[0], &x[1]], 1)),
        "stack_product" => (with(A), |cx, x| {
            let a = ops::neg(cx, &x[0]);
            let b = ops::neg(cx, &x[1]);
            // the tuple's elements die last to first
            let y = ops::stack(cx, &[&a, &b], -1);
            drop(b);
            drop(a);
            y
        }),
        "repeat_kv" => (one(), |cx, x| ops::repeat_kv(cx, &x[0], 2)),
        "flatten" => (one(), |cx, x| {
            minus(
                cx,
                ops::flatten(cx, &ops::transpose(cx, &x[0], 1, 2), 2, -1),
            )
        }),
        _ => return None,
    };
    Some(case)
}

fn simulate(inputs: &Inputs, f: F) -> String {
    let cx = Cx::new(
        DeviceModel {
            kernel: KernelDevice::A100,
        },
        Accumulate::InPlaceIfSole,
    );
    let x: Vec<Tensor> = inputs
        .iter()
        .map(|(shape, dtype, grad)| {
            let t = cx.empty(OpId::INPUT, Shape::new(shape), *dtype);
            if *grad { cx.require_grad(t) } else { t }
        })
        .collect();
    let seed = cx.with_grad(false, || {
        let y = f(&cx, &x);
        cx.empty_like(OpId::INPUT, &y, y.dtype)
    });
    let from = cx.event_count();
    let y = f(&cx, &x);
    backward_with(&cx, &y, seed.clone());
    drop(y);
    for t in &x {
        drop(t.take_grad());
    }
    let words = cx.with_events(from, |events| {
        let mut live = std::collections::HashMap::new();
        let mut words = Vec::new();
        for e in events {
            match e.kind() {
                EventKind::Alloc { id } => {
                    live.insert(id, live.len());
                    words.push(format!("+{}", e.bytes));
                }
                EventKind::Free { id } => words.push(format!("-{}", live[&id])),
                EventKind::EmptyCache => words.push("empty".into()),
            }
        }
        words
    });
    cx.close();
    words.join(" ")
}

#[test]
fn events_equal_those_of_the_framework() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for line in RECORDED.lines() {
        let (name, want) = line.split_once(' ').expect("a name and events");
        let Some((inputs, f)) = case(name) else {
            panic!("no simulation of recorded case {name}")
        };
        let got = simulate(&inputs, f);
        if got != want {
            wrong.push(format!("{name}\n  simulated {got}\n  framework {want}"));
        }
        count += 1;
    }
    assert!(count > 60, "{count} cases recorded");
    assert!(
        wrong.is_empty(),
        "{} of {count} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn dtypes_promote_as_in_torch() {
    // rows: torch.promote_types(row, column), columns in the order of the rows
    const TABLE: &str = "\
F64 F64 F64 F64 F64 F64 F64 F64 F64 F64 F64
F32 F64 F32 F32 F32 F32 F32 F32 F32 F32 F32
F16 F64 F32 F16 F32 F16 F16 F16 F16 F16 F16
BF16 F64 F32 F32 BF16 BF16 BF16 BF16 BF16 BF16 BF16
I64 F64 F32 F16 BF16 I64 I64 I64 I64 I64 I64
I32 F64 F32 F16 BF16 I64 I32 I32 I32 I32 I32
I16 F64 F32 F16 BF16 I64 I32 I16 I16 I16 I16
I8 F64 F32 F16 BF16 I64 I32 I16 I8 I16 I8
U8 F64 F32 F16 BF16 I64 I32 I16 I16 U8 U8
Bool F64 F32 F16 BF16 I64 I32 I16 I8 U8 Bool";
    // torch.result_type(empty(2, dtype=row), empty((), dtype=column))
    const WITH_SCALAR_TENSOR: &str = "\
F64 F64 F64 F64 F64 F64 F64 F64 F64 F64 F64
F32 F32 F32 F32 F32 F32 F32 F32 F32 F32 F32
F16 F16 F16 F16 F16 F16 F16 F16 F16 F16 F16
BF16 BF16 BF16 BF16 BF16 BF16 BF16 BF16 BF16 BF16 BF16
I64 F64 F32 F16 BF16 I64 I64 I64 I64 I64 I64
I32 F64 F32 F16 BF16 I32 I32 I32 I32 I32 I32
I16 F64 F32 F16 BF16 I16 I16 I16 I16 I16 I16
I8 F64 F32 F16 BF16 I8 I8 I8 I8 I8 I8
U8 F64 F32 F16 BF16 U8 U8 U8 U8 U8 U8
Bool F64 F32 F16 BF16 I64 I32 I16 I8 U8 Bool";
    use ScalarType::{F16, F64, I8, I16, I32, I64, U8};
    let all = [F64, F32, F16, BF16, I64, I32, I16, I8, U8, Bool];
    let cx = Cx::new(
        DeviceModel {
            kernel: KernelDevice::A100,
        },
        Accumulate::InPlaceIfSole,
    );
    let rows = TABLE.lines().zip(WITH_SCALAR_TENSOR.lines());
    for (a, (types, results)) in all.iter().zip(rows) {
        let columns = types.split(' ').skip(1).zip(results.split(' ').skip(1));
        for (b, (both, scalar)) in all.iter().zip(columns) {
            assert_eq!(
                format!("{:?}", ops::promote_types(*a, *b)),
                both,
                "{a:?} {b:?}"
            );
            let x = cx.empty(OpId::INPUT, Shape::new(&[2]), *a);
            let y = cx.empty(OpId::INPUT, Shape::new(&[]), *b);
            assert_eq!(
                format!("{:?}", ops::promote(&x, &y)),
                scalar,
                "{a:?} 0-dim {b:?}"
            );
            assert_eq!(ops::promote(&y, &x), ops::promote(&x, &y));
        }
    }
}
