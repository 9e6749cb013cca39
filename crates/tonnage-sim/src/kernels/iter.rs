//! TensorIterator's view of a reduction: dimension order, coalescing, 32-bit splitting.
//!
//! Source: PyTorch 2.11, `aten/src/ATen/TensorIterator.cpp` (`reorder_dimensions`, `coalesce_dimensions`,
//! `can_use_32bit_indexing`, `split`), `native/ReduceOpsUtils.h` (`review_reduce_result`).
use smallvec::SmallVec;

/// A small list of sizes or strides.
pub(crate) type Dims = SmallVec<[u64; 6]>;

/// Shape and strides (in elements) of an input, and where it begins in its storage.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Strided {
    /// Sizes.
    pub shape: Dims,
    /// Strides in elements.
    pub strides: Dims,
    /// Elements between the start of the (512-byte aligned) storage and the first element.
    pub offset: u64,
}

impl Strided {
    /// A contiguous tensor.
    pub fn contiguous(shape: &[u64]) -> Self {
        Self {
            shape: shape.into(),
            strides: contiguous_strides(shape),
            offset: 0,
        }
    }
    /// A strided tensor.
    pub fn new(shape: &[u64], strides: &[u64], offset: u64) -> Self {
        Self {
            shape: shape.into(),
            strides: strides.into(),
            offset,
        }
    }
    /// Elements.
    pub fn numel(&self) -> u64 {
        self.shape.iter().product()
    }
    /// Whether the elements lie in order without gaps (dimensions of size 1 do not matter).
    pub fn is_contiguous(&self) -> bool {
        let mut expect = 1;
        for (&n, &s) in self.shape.iter().zip(&self.strides).rev() {
            if n != 1 {
                if s != expect {
                    return false;
                }
                expect *= n;
            }
        }
        true
    }
    /// Whether the elements fill their storage without overlap, in any order of dimensions.
    pub fn is_dense(&self) -> bool {
        let mut order: SmallVec<[usize; 6]> = (0..self.shape.len()).collect();
        order.sort_by_key(|&d| (self.shape[d] < 2, self.strides[d]));
        let mut expect = 1;
        for d in order {
            if self.shape[d] < 2 {
                break;
            }
            if self.strides[d] != expect {
                return false;
            }
            expect *= self.shape[d];
        }
        true
    }
    /// The layout of a copy that keeps the format (`torch.preserve_format`).
    pub fn like(&self) -> Self {
        if self.is_dense() {
            Self {
                offset: 0,
                ..self.clone()
            }
        } else {
            Self::contiguous(&self.shape)
        }
    }
}

pub(crate) fn contiguous_strides(shape: &[u64]) -> Dims {
    let mut out: Dims = SmallVec::from_elem(1, shape.len());
    for d in (0..shape.len().saturating_sub(1)).rev() {
        out[d] = out[d + 1] * shape[d + 1].max(1);
    }
    out
}

/// A reduction's iterator: dimensions in iteration order (fastest first), strides in bytes.
#[derive(Clone, Debug)]
pub(crate) struct ReduceIter {
    pub shape: Dims,
    /// Strides of each result (they differ only in element size); 0 where a dimension is reduced.
    pub out: SmallVec<[Dims; 2]>,
    pub input: Dims,
    /// Byte offset of the input's first element from its storage.
    pub input_offset: u64,
    pub out_element: u64,
}

impl ReduceIter {
    /// Builds the iterator for reducing `dims` (bit i = dimension i) of `x`.
    /// `in_element` and `out_elements` are bytes per element of the input and of each result.
    pub fn new(
        x: &Strided,
        dims: u64,
        keepdim: bool,
        in_element: u64,
        out_elements: &[u64],
    ) -> Self {
        let n = x.shape.len();
        let mut kept: Dims = SmallVec::new();
        for (d, &size) in x.shape.iter().enumerate() {
            let reduced = dims >> d & 1 == 1;
            if !reduced {
                kept.push(size);
            } else if keepdim {
                kept.push(1);
            }
        }
        let strides = contiguous_strides(&kept);
        let mut base: Dims = SmallVec::new();
        let mut k = 0;
        for d in 0..n {
            let reduced = dims >> d & 1 == 1;
            if reduced && !keepdim {
                base.push(0);
                continue;
            }
            // a broadcast dimension (1 in the result, more in the input) gets stride 0
            let broadcast = reduced && x.shape[d] != 1;
            base.push(if broadcast { 0 } else { strides[k] });
            k += 1;
        }
        let mut it = Self {
            shape: x.shape.iter().rev().copied().collect(),
            out: out_elements
                .iter()
                .map(|e| base.iter().rev().map(|s| s * e).collect())
                .collect(),
            input: (0..n)
                .rev()
                .map(|d| {
                    let s = x.strides[d];
                    s * in_element
                })
                .collect(),
            input_offset: x.offset * in_element,
            out_element: out_elements[0],
        };
        it.reorder();
        it.coalesce();
        it
    }

    fn operands(&self) -> impl Iterator<Item = (bool, &Dims)> {
        self.out
            .iter()
            .map(|s| (true, s))
            .chain(std::iter::once((false, &self.input)))
    }

    /// 1: `a` must come after `b`; -1: before; 0: either.
    fn should_swap(&self, a: usize, b: usize) -> i8 {
        for (is_output, s) in self.operands() {
            let (sa, sb) = (s[a], s[b]);
            if is_output && (sa == 0) != (sb == 0) {
                return if sb == 0 { 1 } else { -1 };
            }
            if sa == 0 || sb == 0 {
                continue;
            }
            if sa < sb {
                return -1;
            }
            if sa > sb || self.shape[a] > self.shape[b] {
                return 1;
            }
        }
        0
    }

    fn reorder(&mut self) {
        let n = self.shape.len();
        // dimensions are already reversed (fastest first), so the permutation starts as the identity
        let mut perm: SmallVec<[usize; 6]> = (0..n).collect();
        for i in 1..n {
            let mut dim1 = i;
            for dim0 in (0..i).rev() {
                match self.should_swap(perm[dim0], perm[dim1]) {
                    1 => {
                        perm.swap(dim0, dim1);
                        dim1 = dim0;
                    }
                    -1 => break,
                    _ => {}
                }
            }
        }
        let apply = |d: &Dims| -> Dims { perm.iter().map(|&p| d[p]).collect() };
        self.shape = apply(&self.shape);
        self.input = apply(&self.input);
        for o in &mut self.out {
            *o = apply(o);
        }
    }

    fn coalesce(&mut self) {
        let n = self.shape.len();
        if n <= 1 {
            return;
        }
        let mut prev = 0;
        for dim in 1..n {
            let (s0, s1) = (self.shape[prev], self.shape[dim]);
            let join = s0 == 1 || s1 == 1 || self.operands().all(|(_, s)| s0 * s[prev] == s[dim]);
            if join {
                if s0 == 1 {
                    self.take_strides(prev, dim);
                }
                self.shape[prev] = s0 * s1;
            } else {
                prev += 1;
                if prev != dim {
                    self.take_strides(prev, dim);
                    self.shape[prev] = self.shape[dim];
                }
            }
        }
        self.shape.truncate(prev + 1);
        self.input.truncate(prev + 1);
        for o in &mut self.out {
            o.truncate(prev + 1);
        }
    }

    fn take_strides(&mut self, to: usize, from: usize) {
        self.input[to] = self.input[from];
        for o in &mut self.out {
            o[to] = o[from];
        }
    }

    pub fn numel(&self) -> u64 {
        self.shape.iter().product()
    }

    pub fn num_reduce_dims(&self) -> usize {
        self.out[0].iter().filter(|&&s| s == 0).count()
    }

    pub fn num_outputs(&self) -> u64 {
        self.shape
            .iter()
            .zip(&self.out[0])
            .filter(|(n, s)| **s != 0 || **n == 0)
            .map(|(n, _)| n)
            .product()
    }

    pub fn fits_32_bit(&self) -> bool {
        const MAX: u64 = i32::MAX as u64;
        self.numel() <= MAX
            && self.operands().all(|(_, s)| {
                self.shape
                    .iter()
                    .zip(s)
                    .map(|(n, s)| n.saturating_sub(1) * s)
                    .sum::<u64>()
                    < MAX
            })
    }

    /// Splits the dimension of the largest extent; returns the first half and keeps the second.
    pub fn split(&mut self) -> Self {
        let (mut best, mut dim) = (-1i128, 0);
        for d in (0..self.shape.len()).rev() {
            if self.shape[d] == 0 {
                continue;
            }
            for (_, s) in self.operands() {
                let extent = i128::from(self.shape[d] - 1) * i128::from(s[d]);
                if extent > best {
                    (best, dim) = (extent, d);
                }
            }
        }
        let first = self.shape[dim] / 2;
        let mut copy = self.clone();
        copy.shape[dim] = first;
        self.shape[dim] -= first;
        self.input_offset += first * self.input[dim];
        copy
    }
}
