//! The footprint of a recorded run, in the form that `estimate` gives: the same sums, by component, module, tensor, phase and time.

use crate::raw::figures;
use crate::trace::{Event, Figures, Place, Rest, Trace};
use std::collections::{BTreeMap, HashMap};
use tonnage_core::doc::Diagnostic;
use tonnage_core::footprint::classify::pattern;
use tonnage_core::footprint::{
    Component, Footprint, Instant, Interval, Levels, Line, ModelCounts, ModuleLine, PhasePeak,
    Range, SCHEMA, TensorGroup, Timeline, VerdictRow,
};
use tonnage_core::verdict::{Device, Failure, Outcome, Verdict};
use tonnage_units::Bytes;

/// Points of the curve, as in simulated footprints.
const CURVE: usize = 400;
/// Intervals listed; a long run's later ones are left out (the curve has them).
const INTERVALS: usize = 4000;

/// The known spelling of a phase.
fn known(phase: &str) -> &'static str {
    use tonnage_sim::timeline::Phase as P;
    [
        P::Load,
        P::KbitPrepare,
        P::Peft,
        P::Between,
        P::Input,
        P::Forward,
        P::Backward,
        P::Clip,
        P::Optimizer,
        P::ZeroGrad,
        P::Prefill,
        P::Decode,
        P::Hold,
        P::End,
    ]
    .iter()
    .map(|p| p.name())
    .find(|n| *n == phase)
    .unwrap_or("between")
}

/// Something alive at the peak.
struct Alive {
    id: u32,
    block: u64,
    place: u32,
    site: u32,
}

struct Walk {
    peak: Figures,
    at: Option<Alive>,
    at_event: usize,
    intervals: Vec<Interval>,
    phases: Vec<PhasePeak>,
    curve: Vec<(u32, u64, u64)>,
}

fn mark(p: &Place) -> (i32, u32, &str) {
    (p.step, p.micro_batch, p.phase.as_str())
}

fn walk(t: &Trace) -> Walk {
    let mut sizes: HashMap<u32, u64> = HashMap::new();
    let (mut allocated, mut reserved) = (0u64, 0u64);
    let mut w = Walk {
        peak: figures(t),
        at: None,
        at_event: 0,
        intervals: Vec::new(),
        phases: Vec::new(),
        curve: Vec::new(),
    };
    let stride = (t.events.len() / CURVE).max(1);
    let mut best = 0;
    let mut top = (0u32, 0u64, 0u64);
    let mut here: Option<u32> = None;
    for (i, e) in t.events.iter().enumerate() {
        let place = match *e {
            Event::Alloc { place, .. } | Event::Free { place, .. } => Some(place),
            _ => None,
        };
        if let Some(p) = place
            && here.is_none_or(|h| mark(&t.places[h as usize]) != mark(&t.places[p as usize]))
        {
            here = Some(p);
            let q = &t.places[p as usize];
            if w.intervals.len() < INTERVALS {
                w.intervals.push(Interval {
                    step: q.step,
                    micro_batch: q.micro_batch,
                    phase: known(&q.phase),
                    at_event: i,
                    peak_allocated_bytes: allocated,
                    end_allocated_bytes: allocated,
                    peak_reserved_bytes: reserved,
                });
            }
        }
        match *e {
            Event::Alloc {
                id,
                block,
                place,
                site,
                ..
            } => {
                allocated += block;
                sizes.insert(id, block);
                if allocated > best {
                    best = allocated;
                    w.at_event = i;
                    w.at = Some(Alive {
                        id,
                        block,
                        place,
                        site,
                    });
                }
            }
            Event::Free { id, .. } => allocated -= sizes.remove(&id).unwrap_or(0),
            Event::Reusable { .. } => {}
            Event::SegmentAlloc { bytes } => reserved += bytes,
            Event::SegmentFree { bytes, .. } => reserved = reserved.saturating_sub(bytes),
        }
        if let Some(l) = w.intervals.last_mut() {
            l.peak_allocated_bytes = l.peak_allocated_bytes.max(allocated);
            l.peak_reserved_bytes = l.peak_reserved_bytes.max(reserved);
            l.end_allocated_bytes = allocated;
        }
        if let Some(h) = here {
            let name = known(&t.places[h as usize].phase);
            match w.phases.iter_mut().find(|p| p.phase == name) {
                Some(p) => {
                    p.allocated_bytes = p.allocated_bytes.max(allocated);
                    p.reserved_bytes = p.reserved_bytes.max(reserved);
                }
                None => w.phases.push(PhasePeak {
                    phase: name.into(),
                    allocated_bytes: allocated,
                    reserved_bytes: reserved,
                }),
            }
        }
        if allocated >= top.1 {
            top = (i as u32, allocated, reserved);
        }
        if (i + 1) % stride == 0 {
            w.curve.push(top);
            top = (i as u32, allocated, reserved);
        }
    }
    w
}

fn alive(t: &Trace, upto: usize) -> Vec<Alive> {
    let mut live: BTreeMap<u32, Alive> = BTreeMap::new();
    for e in t.events.iter().take(upto + 1) {
        match *e {
            Event::Alloc {
                id,
                block,
                place,
                site,
                ..
            } => {
                live.insert(
                    id,
                    Alive {
                        id,
                        block,
                        place,
                        site,
                    },
                );
            }
            Event::Free { id, .. } => {
                live.remove(&id);
            }
            _ => {}
        }
    }
    live.into_values().collect()
}

/// The module that a block belongs to: a named tensor's own, else the one that ran.
fn module(t: &Trace, a: &Alive) -> String {
    let name = &t.names[a.id as usize];
    let c = t.components[a.id as usize];
    let named = matches!(
        c,
        Component::Parameters | Component::Buffers | Component::Gradients | Component::QuantState
    );
    if named && !name.is_empty() {
        return pattern(name.rsplit_once('.').map_or(name.as_str(), |x| x.0));
    }
    let p = &t.places[a.place as usize];
    if p.module.is_empty() && p.phase == "backward" {
        return "(backward)".into();
    }
    pattern(&p.module)
}

/// The footprint of a trace; `device` is the card it was recorded for.
pub fn footprint(t: &Trace, device: &Device) -> Footprint {
    let mut w = walk(t);
    if t.header.missed.is_some() {
        // the framework counted on where no events were taken
        w.peak = w.peak.max(t.header.peaks);
    }
    let w = w;
    let mut lines: BTreeMap<Component, (u64, u64)> = BTreeMap::new();
    let mut modules: HashMap<String, BTreeMap<Component, u64>> = HashMap::new();
    let mut groups: HashMap<(Component, String, u32, &'static str, u64), u64> = HashMap::new();
    for a in alive(t, w.at_event) {
        let c = t.components[a.id as usize];
        let l = lines.entry(c).or_default();
        *l = (l.0 + a.block, l.1 + 1);
        let m = module(t, &a);
        *modules.entry(m.clone()).or_default().entry(c).or_default() += a.block;
        let phase = known(&t.places[a.place as usize].phase);
        *groups.entry((c, m, a.site, phase, a.block)).or_default() += 1;
    }
    let mut module_lines: Vec<ModuleLine> = modules
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
        .map(|((component, module, site, phase, each), count)| {
            let s = &t.sites[site as usize];
            TensorGroup {
                component,
                module,
                op: s.op.clone(),
                phase: phase.into(),
                bytes_each: each,
                count,
                bytes: each * count,
                source: s.source.clone(),
            }
        })
        .collect();
    tensors.sort_by(|x, y| {
        let key = |t: &TensorGroup| {
            (
                t.module.clone(),
                t.op.clone(),
                t.source.clone(),
                t.component,
                t.bytes_each,
            )
        };
        y.bytes.cmp(&x.bytes).then_with(|| key(x).cmp(&key(y)))
    });
    let mut components: Vec<Line> = lines
        .into_iter()
        .map(|(component, (bytes, count))| Line {
            component,
            bytes,
            count,
            level: "allocated",
        })
        .collect();
    let (context, libraries) = (&device.overhead.context, &device.overhead.libraries);
    for (component, bytes, level) in [
        (
            Component::AllocatorCache,
            w.peak.reserved.saturating_sub(w.peak.allocated),
            "reserved",
        ),
        (Component::DeviceContext, context.expected, "device"),
        (Component::Libraries, libraries.expected, "device"),
    ] {
        components.push(Line {
            component,
            bytes,
            count: u64::from(component == Component::DeviceContext),
            level,
        });
    }
    let same = |v: u64| Range {
        low: v,
        expected: v,
        high: v,
    };
    let (low, expected, high) = device.outside();
    let reserved = w.peak.reserved.max(w.peak.allocated);
    let peak = Levels {
        allocated: same(w.peak.allocated),
        reserved: same(reserved),
        device: Range {
            low: reserved + low,
            expected: reserved + expected,
            high: reserved + high,
        },
    };
    let at = w.at.as_ref();
    let place = at.map(|a| &t.places[a.place as usize]);
    let site = at.map(|a| &t.sites[a.site as usize]);
    let h = &t.header;
    Footprint {
        schema: SCHEMA,
        job: title(t),
        source: h.command.join(" "),
        format: "trace".into(),
        gpu: device.gpu.id.clone(),
        gpu_stated: true,
        model: ModelCounts {
            model_type: h.model.model.clone(),
            param_count: h.model.param_count,
            base_param_count: h.model.param_count,
            trainable_count: h.model.trainable_count,
            param_bytes: h.model.param_bytes,
            buffer_bytes: h.model.buffer_bytes,
            ..ModelCounts::default()
        },
        micro_batch_size: 0,
        gradient_accumulation_steps: 1,
        effective_batch: 0,
        seq_len: 0,
        peak,
        uncertainties: Vec::new(),
        instant: Instant {
            step: place.map_or(-1, |p| p.step),
            micro_batch: place.map_or(0, |p| p.micro_batch),
            phase: place.map_or("load", |p| known(&p.phase)).into(),
            module: place.map_or(String::new(), |p| p.module.clone()),
            op: site.map_or(String::new(), |s| s.op.clone()),
            bytes: at.map_or(0, |a| a.block),
            event: w.at_event,
            source: site.map_or(String::new(), |s| s.source.clone()),
        },
        components,
        modules: module_lines,
        tensors,
        phases: w.phases,
        timeline: Timeline {
            events: t.events.len(),
            intervals: w.intervals,
            curve: w.curve,
        },
        kv_cache: None,
        assumptions: Vec::new(),
        verdicts: vec![VerdictRow {
            gpu: device.gpu.id.clone(),
            cases: vec![("recorded".into(), verdict(t, device, w.peak))],
        }],
        advice: Vec::new(),
        unsupported: Vec::new(),
        notes: notes(t, w.peak),
    }
}

fn title(t: &Trace) -> String {
    let h = &t.header;
    let script = h
        .command
        .iter()
        .skip(1)
        .find(|a| !a.starts_with('-'))
        .map(|a| a.rsplit('/').next().unwrap_or(a).to_string());
    let name = script.unwrap_or_else(|| "the recorded run".into());
    if h.world > 1 {
        format!("{name} (rank {} of {})", h.rank, h.world)
    } else {
        name
    }
}

/// What the run on the null device said about the card: it is the card's capacity that the framework met.
fn verdict(t: &Trace, device: &Device, peak: Figures) -> Verdict {
    let total = device.usable.expected;
    let (_, outside, outside_high) = device.outside();
    let available = total.saturating_sub(outside);
    let margin =
        i64::try_from(i128::from(available) - i128::from(peak.reserved)).unwrap_or(i64::MIN);
    let refused = t.header.refusals.last();
    let worst = device.usable.low.saturating_sub(outside_high);
    let (outcome, why) = match refused {
        Some(r) => (
            Outcome::No,
            format!("a request fails in {} of step {}", known(&r.phase), r.step),
        ),
        None if t.header.retries > 0 => (
            Outcome::Tight,
            format!(
                "it runs after cached blocks are given back {} time{}, which costs time",
                t.header.retries,
                if t.header.retries == 1 { "" } else { "s" }
            ),
        ),
        None if peak.reserved > worst => (
            Outcome::Tight,
            "in the worst case of the device level (larger context and libraries), cached blocks must be given back or a request fails".into(),
        ),
        None => (
            Outcome::Fits,
            "no request had to wait, and none would in the worst case of the device level".into(),
        ),
    };
    Verdict {
        gpu: device.gpu.id.clone(),
        name: device.gpu.name.clone(),
        outcome,
        usable_bytes: total,
        available_bytes: available,
        peak_allocated_bytes: peak.allocated,
        peak_reserved_bytes: peak.reserved,
        wanted_reserved_bytes: peak.reserved,
        margin_bytes: margin,
        free_now_bytes: None,
        retries: t.header.retries,
        why,
        failure: refused.map(|r| Failure {
            message: format!(
                "CUDA out of memory: {} asked for, {} free of {}",
                tonnage_sim::alloc::format_size(r.asked),
                tonnage_sim::alloc::format_size(r.free),
                tonnage_sim::alloc::format_size(r.total)
            ),
            step: r.step,
            phase: known(&r.phase),
            module: r.module.clone(),
            requested_bytes: r.asked,
        }),
    }
}

/// The steps that were left out, in words.
fn repeats(r: &Rest) -> String {
    let next = r.first + i32::try_from(r.steps).unwrap_or(0);
    let mut out = match r.steps {
        0 => String::new(),
        1 => format!("step {} made", r.first),
        _ => format!("steps {} to {} made", r.first, next - 1),
    };
    if r.steps > 0 {
        out.push_str(" the same requests as ");
        match r.cycle {
            0 | 1 => out.push_str(&format!("step {}", r.first - 1)),
            n => out.push_str(&format!("the {n} steps before them")),
        }
        out.push_str(" and are counted, not recorded");
        if r.other > 0 {
            out.push_str(&format!(
                "; {} of them did something besides, which kept nothing and passed no peak",
                r.other
            ));
        }
        out.push_str("; ");
    }
    if r.broken {
        out.push_str(&format!("step {next} was unlike them and is missing; "));
    }
    out.push_str("--every-step records all");
    out
}

fn notes(t: &Trace, peak: Figures) -> Vec<Diagnostic> {
    let h = &t.header;
    let mut out: Vec<Diagnostic> = Vec::new();
    let mut say = |code, m: String| out.push(Diagnostic::note(code, m));
    if h.ended == "partial" {
        say(
            "partial",
            "the process ended without a last word: this is what had been written until then"
                .into(),
        );
    }
    for n in &h.notes {
        say("recorder", n.clone());
    }
    for r in &h.rests {
        say("repeats", repeats(r));
    }
    if let Some(m) = h.missed {
        say(
            "unrecorded-peak",
            format!(
                "step {} reached {} allocated and {} reserved and is not recorded: what was alive then is not known, and the parts are those of the highest \
                 recorded moment",
                m.step,
                Bytes(m.allocated),
                Bytes(m.reserved)
            ),
        );
    }
    let own = h.peaks;
    if own != Figures::default() && h.ended != "partial" && own != peak {
        say(
            "figures-differ",
            format!(
                "PyTorch's own peaks are {} allocated, {} reserved, {} requested bytes; the events give {}, {}, {}",
                own.allocated,
                own.reserved,
                own.requested,
                peak.allocated,
                peak.reserved,
                peak.requested
            ),
        );
    }
    let versions: Vec<String> = h.versions.iter().map(|(k, v)| format!("{k} {v}")).collect();
    if !versions.is_empty() {
        say("versions", format!("recorded with {}", versions.join(", ")));
    }
    out
}
