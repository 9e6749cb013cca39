//! Scores `published` records: `published RECORDS.jsonl [FILTER] [all]` prints one line a supported row, then medians.

use serde_json::Value;
use std::io::Read;
use tonnage_core::validate::published;

/// A header of `groundtruth/gguf`.
fn header(name: &str) -> Option<Vec<u8>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../groundtruth/gguf");
    let packed = std::fs::File::open(format!("{folder}/{name}.gz")).ok()?;
    let mut out = Vec::new();
    flate2::read::GzDecoder::new(packed)
        .read_to_end(&mut out)
        .ok()?;
    Some(out)
}

fn main() {
    let a: Vec<String> = std::env::args().collect();
    let text = std::fs::read_to_string(&a[1]).expect("records");
    let filter = a.get(2).map_or("", String::as_str);
    let mut errors = vec![];
    let mut n = 0;
    for line in text.lines() {
        let r: Value = serde_json::from_str(line).expect("a record");
        for row in published::rows_with(&r, &mut header) {
            if !row.id.contains(filter) {
                continue;
            }
            n += 1;
            match &row.unsupported {
                Some(w) if a.len() > 3 => println!("{:40} {:24} {w}", row.id, row.group),
                Some(_) => {}
                None => {
                    let (m, p) = (
                        row.measured.as_f64().unwrap_or(0.0),
                        row.predicted.as_f64().unwrap_or(0.0),
                    );
                    println!(
                        "{:40} {:32} {:18} {m:8.4} {p:8.4} {:+.2}% ({:.2})",
                        row.id,
                        row.metric,
                        row.group,
                        100.0 * (p - m) / m.max(1e-9),
                        row.error_pct
                    );
                    errors.push(row.error_pct);
                }
            }
        }
    }
    errors.sort_by(f64::total_cmp);
    let at = |q: usize| {
        errors
            .get((errors.len() * q / 100).min(errors.len().max(1) - 1))
            .copied()
            .unwrap_or(0.0)
    };
    println!(
        "{n} rows, {} supported, median {:.3} %, p95 {:.3} %, max {:.3} %",
        errors.len(),
        at(50),
        at(95),
        at(100)
    );
}
