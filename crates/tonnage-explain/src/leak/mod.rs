//! Does memory grow with the steps of a run? Since when, how fast, how surely, and when is the device full.
//!
//! A leak is growth that is *steady* (most parts of the recording grow, so that one step up is none), that *lasts* to the end of the
//! recording at no less than 0.4 of its own rate (so that a cache that fills up is none), and that stands out of the noise with what the
//! noise's own correlation leaves of the samples.
//!
//! ```
//! use tonnage_explain::leak::{Finding, Series};
//! let mut s = Series::default();
//! for step in 0..200u32 {
//!     s.push(f64::from(step), (8 << 30) + u64::from(step % 7) * (3 << 20) + u64::from(step) * (1 << 20));
//! }
//! let v = s.verdict();
//! assert_eq!(v.finding, Finding::Leak);
//! assert!((v.slope / f64::from(1 << 20) - 1.0).abs() < 0.1);
//! let steps = v.until_full(10 << 30).unwrap();
//! assert!((steps / 1848.0 - 1.0).abs() < 0.2);
//! ```

mod fit;

use serde::Serialize;
use tonnage_units::Bytes;

/// Fewer samples than these decide nothing.
pub const MIN_SAMPLES: usize = 20;

/// Growth of a whole recording below this is not called a leak: the granularity of the drivers and of small segments.
pub const MIN_GROWTH: f64 = 2.0 * 1024.0 * 1024.0;

/// A recording longer than twice this is reduced to averages while it is taken, so that its memory is bounded.
const CAPACITY: usize = 8192;

/// Memory in use (bytes) over steps, or over seconds. Bounded: neighbours of a long recording are averaged.
#[derive(Clone, Debug, Default)]
pub struct Series {
    points: Vec<(f64, f64)>,
    /// How many samples make one point.
    stride: usize,
    pending: (f64, f64, usize),
    samples: usize,
}

impl Series {
    /// Adds a sample. `at` is a step or a time and must not fall: a sample that goes back, or is no number, is ignored.
    pub fn push(&mut self, at: f64, bytes: u64) {
        let last = self.points.last().map_or(f64::NEG_INFINITY, |p| p.0);
        if !at.is_finite() || at < last {
            return;
        }
        self.samples += 1;
        self.stride = self.stride.max(1);
        let p = &mut self.pending;
        *p = (p.0 + at, p.1 + bytes as f64, p.2 + 1);
        if p.2 < self.stride {
            return;
        }
        let n = p.2 as f64;
        self.points.push((p.0 / n, p.1 / n));
        self.pending = (0.0, 0.0, 0);
        if self.points.len() >= 2 * CAPACITY {
            self.points = self
                .points
                .chunks(2)
                .map(|c| {
                    let n = c.len() as f64;
                    let sum = c.iter().fold((0.0, 0.0), |a, p| (a.0 + p.0, a.1 + p.1));
                    (sum.0 / n, sum.1 / n)
                })
                .collect();
            self.stride *= 2;
        }
    }

    /// Of one sample a step.
    pub fn of_steps(bytes: impl IntoIterator<Item = u64>) -> Series {
        let mut s = Series::default();
        for (i, b) in bytes.into_iter().enumerate() {
            s.push(i as f64, b);
        }
        s
    }

    /// How many samples were taken.
    pub fn len(&self) -> usize {
        self.samples
    }

    /// No sample yet.
    pub fn is_empty(&self) -> bool {
        self.samples == 0
    }

    /// What the recording says so far.
    pub fn verdict(&self) -> Verdict {
        fit::verdict(&self.points, self.samples)
    }
}

/// What a recording says about growth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// Too few samples ([`MIN_SAMPLES`]).
    TooShort,
    /// No growth that stands out of the noise.
    Flat,
    /// It grew and stopped: warm-up, a cache that filled, one step up.
    Settled,
    /// It grows steadily, to the end of the recording.
    Leak,
}

/// Growth per step and whether it is a leak.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The answer.
    pub finding: Finding,
    /// Bytes a step (or a second) since `first_step`; of the whole recording where there is no leak.
    pub slope: f64,
    /// Standard error of `slope`.
    pub slope_error: f64,
    /// Where the growth begins: the first step of the recording, or a later one. Only of a leak.
    pub first_step: Option<f64>,
    /// 0 to 1: how surely growth is not noise. Of a leak at least 0.9999.
    pub confidence: f64,
    /// Scatter around the line (standard deviation, bytes).
    pub noise: f64,
    /// The line's value at the last sample, bytes.
    pub level: f64,
    /// The last sample's step.
    pub last_step: f64,
    /// How many samples it is made of.
    pub samples: usize,
}

impl Verdict {
    /// Is it a leak?
    pub fn is_leak(&self) -> bool {
        self.finding == Finding::Leak
    }

    /// Steps (or seconds) from the last sample until `limit` bytes are reached; none where nothing grows.
    pub fn until_full(&self, limit: u64) -> Option<f64> {
        (self.is_leak() && self.slope > 0.0)
            .then(|| ((limit as f64 - self.level) / self.slope).max(0.0))
    }

    /// One sentence; `unit` is `step` or `second`.
    pub fn sentence(&self, unit: &str) -> String {
        let amount = |b: f64| Bytes(b.abs().round() as u64);
        match self.finding {
            Finding::TooShort => format!(
                "{} samples are too few to tell a leak from noise ({MIN_SAMPLES} are needed)",
                self.samples
            ),
            Finding::Flat => {
                format!(
                    "no leak: memory is level within {} of noise",
                    amount(self.noise)
                )
            }
            Finding::Settled => "no leak: memory rose and then stayed level".into(),
            Finding::Leak => format!(
                "leak: {} a {unit} since {unit} {:.0} (confidence {:.2} %)",
                amount(self.slope),
                self.first_step.unwrap_or(0.0),
                100.0 * self.confidence
            ),
        }
    }
}
