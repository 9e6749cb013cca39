//! Sizes and strides, and the rules by which the framework derives them.

/// The most dimensions a tensor has here.
pub const MAX_DIMS: usize = 6;

/// Sizes of a tensor in elements, up to [`MAX_DIMS`] dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// 1 beyond the last dimension.
    d: [u32; MAX_DIMS],
    n: u8,
}

impl Shape {
    /// From sizes; panics on more than [`MAX_DIMS`] dimensions or a size of 2^32 (readers reject those before).
    #[inline]
    pub fn new(s: &[u64]) -> Shape {
        let mut d = [1; MAX_DIMS];
        for (i, x) in s.iter().enumerate() {
            debug_assert!(*x <= u32::MAX as u64);
            d[i] = *x as u32;
        }
        Shape {
            d,
            n: s.len() as u8,
        }
    }
    #[inline]
    pub fn dims(&self) -> &[u32] {
        &self.d[..self.n as usize]
    }
    /// Number of dimensions.
    #[inline]
    pub fn ndim(&self) -> usize {
        self.n as usize
    }
    /// Elements.
    #[inline]
    pub fn numel(&self) -> u64 {
        self.dims().iter().map(|x| *x as u64).product()
    }
    /// Size of dimension `i`; negative counts from the end, as in Python.
    #[inline]
    pub fn size(&self, i: isize) -> u64 {
        self.d[self.index(i)] as u64
    }
    /// The index a possibly negative dimension names.
    #[inline]
    pub fn index(&self, i: isize) -> usize {
        let k = if i < 0 { i + self.n as isize } else { i };
        debug_assert!(
            (0..self.n as isize).contains(&k),
            "dimension {i} of {:?}",
            self.dims()
        );
        k as usize
    }
    /// The same shape with dimension `i` set to `v`.
    #[inline]
    pub fn with(&self, i: isize, v: u64) -> Shape {
        let mut s = *self;
        s.d[self.index(i)] = v as u32;
        s
    }
    /// Without dimension `i`.
    pub fn without(&self, i: isize) -> Shape {
        let k = self.index(i);
        let mut v = [0u64; MAX_DIMS];
        let mut n = 0;
        for (j, x) in self.dims().iter().enumerate() {
            if j != k {
                v[n] = *x as u64;
                n += 1;
            }
        }
        Shape::new(&v[..n])
    }
    /// With a dimension of size `v` inserted before `i` (0..=ndim).
    pub fn insert(&self, i: usize, v: u64) -> Shape {
        let mut o = [0u64; MAX_DIMS];
        let n = self.ndim();
        for (j, slot) in o.iter_mut().enumerate().take(n + 1) {
            *slot = match j.cmp(&i) {
                std::cmp::Ordering::Less => self.d[j] as u64,
                std::cmp::Ordering::Equal => v,
                std::cmp::Ordering::Greater => self.d[j - 1] as u64,
            };
        }
        Shape::new(&o[..n + 1])
    }
    /// NumPy broadcasting of two shapes.
    pub fn broadcast(&self, o: &Shape) -> Shape {
        if self == o {
            return *self;
        }
        let n = self.ndim().max(o.ndim());
        let mut v = [1u64; MAX_DIMS];
        for (i, slot) in v.iter_mut().enumerate().take(n) {
            let a = if i + self.ndim() >= n {
                self.d[i + self.ndim() - n]
            } else {
                1
            };
            let b = if i + o.ndim() >= n {
                o.d[i + o.ndim() - n]
            } else {
                1
            };
            debug_assert!(
                a == b || a == 1 || b == 1,
                "cannot broadcast {:?} and {:?}",
                self.dims(),
                o.dims()
            );
            *slot = (if a == 1 { b } else { a }) as u64;
        }
        Shape::new(&v[..n])
    }
    /// Row-major strides.
    #[inline]
    pub fn contiguous_strides(&self) -> Strides {
        let mut s = [0u64; MAX_DIMS];
        let mut k = 1u64;
        for i in (0..self.ndim()).rev() {
            s[i] = k;
            k *= (self.d[i] as u64).max(1);
        }
        s
    }
}

/// Strides in elements, one a dimension.
pub type Strides = [u64; MAX_DIMS];

/// Row-major without gaps (dimensions of size 1 may have any stride).
pub fn is_contiguous(shape: &Shape, st: &Strides) -> bool {
    let mut k = 1u64;
    for i in (0..shape.ndim()).rev() {
        let d = shape.dims()[i] as u64;
        if d != 1 {
            if st[i] != k {
                return false;
            }
            k *= d;
        }
    }
    true
}

/// Some permutation of a contiguous tensor: every element once, no gaps.
pub fn is_non_overlapping_and_dense(shape: &Shape, st: &Strides) -> bool {
    if is_contiguous(shape, st) {
        return true;
    }
    let mut v: smallvec::SmallVec<[(u64, u64); MAX_DIMS]> = shape
        .dims()
        .iter()
        .zip(st)
        .filter(|(d, _)| **d != 1)
        .map(|(d, s)| (*s, *d as u64))
        .collect();
    v.sort_unstable();
    let mut k = 1;
    for (s, d) in v {
        if s != k {
            return false;
        }
        k *= d;
    }
    true
}

/// The strides of `shape` as a view of storage laid out as (`from`, `st`), or None where a copy is needed
/// (torch 2.11, aten/src/ATen/TensorUtils.cpp, computeStride).
pub fn view_strides(from: &Shape, st: &Strides, shape: &Shape) -> Option<Strides> {
    let n = from.numel();
    if n == 0 || from.ndim() == 0 {
        return Some(shape.contiguous_strides());
    }
    let mut out = [0u64; MAX_DIMS];
    let mut view_d = shape.ndim() as isize - 1;
    let old = from.dims();
    let mut chunk_base = st[old.len() - 1];
    let (mut tensor_numel, mut view_numel) = (1u64, 1u64);
    for tensor_d in (0..old.len()).rev() {
        tensor_numel *= old[tensor_d] as u64;
        let chunk_ends = tensor_d == 0
            || (old[tensor_d - 1] != 1 && st[tensor_d - 1] != tensor_numel * chunk_base);
        if chunk_ends {
            while view_d >= 0 && (view_numel < tensor_numel || shape.dims()[view_d as usize] == 1) {
                out[view_d as usize] = view_numel * chunk_base;
                view_numel *= shape.dims()[view_d as usize] as u64;
                view_d -= 1;
            }
            if view_numel != tensor_numel {
                return None;
            }
            if tensor_d > 0 {
                chunk_base = st[tensor_d - 1];
                tensor_numel = 1;
                view_numel = 1;
            }
        }
    }
    (view_d == -1).then_some(out)
}

/// The layout of an elementwise operator's output over operands broadcast to `shape`
/// (torch 2.11, aten/src/ATen/TensorIterator.cpp, reorder_dimensions and allocate_or_resize_outputs).
pub fn elementwise_strides(shape: &Shape, operands: &[(&Shape, &Strides)]) -> Strides {
    // every operand contiguous of the full shape, or one that is dense: the common cases, decided without sorting
    if operands
        .iter()
        .all(|(s, st)| *s == shape && is_contiguous(s, st))
    {
        return shape.contiguous_strides();
    }
    if let [(s, st), rest @ ..] = operands
        && *s == shape
        && is_non_overlapping_and_dense(s, st)
        && rest
            .iter()
            .all(|(s2, st2)| *s2 == shape && same_strides(shape, st, st2))
    {
        return **st;
    }
    let n = shape.ndim();
    let expand = |s: &Shape, st: &Strides| -> Strides {
        let mut o = [0u64; MAX_DIMS];
        let off = n - s.ndim();
        for i in 0..s.ndim() {
            o[i + off] = if s.dims()[i] == 1 && shape.dims()[i + off] != 1 {
                0
            } else {
                st[i]
            };
        }
        o
    };
    let ops: smallvec::SmallVec<[Strides; 4]> =
        operands.iter().map(|(s, st)| expand(s, st)).collect();
    // perm[0] is the fastest dimension; insertion sort with ambiguous comparisons, as the iterator does
    let mut perm: smallvec::SmallVec<[usize; MAX_DIMS]> = (0..n).rev().collect();
    let should_swap = |d0: usize, d1: usize| -> i32 {
        for st in &ops {
            let (s0, s1) = (st[d0], st[d1]);
            if s0 == 0 || s1 == 0 {
                continue;
            }
            if s0 < s1 {
                return -1;
            }
            if s0 > s1 {
                return 1;
            }
            let (t0, t1) = (shape.dims()[d0], shape.dims()[d1]);
            if t0 > t1 {
                return 1;
            }
        }
        0
    };
    for i in 1..n {
        let mut d1 = i;
        for d0 in (0..i).rev() {
            let c = should_swap(perm[d0], perm[d1]);
            if c > 0 {
                perm.swap(d0, d1);
                d1 = d0;
            } else if c < 0 {
                break;
            }
        }
    }
    let mut out = [0u64; MAX_DIMS];
    let mut k = 1u64;
    for &d in &perm {
        out[d] = k;
        k *= shape.dims()[d] as u64;
    }
    out
}

/// Equal strides on every dimension larger than 1.
pub fn same_strides(shape: &Shape, a: &Strides, b: &Strides) -> bool {
    (0..shape.ndim()).all(|i| shape.dims()[i] == 1 || a[i] == b[i])
}
