//! A claim: a number about memory that a document prints, with what it is about.

use serde::Serialize;
use std::collections::BTreeMap;

/// What the job does in the claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Training,
    /// Generation of tokens, inference, evaluation without gradients.
    Inference,
    /// The claim compares the two, or is about neither.
    Any,
}

/// A part of a total.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    Weights,
    Adapter,
    Gradients,
    Optimizer,
    Activations,
    /// What backward is said to need besides.
    Backward,
    KvCache,
    Inputs,
    Working,
    Overhead,
}

impl Part {
    /// As reports say it.
    pub fn name(self) -> &'static str {
        match self {
            Part::Weights => "weights",
            Part::Adapter => "adapters",
            Part::Gradients => "gradients",
            Part::Optimizer => "optimizer states",
            Part::Activations => "activations",
            Part::Backward => "backward",
            Part::KvCache => "KV cache",
            Part::Inputs => "inputs",
            Part::Working => "working memory",
            Part::Overhead => "overhead",
        }
    }
}

/// How a model is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    Full,
    Lora,
    Qlora,
}

impl Method {
    /// The word of a settings table.
    pub fn name(self) -> &'static str {
        match self {
            Method::Full => "full",
            Method::Lora => "lora",
            Method::Qlora => "qlora",
        }
    }
}

/// What a card is said to be for a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Minimum,
    Recommended,
    Optimal,
    /// It is said to hold the job.
    Fits,
}

impl Role {
    /// As reports say it.
    pub fn name(self) -> &'static str {
        match self {
            Role::Minimum => "minimum card",
            Role::Recommended => "recommended card",
            Role::Optimal => "optimal card",
            Role::Fits => "card that fits",
        }
    }
}

/// What the number is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "of")]
pub enum What {
    /// Memory that the job needs.
    Total,
    /// The same, as a range's low, middle or high case: `minimum`, `typical`, `maximum`.
    Case(String),
    Part(Part),
    /// Parameters, in millions.
    Parameters,
    /// A card's memory.
    Card(Role),
    /// The batch for a card.
    Batch,
    /// Percent (or bytes) that a change saves.
    Saving(String),
    /// Training total over generation total.
    TrainToGenerate,
    /// Total over weights.
    TotalToWeights,
    /// The largest model that a memory trains.
    Largest(Method),
    /// The memory that training a model needs.
    Needed(Method),
    /// From which total on a level of advice holds.
    Threshold(String),
    /// The level of advice given.
    Level(String),
    /// Memory that something adds to the job.
    Extra(String),
    /// Kept and shown, not judged.
    Other(String),
}

impl What {
    /// As reports say it.
    pub fn name(&self) -> String {
        match self {
            What::Total => "total".into(),
            What::Case(c) => format!("total, {c}"),
            What::Part(p) => p.name().into(),
            What::Parameters => "parameters".into(),
            What::Card(r) => r.name().into(),
            What::Batch => "batch".into(),
            What::Saving(of) => format!("saving of {of}"),
            What::TrainToGenerate => "training / generation".into(),
            What::TotalToWeights => "total / weights".into(),
            What::Largest(m) => format!("largest model, {}", m.name()),
            What::Needed(m) => format!("memory for {}", m.name()),
            What::Threshold(l) => format!("threshold of \"{l}\""),
            What::Level(_) => "advice".into(),
            What::Extra(e) | What::Other(e) => e.clone(),
        }
    }
}

/// The unit as printed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Bytes of one: what the document means at least and at most ("GB" without a word is 10^9 to 2^30).
    Memory {
        least: f64,
        most: f64,
    },
    Percent,
    Ratio,
    Samples,
    Millions,
    None,
}

impl Unit {
    /// "GB", "MiB", "GB (2^30)", "GB (1e9)", "percent", ... ; `None` where the word is not known.
    pub fn parse(text: &str) -> Option<Unit> {
        let lower = text.trim().to_ascii_lowercase();
        let power = match lower.split([' ', '(']).next().unwrap_or("") {
            "kb" | "kib" | "k" => 1,
            "mb" | "mib" | "m" if lower != "m" => 2,
            "gb" | "gib" | "g" | "gigs" => 3,
            "tb" | "tib" => 4,
            "percent" | "%" => return Some(Unit::Percent),
            "ratio" | "x" => return Some(Unit::Ratio),
            "samples" => return Some(Unit::Samples),
            "m" | "million" | "millions" => return Some(Unit::Millions),
            "" | "level" => return Some(Unit::None),
            _ => return None,
        };
        let decimal = 1000f64.powi(power);
        let binary = 1024f64.powi(power);
        let (least, most) = if lower.contains("1e9") {
            (decimal, decimal)
        } else if lower.contains("2^30") || lower.contains("ib") {
            (binary, binary)
        } else {
            (decimal, binary)
        };
        Some(Unit::Memory { least, most })
    }

    /// As reports print a number of it.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Memory { least, most } => match (least < most, most) {
                (true, m) if m >= 1e12 => "TB",
                (true, m) if m >= 1e9 => "GB",
                (true, m) if m >= 1e6 => "MB",
                (true, _) => "kB",
                (false, m) if m >= 1e12 => "TiB",
                (false, 1e9) => "GB",
                (false, m) if m >= 1e9 => "GiB",
                (false, m) if m >= 1e6 => "MiB",
                (false, _) => "KiB",
            },
            Unit::Percent => "%",
            Unit::Ratio => "x",
            Unit::Samples => "samples",
            Unit::Millions => "M",
            Unit::None => "",
        }
    }
}

/// Settings under which a claim is made, as the document names them (`batch_size` = `8`).
pub type Settings = BTreeMap<String, String>;

/// A claim.
#[derive(Clone, Debug, Serialize)]
pub struct Claim {
    /// Its name in reports and in a bindings file.
    pub id: String,
    /// First line of the document that it stands on; 0 where unknown.
    pub line: u64,
    /// Claims of one table, list or paragraph share it.
    pub block: String,
    /// What it was read from.
    pub text: String,
    /// The model or job that it is about, in the document's words.
    pub subject: String,
    pub phase: Phase,
    pub what: What,
    pub low: f64,
    /// `None`: open-ended.
    pub high: Option<f64>,
    pub unit: Unit,
    pub settings: Settings,
    /// The card that it names.
    pub gpu: Option<String>,
    /// Memory in GB printed beside that name.
    pub gpu_memory: Option<f64>,
    /// The model that it names as an answer ([`What::Largest`]).
    pub answer: Option<String>,
    /// "yes", "tight", ... where a verdict is printed.
    pub verdict: Option<String>,
}

impl Claim {
    /// A claim of nothing yet, at a place.
    pub fn at(id: impl Into<String>, line: u64, block: impl Into<String>) -> Claim {
        Claim {
            id: id.into(),
            line,
            block: block.into(),
            text: String::new(),
            subject: String::new(),
            phase: Phase::Any,
            what: What::Total,
            low: 0.0,
            high: None,
            unit: Unit::None,
            settings: Settings::new(),
            gpu: None,
            gpu_memory: None,
            answer: None,
            verdict: None,
        }
    }

    /// The bytes meant, (least, most); `None` where it is no amount of memory. An open end is infinite.
    pub fn bytes(&self) -> Option<(f64, f64)> {
        let Unit::Memory { least, most } = self.unit else {
            return None;
        };
        let high = self.high.map_or(f64::INFINITY, |h| h * most);
        Some((self.low * least, high))
    }

    /// One unit in the last printed place of the number, in the claim's unit.
    pub fn last_place(&self) -> f64 {
        let places = |v: f64| {
            format!("{v}")
                .split_once('.')
                .map_or(0, |(_, d)| d.len() as i32)
        };
        let most = places(self.low).max(self.high.map_or(0, places));
        10f64.powi(-most)
    }

    /// The number as printed: `2.5-3 GB`.
    pub fn printed(&self) -> String {
        if self.unit == Unit::None && self.low == 0.0 {
            return self.answer.clone().unwrap_or_default();
        }
        let n = match self.high {
            Some(h) if h == self.low => format!("{}", self.low),
            Some(h) => format!("{}-{h}", self.low),
            None => format!("{}+", self.low),
        };
        let unit = self.unit.name();
        let gap = if matches!(self.unit, Unit::Percent | Unit::Ratio) || unit.is_empty() {
            ""
        } else {
            " "
        };
        format!("{n}{gap}{unit}")
    }

    /// `batch_size 8, seq_len 2048`.
    pub fn conditions(&self) -> String {
        let all: Vec<String> = self
            .settings
            .iter()
            .map(|(k, v)| format!("{k} {v}"))
            .chain(self.gpu.iter().map(|g| format!("on {g}")))
            .collect();
        all.join(", ")
    }
}
