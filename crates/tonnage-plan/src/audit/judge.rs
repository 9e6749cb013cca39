//! Each claim against the simulator.

use super::bind::{Bindings, How, OpenJob};
use super::claim::{Claim, Part, Phase, Role, Unit, What};
use super::predict::{Predicted, Simulator};
use serde::Serialize;
use tonnage_core::Job;
use tonnage_core::job::to_toml;
use tonnage_core::verdict::Outcome;

/// What a claim turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Holds,
    /// It fits only after the allocator's retries, or inside the margin.
    Tight,
    Fails,
    /// Nothing to hold against it; `why` says the reason.
    NotJudged,
}

impl Verdict {
    /// As reports say it.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Holds => "holds",
            Verdict::Tight => "tight",
            Verdict::Fails => "fails",
            Verdict::NotJudged => "not judged",
        }
    }
}

/// The predicted counterpart of a claim's number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "unit")]
pub enum Prediction {
    /// Bytes from allocated tensors to what the driver reports; equal where a single part is meant.
    Bytes {
        low: u64,
        high: u64,
    },
    Percent {
        low: f64,
        high: f64,
    },
    Ratio {
        low: f64,
        high: f64,
    },
    Millions {
        value: f64,
    },
}

/// A claim with its answer.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub claim: Claim,
    /// The job that the claim was taken to mean, as a job file; `None`: not bound.
    pub job: Option<String>,
    pub how: Option<How>,
    pub predicted: Option<Prediction>,
    pub verdict: Verdict,
    /// Prediction over claim, at the nearer ends; 1 inside.
    pub factor: Option<f64>,
    pub why: String,
    /// Bytes of the weights of the bound job, and its parameters.
    #[serde(skip)]
    pub facts: Option<Facts>,
}

impl Row {
    /// A claim without an answer.
    pub fn unjudged(claim: Claim) -> Row {
        Row {
            claim,
            job: None,
            how: None,
            predicted: None,
            verdict: Verdict::NotJudged,
            factor: None,
            why: String::new(),
            facts: None,
        }
    }
}

/// What consistency checks need of a bound job.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Stored weights of the base model in bytes.
    pub weights: u64,
    pub parameters: u64,
    /// Tensors alive at the peak, in bytes.
    pub allocated: u64,
    /// Allocated bytes of one more sample or sequence are found from two of these.
    pub batch: u64,
    /// Bytes of the predicted counterpart of a part.
    pub part: u64,
}

/// A saving within so many percentage points holds: 42 % is "about 50 %".
const POINTS: f64 = 10.0;

/// Judges claims.
pub struct Judge<'a> {
    pub bindings: &'a Bindings,
    pub open: OpenJob<'a>,
    pub simulator: Simulator,
}

struct Answer {
    predicted: Option<Prediction>,
    verdict: Verdict,
    factor: Option<f64>,
    why: String,
}

fn not_judged(why: impl Into<String>) -> Answer {
    Answer {
        predicted: None,
        verdict: Verdict::NotJudged,
        factor: None,
        why: why.into(),
    }
}

impl Judge<'_> {
    /// One claim; `ignored` says why it is not to be judged. `all` are the document's claims (a claim about `configs/*` is about each of them).
    pub fn row(&mut self, c: &Claim, all: &[Claim], ignored: Option<&str>) -> Row {
        let mut row = Row::unjudged(c.clone());
        if let Some(why) = ignored {
            row.why = why.into();
            return row;
        }
        let a = match &c.what {
            What::Saving(of) => self.saving(c, of, all),
            What::TrainToGenerate => self.train_to_generate(c, all),
            What::TotalToWeights => self.total_to_weights(c, all),
            What::Total
            | What::Case(_)
            | What::Part(_)
            | What::Parameters
            | What::Card(_)
            | What::Batch
            | What::Needed(_) => self.single(c, &mut row),
            What::Largest(_) | What::Threshold(_) | What::Level(_) => {
                not_judged("held against the document's own numbers")
            }
            What::Extra(_) | What::Other(_) => not_judged("no counterpart in a footprint"),
        };
        (row.predicted, row.verdict, row.factor, row.why) =
            (a.predicted, a.verdict, a.factor, a.why);
        row
    }

    fn single(&mut self, c: &Claim, row: &mut Row) -> Answer {
        let bound = match self.bindings.job(c, self.open) {
            Ok(b) => b,
            Err(why) => return not_judged(why),
        };
        row.job = Some(to_toml(&bound.job));
        row.how = Some(bound.how);
        match &c.what {
            What::Card(_) if c.gpu.is_some() => self.card(c, &bound.job),
            What::Batch => self.batch(c, &bound.job),
            _ => match self.simulator.predict(&bound.job, None) {
                Ok(p) => {
                    row.facts = Some(facts(c, &bound.job, &p));
                    against(c, &p, self.bindings.document.tolerance)
                }
                Err(why) => not_judged(why),
            },
        }
    }

    /// A card by the document's name; its memory tells cards of one name apart.
    fn on_card(&mut self, c: &Claim, job: &Job) -> Result<(String, Outcome, u64), String> {
        let name = c.gpu.as_deref().unwrap_or_default();
        let printed = matches!(c.what, What::Card(_)).then_some(c.low);
        let id = card_id(name, c.gpu_memory.or(printed))?;
        let p = self.simulator.predict(job, Some(&id))?;
        let outcome = p.outcome.ok_or("no verdict")?;
        Ok((id, outcome, p.device))
    }

    fn card(&mut self, c: &Claim, job: &Job) -> Answer {
        match self.on_card(c, job) {
            Ok((id, o, device)) => Answer {
                predicted: Some(Prediction::Bytes {
                    low: device,
                    high: device,
                }),
                verdict: of_outcome(o),
                factor: None,
                why: format!("{id}: {}", o.name()),
            },
            Err(why) => not_judged(why),
        }
    }

    /// The batch said to be right for a card: its low and its high end are tried.
    fn batch(&mut self, c: &Claim, job: &Job) -> Answer {
        let mut why = Vec::new();
        let mut worst = Verdict::Holds;
        let mut predicted = None;
        let ends = [Some(c.low), c.high.filter(|h| *h != c.low)];
        for b in ends.into_iter().flatten() {
            let mut job = job.clone();
            if let Err(e) = job.set_text("train.micro_batch_size", &format!("{b}")) {
                return not_judged(e);
            }
            match self.on_card(c, &job) {
                Ok((id, o, device)) => {
                    why.push(format!("batch {b} on {id}: {}", o.name()));
                    predicted = Some(Prediction::Bytes {
                        low: device,
                        high: device,
                    });
                    worst = match (worst, of_outcome(o)) {
                        (Verdict::Fails, _) | (_, Verdict::Fails) => Verdict::Fails,
                        (Verdict::Tight, _) | (_, Verdict::Tight) => Verdict::Tight,
                        _ => Verdict::Holds,
                    };
                }
                Err(e) => return not_judged(e),
            }
        }
        // "tight" in the document and tight here agree
        if worst == Verdict::Tight && c.verdict.as_deref() == Some("tight") {
            worst = Verdict::Holds;
        }
        Answer {
            predicted,
            verdict: worst,
            factor: None,
            why: why.join(", "),
        }
    }

    /// Jobs of the subjects that a pattern (`configs/*`, `any`) means, in one phase, without settings of single rows.
    fn family(&self, c: &Claim, phase: Phase, all: &[Claim]) -> Vec<(String, Job)> {
        let stem = c.subject.trim_end_matches('*');
        let mut out: Vec<(String, Job)> = Vec::new();
        for o in all {
            let same_document = o.block.split(':').next() == c.block.split(':').next();
            let meant = c.subject == "any"
                || o.subject == c.subject
                || (stem != c.subject && o.subject.starts_with(stem));
            if !meant || !same_document || out.iter().any(|(s, _)| *s == o.subject) {
                continue;
            }
            let mut plain = o.clone();
            plain.settings.clear();
            plain.phase = phase;
            if let Ok(b) = self.bindings.job(&plain, self.open) {
                out.push((o.subject.clone(), b.job));
            }
        }
        out
    }

    fn saving(&mut self, c: &Claim, of: &str, all: &[Claim]) -> Answer {
        let Some((key, from, to)) = edit(of) else {
            return not_judged("held against the document's own rows");
        };
        let mut found: Vec<f64> = Vec::new();
        let mut bytes: Vec<f64> = Vec::new();
        let phase = if c.phase == Phase::Inference {
            Phase::Inference
        } else {
            Phase::Training
        };
        for (_, job) in self.family(c, phase, all) {
            let mut total = |value: &str| {
                let mut j = job.clone();
                j.set_text(key, value).ok()?;
                self.simulator
                    .predict(&j, None)
                    .ok()
                    .map(|p| p.allocated as f64)
            };
            if let (Some(a), Some(b)) = (total(from), total(to)) {
                found.push(100.0 * (a - b) / a);
                bytes.push(a - b);
            }
        }
        let Some((low, high)) = ends(&found) else {
            return not_judged("no job of the document can be simulated both ways");
        };
        if let (Some((least, most)), Some((low, high))) = (c.bytes(), ends(&bytes)) {
            let t = self.bindings.document.tolerance;
            let inside = high >= least * (1.0 - t) && low <= most * (1.0 + t);
            return Answer {
                predicted: Some(Prediction::Bytes {
                    low: low.max(0.0) as u64,
                    high: high.max(0.0) as u64,
                }),
                verdict: if inside {
                    Verdict::Holds
                } else {
                    Verdict::Fails
                },
                factor: None,
                why: format!("{key} {from} to {to}, of allocated"),
            };
        }
        let near = low >= c.low - POINTS && high <= c.high.unwrap_or(100.0) + POINTS;
        Answer {
            predicted: Some(Prediction::Percent { low, high }),
            verdict: if near { Verdict::Holds } else { Verdict::Fails },
            factor: None,
            why: format!("{key} {from} to {to}, of allocated"),
        }
    }

    fn ratio(&mut self, c: &Claim, found: &[f64], why: &str) -> Answer {
        let Some((low, high)) = ends(found) else {
            return not_judged("no job of the document can be simulated both ways");
        };
        let t = self.bindings.document.tolerance;
        let inside =
            low >= c.low * (1.0 - t) && high <= c.high.unwrap_or(f64::INFINITY) * (1.0 + t);
        Answer {
            predicted: Some(Prediction::Ratio { low, high }),
            verdict: if inside {
                Verdict::Holds
            } else {
                Verdict::Fails
            },
            factor: None,
            why: why.into(),
        }
    }

    fn train_to_generate(&mut self, c: &Claim, all: &[Claim]) -> Answer {
        let generate = self.family(c, Phase::Inference, all);
        let mut found = Vec::new();
        for (s, job) in self.family(c, Phase::Training, all) {
            let other = generate.iter().find(|(o, _)| *o == s);
            if let Some((_, g)) = other
                && let (Ok(a), Ok(b)) = (
                    self.simulator.predict(&job, None),
                    self.simulator.predict(g, None),
                )
            {
                found.push(a.allocated as f64 / b.allocated as f64);
            }
        }
        self.ratio(
            c,
            &found,
            "allocated in training over allocated in generation",
        )
    }

    fn total_to_weights(&mut self, c: &Claim, all: &[Claim]) -> Answer {
        let mut found = Vec::new();
        for (_, job) in self.family(c, c.phase, all) {
            if let Ok(p) = self.simulator.predict(&job, None) {
                found.push(p.allocated as f64 / p.parts[&Part::Weights].max(1) as f64);
            }
        }
        self.ratio(c, &found, "allocated over weights")
    }
}

fn ends(v: &[f64]) -> Option<(f64, f64)> {
    let low = v.iter().copied().reduce(f64::min)?;
    Some((low, v.iter().copied().reduce(f64::max)?))
}

/// The setting that an edit changes, from and to; `None`: not one setting.
fn edit(of: &str) -> Option<(&'static str, &'static str, &'static str)> {
    Some(match of {
        "mixed precision" | "fp16" | "half precision" => ("train.precision", "fp32", "fp16-mixed"),
        "checkpointing" | "gradient checkpointing" => {
            ("train.activation_checkpointing", "none", "full")
        }
        _ => return None,
    })
}

fn of_outcome(o: Outcome) -> Verdict {
    match o {
        Outcome::Fits => Verdict::Holds,
        Outcome::Tight => Verdict::Tight,
        Outcome::No => Verdict::Fails,
    }
}

/// The catalog's id of a card by a document's name; cards that share it are told apart by memory in GB.
///
/// # Errors
/// No such card, or several.
pub fn card_id(name: &str, memory: Option<f64>) -> Result<String, String> {
    use tonnage_catalog::{LookupError, gpu};
    match gpu(name) {
        Ok(g) => Ok(g.id.to_string()),
        Err(LookupError::Ambiguous { candidates, .. }) => {
            let fits = |id: &&String| {
                let marketed = gpu(id).map_or(0.0, |g| f64::from(g.memory_gb_marketed.get()));
                memory == Some(marketed)
            };
            let of: Vec<&String> = candidates.iter().filter(fits).collect();
            match (of.first(), candidates.first()) {
                (Some(id), _) => Ok((*id).clone()),
                (None, Some(_)) if memory.is_none() => Err(format!(
                    "{name} is several cards: {}",
                    candidates.join(", ")
                )),
                _ => Err(format!(
                    "no {name} has that memory; there are {}",
                    candidates.join(", ")
                )),
            }
        }
        Err(e) => Err(e.to_string()),
    }
}

fn facts(c: &Claim, job: &Job, p: &Predicted) -> Facts {
    let part = match &c.what {
        What::Part(x) => p.parts.get(x).copied().unwrap_or(0),
        _ => p.allocated,
    };
    let batch = match job.word("work.kind").as_str() {
        "generate" => job.count("generate.batch_size"),
        _ => job.count("train.micro_batch_size"),
    };
    Facts {
        weights: p.parts[&Part::Weights],
        parameters: p.parameters,
        allocated: p.allocated,
        batch: batch.unwrap_or(1),
        part,
    }
}

/// A number of the footprint against the claim's.
fn against(c: &Claim, p: &Predicted, tolerance: f64) -> Answer {
    if c.unit == Unit::Millions {
        let value = p.parameters as f64 / 1e6;
        let ok = (value - c.low).abs() <= 0.01 * value;
        return Answer {
            predicted: Some(Prediction::Millions { value }),
            verdict: if ok { Verdict::Holds } else { Verdict::Fails },
            factor: Some(value / c.low),
            why: "parameters of the model as configured".into(),
        };
    }
    let Some((least, most)) = c.bytes() else {
        return not_judged("no amount of memory");
    };
    let (low, high, why) = match &c.what {
        What::Part(Part::Backward) => {
            return not_judged("backward releases what forward saved; it has no amount of its own");
        }
        What::Part(x) => match p.parts.get(x).copied() {
            Some(0) | None => return not_judged("the job has no such part"),
            Some(v) => (v, v, format!("{} at their highest", x.name())),
        },
        _ => (
            p.allocated,
            p.device,
            "tensors, to what the driver reports".into(),
        ),
    };
    let predicted = Some(Prediction::Bytes { low, high });
    if let What::Card(role) = &c.what {
        // a card's size without its name: what the driver reports has to fit
        let ok = p.device as f64 <= most;
        return Answer {
            predicted,
            verdict: if ok { Verdict::Holds } else { Verdict::Fails },
            factor: None,
            why: match role {
                Role::Fits | Role::Minimum | Role::Recommended | Role::Optimal => {
                    "what the driver reports against the card's size".into()
                }
            },
        };
    }
    if let What::Needed(_) = &c.what {
        let ok = p.device as f64 <= most;
        return Answer {
            predicted,
            verdict: if ok { Verdict::Holds } else { Verdict::Fails },
            factor: None,
            why: "what the driver reports against the memory said to be enough".into(),
        };
    }
    let (l, h) = (low as f64, high as f64);
    let factor = if l > most {
        l / most
    } else if h < least {
        h / least
    } else {
        1.0
    };
    let holds = l <= most * (1.0 + tolerance) && h >= least * (1.0 - tolerance);
    Answer {
        predicted,
        verdict: if holds {
            Verdict::Holds
        } else {
            Verdict::Fails
        },
        factor: Some(factor),
        why,
    }
}
