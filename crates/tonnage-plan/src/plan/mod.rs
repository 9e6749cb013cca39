//! The search for settings under a memory limit, and the changes that lead there.
//!
//! All settings are ranked by a lower bound of their requested bytes ([`bound`]) and the time of their counted work; what cannot fit is
//! ruled out by the bound, and every point that is shown is a full simulation with the card's own verdict.

pub mod bound;
mod full;
mod ladder;
mod search;
pub mod space;
mod wider;

pub use search::{Candidate, rank};
pub use space::{Allow, Edit};

use crate::cost::{Cost, Offer};
use crate::time::{Span, StepTime};
use serde::Serialize;
use tonnage_catalog::Gpus;
use tonnage_core::{Diagnostic, Job};
use tonnage_units::Bytes;

/// The version of the JSON form.
pub const SCHEMA: &str = "tonnage.plan/1";

/// What is wanted most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Objective {
    /// The most tokens a second that fit.
    #[default]
    Throughput,
    /// The least money for a token; on one card the same order as throughput.
    Cost,
    /// The least memory.
    Memory,
}

/// What is kept free beside what the verdict itself leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Margin {
    Bytes(u64),
    /// Part of the card's usable memory.
    Part(f64),
}

impl Margin {
    /// `5%`, or a number of bytes with its unit (`1GiB`).
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(text: &str) -> Result<Margin, String> {
        if let Some(p) = text.trim().strip_suffix('%') {
            let p: f64 = p
                .trim()
                .parse()
                .map_err(|_| format!("`{text}` is not a percentage"))?;
            return if (0.0..100.0).contains(&p) {
                Ok(Margin::Part(p / 100.0))
            } else {
                Err(format!("{p} % of the card leaves nothing"))
            };
        }
        text.parse::<Bytes>()
            .map(|b| Margin::Bytes(b.get()))
            .map_err(|e| e.to_string())
    }
}

/// The question.
#[derive(Clone, Debug)]
pub struct Options {
    /// A card, by a name that [`Options::gpus`] has.
    pub gpu: String,
    /// The cards there are: the catalog's and the user's own.
    pub gpus: Gpus,
    pub objective: Objective,
    pub allow: Vec<Allow>,
    pub margin: Margin,
    /// The user's price of the card, US dollars an hour.
    pub price: Option<f64>,
    /// Tokens of the whole work.
    pub tokens: Option<f64>,
}

impl Options {
    /// The fastest that fits, with no allowance and no margin.
    pub fn new(gpu: &str) -> Options {
        Options {
            gpu: gpu.into(),
            gpus: Gpus::builtin(),
            objective: Objective::Throughput,
            allow: Vec::new(),
            margin: Margin::Bytes(0),
            price: None,
            tokens: None,
        }
    }
}

/// Told how far the search is; may stop it.
pub trait Progress: Sync {
    /// `done` of `total` parts of `what`. False stops the search: the best so far is the answer.
    fn step(&self, what: &str, done: usize, total: usize) -> bool;
}

/// No one listens.
pub struct Silent;

impl Progress for Silent {
    fn step(&self, _: &str, _: usize, _: usize) -> bool {
        true
    }
}

pub use tonnage_core::workers::{Sequential, Workers};

/// A setting, simulated in full on the card.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// The changes from the user's settings, in words; empty: they are the user's.
    pub changes: Vec<String>,
    pub flags: Vec<String>,
    pub micro_batch_size: u64,
    pub gradient_accumulation_steps: u64,
    pub outcome: &'static str,
    pub why: String,
    pub peak_allocated_bytes: u64,
    /// What the allocator reserves with no limit.
    pub peak_reserved_bytes: u64,
    /// Available less that.
    pub margin_bytes: i64,
    pub time: StepTime,
    pub cost: Option<Cost>,
    /// What each change costs beside bytes and time.
    pub remarks: Vec<&'static str>,
    /// The changes themselves, to apply to the job.
    #[serde(skip)]
    pub edits: Vec<Edit>,
}

impl Point {
    /// Does no request have to wait, in the worst case of the device level either?
    pub fn fits(&self) -> bool {
        self.outcome == "fits"
    }
}

/// One change of the list, with what it does on top of those before it.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    pub edit: String,
    pub flags: String,
    /// Reserved bytes less than before it (negative: more).
    pub saves_bytes: i64,
    /// Seconds of a step more than before it (negative: faster), and in percent.
    pub costs_seconds: f64,
    pub costs_pct: f64,
    pub keeps_effective_batch: bool,
    pub remark: &'static str,
    /// The verdict with this and all changes before it.
    pub outcome: &'static str,
}

/// An edit that does nothing.
#[derive(Clone, Debug, Serialize)]
pub struct NoEffect {
    pub edit: String,
    pub why: &'static str,
    /// By simulation: allocated bytes less than now (a gradient scaler has a few scalars).
    pub saves_bytes: i64,
}

/// An allowance that would make the job fit.
#[derive(Clone, Debug, Serialize)]
pub struct IfAllowed {
    /// Words for `--allow`.
    pub allow: Vec<&'static str>,
    /// Changes with which it fits; with any of the user's own settings put back it does not.
    pub changes: Vec<String>,
    pub flags: Vec<String>,
}

/// How much was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Searched {
    pub candidates: usize,
    /// Of them, ruled out because a lower bound of what they request is more than there is.
    pub ruled_out: usize,
    /// Settings that cannot be simulated (a loss the model has no patch for).
    pub unsupported: usize,
    /// Full simulations.
    pub simulated: usize,
    /// The search was interrupted: what is here is the best so far.
    pub interrupted: bool,
}

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    pub schema: &'static str,
    pub job: String,
    pub gpu: String,
    pub gpu_name: String,
    /// What the allocator can have, in the worst case of the device level, less the margin.
    pub available_bytes: u64,
    pub kept_free_bytes: u64,
    pub objective: &'static str,
    pub allowed: Vec<&'static str>,
    pub effective_batch: u64,
    /// The user's own settings.
    pub yours: Point,
    pub recommended: Option<Point>,
    /// The recommended settings with the next larger micro-batch (or the next faster settings), which do not fit.
    pub next: Option<Point>,
    /// No other simulated point is both faster and smaller.
    pub front: Vec<Point>,
    /// The shortest list of changes from the user's settings to some that fit, in the order to try; if the user's own fit: to the
    /// recommended.
    pub changes: Vec<Change>,
    pub no_effect: Vec<NoEffect>,
    /// What would fit if more were allowed (only where nothing does): the fewest allowances, each way simulated in full.
    pub if_allowed: Vec<IfAllowed>,
    pub searched: Searched,
    pub offer: Option<Offer>,
    pub notes: Vec<String>,
}

impl Plan {
    /// Is there something that fits?
    pub fn fits(&self) -> bool {
        self.recommended.is_some()
    }
}

/// Time of the recommended settings over that of the user's.
pub fn speedup(p: &Plan) -> Option<Span> {
    let r = p.recommended.as_ref()?;
    Some(
        r.time
            .tokens_per_s
            .map(|t| t / p.yours.time.tokens_per_s.expected),
    )
}

/// Plans a job on a card.
///
/// # Errors
/// The card is not known, or the job itself cannot be simulated.
pub fn plan(
    job: &Job,
    options: &Options,
    workers: &dyn Workers,
    progress: &dyn Progress,
) -> Result<Plan, Vec<Diagnostic>> {
    search::plan(job, options, workers, progress)
}
