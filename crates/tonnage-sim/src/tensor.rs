//! A tensor handle: shape, strides and dtype over a storage it keeps alive.

use crate::autograd::Edge;
use crate::context::CxInner;
use crate::shape::{Shape, Strides, is_contiguous, is_non_overlapping_and_dense, view_strides};
use std::rc::Rc;
use tonnage_units::ScalarType;

/// The id of a storage that was made while the context was muted: it leaves no events.
pub(crate) const GHOST: u32 = u32::MAX;

/// A block of device memory. Dropping the last handle frees it, which pushes the free event.
pub struct Storage {
    pub(crate) id: u32,
    pub(crate) bytes: u64,
    pub(crate) cx: Rc<CxInner>,
}

impl Storage {
    /// Number of the allocation, from 0.
    pub fn id(&self) -> u32 {
        self.id
    }
    /// Bytes asked for.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Storage {
    #[inline]
    fn drop(&mut self) {
        if self.id != GHOST {
            self.cx.push_free(self.id, self.bytes);
        }
    }
}

/// A shape-only device tensor. Cloning shares the storage, as a second Python reference does.
#[derive(Clone)]
pub struct Tensor {
    pub storage: Rc<Storage>,
    /// Strides that are not row-major without gaps; most tensors have none, which keeps them small.
    pub(crate) layout: Option<Rc<Strides>>,
    pub shape: Shape,
    pub dtype: ScalarType,
    /// Made by a view operator: the framework's view keeps its base alive, so it is never the sole owner of its storage.
    pub view: bool,
    /// A leaf that wants a gradient (a parameter), as against the output of a node.
    pub leaf: bool,
    /// The node whose output this is; None where no gradient is wanted.
    pub edge: Option<Edge>,
}

impl Tensor {
    /// Elements.
    #[inline]
    pub fn numel(&self) -> u64 {
        self.shape.numel()
    }
    /// Bytes of the elements (not of the storage, which a view shares).
    #[inline]
    pub fn nbytes(&self) -> u64 {
        self.numel() * self.dtype.size()
    }
    /// Size of a dimension, negative from the end.
    #[inline]
    pub fn size(&self, i: isize) -> u64 {
        self.shape.size(i)
    }
    /// Strides in elements.
    #[inline]
    pub fn strides(&self) -> Strides {
        match &self.layout {
            None => self.shape.contiguous_strides(),
            Some(st) => **st,
        }
    }
    /// The layout where it is not row-major without gaps.
    #[inline]
    pub(crate) fn layout(&self) -> Option<&Rc<Strides>> {
        self.layout.as_ref()
    }
    /// True where autograd follows this tensor.
    #[inline]
    pub fn requires_grad(&self) -> bool {
        self.edge.is_some()
    }
    #[inline]
    pub fn is_contiguous(&self) -> bool {
        (self.layout.as_deref()).is_none_or(|st| is_contiguous(&self.shape, st))
    }
    #[inline]
    pub fn is_dense(&self) -> bool {
        (self.layout.as_deref()).is_none_or(|st| is_non_overlapping_and_dense(&self.shape, st))
    }
    /// The same data without its history.
    #[inline]
    pub fn detach(&self) -> Tensor {
        Tensor {
            edge: None,
            leaf: false,
            ..self.clone_no_edge()
        }
    }
    #[inline]
    pub(crate) fn clone_no_edge(&self) -> Tensor {
        Tensor {
            storage: self.storage.clone(),
            layout: self.layout.clone(),
            shape: self.shape,
            dtype: self.dtype,
            view: self.view,
            leaf: false,
            edge: None,
        }
    }
    /// A view of the same storage with other sizes and strides and no history.
    #[inline]
    pub(crate) fn alias(&self, shape: Shape, strides: Strides) -> Tensor {
        let mut t = self.alias_contiguous(shape);
        t.set_strides(strides);
        t
    }
    /// A row-major view of the same storage with other sizes and no history.
    #[inline]
    pub(crate) fn alias_contiguous(&self, shape: Shape) -> Tensor {
        Tensor {
            storage: self.storage.clone(),
            layout: None,
            shape,
            dtype: self.dtype,
            view: true,
            leaf: false,
            edge: None,
        }
    }
    /// `shape` as a view of this tensor's storage; None where that needs a copy.
    #[inline]
    pub(crate) fn viewed(&self, shape: Shape) -> Option<Tensor> {
        match &self.layout {
            None => Some(self.alias_contiguous(shape)),
            Some(st) => view_strides(&self.shape, st, &shape).map(|st| self.alias(shape, st)),
        }
    }
    /// The same data, row-major under another shape of as many elements; no new view.
    #[inline]
    pub fn shaped(mut self, shape: Shape) -> Tensor {
        self.shape = shape;
        self.layout = None;
        self
    }
    /// The same data with other sizes and strides; no new view.
    pub fn laid_out(mut self, shape: Shape, strides: Strides) -> Tensor {
        self.shape = shape;
        self.set_strides(strides);
        self
    }
    #[inline]
    fn set_strides(&mut self, strides: Strides) {
        let n = self.shape.ndim();
        let plain = strides[..n] == self.shape.contiguous_strides()[..n];
        self.layout = (!plain).then(|| Rc::new(strides));
    }
    /// A tensor of its own block, row-major.
    #[inline]
    pub(crate) fn new(storage: Rc<Storage>, shape: Shape, dtype: ScalarType) -> Tensor {
        Tensor {
            storage,
            layout: None,
            shape,
            dtype,
            view: false,
            leaf: false,
            edge: None,
        }
    }
    /// This handle is the only owner of its storage and no view of another tensor.
    #[inline]
    pub(crate) fn sole_owner(&self) -> bool {
        !self.view && Rc::strong_count(&self.storage) == 1
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "#{} {:?} {:?}",
            self.storage.id,
            self.dtype,
            self.shape.dims()
        )
    }
}
