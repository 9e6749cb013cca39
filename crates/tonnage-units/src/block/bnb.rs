//! bitsandbytes 0.50.2: 4-bit weights, LLM.int8() weights, 8-bit optimizer states.
use super::{Builder, LayoutError, Place, Storage};
use crate::ScalarType;

/// A 4-bit weight of bitsandbytes (`quantize_4bit` in functional.py, kernel in backends/cuda/ops.py).
///
/// Stored: `weight` of `(n + 1) / 2` bytes, `absmax` for each block, a code table of 16 floats. With
/// double quantisation `absmax` is one byte a block and has an fp32 `nested_absmax` for 256 of them,
/// a table of 256 floats and an fp32 offset. Any number of values is stored: the last block may be short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bnb4 {
    pub kind: Bnb4Kind,
    /// Values in a block: 32, 64 (the default), 128, ... 4096.
    pub blocksize: u64,
    /// `bnb_4bit_use_double_quant` (`compress_statistics`).
    pub double_quant: bool,
    /// `bnb_4bit_quant_storage`: the dtype that holds the packed values (`U8` by default).
    pub quant_storage: ScalarType,
}

/// The code of a 4-bit value; both have the same storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bnb4Kind {
    Nf4,
    Fp4,
}

impl Bnb4 {
    /// Blocks of 64, stored in bytes.
    pub const fn new(kind: Bnb4Kind, double_quant: bool) -> Bnb4 {
        Bnb4 {
            kind,
            blocksize: 64,
            double_quant,
            quant_storage: ScalarType::U8,
        }
    }

    pub(super) fn build(&self, out: &mut Builder<'_>) -> Result<(), LayoutError> {
        if !(self.blocksize.is_power_of_two() && (32..=4096).contains(&self.blocksize)) {
            let allowed = "32, 64, 128, 256, 512, 1024, 2048 or 4096";
            return Err(out.setting("the block size", self.blocksize, allowed));
        }
        let packed = out.numel.div_ceil(2);
        // the library truncates here, and would lose values
        let words = out.whole("packed bytes", packed, self.quant_storage.size())?;
        let blocks = out.numel.div_ceil(self.blocksize);
        out.add("weight", self.quant_storage, words)?;
        if self.double_quant {
            out.add("absmax", ScalarType::U8, blocks)?;
            out.add("quant_map", ScalarType::F32, 16)?;
            out.add("nested_absmax", ScalarType::F32, blocks.div_ceil(256))?;
            out.add("nested_quant_map", ScalarType::F32, 256)?;
            out.add("nested_offset", ScalarType::F32, 1)
        } else {
            out.add("absmax", ScalarType::F32, blocks)?;
            out.add("quant_map", ScalarType::F32, 16)
        }
    }
}

/// `Int8Params`: the int8 weight and `SCB`, the fp32 absmax of each row (nn/modules.py `_quantize`).
pub(super) fn llm_int8(out: &mut Builder<'_>) -> Result<(), LayoutError> {
    out.add("weight", ScalarType::I8, out.numel)?;
    out.add("SCB", ScalarType::F32, out.rows)
}

/// The state of one parameter in a bitsandbytes optimizer (`init_state` in optim/optimizer.py and
/// optim/ademamix.py).
///
/// At `bits` 8: a byte a value and moment, an fp32 absmax for 256 of them, and a table of 256 floats
/// which all parameters of the optimizer share. A parameter below `min_8bit_size` has fp32 moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OptimizerState {
    pub kind: StateKind,
    /// 8 or 32.
    pub bits: u64,
    /// `is_paged`: moments of 100,000 values or more are managed memory, outside the allocator.
    pub paged: bool,
    /// Values below which a parameter's moments stay fp32; 4096 by default.
    pub min_8bit_size: u64,
}

/// Which moments an optimizer keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StateKind {
    /// `Optimizer1State`: Lion, SGD with momentum, RMSprop, Adagrad, LARS.
    One,
    /// `Optimizer2State`: Adam, AdamW, LAMB.
    Two,
    /// AdEMAMix: a first moment of twice the parameter, and a second one.
    AdEmaMix,
}

impl OptimizerState {
    /// 8 bits, not paged, fp32 below 4096 values.
    pub const fn new(kind: StateKind) -> OptimizerState {
        OptimizerState {
            kind,
            bits: 8,
            paged: false,
            min_8bit_size: 4096,
        }
    }

    /// The tensors of a parameter of `numel` values, in the order in which they are made. Those of
    /// [`Place::Shared`] are made for the first 8-bit parameter only.
    ///
    /// # Errors
    /// [`LayoutError::Setting`] for `bits`, [`LayoutError::Overflow`].
    pub fn storages(&self, numel: u64) -> Result<Vec<Storage>, LayoutError> {
        let overflow = LayoutError::Overflow {
            rows: 1,
            cols: numel,
        };
        let double = numel.checked_mul(2).ok_or(overflow.clone())?;
        double.checked_mul(4).ok_or(overflow)?; // the largest storage below
        if self.bits != 8 && self.bits != 32 {
            return Err(LayoutError::Setting {
                format: "a bitsandbytes optimizer".to_owned(),
                setting: "optim_bits",
                value: self.bits,
                allowed: "8 or 32",
            });
        }
        let quantized = self.bits == 8 && numel >= self.min_8bit_size;
        // F.get_paged from 1e5 values on; absmax and tables are never paged
        let moments = match self.paged && numel >= 100_000 {
            true => Place::Managed,
            false => Place::Device,
        };
        let moment = |name, numel| Storage {
            name,
            dtype: if quantized {
                ScalarType::U8
            } else {
                ScalarType::F32
            },
            numel,
            place: moments,
        };
        let float = |name, numel, place| Storage {
            name,
            dtype: ScalarType::F32,
            numel,
            place,
        };
        let blocks = numel.div_ceil(256);
        let two = self.kind != StateKind::One;
        let first = match self.kind {
            StateKind::AdEmaMix => (double, blocks * 2),
            StateKind::One | StateKind::Two => (numel, blocks),
        };

        let mut states = vec![moment("state1", first.0)];
        let mut scales = vec![float("absmax1", first.1, Place::Device)];
        let mut maps = vec![float("qmap1", 256, Place::Shared)];
        if two {
            states.push(moment("state2", numel));
            scales.push(float("absmax2", blocks, Place::Device));
            maps.push(float("qmap2", 256, Place::Shared));
        }
        if !quantized {
            return Ok(states);
        }
        // AdEMAMix makes its scales before its moments
        let (then, last) = match self.kind {
            StateKind::AdEmaMix => (scales, states),
            StateKind::One | StateKind::Two => (states, scales),
        };
        maps.extend(then);
        maps.extend(last);
        Ok(maps)
    }
}
