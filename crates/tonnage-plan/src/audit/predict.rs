//! What the simulator says to a bound claim.

use super::claim::Part;
use std::collections::{BTreeMap, HashMap};
use tonnage_core::footprint::{Component, Options, component_peaks, estimate};
use tonnage_core::job::to_toml;
use tonnage_core::verdict::Outcome;
use tonnage_core::{Diagnostic, Job};

/// A job's figures, in bytes.
#[derive(Clone, Debug)]
pub struct Predicted {
    pub allocated: u64,
    /// What the driver would report: allocator's segments, context and libraries.
    pub device: u64,
    /// Each part at its own highest moment.
    pub parts: BTreeMap<Part, u64>,
    /// Parameters of the base model.
    pub parameters: u64,
    /// On the card asked about.
    pub outcome: Option<Outcome>,
}

/// Simulates jobs, each once.
#[derive(Default)]
pub struct Simulator {
    known: HashMap<(String, Option<String>), Result<Predicted, String>>,
}

impl Simulator {
    /// A job's figures, on a card or on the default one without a verdict.
    ///
    /// # Errors
    /// Why it cannot be simulated.
    pub fn predict(&mut self, job: &Job, gpu: Option<&str>) -> Result<Predicted, String> {
        let key = (to_toml(job), gpu.map(str::to_string));
        self.known
            .entry(key)
            .or_insert_with(|| simulate(job, gpu))
            .clone()
    }
}

fn simulate(job: &Job, gpu: Option<&str>) -> Result<Predicted, String> {
    let options = Options {
        gpu: gpu.map(str::to_string),
        expected_only: true,
        ..Options::default()
    };
    let said = |d: Vec<Diagnostic>| {
        d.iter()
            .map(|d| d.message.clone())
            .collect::<Vec<_>>()
            .join("; ")
    };
    let e = estimate(job, &options).map_err(said)?;
    let peaks = component_peaks(&e.simulated);
    let sum = |of: &[Component]| of.iter().filter_map(|c| peaks.get(c)).sum::<u64>();
    let f = &e.footprint;
    let gradients = sum(&[Component::Gradients]);
    // adapters are what is trained: as large as their gradients
    let adapters = if job.get("lora.r").is_some() {
        gradients
    } else {
        0
    };
    let weights = sum(&[Component::Parameters, Component::QuantState]).saturating_sub(adapters);
    let activations = sum(&[
        Component::SavedActivations,
        Component::AttentionScores,
        Component::LogitsAndLoss,
    ]);
    let parts = BTreeMap::from([
        (Part::Weights, weights),
        (Part::Adapter, adapters),
        (Part::Gradients, gradients),
        (Part::Optimizer, sum(&[Component::OptimizerState])),
        (Part::Activations, activations),
        (Part::KvCache, sum(&[Component::KvCache])),
        (Part::Inputs, sum(&[Component::Inputs])),
        (
            Part::Working,
            sum(&[Component::Temporaries, Component::LogitsAndLoss]),
        ),
        (
            Part::Overhead,
            f.component(Component::DeviceContext) + f.component(Component::Libraries),
        ),
    ]);
    Ok(Predicted {
        allocated: f.peak.allocated.expected,
        device: f.peak.device.expected,
        parts,
        parameters: f.model.base_param_count,
        outcome: gpu.and(f.decisive().map(|v| v.outcome)),
    })
}
