//! From a job to its footprint.

use super::analysis::{Analysis, analyse};
use super::classify::{Component, Modules, component, pattern};
use super::swings::{Swung, Widest, device_swings, levels, swings};
use super::*;
use crate::doc::{Diagnostic, Value};
use crate::error::CoreError;
use crate::infer::kv_cache_bytes;
use crate::job::{DEFAULT_GPU, Job, Origin, kernel_device};
use crate::spec::{Spec, Work};
use crate::train::{Simulated, simulate_noting, simulate_until_repeat};
use crate::verdict::{Device, Present, Verdict, verdict};
use crate::workers::Crew;
use std::collections::{BTreeMap, HashMap};
use tonnage_catalog::Gpus;
use tonnage_model::adapt::quant;
use tonnage_model::{arch, describe};
use tonnage_sim::alloc::AllocatorConfig;
use tonnage_sim::asked::Asked;
use tonnage_sim::kernels::KernelDevice;

/// What to work out besides the footprint.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The card that the question is about; `None`: the job's own, if it names one.
    pub gpu: Option<String>,
    /// The card that is in this machine, as it is now. It answers where no other card is named, and its free memory counts where
    /// its own name is.
    pub present: Option<Present>,
    /// Simulate edits and say what each saves. Always done where the answer is not "fits".
    pub advice: bool,
    /// Leave the uncertain settings at their expected values.
    pub expected_only: bool,
    /// Where cards are looked up: the built-in catalog, or with the user's own cards.
    pub gpus: Gpus,
    /// Who simulates the alternatives.
    pub workers: Crew,
}

impl Options {
    /// The card of that name, as the catalog has it.
    ///
    /// # Errors
    /// Nothing or several have that name, or nothing is known of its memory.
    pub fn device(&self, name: &str) -> Result<Device, Vec<Diagnostic>> {
        let g = self.gpus.find(name).map_err(|e| {
            vec![Diagnostic::error("unknown-gpu", e.to_string()).help("`tonnage gpus` lists them")]
        })?;
        Device::of(g).map_err(|e| vec![Diagnostic::error("unsupported", e.to_string())])
    }
}

/// A footprint with what it was read from.
pub struct Estimate {
    pub footprint: Footprint,
    pub simulated: Simulated,
    pub analysis: Analysis,
}

pub(super) fn failed(job: &Job, e: CoreError) -> Vec<Diagnostic> {
    let d = match e {
        CoreError::Unsupported(_) => {
            Diagnostic::error("unsupported", format!("{}: {e}", job.title()))
        }
        CoreError::Model(
            tonnage_model::ModelError::NoForward(_) | tonnage_model::ModelError::Unsupported(..),
        ) => Diagnostic::error("unsupported", format!("{}: {e}", job.title())),
        CoreError::Model(e) if job.description.is_some() => {
            return vec![from_description(job, &e)];
        }
        CoreError::Model(_) => {
            let d = Diagnostic::error("bad-model", e.to_string());
            match ["model.config", "model.id", "model.path"]
                .iter()
                .find_map(|k| job.given(k))
                .map(|g| &g.origin)
            {
                Some(Origin::File(p)) => d.at(p.clone()),
                _ => d,
            }
        }
        e => Diagnostic::error("bad-job", e.to_string()),
    };
    vec![d]
}

/// What a description made of the job's configuration: a field that the configuration gives is wrong there, else the description is.
fn from_description(job: &Job, e: &tonnage_model::ModelError) -> Diagnostic {
    let d = job.description.as_ref().map(|d| d.explain(e));
    let d = d.unwrap_or_else(|| Diagnostic::error("bad-model", e.to_string()));
    if let tonnage_model::ModelError::Field { field, .. } = e
        && let Some(g) = job.given("model.config")
        && let (Value::Table(t), Origin::File(p)) = (&g.value, &g.origin)
        && t.iter().any(|(k, _)| k.name == *field)
    {
        return d.at(p.clone());
    }
    d
}

fn allocator(job: &Job) -> Result<AllocatorConfig, Vec<Diagnostic>> {
    job.allocator()
        .map_err(|e| vec![Diagnostic::error("bad-value", e.to_string())])
}

/// Simulates a job on a card and runs the allocator.
pub(super) fn run(job: &Job, device: &Device) -> Result<(Simulated, Analysis), Vec<Diagnostic>> {
    let (spec, config) = (job.spec(&device.gpu)?, allocator(job)?);
    let sim = simulate_until_repeat(&spec, &config).map_err(|e| failed(job, e))?;
    let a = analyse(&sim, &config);
    Ok((sim, a))
}

/// A job's run, which may be that of other cards too.
pub(super) struct Ran {
    kernel: KernelDevice,
    asked: Option<Box<Asked>>,
    pub(super) sim: Simulated,
    pub(super) analysis: Analysis,
}

impl Ran {
    /// Simulates a job on a card, and where the job names other cards notes what it asks of this one.
    pub(super) fn of(job: &Job, device: &Device) -> Result<Ran, Vec<Diagnostic>> {
        let (spec, config) = (job.spec(&device.gpu)?, allocator(job)?);
        let run = if job.texts("verdict.gpus").is_empty() {
            simulate_until_repeat(&spec, &config).map(|sim| (sim, None))
        } else {
            simulate_noting(&spec, &config).map(|(sim, asked)| (sim, Some(asked)))
        };
        let (sim, asked) = run.map_err(|e| failed(job, e))?;
        Ok(Ran {
            kernel: spec.device,
            asked,
            analysis: analyse(&sim, &config),
            sim,
        })
    }

    /// Allocated and reserved bytes at the highest.
    pub(super) fn peak(&self) -> (u64, u64) {
        (self.analysis.peak.allocated, self.analysis.peak.reserved)
    }

    /// Does the job make the same requests on this card? A card of other kernels whose answers are the same is no other run
    /// (`crates/tonnage-plan/tests/asked.rs` compares such runs event by event).
    fn is_run_of(&self, device: &Device) -> bool {
        let same = |k: &KernelDevice| {
            let patch = self.asked.as_ref().and_then(|a| a.on(k));
            patch.is_some_and(|p| p.is_empty())
        };
        kernel_device(&device.gpu).is_ok_and(|k| k == self.kernel || same(&k))
    }
}

/// The footprint of a job.
///
/// # Errors
/// Everything that keeps it from having one.
pub fn estimate(job: &Job, options: &Options) -> Result<Estimate, Vec<Diagnostic>> {
    let stated = options
        .gpu
        .clone()
        .or_else(|| Some(job.word("gpu")).filter(|g| !g.is_empty()))
        .or_else(|| options.present.as_ref().map(|p| p.gpu.clone()));
    let here = options.device(stated.as_deref().unwrap_or(DEFAULT_GPU))?;
    let here = match &options.present {
        Some(p) if options.gpus.find(&p.gpu).is_ok_and(|g| g.id == here.gpu.id) => here.as_it_is(p),
        _ => here,
    };
    let ran = Ran::of(job, &here)?;
    let swung = if options.expected_only {
        Swung::default()
    } else {
        swings(job, &here, ran.peak(), options.workers)
    };
    let mut f = base(job, &here, stated.is_some(), &ran.sim, &ran.analysis);
    f.kv_cache = kv_cache(&job.spec(&here.gpu)?);
    levels(&mut f, &here, ran.peak(), swung.low, swung.high);
    f.uncertainties = swung.each;
    device_swings(&mut f, &here);
    let ran = verdicts(&mut f, job, &here, options, ran, swung.widest)?;
    let Ran {
        sim, analysis: a, ..
    } = ran;
    let worst = f
        .verdicts
        .iter()
        .filter_map(|r| r.cases.first())
        .map(|c| c.1.outcome)
        .max();
    if options.advice
        || (stated.is_some() && worst.is_some_and(|o| o != crate::verdict::Outcome::Fits))
    {
        f.advice = advice::advise(
            job,
            &here,
            stated.is_some(),
            a.peak.reserved,
            options.workers,
        );
    }
    Ok(Estimate {
        footprint: f,
        simulated: sim,
        analysis: a,
    })
}

/// What the cache of a generation holds, where it has one.
fn kv_cache(spec: &Spec) -> Option<KvCache> {
    let Work::Generate(how) = spec.work else {
        return None;
    };
    if !spec.use_cache {
        return None;
    }
    let (sequences, tokens) = (spec.batch * how.beams, spec.seq + how.new);
    Some(KvCache {
        bytes_per_token: kv_cache_bytes(spec, 1, 1).ok()?,
        sequences,
        tokens,
        bytes: kv_cache_bytes(spec, sequences, tokens).ok()?,
    })
}

fn base(job: &Job, here: &Device, stated: bool, sim: &Simulated, a: &Analysis) -> Footprint {
    let modules = Modules::of(&sim.modules);
    let mut lines: BTreeMap<Component, (u64, u64)> = BTreeMap::new();
    let mut by_module: HashMap<String, BTreeMap<Component, u64>> = HashMap::new();
    let mut groups: HashMap<(Component, String, String, String, u64), u64> = HashMap::new();
    for b in &a.alive {
        let c = component(b, &modules);
        let l = lines.entry(c).or_default();
        *l = (l.0 + b.bytes, l.1 + 1);
        let m = pattern(modules.name(b.module));
        *by_module
            .entry(m.clone())
            .or_default()
            .entry(c)
            .or_default() += b.bytes;
        let phase = b.born.map_or("", |m| m.phase.name()).to_string();
        *groups
            .entry((c, m, b.op.name().to_string(), phase, b.bytes))
            .or_default() += 1;
    }
    let mut module_lines: Vec<ModuleLine> = by_module
        .into_iter()
        .map(|(module, cs)| ModuleLine {
            module,
            bytes: cs.values().sum(),
            components: cs.into_iter().collect(),
        })
        .collect();
    module_lines.sort_by(|x, y| y.bytes.cmp(&x.bytes).then_with(|| x.module.cmp(&y.module)));
    let mut tensors: Vec<TensorGroup> = groups
        .into_iter()
        .map(
            |((component, module, op, phase, each), count)| TensorGroup {
                component,
                module,
                op,
                phase,
                bytes_each: each,
                count,
                bytes: each * count,
                source: String::new(),
            },
        )
        .collect();
    tensors.sort_by(|x, y| {
        let key = |t: &TensorGroup| {
            (
                t.module.clone(),
                t.op.clone(),
                t.phase.clone(),
                t.component,
                t.bytes_each,
            )
        };
        y.bytes.cmp(&x.bytes).then_with(|| key(x).cmp(&key(y)))
    });
    let (_, outside) = (
        here.overhead.context.expected,
        here.overhead.libraries.expected,
    );
    let mut components: Vec<Line> = lines
        .into_iter()
        .map(|(component, (bytes, count))| Line {
            component,
            bytes,
            count,
            level: "allocated",
        })
        .collect();
    components.push(Line {
        component: Component::AllocatorCache,
        bytes: a.peak.reserved.saturating_sub(a.peak.allocated),
        count: 0,
        level: "reserved",
    });
    components.push(Line {
        component: Component::DeviceContext,
        bytes: here.overhead.context.expected,
        count: 1,
        level: "device",
    });
    components.push(Line {
        component: Component::Libraries,
        bytes: outside,
        count: 0,
        level: "device",
    });
    let last = a.last;
    Footprint {
        schema: SCHEMA,
        job: job.title(),
        source: job.source.clone(),
        format: job.format.into(),
        gpu: here.gpu.id.clone(),
        gpu_stated: stated,
        model: ModelCounts {
            model_type: job.model_config().map(|(t, _)| t).unwrap_or_default(),
            param_count: sim.param_count,
            base_param_count: base_count(job).unwrap_or(sim.param_count),
            trainable_count: sim.trainable_count,
            param_bytes: sim.param_bytes,
            buffer_bytes: sim.buffer_bytes,
            managed_bytes: sim.managed_bytes,
            unquantised: unquantised(job, here),
        },
        micro_batch_size: job.count("train.micro_batch_size").unwrap_or(1),
        gradient_accumulation_steps: job.count("train.gradient_accumulation_steps").unwrap_or(1),
        effective_batch: job.effective_batch(),
        seq_len: job.count("train.seq_len").unwrap_or(0),
        peak: Levels::default(),
        uncertainties: Vec::new(),
        instant: Instant {
            step: a.at.map_or(-1, |m| m.step),
            micro_batch: a.at.map_or(0, |m| m.micro_batch),
            phase: a.at.map_or(String::new(), |m| m.phase.name().to_string()),
            module: last.map_or(String::new(), |b| modules.name(b.module).to_string()),
            op: last.map_or(String::new(), |b| b.op.name().to_string()),
            bytes: last.map_or(0, |b| b.requested),
            event: a.at_event,
            source: String::new(),
        },
        components,
        modules: module_lines,
        tensors,
        phases: a
            .by_phase()
            .into_iter()
            .map(|(p, k)| PhasePeak {
                phase: p.name().into(),
                allocated_bytes: k.allocated,
                reserved_bytes: k.reserved,
            })
            .collect(),
        timeline: Timeline {
            events: a.events,
            intervals: a
                .intervals
                .iter()
                .map(|i| Interval {
                    step: i.mark.step,
                    micro_batch: i.mark.micro_batch,
                    phase: i.mark.phase.name(),
                    at_event: i.mark.at,
                    peak_allocated_bytes: i.peak.allocated,
                    end_allocated_bytes: i.end.allocated,
                    peak_reserved_bytes: i.peak.reserved,
                })
                .collect(),
            curve: a
                .curve
                .iter()
                .map(|p| (p.event, p.allocated, p.reserved))
                .collect(),
        },
        kv_cache: None,
        assumptions: job.assumptions(),
        verdicts: Vec::new(),
        advice: Vec::new(),
        unsupported: job.unsupported.clone(),
        notes: notes(job, here),
    }
}

/// The reader's remarks, then what no recorded run shows.
fn notes(job: &Job, here: &Device) -> Vec<Diagnostic> {
    let mut notes = job.notes.clone();
    if let Ok(spec) = job.spec(&here.gpu) {
        let said = crate::verified::unverified(&spec);
        notes.extend(said.into_iter().map(|m| Diagnostic::note("unverified", m)));
    }
    if let Some(cc) = here.gpu.compute_capability {
        let said = wheels::no_kernels(&here.gpu.name, cc, job.stack().torch);
        notes.extend(said.map(|m| Diagnostic::note("no-kernels", m)));
    }
    notes
}

/// What a quantiser leaves as it is: module patterns, each once, in order.
fn unquantised(job: &Job, here: &Device) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let Ok(spec) = job.spec(&here.gpu) else {
        return out;
    };
    if spec.quant.is_none() {
        return out;
    }
    if let Ok(b) = spec.model() {
        for name in quant::unquantised(&b.net, &spec.quant_scope) {
            let p = pattern(&name);
            if !out.contains(&p) {
                out.push(p);
            }
        }
    }
    out
}

/// Parameters of the base model, unpacked and without adapters.
fn base_count(job: &Job) -> Option<u64> {
    let (t, c) = job.model_config().ok()?;
    match &job.description {
        Some(d) => describe::build(&d.description, &c).ok().map(|b| b.net),
        None => arch::build(&t, &c, job.head(), &job.stack())
            .ok()
            .map(|b| b.net),
    }
    .map(|net| net.param_count())
}

fn verdicts(
    f: &mut Footprint,
    job: &Job,
    here: &Device,
    options: &Options,
    expected: Ran,
    widest: Option<Widest>,
) -> Result<Ran, Vec<Diagnostic>> {
    let stated = f.gpu_stated;
    let config = allocator(job)?;
    let mut names = job.texts("verdict.gpus");
    if stated
        && !names
            .iter()
            .any(|n| options.gpus.find(n).is_ok_and(|g| g.id == here.gpu.id))
    {
        names.insert(0, here.gpu.id.clone());
    }
    // the alternatives of what swings most are cases of their own; each with the runs that are known
    let mut cases: Vec<(String, Job, Vec<Ran>)> = Vec::new();
    match widest {
        None => cases.push(("expected".into(), job.clone(), vec![expected])),
        Some(w) => {
            let name = |v: &str| format!("{} {v}", w.key.rsplit('.').next().unwrap_or(&w.key));
            cases.push((name(&w.expected), job.clone(), vec![expected]));
            for (value, j, ran) in w.alternatives {
                cases.push((name(&value), j, vec![ran]));
            }
        }
    }
    for name in names {
        let mut d = options.device(&name)?;
        if d.gpu.id == here.gpu.id {
            d = here.clone();
        }
        let mut row = VerdictRow {
            gpu: d.gpu.id.clone(),
            cases: Vec::new(),
        };
        for (i, (case, j, runs)) in cases.iter_mut().enumerate() {
            let known = match runs.iter().position(|r| r.is_run_of(&d)) {
                Some(k) => k,
                None => match Ran::of(j, &d) {
                    Ok(r) => {
                        runs.push(r);
                        runs.len() - 1
                    }
                    Err(e) if i == 0 => return Err(e),
                    // an alternative that cannot be simulated is named among the uncertainties
                    Err(_) => continue,
                },
            };
            let r = &runs[known];
            let v: Verdict = verdict(&r.sim, &config, &d, r.peak().1);
            row.cases.push((case.clone(), v));
        }
        f.verdicts.push(row);
    }
    Ok(cases.swap_remove(0).2.swap_remove(0))
}
