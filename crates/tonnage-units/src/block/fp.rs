//! Small floats with scales: FP8, MXFP4, NVFP4.
use super::{Builder, LayoutError};
use crate::ScalarType;

/// A float8 weight with its scales (transformers 5.17.0, integrations/finegrained_fp8.py `FP8Linear`
/// and integrations/fbgemm_fp8.py `FbgemmFp8Linear`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fp8 {
    pub scales: Fp8Scales,
    /// A static activation scale is stored too (fp32, one).
    pub static_activation: bool,
}

/// What has a scale of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fp8Scales {
    /// The weight: one fp32.
    Tensor,
    /// Each output row: fp32.
    Channel,
    /// Each block of `rows x cols` values, short ones at the edges included: fp32, or a byte for
    /// `ue8m0` scales.
    Block { rows: u64, cols: u64, e8m0: bool },
}

impl Fp8 {
    /// Blocks of 128 x 128 with fp32 scales, as DeepSeek-V3 has them.
    pub const BLOCK_128: Fp8 = Fp8::new(Fp8Scales::Block {
        rows: 128,
        cols: 128,
        e8m0: false,
    });

    /// Dynamic activation scales (none stored).
    pub const fn new(scales: Fp8Scales) -> Fp8 {
        Fp8 {
            scales,
            static_activation: false,
        }
    }

    pub(super) fn build(&self, out: &mut Builder<'_>) -> Result<(), LayoutError> {
        out.add("weight", ScalarType::F8E4M3, out.numel)?;
        match self.scales {
            Fp8Scales::Tensor => out.add("weight_scale", ScalarType::F32, 1)?,
            Fp8Scales::Channel => out.add("weight_scale", ScalarType::F32, out.rows)?,
            Fp8Scales::Block { rows, cols, e8m0 } => {
                if rows == 0 || cols == 0 {
                    return Err(out.setting("the block size", 0, "1 or more"));
                }
                // e8m0 has no scalar type here: a byte
                let dtype = if e8m0 {
                    ScalarType::U8
                } else {
                    ScalarType::F32
                };
                let blocks = (out.rows.div_ceil(rows), out.cols.div_ceil(cols));
                out.add2("weight_scale_inv", dtype, blocks)?;
            }
        }
        match self.static_activation {
            true => out.add("activation_scale", ScalarType::F32, 1),
            false => Ok(()),
        }
    }
}

/// gpt-oss experts: `blocks` `[rows, cols / 32, 16]` and `scales` `[rows, cols / 32]`, both bytes
/// (transformers 5.17.0, integrations/mxfp4.py `Mxfp4GptOssExperts`).
pub(super) fn mxfp4(out: &mut Builder<'_>) -> Result<(), LayoutError> {
    let blocks = out.whole("in_features", out.cols, 32)?;
    let blocks = blocks.checked_mul(out.rows).ok_or(out.overflow())?;
    out.add2("blocks", ScalarType::U8, (blocks, 16))?;
    out.add("scales", ScalarType::U8, blocks)
}

/// NVFP4 as NVIDIA's Model Optimizer stores it and vLLM reads it (`ModelOptNvFp4LinearMethod` in
/// model_executor/layers/quantization/modelopt.py): `weight` `[rows, cols / 2]` bytes,
/// `weight_scale` `[rows, cols / 16]` e4m3, `weight_scale_2` one fp32. What a kernel adds when it
/// loads (swizzled, padded scales) is not stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NvFp4 {
    /// A static `input_scale` is stored too (fp32, one).
    pub static_activation: bool,
}

impl NvFp4 {
    pub(super) fn build(&self, out: &mut Builder<'_>) -> Result<(), LayoutError> {
        let blocks = out.whole("in_features", out.cols, 16)?;
        let blocks = blocks.checked_mul(out.rows).ok_or(out.overflow())?;
        out.add2("weight", ScalarType::U8, (blocks, 8))?;
        out.add("weight_scale", ScalarType::F8E4M3, blocks)?;
        out.add("weight_scale_2", ScalarType::F32, 1)?;
        match self.static_activation {
            true => out.add("input_scale", ScalarType::F32, 1),
            false => Ok(()),
        }
    }
}
