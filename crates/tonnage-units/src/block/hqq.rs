//! HQQ: groups of values with a floating scale and zero.
use super::{Builder, LayoutError};
use crate::ScalarType;

/// An HQQ weight (hqq e0b1d00e, hqq/core/quantize.py and bitpack.py), without the deprecated
/// quantised scales and zeros.
///
/// The weight is laid out as groups (`axis` 1: `[n / group, group]`, 0: `[group, n / group]`) and
/// packed along the first dimension: two, four or eight rows into a byte, ten 3-bit rows into an
/// int32. Each group has a `scale` and a `zero` in the compute dtype.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hqq {
    pub bits: HqqBits,
    /// Values in a group, a multiple of 8; None is a whole row (`axis` 1) or column (0).
    pub group_size: Option<u64>,
    pub axis: Axis,
    /// `compute_dtype`, that of the scales and zeros; `F16` by default.
    pub compute: ScalarType,
}

/// Bits of a value. 5 and 6 are stored in 8, 1.58 in 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HqqBits {
    B8,
    B6,
    B5,
    B4,
    B3,
    B2,
    B1_58,
    B1,
}

/// The dimension that the values of a group run along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Axis {
    /// `axis=0`.
    Zero,
    /// `axis=1`, the default.
    #[default]
    One,
}

impl HqqBits {
    pub(super) const NAMES: [(HqqBits, &'static str); 8] = [
        (HqqBits::B8, "8"),
        (HqqBits::B6, "6"),
        (HqqBits::B5, "5"),
        (HqqBits::B4, "4"),
        (HqqBits::B3, "3"),
        (HqqBits::B2, "2"),
        (HqqBits::B1_58, "1.58"),
        (HqqBits::B1, "1"),
    ];
}

impl Hqq {
    /// Axis 1, fp16 scales and zeros.
    pub const fn new(bits: HqqBits, group_size: Option<u64>) -> Hqq {
        Hqq {
            bits,
            group_size,
            axis: Axis::One,
            compute: ScalarType::F16,
        }
    }

    pub(super) fn build(&self, out: &mut Builder<'_>) -> Result<(), LayoutError> {
        // the grouped matrix: its rows are what is packed together
        let (rows, cols) = match self.group_size {
            None => (out.rows, out.cols),
            Some(group) => {
                if group == 0 || !group.is_multiple_of(8) {
                    return Err(out.setting("the group size", group, "a multiple of 8"));
                }
                let groups = out.whole("values", out.numel, group)?;
                match self.axis {
                    Axis::One => (groups, group),
                    Axis::Zero => (group, groups),
                }
            }
        };
        let groups = match self.axis {
            Axis::One => rows,
            Axis::Zero => cols,
        };
        let (dtype, packed) = match self.bits {
            HqqBits::B8 | HqqBits::B6 | HqqBits::B5 => (ScalarType::U8, rows),
            HqqBits::B4 => (ScalarType::U8, out.whole("packed rows", rows, 2)?),
            HqqBits::B3 => (ScalarType::I32, rows.div_ceil(10)),
            HqqBits::B2 | HqqBits::B1_58 => (ScalarType::U8, out.whole("packed rows", rows, 4)?),
            HqqBits::B1 => (ScalarType::U8, out.whole("packed rows", rows, 8)?),
        };
        out.add2("W_q", dtype, (packed, cols))?;
        out.add("scale", self.compute, groups)?;
        out.add("zero", self.compute, groups)
    }
}
