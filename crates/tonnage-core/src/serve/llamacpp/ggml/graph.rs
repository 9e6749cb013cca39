//! Tensors and the graph: nodes in the order in which they are computed.

use super::Buft;
use tonnage_units::GgmlType;

/// A tensor of a [`Graph`].
pub type Id = u32;

/// Unary operators (`ggml_unary_op`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unary {
    Silu,
    Gelu,
    Relu,
    Sigmoid,
    Tanh,
    Softplus,
    Exp,
    Neg,
}

/// Operators, by ggml's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    None,
    Add,
    AddId,
    Sub,
    Mul,
    Div,
    Sqr,
    Sqrt,
    Scale,
    Clamp,
    Fill,
    Unary(Unary),
    Glu,
    Norm,
    RmsNorm,
    L2Norm,
    MulMat,
    MulMatId,
    GetRows,
    SetRows,
    Cpy,
    Cont,
    View,
    Reshape,
    Permute,
    Transpose,
    Rope,
    SoftMax,
    FlashAttn,
    Argsort,
    SumRows,
    Concat,
    Repeat,
    Pad,
    SsmConv,
    SsmScan,
    GatedDeltaNet,
}

impl Op {
    /// Only another look at the same bytes (`ggml_is_view_op`).
    pub fn is_view(self) -> bool {
        matches!(self, Op::View | Op::Reshape | Op::Permute | Op::Transpose)
    }
    /// May write over a source (`ggml_op_can_inplace`).
    pub fn in_place(self) -> bool {
        matches!(
            self,
            Op::Fill
                | Op::Scale
                | Op::Add
                | Op::AddId
                | Op::Sub
                | Op::Mul
                | Op::Div
                | Op::Sqr
                | Op::Sqrt
                | Op::Unary(_)
                | Op::Rope
                | Op::RmsNorm
                | Op::Clamp
                | Op::SoftMax
        )
    }
}

/// A tensor. Shape and strides as ggml has them: fastest dimension first, strides in bytes.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub op: Op,
    pub ty: GgmlType,
    pub ne: [u64; 4],
    pub nb: [u64; 4],
    /// Sources in order; absent optional ones are left out.
    pub src: Vec<Id>,
    /// The tensor whose bytes it shows; never itself a view.
    pub view: Option<Id>,
    pub input: bool,
    pub output: bool,
    /// Where it lives already: weights, caches, states. None: the allocator decides.
    pub buft: Option<Buft>,
    pub weight: bool,
    /// What it is, for the list of what is held; the layer, or -1.
    pub label: &'static str,
    pub layer: i32,
}

impl Tensor {
    /// `ggml_nbytes`.
    pub fn bytes(&self) -> u64 {
        if self.ne.contains(&0) {
            return 0;
        }
        let block = self.ty.block_len();
        let (first, from) = match block {
            1 => (self.ty.block_bytes(), 0),
            _ => (self.ne[0] * self.nb[0] / block, 1),
        };
        (from..4).fold(first, |sum, i| sum + (self.ne[i] - 1) * self.nb[i])
    }
    pub fn elements(&self) -> u64 {
        self.ne.iter().product()
    }
    /// `ggml_nrows`.
    pub fn rows(&self) -> u64 {
        self.ne[1] * self.ne[2] * self.ne[3]
    }
    pub fn is_contiguous(&self) -> bool {
        self.contiguous_from(0)
    }
    /// `ggml_is_contiguous_n`: packed from dimension `n` on, rows in themselves always.
    pub fn contiguous_from(&self, n: usize) -> bool {
        let mut next = self.ty.block_bytes();
        if self.ne[0] != self.ty.block_len() && self.nb[0] != next {
            return false;
        }
        next *= self.ne[0] / self.ty.block_len();
        for i in 1..4 {
            if self.ne[i] != 1 {
                if i > n {
                    if self.nb[i] != next {
                        return false;
                    }
                    next *= self.ne[i];
                } else {
                    next = self.ne[i] * self.nb[i];
                }
            }
        }
        true
    }
}

/// Strides of a packed tensor.
pub(super) fn packed(ty: GgmlType, ne: [u64; 4]) -> [u64; 4] {
    let mut nb = [ty.block_bytes(); 4];
    nb[1] = nb[0] * (ne[0] / ty.block_len());
    for i in 2..4 {
        nb[i] = nb[i - 1] * ne[i - 1];
    }
    nb
}

/// A graph in the making. Adding a tensor does not add it to the order: [`Graph::expand`] does.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub tensors: Vec<Tensor>,
    /// In the order of execution.
    pub nodes: Vec<Id>,
    /// Tensors without an operator, in the order in which they were met.
    pub leafs: Vec<Id>,
    /// How often each tensor is a source.
    pub uses: Vec<u32>,
    /// Backends that the builder asked for (`ggml_backend_sched_set_tensor_backend`).
    pub wished: Vec<(Id, usize)>,
    visited: Vec<bool>,
    pub(super) label: (&'static str, i32),
}

impl Graph {
    /// The tensor.
    pub fn get(&self, id: Id) -> &Tensor {
        &self.tensors[id as usize]
    }
    pub fn get_mut(&mut self, id: Id) -> &mut Tensor {
        &mut self.tensors[id as usize]
    }
    /// Labels the tensors that are made from now on.
    pub fn label(&mut self, label: &'static str, layer: i32) {
        self.label = (label, layer);
    }
    /// Adds a tensor.
    pub fn push(&mut self, t: Tensor) -> Id {
        let id = self.tensors.len() as Id;
        self.tensors.push(t);
        self.uses.push(0);
        self.visited.push(false);
        id
    }
    /// The tensor whose bytes `id` shows: itself or its root.
    pub fn root(&self, id: Id) -> Id {
        self.get(id).view.unwrap_or(id)
    }
    /// Where it lives, or the one that it is a view of.
    pub fn place(&self, id: Id) -> Option<Buft> {
        self.get(self.root(id)).buft
    }
    /// `ggml_build_forward_expand`: appends what `id` needs, then itself.
    pub fn expand(&mut self, id: Id) {
        // an explicit stack: hostile files must not choose the depth of recursion
        let mut stack = vec![(id, 0usize)];
        if std::mem::replace(&mut self.visited[id as usize], true) {
            return;
        }
        while let Some((node, next)) = stack.pop() {
            if let Some(&s) = self.tensors[node as usize].src.get(next) {
                stack.push((node, next + 1));
                self.uses[s as usize] += 1;
                if !std::mem::replace(&mut self.visited[s as usize], true) {
                    stack.push((s, 0));
                }
                continue;
            }
            match self.tensors[node as usize].op {
                Op::None => self.leafs.push(node),
                _ => self.nodes.push(node),
            }
        }
    }
}
