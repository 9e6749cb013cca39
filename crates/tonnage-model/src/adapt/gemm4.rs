//! When bitsandbytes multiplies with a packed 4-bit weight directly, and when it unpacks the weight first
//! (bitsandbytes 0.50.2, bitsandbytes/backends/cuda/ops.py, `_gemm_4bit_use_custom_cuda` and the `gemm_4bit` kernel): the second
//! way holds a dense copy of the weight for the time of the product. The thresholds are the library's measured ones.

use tonnage_sim::ScalarType;
use tonnage_sim::kernels::KernelDevice;

/// Rows above which the weight is always unpacked.
const MAX_ROWS: u64 = 1536;
/// Rows up to which it never is (unless the blocks do not line up).
const FLOOR_ROWS: u64 = 4;

/// Does the product of `m` rows of `dtype` with a packed `n` x `k` weight run without unpacking it?
pub fn fused(d: &KernelDevice, dtype: ScalarType, m: u64, n: u64, k: u64, blocksize: u64) -> bool {
    m <= MAX_ROWS && k.is_multiple_of(blocksize) && custom(d, dtype, m, n, k)
}

fn custom(d: &KernelDevice, dtype: ScalarType, m: u64, n: u64, k: u64) -> bool {
    if m <= FLOOR_ROWS {
        return true;
    }
    let (major, minor) = d.capability;
    let sms = u64::from(d.sm_count);
    let blocks = n.div_ceil(64);
    if dtype == ScalarType::F32
        || major < 7
        || (major == 7 && (minor < 5 || dtype != ScalarType::F16))
    {
        return m < 8;
    }
    if (major, minor) == (8, 7) || major == 11 {
        return false;
    }
    if major == 10 {
        return match blocks {
            b if b >= sms * 3 => m <= 32,
            b if b >= sms => k < n && m <= 8,
            _ => false,
        };
    }
    let card = Card {
        sms,
        blocks,
        m,
        n,
        k,
        capability: (major, minor),
    };
    if n * k < 4 << 20 {
        card.small()
    } else if m > 512 {
        false
    } else if m < 8 {
        card.few_rows()
    } else {
        card.tiers()
    }
}

struct Card {
    sms: u64,
    blocks: u64,
    m: u64,
    n: u64,
    k: u64,
    capability: (u8, u8),
}

impl Card {
    fn is(&self, major: u8, minor: u8) -> bool {
        self.capability == (major, minor)
    }
    fn hbm(&self) -> bool {
        self.is(8, 0) || self.capability.0 == 9
    }
    /// Blocks cover at least `a / b` of the multiprocessors.
    fn covers(&self, a: u64, b: u64) -> bool {
        self.blocks * b >= self.sms * a
    }

    /// Weights under 4 Mi elements.
    fn small(&self) -> bool {
        let (m, n, k, b, s) = (self.m, self.n, self.k, self.blocks, self.sms);
        if k * 2 < n {
            return if self.hbm() {
                let low = b * 3 < s;
                m <= match (self.is(8, 0), low) {
                    (true, true) => 1536,
                    (true, false) | (false, true) => 512,
                    (false, false) => 320,
                }
            } else if self.is(7, 5) {
                m <= match k {
                    _ if b >= s * 3 => 320,
                    k if k >= 1024 => 64,
                    k if k >= 704 => 96,
                    _ => 320,
                }
            } else {
                m <= if b < s && b * k > s * 320 { 192 } else { 320 }
            };
        }
        let quarter = b * 4 <= s;
        if self.is(8, 0) && quarter {
            return m
                <= match k >= n {
                    true if b * 8 <= s => 32,
                    true => 128,
                    false => 384,
                };
        }
        if self.is(7, 5) && b < s && m > 8 {
            return m <= 64;
        }
        if quarter {
            return m <= if k < n || self.hbm() { 32 } else { 23 };
        }
        b * 2 <= s && m <= 16
    }

    /// Five to seven rows.
    fn few_rows(&self) -> bool {
        let hopper = self.capability.0 == 9;
        if self.hbm() && self.m >= 6 && self.blocks >= if hopper { 36 } else { 48 } {
            let (below_75, below_60) = (!self.covers(3, 4), !self.covers(3, 5));
            if self.k > self.n && below_75 {
                return false;
            }
            if self.k == self.n
                && ((self.is(8, 0) && below_60) || (hopper && below_75 && !below_60))
            {
                return false;
            }
        }
        true
    }

    /// 8 to 512 rows, by generation.
    fn tiers(&self) -> bool {
        let (m, n, k, b, s) = (self.m, self.n, self.k, self.blocks, self.sms);
        match self.capability {
            (7, 5) => {
                m <= match b {
                    b if b >= s * 3 => {
                        if k < n {
                            128
                        } else {
                            64
                        }
                    }
                    b if b >= s / 2 => 64,
                    _ => 32,
                }
            }
            (8, 0) => self.ampere(),
            (8, 6) => {
                m <= match b {
                    b if b >= s => 128,
                    b if b >= s / 2 => 64,
                    _ => 16,
                }
            }
            (9, _) => match b {
                b if b >= s * 3 => m <= 64,
                b if b >= s * 2 => m <= 48,
                b if b >= s => m <= 32,
                b if b >= s / 2 => (k < n || self.covers(3, 4)) && m <= 16,
                _ => false,
            },
            (12, 1) if b >= s => m <= 256,
            (12, 0) => self.blackwell(),
            _ => self.ada(),
        }
    }

    fn ampere(&self) -> bool {
        let (m, n, k, b, s) = (self.m, self.n, self.k, self.blocks, self.sms);
        if b >= s * 3 {
            return m <= 128;
        }
        if b >= s {
            return m <= if k < n { 64 } else { 32 };
        }
        if (k >= n * 3 && b * 4 > s) || (k == n && b >= 48 && !self.covers(3, 5)) {
            return false;
        }
        if b * 2 < s {
            if k <= n {
                return m <= 128;
            }
            if b * 3 >= s {
                return false;
            }
        }
        m <= if b >= s / 2 && k < n { 128 } else { 16 }
    }

    fn blackwell(&self) -> bool {
        let (m, n, k, b, s) = (self.m, self.n, self.k, self.blocks, self.sms);
        m <= if b >= s * 3 {
            256
        } else if b >= s * 2 {
            128
        } else if self.covers(4, 5) {
            if k >= n { 96 } else { 64 }
        } else if b >= s / 2 {
            if k * 2 >= n && b >= 128 { 64 } else { 8 }
        } else if k > n * 2 && b > 64 {
            16
        } else {
            8
        }
    }

    /// The default: compute capability 8.9 and everything without its own rule.
    fn ada(&self) -> bool {
        let (m, n, k, b, s) = (self.m, self.n, self.k, self.blocks, self.sms);
        let tall = k > n * 2;
        m <= if b >= s * 3 {
            256
        } else if b >= s * 2 {
            128
        } else if self.covers(4, 5) {
            if tall || b >= 200 || (k >= n && s >= 60) {
                128
            } else if k >= n {
                32
            } else {
                64
            }
        } else if b >= s / 2 {
            if tall {
                64
            } else if b >= 64 {
                8
            } else {
                32
            }
        } else if k > n && b <= 48 {
            if k >= n * 3 { 12 } else { 10 }
        } else if tall || b < 48 {
            16
        } else {
            8
        }
    }
}
