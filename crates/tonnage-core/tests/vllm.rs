//! vLLM's start-up against recorded runs of it. Budgets only ever tighten.

use serde_json::Value;
use std::path::PathBuf;
use tonnage_core::validate::{Report, Row, vllm_run};

fn rows() -> Vec<Row> {
    rows_of("vllm-dev.jsonl")
}

fn rows_of(file: &str) -> Vec<Row> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../groundtruth")
        .join(file);
    let text = std::fs::read_to_string(path).expect("recorded runs are part of the project");
    text.lines()
        .map(|l| serde_json::from_str::<Value>(l).expect("a record a line"))
        .flat_map(|r| vllm_run::rows(&r))
        .collect()
}

/// Blocks, tokens and concurrency are exact functions of the bytes: every record, given or measured.
#[test]
fn the_pool_is_exact_on_every_record() {
    let rows = rows();
    for metric in ["num_gpu_blocks", "kv_tokens", "max_concurrency", "refusal"] {
        let all: Vec<&Row> = rows.iter().filter(|r| r.metric == metric).collect();
        assert!(!all.is_empty(), "{metric}");
        for r in all {
            assert_eq!(r.unsupported, None, "{} {metric}", r.id);
            assert_eq!(
                r.error_pct, 0.0,
                "{} {metric}: {} {}",
                r.id, r.measured, r.predicted
            );
        }
    }
}

/// (metric, least supported rows, least exact, worst percent)
const BUDGETS: &[(&str, usize, usize, f64)] = &[
    ("weights_bytes", 185, 181, 0.016),
    ("profile_peak_activation_bytes", 185, 161, 4.5),
    ("cudagraph_memory_estimate", 185, 180, 1.5),
    ("available_kv_bytes", 185, 133, 0.23),
];

#[test]
fn the_budget_is_close_where_it_was_measured() {
    let rows = rows();
    for r in rows.iter().filter(|r| r.error_pct > 0.1) {
        println!(
            "{} {}: {} {} {:?}",
            r.id, r.metric, r.measured, r.predicted, r.unsupported
        );
    }
    let report = Report::of(rows);
    for (metric, supported, exact, worst) in BUDGETS {
        let s = &report.summary[*metric]["all"];
        assert!(s.n - s.unsupported >= *supported, "{metric}: {s:?}");
        assert!(s.exact >= *exact, "{metric}: {s:?}");
        assert!(s.max_abs_pct.unwrap_or(100.0) <= *worst, "{metric}: {s:?}");
    }
}

/// Starts recorded for this project (`groundtruth/vllm-README.md` says how): families and formats that the others lack.
#[test]
fn families_and_formats_recorded_for_this_project() {
    let rows = rows_of("vllm-own.jsonl");
    for r in rows.iter().filter(|r| r.error_pct > 0.1) {
        println!("{} {}: {} {}", r.id, r.metric, r.measured, r.predicted);
    }
    let report = Report::of(rows);
    for (metric, exact, worst) in [("weights_bytes", 56, 0.1), ("available_kv_bytes", 37, 1.7)] {
        let s = &report.summary[metric]["all"];
        assert!(s.exact >= exact, "{metric}: {s:?}");
        assert!(s.unsupported <= 3, "{metric}: {s:?}");
        assert!(s.max_abs_pct.unwrap_or(100.0) <= worst, "{metric}: {s:?}");
    }
}
