//! The arithmetic of [`super::Series::verdict`].

use super::{Finding, MIN_GROWTH, MIN_SAMPLES, Verdict};

type Point = (f64, f64);

/// Growth must be this many standard errors to be growth (one-sided p = 3e-5).
const SURE: f64 = 4.0;

/// Mean of the values between the 10th and the 60th percentile: the working level of a part of the recording, whatever spikes it has.
fn level(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    let from = n / 10;
    let to = (n * 6).div_ceil(10).max(from + 1);
    values[from..to].iter().sum::<f64>() / (to - from) as f64
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    match n {
        0 => 0.0,
        _ if n % 2 == 1 => values[n / 2],
        _ => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// `parts` parts of equal sample count, each its mean position and its level.
fn bins(points: &[Point], parts: usize) -> Vec<Point> {
    let parts = parts.clamp(1, points.len());
    (0..parts)
        .map(|i| {
            let p = &points[points.len() * i / parts..points.len() * (i + 1) / parts];
            let at = p.iter().map(|p| p.0).sum::<f64>() / p.len() as f64;
            let mut v: Vec<f64> = p.iter().map(|p| p.1).collect();
            (at, level(&mut v))
        })
        .collect()
}

/// Median of the slopes of all pairs: up to 29 % of the points may be anything.
fn theil_sen(points: &[Point]) -> f64 {
    let mut s = Vec::with_capacity(points.len() * points.len() / 2);
    for (i, a) in points.iter().enumerate() {
        for b in &points[i + 1..] {
            if b.0 > a.0 {
                s.push((b.1 - a.1) / (b.0 - a.0));
            }
        }
    }
    median(&mut s)
}

/// A line's standard error, the scatter around it, and its value at 0.
struct Error {
    slope: f64,
    noise: f64,
    offset: f64,
}

/// The error of a slope over `points`, from the residuals and their own correlation; `before` are the level samples ahead of them, which
/// show the same noise. Spikes count as no more than four times the usual scatter, as the slope does not see them either.
fn error_of(before: &[Point], points: &[Point], slope: f64) -> Error {
    let mut rest: Vec<f64> = points.iter().map(|p| p.1 - slope * p.0).collect();
    let offset = median(&mut rest.clone());
    rest.iter_mut().for_each(|r| *r -= offset);
    let base = median(&mut before.iter().map(|p| p.1).collect::<Vec<_>>());
    let mut all: Vec<f64> = before.iter().map(|p| p.1 - base).collect();
    all.append(&mut rest);
    let usual = 1.4826 * median(&mut all.iter().map(|r| r.abs()).collect::<Vec<_>>());
    if usual > 0.0 {
        all.iter_mut()
            .for_each(|r| *r = r.clamp(-4.0 * usual, 4.0 * usual));
    }
    let n = all.len() as f64;
    let variance = all.iter().map(|r| r * r).sum::<f64>() / n;
    let mean = points.iter().map(|p| p.0).sum::<f64>() / points.len() as f64;
    let spread = points.iter().map(|p| (p.0 - mean).powi(2)).sum::<f64>();
    // correlated noise is worth fewer samples: sum of the positive correlations up to the first that is none
    let mut stretch = 1.0;
    if variance > 0.0 {
        for lag in 1..all.len() / 4 {
            let c = all[lag..].iter().zip(&all).map(|(a, b)| a * b).sum::<f64>() / n / variance;
            if c <= 0.05 {
                break;
            }
            stretch += 2.0 * c;
        }
    }
    Error {
        slope: if spread > 0.0 {
            (variance * stretch / spread).sqrt()
        } else {
            f64::INFINITY
        },
        noise: variance.sqrt(),
        offset,
    }
}

/// Upper tail of the normal distribution (Abramowitz and Stegun 26.2.17, 7.5e-8).
fn tail(z: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * z.abs());
    let poly = t
        * (0.319_381_530
            + t * (-0.356_563_782
                + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    let p = (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt() * poly;
    if z >= 0.0 { p } else { 1.0 - p }
}

/// The index from which a level recording begins to grow: the best of all lines with one bend. 0 where it grows from the beginning.
fn onset(b: &[Point]) -> usize {
    let sse = |start: usize| {
        // y = a + s * max(0, x - x_start), least squares
        let x0 = b[start].0;
        let h: Vec<f64> = b.iter().map(|p| (p.0 - x0).max(0.0)).collect();
        let n = b.len() as f64;
        let (mh, my) = (
            h.iter().sum::<f64>() / n,
            b.iter().map(|p| p.1).sum::<f64>() / n,
        );
        let sxy: f64 = h.iter().zip(b).map(|(h, p)| (h - mh) * (p.1 - my)).sum();
        let sxx: f64 = h.iter().map(|h| (h - mh).powi(2)).sum();
        let s = if sxx > 0.0 { (sxy / sxx).max(0.0) } else { 0.0 };
        h.iter()
            .zip(b)
            .map(|(h, p)| (p.1 - my - s * (h - mh)).powi(2))
            .sum::<f64>()
    };
    let whole = sse(0);
    let best = (0..b.len() * 3 / 4)
        .map(|i| (sse(i), i))
        .min_by(|a, b| a.0.total_cmp(&b.0));
    match best {
        // a bend must earn its place: noise alone moves it a little
        Some((e, i)) if e < 0.9 * whole => i,
        _ => 0,
    }
}

/// Is growth spread over the recording, and does it last?
fn steady(points: &[Point], slope: f64, error: f64) -> bool {
    // as many parts as the noise allows to tell apart, 4 to 8
    let parts = if error > 0.0 {
        ((slope / error / 3.0) as usize).clamp(4, 8)
    } else {
        8
    };
    let b = bins(points, parts);
    let mut steps: Vec<f64> = b.windows(2).map(|w| w[1].1 - w[0].1).collect();
    let rising = steps.iter().filter(|s| **s > 0.0).count();
    let mean = (b[b.len() - 1].1 - b[0].1) / steps.len() as f64;
    let enough = rising * 4 >= steps.len() * 3;
    let even = median(&mut steps) >= 0.5 * mean;
    let half = &points[points.len() / 2..];
    let later = theil_sen(&bins(half, 48));
    let quarter = bins(points, 8);
    // the last quarter must still grow
    let last = quarter[7].1 - quarter[5].1;
    let expected = slope * (quarter[7].0 - quarter[5].0);
    enough && even && later >= 0.4 * slope && last >= 0.25 * expected
}

pub(super) fn verdict(points: &[Point], samples: usize) -> Verdict {
    let last = points.last().copied().unwrap_or((0.0, 0.0));
    let mut v = Verdict {
        finding: Finding::TooShort,
        slope: 0.0,
        slope_error: 0.0,
        first_step: None,
        confidence: 0.0,
        noise: 0.0,
        level: last.1,
        last_step: last.0,
        samples,
    };
    if points.len() < MIN_SAMPLES || points[0].0 >= last.0 {
        return v;
    }
    // long recordings are read in parts; a part is the mean of its samples, so that their noise is known
    let fine = if points.len() > 1024 {
        bins(points, 1024)
    } else {
        points.to_vec()
    };
    // the first steps are warm-up: a leading part far below everything after it is none of the growth
    let coarse = bins(&fine, 64.min(fine.len() / 4));
    let mut jumps: Vec<f64> = coarse
        .windows(2)
        .skip(1)
        .map(|w| (w[1].1 - w[0].1).abs())
        .collect();
    let usual = median(&mut jumps);
    let mut skip = 0;
    while skip < coarse.len() / 10 + 1
        && (coarse[skip + 1].1 - coarse[skip].1).abs() > 8.0 * usual + MIN_GROWTH
    {
        skip += 1;
    }
    let warm = fine.len() * skip / coarse.len();
    let fine = &fine[warm..];
    let coarse = &coarse[skip..];

    let whole = theil_sen(&bins(fine, 192));
    let begin = onset(coarse);
    let from = fine.len() * begin / coarse.len();
    let tail_points = &fine[from..];
    let slope = theil_sen(&bins(tail_points, 192));
    let Error {
        slope: error,
        noise,
        offset,
    } = error_of(&fine[..from], tail_points, slope);
    let sure = if error > 0.0 {
        slope / error
    } else if slope > 0.0 {
        f64::from(f32::MAX)
    } else {
        0.0
    };
    let growth = slope * (last.0 - tail_points[0].0);
    // the beginning was chosen among many: it must stand out the more
    let needed = if begin > 0 { 1.5 * SURE } else { SURE };
    let grows = sure >= needed && growth >= MIN_GROWTH;
    v.slope = slope;
    v.slope_error = error;
    v.noise = noise;
    v.confidence = if slope > 0.0 { 1.0 - tail(sure) } else { 0.0 };
    v.level = offset + slope * last.0;
    if grows && tail_points.len() >= MIN_SAMPLES && steady(tail_points, slope, error) {
        v.finding = Finding::Leak;
        // where the line leaves the level of what came before
        let x = if begin > 0 {
            let before: Vec<f64> = coarse[..begin].iter().map(|p| p.1).collect();
            let base = median(&mut before.clone());
            ((base - offset) / slope).clamp(fine[0].0, last.0)
        } else {
            points[0].0
        };
        v.first_step = Some(x);
        return v;
    }
    let Error {
        slope: error,
        noise,
        offset,
    } = error_of(&[], fine, whole);
    let first = coarse[0].1;
    let end = coarse[coarse.len() - 1].1;
    let rose = end - first.min(points[0].1);
    v.finding = if rose > MIN_GROWTH.max(4.0 * noise.min(usual.max(1.0))) && (skip > 0 || grows) {
        Finding::Settled
    } else {
        Finding::Flat
    };
    v.slope = whole;
    v.slope_error = error;
    v.noise = noise;
    v.level = offset + whole * last.0;
    v.confidence = if error > 0.0 && whole > 0.0 {
        1.0 - tail(whole / error)
    } else {
        0.0
    };
    v
}
