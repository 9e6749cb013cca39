//! Many settings over many cards, verdicts only.
//!
//! The kernels of a card matter to memory through scratch buffers (partial sums of reductions, workspaces) and the choice of an attention
//! kernel. Where a card is far from what a setting needs, another card's kernels cannot change the verdict; only cards within
//! [`GUARD`] of it are simulated with their own. `tests/grid.rs` compares with the verdict of every card's own simulation.

use super::{Class, Tried};
use tonnage_core::verdict::Outcome;
use tonnage_core::{Diagnostic, Job};

/// How far from what the reference's kernels need a card's own kernels are not asked: a part of it, and bytes.
pub const GUARD: (u64, u64) = (16, 64 << 20);

/// Outcomes of one setting: by class, by card.
pub type Outcomes = Vec<Vec<Outcome>>;

/// The outcome of a job on every card. `reference` is the class whose kernels stand for the others'. `own` counts the simulations.
///
/// # Errors
/// What `estimate` says to the job.
pub fn outcomes(
    job: &Job,
    classes: &[Class],
    reference: usize,
    own: &mut usize,
) -> Result<Outcomes, Vec<Diagnostic>> {
    let Some(at) = classes.get(reference).and_then(|c| c.cards.first()) else {
        return Ok(vec![]);
    };
    *own += 1;
    let r = Tried::new(job, &at.gpu)?;
    let slack = |n: u64| n / GUARD.0 + GUARD.1;
    let enough = r.wanted() + slack(r.wanted());
    let lacking = r.requested().saturating_sub(slack(r.requested()));
    let mut out = Vec::with_capacity(classes.len());
    for (i, c) in classes.iter().enumerate() {
        let mut mine: Option<Tried> = None;
        let mut row = Vec::with_capacity(c.cards.len());
        for d in &c.cards {
            let (expected, worst) = d.room();
            row.push(if i == reference {
                r.outcome(d)
            } else if expected < lacking {
                Outcome::No
            } else if worst >= enough && r.config.per_process_memory_fraction >= 1.0 {
                Outcome::Fits
            } else {
                if mine.is_none() {
                    *own += 1;
                    mine = Some(Tried::new(job, &d.gpu)?);
                }
                mine.as_ref().map_or(Outcome::No, |t| t.outcome(d))
            });
        }
        out.push(row);
    }
    Ok(out)
}
