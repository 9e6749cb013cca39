//! How a weight or an optimizer state is really stored: a list of tensors, each with its bytes.
//!
//! A weight is `rows x cols` = `[out_features, in_features]`, row-major as torch keeps it. The list
//! has every tensor that stays alive for it; a bias is not part of it. Each is an allocation of its
//! own, so an allocator's rounding applies to each, not to the sum.
mod bnb;
mod error;
mod fp;
mod gptq;
mod hqq;
mod text;

pub use bnb::{Bnb4, Bnb4Kind, OptimizerState, StateKind};
pub use error::LayoutError;
pub use fp::{Fp8, Fp8Scales, NvFp4};
pub use gptq::{Awq, AwqKernel, Gptq};
pub use hqq::{Axis, Hqq, HqqBits};

use crate::{Bytes, GgmlType, ScalarType};

/// One stored tensor: its name in the library that stores it, its element type and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Storage {
    pub name: &'static str,
    /// Packed formats are stored as the integers that hold them; ggml blocks as `U8`.
    pub dtype: ScalarType,
    pub numel: u64,
    pub place: Place,
}

/// Where a stored tensor is, and how often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Place {
    /// On the device, one for each weight.
    #[default]
    Device,
    /// On the device, one for all tensors of the optimizer that list it.
    Shared,
    /// Managed memory outside the framework's allocator, paged between host and device.
    Managed,
}

impl Storage {
    /// Its bytes, before any allocator's rounding. Checked when it was made: no overflow.
    pub const fn bytes(&self) -> Bytes {
        Bytes(self.numel.saturating_mul(self.dtype.size()))
    }
}

/// A stored format of a weight. [`Dtype::storages`] is its one question.
///
/// As text: a torch dtype (`bfloat16`, `bf16`), `nf4`, `nf4-dq`, `fp4-b128`, `llm-int8`,
/// `gptq-4bit-g128`, `awq-4bit-g128`, `hqq-4bit-g64`, `fp8-tensor`, `fp8-channel`, `fp8-128x128`,
/// `mxfp4`, `nvfp4`, `ggml:q4_K`. Printing gives text that parses back to the same format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// A plain tensor.
    Scalar(ScalarType),
    /// bitsandbytes NF4 or FP4.
    Bnb4(Bnb4),
    /// bitsandbytes LLM.int8(): int8 rows and an fp32 scale of each.
    LlmInt8,
    /// GPTQ.
    Gptq(Gptq),
    /// AWQ.
    Awq(Awq),
    /// HQQ.
    Hqq(Hqq),
    /// float8 weights with scales.
    Fp8(Fp8),
    /// MXFP4 as gpt-oss stores it: 16 bytes and an e8m0 scale for 32 values.
    MxFp4,
    /// NVFP4: 16-value blocks with e4m3 scales and one fp32 scale.
    NvFp4(NvFp4),
    /// A GGUF tensor.
    Ggml(GgmlType),
}

impl Dtype {
    /// The tensors that store a weight of `rows x cols`.
    ///
    /// # Errors
    /// [`LayoutError::NotDivisible`] where the format needs whole groups or words,
    /// [`LayoutError::Setting`] for a setting that the library refuses, [`LayoutError::Overflow`],
    /// [`LayoutError::Ggml`].
    pub fn storages(&self, rows: u64, cols: u64) -> Result<Vec<Storage>, LayoutError> {
        let mut out = Builder::new(self, rows, cols)?;
        match self {
            Dtype::Scalar(t) => out.add("weight", *t, out.numel)?,
            Dtype::Bnb4(f) => f.build(&mut out)?,
            Dtype::LlmInt8 => bnb::llm_int8(&mut out)?,
            Dtype::Gptq(f) => f.build(&mut out)?,
            Dtype::Awq(f) => f.build(&mut out)?,
            Dtype::Hqq(f) => f.build(&mut out)?,
            Dtype::Fp8(f) => f.build(&mut out)?,
            Dtype::MxFp4 => fp::mxfp4(&mut out)?,
            Dtype::NvFp4(f) => f.build(&mut out)?,
            Dtype::Ggml(t) => out.add("weight", ScalarType::U8, t.bytes(cols, rows)?)?,
        }
        Ok(out.storages)
    }

    /// The tensors that store `numel` values of no particular shape.
    ///
    /// # Errors
    /// [`LayoutError::NeedsMatrix`] where the bytes depend on rows and columns; otherwise as
    /// [`Dtype::storages`].
    pub fn storages_flat(&self, numel: u64) -> Result<Vec<Storage>, LayoutError> {
        match self {
            Dtype::Scalar(_) | Dtype::Bnb4(_) | Dtype::Ggml(_) | Dtype::MxFp4 | Dtype::NvFp4(_) => {
                self.storages(1, numel)
            }
            Dtype::Fp8(f) if f.scales == Fp8Scales::Tensor => self.storages(1, numel),
            _ => Err(LayoutError::NeedsMatrix {
                format: self.to_string(),
            }),
        }
    }

    /// The sum of [`Dtype::storages`].
    pub fn bytes(&self, rows: u64, cols: u64) -> Result<Bytes, LayoutError> {
        let storages = self.storages(rows, cols)?;
        Bytes::checked_sum(storages.iter().map(Storage::bytes))
            .ok_or(LayoutError::Overflow { rows, cols })
    }

    /// The scalar type of a plain tensor; None for every packed or scaled format.
    pub const fn as_scalar(&self) -> Option<ScalarType> {
        match self {
            Dtype::Scalar(t) => Some(*t),
            _ => None,
        }
    }
}

impl From<ScalarType> for Dtype {
    fn from(t: ScalarType) -> Dtype {
        Dtype::Scalar(t)
    }
}
impl From<GgmlType> for Dtype {
    fn from(t: GgmlType) -> Dtype {
        Dtype::Ggml(t)
    }
}

/// A list of storages in the making, with checked sizes.
struct Builder<'a> {
    format: &'a Dtype,
    rows: u64,
    cols: u64,
    numel: u64,
    storages: Vec<Storage>,
}

impl<'a> Builder<'a> {
    fn new(format: &'a Dtype, rows: u64, cols: u64) -> Result<Self, LayoutError> {
        let numel = rows
            .checked_mul(cols)
            .ok_or(LayoutError::Overflow { rows, cols })?;
        Ok(Builder {
            format,
            rows,
            cols,
            numel,
            storages: Vec::with_capacity(6),
        })
    }

    fn add(
        &mut self,
        name: &'static str,
        dtype: ScalarType,
        numel: u64,
    ) -> Result<(), LayoutError> {
        numel.checked_mul(dtype.size()).ok_or(self.overflow())?;
        self.storages.push(Storage {
            name,
            dtype,
            numel,
            place: Place::Device,
        });
        Ok(())
    }

    /// As [`Builder::add`] for a matrix.
    fn add2(
        &mut self,
        name: &'static str,
        dtype: ScalarType,
        (a, b): (u64, u64),
    ) -> Result<(), LayoutError> {
        let numel = a.checked_mul(b).ok_or(self.overflow())?;
        self.add(name, dtype, numel)
    }

    fn overflow(&self) -> LayoutError {
        LayoutError::Overflow {
            rows: self.rows,
            cols: self.cols,
        }
    }

    /// `value / by`, which must be whole.
    fn whole(&self, what: &'static str, value: u64, by: u64) -> Result<u64, LayoutError> {
        match by != 0 && value.is_multiple_of(by) {
            true => Ok(value / by),
            false => Err(LayoutError::NotDivisible {
                format: self.format.to_string(),
                what,
                value,
                by,
            }),
        }
    }

    fn setting(&self, setting: &'static str, value: u64, allowed: &'static str) -> LayoutError {
        LayoutError::Setting {
            format: self.format.to_string(),
            setting,
            value,
            allowed,
        }
    }
}
