//! Which allowances would make a job fit that nothing allowed does, by a few full simulations: no second search.

use super::search::{Candidate, Choice, Simulations};
use super::space::{self, Allow, Edit};
use super::{IfAllowed, Options};
use tonnage_core::Job;

/// Allowances together, at most.
const TOGETHER: usize = 3;

/// Full simulations, at most.
const TRIED: usize = 120;

/// The order to try: what changes the result least comes first.
const ORDER: [Allow; 8] = [
    Allow::Offload,
    Allow::Optimizer,
    Allow::Precision,
    Allow::Batch,
    Allow::Rank,
    Allow::Adapter,
    Allow::Quant,
    Allow::Length,
];

/// The fewest allowances with which the settings of least memory fit, each with the changes that it takes: none of them can be left out.
pub(super) fn wider(
    sims: &mut Simulations,
    job: &Job,
    options: &Options,
    all: &[Candidate],
) -> Vec<IfAllowed> {
    let Some(least) = all.iter().min_by_key(|c| c.requested) else {
        return Vec::new();
    };
    let more: Vec<Allow> = ORDER
        .into_iter()
        .filter(|a| !options.allow.contains(a))
        .collect();
    let mut out = Vec::new();
    for n in 1..=TOGETHER.min(more.len()) {
        for set in subsets(&more, n) {
            if sims.interrupted || sims.count() > TRIED {
                return out;
            }
            if let Some(edits) = smallest(sims, job, options, least, &set) {
                out.push(IfAllowed {
                    allow: set.iter().map(|a| a.name()).collect(),
                    changes: edits.iter().map(|e| e.what.clone()).collect(),
                    flags: edits.iter().map(Edit::flags).collect(),
                });
            }
        }
        if !out.is_empty() {
            break;
        }
    }
    out
}

/// All choices of `n` of them, in order.
fn subsets(of: &[Allow], n: usize) -> Vec<Vec<Allow>> {
    if n == 0 {
        return vec![vec![]];
    }
    let mut out = Vec::new();
    for (i, a) in of.iter().enumerate() {
        for mut rest in subsets(&of[i + 1..], n - 1) {
            rest.insert(0, *a);
            out.push(rest);
        }
    }
    out
}

/// The edits that an allowance brings.
fn brought(job: &Job, allow: &[Allow], one: Allow) -> Vec<Edit> {
    if one == Allow::Batch {
        let splits = space::splits(job, allow);
        let of = splits.iter().min_by_key(|s| (s.0 * s.1, s.0));
        return of
            .map(|s| space::split_edit(job, splits[0], *s))
            .filter(|e| e.needs == Some(Allow::Batch))
            .into_iter()
            .collect();
    }
    // whether flash attention runs here is no matter of method
    let dims = space::dimensions(job, allow, false);
    let edits = dims.into_iter().flatten();
    edits.filter(|e| e.needs == Some(one)).collect()
}

/// With these allowances: the settings of least memory, less every change that they fit without.
fn smallest(
    sims: &mut Simulations,
    job: &Job,
    options: &Options,
    least: &Candidate,
    set: &[Allow],
) -> Option<Vec<Edit>> {
    let allow: Vec<Allow> = options.allow.iter().chain(set).copied().collect();
    let mut picks: Vec<Vec<Edit>> = vec![vec![]];
    for a in set {
        let edits = brought(job, &allow, *a);
        picks = edits
            .iter()
            .flat_map(|e| {
                picks
                    .iter()
                    .map(move |p| [&p[..], std::slice::from_ref(e)].concat())
            })
            .collect();
    }
    for mine in picks {
        let taken = |e: &Edit| {
            mine.iter()
                .any(|m| m.set.iter().any(|(k, _)| e.set.iter().any(|(l, _)| k == l)))
        };
        // two edits of one setting are no pair
        let clash = (0..mine.len()).any(|i| {
            let keys = |e: &Edit| e.set.iter().map(|(k, _)| *k).collect::<Vec<_>>();
            mine[..i]
                .iter()
                .any(|e| keys(e).iter().any(|k| keys(&mine[i]).contains(k)))
        });
        if clash {
            continue;
        }
        let mut edits: Vec<Edit> = least
            .choice
            .edits
            .iter()
            .filter(|e| !taken(e))
            .cloned()
            .collect();
        let own = edits.len();
        edits.extend(mine);
        let fits = |sims: &mut Simulations, e: &[Edit]| sims.fits(&Choice { edits: e.to_vec() });
        if !fits(sims, &edits) {
            continue;
        }
        for i in (0..own).rev() {
            let mut fewer = edits.clone();
            fewer.remove(i);
            if fits(sims, &fewer) {
                edits = fewer;
            }
        }
        return Some(edits);
    }
    None
}
