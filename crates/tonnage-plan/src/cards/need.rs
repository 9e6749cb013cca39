//! "I want to train this model: what do I need?"

use super::sizes::{self, Method, Size};
use super::{Class, Row, SCHEMA, have, over};
use serde::Serialize;
use tonnage_catalog::Instances;
use tonnage_core::verdict::Outcome;
use tonnage_core::{Diagnostic, Job};
use tonnage_model::arch;

/// Free memory that a comfortable card keeps: a part of what is usable.
pub const COMFORT: u64 = 10;

/// Samples at a time that the ideal card takes.
pub const IDEAL: u64 = 4;

/// A price with what makes it checkable.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rent {
    pub instance: String,
    pub gpus: u32,
    pub usd_per_hour: f64,
    pub region: String,
    pub date: String,
    pub source: String,
}

/// The least card of a grade.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pick {
    /// `minimum`: it runs (fits or tight). `recommended`: it fits with a tenth of the card free. `ideal`: so do four samples at a time.
    pub grade: &'static str,
    pub row: Option<Row>,
    /// Other cards of the same marketed size that do as well.
    pub also: Vec<String>,
    /// The cheapest instance with this card, or with one of the others, whose price is dated.
    pub rent: Option<Rent>,
}

/// A method's grades.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    pub method: &'static str,
    pub what: &'static str,
    /// Device bytes with the kernels of the least card, or of the largest where none is enough.
    pub needed_bytes: u64,
    pub picks: Vec<Pick>,
    pub why: Option<String>,
    /// What somebody else says, as given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
}

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub struct Need {
    pub schema: &'static str,
    pub question: &'static str,
    pub asked: String,
    pub model: String,
    pub parameters: u64,
    pub seq_len: u64,
    pub plans: Vec<Plan>,
    pub assumptions: Vec<String>,
    pub notes: Vec<String>,
}

/// Parameters of the job's model, unpacked and without adapters.
pub(super) fn parameters(j: &Job) -> u64 {
    let Ok((t, c)) = j.model_config() else {
        return 0;
    };
    arch::build(&t, &c, j.head(), &j.stack()).map_or(0, |b| b.net.param_count())
}

fn rent(instances: &[tonnage_catalog::Instance], ids: &[String]) -> Option<Rent> {
    let whole = |i: &&tonnage_catalog::Instance| {
        i.gpus.whole().is_some_and(|n| n > 0)
            && ids.contains(&i.gpu_id)
            && i.price.as_ref().is_some_and(|p| p.on_demand > 0)
    };
    let i = instances
        .iter()
        .filter(whole)
        .min_by_key(|i| i.price.as_ref().map_or(u64::MAX, |p| p.on_demand))?;
    let p = i.price.as_ref()?;
    Some(Rent {
        instance: i.id(),
        gpus: i.gpus.whole()?,
        usd_per_hour: p.on_demand as f64 / 1e6,
        region: p.region.clone(),
        date: p.date.clone(),
        source: p.source.clone(),
    })
}

/// Rows of a job over all classes, worked out by the caller's `each` (which may use threads).
pub type Each<'a> = &'a dyn Fn(&Job) -> Result<Vec<Row>, Vec<Diagnostic>>;

/// Rows of a job over all classes, one after the other.
///
/// # Errors
/// What `estimate` says to the job.
pub fn rows(job: &Job, classes: &[Class]) -> Result<Vec<Row>, Vec<Diagnostic>> {
    over::rows(job, classes)
}

fn pick(
    grade: &'static str,
    rows: &[Row],
    ok: impl Fn(&Row) -> bool,
    marketed: &dyn Fn(&str) -> u32,
    instances: &[tonnage_catalog::Instance],
) -> Pick {
    let Some(least) = rows
        .iter()
        .filter(|r| ok(r))
        .min_by(|a, b| (a.usable_bytes, &a.gpu).cmp(&(b.usable_bytes, &b.gpu)))
    else {
        return Pick {
            grade,
            row: None,
            also: vec![],
            rent: None,
        };
    };
    let size = marketed(&least.gpu);
    let mut also: Vec<&Row> = rows
        .iter()
        .filter(|r| ok(r) && r.gpu != least.gpu && marketed(&r.gpu) == size)
        .collect();
    also.sort_by(|a, b| a.gpu.cmp(&b.gpu));
    let also: Vec<String> = also.into_iter().map(|r| r.gpu.clone()).collect();
    let ids: Vec<String> = std::iter::once(least.gpu.clone())
        .chain(also.iter().cloned())
        .collect();
    Pick {
        grade,
        rent: rent(instances, &ids),
        row: Some(least.clone()),
        also,
    }
}

/// What a model needs by each method.
///
/// # Errors
/// The model is not known.
pub fn need(
    base: &Job,
    size: &Size,
    methods: &[Method],
    classes: &[Class],
    instances: &Instances,
    each: Each,
    resolve: &dyn Fn(&mut Job) -> Result<(), Vec<Diagnostic>>,
) -> Result<Need, Vec<Diagnostic>> {
    let sizes_of: std::collections::HashMap<&str, u32> = classes
        .iter()
        .flat_map(|c| &c.cards)
        .map(|d| (d.gpu.id.as_str(), d.gpu.memory_gb_marketed.get()))
        .collect();
    let marketed = |id: &str| sizes_of.get(id).copied().unwrap_or(0);
    let instances: Vec<_> = instances.iter().collect();
    let (mut plans, mut count, mut seq_len) = (vec![], 0, 0);
    let mut none = false;
    for m in methods {
        let mut j = sizes::job(base, &size.model, m)?;
        resolve(&mut j)?;
        j.model_config().map_err(|e| vec![e])?;
        if count == 0 {
            count = parameters(&j);
        }
        seq_len = j.count("train.seq_len").unwrap_or(0);
        let rows = match each(&j) {
            Ok(r) => r,
            Err(bad) => {
                plans.push(Plan {
                    method: m.name,
                    what: m.what,
                    needed_bytes: 0,
                    picks: vec![],
                    why: bad.first().map(|d| d.message.clone()),
                    claim: None,
                });
                continue;
            }
        };
        let comfortable = |r: &Row| {
            r.outcome == Outcome::Fits
                && r.margin_bytes >= i64::try_from(r.usable_bytes / COMFORT).unwrap_or(i64::MAX)
        };
        let mut picks = vec![
            pick(
                "minimum",
                &rows,
                |r| r.outcome != Outcome::No,
                &marketed,
                &instances,
            ),
            pick("recommended", &rows, comfortable, &marketed, &instances),
        ];
        let mut more = j.clone();
        let batch = j.count("train.micro_batch_size").unwrap_or(1) * IDEAL;
        more.set_text("train.micro_batch_size", &batch.to_string())
            .map_err(|e| vec![Diagnostic::error("bad-value", e)])?;
        let wide = if picks[1].row.is_some() {
            each(&more)?
        } else {
            vec![]
        };
        picks.push(pick("ideal", &wide, comfortable, &marketed, &instances));
        none |= picks[0].row.is_none();
        let needed = picks[0].row.as_ref().map(|r| r.needed_bytes).or_else(|| {
            rows.iter()
                .max_by_key(|r| r.usable_bytes)
                .map(|r| r.needed_bytes)
        });
        plans.push(Plan {
            method: m.name,
            what: m.what,
            needed_bytes: needed.unwrap_or(0),
            picks,
            why: None,
            claim: None,
        });
    }
    let mut notes = vec!["several cards: data parallelism needs this on every card (and the buckets of the gradients, which are not simulated yet); it makes no card smaller".to_string()];
    if none {
        notes.push("where no single card is enough, weights and states must be sharded over several (ZeRO, FSDP, tensor parallelism): not simulated yet, so no number of cards is given".into());
    }
    Ok(Need {
        schema: SCHEMA,
        question: "need",
        asked: size.asked.clone(),
        model: size.model.clone(),
        parameters: count,
        seq_len,
        plans,
        assumptions: have::assumptions(base),
        notes,
    })
}
