//! Matrix products (torch 2.11, aten/src/ATen/native/LinearAlgebra.cpp, Linear.cpp, cuda/Blas.cpp; derivatives.yaml).

use crate::autograd::{Args, Grads, Saved};
use crate::context::Cx;
use crate::ops::op::OpId;
use crate::ops::pointwise::{add, add_};
use crate::ops::view::reshape_raw;
use crate::shape::{MAX_DIMS, Shape, Strides};
use crate::tensor::Tensor;
use smallvec::{SmallVec, smallvec};

// ---- layout ---------------------------------------------------------------------------------------------------------

/// The node of the view that flattened the operands, run backward: where its reshape copies, the old gradient goes at once.
fn reshaped_grad(cx: &Cx, s: &Saved, g: &mut Grads, shape: Shape) -> Tensor {
    let old = g[0].take().expect("gradient");
    if old.shape == shape {
        return old;
    }
    let new = reshape_raw(cx, &old, shape);
    if !std::rc::Rc::ptr_eq(&new.storage, &old.storage) {
        s.hand_over(&new);
    }
    new
}

/// The transpose of a matrix: a view without history.
fn turned(x: &Tensor) -> Tensor {
    let mut st: Strides = [0; MAX_DIMS];
    let of = x.strides();
    (st[0], st[1]) = (of[1], of[0]);
    x.alias(Shape::new(&[x.size(1), x.size(0)]), st)
}

/// The same data under another contiguous shape, not a view (`_unsafe_view`).
fn unsafe_view(y: Tensor, shape: Shape) -> Tensor {
    y.shaped(shape)
}

/// Rows of `x` flattened to a matrix.
fn flat(x: &Tensor) -> Shape {
    let k = x.size(-1);
    Shape::new(&[x.numel().checked_div(k).unwrap_or(0), k])
}

// ---- kernels --------------------------------------------------------------------------------------------------------

/// Must cuBLAS get a copy of this matrix? (Blas.cpp, prepare_matrix_for_cublas; the same for a matrix and its transpose)
fn matrix_copy(cx: &Cx, t: &Tensor) -> Option<Tensor> {
    if t.is_dense() {
        return None;
    }
    let (r, c) = (t.size(0).max(1), t.size(1).max(1));
    let st = t.strides();
    let fits = (st[0] == 1 && st[1] >= r) || (st[1] == 1 && st[0] >= c);
    (!fits).then(|| cx.empty(OpId::CLONE, t.shape, t.dtype))
}

/// The same for a batch of matrices (prepare_batch_matrix_for_cublas): a stride of 0 along the batch is fine.
fn batch_copy(cx: &Cx, t: &Tensor) -> Option<Tensor> {
    let (r, c) = (t.size(1).max(1), t.size(2).max(1));
    let st = t.strides();
    let (s, f) = (st[1], st[2]);
    let fits = (f == 1 && s >= c) || (s == 1 && f >= r) || (t.is_contiguous() && s != 0 && f != 0);
    (!fits).then(|| cx.empty(OpId::CLONE, t.shape, t.dtype))
}

/// A product into a new contiguous result: result, copies of the operands (the second first, as a row-major result swaps them), workspaces.
fn product(cx: &Cx, op: OpId, shape: Shape, a: &Tensor, b: &Tensor, lt: bool) -> Tensor {
    let mut results = cx.kept(op, || smallvec![kernel(cx, op, shape, a, b, lt)]);
    results.pop().expect("a product has a result")
}

fn kernel(cx: &Cx, op: OpId, shape: Shape, a: &Tensor, b: &Tensor, lt: bool) -> Tensor {
    let y = cx.empty(op, shape, a.dtype);
    let copy = if shape.ndim() == 2 {
        matrix_copy
    } else {
        batch_copy
    };
    let second = copy(cx, b);
    let first = copy(cx, a);
    cx.matmul_work(op, a, b, &y);
    if lt {
        cx.gemm_lt();
    } else {
        cx.gemm();
    }
    drop(first);
    drop(second);
    y
}

/// The gradient of a matrix operand with the layout of that operand (FunctionsManual.cpp, mm_mat1_grad, mm_mat2_grad):
/// for a column-major operand the transpose is computed and turned, so the result is a view.
fn mm_grad(cx: &Cx, of: &Operand, a: &Tensor, b: &Tensor) -> Tensor {
    let (r, c) = (of.rows, of.columns);
    if of.column_major {
        turned(&product(cx, OpId::MM, Shape::new(&[c, r]), b, a, false))
    } else {
        product(cx, OpId::MM, Shape::new(&[r, c]), a, b, false)
    }
}

/// What the backward of a product needs to know of an operand.
struct Operand {
    rows: u64,
    columns: u64,
    column_major: bool,
}

const TURNED: u64 = 1;
const FIRST_COLUMN_MAJOR: u64 = 2;
const SECOND_COLUMN_MAJOR: u64 = 4;

/// The numbers that a node keeps of `x @ w`: sizes and layouts, and whether `w` is a turned view of the weight.
fn keep(x: &Tensor, w: &Tensor, turn: bool) -> Args {
    let column_major = |t: &Tensor| {
        let st = t.strides();
        st[0] == 1 && st[1] == t.size(0)
    };
    let bits = (turn as u64 * TURNED)
        | (column_major(x) as u64 * FIRST_COLUMN_MAJOR)
        | (column_major(w) as u64 * SECOND_COLUMN_MAJOR);
    [bits, x.size(0), x.size(1), w.size(1), 0, 0]
}

/// The operands of `x @ w` and whether the weight was turned.
fn kept(args: &Args) -> (Operand, Operand, bool) {
    let &[bits, rows, inner, columns, ..] = args;
    let operand = |rows, columns, bit| Operand {
        rows,
        columns,
        column_major: bits & bit != 0,
    };
    (
        operand(rows, inner, FIRST_COLUMN_MAJOR),
        operand(inner, columns, SECOND_COLUMN_MAJOR),
        bits & TURNED != 0,
    )
}

// ---- matrices -------------------------------------------------------------------------------------------------------

/// `addmm(b, flat(x), w or w.t())` and the view back, as one node. Edges: self (bias), mat1, mat2.
fn affine(cx: &Cx, b: &Tensor, x: &Tensor, w: &Tensor, turn: bool) -> Tensor {
    let x2 = if x.shape.ndim() == 2 {
        x.clone_no_edge()
    } else {
        reshape_raw(cx, x, flat(x))
    };
    let wm = if turn { turned(w) } else { w.clone_no_edge() };
    let mut n = cx.node(OpId::ADDMM, &[b, x, w]);
    n.args(keep(&x2, &wm, turn));
    let (need_x, need_w) = (n.need(1), n.need(2));
    n.save_if(cx, need_w, &x2);
    n.save_if(cx, need_x, &wm);
    let out = wm.size(1);
    // Blas.cpp, addmm_out_cuda_impl: the epilogue with a bias vector wants real matrices
    let lt = b.shape.ndim() == 1 && b.is_contiguous() && wm.size(0) > 1 && out > 1;
    let mut y = product(
        cx,
        OpId::ADDMM,
        Shape::new(&[x2.size(0), out]),
        &x2,
        &wm,
        lt,
    );
    if x.shape.ndim() != 2 {
        y = y.alias_contiguous(x.shape.with(-1, out));
    }
    drop(x2);
    n.finish(cx, y, |cx, s, g| -> Grads {
        let (mx, mw, turn) = kept(&s.args);
        let shape = Shape::new(&[mx.rows, mw.columns]);
        let g = reshaped_grad(cx, s, g, shape);
        let gx = s.need[1].then(|| {
            let t = mm_grad(cx, &mx, &g, s.tensor(1));
            let to = s.inputs[1].shape;
            if to.ndim() == 2 {
                t
            } else {
                t.alias_contiguous(to)
            }
        });
        let gw = s.need[2].then(|| {
            let t = mm_grad(cx, &mw, s.tensor(0), &g);
            if turn { turned(&t) } else { t }
        });
        smallvec![s.need[0].then_some(g), gx, gw]
    })
}

/// `flat(x) @ (w or w.t())` viewed back, as one node; a flattening that is no view copies first. Edges: self, mat2.
fn folded(cx: &Cx, x: &Tensor, w: &Tensor, turn: bool) -> Tensor {
    let x2 = if x.shape.ndim() == 2 {
        x.clone_no_edge()
    } else {
        reshape_raw(cx, x, flat(x))
    };
    let wm = if turn { turned(w) } else { w.clone_no_edge() };
    let mut n = cx.node(OpId::MM, &[x, w]);
    n.args(keep(&x2, &wm, turn));
    let (need_x, need_w) = (n.need(0), n.need(1));
    n.save_if(cx, need_x, &wm);
    n.save_if(cx, need_w, &x2);
    let y = product(
        cx,
        OpId::MM,
        Shape::new(&[x2.size(0), wm.size(1)]),
        &x2,
        &wm,
        false,
    );
    let y = if x.shape.ndim() == 2 {
        y
    } else {
        unsafe_view(y, x.shape.with(-1, wm.size(1)))
    };
    drop(x2);
    n.finish(cx, y, |cx, s, g| -> Grads {
        let (mx, mw, turn) = kept(&s.args);
        let shape = Shape::new(&[mx.rows, mw.columns]);
        let g = reshaped_grad(cx, s, g, shape);
        let gw = s.need[1].then(|| {
            let t = mm_grad(cx, &mw, s.tensor(1), &g);
            if turn { turned(&t) } else { t }
        });
        let gx = s.need[0].then(|| {
            let t = mm_grad(cx, &mx, &g, s.tensor(0));
            let to = s.inputs[0].shape;
            if to.ndim() == 2 {
                t
            } else {
                t.alias_contiguous(to)
            }
        });
        smallvec![gx, gw]
    })
}

/// LinearAlgebra.cpp, should_fold: always where the matrix wants a gradient, else only where flattening `x` is a view.
fn should_fold(cx: &Cx, x: &Tensor, w: &Tensor) -> bool {
    let n = x.shape.ndim();
    n <= 2
        || (w.requires_grad() && cx.grad_enabled())
        || x.numel() == 0
        || x.layout()
            .is_none_or(|st| (0..n - 2).all(|i| st[i] == st[i + 1] * x.shape.dims()[i + 1] as u64))
}

fn unbiased(cx: &Cx, x: &Tensor, w: &Tensor) -> Tensor {
    if should_fold(cx, x, w) {
        folded(cx, x, w, true)
    } else {
        batched(cx, x, &turned(w))
    }
}

/// `F.linear(x, w, bias)` with `w` [out, in] (Linear.cpp, linear).
pub fn linear(cx: &Cx, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Tensor {
    // the wrapper's arguments are evaluated last to first
    let b = bias.map(|b| cx.lower(b));
    let w = cx.lower(w);
    let x = cx.lower(x);
    match &b {
        None => unbiased(cx, &x, &w),
        Some(b) if x.shape.ndim() == 2 || x.is_contiguous() => affine(cx, b, &x, &w, true),
        Some(b) => {
            // matmul, then `output.add_(bias)`; a dispatch mode makes every tensor "subclass-like", which gets `add`
            let y = unbiased(cx, &x, &w);
            if cx.dispatch_mode() {
                add(cx, &y, b)
            } else {
                add_(cx, y, b)
            }
        }
    }
}

/// `addmm(bias, x, w)` with `w` [in, out] (transformers' Conv1D); an `x` of more dimensions is viewed as a matrix and the result back.
pub fn addmm(cx: &Cx, bias: &Tensor, x: &Tensor, w: &Tensor) -> Tensor {
    let w = cx.lower(w);
    let x = cx.lower(x);
    let b = cx.lower(bias);
    affine(cx, &b, &x, &w, false)
}

/// `torch.mm(a, b)`.
pub fn mm(cx: &Cx, a: &Tensor, b: &Tensor) -> Tensor {
    let b = cx.lower(b);
    let a = cx.lower(a);
    folded(cx, &a, &b, false)
}

// ---- batches --------------------------------------------------------------------------------------------------------

/// `a @ b` for matrices and batches of them (LinearAlgebra.cpp, _matmul_impl).
pub fn matmul(cx: &Cx, a: &Tensor, b: &Tensor) -> Tensor {
    let b = cx.lower(b);
    let a = cx.lower(a);
    debug_assert!(
        a.shape.ndim() >= 2 && b.shape.ndim() >= 2,
        "matmul of vectors is not covered"
    );
    if b.shape.ndim() == 2 && should_fold(cx, &a, &b) {
        folded(cx, &a, &b, false)
    } else {
        batched(cx, &a, &b)
    }
}

/// The dimensions before the last two.
fn lead(s: &Shape) -> SmallVec<[u64; MAX_DIMS]> {
    s.dims()[..s.ndim() - 2].iter().map(|d| *d as u64).collect()
}

/// `batch` with a matrix shape after it.
fn with_matrix(batch: &Shape, r: u64, c: u64) -> Shape {
    let mut v: SmallVec<[u64; MAX_DIMS]> = batch.dims().iter().map(|d| *d as u64).collect();
    v.extend([r, c]);
    Shape::new(&v)
}

/// The unfolded path of matmul: expand, reshape, bmm, `_unsafe_view`, each a node of its own, so that a gradient that had to be
/// copied is let go between them (LinearAlgebra.cpp, _matmul_impl).
pub(crate) fn batched(cx: &Cx, a: &Tensor, b: &Tensor) -> Tensor {
    let batch = Shape::new(&lead(&a.shape)).broadcast(&Shape::new(&lead(&b.shape)));
    let fold = |x: &Tensor| {
        let full = with_matrix(&batch, x.size(-2), x.size(-1));
        let x = if x.shape == full {
            x.clone()
        } else {
            super::expand(cx, x, full)
        };
        super::reshape(cx, &x, Shape::new(&[batch.numel(), x.size(-2), x.size(-1)]))
    };
    let a3 = fold(a);
    let b3 = fold(b);
    let y = bmm(cx, &a3, &b3);
    super::unsafe_view(cx, &y, with_matrix(&batch, a.size(-2), b.size(-1)))
}

/// `torch.bmm(a, b)`: its gradients are no views.
pub fn bmm(cx: &Cx, a: &Tensor, b: &Tensor) -> Tensor {
    let b = cx.lower(b);
    let a = cx.lower(a);
    let mut n = cx.node(OpId::BMM, &[&a, &b]);
    let (need_a, need_b) = (n.need(0), n.need(1));
    n.save_if(cx, need_a, &b);
    n.save_if(cx, need_b, &a);
    let y = product(
        cx,
        OpId::BMM,
        Shape::new(&[a.size(0), a.size(1), b.size(2)]),
        &a,
        &b,
        false,
    );
    n.finish(cx, y, |cx, s, g| -> Grads {
        let g = g[0].take().expect("gradient");
        let gb =
            s.need[1].then(|| product(cx, OpId::BMM, s.inputs[1].shape, s.tensor(1), &g, false));
        let ga =
            s.need[0].then(|| product(cx, OpId::BMM, s.inputs[0].shape, &g, s.tensor(0), false));
        smallvec![ga, gb]
    })
}

/// `torch.baddbmm(c, a, b, beta, alpha)`; a factor other than 1 multiplies the gradient into a new tensor.
/// Backward: batch1, batch2, self.
pub fn baddbmm(cx: &Cx, c: &Tensor, a: &Tensor, b: &Tensor, beta: f64, alpha: f64) -> Tensor {
    let b = cx.lower(b);
    let a = cx.lower(a);
    let c = cx.lower(c);
    let mut n = cx.node(OpId::BADDBMM, &[&c, &a, &b]);
    n.args([(beta != 1.0) as u64, (alpha != 1.0) as u64, 0, 0, 0, 0]);
    let (need_a, need_b) = (n.need(1), n.need(2));
    n.save_if(cx, need_b, &a);
    n.save_if(cx, need_a, &b);
    let y = product(
        cx,
        OpId::BADDBMM,
        Shape::new(&[a.size(0), a.size(1), b.size(2)]),
        &a,
        &b,
        false,
    );
    n.finish(cx, y, |cx, s, g| -> Grads {
        let g = g[0].take().expect("gradient");
        let scaled = |t: Tensor, by: u64| {
            if by == 0 {
                t
            } else {
                cx.empty_like(OpId::MUL, &t, t.dtype)
            }
        };
        let ga = s.need[1].then(|| {
            scaled(
                product(cx, OpId::BMM, s.inputs[1].shape, &g, s.tensor(1), false),
                s.args[1],
            )
        });
        let gb = s.need[2].then(|| {
            scaled(
                product(cx, OpId::BMM, s.inputs[2].shape, s.tensor(0), &g, false),
                s.args[1],
            )
        });
        let gc = s.need[0].then(|| scaled(g, s.args[0]));
        smallvec![gc, ga, gb]
    })
}
