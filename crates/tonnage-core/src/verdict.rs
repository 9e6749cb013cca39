//! Does it fit? The allocator is run again with the card's memory: release of cached blocks, retry and refusal included.

use crate::spec::Spec;
use crate::train::Simulated;
use serde::Serialize;
use tonnage_catalog::Gpu;
use tonnage_catalog::device::{
    DeviceError, DeviceOverhead, Stack as DeviceStack, Usable, device_overhead, usable,
};
use tonnage_sim::alloc::{
    AllocatorConfig, CachingAllocator, Capacity, MessageContext, OutOfMemory, Peaks, ProcessMemory,
    ReplayError, replay,
};
use tonnage_sim::timeline::Event;

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// No request had to wait for cached blocks to be given back, in the worst case of the device level either.
    Fits,
    /// It runs, but only after cached blocks were given back, or only in the expected case of the device level.
    Tight,
    /// A request fails.
    No,
}

impl Outcome {
    /// `fits`, `tight`, `no`.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Fits => "fits",
            Outcome::Tight => "tight",
            Outcome::No => "no",
        }
    }
}

/// Where a run fails.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// As PyTorch prints it.
    pub message: String,
    pub step: i32,
    pub phase: &'static str,
    pub module: String,
    pub requested_bytes: u64,
}

/// The verdict for one card.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    pub gpu: String,
    pub name: String,
    pub outcome: Outcome,
    /// What CUDA calls the card's total, expected.
    pub usable_bytes: u64,
    /// Of it, what the context and libraries leave to the allocator, expected.
    pub available_bytes: u64,
    /// What the driver called free when the question was asked; absent where the card is taken as idle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_now_bytes: Option<u64>,
    /// Peaks on this card (where the run fails: so far).
    pub peak_allocated_bytes: u64,
    pub peak_reserved_bytes: u64,
    /// What the allocator would reserve with no limit.
    pub wanted_reserved_bytes: u64,
    /// `available_bytes` less the highest reserved without a limit; negative: releases are needed.
    pub margin_bytes: i64,
    /// Times the whole cache was given back.
    pub retries: u64,
    pub why: String,
    pub failure: Option<Failure>,
}

struct Trial {
    result: Result<Peaks, (usize, OutOfMemory, u64, u64)>,
    retries: u64,
}

/// The run with a limit. Where it had to give memory back, a run whose repeating steps were left out says nothing about those (its
/// layout has left the repeating path): then the whole run is made.
fn trial(
    (events, cut): (&[Event], Option<&Spec>),
    config: &AllocatorConfig,
    total: u64,
    free: u64,
) -> Trial {
    let t = one_trial(events, config, total, free);
    match cut {
        Some(spec) if t.retries > 0 && t.result.is_ok() => match crate::train::simulate(spec) {
            Ok(whole) => one_trial(&whole.timeline.events, config, total, free),
            Err(_) => t,
        },
        _ => t,
    }
}

fn one_trial(events: &[Event], config: &AllocatorConfig, total: u64, free: u64) -> Trial {
    let mut a = CachingAllocator::new(
        config.clone(),
        Some(Capacity {
            total,
            free: free.min(total),
        }),
    );
    let out = replay(events, &[], &mut a);
    let retries = a.stats().num_alloc_retries;
    let result = match out {
        Ok(r) => Ok(r.peaks),
        Err(ReplayError::OutOfMemory {
            event, oom, so_far, ..
        }) => Err((event, oom, so_far.peaks.allocated, so_far.peaks.reserved)),
        // events that make no sense are the simulator's defect; a limit cannot cause them
        Err(_) => Ok(a.peaks()),
    };
    Trial { result, retries }
}

/// The device level of a card, once.
#[derive(Clone, Debug)]
pub struct Device {
    pub gpu: Gpu,
    pub overhead: DeviceOverhead,
    pub usable: Usable,
    /// Bytes that the driver calls free now (other processes and the display take the rest); `None`: an idle card.
    pub free_now: Option<u64>,
    /// Bytes to be left to others besides, e.g. a display.
    pub set_aside: u64,
}

/// A card as it is at this moment, as its driver says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// Its row in the catalog.
    pub gpu: String,
    /// What a process could get on the idle card: the driver's total less what it keeps for itself, in bytes.
    pub usable: u64,
    /// Free now, in bytes.
    pub free: u64,
}

impl Device {
    /// The figures of a card.
    ///
    /// # Errors
    /// The catalog has none for it.
    pub fn of(gpu: Gpu) -> Result<Device, DeviceError> {
        let stack = DeviceStack::default();
        Ok(Device {
            overhead: device_overhead(&gpu, &stack)?,
            usable: usable(&gpu, &stack)?,
            free_now: None,
            set_aside: 0,
            gpu,
        })
    }
    /// The same card with the memory that its driver says it has and has left: no range is needed for what is measured.
    pub fn as_it_is(mut self, now: &Present) -> Device {
        self.usable = Usable {
            low: now.usable,
            expected: now.usable,
            high: now.usable,
            basis: self.usable.basis,
            source: "the driver, now".into(),
        };
        self.free_now = Some(now.free.min(now.usable));
        self
    }
    /// What a process finds free, context not yet made.
    pub fn left(&self) -> u64 {
        self.free_now.unwrap_or(self.usable.expected)
    }
    /// What is left of `total` for the allocator when context and libraries take `outside`.
    fn available(&self, total: u64, outside: u64) -> u64 {
        let free = self.free_now.unwrap_or(total).min(total);
        free.saturating_sub(outside.saturating_add(self.set_aside))
    }
    /// What the allocator can have: expected, and in the worst case of the device level. [`verdict`] decides by these.
    pub fn room(&self) -> (u64, u64) {
        let (_, outside, outside_high) = self.outside();
        (
            self.available(self.usable.expected, outside),
            self.available(self.usable.low, outside_high),
        )
    }
    /// Context and libraries, (low, expected, high).
    pub fn outside(&self) -> (u64, u64, u64) {
        let (c, l) = (&self.overhead.context, &self.overhead.libraries);
        (c.low + l.low, c.expected + l.expected, c.high + l.high)
    }
}

/// The outcome of [`verdict`] alone, of events and what was left out of them (as in [`Simulated`]). `peaks` are those of the run without
/// a limit, where they are known. A limit that is never reached changes nothing, and one that is reached makes the allocator give back
/// its cache or fail: so the run with the limit is made only where the peak is above what is expected to be left, or not known, and what
/// it did decides the worst case too. Given back are the peaks without a limit, where the run showed them.
pub fn outcome(
    (events, cut): (&[Event], Option<&Spec>),
    config: &AllocatorConfig,
    peaks: Option<&Peaks>,
    device: &Device,
) -> (Outcome, Option<Peaks>) {
    let (expected, worst) = device.room();
    // a share of the card is another limit; segments are given back before that where cached blocks have ages or are too large to split
    let plain = config.per_process_memory_fraction >= 1.0
        && config.garbage_collection_threshold.is_none()
        && config.max_split_size.is_none();
    let below = |p: &Peaks| {
        if p.reserved <= worst {
            Outcome::Fits
        } else {
            Outcome::Tight
        }
    };
    match peaks {
        Some(p) if p.requested > expected => return (Outcome::No, None),
        Some(p) if plain && p.reserved <= expected => return (below(p), None),
        _ => {}
    }
    let total = device.usable.expected;
    let t = trial((events, cut), config, total, expected);
    match t.result {
        Err(_) => (Outcome::No, None),
        Ok(_) if t.retries > 0 => (Outcome::Tight, None),
        Ok(p) if plain => (below(&p), Some(p)),
        Ok(_) => {
            let t = trial((events, cut), config, device.usable.low, worst);
            match t.result {
                Ok(_) if t.retries == 0 => (Outcome::Fits, None),
                _ => (Outcome::Tight, None),
            }
        }
    }
}

/// The verdict of a job on a card. `wanted` is the peak reserved without a limit.
pub fn verdict(sim: &Simulated, config: &AllocatorConfig, device: &Device, wanted: u64) -> Verdict {
    let (_, outside, outside_high) = device.outside();
    let total = device.usable.expected;
    let available = device.available(total, outside);
    let run = (&sim.timeline.events[..], sim.cut.as_deref());
    let expected = trial(run, config, total, available);
    let (outcome, why, failure, peaks) = match &expected.result {
        Err((event, oom, allocated, reserved)) => {
            let failure = failed(sim, *event, oom, outside);
            (
                Outcome::No,
                format!(
                    "a request fails in {} of step {}",
                    failure.phase, failure.step
                ),
                Some(failure),
                (*allocated, *reserved),
            )
        }
        Ok(peaks) if expected.retries > 0 => {
            let n = expected.retries;
            (
                Outcome::Tight,
                format!(
                    "it runs after cached blocks are given back {n} time{}, which costs time",
                    if n == 1 { "" } else { "s" }
                ),
                None,
                (peaks.allocated, peaks.reserved),
            )
        }
        Ok(peaks) => {
            let worst_total = device.usable.low;
            let worst = trial(
                run,
                config,
                worst_total,
                device.available(worst_total, outside_high),
            );
            match worst.result {
                Ok(_) if worst.retries == 0 => (Outcome::Fits, "no request has to wait, in the worst case of the device level either".into(), None, (peaks.allocated, peaks.reserved)),
                Ok(_) => (Outcome::Tight, "in the worst case of the device level, cached blocks must be given back".into(), None, (peaks.allocated, peaks.reserved)),
                Err(_) => (Outcome::Tight, "in the worst case of the device level (larger context and libraries), a request fails".into(), None, (peaks.allocated, peaks.reserved)),
            }
        }
    };
    Verdict {
        gpu: device.gpu.id.clone(),
        name: device.gpu.name.clone(),
        outcome,
        usable_bytes: total,
        available_bytes: available,
        free_now_bytes: device.free_now,
        peak_allocated_bytes: peaks.0,
        peak_reserved_bytes: peaks.1,
        wanted_reserved_bytes: wanted,
        margin_bytes: i64::try_from(i128::from(available) - i128::from(wanted)).unwrap_or(i64::MIN),
        retries: expected.retries,
        why,
        failure,
    }
}

fn failed(sim: &Simulated, event: usize, oom: &OutOfMemory, outside: u64) -> Failure {
    let t = &sim.timeline;
    let mark = t.marks.iter().rev().find(|m| m.at <= event);
    let owner = t.events.get(event).map_or(0, |e| e.owner >> 12);
    let process = [ProcessMemory::This {
        bytes: oom.reserved + outside,
    }];
    Failure {
        message: oom.message(&MessageContext {
            device: 0,
            processes: &process,
            private_pools: 0,
        }),
        step: mark.map_or(-1, |m| m.step),
        phase: mark.map_or("load", |m| m.phase.name()),
        module: sim.modules.get(owner as usize).cloned().unwrap_or_default(),
        requested_bytes: oom.requested,
    }
}
