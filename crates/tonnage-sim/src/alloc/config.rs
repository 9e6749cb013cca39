//! The allocator's settings and the string that sets them (`PYTORCH_ALLOC_CONF`, older name `PYTORCH_CUDA_ALLOC_CONF`).
//!
//! Source of the rules: PyTorch 2.11 `c10/core/AllocatorConfig.{h,cpp}`, `c10/cuda/CUDAAllocatorConfig.{h,cpp}`. Verified by
//! `tests/alloc_config.rs` against what torch 2.11 itself made of the same strings.

/// One mebibyte; the unit of every `*_mb` setting (torch says MB and means MiB).
pub const MIB: u64 = 1 << 20;
/// Every size is rounded up to at least this.
pub const MIN_BLOCK: u64 = 512;
/// Largest rounded size served from the small pool.
pub const SMALL_SIZE: u64 = MIB;
/// Segment size of the small pool, and page of its expandable segments.
pub const SMALL_BUFFER: u64 = 2 * MIB;
/// Default segment size for large requests under [`MIN_LARGE_ALLOC`], and page of large expandable segments.
pub const LARGE_BUFFER: u64 = 20 * MIB;
/// Requests from here on get a segment of their own size, rounded up to [`ROUND_LARGE`].
pub const MIN_LARGE_ALLOC: u64 = 10 * MIB;
/// Granularity of segments made for one large request.
pub const ROUND_LARGE: u64 = 2 * MIB;
/// Requests of this size or more are refused before anything else is tried.
pub const ONE_EB: u64 = 1 << 60;

const INTERVALS: usize = 16;
const MAX_MB: u64 = u64::MAX / MIB;

/// Settings of the caching allocator. `default()` is torch's default.
#[derive(Clone, Debug, PartialEq)]
pub struct AllocatorConfig {
    /// `large_segment_size_mb`: bytes of a segment made for a request between 1 and 10 MiB, and of a large expandable page.
    pub large_segment_size: u64,
    /// `max_split_size_mb`: blocks of this size or more ("oversize") are never split. `None` = no limit.
    pub max_split_size: Option<u64>,
    /// `max_non_split_rounding_mb`: an oversize request may take a cached block up to this much larger than itself. Where not
    /// set it is the large segment size (recording `segment-40-split-64`).
    pub max_non_split_rounding_size: u64,
    /// `roundup_power2_divisions` for sizes in [1, 2) MiB, [2, 4) MiB, ... [32, inf) GiB; the first also holds for all below
    /// 1 MiB. 0 and 1 mean plain rounding to 512.
    pub roundup_power2_divisions: [u64; INTERVALS],
    /// `garbage_collection_threshold`: share of the allowed memory above which old cached segments are freed before new ones
    /// are made. Acts only when `per_process_memory_fraction` < 1 (that is a rule of torch 2.11, not of ours).
    pub garbage_collection_threshold: Option<f64>,
    /// `expandable_segments`: one growing segment for each pool instead of many fixed ones.
    pub expandable_segments: bool,
    /// `per_process_memory_fraction`, or `torch.cuda.set_per_process_memory_fraction`: share of the device's total that may be
    /// reserved. 1.0 = no limit. Acts only with a capacity.
    pub per_process_memory_fraction: f64,
}

impl Default for AllocatorConfig {
    fn default() -> Self {
        AllocatorConfig {
            large_segment_size: LARGE_BUFFER,
            max_split_size: None,
            max_non_split_rounding_size: LARGE_BUFFER,
            roundup_power2_divisions: [0; INTERVALS],
            garbage_collection_threshold: None,
            expandable_segments: false,
            per_process_memory_fraction: 1.0,
        }
    }
}

/// Why a settings string is refused. Strings that torch 2.11 refuses are refused; a number with trailing text ("64x", "64MB"),
/// of which torch silently reads the front, is refused too.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    #[error("unknown allocator option '{key}'{}", .near.map(|n| format!(", did you mean '{n}'?")).unwrap_or_default())]
    UnknownKey {
        key: String,
        near: Option<&'static str>,
    },
    #[error("allocator option '{key}' needs ':' and a value")]
    MissingValue { key: String },
    #[error("allocator option '{key}': '{value}' is not {expected}")]
    BadValue {
        key: &'static str,
        value: String,
        expected: &'static str,
    },
    #[error("allocator option '{key}': {value} is out of range, it must be {expected}")]
    OutOfRange {
        key: &'static str,
        value: String,
        expected: String,
    },
    #[error("allocator option 'roundup_power2_divisions': the list is not closed by ']'")]
    UnclosedList,
    #[error("allocator options: expected ',' before '{found}'")]
    ExpectedComma { found: String },
    #[error(
        "allocator backend '{value}' is a different allocator and is not modelled, only 'native' is"
    )]
    Backend { value: String },
}

const KEYS: [&str; 16] = [
    "large_segment_size_mb",
    "max_split_size_mb",
    "max_non_split_rounding_mb",
    "garbage_collection_threshold",
    "roundup_power2_divisions",
    "expandable_segments",
    "per_process_memory_fraction",
    "backend",
    "pinned_use_background_threads",
    "release_lock_on_cudamalloc",
    "release_lock_on_hipmalloc",
    "pinned_use_cuda_host_register",
    "pinned_use_hip_host_register",
    "graph_capture_record_stream_reuse",
    "pinned_reserve_segment_size_mb",
    "pinned_num_register_threads",
];

impl AllocatorConfig {
    /// Reads a settings string such as `max_split_size_mb:128,expandable_segments:True`. White space is ignored, a later key
    /// wins, one trailing comma is allowed, as in torch.
    ///
    /// # Errors
    /// [`ConfigError`] for anything that torch 2.11 refuses, for a number with trailing text, and for another backend.
    pub fn parse(text: &str) -> Result<AllocatorConfig, ConfigError> {
        let tokens = tokenize(text);
        let mut config = AllocatorConfig::default();
        // torch applies large_segment_size_mb before the others: the two limits below are checked against it wherever it stands.
        for (i, t) in tokens.iter().enumerate() {
            if t == "large_segment_size_mb" {
                let mut p = Parser {
                    tokens: &tokens,
                    at: i + 1,
                };
                let mb = p.number("large_segment_size_mb")?;
                if mb <= MIN_LARGE_ALLOC / MIB {
                    return Err(out_of_range("large_segment_size_mb", mb, "> 10".into()));
                }
                config.large_segment_size = mb.min(MAX_MB) * MIB;
                config.max_non_split_rounding_size = config.large_segment_size;
            }
        }
        let mut p = Parser {
            tokens: &tokens,
            at: 0,
        };
        while let Some(key) = p.next() {
            config.option(key, &mut p)?;
            match p.next() {
                None | Some(",") => {}
                Some(found) => {
                    return Err(ConfigError::ExpectedComma {
                        found: found.into(),
                    });
                }
            }
        }
        Ok(config)
    }

    fn option(&mut self, key: &str, p: &mut Parser) -> Result<(), ConfigError> {
        let smallest = self.large_segment_size / MIB;
        let size = |p: &mut Parser, key| {
            let mb = p.number(key)?;
            if mb < smallest {
                return Err(out_of_range(
                    key,
                    mb,
                    format!(">= {smallest}, the large segment size"),
                ));
            }
            Ok(mb.min(MAX_MB) * MIB)
        };
        match key {
            "large_segment_size_mb" => {
                p.number("large_segment_size_mb")?;
            }
            "max_split_size_mb" => self.max_split_size = Some(size(p, "max_split_size_mb")?),
            "max_non_split_rounding_mb" => {
                self.max_non_split_rounding_size = size(p, "max_non_split_rounding_mb")?
            }
            "garbage_collection_threshold" => {
                let v = p.fraction("garbage_collection_threshold")?;
                if !(v > 0.0 && v < 1.0) {
                    return Err(out_of_range(
                        "garbage_collection_threshold",
                        v,
                        "in (0.0, 1.0)".into(),
                    ));
                }
                self.garbage_collection_threshold = Some(v);
            }
            "per_process_memory_fraction" => {
                let v = p.fraction("per_process_memory_fraction")?;
                if !(0.0..=1.0).contains(&v) {
                    return Err(out_of_range(
                        "per_process_memory_fraction",
                        v,
                        "in [0.0, 1.0]".into(),
                    ));
                }
                self.per_process_memory_fraction = v;
            }
            "expandable_segments" => self.expandable_segments = p.boolean("expandable_segments")?,
            "roundup_power2_divisions" => p.divisions(&mut self.roundup_power2_divisions)?,
            "backend" => match p.value("backend")? {
                "native" => {}
                other => {
                    return Err(ConfigError::Backend {
                        value: other.into(),
                    });
                }
            },
            // Settings of pinned host memory, locking and graph capture: checked, no effect on device memory in eager mode.
            "pinned_num_register_threads" => {
                let n = p.number("pinned_num_register_threads")?;
                if !n.is_power_of_two() || n > 128 {
                    return Err(out_of_range(
                        "pinned_num_register_threads",
                        n,
                        "a power of two up to 128".into(),
                    ));
                }
            }
            "pinned_reserve_segment_size_mb" => {
                p.number("pinned_reserve_segment_size_mb")?;
            }
            "pinned_use_background_threads"
            | "release_lock_on_cudamalloc"
            | "release_lock_on_hipmalloc"
            | "pinned_use_cuda_host_register"
            | "pinned_use_hip_host_register"
            | "graph_capture_record_stream_reuse" => {
                let key = KEYS.iter().find(|k| **k == key).copied().unwrap_or("");
                p.boolean(key)?;
            }
            _ => {
                return Err(ConfigError::UnknownKey {
                    key: key.into(),
                    near: nearest(key),
                });
            }
        }
        Ok(())
    }

    /// Bytes that a request of `bytes` occupies at least: rounded up to 512, or to the next division of a power of two.
    /// (`DeviceCachingAllocator::round_size`.) `bytes` < 2^60.
    #[inline]
    pub fn round_size(&self, bytes: u64) -> u64 {
        if bytes < MIN_BLOCK {
            return MIN_BLOCK;
        }
        let octave = (bytes.ilog2() as usize)
            .saturating_sub(20)
            .min(INTERVALS - 1);
        let divisions = self.roundup_power2_divisions[octave];
        if divisions > 1 && bytes / divisions >= MIN_BLOCK && bytes > MIN_BLOCK * divisions {
            // bytes > 512 * divisions, so a division is never smaller than 512
            return bytes.next_multiple_of((1 << bytes.ilog2()) / divisions);
        }
        (bytes + MIN_BLOCK - 1) & !(MIN_BLOCK - 1)
    }

    /// Bytes of the segment made for a rounded size when no cached block serves it. (`get_allocation_size`.)
    pub fn segment_size(&self, rounded: u64) -> u64 {
        if rounded <= SMALL_SIZE {
            SMALL_BUFFER
        } else if rounded < MIN_LARGE_ALLOC {
            self.large_segment_size
        } else {
            rounded.next_multiple_of(ROUND_LARGE)
        }
    }
}

fn tokenize(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut word = String::new();
    for c in text.chars() {
        if matches!(c, ',' | ':' | '[' | ']') {
            if !word.is_empty() {
                tokens.push(std::mem::take(&mut word));
            }
            tokens.push(c.into());
        } else if !c.is_ascii_whitespace() {
            word.push(c);
        }
    }
    if !word.is_empty() {
        tokens.push(word);
    }
    tokens
}

struct Parser<'a> {
    tokens: &'a [String],
    at: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.tokens.get(self.at).map(String::as_str)
    }

    fn next(&mut self) -> Option<&'a str> {
        let t = self.peek();
        self.at += 1;
        t
    }

    fn colon(&mut self, key: &str) -> Result<(), ConfigError> {
        match self.next() {
            Some(":") => Ok(()),
            _ => Err(ConfigError::MissingValue { key: key.into() }),
        }
    }

    fn value(&mut self, key: &str) -> Result<&'a str, ConfigError> {
        self.colon(key)?;
        match self.next() {
            None | Some("," | ":" | "[" | "]") => {
                Err(ConfigError::MissingValue { key: key.into() })
            }
            Some(v) => Ok(v),
        }
    }

    fn number(&mut self, key: &'static str) -> Result<u64, ConfigError> {
        whole(key, self.value(key)?)
    }

    fn fraction(&mut self, key: &'static str) -> Result<f64, ConfigError> {
        let v = self.value(key)?;
        match v.parse::<f64>() {
            Ok(x) if x.is_finite() => Ok(x),
            _ => Err(ConfigError::BadValue {
                key,
                value: v.into(),
                expected: "a number",
            }),
        }
    }

    fn boolean(&mut self, key: &'static str) -> Result<bool, ConfigError> {
        match self.value(key)? {
            "True" => Ok(true),
            "False" => Ok(false),
            v => Err(ConfigError::BadValue {
                key,
                value: v.into(),
                expected: "True or False (spelt exactly so)",
            }),
        }
    }

    /// A single number for all sizes, or `[upper limit in MiB : divisions, ..., > : divisions]`.
    fn divisions(&mut self, table: &mut [u64; INTERVALS]) -> Result<(), ConfigError> {
        const KEY: &str = "roundup_power2_divisions";
        let power_of_two = |n: u64, zero: bool| {
            if n.is_power_of_two() || (zero && n == 0) {
                Ok(n)
            } else {
                Err(out_of_range(
                    KEY,
                    n,
                    if zero {
                        "0 or a power of two"
                    } else {
                        "a power of two"
                    }
                    .into(),
                ))
            }
        };
        self.colon(KEY)?;
        if self.peek() != Some("[") {
            self.at -= 1;
            table.fill(power_of_two(self.number(KEY)?, false)?);
            return Ok(());
        }
        self.next();
        let (mut last, mut first) = (0, true);
        loop {
            let bound = match self.next() {
                None => return Err(ConfigError::UnclosedList),
                Some("]") => return Ok(()),
                Some(b) => b,
            };
            let divisions = power_of_two(self.number(KEY)?, true)?;
            if bound == ">" {
                // everything after the last interval named; after none, everything but the first
                table[last + 1..].fill(divisions);
            } else {
                let bound = power_of_two(whole(KEY, bound)?, false)?;
                let index = (bound.ilog2() as usize).min(INTERVALS - 1);
                if first {
                    table[..index].fill(divisions);
                    first = false;
                }
                table[index] = divisions;
                last = index;
            }
            match self.peek() {
                Some(",") => self.at += 1,
                Some("]") => {}
                None => return Err(ConfigError::UnclosedList),
                Some(found) => {
                    return Err(ConfigError::ExpectedComma {
                        found: found.into(),
                    });
                }
            }
        }
    }
}

fn whole(key: &'static str, text: &str) -> Result<u64, ConfigError> {
    if text.bytes().all(|c| c.is_ascii_digit())
        && let Ok(n) = text.parse()
    {
        return Ok(n);
    }
    Err(ConfigError::BadValue {
        key,
        value: text.into(),
        expected: "a whole number",
    })
}

fn out_of_range(key: &'static str, value: impl ToString, expected: String) -> ConfigError {
    ConfigError::OutOfRange {
        key,
        value: value.to_string(),
        expected,
    }
}

/// The known key that starts alike, for the error message.
fn nearest(key: &str) -> Option<&'static str> {
    let common = |k: &str| {
        k.bytes()
            .zip(key.bytes())
            .take_while(|(a, b)| a == b)
            .count()
    };
    KEYS.iter()
        .copied()
        .max_by_key(|k| common(k))
        .filter(|k| common(k) >= 5)
}
