//! The search for settings that fit: the largest value of one knob that an estimator accepts, with the next one, which it refuses. The
//! estimator is the caller's (a serving engine, a training job); every value that is reported was put to it.

pub mod serving;

/// What an estimator says about one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe<T> {
    Fits(T),
    Not(T),
}

/// Both sides of the limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge<T> {
    /// The largest value that fits, with its estimate; none: not even the least.
    pub fits: Option<(u64, T)>,
    /// The next value, which does not; none: the largest that was asked for fits.
    pub next: Option<(u64, T)>,
}

/// The largest value of `low`, `low + step`, ... up to `high` that fits, where a larger value never needs less. Both sides are estimates of
/// their own, so the limit is real wherever the estimator is monotone; `log2` of the number of values are asked.
///
/// # Errors
/// The estimator's first.
pub fn largest<T, E>(
    low: u64,
    high: u64,
    step: u64,
    mut probe: impl FnMut(u64) -> Result<Probe<T>, E>,
) -> Result<Edge<T>, E> {
    let step = step.max(1);
    let high = high.max(low);
    let (mut a, mut b) = (0, (high - low).div_ceil(step));
    let value = |i: u64| low.saturating_add(i.saturating_mul(step)).min(high);
    let mut next = match probe(value(b))? {
        Probe::Fits(t) => {
            return Ok(Edge {
                fits: Some((value(b), t)),
                next: None,
            });
        }
        Probe::Not(t) => (value(b), t),
    };
    if b == 0 {
        return Ok(Edge {
            fits: None,
            next: Some(next),
        });
    }
    let mut best = match probe(value(a))? {
        Probe::Fits(t) => (value(a), t),
        Probe::Not(t) => {
            return Ok(Edge {
                fits: None,
                next: Some((value(a), t)),
            });
        }
    };
    while b - a > 1 {
        let mid = a + (b - a) / 2;
        match probe(value(mid))? {
            Probe::Fits(t) => (a, best) = (mid, (value(mid), t)),
            Probe::Not(t) => (b, next) = (mid, (value(mid), t)),
        }
    }
    Ok(Edge {
        fits: Some(best),
        next: Some(next),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(l: u64) -> impl FnMut(u64) -> Result<Probe<u64>, ()> {
        move |n| {
            Ok(if n <= l {
                Probe::Fits(n * 10)
            } else {
                Probe::Not(n * 10)
            })
        }
    }

    #[test]
    fn both_sides_of_every_limit() {
        for (low, high, step) in [(1, 100, 1), (256, 10_000, 256), (0, 7, 3), (5, 5, 1)] {
            for l in 0..high + 2 {
                let e = largest(low, high, step, limit(l)).unwrap();
                let mut all: Vec<u64> = (low..high).step_by(step as usize).collect();
                all.push(high);
                let best = all.iter().copied().filter(|n| *n <= l).max();
                let next = all.iter().copied().filter(|n| *n > l).min();
                assert_eq!(e.fits, best.map(|n| (n, n * 10)), "{low} {high} {step} {l}");
                assert_eq!(e.next, next.map(|n| (n, n * 10)), "{low} {high} {step} {l}");
            }
        }
    }
}
