//! A trace for a batch or a length that was not run, out of two or three that were. Where the recordings are the same events with other
//! sizes, every request is continued on its own (a line through two runs, a parabola through three) and the whole is run through the
//! allocator: its rounding and its cache are then real, not scaled. Where they are not (kernels choose other ways of reduction at other
//! sizes, so that temporaries come and go), the two nearest alone are continued, or where they part too only the totals, and that is said.

use crate::again;
use crate::trace::{Event, Figures, Trace};
use tonnage_sim::alloc::AllocatorConfig;

/// A scaled trace and what is known about its error.
#[derive(Clone, Debug)]
pub struct Scaled {
    /// The events; absent where only totals could be continued.
    pub trace: Option<Trace>,
    /// Why not all recordings were continued, or only their totals.
    pub parted: Option<ScaleError>,
    pub peak: Figures,
    /// With three recordings: the middle one by the line through the others; where only two were continued, the third by theirs.
    pub check: Option<Check>,
}

/// A recording as continued from the other two, beside what it really was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    pub at: u64,
    pub by_line: Figures,
    pub recorded: Figures,
    /// Requests that are not on the line.
    pub bent: usize,
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScaleError {
    #[error("two or three recordings are needed, {0} given")]
    Count(usize),
    #[error("two recordings have the same value {0}")]
    Same(u64),
    #[error(
        "the recordings with {0} and {1} are not the same events with other sizes: they part at event {2} ({3})"
    )]
    Different(u64, u64, usize, String),
    #[error("at {0} a request would have fewer than no bytes")]
    Negative(u64),
}

/// What of an event must be equal.
fn kind(t: &Trace, e: &Event) -> Option<(u8, u32, String)> {
    match *e {
        Event::Alloc { id, place, .. } => Some((0, id, t.places[place as usize].phase.clone())),
        Event::Free { id, .. } => Some((1, id, String::new())),
        Event::Reusable { id } => Some((2, id, String::new())),
        Event::SegmentFree { asked: true, .. } => None,
        Event::SegmentAlloc { .. } | Event::SegmentFree { .. } => None,
    }
}

fn work(t: &Trace) -> Vec<(usize, &Event)> {
    t.events
        .iter()
        .enumerate()
        .filter(|(_, e)| kind(t, e).is_some())
        .collect()
}

/// The value at `x` of the polynomial through the points; exact, in whole numbers.
fn through(points: &[(u64, u64)], x: u64) -> Option<u64> {
    // Lagrange, over the common denominator
    let mut sum_n: i128 = 0;
    let mut sum_d: i128 = 1;
    for (i, (xi, yi)) in points.iter().enumerate() {
        let (mut n, mut d) = (i128::from(*yi), 1i128);
        for (j, (xj, _)) in points.iter().enumerate() {
            if i != j {
                n = n.checked_mul(i128::from(x) - i128::from(*xj))?;
                d = d.checked_mul(i128::from(*xi) - i128::from(*xj))?;
            }
        }
        sum_n = sum_n.checked_mul(d)?.checked_add(n.checked_mul(sum_d)?)?;
        sum_d = sum_d.checked_mul(d)?;
    }
    if sum_d < 0 {
        (sum_n, sum_d) = (-sum_n, -sum_d);
    }
    // up: a size between two is the larger
    u64::try_from(sum_n.checked_add(sum_d - 1)?.div_euclid(sum_d)).ok()
}

fn continued(runs: &[(u64, &Trace)], x: u64) -> Result<Trace, ScaleError> {
    let (_, base) = runs[0];
    let sizes: Vec<Vec<u64>> = runs
        .iter()
        .map(|(_, t)| {
            t.events
                .iter()
                .filter_map(|e| match e {
                    Event::Alloc { requested, .. } => Some(*requested),
                    _ => None,
                })
                .collect()
        })
        .collect();
    let mut out = base.clone();
    out.events.retain(|e| {
        !matches!(
            e,
            Event::SegmentAlloc { .. } | Event::SegmentFree { asked: false, .. }
        )
    });
    for e in &mut out.events {
        if let Event::Alloc {
            id,
            requested,
            block,
            ..
        } = e
        {
            let k = *id as usize;
            let points: Vec<(u64, u64)> = runs
                .iter()
                .zip(&sizes)
                .map(|((v, _), s)| (*v, s[k]))
                .collect();
            *requested = through(&points, x).ok_or(ScaleError::Negative(x))?;
            *block = 0;
        }
    }
    Ok(out)
}

/// The trace at `x`.
///
/// # Errors
/// [`ScaleError`].
pub fn scale(
    runs: &[(u64, &Trace)],
    x: u64,
    config: &AllocatorConfig,
) -> Result<Scaled, ScaleError> {
    if !(2..=3).contains(&runs.len()) {
        return Err(ScaleError::Count(runs.len()));
    }
    let mut runs: Vec<(u64, &Trace)> = runs.to_vec();
    runs.sort_by_key(|r| r.0);
    if let Some(w) = runs.windows(2).find(|w| w[0].0 == w[1].0) {
        return Err(ScaleError::Same(w[0].0));
    }
    if let Err(e) = same_events(&runs) {
        return match nearest(&runs, x, config, &e) {
            Some(s) => Ok(s),
            None => totals(&runs, x, config, e),
        };
    }
    let trace = continued(&runs, x)?;
    let run = again::replay(&trace, config, None);
    let check = if runs.len() == 3 {
        let line = continued(&[runs[0], runs[2]], runs[1].0)?;
        let by_line = again::replay(&line, config, None).peak;
        let recorded = again::replay(runs[1].1, config, None).peak;
        let bent = line
            .events
            .iter()
            .filter_map(|e| match e {
                Event::Alloc { id, requested, .. } => Some((*id, *requested)),
                _ => None,
            })
            .zip(runs[1].1.events.iter().filter_map(|e| match e {
                Event::Alloc { requested, .. } => Some(*requested),
                _ => None,
            }))
            .filter(|((_, a), b)| a != b)
            .count();
        Some(Check {
            at: runs[1].0,
            by_line,
            recorded,
            bent,
        })
    } else {
        None
    };
    Ok(Scaled {
        trace: Some(trace),
        parted: None,
        peak: run.peak,
        check,
    })
}

/// Of three recordings only the two nearest to `x` (nearest on its side) are the same events: those are continued, and the third checks.
fn nearest(
    runs: &[(u64, &Trace)],
    x: u64,
    config: &AllocatorConfig,
    parted: &ScaleError,
) -> Option<Scaled> {
    let &[first, middle, last] = runs else {
        return None;
    };
    let (pair, other) = if x >= middle.0 {
        ([middle, last], first)
    } else {
        ([first, middle], last)
    };
    same_events(&pair).ok()?;
    let trace = continued(&pair, x).ok()?;
    let check = continued(&pair, other.0).ok().map(|line| Check {
        at: other.0,
        by_line: again::replay(&line, config, None).peak,
        recorded: again::replay(other.1, config, None).peak,
        bent: 0,
    });
    let peak = again::replay(&trace, config, None).peak;
    Some(Scaled {
        trace: Some(trace),
        parted: Some(parted.clone()),
        peak,
        check,
    })
}

fn same_events(runs: &[(u64, &Trace)]) -> Result<(), ScaleError> {
    let first = work(runs[0].1);
    for (v, t) in &runs[1..] {
        let other = work(t);
        let (a, b) = (runs[0].0, *v);
        let part = first
            .iter()
            .zip(&other)
            .position(|((_, e), (_, f))| kind(runs[0].1, e) != kind(t, f));
        let at =
            part.or_else(|| (first.len() != other.len()).then(|| first.len().min(other.len())));
        if let Some(k) = at {
            let place = first
                .get(k)
                .map(|(_, e)| match e {
                    Event::Alloc { place, .. } | Event::Free { place, .. } => {
                        let p = &runs[0].1.places[*place as usize];
                        format!("{} of step {} {}", p.phase, p.step, p.module)
                    }
                    _ => String::new(),
                })
                .unwrap_or_else(|| "one ends there".into());
            let index = first.get(k).map_or(first.len(), |x| x.0);
            return Err(ScaleError::Different(a, b, index, place.trim().into()));
        }
    }
    Ok(())
}

/// Peaks continued as totals: the line through the two nearest recordings, or where three are not on a line the parabola.
fn totals(
    runs: &[(u64, &Trace)],
    x: u64,
    config: &AllocatorConfig,
    parted: ScaleError,
) -> Result<Scaled, ScaleError> {
    let peaks: Vec<(u64, Figures)> = runs
        .iter()
        .map(|(v, t)| (*v, again::replay(t, config, None).peak))
        .collect();
    let at = |points: &[(u64, Figures)], x: u64| -> Result<Figures, ScaleError> {
        let one = |get: fn(&Figures) -> u64| {
            let p: Vec<(u64, u64)> = points.iter().map(|(v, f)| (*v, get(f))).collect();
            through(&p, x).ok_or(ScaleError::Negative(x))
        };
        Ok(Figures {
            allocated: one(|f| f.allocated)?,
            reserved: one(|f| f.reserved)?,
            requested: one(|f| f.requested)?,
        })
    };
    let mut points = peaks.clone();
    let mut check = None;
    if let [first, middle, last] = peaks[..] {
        let by_line = at(&[first, last], middle.0)?;
        let off = by_line.requested.abs_diff(middle.1.requested);
        check = Some(Check {
            at: middle.0,
            by_line,
            recorded: middle.1,
            bent: usize::from(off * 100 > middle.1.requested),
        });
        if off * 100 <= middle.1.requested {
            // the two on the side of what is asked for
            points = if x >= middle.0 {
                vec![middle, last]
            } else {
                vec![first, middle]
            };
        }
    }
    Ok(Scaled {
        trace: None,
        parted: Some(parted),
        peak: at(&points, x)?,
        check,
    })
}
