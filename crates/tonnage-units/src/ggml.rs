//! The types of GGUF tensors.
//!
//! Block sizes and bytes: ggml d99724f2 (2026-08-21), `enum ggml_type` in include/ggml.h,
//! `type_traits` in src/ggml.c and the `static_assert`s of src/ggml-common.h. The bytes are written
//! here as the parts of each block struct.
use crate::suggest::nearest;
use std::fmt;
use std::str::FromStr;

macro_rules! types {
    ($($variant:ident = $id:literal, $name:literal, $block:literal, [$($part:expr),+];)+) => {
        /// A ggml type: values in blocks of [`GgmlType::block_len`], each of
        /// [`GgmlType::block_bytes`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum GgmlType { $(
            #[doc = concat!("`", $name, "`, ", $block, " values in a block.")]
            $variant = $id,
        )+ }

        impl GgmlType {
            /// Every type, by id.
            pub const ALL: &'static [GgmlType] = &[$(GgmlType::$variant),+];

            /// The type of an id of a GGUF tensor info.
            pub fn from_id(id: u32) -> Result<GgmlType, GgmlError> {
                match id {
                    $($id => Ok(GgmlType::$variant),)+
                    _ => Err(removed_id(id)),
                }
            }
            /// ggml's own spelling: `q4_K`, `iq2_xxs`, `f16`.
            pub const fn name(self) -> &'static str {
                match self { $(GgmlType::$variant => $name,)+ }
            }
            /// Values in a block. A row must be a multiple of it.
            pub const fn block_len(self) -> u64 {
                match self { $(GgmlType::$variant => $block,)+ }
            }
            /// Bytes of a block.
            pub const fn block_bytes(self) -> u64 {
                match self { $(GgmlType::$variant => 0 $(+ $part)+,)+ }
            }
        }
    };
}

// parts in struct order; QK_K = 256, a half is 2 bytes
types! {
    F32 = 0, "f32", 1, [4];
    F16 = 1, "f16", 1, [2];
    Q4_0 = 2, "q4_0", 32, [2, 32 / 2];
    Q4_1 = 3, "q4_1", 32, [2, 2, 32 / 2];
    Q5_0 = 6, "q5_0", 32, [2, 4, 32 / 2];
    Q5_1 = 7, "q5_1", 32, [2, 2, 4, 32 / 2];
    Q8_0 = 8, "q8_0", 32, [2, 32];
    Q8_1 = 9, "q8_1", 32, [2, 2, 32];
    Q2K = 10, "q2_K", 256, [256 / 16, 256 / 4, 2, 2];
    Q3K = 11, "q3_K", 256, [256 / 8, 256 / 4, 12, 2];
    Q4K = 12, "q4_K", 256, [2, 2, 12, 256 / 2];
    Q5K = 13, "q5_K", 256, [2, 2, 12, 256 / 8, 256 / 2];
    Q6K = 14, "q6_K", 256, [256 / 2, 256 / 4, 256 / 16, 2];
    Q8K = 15, "q8_K", 256, [4, 256, 256 / 16 * 2];
    Iq2Xxs = 16, "iq2_xxs", 256, [2, 256 / 8 * 2];
    Iq2Xs = 17, "iq2_xs", 256, [2, 256 / 8 * 2, 256 / 32];
    Iq3Xxs = 18, "iq3_xxs", 256, [2, 3 * 256 / 8];
    Iq1S = 19, "iq1_s", 256, [2, 256 / 8, 256 / 32 * 2];
    Iq4Nl = 20, "iq4_nl", 32, [2, 32 / 2];
    Iq3S = 21, "iq3_s", 256, [2, 256 / 4, 256 / 32, 256 / 8, 256 / 64];
    Iq2S = 22, "iq2_s", 256, [2, 256 / 4, 256 / 32, 256 / 32];
    Iq4Xs = 23, "iq4_xs", 256, [2, 2, 256 / 64, 256 / 2];
    I8 = 24, "i8", 1, [1];
    I16 = 25, "i16", 1, [2];
    I32 = 26, "i32", 1, [4];
    I64 = 27, "i64", 1, [8];
    F64 = 28, "f64", 1, [8];
    Iq1M = 29, "iq1_m", 256, [256 / 8, 256 / 16, 256 / 32];
    Bf16 = 30, "bf16", 1, [2];
    Tq1_0 = 34, "tq1_0", 256, [(256 - 4 * 256 / 64) / 5, 256 / 64, 2];
    Tq2_0 = 35, "tq2_0", 256, [256 / 4, 2];
    Mxfp4 = 39, "mxfp4", 32, [1, 32 / 2];
    Nvfp4 = 40, "nvfp4", 64, [64 / 16, 64 / 2];
    Q1_0 = 41, "q1_0", 128, [2, 128 / 8];
    Q2_0 = 42, "q2_0", 64, [2, 64 / 4];
}

/// A ggml type that cannot be named or sized.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GgmlError {
    /// An id no version of ggml had (a newer file than this table, or a damaged one).
    #[error("unknown ggml type id {0} (known: 0 to 42)")]
    UnknownId(u32),
    /// An id or a name that ggml has removed.
    #[error("ggml type {name} was removed from ggml; {instead}")]
    Removed {
        name: &'static str,
        instead: &'static str,
    },
    /// A name that is not a type's.
    #[error("unknown ggml type `{input}`{}", .suggestion.map_or(String::new(), |s| format!("; did you mean {s}?")))]
    UnknownName {
        input: String,
        suggestion: Option<&'static str>,
    },
    /// A name of a file's mixture of types, such as `Q4_K_M`.
    #[error(
        "`{input}` is a mixture of types for a whole file, not a tensor's type; most of its tensors are {mostly}"
    )]
    Mixture { input: String, mostly: &'static str },
    /// A row that is not whole blocks.
    #[error(
        "a row of {row} values is not whole blocks of {block} ({name}); llama.cpp stores such a tensor in another type"
    )]
    Row {
        name: &'static str,
        row: u64,
        block: u64,
    },
    /// More bytes than 64 bits count.
    #[error("{rows} rows of {row} values are more bytes than 64 bits count")]
    Overflow { row: u64, rows: u64 },
}

const REPACK: &str = "re-quantise to Q4_0, which llama.cpp repacks when it loads";
const REPACK_NL: &str = "re-quantise to IQ4_NL, which llama.cpp repacks when it loads";
/// Removed types: id, name, what to use.
const REMOVED: [(u32, &str, &str); 8] = [
    (4, "q4_2", "re-quantise to Q4_0"),
    (5, "q4_3", "re-quantise to Q4_1"),
    (31, "q4_0_4_4", REPACK),
    (32, "q4_0_4_8", REPACK),
    (33, "q4_0_8_8", REPACK),
    (36, "iq4_nl_4_4", REPACK_NL),
    (37, "iq4_nl_4_8", REPACK_NL),
    (38, "iq4_nl_8_8", REPACK_NL),
];

fn removed_id(id: u32) -> GgmlError {
    match REMOVED.iter().find(|(r, ..)| *r == id) {
        Some((_, name, instead)) => GgmlError::Removed { name, instead },
        None => GgmlError::UnknownId(id),
    }
}

impl GgmlType {
    /// The id in a GGUF tensor info.
    pub const fn id(self) -> u32 {
        self as u32
    }
    /// A type of packed blocks rather than of single values.
    pub const fn is_quantized(self) -> bool {
        self.block_len() > 1
    }
    /// Bits a value takes, scales included: 4.5 for `q4_K`.
    pub const fn bits_per_value(self) -> f64 {
        self.block_bytes() as f64 * 8.0 / self.block_len() as f64
    }
    /// Bytes of a contiguous tensor of `rows` rows of `row` values (`ne0`), as `ggml_nbytes` counts
    /// them: backends may add padding of their own.
    ///
    /// # Errors
    /// [`GgmlError::Row`] where a row is not whole blocks, [`GgmlError::Overflow`].
    pub fn bytes(self, row: u64, rows: u64) -> Result<u64, GgmlError> {
        let block = self.block_len();
        if !row.is_multiple_of(block) {
            return Err(GgmlError::Row {
                name: self.name(),
                row,
                block,
            });
        }
        (row / block)
            .checked_mul(self.block_bytes())
            .and_then(|b| b.checked_mul(rows))
            .ok_or(GgmlError::Overflow { row, rows })
    }
}

/// Prints ggml's own spelling: `q4_K`.
impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for GgmlType {
    type Err = GgmlError;
    /// ggml's name in any case.
    fn from_str(text: &str) -> Result<Self, GgmlError> {
        let text = text.trim();
        let known = GgmlType::ALL
            .iter()
            .find(|t| t.name().eq_ignore_ascii_case(text));
        if let Some(found) = known {
            return Ok(*found);
        }
        if let Some((id, ..)) = REMOVED
            .iter()
            .find(|(_, name, _)| name.eq_ignore_ascii_case(text))
        {
            return Err(removed_id(*id));
        }
        let input = crate::error::shown(text);
        // llama.cpp's file types (llama_ftype): the base type and a size letter
        let base = ["_S", "_M", "_L", "_XL"].iter().find_map(|size| {
            let cut = text.len().checked_sub(size.len())?;
            let (base, end) = (text.get(..cut)?, text.get(cut..)?);
            end.eq_ignore_ascii_case(size).then(|| {
                GgmlType::ALL
                    .iter()
                    .find(|t| t.name().eq_ignore_ascii_case(base))
            })?
        });
        if let Some(mostly) = base {
            let mostly = mostly.name();
            return Err(GgmlError::Mixture { input, mostly });
        }
        Err(GgmlError::UnknownName {
            suggestion: nearest(text, GgmlType::ALL.iter().map(|t| t.name())),
            input,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_round_trip() {
        for t in GgmlType::ALL.iter().copied() {
            assert_eq!(GgmlType::from_id(t.id()), Ok(t));
            assert_eq!(t.name().parse(), Ok(t));
            assert_eq!(t.name().to_uppercase().parse(), Ok(t));
        }
        assert_eq!(GgmlType::ALL.len() + REMOVED.len(), 43); // GGML_TYPE_COUNT
        assert_eq!(GgmlType::from_id(43), Err(GgmlError::UnknownId(43)));
        assert!(matches!(
            GgmlType::from_id(31),
            Err(GgmlError::Removed { .. })
        ));
    }

    #[test]
    fn wrong_names() {
        assert!(matches!(
            "Q4_K_M".parse::<GgmlType>(),
            Err(GgmlError::Mixture { mostly: "q4_K", .. })
        ));
        assert!(matches!(
            "q4_0_8_8".parse::<GgmlType>(),
            Err(GgmlError::Removed { .. })
        ));
        let wrong = "q4-k".parse::<GgmlType>();
        assert!(
            matches!(
                wrong,
                Err(GgmlError::UnknownName {
                    suggestion: Some("q4_K"),
                    ..
                })
            ),
            "{wrong:?}"
        );
        assert!("é_S".parse::<GgmlType>().is_err());
    }
}
