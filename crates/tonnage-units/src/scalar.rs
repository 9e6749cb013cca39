//! The element types of plain (unquantised) tensors, as torch names them.

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

impl ScalarType {
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
}
