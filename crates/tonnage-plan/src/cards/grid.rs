//! Many settings over many cards, verdicts only.
//!
//! The kernels of a card matter to memory through scratch buffers (partial sums of reductions, workspaces) and the choice of an attention
//! kernel, which differs most between compute capability 8.0 and what is older (no flash attention, no bf16 for the memory-efficient
//! kernel). One card of each side stands for its side. Where a card is far from what a setting needs, another card's kernels do not
//! change the verdict; only cards within [`GUARD`] of it are simulated with their own. That the guard is wide enough is not proven:
//! `tests/grid.rs` compares with the verdict of every card's own simulation.

use super::Class;
use super::runs::Runs;
use tonnage_core::verdict::Outcome;
use tonnage_core::{Diagnostic, Job};

/// How far from what the reference's kernels need a card's own kernels are not asked: a part of it, and bytes.
pub const GUARD: (u64, u64) = (16, 64 << 20);

/// Outcomes of one setting: by class, by card.
pub type Outcomes = Vec<Vec<Outcome>>;

/// The side of a class: 0 from compute capability 8.0, 1 before it.
fn side(c: &Class) -> usize {
    usize::from(c.kernel.capability.0 < 8)
}

/// What a side's reference says whatever the card's kernels.
#[derive(Clone, Copy)]
struct Reference {
    /// From so much reserved on it fits, below so much requested it does not.
    enough: u64,
    lacking: u64,
}

/// The outcome of a job on every card. `own` counts the simulations.
///
/// # Errors
/// What `estimate` says to the job.
pub fn outcomes(
    job: &Job,
    classes: &[Class],
    own: &mut usize,
) -> Result<Outcomes, Vec<Diagnostic>> {
    let slack = |n: u64| n / GUARD.0 + GUARD.1;
    let mut runs = Runs::new(job)?;
    let limited = runs.limited();
    let mut sides: [Option<Reference>; 2] = [None, None];
    let mut out = Vec::with_capacity(classes.len());
    for c in classes {
        let s = side(c);
        let least = runs.on_any_card().unwrap_or(0);
        let hopeless = |d: &tonnage_core::verdict::Device| d.room().0 < least;
        if c.cards.iter().all(hopeless) {
            out.push(vec![Outcome::No; c.cards.len()]);
            continue;
        }
        let r = match sides[s] {
            Some(r) => r,
            None => {
                // of its side the class in the middle
                let same: Vec<&Class> = classes.iter().filter(|k| side(k) == s).collect();
                let run = runs.on(same.get(same.len() / 2).copied().unwrap_or(c))?;
                let (wanted, requested) = (run.wanted(), run.requested());
                *sides[s].insert(Reference {
                    enough: wanted + slack(wanted),
                    lacking: requested.saturating_sub(slack(requested)),
                })
            }
        };
        let far = |d: &tonnage_core::verdict::Device| {
            let (expected, worst) = d.room();
            if expected < r.lacking.max(least) {
                Some(Outcome::No)
            } else if worst >= r.enough && !limited {
                Some(Outcome::Fits)
            } else {
                None
            }
        };
        let mut row: Vec<Option<Outcome>> = c.cards.iter().map(far).collect();
        if row.iter().any(Option::is_none) {
            let run = runs.on(c)?;
            // from the largest down: a run that no limit stops decides the others too
            let mut left: Vec<_> = row.iter_mut().zip(&c.cards).collect();
            left.sort_by_key(|(_, d)| std::cmp::Reverse(d.room()));
            for (o, d) in left {
                o.get_or_insert_with(|| run.outcome(d));
            }
        }
        out.push(row.into_iter().flatten().collect());
    }
    *own += runs.simulated();
    Ok(out)
}
