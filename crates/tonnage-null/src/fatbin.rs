//! Which code a library carries: the headers of its fat binaries (the layout that `cuobjdump` and the open
//! re-implementations of the loader read), and whether any of it runs on a capability.

use crate::types::word_at;

/// One piece of code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Code {
    /// True for PTX, which the driver can compile for later capabilities.
    pub ptx: bool,
    /// Capability as one number: 86 is 8.6.
    pub arch: u32,
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}_{}",
            if self.ptx { "compute" } else { "sm" },
            self.arch
        )
    }
}

const WRAPPER_MAGIC: u32 = 0x466243b1;
const FATBIN_MAGIC: u32 = 0xba55ed50;
const KIND_PTX: u16 = 1;
const KIND_ELF: u16 = 2;

/// The code behind the wrapper that a library registers; None where the layout is not the known one.
pub fn codes(wrapper: usize) -> Option<Vec<Code>> {
    if word_at::<u32>(wrapper, 0)? != WRAPPER_MAGIC {
        return None;
    }
    let mut at = word_at::<usize>(wrapper, 8)?;
    let mut codes = Vec::new();
    if word_at::<u32>(at, 0)? != FATBIN_MAGIC {
        return None;
    }
    let header = word_at::<u16>(at, 6)? as usize;
    let end = at + header + word_at::<u64>(at, 8)? as usize;
    at += header;
    while at + 32 <= end {
        let (kind, head) = (word_at::<u16>(at, 0)?, word_at::<u32>(at, 4)? as usize);
        let (size, arch) = (word_at::<u64>(at, 8)? as usize, word_at::<u32>(at, 28)?);
        if head < 32 || !(20..1000).contains(&arch) {
            return None;
        }
        if kind == KIND_PTX || kind == KIND_ELF {
            codes.push(Code {
                ptx: kind == KIND_PTX,
                arch,
            });
        }
        at += head + size;
    }
    codes.sort_unstable();
    codes.dedup();
    Some(codes)
}

/// The code that the driver would take for a device: machine code of the same major and the highest minor that is not
/// above the device's, else the newest PTX that is not above it (CUDA C++ Programming Guide, binary and PTX compatibility).
pub fn choose(codes: &[Code], device: u32) -> Option<Code> {
    let fits = |c: &&Code| c.arch <= device && (c.ptx || c.arch / 10 == device / 10);
    codes
        .iter()
        .filter(fits)
        .max_by_key(|c| (!c.ptx, c.arch))
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sm(arch: u32) -> Code {
        Code { ptx: false, arch }
    }

    #[test]
    fn compatibility() {
        let wheel = [
            sm(75),
            sm(80),
            sm(86),
            sm(90),
            Code {
                ptx: true,
                arch: 120,
            },
        ];
        assert_eq!(choose(&wheel, 89), Some(sm(86)));
        assert_eq!(choose(&wheel, 87), Some(sm(86)));
        assert_eq!(choose(&wheel, 80), Some(sm(80)));
        assert_eq!(choose(&wheel, 61), None);
        assert_eq!(
            choose(&wheel, 100),
            None,
            "PTX of a later capability does not run"
        );
        assert_eq!(
            choose(&wheel, 121),
            Some(Code {
                ptx: true,
                arch: 120
            })
        );
    }

    #[test]
    fn reads_the_headers() {
        let mut fatbin: Vec<u8> = Vec::new();
        fatbin.extend(FATBIN_MAGIC.to_le_bytes());
        fatbin.extend([1, 0, 16, 0]);
        fatbin.extend(160u64.to_le_bytes());
        for (kind, arch) in [(2u16, 80u32), (1, 90)] {
            let mut e = vec![0u8; 80];
            e[0..2].copy_from_slice(&kind.to_le_bytes());
            e[4..8].copy_from_slice(&64u32.to_le_bytes());
            e[8..16].copy_from_slice(&16u64.to_le_bytes());
            e[28..32].copy_from_slice(&arch.to_le_bytes());
            fatbin.extend(e);
        }
        let mut wrapper: Vec<u8> = WRAPPER_MAGIC.to_le_bytes().to_vec();
        wrapper.extend([1, 0, 0, 0]);
        wrapper.extend((fatbin.as_ptr() as usize).to_le_bytes());
        assert_eq!(
            codes(wrapper.as_ptr() as usize),
            Some(vec![
                sm(80),
                Code {
                    ptx: true,
                    arch: 90
                }
            ])
        );
        wrapper[0] = 0;
        assert_eq!(codes(wrapper.as_ptr() as usize), None);
    }
}
