//! K32: measured against predicted, per environment. The correction is always shown, with the runs it is made of; the raw prediction stays.
//!
//! What a run allocates is corrected by the ratio of measured to predicted, what a process takes beside the allocator (context, libraries) by
//! the difference. The stated tolerance is the largest deviation of the runs themselves from the corrected prediction, never below
//! [`FLOOR_PCT`]. A ratio outside of [`PLAUSIBLE`] is another job, not a correction: it is kept and not used.

use serde::{Deserialize, Serialize};

/// The version of the file.
pub const SCHEMA: &str = "tonnage.calibration/1";

/// No tolerance is stated below this: another run of the same job moves by the allocator's own slack.
pub const FLOOR_PCT: f64 = 0.5;

/// Ratios of measured to predicted that are a correction.
pub const PLAUSIBLE: std::ops::RangeInclusive<f64> = 0.67..=1.5;

/// Runs that are kept of one environment; the oldest go first.
pub const KEPT: usize = 200;

/// Where a run ran: what moves memory between machines.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Environment {
    /// The card's id in the catalog.
    pub gpu: String,
    /// The framework and its version: `torch 2.11`.
    pub stack: String,
    /// The driver, where known.
    #[serde(default)]
    pub driver: String,
}

impl std::fmt::Display for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {}", self.gpu, self.stack)?;
        if !self.driver.is_empty() {
            write!(f, ", driver {}", self.driver)?;
        }
        Ok(())
    }
}

/// Peaks of the three levels in bytes, those that are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peaks {
    pub allocated_bytes: Option<u64>,
    pub reserved_bytes: Option<u64>,
    pub device_bytes: Option<u64>,
}

/// One measured run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    pub environment: Environment,
    /// The job's title.
    pub job: String,
    /// When, as the caller writes times.
    pub at: String,
    /// Before any correction.
    pub predicted: Peaks,
    pub measured: Peaks,
}

/// All runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Book {
    pub schema: String,
    pub runs: Vec<Run>,
}

impl Default for Book {
    fn default() -> Book {
        Book {
            schema: SCHEMA.into(),
            runs: Vec::new(),
        }
    }
}

/// One level, corrected.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Corrected {
    /// The prediction itself.
    pub raw_bytes: u64,
    pub bytes: u64,
    /// Of repeats of the runs that it is made of.
    pub tolerance_pct: f64,
}

/// A corrected prediction.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Calibrated {
    pub environment: Environment,
    /// Runs that it is made of.
    pub runs: usize,
    /// Runs of the environment that are no correction: far from their prediction.
    pub left_out: usize,
    pub allocated: Option<Corrected>,
    pub reserved: Option<Corrected>,
    pub device: Option<Corrected>,
}

/// A run that was not taken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CalibrateError {
    #[error("no level is both measured and predicted")]
    NothingMeasured,
    #[error("the file's schema is {0}, not {SCHEMA}")]
    Schema(String),
    #[error("{0}")]
    Json(String),
}

fn median(mut v: Vec<f64>) -> Option<f64> {
    v.sort_by(f64::total_cmp);
    let n = v.len();
    match n {
        0 => None,
        _ if n % 2 == 1 => Some(v[n / 2]),
        _ => Some((v[n / 2 - 1] + v[n / 2]) / 2.0),
    }
}

fn ratio(predicted: Option<u64>, measured: Option<u64>) -> Option<f64> {
    let p = predicted.filter(|p| *p > 0)?;
    Some(measured? as f64 / p as f64)
}

/// What a process takes beside the allocator.
fn beside(p: &Peaks) -> Option<f64> {
    Some(p.device_bytes? as f64 - p.reserved_bytes? as f64)
}

impl Run {
    /// Is it a correction of its job's prediction?
    pub fn plausible(&self) -> bool {
        let all = [
            ratio(
                self.predicted.allocated_bytes,
                self.measured.allocated_bytes,
            ),
            ratio(self.predicted.reserved_bytes, self.measured.reserved_bytes),
            ratio(self.predicted.device_bytes, self.measured.device_bytes),
        ];
        all.iter().flatten().all(|r| PLAUSIBLE.contains(r))
    }
}

impl Book {
    /// From its file's text.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Book, CalibrateError> {
        let b: Book =
            serde_json::from_str(text).map_err(|e| CalibrateError::Json(e.to_string()))?;
        match b.schema.as_str() {
            SCHEMA => Ok(b),
            other => Err(CalibrateError::Schema(other.into())),
        }
    }

    /// As its file's text.
    pub fn write(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Adds a run.
    ///
    /// # Errors
    /// Nothing in it can be compared.
    pub fn add(&mut self, run: Run) -> Result<(), CalibrateError> {
        let (p, m) = (&run.predicted, &run.measured);
        let any = [
            ratio(p.allocated_bytes, m.allocated_bytes),
            ratio(p.reserved_bytes, m.reserved_bytes),
            ratio(p.device_bytes, m.device_bytes),
        ];
        if any.iter().flatten().next().is_none() {
            return Err(CalibrateError::NothingMeasured);
        }
        let e = run.environment.clone();
        self.runs.push(run);
        let of = |r: &Run| r.environment == e;
        while self.runs.iter().filter(|r| of(r)).count() > KEPT {
            if let Some(i) = self.runs.iter().position(of) {
                self.runs.remove(i);
            }
        }
        Ok(())
    }

    /// Forgets the runs of an environment, or all; says how many.
    pub fn forget(&mut self, environment: Option<&Environment>) -> usize {
        let before = self.runs.len();
        self.runs
            .retain(|r| environment.is_some_and(|e| r.environment != *e));
        before - self.runs.len()
    }

    /// The environments that have runs.
    pub fn environments(&self) -> Vec<Environment> {
        let mut all: Vec<Environment> = self.runs.iter().map(|r| r.environment.clone()).collect();
        all.sort();
        all.dedup();
        all
    }

    /// A prediction corrected for an environment; none where it has no run that can be used. An environment without a driver stands for any.
    pub fn correct(&self, environment: &Environment, raw: &Peaks) -> Option<Calibrated> {
        let same = |r: &&Run| {
            let e = &r.environment;
            let driver = environment.driver.is_empty()
                || e.driver.is_empty()
                || e.driver == environment.driver;
            e.gpu == environment.gpu && e.stack == environment.stack && driver
        };
        let (used, out): (Vec<&Run>, Vec<&Run>) =
            self.runs.iter().filter(same).partition(|r| r.plausible());
        if used.is_empty() {
            return None;
        }
        let allocated = |r: &Run| ratio(r.predicted.allocated_bytes, r.measured.allocated_bytes);
        let reserved = |r: &Run| ratio(r.predicted.reserved_bytes, r.measured.reserved_bytes);
        let factor =
            |of: &dyn Fn(&Run) -> Option<f64>| median(used.iter().filter_map(|r| of(r)).collect());
        let a = factor(&allocated);
        let r = factor(&reserved);
        // beside the allocator: a difference where both levels are known, else a ratio of the whole
        let more = median(
            used.iter()
                .filter_map(|r| Some(beside(&r.measured)? - beside(&r.predicted)?))
                .collect(),
        );
        let whole = factor(&|r: &Run| ratio(r.predicted.device_bytes, r.measured.device_bytes));
        let device = |p: &Peaks| -> Option<f64> {
            let d = p.device_bytes? as f64;
            match (more, r, p.reserved_bytes) {
                (Some(m), Some(r), Some(res)) => Some(res as f64 * r + (d - res as f64) + m),
                _ => Some(d * whole?),
            }
        };
        let by = |f: Option<f64>, p: Option<u64>| Some(p? as f64 * f?);
        let corrected = |raw: Option<u64>,
                         of: &dyn Fn(&Peaks) -> Option<f64>,
                         measured: &dyn Fn(&Peaks) -> Option<u64>,
                         mine: &Peaks| {
            let value = of(mine)?;
            let worst = used
                .iter()
                .filter_map(|r| {
                    let (c, m) = (of(&r.predicted)?, measured(&r.measured)?);
                    Some(100.0 * (c - m as f64).abs() / m.max(1) as f64)
                })
                .fold(0.0, f64::max);
            Some(Corrected {
                raw_bytes: raw?,
                bytes: value.max(0.0).round() as u64,
                tolerance_pct: worst.max(FLOOR_PCT),
            })
        };
        Some(Calibrated {
            environment: environment.clone(),
            runs: used.len(),
            left_out: out.len(),
            allocated: corrected(
                raw.allocated_bytes,
                &|p| by(a, p.allocated_bytes),
                &|m| m.allocated_bytes,
                raw,
            ),
            reserved: corrected(
                raw.reserved_bytes,
                &|p| by(r, p.reserved_bytes),
                &|m| m.reserved_bytes,
                raw,
            ),
            device: corrected(raw.device_bytes, &device, &|m| m.device_bytes, raw),
        })
    }
}
