//! The time of a job's step on a card.

use super::card::Card;
use super::efficiency::{Fitted, k};
use super::shape::from_config;
use super::work::{PassWork, StepWork};
use serde::Serialize;
use tonnage_core::Spec;
use tonnage_core::spec::Work;

/// A figure with its range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Span {
    pub low: f64,
    pub expected: f64,
    pub high: f64,
}

impl Span {
    /// The same, each bound through a function that grows.
    pub fn map(self, f: impl Fn(f64) -> f64) -> Span {
        Span {
            low: f(self.low),
            expected: f(self.expected),
            high: f(self.high),
        }
    }
    /// `x / self`.
    pub fn of(self, x: f64) -> Span {
        Span {
            low: x / self.high,
            expected: x / self.expected,
            high: x / self.low,
        }
    }
}

/// A part of a step's time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    pub what: &'static str,
    pub seconds: f64,
}

/// How long a step takes (training: one optimizer step; generation: one batch of answers; forward: one call).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepTime {
    pub gpu: String,
    pub seconds: Span,
    /// Tokens (positions, new tokens, or images where the model has no positions) a second.
    pub tokens_per_s: Span,
    pub tokens_per_step: u64,
    pub flops_per_step: f64,
    /// Where the expected seconds go. Host and card work at the same time: the parts may add up to more.
    pub parts: Vec<Part>,
    /// Whose errors the range is made of.
    pub range_from: String,
    pub notes: Vec<String>,
}

impl StepTime {
    /// The catalog has no rates of the card: no speed.
    pub fn unknown(gpu: &str, work: &StepWork) -> StepTime {
        let one = Span {
            low: 1.0,
            expected: 1.0,
            high: 1.0,
        };
        StepTime {
            gpu: gpu.into(),
            seconds: one,
            tokens_per_s: one,
            tokens_per_step: work.tokens_per_step(),
            flops_per_step: work.flops(),
            parts: Vec::new(),
            range_from: String::new(),
            notes: vec![format!(
                "the catalog has no rates of {gpu}: its speed is not known, all settings count as equally fast"
            )],
        }
    }
}

/// Seconds of a pass on the card, by kind.
fn device(w: &PassWork, card: &Card, f: &Fitted, read: f64) -> [f64; 4] {
    let e = &f.values;
    let part = card.products(e);
    let products: f64 = w
        .products
        .iter()
        .map(|(dtype, flops)| {
            let rate = match dtype.as_str() {
                // PyTorch multiplies fp32 without TF32 unless told
                "f32" | "fp32" | "float32" => card.fp32,
                "i8" | "int8" => card.int8,
                _ => card.r16,
            };
            flops / (rate * part)
        })
        .sum();
    let products = products.max(w.product_bytes / (card.bandwidth * read));
    let attention = w.attention_flops / (card.r16 * part * e.0[k::ATTENTION]);
    let pointwise = w.pointwise_bytes / (card.bandwidth * e.0[k::POINTWISE]);
    let unpack = w.unpack_bytes / (card.bandwidth * e.0[k::UNPACK]);
    [products, attention, pointwise, unpack]
}

/// The longer of card and host, without a corner.
fn beside(card: f64, host: f64) -> f64 {
    let m = card.max(host).max(1e-12);
    m * ((card / m).powi(6) + (host / m).powi(6)).powf(1.0 / 6.0)
}

/// Spread of the published rows that are nearest to a job: low and high factors of a speed.
fn spread(spec: &Spec, f: &Fitted) -> (f64, f64, String) {
    let tasks: &[&str] = match (spec.work, spec.lora.is_some(), spec.quant.is_some()) {
        (Work::Generate(_), ..) => &["decode"],
        (Work::Forward, ..) => &["prefill"],
        (_, true, true) => &["qlora"],
        (_, true, false) => &["lora"],
        // few rows tune all weights: those that pretrain, and the wider ones that tune
        _ => &["pretrain", "lora"],
    };
    let mut out = (1.0f64, 1.0f64);
    let mut said = Vec::new();
    for t in tasks {
        if let Some(s) = f.spread(t) {
            out = (out.0.min(s.low), out.1.max(s.high));
            said.push(format!(
                "{t}: {} rows, median error {:.0} %",
                s.rows, s.median_pct
            ));
        }
    }
    (
        out.0,
        out.1,
        format!(
            "10th to 90th percentile of measured over predicted, rows left out of the fit ({})",
            said.join("; ")
        ),
    )
}

/// The time of a step whose work is counted.
pub fn time_of(work: &StepWork, spec: &Spec, card: &Card, f: &Fitted) -> StepTime {
    let e = &f.values;
    let read = card.read(e).max(e.0[k::READ_COMPILED]);
    let [products, attention, pointwise, unpack] = device(&work.pass, card, f, read);
    let host = work.pass.kernels as f64 * e.0[k::LAUNCH];
    let passes = work.passes as f64;
    let pass = beside(products + attention + pointwise + unpack, host);
    let optimizer = work.optimizer_bytes / card.bandwidth;
    let mut parts = vec![
        Part {
            what: "matrix products",
            seconds: products * passes,
        },
        Part {
            what: "attention",
            seconds: attention * passes,
        },
        Part {
            what: "pointwise operators and copies",
            seconds: pointwise * passes,
        },
    ];
    let mut say = |what, seconds: f64| {
        if seconds > 0.0 {
            parts.push(Part { what, seconds });
        }
    };
    say("unpacking quantised weights", unpack * passes);
    say("host (launches)", host * passes);
    say("optimizer", optimizer);
    let mut seconds = pass * passes + optimizer;
    if let Some(t) = &work.token {
        let [p, a, w, u] = device(t, card, f, e.0[k::READ_COMPILED].min(read));
        let layers = from_config(&spec.config).map_or(t.kernels as f64 / 30.0, |s| s.layers);
        // as fitted: reading, and what the host needs for a token whatever its batch
        let token = p + a + w + u + layers * e.0[k::TOKEN_EAGER];
        say("new tokens", token * work.new_tokens as f64);
        seconds += token * work.new_tokens as f64;
    }
    let (low, high, range_from) = spread(spec, f);
    let tokens = work.tokens_per_step();
    let mut notes = vec![
        "speeds are of one card; loading data, evaluation and checkpoints are not counted".into(),
    ];
    if card.extrapolated {
        notes.push(format!(
            "no published row of a card like {} was fitted: its speed is extrapolated",
            card.id
        ));
    }
    StepTime {
        gpu: card.id.clone(),
        seconds: Span {
            low: seconds / high,
            expected: seconds,
            high: seconds / low,
        },
        tokens_per_s: Span {
            low: tokens as f64 / seconds * low,
            expected: tokens as f64 / seconds,
            high: tokens as f64 / seconds * high,
        },
        tokens_per_step: tokens,
        flops_per_step: work.flops(),
        parts,
        range_from,
        notes,
    }
}
