//! Rows of llamacpp-run records that are off: `llamacpp_diff RECORDS HEADERS [METRIC] [FILTER]`.
use std::io::Read;
use tonnage_core::validate::record_rows_with;

fn main() {
    let a: Vec<String> = std::env::args().collect();
    let text = std::fs::read_to_string(&a[1]).expect("records");
    let metric = a.get(3).map_or("", String::as_str);
    let filter = a.get(4).map_or("", String::as_str);
    let mut file = |name: &str| {
        let f = std::fs::File::open(format!("{}/{name}.gz", a[2])).ok()?;
        let mut out = Vec::new();
        flate2::read::GzDecoder::new(f).read_to_end(&mut out).ok()?;
        Some(out)
    };
    let mut sums = std::collections::BTreeMap::<(String, String), [usize; 4]>::new();
    for line in text.lines().filter(|l| l.contains(filter)) {
        let r: serde_json::Value = serde_json::from_str(line).expect("json");
        for row in record_rows_with(&r, &mut file).expect("schema") {
            let s = sums
                .entry((row.metric.clone(), row.group.clone()))
                .or_default();
            s[0] += 1;
            s[1] += usize::from(row.error_pct == 0.0);
            s[2] += usize::from(row.unsupported.is_some());
            s[3] += usize::from(row.error_pct > 2.0 && row.unsupported.is_none());
            if row.metric == metric && row.error_pct > 0.0 {
                println!(
                    "{} {} {} {:?} m={} p={} {:.3}% {} | {}",
                    row.group,
                    row.id,
                    r["model"],
                    row.part,
                    row.measured,
                    row.predicted,
                    row.error_pct,
                    row.unsupported.unwrap_or_default(),
                    r["args"]
                );
            }
        }
    }
    for (k, v) in sums {
        eprintln!(
            "{:28} {:8} n={} exact={} unsupported={} >2%={}",
            k.0, k.1, v[0], v[1], v[2], v[3]
        );
    }
}
