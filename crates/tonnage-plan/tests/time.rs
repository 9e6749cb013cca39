//! The time model against published speeds, and its constants against what they are said to be.

use serde_json::Value;
use tonnage_catalog::gpu;
use tonnage_core::Job;
use tonnage_core::validate::{Report, Row};
use tonnage_plan::time::efficiency::CONSTANTS;
use tonnage_plan::time::published::{
    self, EAGER_BYTES_ADAPTERS, EAGER_BYTES_FULL, EAGER_KERNELS_ADAPTERS, EAGER_KERNELS_FULL,
};
use tonnage_plan::time::{Fitted, fit, step_work};

fn records() -> String {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../groundtruth/throughput-dev.jsonl"
    );
    std::fs::read_to_string(path).unwrap()
}

/// The data file is what the fit makes of the recorded rows: no constant was set by hand.
#[test]
fn the_constants_are_the_fit_of_the_recorded_rows() {
    let made = fit::from_records(&records(), "", "");
    let kept = Fitted::builtin();
    assert!(!kept.source.is_empty() && kept.date.len() == 10);
    for (c, (a, b)) in CONSTANTS
        .iter()
        .zip(made.values.0.iter().zip(&kept.values.0))
    {
        assert!(
            (a / b - 1.0).abs() < 1e-3 || (a - b).abs() < 1e-9,
            "{}: fit {a}, file {b}",
            c.name
        );
        assert!(
            (c.low..=c.high).contains(a),
            "{}: {a} is out of bounds",
            c.name
        );
    }
    for (a, b) in made.spreads.iter().zip(&kept.spreads) {
        assert_eq!((&a.task, a.rows), (&b.task, b.rows));
        assert!(
            (a.median_pct - b.median_pct).abs() < 0.1,
            "{}: {} and {}",
            a.task,
            a.median_pct,
            b.median_pct
        );
    }
    assert_eq!(made.spreads.len(), kept.spreads.len());
}

fn scored() -> Vec<Row> {
    records()
        .lines()
        .flat_map(|l| published::rows(&serde_json::from_str::<Value>(l).unwrap()))
        .collect()
}

/// Bars of the design: median <= 15 %, 95th percentile <= 60 %, at least 70 % supported.
#[test]
fn published_speeds_are_predicted_within_the_bars() {
    let rows = scored();
    let n = rows.len();
    let mut errors: Vec<f64> = rows
        .iter()
        .filter(|r| r.unsupported.is_none())
        .map(|r| r.error_pct)
        .collect();
    errors.sort_by(f64::total_cmp);
    let at = |p: f64| errors[(errors.len() as f64 * p).ceil() as usize - 1];
    assert!(errors.len() * 100 >= n * 70, "{} of {n}", errors.len());
    assert!(at(0.5) <= 15.0, "median {:.1}", at(0.5));
    assert!(at(0.95) <= 60.0, "95th percentile {:.1}", at(0.95));
    // verdicts are right, and none is a speed
    let report = Report::of(rows);
    assert_eq!(
        report.summary["fits"]["all"].exact,
        report.summary["fits"]["all"].n
    );
}

#[test]
fn an_unknown_row_is_unsupported_and_says_why() {
    let row = |patch: &[(&str, Value)]| {
        let mut r: Value = serde_json::from_str(records().lines().next().unwrap()).unwrap();
        for (k, v) in patch {
            r[*k] = v.clone();
        }
        published::rows(&r).remove(0)
    };
    assert!(row(&[]).unsupported.is_none());
    for (patch, why) in [
        (vec![("gpu_id", "abacus".into())], "abacus"),
        (vec![("task", "dance".into())], "dance"),
        (vec![("metric", "furlongs".into())], "furlongs"),
        (
            vec![("model", "nobody".into()), ("params_b", Value::Null)],
            "nobody",
        ),
    ] {
        let r = row(&patch);
        assert!(
            r.unsupported.as_deref().is_some_and(|w| w.contains(why)),
            "{:?}",
            r.unsupported
        );
    }
    // a model that no table knows, of known size, is predicted from its size
    assert!(row(&[("model", "nobody".into())]).unsupported.is_none());
}

/// The counted bytes and operators of eager transformers that the fit of those rows stands on.
#[test]
fn the_eager_constants_are_what_the_simulator_counts() {
    let count = |more: &[(&str, &str)]| {
        let mut j = Job::new("test", "flags");
        let base = [
            ("model", "meta-llama/Llama-2-7b-hf"),
            ("precision", "bf16"),
            ("seq-len", "2048"),
            ("checkpointing", "full"),
        ];
        for (k, v) in base.iter().chain(more) {
            j.set_text(k, v).unwrap();
        }
        let w = step_work(&j.spec(&gpu("a100-sxm4-80gb").unwrap()).unwrap()).unwrap();
        (
            w.pass.pointwise_bytes / (32.0 * 4096.0 * 2048.0 * 2.0),
            w.pass.kernels as f64 / 32.0,
        )
    };
    let near = |(bytes, kernels): (f64, f64), b: f64, k: f64| {
        assert!((bytes / b - 1.0).abs() < 0.02, "{bytes} and {b}");
        assert!((kernels / k - 1.0).abs() < 0.02, "{kernels} and {k}");
    };
    near(count(&[]), EAGER_BYTES_FULL, EAGER_KERNELS_FULL);
    let lora = [
        ("lora-r", "64"),
        ("lora-targets", "q_proj,o_proj,gate_proj,up_proj"),
        ("adapter-dtype", "base"),
    ];
    near(count(&lora), EAGER_BYTES_ADAPTERS, EAGER_KERNELS_ADAPTERS);
}
