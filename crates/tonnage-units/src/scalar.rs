//! The element types of plain (unquantised) tensors, as torch names them.
use crate::error::{UnitError, shown};
use crate::suggest::nearest;
use std::fmt;
use std::str::FromStr;

/// A torch scalar type. `size()` is its bytes per element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum ScalarType {
    F64,
    F32,
    F16,
    BF16,
    F8E4M3,
    F8E5M2,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

/// torch name, safetensors name, then other accepted spellings (all compared in lower case).
const NAMES: [(ScalarType, &str, &str, &[&str]); 12] = [
    (ScalarType::F64, "float64", "F64", &["double", "fp64"]),
    (ScalarType::F32, "float32", "F32", &["float", "fp32"]),
    (ScalarType::F16, "float16", "F16", &["half", "fp16"]),
    (ScalarType::BF16, "bfloat16", "BF16", &[]),
    (
        ScalarType::F8E4M3,
        "float8_e4m3fn",
        "F8_E4M3",
        &["float8_e4m3", "fp8_e4m3"],
    ),
    (ScalarType::F8E5M2, "float8_e5m2", "F8_E5M2", &["fp8_e5m2"]),
    (ScalarType::I64, "int64", "I64", &["long"]),
    (ScalarType::I32, "int32", "I32", &["int"]),
    (ScalarType::I16, "int16", "I16", &["short"]),
    (ScalarType::I8, "int8", "I8", &["char"]),
    (ScalarType::U8, "uint8", "U8", &["byte"]),
    (ScalarType::Bool, "bool", "BOOL", &["boolean"]),
];

impl ScalarType {
    /// Every type, widest floats first.
    pub const ALL: [ScalarType; 12] = [
        ScalarType::F64,
        ScalarType::F32,
        ScalarType::F16,
        ScalarType::BF16,
        ScalarType::F8E4M3,
        ScalarType::F8E5M2,
        ScalarType::I64,
        ScalarType::I32,
        ScalarType::I16,
        ScalarType::I8,
        ScalarType::U8,
        ScalarType::Bool,
    ];

    /// Bytes per element.
    pub const fn size(self) -> u64 {
        match self {
            ScalarType::F64 | ScalarType::I64 => 8,
            ScalarType::F32 | ScalarType::I32 => 4,
            ScalarType::F16 | ScalarType::BF16 | ScalarType::I16 => 2,
            _ => 1,
        }
    }
    /// Floating point of any width.
    pub const fn is_float(self) -> bool {
        matches!(
            self,
            ScalarType::F64
                | ScalarType::F32
                | ScalarType::F16
                | ScalarType::BF16
                | ScalarType::F8E4M3
                | ScalarType::F8E5M2
        )
    }
    /// torch's name without `torch.`: `bfloat16`, `float8_e4m3fn`.
    pub const fn torch_name(self) -> &'static str {
        NAMES[self as usize].1
    }
    /// The name in a safetensors header: `BF16`, `F8_E4M3`.
    pub const fn safetensors_name(self) -> &'static str {
        NAMES[self as usize].2
    }
}

/// Prints torch's name: `bfloat16`.
impl fmt::Display for ScalarType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.torch_name())
    }
}

impl FromStr for ScalarType {
    type Err = UnitError;
    /// torch's name with or without `torch.` (`bfloat16`), torch's alias (`half`), the short form
    /// (`fp16`, `f16`, `bf16`, `i64`), or the name of a safetensors header (`F8_E4M3`), in any case.
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let lower = text.trim().to_ascii_lowercase();
        let name = lower.strip_prefix("torch.").unwrap_or(&lower);
        let found = NAMES.iter().find(|(_, torch, safetensors, others)| {
            *torch == name || safetensors.eq_ignore_ascii_case(name) || others.contains(&name)
        });
        found
            .map(|entry| entry.0)
            .ok_or_else(|| UnitError::UnknownDtype {
                input: shown(text.trim()),
                suggestion: match name {
                    "fp8" | "float8" | "f8" => Some("float8_e4m3fn or float8_e5m2".to_owned()),
                    "fp" | "fp-16" | "float-16" => Some("float16".to_owned()),
                    "bfp16" | "brain" => Some("bfloat16".to_owned()),
                    _ => nearest(
                        name,
                        NAMES
                            .iter()
                            .flat_map(|(_, torch, _, others)| {
                                std::iter::once(*torch).chain(others.iter().copied())
                            })
                            .chain(["bf16", "f16", "f32", "f64", "i8", "i16", "i32", "i64", "u8"]),
                    )
                    .map(str::to_owned),
                },
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (i, t) in ScalarType::ALL.into_iter().enumerate() {
            assert_eq!(t as usize, i);
            assert_eq!(NAMES[i].0, t);
            assert_eq!(t.to_string().parse(), Ok(t));
            assert_eq!(format!("torch.{t}").parse(), Ok(t));
            assert_eq!(t.safetensors_name().parse(), Ok(t));
        }
    }

    #[test]
    fn spellings() {
        for (text, t) in [
            ("bf16", ScalarType::BF16),
            ("fp16", ScalarType::F16),
            ("half", ScalarType::F16),
            ("float", ScalarType::F32),
            ("f32", ScalarType::F32),
            ("torch.float8_e4m3fn", ScalarType::F8E4M3),
            ("F8_E5M2", ScalarType::F8E5M2),
            ("BOOL", ScalarType::Bool),
            ("long", ScalarType::I64),
        ] {
            assert_eq!(text.parse(), Ok(t), "{text}");
        }
        let fix = |text: &str| {
            let error = text.parse::<ScalarType>().unwrap_err();
            error.suggestion().map(str::to_owned)
        };
        assert_eq!(fix("bflaot16").as_deref(), Some("bfloat16"));
        assert_eq!(fix("fp8").as_deref(), Some("float8_e4m3fn or float8_e5m2"));
        assert_eq!(fix("complex64"), None);
    }

    #[test]
    fn sizes_are_torchs() {
        // torch.empty(0, dtype=d).element_size(), in the order of ALL
        let sizes = [8, 4, 2, 2, 1, 1, 8, 4, 2, 1, 1, 1];
        assert_eq!(ScalarType::ALL.map(ScalarType::size), sizes);
    }
}
