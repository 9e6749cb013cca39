//! What part of a card's rates software reaches, by kind of work: constants fitted on published measurements (data/efficiency.csv, with
//! source and date), each within bounds that physics or software set.

use std::fmt::Write;
use std::sync::OnceLock;

/// A fitted constant.
#[derive(Debug)]
pub struct Constant {
    pub name: &'static str,
    /// Where the fit starts, and what it stays near where nothing is measured.
    pub prior: f64,
    pub low: f64,
    pub high: f64,
    pub what: &'static str,
}

macro_rules! constants {
    ($($id:ident $name:literal $prior:literal $low:literal $high:literal $what:literal,)*) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        enum Index { $($id,)* COUNT }
        /// Indices of the constants.
        #[allow(missing_docs)]
        pub mod k {
            use super::Index;
            $(pub const $id: usize = Index::$id as usize;)*
        }
        /// All constants.
        pub static CONSTANTS: [Constant; Index::COUNT as usize] = [
            $(Constant { name: $name, prior: $prior, low: $low, high: $high, what: $what },)*
        ];
    };
}

constants! {
    GEMM_AMPERE "products.ampere-hbm" 0.75 0.3 0.95 "training products, part of the dense 16-bit rate: A100 and older cards with HBM",
    GEMM_HOPPER "products.hopper" 0.6 0.3 0.95 "the same, Hopper",
    GEMM_BLACKWELL "products.blackwell" 0.6 0.3 0.95 "the same, Blackwell with HBM",
    GEMM_GDDR8 "products.gddr-ampere" 0.65 0.3 0.95 "the same, cards with GDDR up to Ampere",
    GEMM_GDDR9 "products.gddr-ada" 0.65 0.3 0.95 "the same, cards with GDDR from Ada on",
    GEMM_FP8 "products.fp8" 0.8 0.3 1.1 "of that part, what is kept of the fp8 rate",
    GEMM_FP4 "products.fp4" 0.5 0.2 1.1 "of that part, what is kept of the fp4 rate",
    GEMM_SPARSE "products.experts" 0.6 0.2 1.0 "of that part, what is kept with mixtures of experts",
    ATTENTION "attention" 0.6 0.25 1.0 "of that part, what fused attention reaches (unmasked half)",
    FUSED_BYTES "pointwise.flash" 75.0 20.0 150.0 "bytes a layer, hidden unit and token moves beside products: eager training with fused attention and norms (2 bytes an element)",
    COMPILED_BYTES "pointwise.compiled" 50.0 15.0 100.0 "the same, compiled or with fused kernels throughout",
    SPARSE_BYTES "pointwise.experts" 75.0 30.0 400.0 "the same, mixtures of experts",
    POINTWISE "pointwise.eager" 0.8 0.2 2.5 "counted bytes of eager transformers against the card's bandwidth (above 1: results are still in the cache)",
    UNPACK "unpack" 0.5 0.05 1.0 "unpacking 4-bit weights against the card's bandwidth",
    LAUNCH_LAYER "launch.layer" 3e-4 5e-5 2e-3 "seconds that the host needs for a layer's forward and backward pass, plain eager training",
    LAUNCH "launch.kernel" 1.2e-5 3e-6 5e-5 "seconds that the host needs for an operator: transformers with DeepSpeed or peft",
    LAUNCH_PACKED "launch.packed" 1.5 1.0 4.0 "the same with packed weights, times",
    NODES "data-parallel.deepspeed" 1.5 1.0 4.0 "time on several cards with ZeRO, times",
    NET_PCIE "link.pcie" 6e9 1e9 3e10 "bytes a second of sharded weights over PCIe",
    NET_NVLINK "link.nvlink" 1e11 2e10 8e11 "the same over NVLink within a host",
    NET_HOSTS "link.hosts" 3e10 5e9 4e11 "the same between hosts",
    OFFLOAD "link.offload" 1e10 1e9 6e10 "bytes a second of weights kept on the host",
    TENSOR "parallel.tensor" 0.9 0.5 1.0 "what a doubling of tensor parallelism keeps",
    READ_AMPERE "read.ampere-hbm" 0.5 0.2 0.95 "reading weights for one token, part of the bandwidth: llama.cpp, HBM up to Ampere",
    READ_HBM "read.hbm" 0.6 0.2 0.95 "the same, HBM from Hopper on",
    READ_GDDR "read.gddr" 0.9 0.3 0.97 "the same, GDDR",
    READ_UNIFIED "read.unified" 0.9 0.3 0.97 "the same, unified memory",
    TOKEN_LLAMACPP "token.llama-cpp" 8e-5 1e-5 4e-4 "seconds a layer and token beside reading: llama.cpp",
    TOKEN_EAGER "token.transformers" 6e-4 1e-4 2e-3 "the same, transformers' generate",
    TOKEN_COMPILED "token.compiled" 2e-5 2e-6 2e-4 "the same, compiled",
    READ_COMPILED "read.compiled" 0.75 0.3 0.95 "reading weights for one token, part of the bandwidth: compiled or eager PyTorch",
    ALL_REDUCE "token.all-reduce" 1e-5 5e-7 1e-4 "seconds of an all-reduce of one token",
    SPLIT "token.layer-split" 1e-4 1e-5 2e-3 "seconds a token for each further card of a layer split",
    PREFILL_HBM "prefill.hbm" 0.3 0.1 0.9 "llama.cpp's prompt, part of the dense 16-bit rate: HBM",
    PREFILL_GDDR8 "prefill.gddr-ampere" 0.4 0.1 0.9 "the same, GDDR up to Ampere",
    PREFILL_GDDR9 "prefill.gddr-ada" 0.3 0.1 0.9 "the same, GDDR from Ada on",
    PREFILL_UNIFIED "prefill.unified" 0.5 0.1 1.0 "the same, unified memory",
    PREFILL_GEFORCE "prefill.geforce" 1.9 1.0 2.5 "GeForce cards add up in 16 bits at up to twice the listed rate, times",
    PREFILL_PACKED "prefill.packed" 0.8 0.3 1.2 "with packed weights, times",
    PREFILL_CARDS "prefill.cards" 0.2 0.0 0.8 "a layer split's speed grows with this power of the number of cards",
    SERVE_PRODUCTS "serve.products" 0.5 0.2 0.95 "batched serving: products, part of the dense rate",
    SERVE_READ "serve.read" 0.7 0.3 0.95 "batched serving: reading weights",
    SERVE_CACHE "serve.cache" 0.5 0.2 0.95 "batched serving: reading the cache",
    SERVE_LAYER "serve.layer" 5e-5 5e-6 3e-4 "batched serving: seconds a layer and step",
    SERVE_SPARSE "serve.experts" 0.5 0.2 1.0 "batched serving with mixtures of experts: products, times",
}

/// A value for each constant.
#[derive(Clone, Debug, PartialEq)]
pub struct Efficiencies(pub Vec<f64>);

/// How far predictions were off, on measurements that the fit did not see (whole groups of one model, card and software left out).
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Spread {
    pub task: String,
    /// Measurements.
    pub rows: usize,
    pub median_pct: f64,
    pub p95_pct: f64,
    /// Measured over predicted: the 10th and 90th percentile. A prediction's range.
    pub low: f64,
    pub high: f64,
}

/// The file's content.
#[derive(Clone, Debug, PartialEq)]
pub struct Fitted {
    pub values: Efficiencies,
    pub spreads: Vec<Spread>,
    /// What was fitted on, and when.
    pub source: String,
    pub date: String,
}

static FILE: &str = include_str!("../../data/efficiency.csv");

impl Efficiencies {
    /// Where the fit starts.
    pub fn prior() -> Efficiencies {
        Efficiencies(CONSTANTS.iter().map(|c| c.prior).collect())
    }

    #[inline]
    pub(crate) fn get(&self, i: usize) -> f64 {
        self.0[i]
    }
}

impl Fitted {
    /// The program's own constants.
    pub fn builtin() -> &'static Fitted {
        static PARSED: OnceLock<Fitted> = OnceLock::new();
        PARSED.get_or_init(|| Fitted::parse(FILE))
    }

    /// Reads the form that [`Fitted::text`] writes; what is missing is the prior.
    pub fn parse(text: &str) -> Fitted {
        let mut out = Fitted {
            values: Efficiencies::prior(),
            spreads: Vec::new(),
            source: String::new(),
            date: String::new(),
        };
        for line in text.lines() {
            let f: Vec<&str> = line.splitn(8, ',').collect();
            let n = |i: usize| f.get(i).and_then(|t| t.parse::<f64>().ok());
            match f[..] {
                ["source", t, ..] => out.source = t.into(),
                ["date", t, ..] => out.date = t.into(),
                ["value", name, ..] => {
                    if let (Some(i), Some(v)) =
                        (CONSTANTS.iter().position(|c| c.name == name), n(2))
                    {
                        out.values.0[i] = v;
                    }
                }
                ["spread", task, ..] => {
                    if let (Some(rows), Some(m), Some(p), Some(low), Some(high)) =
                        (n(2), n(3), n(4), n(5), n(6))
                    {
                        out.spreads.push(Spread {
                            task: task.into(),
                            rows: rows as usize,
                            median_pct: m,
                            p95_pct: p,
                            low,
                            high,
                        });
                    }
                }
                _ => {}
            }
        }
        out
    }

    /// The file.
    pub fn text(&self) -> String {
        let mut out = String::from("kind,name,value,...\n");
        let _ = writeln!(out, "source,{}", self.source);
        let _ = writeln!(out, "date,{}", self.date);
        for (c, v) in CONSTANTS.iter().zip(&self.values.0) {
            let _ = writeln!(out, "value,{},{v:.4e},{}", c.name, c.what.replace(',', ";"));
        }
        for s in &self.spreads {
            let _ = writeln!(
                out,
                "spread,{},{},{:.1},{:.1},{:.3},{:.3}",
                s.task, s.rows, s.median_pct, s.p95_pct, s.low, s.high
            );
        }
        out
    }

    /// The spread of a task, or of all.
    pub fn spread(&self, task: &str) -> Option<&Spread> {
        let of = |t: &str| self.spreads.iter().find(|s| s.task == t);
        of(task).or_else(|| of("all"))
    }
}
