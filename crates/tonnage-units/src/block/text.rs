//! Names of stored formats: `format[-setting]...`, printed and parsed.
use super::*;
use crate::error::shown;
use crate::suggest::nearest;
use std::fmt;
use std::str::FromStr;

const GROUPS: &str = "`gptq-4bit-g128` (`gall` for one group)";
const BNB: &str = "`nf4`, `nf4-dq` or `nf4-dq-b128`";
const HQQ: &str = "`hqq-4bit-g64` or `hqq-4bit-g64-axis0`";
const FP8: &str = "`fp8-tensor`, `fp8-channel` or `fp8-128x128`";

/// Prints the name that parses back to this format; defaults are left out.
impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut name = match self {
            Dtype::Scalar(t) => t.to_string(),
            Dtype::Bnb4(b) => match b.kind {
                Bnb4Kind::Nf4 => "nf4".to_owned(),
                Bnb4Kind::Fp4 => "fp4".to_owned(),
            },
            Dtype::LlmInt8 => "llm-int8".to_owned(),
            Dtype::Gptq(q) => format!("gptq-{}bit-{}", q.bits, group(q.group_size)),
            Dtype::Awq(a) => format!(
                "awq{}-4bit-{}",
                match a.kernel {
                    AwqKernel::Gemm => "",
                    AwqKernel::Gemv => "-gemv",
                },
                group(a.group_size)
            ),
            Dtype::Hqq(h) => {
                let bits = HqqBits::NAMES.iter().find(|(b, _)| *b == h.bits);
                let bits = bits.map_or("", |(_, name)| name);
                format!("hqq-{bits}bit-{}", group(h.group_size))
            }
            Dtype::Fp8(q) => match q.scales {
                Fp8Scales::Tensor => "fp8-tensor".to_owned(),
                Fp8Scales::Channel => "fp8-channel".to_owned(),
                Fp8Scales::Block { rows, cols, .. } => format!("fp8-{rows}x{cols}"),
            },
            Dtype::MxFp4 => "mxfp4".to_owned(),
            Dtype::NvFp4(_) => "nvfp4".to_owned(),
            Dtype::Ggml(t) => format!("ggml:{t}"),
        };
        let mut part = |text: String| {
            name.push('-');
            name.push_str(&text);
        };
        match self {
            Dtype::Bnb4(b) => {
                if b.double_quant {
                    part("dq".to_owned());
                }
                if b.blocksize != 64 {
                    part(format!("b{}", b.blocksize));
                }
                if b.quant_storage != ScalarType::U8 {
                    part(b.quant_storage.to_string());
                }
            }
            Dtype::Gptq(q) if q.scales != ScalarType::F16 => part(q.scales.to_string()),
            Dtype::Hqq(h) => {
                if h.axis == Axis::Zero {
                    part("axis0".to_owned());
                }
                if h.compute != ScalarType::F16 {
                    part(h.compute.to_string());
                }
            }
            Dtype::Fp8(q) => {
                if let Fp8Scales::Block { e8m0: true, .. } = q.scales {
                    part("e8m0".to_owned());
                }
                if q.static_activation {
                    part("static".to_owned());
                }
            }
            Dtype::NvFp4(q) if q.static_activation => part("static".to_owned()),
            _ => {}
        }
        f.pad(&name)
    }
}

fn group(size: Option<u64>) -> String {
    size.map_or("gall".to_owned(), |n| format!("g{n}"))
}

impl FromStr for Dtype {
    type Err = LayoutError;
    /// A scalar type's name, `format-setting-...`, `ggml:TYPE`, or a quantised ggml type's own name
    /// (except `mxfp4` and `nvfp4`, which are the formats of safetensors files). Any case.
    fn from_str(text: &str) -> Result<Self, LayoutError> {
        let text = text.trim();
        if let Ok(t) = text.parse::<ScalarType>() {
            return Ok(Dtype::Scalar(t));
        }
        let lower = text.to_ascii_lowercase();
        if let Some(name) = lower.strip_prefix("ggml:") {
            return Ok(Dtype::Ggml(name.parse()?));
        }
        let mut parts = lower.split('-');
        let head = parts.next().unwrap_or_default();
        let mut parts = Parts {
            text,
            left: parts.collect(),
        };
        let format = match head {
            "nf4" | "fp4" => parts.bnb4(head)?,
            "llm.int8" | "llm.int8()" => Dtype::LlmInt8,
            "llm" if parts.take("int8") => Dtype::LlmInt8,
            "gptq" => parts.gptq()?,
            "awq" => parts.awq()?,
            "hqq" => parts.hqq()?,
            "fp8" => parts.fp8()?,
            "mxfp4" => Dtype::MxFp4,
            "nvfp4" => Dtype::NvFp4(NvFp4 {
                static_activation: parts.take("static"),
            }),
            _ => return unknown(text, &lower),
        };
        match parts.left.first() {
            None => Ok(format),
            Some(part) => Err(parts.wrong(
                part,
                match format {
                    Dtype::Bnb4(_) => ("bitsandbytes 4-bit", BNB),
                    Dtype::Gptq(_) | Dtype::Awq(_) => ("GPTQ and AWQ", GROUPS),
                    Dtype::Hqq(_) => ("HQQ", HQQ),
                    Dtype::Fp8(_) => ("FP8", FP8),
                    _ => (
                        "this format",
                        "`mxfp4`, `nvfp4`, `nvfp4-static` or `llm-int8`",
                    ),
                },
            )),
        }
    }
}

fn unknown(text: &str, lower: &str) -> Result<Dtype, LayoutError> {
    match text.parse::<GgmlType>() {
        Ok(t) => return Ok(Dtype::Ggml(t)),
        Err(crate::GgmlError::UnknownName { .. }) => {}
        Err(e) => return Err(e.into()),
    }
    let suggestion = match lower {
        "4bit" | "bnb" | "bitsandbytes" | "qlora" => Some("nf4-dq"),
        "8bit" => Some("llm-int8"),
        _ => nearest(
            lower,
            [
                "nf4",
                "fp4",
                "nf4-dq",
                "llm-int8",
                "gptq-4bit-g128",
                "awq-4bit-g128",
            ]
            .into_iter()
            .chain(["hqq-4bit-g64", "fp8-tensor", "fp8-channel", "fp8-128x128"])
            .chain(["mxfp4", "nvfp4"])
            .chain(ScalarType::ALL.map(ScalarType::torch_name))
            .chain(["bf16", "fp16", "fp32"])
            .chain(GgmlType::ALL.iter().map(|t| t.name())),
        ),
    };
    Err(LayoutError::UnknownFormat {
        input: shown(text),
        suggestion: suggestion.map(str::to_owned),
    })
}

/// The settings after a format's name; each is taken once, the rest is an error.
struct Parts<'a> {
    text: &'a str,
    left: Vec<&'a str>,
}

impl<'a> Parts<'a> {
    fn take(&mut self, part: &str) -> bool {
        self.find(|p| (p == part).then_some(())).is_some()
    }
    fn find<T>(&mut self, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (at, value) = self
            .left
            .iter()
            .enumerate()
            .find_map(|(i, p)| Some((i, read(p)?)))?;
        self.left.remove(at);
        Some(value)
    }
    fn wrong(&self, part: &str, (format, example): (&'static str, &'static str)) -> LayoutError {
        LayoutError::UnknownPart {
            input: shown(self.text),
            part: shown(part),
            format,
            example,
        }
    }
    fn missing(&self, about: (&'static str, &'static str)) -> LayoutError {
        self.wrong(self.left.first().unwrap_or(&""), about)
    }
    fn scalar(&mut self) -> Option<ScalarType> {
        self.find(|p| p.parse().ok())
    }
    /// `g128` or `gall`.
    fn group(&mut self) -> Option<Option<u64>> {
        self.find(|p| match p.strip_prefix('g')? {
            "all" => Some(None),
            n => number(n).map(Some),
        })
    }

    fn bnb4(&mut self, head: &str) -> Result<Dtype, LayoutError> {
        let kind = match head {
            "nf4" => Bnb4Kind::Nf4,
            _ => Bnb4Kind::Fp4,
        };
        let mut format = Bnb4::new(kind, self.take("dq"));
        if let Some(n) = self.find(|p| number(p.strip_prefix('b')?)) {
            format.blocksize = n;
        }
        if let Some(t) = self.scalar() {
            format.quant_storage = t;
        }
        Ok(Dtype::Bnb4(format))
    }
    fn gptq(&mut self) -> Result<Dtype, LayoutError> {
        let about = ("GPTQ", GROUPS);
        let bits = self.find(|p| number(p.strip_suffix("bit")?));
        let bits = bits.ok_or_else(|| self.missing(about))?;
        let group = self.group().ok_or_else(|| self.missing(about))?;
        let mut format = Gptq::new(bits, group);
        if let Some(t) = self.scalar() {
            format.scales = t;
        }
        Ok(Dtype::Gptq(format))
    }
    fn awq(&mut self) -> Result<Dtype, LayoutError> {
        let about = ("AWQ (4 bits only)", "`awq-4bit-g128`");
        let kernel = match (self.take("gemv"), self.take("gemm")) {
            (true, false) => AwqKernel::Gemv,
            _ => AwqKernel::Gemm,
        };
        if !self.take("4bit") {
            return Err(self.missing(about));
        }
        let group_size = self.group().ok_or_else(|| self.missing(about))?;
        Ok(Dtype::Awq(Awq { kernel, group_size }))
    }
    fn hqq(&mut self) -> Result<Dtype, LayoutError> {
        let about = ("HQQ", HQQ);
        let bits = self.find(|p| {
            let name = p.strip_suffix("bit")?;
            HqqBits::NAMES.iter().find(|(_, n)| *n == name).map(|x| x.0)
        });
        let bits = bits.ok_or_else(|| self.missing(about))?;
        let group = self.group().ok_or_else(|| self.missing(about))?;
        let mut format = Hqq::new(bits, group);
        if self.take("axis0") {
            format.axis = Axis::Zero;
        } else {
            self.take("axis1");
        }
        if let Some(t) = self.scalar() {
            format.compute = t;
        }
        Ok(Dtype::Hqq(format))
    }
    fn fp8(&mut self) -> Result<Dtype, LayoutError> {
        let block = |p: &str| {
            let (rows, cols) = p.split_once('x')?;
            Some((number(rows)?, number(cols)?))
        };
        let scales = if self.take("tensor") {
            Fp8Scales::Tensor
        } else if self.take("channel") {
            Fp8Scales::Channel
        } else if let Some((rows, cols)) = self.find(block) {
            let e8m0 = self.take("e8m0");
            Fp8Scales::Block { rows, cols, e8m0 }
        } else {
            return Err(self.missing(("FP8", FP8)));
        };
        Ok(Dtype::Fp8(Fp8 {
            scales,
            static_activation: self.take("static"),
        }))
    }
}

/// Digits only: `u64::from_str` takes a plus sign too.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}
