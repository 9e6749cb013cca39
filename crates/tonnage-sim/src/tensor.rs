//! A tensor handle: shape, strides and dtype over a storage it keeps alive.

use crate::autograd::Edge;
use crate::context::CxInner;
use crate::shape::{Shape, Strides, is_contiguous, is_non_overlapping_and_dense};
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
    pub shape: Shape,
    pub strides: Strides,
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
    /// True where autograd follows this tensor.
    #[inline]
    pub fn requires_grad(&self) -> bool {
        self.edge.is_some()
    }
    #[inline]
    pub fn is_contiguous(&self) -> bool {
        is_contiguous(&self.shape, &self.strides)
    }
    #[inline]
    pub fn is_dense(&self) -> bool {
        is_non_overlapping_and_dense(&self.shape, &self.strides)
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
            shape: self.shape,
            strides: self.strides,
            dtype: self.dtype,
            view: self.view,
            leaf: false,
            edge: None,
        }
    }
    /// A view of the same storage with other sizes and strides and no history.
    #[inline]
    pub(crate) fn alias(&self, shape: Shape, strides: Strides) -> Tensor {
        Tensor {
            storage: self.storage.clone(),
            shape,
            strides,
            dtype: self.dtype,
            view: true,
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
