//! K32: after one calibration the repeat prediction is within the stated tolerance; the raw estimate is still there.

use proptest::prelude::*;
use tonnage_explain::calibrate::{Book, CalibrateError, Environment, Peaks, Run};

const GIB: u64 = 1 << 30;

fn here() -> Environment {
    Environment {
        gpu: "rtx-3090".into(),
        stack: "torch 2.11".into(),
        driver: "580.95".into(),
    }
}

fn peaks(a: u64, r: u64, d: u64) -> Peaks {
    Peaks {
        allocated_bytes: Some(a),
        reserved_bytes: Some(r),
        device_bytes: Some(d),
    }
}

fn run(predicted: Peaks, measured: Peaks) -> Run {
    Run {
        environment: here(),
        job: "job".into(),
        at: "2026-11-21T10:00:00Z".into(),
        predicted,
        measured,
    }
}

#[test]
fn k32_after_one_run_the_repeat_is_within_the_stated_tolerance_and_the_raw_is_there() {
    let raw = peaks(9 * GIB, 11 * GIB, 12 * GIB);
    let measured = peaks(
        9 * GIB + (40 << 20),
        11 * GIB + (300 << 20),
        12 * GIB + (700 << 20),
    );
    let mut b = Book::default();
    assert!(b.correct(&here(), &raw).is_none());
    b.add(run(raw, measured)).unwrap();
    let c = b.correct(&here(), &raw).unwrap();
    assert_eq!((c.runs, c.left_out), (1, 0));
    for (c, m, r) in [
        (c.allocated, measured.allocated_bytes, raw.allocated_bytes),
        (c.reserved, measured.reserved_bytes, raw.reserved_bytes),
        (c.device, measured.device_bytes, raw.device_bytes),
    ] {
        let c = c.unwrap();
        assert_eq!(Some(c.raw_bytes), r);
        let m = m.unwrap() as f64;
        assert!(100.0 * (c.bytes as f64 - m).abs() / m <= c.tolerance_pct);
        assert!(c.tolerance_pct <= 0.5);
    }
    // a larger job keeps the context's difference and the allocator's ratio
    let big = b
        .correct(&here(), &peaks(18 * GIB, 22 * GIB, 23 * GIB))
        .unwrap();
    let d = big.device.unwrap();
    let expected = 22.0 * GIB as f64 * (11.0 * 1024.0 + 300.0) / (11.0 * 1024.0)
        + GIB as f64
        + (400u64 << 20) as f64;
    assert!((d.bytes as f64 - expected).abs() < 2.0);
}

#[test]
fn k32_another_environment_is_not_corrected() {
    let raw = peaks(GIB, GIB, GIB);
    let mut b = Book::default();
    b.add(run(raw, peaks(GIB, GIB, GIB + 1000))).unwrap();
    let other = Environment {
        gpu: "a100".into(),
        ..here()
    };
    assert!(b.correct(&other, &raw).is_none());
    let driver = Environment {
        driver: "570.1".into(),
        ..here()
    };
    assert!(b.correct(&driver, &raw).is_none());
    assert_eq!(b.environments(), [here()]);
    assert_eq!(b.forget(Some(&other)), 0);
    assert_eq!(b.forget(None), 1);
}

#[test]
fn k32_a_run_of_another_job_is_no_correction() {
    let raw = peaks(4 * GIB, 5 * GIB, 6 * GIB);
    let mut b = Book::default();
    b.add(run(raw, peaks(12 * GIB, 13 * GIB, 14 * GIB)))
        .unwrap();
    assert!(b.correct(&here(), &raw).is_none());
    b.add(run(raw, peaks(4 * GIB, 5 * GIB, 6 * GIB + GIB / 4)))
        .unwrap();
    let c = b.correct(&here(), &raw).unwrap();
    assert_eq!((c.runs, c.left_out), (1, 1));
    let empty = run(raw, Peaks::default());
    assert_eq!(b.add(empty), Err(CalibrateError::NothingMeasured));
}

#[test]
fn k32_the_file_is_versioned_and_bounded() {
    let raw = peaks(GIB, GIB, GIB);
    let mut b = Book::default();
    for i in 0..250 {
        b.add(run(raw, peaks(GIB + i, GIB, GIB))).unwrap();
    }
    assert_eq!(b.runs.len(), 200);
    assert_eq!(b.runs[0].measured.allocated_bytes, Some(GIB + 50));
    assert_eq!(Book::parse(&b.write()).unwrap(), b);
    assert!(matches!(
        Book::parse("{\"schema\":\"tonnage.calibration/9\",\"runs\":[]}"),
        Err(CalibrateError::Schema(_))
    ));
    assert!(Book::parse("no").is_err());
}

proptest! {
    #[test]
    fn k32_the_stated_tolerance_holds_for_every_run_it_is_made_of(
        jobs in proptest::collection::vec((1u64..40, 0.8f64..1.3, 0u64..900), 1..12),
    ) {
        let mut b = Book::default();
        let mut all = Vec::new();
        for (gib, factor, context) in jobs {
            let raw = peaks(gib * GIB, gib * GIB + GIB / 2, gib * GIB + GIB);
            let f = |n: u64| (n as f64 * factor) as u64;
            let m = peaks(f(gib * GIB), f(gib * GIB + GIB / 2), f(gib * GIB + GIB / 2) + (context << 20));
            let r = run(raw, m);
            if r.plausible() {
                all.push((raw, m));
            }
            b.add(r).unwrap();
        }
        prop_assume!(!all.is_empty());
        for (raw, m) in all {
            let c = b.correct(&here(), &raw).unwrap();
            for (c, m) in [(c.allocated, m.allocated_bytes), (c.reserved, m.reserved_bytes), (c.device, m.device_bytes)] {
                let (c, m) = (c.unwrap(), m.unwrap() as f64);
                // bytes are whole
                prop_assert!((c.bytes as f64 - m).abs() <= c.tolerance_pct / 100.0 * m + 1.0);
            }
        }
    }
}
