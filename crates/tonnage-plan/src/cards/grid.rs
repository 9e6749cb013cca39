//! Many settings over many cards, verdicts only.
//!
//! The kernels of a card matter to memory through scratch buffers (partial sums of reductions, workspaces) and the choice of an attention
//! kernel, which differs most between compute capability 8.0 and what is older (no flash attention, no bf16 for the memory-efficient
//! kernel). One card of each side stands for its side. Where a card is far from what a setting needs, another card's kernels do not
//! change the verdict; only cards within [`GUARD`] of it are simulated with their own. That the guard is wide enough is not proven:
//! `tests/grid.rs` compares with the verdict of every card's own simulation.

use super::{Class, Tried};
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

/// A setting on a side's reference.
struct Reference {
    class: usize,
    tried: Tried,
    /// From so much reserved on it fits, below so much requested it does not, whatever the card's kernels.
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
    let mut try_on = |class: &Class| -> Result<Tried, Vec<Diagnostic>> {
        *own += 1;
        match class.cards.first() {
            Some(d) => Tried::new(job, &d.gpu),
            None => Err(vec![Diagnostic::error("defect", "a class without cards")]),
        }
    };
    let slack = |n: u64| n / GUARD.0 + GUARD.1;
    let mut sides: [Option<Reference>; 2] = [None, None];
    let mut out = Vec::with_capacity(classes.len());
    for (i, c) in classes.iter().enumerate() {
        let s = side(c);
        if sides[s].is_none() {
            // of its side the class in the middle
            let same: Vec<usize> = (0..classes.len())
                .filter(|k| side(&classes[*k]) == s)
                .collect();
            let class = same.get(same.len() / 2).copied().unwrap_or(i);
            let tried = try_on(&classes[class])?;
            let (wanted, requested) = (tried.wanted(), tried.requested());
            sides[s] = Some(Reference {
                class,
                enough: wanted + slack(wanted),
                lacking: requested.saturating_sub(slack(requested)),
                tried,
            });
        }
        let Some(r) = &sides[s] else { continue };
        let limited = r.tried.config.per_process_memory_fraction < 1.0;
        let mut mine: Option<Tried> = None;
        let mut row = Vec::with_capacity(c.cards.len());
        for d in &c.cards {
            let (expected, worst) = d.room();
            row.push(if i == r.class {
                r.tried.outcome(d)
            } else if expected < r.lacking {
                Outcome::No
            } else if worst >= r.enough && !limited {
                Outcome::Fits
            } else {
                let t = match mine.take() {
                    Some(t) => t,
                    None => try_on(c)?,
                };
                let o = t.outcome(d);
                mine = Some(t);
                o
            });
        }
        out.push(row);
    }
    Ok(out)
}
