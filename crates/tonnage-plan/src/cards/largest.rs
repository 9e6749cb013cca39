//! The largest micro-batch, length, rank, context or concurrency on a card: the largest value such that it and every smaller one fit.

use super::{SCHEMA, Tried, margin, taken};
use crate::time::{Card, Fitted, Span, step_work, time_of};
use serde::Serialize;
use tonnage_core::doc::Value;
use tonnage_core::job::{Kind, Origin, find};
use tonnage_core::verdict::{Device, Outcome};
use tonnage_core::{Diagnostic, Job};

/// Values between the ends that are all looked at; with more, a stride, and every value around the limit.
pub const ALL: u64 = 160;

/// One value of the setting, simulated.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    pub value: u64,
    pub effective_batch: u64,
    pub needed_bytes: u64,
    pub available_bytes: u64,
    pub margin_bytes: i64,
    pub outcome: Outcome,
}

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub struct Largest {
    pub schema: &'static str,
    pub question: &'static str,
    pub job: String,
    pub gpu: String,
    pub name: String,
    pub usable_bytes: u64,
    pub taken_bytes: u64,
    /// The setting's key.
    pub setting: &'static str,
    pub step: u64,
    /// The largest that fits, as every smaller one does; none: the least does not.
    pub fits: Option<Point>,
    /// The next value, which does not fit; none: the most that can be asked fits.
    pub next: Option<Point>,
    /// The largest that runs (fits or tight), as every smaller one does.
    pub runs: Option<Point>,
    /// The next after it, which fails.
    pub fails: Option<Point>,
    /// Why nothing larger was asked, where the limit is not memory.
    pub capped: Option<String>,
    /// Values that were simulated.
    pub simulated: usize,
    /// Every so manieth value below the limit was looked at; 1: all.
    pub stride: u64,
    /// Speed and money at the largest that fits, where asked for ([`rate`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
}

/// Speed and money of a job on a card.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rate {
    pub tokens_per_s: Span,
    /// US dollars; none: no dated price of the card is known.
    pub usd_per_million_tokens: Option<Span>,
    /// What is rented: instance, region, date of the price.
    pub price: Option<String>,
}

/// The answer for several cards.
#[derive(Clone, Debug, Serialize)]
pub struct ByCard {
    pub schema: &'static str,
    pub question: &'static str,
    pub job: String,
    pub rows: Vec<Largest>,
    /// What somebody else says of each, as given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<String>,
}

impl ByCard {
    /// Of a job, without rows yet.
    pub fn new(job: &Job, claims: Vec<String>) -> ByCard {
        ByCard {
            schema: SCHEMA,
            question: "largest_by_card",
            job: job.title(),
            rows: vec![],
            claims,
        }
    }
}

/// What people call a knob, by what the job does.
fn knob(job: &Job, name: &str) -> Result<&'static str, String> {
    let generates = job.word("work.kind") == "generate";
    let s = match name {
        "batch" | "batch-size" | "batch_size" | "micro_batch" | "micro-batch" | "concurrency" if generates => "generate.batch_size",
        "batch" | "batch-size" | "batch_size" | "micro_batch" | "micro-batch" => "train.micro_batch_size",
        "context" | "context_len" | "context-len" | "length" if generates => "generate.prompt_len",
        "context" | "context_len" | "context-len" | "length" | "seq" => "train.seq_len",
        "rank" => "lora.r",
        "concurrency" => return Err("concurrency is a setting of generation (--work generate); of training it is the micro-batch".into()),
        other => other,
    };
    let s = find(s)?;
    match s.kind {
        Kind::Count(_) => Ok(s.key),
        _ => Err(format!("`{}` is not a number to make larger", s.key)),
    }
}

/// The step and the most that is asked of a knob.
fn bounds(key: &str) -> (u64, u64) {
    match key {
        "train.seq_len" | "train.target_len" | "generate.prompt_len" | "generate.new_tokens" => {
            (64, 1 << 20)
        }
        "train.image_size" => (16, 1 << 13),
        "lora.r" => (8, 1 << 13),
        _ => (1, 1 << 16),
    }
}

struct Search<'a> {
    job: &'a Job,
    device: &'a Device,
    key: &'static str,
    step: u64,
    seen: std::collections::BTreeMap<u64, Point>,
}

impl Search<'_> {
    /// Value `i` of the grid, counted from 1.
    fn point(&mut self, i: u64) -> Result<Point, Vec<Diagnostic>> {
        if let Some(p) = self.seen.get(&i) {
            return Ok(p.clone());
        }
        let value = i * self.step;
        let mut j = self.job.clone();
        j.set(self.key, Value::Int(value.into()), Origin::Flag)
            .map_err(|e| vec![Diagnostic::error("bad-value", e)])?;
        let t = Tried::new(&j, &self.device.gpu)?;
        let (available, _) = self.device.room();
        let p = Point {
            value,
            effective_batch: j.effective_batch(),
            needed_bytes: t.wanted() + self.device.outside().1,
            available_bytes: available,
            margin_bytes: margin(available, t.wanted()),
            outcome: t.outcome(self.device),
        };
        self.seen.insert(i, p.clone());
        Ok(p)
    }
}

/// The largest value of a setting on a card, by steps of `step` (`None`: the setting's own: 1, of lengths 64, of ranks 8).
///
/// # Errors
/// The setting is none of these, or the job cannot be simulated at its least value.
pub fn largest(
    job: &Job,
    device: &Device,
    setting: &str,
    step: Option<u64>,
) -> Result<Largest, Vec<Diagnostic>> {
    let key = knob(job, setting).map_err(|e| vec![Diagnostic::error("bad-setting", e)])?;
    let (own_step, most) = bounds(key);
    let step = step.unwrap_or(own_step).max(1);
    let most = (most / step).max(1);
    let mut s = Search {
        job,
        device,
        key,
        step,
        seen: Default::default(),
    };
    // by doubling: a value that fails, or that cannot be asked
    let mut capped = None;
    let mut high = 1;
    let mut first = s.point(1)?;
    loop {
        if first.outcome == Outcome::No {
            break;
        }
        let mut low = high;
        if high >= most {
            capped = Some(format!("larger values of {key} were not asked"));
            break;
        }
        high = (high * 2).min(most);
        match s.point(high) {
            Ok(p) => first = p,
            Err(bad) => {
                // the model's or the simulator's own limit lies between
                let mut why = bad;
                while high - low > 1 {
                    let mid = low + (high - low) / 2;
                    match s.point(mid) {
                        Ok(p) if p.outcome == Outcome::No => {
                            high = mid;
                            why.clear();
                        }
                        Ok(_) => low = mid,
                        Err(e) => (high, why) = (mid, e),
                    }
                }
                if let Some(d) = why.first() {
                    capped = Some(d.message.clone());
                    high = low;
                }
                break;
            }
        }
    }
    // upwards through all, or every so manieth, to the first that is not `fits` and the first that fails
    let stride = (high / ALL).max(1);
    let mut values: Vec<u64> = (1..=high).step_by(stride as usize).collect();
    if values.last() != Some(&high) {
        values.push(high);
    }
    let edge = |s: &mut Search,
                ok: &dyn Fn(Outcome) -> bool|
     -> Result<(Option<Point>, Option<Point>), Vec<Diagnostic>> {
        let (mut best, mut next) = (None, None);
        let mut before = 0;
        for v in &values {
            let p = s.point(*v)?;
            if ok(p.outcome) {
                before = *v;
                best = Some(p);
                continue;
            }
            next = Some(p);
            // every value between the last good one and this
            for w in before + 1..*v {
                let p = s.point(w)?;
                if ok(p.outcome) {
                    best = Some(p);
                } else {
                    next = Some(p);
                    break;
                }
            }
            break;
        }
        Ok((best, next))
    };
    let (fits, next) = edge(&mut s, &|o| o == Outcome::Fits)?;
    let (runs, fails) = edge(&mut s, &|o| o != Outcome::No)?;
    Ok(Largest {
        schema: SCHEMA,
        question: "largest",
        job: job.title(),
        gpu: device.gpu.id.clone(),
        name: device.gpu.name.clone(),
        usable_bytes: device.usable.expected,
        taken_bytes: taken(device),
        setting: key,
        step,
        capped: capped.filter(|_| fails.is_none()),
        fits,
        next,
        runs,
        fails,
        simulated: s.seen.len(),
        stride,
        rate: None,
    })
}

/// The speed at the largest value that fits, and what a million tokens cost with the first dated offer of the card; `None`: nothing
/// fits, or the card's rates are not known.
///
/// # Errors
/// What `estimate` says to the job.
pub fn rate(job: &Job, device: &Device, l: &Largest) -> Result<Option<Rate>, Vec<Diagnostic>> {
    let (Some(p), Some(card)) = (&l.fits, Card::of(&device.gpu)) else {
        return Ok(None);
    };
    let bad = |code, e: String| vec![Diagnostic::error(code, e)];
    let mut j = job.clone();
    j.set(l.setting, Value::Int(p.value.into()), Origin::Flag)
        .map_err(|e| bad("bad-value", e))?;
    let spec = j.spec(&device.gpu)?;
    let work = step_work(&spec).map_err(|e| bad("unsupported", e.to_string()))?;
    let tokens_per_s = time_of(&work, &spec, &card, Fitted::builtin()).tokens_per_s;
    let offer = crate::cost::offers(&device.gpu.id).into_iter().next();
    Ok(Some(Rate {
        tokens_per_s,
        usd_per_million_tokens: offer
            .as_ref()
            .map(|o| crate::cost::cost(tokens_per_s, o, None).usd_per_million_tokens),
        price: offer.map(|o| format!("{}, {}, {}", o.what, o.region, o.date)),
    }))
}
