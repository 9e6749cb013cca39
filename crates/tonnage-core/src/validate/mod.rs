//! Scores predictions on recorded runs: one row for each record, metric and part (DESIGN section 7).

pub mod llamacpp;
pub mod oom;
pub mod published;
mod report;
pub mod torch_run;
pub mod vllm_run;

pub use report::{Report, SCHEMA, Summary, record_rows, record_rows_with};

use serde::Serialize;
use serde_json::Value;

/// One comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub id: String,
    pub metric: String,
    pub part: Option<String>,
    pub group: String,
    pub measured: Value,
    pub predicted: Value,
    pub tolerance: f64,
    pub error_pct: f64,
    /// Why there is no prediction; such a row is never left out.
    pub unsupported: Option<String>,
}

impl Row {
    /// A row with its error: 100 * max(0, |p - m| - tolerance) / |m|; equality where m is 0 or not a number.
    pub fn new(
        id: &str,
        metric: &str,
        group: &str,
        measured: Value,
        predicted: Value,
        tolerance: f64,
    ) -> Row {
        let error_pct = match (measured.as_f64(), predicted.as_f64()) {
            (Some(m), Some(p)) if m != 0.0 => {
                100.0 * ((p - m).abs() - tolerance).max(0.0) / m.abs()
            }
            _ => {
                if measured == predicted {
                    0.0
                } else {
                    100.0
                }
            }
        };
        Row {
            id: id.into(),
            metric: metric.into(),
            part: None,
            group: group.into(),
            measured,
            predicted,
            tolerance,
            error_pct,
            unsupported: None,
        }
    }

    /// A row that has no prediction.
    pub fn unsupported(id: &str, metric: &str, group: &str, measured: Value, why: &str) -> Row {
        Row {
            id: id.into(),
            metric: metric.into(),
            part: None,
            group: group.into(),
            measured,
            predicted: Value::Null,
            tolerance: 0.0,
            error_pct: 100.0,
            unsupported: Some(why.into()),
        }
    }
}
