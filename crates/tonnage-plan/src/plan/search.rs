//! Candidates, their ranking, and the points that are shown.

use super::bound::{Bound, Known, known};
use super::full::Place;
use super::ladder;
use super::space::{self, Allow, Dimension, Edit};
use super::wider::wider;
use super::{Objective, Options, Plan, Point, Progress, SCHEMA, Searched, Workers};
use crate::time::{Fitted, time_of};
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tonnage_core::spec::Spec;
use tonnage_core::{Diagnostic, Job};

/// Changes from the user's settings.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    pub edits: Vec<Edit>,
}

impl Choice {
    /// The job with the changes.
    pub fn job(&self, job: &Job) -> Result<Job, String> {
        let mut j = job.clone();
        for e in &self.edits {
            e.apply(&mut j)?;
        }
        Ok(j)
    }
    pub(super) fn key(&self) -> String {
        let words: Vec<_> = self.edits.iter().map(|e| e.what.as_str()).collect();
        words.join("; ")
    }
}

/// A setting that was ranked.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub choice: Choice,
    pub micro: u64,
    pub accumulation: u64,
    /// Place in the list of splits: 0 is the user's own.
    pub split: usize,
    /// A lower bound of what it requests at its peak.
    pub requested: u64,
    /// Seconds of a step; of a token where the global batch differs.
    pub seconds_per_token: f64,
}

/// Does an edit change nothing that is requested? Then it shares its family's bounds.
fn only_allocator(d: &Dimension) -> bool {
    d.iter()
        .all(|e| e.set.iter().all(|(k, _)| *k == "allocator.conf"))
}

/// Is it the choice of an optimizer? Its settings share their family's runs.
fn only_optimizer(d: &Dimension) -> bool {
    d.iter()
        .all(|e| e.set.iter().all(|(k, _)| *k == "train.optimizer"))
}

/// All combinations of the dimensions' edits (or none of each).
fn products(dims: &[Dimension]) -> Vec<Vec<Edit>> {
    let mut all = vec![Vec::new()];
    for d in dims {
        let mut next = all.clone();
        for e in d {
            for base in &all {
                let mut c: Vec<Edit> = base.clone();
                c.push(e.clone());
                next.push(c);
            }
        }
        all = next;
    }
    all
}

/// Ranks every setting of a job on a card by lower bound and time; also how many settings cannot be simulated, and whether the search
/// was stopped.
pub fn rank(
    job: &Job,
    options: &Options,
    workers: &dyn Workers,
    progress: &dyn Progress,
) -> Result<(Vec<Candidate>, Searched), Vec<Diagnostic>> {
    let place = Place::new(options)?;
    Ok(ranked(job, &place, &options.allow, workers, progress))
}

fn ranked(
    job: &Job,
    place: &Place,
    allow: &[Allow],
    workers: &dyn Workers,
    progress: &dyn Progress,
) -> (Vec<Candidate>, Searched) {
    let gpu = &place.device.gpu;
    let dims = space::dimensions(job, allow, gpu.flash_attention2);
    let (free, real): (Vec<Dimension>, Vec<Dimension>) = dims.into_iter().partition(only_allocator);
    let splits = space::splits(job, allow);
    let at = real.iter().position(only_optimizer);
    let optimizers = products(&at.map(|i| real[i].clone()).into_iter().collect::<Vec<_>>());
    let before = products(&real[..at.unwrap_or(0)]);
    let after = products(&real[at.map_or(0, |i| i + 1)..]);
    let free = products(&free);
    let found: Mutex<Vec<(usize, Vec<Candidate>)>> = Mutex::default();
    let (done, unsupported) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let stop = AtomicBool::new(false);
    let candidates = |edits: &[Edit], spec: &Spec, known: &[Bound]| {
        let mut out = Vec::with_capacity(splits.len() * free.len());
        for (n, (split, b)) in splits.iter().zip(known).enumerate() {
            let seconds = place.card.as_ref().map_or(1.0, |c| {
                let t = time_of(&b.work, spec, c, Fitted::builtin());
                1.0 / t.tokens_per_s.expected.max(1e-12)
            });
            for f in &free {
                let mut edits = edits.to_vec();
                edits.extend(f.iter().cloned());
                if n > 0 {
                    edits.push(space::split_edit(job, splits[0], *split));
                }
                out.push(Candidate {
                    choice: Choice { edits },
                    micro: split.0,
                    accumulation: split.1,
                    split: n,
                    requested: b.requested,
                    seconds_per_token: seconds,
                });
            }
        }
        out
    };
    // all optimizers of one family: the first that can be simulated leads
    let family = |i: usize| -> Vec<Candidate> {
        let (b, a) = (&before[i / after.len()], &after[i % after.len()]);
        let (mut lead, mut out) = (None, Vec::new());
        for o in &optimizers {
            let edits = [&b[..], o, a].concat();
            let spec = Choice {
                edits: edits.clone(),
            }
            .job(job)
            .ok()
            .and_then(|j| j.spec(gpu).ok());
            let one = spec.and_then(|spec| {
                let shared = lead.as_ref().and_then(|l: &Known| l.beside(&spec, &splits));
                let bounds = match shared {
                    Some(b) => b,
                    None => {
                        let k = known(&spec, &splits).ok()?;
                        let b = k.bounds.clone();
                        lead.get_or_insert(k);
                        b
                    }
                };
                Some(candidates(&edits, &spec, &bounds))
            });
            match one {
                Some(c) => out.extend(c),
                None => {
                    unsupported.fetch_add(splits.len() * free.len(), Ordering::Relaxed);
                }
            }
        }
        out
    };
    let families = before.len() * after.len();
    workers.each(families, &|i| {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let c = family(i);
        if let Ok(mut all) = found.lock() {
            all.push((i, c));
        }
        let n = done.fetch_add(1, Ordering::Relaxed) + 1;
        if !progress.step("ranking", n, families) {
            stop.store(true, Ordering::Relaxed);
        }
    });
    let mut all = found.into_inner().unwrap_or_default();
    all.sort_by_key(|(i, _)| *i);
    let candidates: Vec<Candidate> = all.into_iter().flat_map(|(_, c)| c).collect();
    let searched = Searched {
        candidates: candidates.len(),
        unsupported: unsupported.into_inner(),
        interrupted: stop.into_inner(),
        ..Searched::default()
    };
    (candidates, searched)
}

/// Full simulations, each setting once.
pub(super) struct Simulations<'a> {
    pub job: &'a Job,
    pub place: &'a Place,
    done: HashMap<String, Option<Point>>,
    verdicts: HashMap<String, bool>,
    pub progress: &'a dyn Progress,
    pub interrupted: bool,
}

impl Simulations<'_> {
    /// The point of a choice; `None` where it cannot be simulated or the search was stopped.
    pub fn point(&mut self, choice: &Choice) -> Option<Point> {
        let key = choice.key();
        if let Some(p) = self.done.get(&key) {
            return p.clone();
        }
        if self.interrupted {
            return None;
        }
        let p = choice
            .job(self.job)
            .ok()
            .and_then(|j| self.place.point(&j, choice).ok());
        self.verdicts
            .insert(key.clone(), p.as_ref().is_some_and(Point::fits));
        self.done.insert(key, p.clone());
        self.tell();
        p
    }

    /// Does a choice fit? No, where it cannot be simulated or the search was stopped.
    pub fn fits(&mut self, choice: &Choice) -> bool {
        let key = choice.key();
        if let Some(v) = self.verdicts.get(&key) {
            return *v;
        }
        if self.interrupted {
            return false;
        }
        let v = choice.job(self.job).ok().and_then(|j| self.place.fits(&j)) == Some(true);
        self.verdicts.insert(key, v);
        self.tell();
        v
    }

    /// Settings simulated so far.
    pub fn count(&self) -> usize {
        self.verdicts.len()
    }

    fn tell(&mut self) {
        if !self.progress.step("simulating", self.verdicts.len(), 0) {
            self.interrupted = true;
        }
    }
}

/// Families of settings that are looked into on the way to the recommended point, at most.
const MOST: usize = 100;

/// The edits beside that of the split.
fn base(c: &Candidate) -> &[Edit] {
    &c.choice.edits[..c.choice.edits.len() - usize::from(c.split > 0)]
}

/// The best candidate that fits. In a family (all but the micro-batch the same) a larger micro-batch never needs less, so the limit is
/// found by halving; families come in the order of their best candidate that is not ruled out, and one whose best is no better than
/// what was found is not looked into.
fn best<'a>(
    sims: &mut Simulations,
    possible: &[&'a Candidate],
    o: Objective,
) -> Option<&'a Candidate> {
    let mut families: Vec<Vec<&'a Candidate>> = Vec::new();
    let mut place: HashMap<String, usize> = HashMap::new();
    for &c in possible {
        let words: Vec<&str> = base(c).iter().map(|e| e.what.as_str()).collect();
        // in the order of the objective: a family comes with its best candidate
        let n = *place.entry(words.join("; ")).or_insert(families.len());
        if n == families.len() {
            families.push(Vec::new());
        }
        families[n].push(c);
    }
    let mut found: Option<&'a Candidate> = None;
    for family in families.iter().take(MOST) {
        if found.is_some_and(|f| order(o, f, family[0]).is_lt()) || sims.interrupted {
            break;
        }
        let mut by_size = family.clone();
        by_size.sort_by_key(|c| (c.micro, c.requested));
        let (mut low, mut high) = (0, by_size.len());
        while low < high {
            // the largest first: where it fits, nothing is to be searched
            let mid = if high == by_size.len() {
                high - 1
            } else {
                low + (high - low) / 2
            };
            if sims.fits(&by_size[mid].choice) {
                low = mid + 1;
            } else {
                high = mid;
            }
        }
        let mut fit: Vec<&'a Candidate> = by_size[..low].to_vec();
        fit.sort_by(|a, b| order(o, a, b));
        for c in fit {
            if found.is_some_and(|f| !order(o, c, f).is_lt()) {
                break;
            }
            if sims.fits(&c.choice) {
                found = Some(c);
                break;
            }
        }
    }
    found
}

/// Points of the front, at most.
const FRONT: usize = 8;

/// A time for comparison: in steps of 0.2 %, far below what the time model knows, so that the number of changes and bytes decide.
fn coarse(seconds: f64) -> i64 {
    (seconds.max(1e-30).ln() * 500.0).round() as i64
}

fn order(o: Objective, a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    let time = coarse(a.seconds_per_token).cmp(&coarse(b.seconds_per_token));
    let bytes = a.requested.cmp(&b.requested);
    let edits = a.choice.edits.len().cmp(&b.choice.edits.len());
    match o {
        Objective::Memory => bytes.then(edits).then(time),
        _ => time.then(edits).then(bytes),
    }
}

pub fn plan(
    job: &Job,
    options: &Options,
    workers: &dyn Workers,
    progress: &dyn Progress,
) -> Result<Plan, Vec<Diagnostic>> {
    let place = Place::new(options)?;
    let own = Choice::default();
    let yours = place.point(job, &own)?;
    let mut sims = Simulations {
        job,
        place: &place,
        done: HashMap::from([(own.key(), Some(yours.clone()))]),
        verdicts: HashMap::from([(own.key(), yours.fits())]),
        progress,
        interrupted: false,
    };
    let (mut all, mut searched) = ranked(job, &place, &options.allow, workers, progress);
    all.sort_by(|a, b| order(options.objective, a, b));
    let available = place.available();
    let possible: Vec<&Candidate> = all.iter().filter(|c| c.requested <= available).collect();
    searched.ruled_out = all.len() - possible.len();
    let mut recommended = best(&mut sims, &possible, options.objective)
        .and_then(|c| Some((c, sims.point(&c.choice).filter(Point::fits)?)));
    if recommended.is_none() && yours.fits() {
        recommended = all
            .iter()
            .find(|c| c.choice.edits.is_empty())
            .map(|c| (c, yours.clone()));
    }
    let next = recommended
        .as_ref()
        .and_then(|(c, _)| next(&mut sims, &all, c));
    let front = front(
        &mut sims,
        &possible,
        recommended.as_ref().map(|r| &r.1),
        &yours,
    );
    let changes = ladder::changes(
        &mut sims,
        &possible,
        &yours,
        recommended.as_ref().map(|r| r.0),
    );
    let no_effect = ladder::no_effect(job, &place, &yours);
    let if_allowed = if recommended.is_none() && !sims.interrupted {
        wider(&mut sims, job, options, &all)
    } else {
        Vec::new()
    };
    searched.simulated = sims.verdicts.len();
    searched.interrupted |= sims.interrupted;
    let mut notes: Vec<String> = crate::cards::sizes::said(job).collect();
    notes.extend(yours.time.notes.iter().cloned());
    if job.word("work.kind") == "train" {
        notes.push("sharding and parallel degrees over several cards are not searched".into());
    }
    if options.objective == Objective::Cost {
        notes.push("on one card the cheapest token is the fastest one".into());
    }
    Ok(Plan {
        schema: SCHEMA,
        job: job.title(),
        gpu: place.device.gpu.id.clone(),
        gpu_name: place.device.gpu.name.clone(),
        available_bytes: available,
        kept_free_bytes: place.kept_free,
        objective: match options.objective {
            Objective::Throughput => "throughput",
            Objective::Cost => "cost",
            Objective::Memory => "memory",
        },
        allowed: options.allow.iter().map(|a| a.name()).collect(),
        effective_batch: job.effective_batch(),
        yours,
        recommended: recommended.map(|r| r.1),
        next,
        front,
        changes,
        no_effect,
        if_allowed,
        searched,
        offer: place.offer.clone(),
        notes,
    })
}

/// The recommended settings with the next larger micro-batch; where there is none, the nearest faster settings: simulated, and not
/// fitting.
fn next(sims: &mut Simulations, all: &[Candidate], c: &Candidate) -> Option<Point> {
    let own = base(c);
    let global = c.micro * c.accumulation;
    let mut larger: Vec<&Candidate> = all
        .iter()
        .filter(|x| {
            x.micro > c.micro
                && (c.accumulation == 1 || x.micro * x.accumulation == global)
                && base(x) == own
        })
        .collect();
    larger.sort_by_key(|x| x.micro);
    let mut faster: Vec<&Candidate> = all
        .iter()
        .filter(|x| x.seconds_per_token < c.seconds_per_token)
        .collect();
    faster.sort_by_key(|x| x.requested);
    let tried: Vec<&Candidate> = larger
        .into_iter()
        .take(12)
        .chain(faster.into_iter().take(6))
        .collect();
    tried
        .into_iter()
        .find_map(|x| sims.point(&x.choice).filter(|p| !p.fits()))
}

/// Simulated points that fit, of which no other is both faster and smaller, the fastest first.
fn front(
    sims: &mut Simulations,
    possible: &[&Candidate],
    recommended: Option<&Point>,
    yours: &Point,
) -> Vec<Point> {
    let mut by_time: Vec<&Candidate> = possible.to_vec();
    by_time.sort_by(|a, b| {
        a.seconds_per_token
            .total_cmp(&b.seconds_per_token)
            .then(a.requested.cmp(&b.requested))
    });
    let mut least = u64::MAX;
    let mut outline: Vec<&Candidate> = Vec::new();
    for c in by_time {
        if c.requested < least {
            least = c.requested;
            outline.push(c);
        }
    }
    let n = outline.len();
    let picked: Vec<&Candidate> = if n <= FRONT {
        outline
    } else {
        (0..FRONT)
            .map(|i| outline[i * (n - 1) / (FRONT - 1)])
            .collect()
    };
    let mut points: Vec<Point> = picked
        .iter()
        .filter_map(|c| sims.point(&c.choice))
        .collect();
    points.extend(recommended.cloned());
    points.push(yours.clone());
    points.retain(Point::fits);
    points.sort_by(|a, b| {
        b.time
            .tokens_per_s
            .expected
            .total_cmp(&a.time.tokens_per_s.expected)
            .then(a.peak_reserved_bytes.cmp(&b.peak_reserved_bytes))
    });
    let mut least = u64::MAX;
    points.retain(|p| {
        let keep = p.peak_reserved_bytes < least;
        least = least.min(p.peak_reserved_bytes);
        keep
    });
    points
}
