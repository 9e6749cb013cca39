//! A batch for every length under a budget.
//!
//! Memory is linear in tokens for most of a step and quadratic in the length for explicit attention scores, so a rule that keeps the
//! tokens of a batch constant exceeds a budget at long lengths that it keeps at short ones. Here every batch is simulated.

use crate::cards::largest::{Point, largest};
use crate::cards::{SCHEMA, Tried, taken};
use serde::Serialize;
use tonnage_core::doc::Value;
use tonnage_core::job::Origin;
use tonnage_core::verdict::{Device, Outcome};
use tonnage_core::{Diagnostic, Job};

/// A rule that gives a batch for a length without looking at memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// AGI2's trainer: `max(4, floor(batch * end * 1.125 / length))`.
    Agi2 { batch: u64, end: u64 },
    /// The same number of tokens in every batch.
    Tokens(u64),
}

impl Rule {
    /// `agi2:64x512` (batch and last length), `tokens:32768`.
    ///
    /// # Errors
    /// It is neither.
    pub fn parse(text: &str) -> Result<Rule, String> {
        let help = || format!("`{text}` is not a rule: agi2:BATCHxLAST_LENGTH or tokens:N");
        let number = |t: &str| {
            t.trim()
                .parse::<u64>()
                .ok()
                .filter(|n| *n > 0)
                .ok_or_else(help)
        };
        match text.split_once(':') {
            Some(("agi2", rest)) => {
                let (batch, end) = rest.split_once('x').ok_or_else(help)?;
                Ok(Rule::Agi2 {
                    batch: number(batch)?,
                    end: number(end)?,
                })
            }
            Some(("tokens", n)) => Ok(Rule::Tokens(number(n)?)),
            _ => Err(help()),
        }
    }

    /// The batch at a length.
    pub fn batch(self, length: u64) -> u64 {
        let length = u128::from(length.max(1));
        let n = match self {
            Rule::Agi2 { batch, end } => {
                (u128::from(batch) * u128::from(end) * 9 / (8 * length)).max(4)
            }
            Rule::Tokens(n) => (u128::from(n) / length).max(1),
        };
        u64::try_from(n).unwrap_or(u64::MAX)
    }

    /// In words.
    pub fn says(self) -> String {
        match self {
            Rule::Agi2 { batch, end } => {
                format!("AGI2's rule: max(4, floor({batch} x {end} x 1.125 / length))")
            }
            Rule::Tokens(n) => format!("{n} tokens in every batch"),
        }
    }
}

/// What a length gets.
#[derive(Clone, Debug, Serialize)]
pub struct Length {
    pub seq_len: u64,
    /// The largest batch that fits, as every smaller one does.
    pub largest: Option<Point>,
    /// The next, which does not.
    pub next: Option<Point>,
    /// The batch of the schedule: of those that fit, the largest that divides the global batch.
    pub batch: Option<Point>,
    /// Micro-batches of a step with it: batch x accumulation is the global batch.
    pub accumulation: u64,
    /// What the rule gives, and the verdict on that.
    pub rule: Option<Point>,
    /// The rule's batch does not fit.
    pub violates: bool,
}

/// The schedule.
#[derive(Clone, Debug, Serialize)]
pub struct Schedule {
    pub schema: &'static str,
    pub question: &'static str,
    pub job: String,
    pub gpu: String,
    pub name: String,
    pub usable_bytes: u64,
    pub taken_bytes: u64,
    /// What the allocator can have.
    pub budget_bytes: u64,
    /// Samples of every optimizer step.
    pub global_batch: u64,
    pub rule: Option<String>,
    pub lengths: Vec<Length>,
    pub notes: Vec<String>,
}

impl Schedule {
    /// Whether every length has a batch.
    pub fn complete(&self) -> bool {
        self.lengths.iter().all(|l| l.batch.is_some())
    }
}

fn set(job: &Job, key: &'static str, n: u64) -> Result<Job, Vec<Diagnostic>> {
    let mut j = job.clone();
    j.set(key, Value::Int(n.into()), Origin::Flag)
        .map_err(|e| vec![Diagnostic::error("bad-value", e)])?;
    Ok(j)
}

const BATCH: &str = "train.micro_batch_size";

fn point(job: &Job, batch: u64, d: &Device) -> Result<Point, Vec<Diagnostic>> {
    let j = set(job, BATCH, batch)?;
    let t = Tried::new(&j, &d.gpu)?;
    let available = d.room().0;
    Ok(Point {
        value: batch,
        effective_batch: j.effective_batch(),
        needed_bytes: t.wanted() + d.outside().1,
        available_bytes: available,
        margin_bytes: i64::try_from(i128::from(available) - i128::from(t.wanted()))
            .unwrap_or(i64::MIN),
        outcome: t.outcome(d),
    })
}

/// The largest divisor of `of` up to `most`.
fn divisor(of: u64, most: u64) -> u64 {
    (1..=most.min(of))
        .rev()
        .find(|n| of.is_multiple_of(*n))
        .unwrap_or(1)
}

/// A batch for every length. `global` samples make a step (`None`: the job's own); `shift`: lengths count one token more than the model is
/// given (AGI2's trainer shifts the target).
///
/// # Errors
/// A length that cannot be simulated.
pub fn schedule(
    job: &Job,
    d: &Device,
    lengths: &[u64],
    global: Option<u64>,
    rule: Option<Rule>,
    shift: bool,
) -> Result<Schedule, Vec<Diagnostic>> {
    let global = global.unwrap_or_else(|| job.effective_batch()).max(1);
    let mut out = Vec::with_capacity(lengths.len());
    for &length in lengths {
        let seq = if shift {
            length.saturating_sub(1).max(1)
        } else {
            length
        };
        let j = set(job, "train.seq_len", seq)?;
        let a = largest(&j, d, BATCH, Some(1))?;
        let most = a.fits.as_ref().map(|p| p.value);
        let chosen = most.map(|m| divisor(global, m));
        let batch = match chosen {
            Some(b) => Some(point(&j, b, d)?),
            None => None,
        };
        let by_rule = match rule {
            Some(r) => Some(point(&j, r.batch(length), d)?),
            None => None,
        };
        out.push(Length {
            seq_len: length,
            accumulation: chosen.map_or(0, |b| global / b),
            violates: by_rule.as_ref().is_some_and(|p| p.outcome != Outcome::Fits),
            largest: a.fits,
            next: a.next,
            batch,
            rule: by_rule,
        });
    }
    Ok(Schedule {
        schema: SCHEMA,
        question: "lengths",
        job: job.title(),
        gpu: d.gpu.id.clone(),
        name: d.gpu.name.clone(),
        usable_bytes: d.usable.expected,
        taken_bytes: taken(d),
        budget_bytes: d.room().0,
        global_batch: global,
        rule: rule.map(Rule::says),
        lengths: out,
        notes: vec![
            "each length is a run of its own: blocks that an earlier length left in the allocator's cache are given back (torch.cuda.empty_cache()) when the length changes".into(),
            "batch x accumulation is the same number of samples at every length; the gradients are the same where the loss is divided by the tokens (or samples) of the whole step, not of each micro-batch".into(),
        ],
    })
}
