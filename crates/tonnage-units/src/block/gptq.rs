//! GPTQ and AWQ: packed 32-bit words, zero points and scales of groups of inputs.
use super::{Builder, LayoutError};
use crate::ScalarType;

/// A GPTQ weight (AutoGPTQ 9f7d3707, auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py).
///
/// Stored, for `in` columns and `out` rows: `qweight` `[in / 32 * bits, out]` int32, `qzeros`
/// `[groups, out / 32 * bits]` int32, `scales` `[groups, out]`, `g_idx` `[in]` int32 (with and
/// without act-order). The last group may be short; both sizes must be multiples of 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gptq {
    /// 2, 3, 4 or 8.
    pub bits: u64,
    /// Inputs in a group; None (`group_size` -1) is all of them.
    pub group_size: Option<u64>,
    /// The dtype of the scales: the weight's before quantisation, `F16` by default.
    pub scales: ScalarType,
}

impl Gptq {
    /// fp16 scales.
    pub const fn new(bits: u64, group_size: Option<u64>) -> Gptq {
        Gptq {
            bits,
            group_size,
            scales: ScalarType::F16,
        }
    }

    pub(super) fn build(&self, out: &mut Builder<'_>) -> Result<(), LayoutError> {
        let bits = self.bits;
        if !matches!(bits, 2 | 3 | 4 | 8) {
            return Err(out.setting("bits", bits, "2, 3, 4 or 8"));
        }
        let group = group(self.group_size, out)?;
        let words = |out: &Builder<'_>, what, n| out.whole(what, n, 32).map(|w| w * bits);
        let in_words = words(out, "in_features", out.cols)?;
        let out_words = words(out, "out_features", out.rows)?;
        let groups = out.cols.div_ceil(group);
        out.add2("qweight", ScalarType::I32, (in_words, out.rows))?;
        out.add2("qzeros", ScalarType::I32, (groups, out_words))?;
        out.add2("scales", self.scales, (groups, out.rows))?;
        out.add("g_idx", ScalarType::I32, out.cols)
    }
}

/// The group size that applies to this weight; never zero.
fn group(size: Option<u64>, out: &Builder<'_>) -> Result<u64, LayoutError> {
    match size {
        Some(0) => Err(out.setting("the group size", 0, "1 or more, or `gall` for one group")),
        Some(n) => Ok(n),
        None => Ok(out.cols.max(1)),
    }
}

/// An AWQ weight: 4 bits, fp16 scales (AutoAWQ 88e4c76b, awq/modules/linear/gemm.py and gemv.py).
///
/// Stored by the GEMM kernel: `qweight` `[in, out / 8]` int32, `qzeros` `[groups, out / 8]` int32,
/// `scales` `[groups, out]`. The GEMV kernel packs along the inputs and pads the groups of `qzeros`
/// and `scales` for its alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Awq {
    pub kernel: AwqKernel,
    /// Inputs in a group; None (-1) is all of them.
    pub group_size: Option<u64>,
}

/// `version` of an AWQ config.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AwqKernel {
    #[default]
    Gemm,
    /// Groups of 32, 64, or 128 and more only.
    Gemv,
}

impl Awq {
    pub(super) fn build(&self, out: &mut Builder<'_>) -> Result<(), LayoutError> {
        const PACK: u64 = 8; // 4-bit values in 32
        let group = group(self.group_size, out)?;
        let groups = out.whole("in_features", out.cols, group)?;
        let out_words = out.whole("out_features", out.rows, PACK)?;
        match self.kernel {
            AwqKernel::Gemm => {
                out.add2("qweight", ScalarType::I32, (out.cols, out_words))?;
                out.add2("qzeros", ScalarType::I32, (groups, out_words))?;
                out.add2("scales", ScalarType::F16, (groups, out.rows))
            }
            AwqKernel::Gemv => {
                // calculate_zeros_width
                let step = match group {
                    128.. => 1,
                    64 => 2,
                    32 => 4,
                    _ => {
                        return Err(out.setting(
                            "the group size",
                            group,
                            "32, 64, or 128 and more",
                        ));
                    }
                };
                let in_words = out.whole("in_features", out.cols, PACK)?;
                let width = groups.div_ceil(PACK).div_ceil(step) * step;
                out.add2("qweight", ScalarType::I32, (out.rows, in_words))?;
                out.add2("qzeros", ScalarType::I32, (out.rows, width))?;
                let padded = width.checked_mul(PACK).ok_or(out.overflow())?;
                out.add2("scales", ScalarType::F16, (out.rows, padded))
            }
        }
    }
}
