//! K31: growth per step and leak verdict. The noise is seeded, of the shapes that real recordings have.

use proptest::prelude::*;
use tonnage_explain::leak::{Finding, Series, Verdict};

const MIB: f64 = 1048576.0;
const BASE: f64 = 9.3e9;

/// SplitMix64.
struct Rng(u64);
impl Rng {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.next()).sum::<f64>() - 6.0
    }
}

const SHAPES: [&str; 8] = [
    "none",
    "normal",
    "uniform",
    "correlated",
    "sawtooth",
    "evaluation",
    "lengths",
    "pages",
];

/// `n` values of noise in bytes around 0.
fn noise(shape: &str, n: usize, r: &mut Rng) -> Vec<f64> {
    let mut ar = 0.0;
    (0..n)
        .map(|i| match shape {
            "none" => 0.0,
            "normal" => 20.0 * MIB * r.normal(),
            "uniform" => 80.0 * MIB * (r.next() - 0.5),
            "correlated" => {
                ar = 0.8 * ar + 6.0 * MIB * r.normal();
                ar
            }
            // the collector runs every 16 steps
            "sawtooth" => (i % 16) as f64 * 5.0 * MIB,
            // every 25 steps an evaluation of 3 steps
            "evaluation" => {
                if i % 25 < 3 {
                    900.0 * MIB
                } else {
                    4.0 * MIB * r.normal()
                }
            }
            // batches of random length: few are long
            "lengths" => 120.0 * MIB * r.next().powi(3),
            // what a driver shows: whole pages of 2 MiB
            _ => (6.0 * r.normal()).round() * 2.0 * MIB,
        })
        .collect()
}

fn record(shape: &str, n: usize, seed: u64, mean: impl Fn(usize) -> f64) -> Verdict {
    let mut r = Rng(seed);
    let noise = noise(shape, n, &mut r);
    Series::of_steps(noise.iter().enumerate().map(|(i, e)| {
        let y = BASE + mean(i) + e;
        y.max(0.0) as u64
    }))
    .verdict()
}

#[test]
fn k31_a_leak_of_one_mib_a_step_is_found_within_200_steps_and_the_time_to_full_is_within_a_fifth() {
    for shape in SHAPES {
        for seed in 0..25 {
            let v = record(shape, 200, seed, |i| i as f64 * MIB);
            assert!(v.is_leak(), "{shape} {seed}: {v:?}");
            assert!(v.confidence > 0.9999);
            assert!(v.first_step.unwrap() < 50.0, "{shape} {seed}: {v:?}");
            // 24 GB are full at the step where the mean reaches them
            let limit = 24e9;
            let truth = (limit - BASE - 199.0 * MIB) / MIB;
            let said = v.until_full(limit as u64).unwrap();
            assert!(
                (said / truth - 1.0).abs() < 0.2,
                "{shape} {seed}: {said} for {truth}"
            );
        }
    }
}

#[test]
fn k31_a_flat_log_gives_none_in_one_hundred_recordings() {
    for shape in SHAPES {
        for seed in 0..100 {
            for n in [60, 200, 1000] {
                let v = record(shape, n, seed, |_| 0.0);
                assert!(!v.is_leak(), "{shape} {seed} {n}: {v:?}");
                assert!(v.until_full(24_000_000_000).is_none());
            }
        }
    }
}

#[test]
fn k31_the_first_step_of_a_leak_that_begins_later() {
    for shape in SHAPES {
        let v = record(shape, 1000, 7, |i| (i as f64 - 400.0).max(0.0) * MIB);
        assert!(v.is_leak(), "{shape}: {v:?}");
        let first = v.first_step.unwrap();
        assert!((first - 400.0).abs() < 60.0, "{shape}: {first}");
        assert!((v.slope / MIB - 1.0).abs() < 0.1, "{shape}: {}", v.slope);
    }
}

#[test]
fn k31_what_rises_and_stays_is_no_leak() {
    let warm = |i: usize| if i < 3 { -4e9 } else { 0.0 };
    let fill = |i: usize| -2e9 * (-(i as f64) / 20.0).exp();
    let jump = |i: usize| if i < 110 { 0.0 } else { 700.0 * MIB };
    // the allocator's record lengths: few, and rarer and rarer
    let records = |i: usize| ((i + 1) as f64).log2().floor() * 64.0 * MIB;
    let means: [(&str, &dyn Fn(usize) -> f64); 4] = [
        ("warm", &warm),
        ("fill", &fill),
        ("jump", &jump),
        ("records", &records),
    ];
    for (name, mean) in means {
        for shape in SHAPES {
            for seed in 0..20 {
                let v = record(shape, 250, seed, mean);
                assert!(!v.is_leak(), "{name} {shape} {seed}: {v:?}");
            }
        }
    }
    assert_eq!(record("none", 250, 1, fill).finding, Finding::Settled);
    assert_eq!(record("none", 250, 1, warm).finding, Finding::Settled);
}

#[test]
fn k31_a_leak_seen_through_segments_of_the_allocator() {
    // 20 MiB at once, every 20 steps
    let v = record("none", 200, 1, |i| (i / 20) as f64 * 20.0 * MIB);
    assert!(v.is_leak(), "{v:?}");
    assert!((v.slope / MIB - 1.0).abs() < 0.2, "{}", v.slope / MIB);
}

#[test]
fn k31_a_recording_of_any_length_is_kept_in_bounded_memory() {
    let mut r = Rng(3);
    let mut s = Series::default();
    for i in 0..1_000_000 {
        s.push(
            f64::from(i),
            (BASE + f64::from(i) * 1000.0 + 5.0 * MIB * r.normal()) as u64,
        );
    }
    let v = s.verdict();
    assert_eq!(s.len(), 1_000_000);
    assert!(
        v.is_leak() && (v.slope / 1000.0 - 1.0).abs() < 0.02,
        "{v:?}"
    );
}

#[test]
fn k31_short_and_broken_recordings_decide_nothing() {
    assert_eq!(Series::default().verdict().finding, Finding::TooShort);
    assert_eq!(
        Series::of_steps([1, 2, 3]).verdict().finding,
        Finding::TooShort
    );
    let mut s = Series::default();
    for _ in 0..100 {
        s.push(5.0, 1 << 30);
        s.push(f64::NAN, 1 << 33);
        s.push(1.0, 1 << 33);
    }
    assert_eq!(s.len(), 100);
    assert_eq!(s.verdict().finding, Finding::TooShort);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn k31_any_slope_above_the_noise_is_measured(
        shape in 0..SHAPES.len(), seed in any::<u64>(), slope in 1.0f64..40.0, n in 200usize..1500, begin in 0.0f64..0.5,
    ) {
        let start = begin * n as f64;
        // a leak needs some of the recording to be seen
        prop_assume!(slope * (n as f64 - start) > 190.0);
        let v = record(SHAPES[shape], n, seed, |i| (i as f64 - start).max(0.0) * slope * MIB);
        prop_assert!(v.is_leak(), "{} {v:?}", SHAPES[shape]);
        prop_assert!((v.slope / MIB / slope - 1.0).abs() < 0.2, "{} {v:?}", SHAPES[shape]);
    }

    #[test]
    fn k31_any_flat_recording_gives_none(shape in 0..SHAPES.len(), seed in any::<u64>(), n in 20usize..3000) {
        let v = record(SHAPES[shape], n, seed, |_| 0.0);
        prop_assert!(!v.is_leak(), "{} {v:?}", SHAPES[shape]);
    }

    #[test]
    fn k31_nothing_panics(values in proptest::collection::vec((any::<f64>(), any::<u64>()), 0..300)) {
        let mut s = Series::default();
        for (x, y) in values {
            s.push(x, y);
        }
        let v = s.verdict();
        let _ = v.sentence("step");
        let _ = v.until_full(u64::MAX);
    }
}
