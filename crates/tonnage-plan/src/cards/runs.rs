//! The runs of one job on many cards: few are simulated, the others follow from what those asked their card
//! ([`tonnage_sim::asked`]).

use super::{Class, allocator, peaks, refused};
use std::borrow::Cow;
use std::cell::OnceCell;
use std::rc::Rc;
use tonnage_core::verdict::{Device, Outcome, outcome};
use tonnage_core::{Diagnostic, Job, Simulated, simulate_noting};
use tonnage_sim::alloc::{AllocatorConfig, Peaks};
use tonnage_sim::asked::{Asked, Patch, patched};
use tonnage_sim::kernels::KernelDevice;
use tonnage_sim::timeline::{Event, EventKind};

/// One run that was simulated.
struct Own {
    kernel: KernelDevice,
    simulated: Simulated,
    asked: Box<Asked>,
    peaks: Rc<OnceCell<Peaks>>,
    /// Runs of other cards that came out of it. Cards of the same sizes have the same run.
    others: Vec<(Patch, Rc<OnceCell<Peaks>>)>,
}

/// The runs of a job.
pub struct Runs<'a> {
    job: &'a Job,
    config: AllocatorConfig,
    own: Vec<Own>,
}

/// A run on a class of cards.
pub struct Run<'a> {
    events: Cow<'a, [Event]>,
    of: &'a Own,
    config: &'a AllocatorConfig,
    peaks: Rc<OnceCell<Peaks>>,
}

impl Run<'_> {
    fn peaks(&self) -> &Peaks {
        self.peaks.get_or_init(|| peaks(&self.events, self.config))
    }

    /// Reserved bytes without a limit, at the highest.
    pub fn wanted(&self) -> u64 {
        self.peaks().reserved
    }

    /// Requested bytes at the highest: what no allocator can do without.
    pub fn requested(&self) -> u64 {
        self.peaks().requested
    }

    /// The outcome on a card of the class; [`super::Tried::verdict`] says the same.
    pub fn outcome(&self, d: &Device) -> Outcome {
        let cut = self.of.simulated.cut.as_deref();
        let (o, peaks) = outcome((&self.events, cut), self.config, self.peaks.get(), d);
        if let Some(p) = peaks {
            // already known where it is the same
            let _ = self.peaks.set(p);
        }
        o
    }
}

impl<'a> Runs<'a> {
    /// Of this job, none yet.
    ///
    /// # Errors
    /// The job's allocator settings make no sense.
    pub fn new(job: &'a Job) -> Result<Runs<'a>, Vec<Diagnostic>> {
        Ok(Runs {
            job,
            config: allocator(job)?,
            own: vec![],
        })
    }

    /// How many were simulated.
    pub fn simulated(&self) -> usize {
        self.own.len()
    }

    /// Whether a share of the card is the limit.
    pub(super) fn limited(&self) -> bool {
        self.config.per_process_memory_fraction < 1.0
    }

    /// Bytes that are alive before anything depends on the card; none: nothing was simulated yet. No card can do with less.
    pub fn on_any_card(&self) -> Option<u64> {
        let first = self.own.first()?;
        let events = &first.simulated.timeline.events;
        let (mut now, mut top) = (0u64, 0);
        for e in &events[..first.asked.common().min(events.len())] {
            match e.kind() {
                EventKind::Alloc { .. } => now += e.bytes,
                EventKind::Free { .. } => now = now.saturating_sub(e.bytes),
                EventKind::EmptyCache => {}
            }
            top = top.max(now);
        }
        Some(top)
    }

    /// Simulates the job with the kernels of a class.
    fn simulate(&mut self, c: &Class) -> Result<usize, Vec<Diagnostic>> {
        let Some(first) = c.cards.first() else {
            return Err(vec![Diagnostic::error("defect", "a class without cards")]);
        };
        let spec = self.job.spec(&first.gpu)?;
        let (simulated, asked) = simulate_noting(&spec, &self.config).map_err(|e| refused(&e))?;
        self.own.push(Own {
            kernel: c.kernel,
            peaks: Rc::default(),
            simulated,
            asked,
            others: vec![],
        });
        Ok(self.own.len() - 1)
    }

    /// The job's run on a class of cards.
    ///
    /// # Errors
    /// What `estimate` says to the job.
    pub fn on(&mut self, c: &Class) -> Result<Run<'_>, Vec<Diagnostic>> {
        let mut found = None;
        for (i, o) in self.own.iter().enumerate() {
            if o.kernel == c.kernel {
                found = Some((i, Patch::new()));
                break;
            }
            // what was left out repeats under this layout of memory, not under another
            if o.simulated.cut.is_none()
                && let Some(patch) = o.asked.on(&c.kernel)
            {
                found = Some((i, patch));
                break;
            }
        }
        let (i, patch) = match found {
            Some(f) => f,
            None => (self.simulate(c)?, Patch::new()),
        };
        let config = &self.config;
        let o = &mut self.own[i];
        if patch.is_empty() {
            return Ok(Run {
                events: Cow::Borrowed(&o.simulated.timeline.events),
                peaks: o.peaks.clone(),
                of: o,
                config,
            });
        }
        let events = patched(&o.simulated.timeline.events, &patch);
        let peaks = match o.others.iter().find(|k| k.0 == patch) {
            Some(k) => k.1.clone(),
            None => {
                let unknown = Rc::default();
                o.others.push((patch, Rc::clone(&unknown)));
                unknown
            }
        };
        Ok(Run {
            events: Cow::Owned(events),
            of: o,
            config,
            peaks,
        })
    }
}
