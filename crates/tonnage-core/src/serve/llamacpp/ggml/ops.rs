//! The operators' shapes (ggml/src/ggml.c, one function each there).

use super::Buft;
use super::graph::{Graph, Id, Op, Tensor, Unary, packed};
use tonnage_units::GgmlType::{self, F32, I32};

impl Graph {
    fn new_tensor(&mut self, op: Op, ty: GgmlType, ne: [u64; 4], src: &[Id]) -> Id {
        let (label, layer) = self.label;
        self.push(Tensor {
            op,
            ty,
            ne,
            nb: packed(ty, ne),
            src: src.to_vec(),
            view: None,
            input: false,
            output: false,
            buft: None,
            weight: false,
            label,
            layer,
        })
    }
    /// An input of the graph (`ggml_set_input`).
    pub fn input(&mut self, label: &'static str, ty: GgmlType, ne: [u64; 4]) -> Id {
        let id = self.new_tensor(Op::None, ty, ne, &[]);
        let t = self.get_mut(id);
        (t.input, t.label, t.layer) = (true, label, -1);
        id
    }
    /// A tensor that lives in a buffer already: a weight, a cache, a state.
    pub fn external(&mut self, ty: GgmlType, ne: [u64; 4], buft: Buft, weight: bool) -> Id {
        let id = self.new_tensor(Op::None, ty, ne, &[]);
        let t = self.get_mut(id);
        (t.buft, t.weight) = (Some(buft), weight);
        id
    }
    /// A tensor that shows the bytes of `a`, with any operator.
    pub(super) fn view_of(&mut self, op: Op, a: Id, ne: [u64; 4], nb: [u64; 4], src: &[Id]) -> Id {
        let root = self.root(a);
        let ty = self.get(a).ty;
        let id = self.new_tensor(op, ty, ne, src);
        let t = self.get_mut(id);
        (t.nb, t.view) = (nb, Some(root));
        id
    }
    fn dup(&mut self, op: Op, a: Id, src: &[Id]) -> Id {
        let (ty, ne) = (self.get(a).ty, self.get(a).ne);
        self.new_tensor(op, ty, ne, src)
    }

    pub fn add(&mut self, a: Id, b: Id) -> Id {
        self.dup(Op::Add, a, &[a, b])
    }
    pub fn sub(&mut self, a: Id, b: Id) -> Id {
        self.dup(Op::Sub, a, &[a, b])
    }
    pub fn mul(&mut self, a: Id, b: Id) -> Id {
        self.dup(Op::Mul, a, &[a, b])
    }
    pub fn div(&mut self, a: Id, b: Id) -> Id {
        self.dup(Op::Div, a, &[a, b])
    }
    /// `ggml_add_id`: a bias of the chosen experts.
    pub fn add_id(&mut self, a: Id, b: Id, ids: Id) -> Id {
        self.dup(Op::AddId, a, &[a, b, ids])
    }
    pub fn scale(&mut self, a: Id) -> Id {
        self.dup(Op::Scale, a, &[a])
    }
    pub fn scale_inplace(&mut self, a: Id) -> Id {
        let (ne, nb) = (self.get(a).ne, self.get(a).nb);
        self.view_of(Op::Scale, a, ne, nb, &[a])
    }
    pub fn clamp(&mut self, a: Id) -> Id {
        self.dup(Op::Clamp, a, &[a])
    }
    pub fn fill(&mut self, a: Id) -> Id {
        self.dup(Op::Fill, a, &[a])
    }
    pub fn unary(&mut self, op: Unary, a: Id) -> Id {
        self.dup(Op::Unary(op), a, &[a])
    }
    pub fn norm(&mut self, a: Id) -> Id {
        self.dup(Op::Norm, a, &[a])
    }
    pub fn rms_norm(&mut self, a: Id) -> Id {
        self.dup(Op::RmsNorm, a, &[a])
    }
    pub fn l2_norm(&mut self, a: Id) -> Id {
        self.dup(Op::L2Norm, a, &[a])
    }
    /// `ggml_*glu_split`: gate and up apart.
    pub fn glu_split(&mut self, gate: Id, up: Id) -> Id {
        self.dup(Op::Glu, gate, &[gate, up])
    }
    /// `ggml_*glu`: gate and up in one tensor.
    pub fn glu(&mut self, a: Id) -> Id {
        let (ty, mut ne) = (self.get(a).ty, self.get(a).ne);
        ne[0] /= 2;
        self.new_tensor(Op::Glu, ty, ne, &[a])
    }
    pub fn mul_mat(&mut self, a: Id, b: Id) -> Id {
        let (x, y) = (self.get(a).ne, self.get(b).ne);
        self.new_tensor(Op::MulMat, F32, [x[1], y[1], y[2], y[3]], &[a, b])
    }
    pub fn mul_mat_id(&mut self, experts: Id, b: Id, ids: Id) -> Id {
        let (x, y, i) = (self.get(experts).ne, self.get(b).ne, self.get(ids).ne);
        self.new_tensor(Op::MulMatId, F32, [x[1], i[0], y[2], 1], &[experts, b, ids])
    }
    pub fn get_rows(&mut self, a: Id, rows: Id) -> Id {
        let (x, y) = (self.get(a), self.get(rows));
        let ty = if x.ty == I32 { I32 } else { F32 };
        let ne = [x.ne[0], y.ne[0], y.ne[1], y.ne[2]];
        self.new_tensor(Op::GetRows, ty, ne, &[a, rows])
    }
    pub fn set_rows(&mut self, into: Id, from: Id, rows: Id) -> Id {
        let (ne, nb) = (self.get(into).ne, self.get(into).nb);
        self.view_of(Op::SetRows, into, ne, nb, &[from, rows, into])
    }
    pub fn cpy(&mut self, from: Id, into: Id) -> Id {
        let (ne, nb) = (self.get(into).ne, self.get(into).nb);
        self.view_of(Op::Cpy, into, ne, nb, &[from, into])
    }
    /// `ggml_cast`: a copy that has itself as its second source.
    pub fn cast(&mut self, a: Id, ty: GgmlType) -> Id {
        let ne = self.get(a).ne;
        let id = self.new_tensor(Op::Cpy, ty, ne, &[a]);
        self.get_mut(id).src.push(id);
        id
    }
    pub fn cont(&mut self, a: Id) -> Id {
        self.dup(Op::Cont, a, &[a])
    }
    pub fn cont_as(&mut self, a: Id, ne: [u64; 4]) -> Id {
        let ty = self.get(a).ty;
        self.new_tensor(Op::Cont, ty, ne, &[a])
    }
    pub fn reshape(&mut self, a: Id, ne: [u64; 4]) -> Id {
        let ty = self.get(a).ty;
        self.view_of(Op::Reshape, a, ne, packed(ty, ne), &[a])
    }
    /// A view with the strides of dimensions 1 to 3. The offset plays no part in memory.
    pub fn view(&mut self, a: Id, ne: [u64; 4], nb: [u64; 3]) -> Id {
        let first = self.get(a).nb[0];
        self.view_of(Op::View, a, ne, [first, nb[0], nb[1], nb[2]], &[a])
    }
    /// `ggml_view_1d`.
    pub fn view_1d(&mut self, a: Id, n: u64) -> Id {
        let ty = self.get(a).ty;
        let nb = packed(ty, [n, 1, 1, 1]);
        self.view_of(Op::View, a, [n, 1, 1, 1], nb, &[a])
    }
    /// `ggml_view_2d`: rows of `n` at stride `nb1`.
    pub fn view_2d(&mut self, a: Id, n: u64, rows: u64, nb1: u64) -> Id {
        let all = nb1.saturating_mul(rows);
        self.view(a, [n, rows, 1, 1], [nb1, all, all])
    }
    /// `ggml_view_3d`.
    pub fn view_3d(&mut self, a: Id, ne: [u64; 3], nb1: u64, nb2: u64) -> Id {
        let all = nb2.saturating_mul(ne[2]);
        self.view(a, [ne[0], ne[1], ne[2], 1], [nb1, nb2, all])
    }
    /// Dimension `i` becomes dimension `axes[i]`.
    pub fn permute(&mut self, a: Id, axes: [usize; 4]) -> Id {
        let (mut ne, mut nb) = ([0; 4], [0; 4]);
        let t = self.get(a);
        for i in 0..4 {
            ne[axes[i]] = t.ne[i];
            nb[axes[i]] = t.nb[i];
        }
        self.view_of(Op::Permute, a, ne, nb, &[a])
    }
    pub fn transpose(&mut self, a: Id) -> Id {
        let t = self.get(a);
        let (mut ne, mut nb) = (t.ne, t.nb);
        ne.swap(0, 1);
        nb.swap(0, 1);
        self.view_of(Op::Transpose, a, ne, nb, &[a])
    }
    pub fn rope(&mut self, a: Id, positions: Id, factors: Option<Id>) -> Id {
        let mut src = vec![a, positions];
        src.extend(factors);
        self.dup(Op::Rope, a, &src)
    }
    pub fn soft_max(&mut self, a: Id, mask: Option<Id>, sinks: Option<Id>) -> Id {
        let mut src = vec![a];
        src.extend(mask);
        src.extend(sinks);
        self.dup(Op::SoftMax, a, &src)
    }
    pub fn flash_attn(&mut self, q: Id, k: Id, v: Id, mask: Id, sinks: Option<Id>) -> Id {
        let (a, b) = (self.get(q).ne, self.get(v).ne);
        let mut src = vec![q, k, v, mask];
        src.extend(sinks);
        self.new_tensor(Op::FlashAttn, F32, [b[0], a[2], a[1], a[3]], &src)
    }
    /// The `k` largest of each row: a sort and a view of it.
    pub fn argsort_top_k(&mut self, a: Id, k: u64) -> Id {
        let ne = self.get(a).ne;
        let sorted = self.new_tensor(Op::Argsort, I32, ne, &[a]);
        let nb = self.get(sorted).nb;
        self.view(sorted, [k, ne[1], ne[2], ne[3]], [nb[1], nb[2], nb[3]])
    }
    pub fn sum_rows(&mut self, a: Id) -> Id {
        let (ty, mut ne) = (self.get(a).ty, self.get(a).ne);
        ne[0] = 1;
        self.new_tensor(Op::SumRows, ty, ne, &[a])
    }
    pub fn concat(&mut self, a: Id, b: Id, dim: usize) -> Id {
        let (ty, mut ne) = (self.get(a).ty, self.get(a).ne);
        ne[dim] += self.get(b).ne[dim];
        self.new_tensor(Op::Concat, ty, ne, &[a, b])
    }
    pub fn repeat(&mut self, a: Id, ne: [u64; 4]) -> Id {
        let ty = self.get(a).ty;
        self.new_tensor(Op::Repeat, ty, ne, &[a])
    }
    pub fn pad_to(&mut self, a: Id, ne: [u64; 4]) -> Id {
        self.new_tensor(Op::Pad, F32, ne, &[a])
    }
    pub fn ssm_conv(&mut self, sx: Id, c: Id) -> Id {
        let (x, w) = (self.get(sx).ne, self.get(c).ne);
        let ne = [w[1], (x[0] + 1).saturating_sub(w[0]), x[2], 1];
        self.new_tensor(Op::SsmConv, F32, ne, &[sx, c])
    }
    /// `src`: state, x, dt, A, B, C, ids. The outputs and the last states in one tensor.
    pub fn ssm_scan(&mut self, src: [Id; 7]) -> Id {
        let (s, ids) = (self.get(src[0]).ne, self.get(src[6]).ne[0]);
        let n = self.get(src[1]).elements() + s[0] * s[1] * s[2] * ids;
        self.new_tensor(Op::SsmScan, F32, [n, 1, 1, 1], &src)
    }
    /// `src`: q, k, v, gate, beta, state.
    pub fn gated_delta_net(&mut self, src: [Id; 6]) -> Id {
        let v = self.get(src[2]).ne;
        let ne = [v[0] * v[1], v[2] * v[3] + v[0] * v[3], 1, 1];
        self.new_tensor(Op::GatedDeltaNet, F32, ne, &src)
    }
}
