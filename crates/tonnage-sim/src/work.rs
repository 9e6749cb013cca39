//! Arithmetic of the simulated operators: what a step computes, beside what it keeps. Off unless [`Cx::count_work`] turns it on;
//! events do not depend on it (tonnage-plan, tests/work.rs).
//!
//! Counted where the kernel would run, so recomputed operators count again and kept results do not. A product of [m, k] and [k, n] is
//! 2 m n k operations and moves its operands and its result once. Attention is 4 B H S K d forward and 10 B H S K d backward (five
//! products for two), the masked half included: who knows that a mask is causal halves it.

use crate::Cx;
use crate::ops::op::OpId;
use crate::tensor::Tensor;
use tonnage_units::ScalarType;

/// The kinds of arithmetic that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WorkKind {
    /// Matrix products and convolutions.
    Product,
    /// Fused attention kernels; the unfused ones are products and pointwise operators.
    Attention,
    /// Packed weights unpacked, or multiplied as they are: only bytes.
    Unpack,
}

/// One operator's arithmetic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OpWork {
    /// Events so far: the operator ran before event number `at`.
    pub at: usize,
    pub op: OpId,
    pub kind: WorkKind,
    /// The type of the operands.
    pub dtype: ScalarType,
    /// Multiplications and additions.
    pub flops: u64,
    /// Bytes read and written at least.
    pub bytes: u64,
}

impl Cx {
    /// Counts arithmetic from here on, or not.
    pub fn count_work(&self, on: bool) {
        self.0.counting.set(on);
    }

    /// Is arithmetic counted?
    #[inline]
    pub fn counts_work(&self) -> bool {
        self.0.counting.get() && !self.muted()
    }

    /// An operator ran.
    #[cold]
    fn push_work(&self, op: OpId, kind: WorkKind, dtype: ScalarType, flops: u64, bytes: u64) {
        let at = self.event_count();
        self.0.work.borrow_mut().push(OpWork {
            at,
            op,
            kind,
            dtype,
            flops,
            bytes,
        });
    }

    /// An operator of `flops` operations that moves `bytes`.
    #[inline]
    pub fn work(&self, op: OpId, kind: WorkKind, dtype: ScalarType, flops: u64, bytes: u64) {
        if self.counts_work() {
            self.push_work(op, kind, dtype, flops, bytes);
        }
    }

    /// `batch` products of [m, k] and [k, n].
    #[inline]
    pub fn product_work(&self, op: OpId, dtype: ScalarType, [batch, m, n, k]: [u64; 4]) {
        if self.counts_work() {
            let elements = m * k + k * n + m * n;
            self.push_work(
                op,
                WorkKind::Product,
                dtype,
                2 * batch * m * n * k,
                batch * elements * dtype.size(),
            );
        }
    }

    /// `a @ b` or a batch of it into `y`. A backward pass hands operands over as they lie in memory, turned or not, so the numbers of
    /// elements decide: (m k)(k n)(m n) is (m n k) squared.
    #[inline]
    pub fn matmul_work(&self, op: OpId, a: &Tensor, b: &Tensor, y: &Tensor) {
        if self.counts_work() {
            let batch = if y.shape.ndim() == 2 { 1 } else { y.size(0) };
            let n = |t: &Tensor| u128::from(t.numel());
            let product = (n(a) * n(b)).saturating_mul(n(y)) / u128::from(batch.max(1));
            let flops = u64::try_from(product.isqrt()).unwrap_or(u64::MAX / 2) * 2;
            let bytes = a.nbytes() + b.nbytes() + y.nbytes();
            self.push_work(op, WorkKind::Product, a.dtype, flops, bytes);
        }
    }

    /// Fused attention of q [B, H, S, d] over k [B, K, L, d] (or with positions before heads: only the numbers of elements matter).
    #[inline]
    pub fn attention_work(&self, op: OpId, q: &Tensor, kv_len: u64, backward: bool) {
        if self.counts_work() {
            let flops = if backward { 10 } else { 4 } * q.numel() * kv_len;
            let bytes = if backward { 8 } else { 4 } * q.nbytes();
            self.push_work(op, WorkKind::Attention, q.dtype, flops, bytes);
        }
    }

    /// What was counted.
    pub fn take_work(&self) -> Vec<OpWork> {
        self.0.work.take()
    }
}
