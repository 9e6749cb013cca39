//! Fit over cards and sizes: which cards hold a job, the largest value of a knob on a card, what a size of memory can train.
//!
//! Every answer is [`verdict`](tonnage_core::verdict::verdict)'s: the job simulated with the card's kernels, and its allocator run again
//! with the card's memory. What can be said without that second run is said without it
//! ([`outcome`](tonnage_core::verdict::outcome)), never differently.

pub mod grid;
pub mod have;
pub mod largest;
pub mod need;
pub mod over;
pub mod runs;
pub mod sizes;
pub mod sizes_text;
pub mod text;

use serde::Serialize;
use tonnage_catalog::{Gpu, Gpus};
use tonnage_core::footprint::analysis::analyse;
use tonnage_core::job::kernel_device;
use tonnage_core::train::simulate_until_repeat;
use tonnage_core::verdict::{Device, Outcome, Verdict, outcome, verdict};
use tonnage_core::{CoreError, Diagnostic, Job, Simulated};
use tonnage_model::ModelError;
use tonnage_sim::alloc::{AllocatorConfig, CachingAllocator, Peaks, replay};
use tonnage_sim::kernels::KernelDevice;
use tonnage_sim::timeline::Event;

/// The version of the JSON forms of all questions about training.
pub const SCHEMA: &str = "tonnage.fit-training/1";

/// What of a card is not this job's to have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Here {
    /// What its driver calls free before the job starts; `None`: all.
    pub free: Option<u64>,
    /// To be left to others besides (a display).
    pub reserve: u64,
}

impl Here {
    /// The card less that.
    pub fn on(self, mut d: Device) -> Device {
        if let Some(free) = self.free {
            d.free_now = Some(free.min(d.usable.expected));
        }
        d.set_aside = self.reserve;
        d
    }
}

/// Bytes of a card that others hold or are to have.
pub(crate) fn taken(d: &Device) -> u64 {
    d.usable.expected
        - d.free_now
            .unwrap_or(d.usable.expected)
            .min(d.usable.expected)
        + d.set_aside
}

/// A card that no verdict can be given for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Unanswered {
    pub gpu: String,
    pub why: String,
}

/// Cards whose kernels are the same: one simulation is all of theirs.
#[derive(Clone, Debug)]
pub struct Class {
    pub kernel: KernelDevice,
    pub cards: Vec<Device>,
}

/// Sorts cards into classes, those without figures apart.
pub fn classes(gpus: impl IntoIterator<Item = Gpu>, here: Here) -> (Vec<Class>, Vec<Unanswered>) {
    let (mut classes, mut none): (Vec<Class>, Vec<Unanswered>) = (vec![], vec![]);
    for g in gpus {
        let gpu = g.id.clone();
        let kernel = kernel_device(&g).map_err(|d| d.message);
        let device = Device::of(g).map_err(|e| e.to_string());
        match (kernel, device) {
            (Ok(kernel), Ok(d)) => {
                let d = here.on(d);
                match classes.iter_mut().find(|c| c.kernel == kernel) {
                    Some(c) => c.cards.push(d),
                    None => classes.push(Class {
                        kernel,
                        cards: vec![d],
                    }),
                }
            }
            (Err(why), _) | (_, Err(why)) => none.push(Unanswered { gpu, why }),
        }
    }
    (classes, none)
}

/// A job simulated with a card's kernels, and what an allocator without a limit did.
pub struct Tried {
    pub simulated: Simulated,
    peaks: Peaks,
    config: AllocatorConfig,
}

/// The highest of each over a run without a limit, loading included.
fn peaks(events: &[Event], config: &AllocatorConfig) -> Peaks {
    // without a limit only what no card has is refused
    let mut a = CachingAllocator::new(config.clone(), None);
    match replay(events, &[], &mut a) {
        Ok(r) => r.peaks,
        Err(_) => a.peaks(),
    }
}

/// What keeps a job from being simulated.
fn refused(e: &CoreError) -> Vec<Diagnostic> {
    let code = match e {
        CoreError::Unsupported(_)
        | CoreError::Model(ModelError::NoForward(_) | ModelError::Unsupported(..)) => "unsupported",
        CoreError::Model(_) => "bad-model",
        _ => "bad-job",
    };
    vec![Diagnostic::error(code, e.to_string())]
}

fn allocator(job: &Job) -> Result<AllocatorConfig, Vec<Diagnostic>> {
    job.allocator()
        .map_err(|e| vec![Diagnostic::error("bad-value", e.to_string())])
}

impl Tried {
    /// Simulates a job.
    ///
    /// # Errors
    /// What `estimate` says to it.
    pub fn new(job: &Job, gpu: &Gpu) -> Result<Tried, Vec<Diagnostic>> {
        let spec = job.spec(gpu)?;
        let config = allocator(job)?;
        let simulated = simulate_until_repeat(&spec, &config).map_err(|e| refused(&e))?;
        Ok(Tried {
            peaks: peaks(&simulated.timeline.events, &config),
            simulated,
            config,
        })
    }

    /// Reserved bytes without a limit, at the highest.
    pub fn wanted(&self) -> u64 {
        self.peaks.reserved
    }

    /// Requested bytes at the highest: what no allocator can do without.
    pub fn requested(&self) -> u64 {
        self.peaks.requested
    }

    /// Allocated bytes at the highest of the steps: `estimate`'s.
    pub fn allocated(&self) -> u64 {
        analyse(&self.simulated, &self.config).peak.allocated
    }

    /// The full verdict on a card.
    pub fn verdict(&self, d: &Device) -> Verdict {
        verdict(&self.simulated, &self.config, d, self.wanted())
    }

    /// The outcome on a card; [`Tried::verdict`] says the same.
    pub fn outcome(&self, d: &Device) -> Outcome {
        let run = (
            &self.simulated.timeline.events[..],
            self.simulated.cut.as_deref(),
        );
        outcome(run, &self.config, Some(&self.peaks), d).0
    }
}

/// A job on a card.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub gpu: String,
    pub name: String,
    /// What CUDA calls the card's total, expected.
    pub usable_bytes: u64,
    /// What other processes hold of it.
    pub taken_bytes: u64,
    /// What is left to the allocator beside these, the context and the libraries, expected.
    pub available_bytes: u64,
    /// Highest reserved without a limit, with context and libraries: the device level of `estimate`.
    pub needed_bytes: u64,
    /// `available_bytes` less the highest reserved without a limit; negative where cached blocks must be given back, or it fails.
    pub margin_bytes: i64,
    pub outcome: Outcome,
}

/// The row of a job on a card.
pub fn row(t: &Tried, d: &Device) -> Row {
    row_of(t.wanted(), t.outcome(d), d)
}

fn row_of(wanted: u64, outcome: Outcome, d: &Device) -> Row {
    let (available, _) = d.room();
    let (_, outside, _) = d.outside();
    Row {
        gpu: d.gpu.id.clone(),
        name: d.gpu.name.clone(),
        usable_bytes: d.usable.expected,
        taken_bytes: taken(d),
        available_bytes: available,
        needed_bytes: wanted + outside,
        margin_bytes: margin(available, wanted),
        outcome,
    }
}

fn margin(available: u64, wanted: u64) -> i64 {
    i64::try_from(i128::from(available) - i128::from(wanted)).unwrap_or(i64::MIN)
}

/// A card of `memory` usable bytes (all that CUDA reports) that is otherwise `like`.
pub fn of_memory(like: &Gpu, memory: u64, here: Here) -> Result<Device, Vec<Diagnostic>> {
    let mut d = Device::of(like.clone())
        .map_err(|e| vec![Diagnostic::error("unsupported", e.to_string())])?;
    d.usable.low = memory;
    d.usable.expected = memory;
    d.usable.high = memory;
    d.usable.source = "as asked for".into();
    d.gpu.name = format!(
        "a card of this memory (kernels and context of {})",
        d.gpu.name
    );
    Ok(here.on(d))
}

/// The catalog's cards that pass `keep`.
pub fn cards<'a>(
    gpus: &'a Gpus,
    keep: impl Fn(&Gpu) -> bool + 'a,
) -> impl Iterator<Item = Gpu> + 'a {
    gpus.iter().filter(move |g| keep(g))
}
