//! Full simulations of settings on the card, with the same functions as `estimate`.

use super::search::Choice;
use super::{Margin, Options, Point};
use crate::cost::{Offer, cost};
use crate::time::{Card, Fitted, StepTime, step_work, time_of};
use tonnage_core::footprint::analysis::analyse;
use tonnage_core::verdict::{Device, Outcome, verdict};
use tonnage_core::{Diagnostic, Job, simulate_until_repeat};

/// The card, and the same with the margin taken off.
pub struct Place {
    pub device: Device,
    pub tight: Device,
    pub card: Option<Card>,
    pub kept_free: u64,
    pub offer: Option<Offer>,
    pub tokens: Option<f64>,
}

impl Place {
    pub fn new(options: &Options) -> Result<Place, Vec<Diagnostic>> {
        let gpu = options.gpus.find(&options.gpu).map_err(|e| {
            vec![Diagnostic::error("unknown-gpu", e.to_string()).help("`tonnage gpus` lists them")]
        })?;
        let card = Card::of(&gpu);
        let offer = match options.price {
            Some(p) => Some(Offer::own(p)),
            None => crate::cost::offers(&gpu.id).into_iter().next(),
        };
        let device =
            Device::of(gpu).map_err(|e| vec![Diagnostic::error("unsupported", e.to_string())])?;
        let kept_free = match options.margin {
            Margin::Bytes(b) => b,
            Margin::Part(p) => (device.usable.expected as f64 * p) as u64,
        };
        let mut tight = device.clone();
        for u in [
            &mut tight.usable.low,
            &mut tight.usable.expected,
            &mut tight.usable.high,
        ] {
            *u = u.saturating_sub(kept_free);
        }
        Ok(Place {
            device,
            tight,
            card,
            kept_free,
            offer,
            tokens: options.tokens,
        })
    }

    /// What requests can have at most, in the worst case that still "fits".
    pub fn available(&self) -> u64 {
        let (_, _, outside) = self.tight.outside();
        self.tight.usable.low.saturating_sub(outside)
    }

    /// Does a setting fit? A full simulation and the card's verdict, without the rest of a point.
    pub fn fits(&self, job: &Job) -> Option<bool> {
        let spec = job.spec(&self.device.gpu).ok()?;
        let config = job.allocator().ok()?;
        let sim = simulate_until_repeat(&spec, &config).ok()?;
        Some(verdict(&sim, &config, &self.tight, 0).outcome == Outcome::Fits)
    }

    /// A setting, simulated in full.
    pub fn point(&self, job: &Job, choice: &Choice) -> Result<Point, Vec<Diagnostic>> {
        let spec = job.spec(&self.device.gpu)?;
        let bad = |e: String| vec![Diagnostic::error("bad-value", e)];
        let config = job.allocator().map_err(|e| bad(e.to_string()))?;
        let unsupported = |e: tonnage_core::CoreError| {
            vec![Diagnostic::error(
                "unsupported",
                format!("{}: {e}", job.title()),
            )]
        };
        let sim = simulate_until_repeat(&spec, &config).map_err(unsupported)?;
        let peak = analyse(&sim, &config).peak;
        let v = verdict(&sim, &config, &self.tight, peak.reserved);
        drop(sim);
        let work = step_work(&spec).map_err(unsupported)?;
        let time = match &self.card {
            Some(c) => time_of(&work, &spec, c, Fitted::builtin()),
            None => StepTime::unknown(&self.device.gpu.id, &work),
        };
        let cost = self
            .offer
            .as_ref()
            .filter(|_| self.card.is_some())
            .map(|o| cost(time.tokens_per_s, o, self.tokens));
        Ok(Point {
            changes: choice.edits.iter().map(|e| e.what.clone()).collect(),
            flags: choice.edits.iter().map(|e| e.flags()).collect(),
            micro_batch_size: spec.batch,
            gradient_accumulation_steps: u64::from(spec.accumulation),
            outcome: v.outcome.name(),
            why: v.why,
            peak_allocated_bytes: peak.allocated,
            peak_reserved_bytes: peak.reserved,
            margin_bytes: v.margin_bytes,
            time,
            cost,
            remarks: choice.edits.iter().map(|e| e.cost).collect(),
            edits: choice.edits.clone(),
        })
    }
}
