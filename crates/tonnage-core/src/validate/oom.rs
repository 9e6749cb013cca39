//! Records of out-of-memory messages: one row for each expected figure.

use super::Row;
use serde_json::Value;
use tonnage_explain::oom::{parse, text};

/// Half of a displayed digit, where a displayed amount of the text is the expected value.
fn tolerance(record: &Value, expected: &Value) -> f64 {
    let Some(m) = expected.as_i64() else {
        return 0.0;
    };
    if record["exact_bytes"].as_bool() == Some(true) {
        return 0.0;
    }
    let all = record["text"].as_str().unwrap_or("");
    let starts = all.char_indices().filter(|(i, c)| {
        (c.is_ascii_digit() || *c == '-')
            && !all[..*i].ends_with(|c: char| c.is_ascii_digit() || c == '.')
    });
    starts
        .filter_map(|(i, _)| text::amount(&all[i..]))
        .find(|(a, _)| a.bytes.abs_diff(m) <= 1)
        .map_or(0.0, |(a, _)| a.half_digit)
}

/// The rows of one record: metric = the figure's name, group = the framework.
pub fn rows(record: &Value) -> Vec<Row> {
    let id = record["id"].as_str().unwrap_or("?");
    let group = record["framework"].as_str().unwrap_or("?");
    let found = parse(record["text"].as_str().unwrap_or(""));
    let Some(expected) = record["expected"].as_object() else {
        return vec![Row::unsupported(
            id,
            "message",
            group,
            Value::Null,
            "the record has no expected figures",
        )];
    };
    expected
        .iter()
        .map(|(key, measured)| match &found {
            None => Row::unsupported(
                id,
                key,
                group,
                measured.clone(),
                "no out-of-memory message is recognised in the text",
            ),
            Some(m) => {
                let predicted = m.get(key).unwrap_or(Value::Null);
                let t = tolerance(record, measured);
                Row::new(id, key, group, measured.clone(), predicted, t)
            }
        })
        .collect()
}
