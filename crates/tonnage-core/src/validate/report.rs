//! Rows of all records with their summary: `tonnage.validate/1` (DESIGN section 7).

use super::{Row, llamacpp, oom, published, torch_run, vllm_run};
use crate::error::CoreError;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// The version of the JSON form.
pub const SCHEMA: &str = "tonnage.validate/1";

/// Errors of one metric in one group, in percent. Figures over no supported row are absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Rows, those without a prediction included.
    pub n: usize,
    pub unsupported: usize,
    /// Rows with an error of 0.
    pub exact: usize,
    pub median_abs_pct: Option<f64>,
    /// 95th percentile, nearest rank.
    pub p95_abs_pct: Option<f64>,
    pub max_abs_pct: Option<f64>,
}

impl Summary {
    /// Over some rows.
    pub fn of<'a>(rows: impl Iterator<Item = &'a Row>) -> Summary {
        let mut s = Summary::default();
        let mut errors = Vec::new();
        for r in rows {
            s.n += 1;
            if r.unsupported.is_some() {
                s.unsupported += 1;
            } else {
                s.exact += usize::from(r.error_pct == 0.0);
                errors.push(r.error_pct);
            }
        }
        errors.sort_by(f64::total_cmp);
        if let Some(last) = errors.last() {
            let n = errors.len();
            s.max_abs_pct = Some(*last);
            s.p95_abs_pct = Some(errors[(n * 95).div_ceil(100) - 1]);
            s.median_abs_pct = Some(if n % 2 == 1 {
                errors[n / 2]
            } else {
                (errors[n / 2 - 1] + errors[n / 2]) / 2.0
            });
        }
        s
    }
}

/// All rows and their summaries by metric and group; the group `all` is every row of the metric.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub schema: &'static str,
    pub rows: Vec<Row>,
    pub summary: BTreeMap<String, BTreeMap<String, Summary>>,
}

impl Report {
    /// Summarises rows.
    pub fn of(rows: Vec<Row>) -> Report {
        let mut groups: BTreeMap<String, BTreeMap<String, Vec<&Row>>> = BTreeMap::new();
        for r in &rows {
            let m = groups.entry(r.metric.clone()).or_default();
            m.entry("all".into()).or_default().push(r);
            m.entry(r.group.clone()).or_default().push(r);
        }
        let summary = groups
            .into_iter()
            .map(|(m, gs)| {
                (
                    m,
                    gs.into_iter()
                        .map(|(g, rs)| (g, Summary::of(rs.into_iter())))
                        .collect(),
                )
            })
            .collect();
        Report {
            schema: SCHEMA,
            rows,
            summary,
        }
    }
}

/// The rows of one record of any schema. Records that need a file of their own are without a prediction.
///
/// # Errors
/// It says no schema that is known.
pub fn record_rows(record: &Value) -> Result<Vec<Row>, CoreError> {
    record_rows_with(record, &mut |_| None)
}

/// As [`record_rows`]; `file` gives the bytes of a file that a record names (a model's header).
///
/// # Errors
/// It says no schema that is known.
pub fn record_rows_with(
    record: &Value,
    file: &mut dyn FnMut(&str) -> Option<Vec<u8>>,
) -> Result<Vec<Row>, CoreError> {
    let id = record["id"].as_str().unwrap_or("?");
    let text = |k: &str| record[k].as_str().unwrap_or("?").to_string();
    let not_yet = |metric: &str, group: &str, measured: Value| {
        vec![Row::unsupported(
            id,
            metric,
            group,
            measured,
            "records of this schema are not predicted yet",
        )]
    };
    match record["schema"].as_str() {
        Some("torch-run") => Ok(torch_run::rows(record)),
        Some("published") => Ok(published::rows_with(record, file)),
        Some("llamacpp-run") => Ok(llamacpp::rows(record, file)),
        Some("vllm-run") => Ok(vllm_run::rows(record)),
        Some("oom-message") => Ok(oom::rows(record)),
        Some("throughput") => Ok(not_yet(
            &text("metric"),
            &text("task"),
            record["value"].clone(),
        )),
        other => Err(CoreError::Invalid {
            field: "schema".into(),
            problem: format!(
                "{} is no schema of recorded runs",
                other.unwrap_or("(absent)")
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(error: f64, unsupported: bool) -> Row {
        let mut r = Row::new("x", "m", "train", 100.into(), (100.0 + error).into(), 0.0);
        if unsupported {
            r = Row::unsupported("x", "m", "train", 100.into(), "why");
        }
        r
    }

    #[test]
    fn percentiles_are_of_nearest_rank_and_unsupported_rows_count_apart() {
        let mut rows: Vec<Row> = (1..=20).map(|i| row(f64::from(i), false)).collect();
        rows.push(row(0.0, true));
        let r = Report::of(rows);
        let s = &r.summary["m"]["all"];
        assert_eq!((s.n, s.unsupported, s.exact), (21, 1, 0));
        assert_eq!(s.p95_abs_pct, Some(19.0));
        assert_eq!(s.max_abs_pct, Some(20.0));
        assert_eq!(s.median_abs_pct, Some(10.5));
        assert_eq!(&r.summary["m"]["train"], s);
    }

    #[test]
    fn a_record_of_another_schema_is_never_left_out() {
        let r = serde_json::json!({"schema": "published", "id": "p", "kind": "finetune", "confidence": "high", "measured_metric": "peak_allocated", "value_gib": 15.5});
        let rows = record_rows(&r).unwrap();
        assert_eq!(rows[0].group, "finetune/high");
        assert!(rows[0].unsupported.is_some());
        assert!(record_rows(&serde_json::json!({"schema": "new"})).is_err());
    }
}
