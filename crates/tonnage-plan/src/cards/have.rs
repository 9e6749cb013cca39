//! "I have so much memory: what can I train?"

use super::sizes::{self, Method, Size};
use super::{SCHEMA, Tried, margin, taken};
use serde::Serialize;
use tonnage_core::verdict::{Device, Outcome};
use tonnage_core::{Diagnostic, Job};

/// A model by a method on the card.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    pub method: &'static str,
    /// None: it cannot be simulated.
    pub outcome: Option<Outcome>,
    pub needed_bytes: Option<u64>,
    pub margin_bytes: Option<i64>,
    pub why: Option<String>,
    /// What somebody else says, as given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
}

/// A model's row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    pub asked: String,
    pub model: String,
    pub parameters: u64,
    pub seq_len: u64,
    pub cells: Vec<Cell>,
}

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub struct Have {
    pub schema: &'static str,
    pub question: &'static str,
    pub gpu: String,
    pub name: String,
    pub usable_bytes: u64,
    pub taken_bytes: u64,
    pub available_bytes: u64,
    pub lines: Vec<Line>,
    pub methods: Vec<(&'static str, &'static str)>,
    pub assumptions: Vec<String>,
}

impl Have {
    /// The largest model that a method trains here, `tight` included.
    pub fn largest(&self, method: &str) -> Option<&Line> {
        let runs = |l: &&Line| {
            l.cells.iter().any(|c| {
                c.method == method && matches!(c.outcome, Some(Outcome::Fits | Outcome::Tight))
            })
        };
        self.lines.iter().filter(runs).max_by_key(|l| l.parameters)
    }
}

/// What the settings are, in words.
pub(super) fn assumptions(base: &Job) -> Vec<String> {
    let mut out: Vec<String> = sizes::COMMON
        .iter()
        .filter(|(k, _)| base.given(k).is_none())
        .map(|(k, v)| format!("{} {v}", k.rsplit('.').next().unwrap_or(k)))
        .collect();
    out.extend(
        base.all_given()
            .filter(|(k, _)| !k.starts_with("model."))
            .map(|(k, g)| format!("{k} {} (given)", g.value.shown())),
    );
    out
}

/// One model's row: every method on one card. `resolve` reads the configuration of a model that is not built in.
pub fn line(
    base: &Job,
    size: &Size,
    methods: &[Method],
    d: &Device,
    resolve: &dyn Fn(&mut Job) -> Result<(), Vec<Diagnostic>>,
) -> Result<Line, Vec<Diagnostic>> {
    let mut parameters = 0;
    let mut seq_len = 0;
    let mut cells = Vec::new();
    for m in methods {
        let mut j = sizes::job(base, &size.model, m)?;
        resolve(&mut j)?;
        j.model_config().map_err(|e| vec![e])?;
        seq_len = j.count("train.seq_len").unwrap_or(0);
        let tried = Tried::new(&j, &d.gpu);
        if parameters == 0 {
            parameters = super::need::parameters(&j);
        }
        cells.push(match tried {
            Ok(t) => Cell {
                method: m.name,
                outcome: Some(t.outcome(d)),
                needed_bytes: Some(t.wanted() + d.outside().1),
                margin_bytes: Some(margin(d.room().0, t.wanted())),
                why: None,
                claim: None,
            },
            Err(bad) => Cell {
                method: m.name,
                outcome: None,
                needed_bytes: None,
                margin_bytes: None,
                why: bad.first().map(|d| d.message.clone()),
                claim: None,
            },
        });
    }
    Ok(Line {
        asked: size.asked.clone(),
        model: size.model.clone(),
        parameters,
        seq_len,
        cells,
    })
}

/// The whole answer from its rows.
pub fn have(base: &Job, d: &Device, methods: &[Method], mut lines: Vec<Line>) -> Have {
    lines.sort_by_key(|l| l.parameters);
    Have {
        schema: SCHEMA,
        question: "have",
        gpu: d.gpu.id.clone(),
        name: d.gpu.name.clone(),
        usable_bytes: d.usable.expected,
        taken_bytes: taken(d),
        available_bytes: d.room().0,
        lines,
        methods: methods.iter().map(|m| (m.name, m.what)).collect(),
        assumptions: assumptions(base),
    }
}
