//! Every rule of `tonnage_sim::kernels` against recorded traces of the real launchers
//! (`tools/record_kernels.py` says how they were made and what a line is).
mod kernel_cases;

use kernel_cases::{Args, rule};
use serde_json::Value;
use tonnage_sim::kernels::{KernelDevice, Step, Steps};

const DEVICES: [(&str, KernelDevice); 6] = [
    ("a100", KernelDevice::A100),
    ("h100", KernelDevice::H100),
    ("h200", KernelDevice::H200),
    ("rtx4090", KernelDevice::RTX4090),
    ("rtx3090", KernelDevice::RTX3090),
    ("t4", KernelDevice::T4),
];

fn text(steps: &Steps) -> String {
    let words: Vec<String> = steps
        .into_iter()
        .map(|s| match s {
            Step::Alloc(n, b) => format!("+{n}:{b}"),
            Step::Free(n) => format!("-{n}"),
            Step::Output(i) => format!("o{i}"),
        })
        .collect();
    words.join(" ")
}

fn check(group: &str) {
    let path = format!(
        "{}/tests/fixtures/kernels/{group}.jsonl",
        env!("CARGO_MANIFEST_DIR")
    );
    let data = std::fs::read_to_string(&path).expect("fixture");
    let (mut compared, mut wrong) = (0, vec![]);
    for line in data.lines() {
        let row: Value = serde_json::from_str(line).expect("json");
        let op = row[0].as_str().expect("operator");
        for (name, dev) in &DEVICES {
            let want = match &row[2] {
                Value::String(t) => t.as_str(),
                by_gpu => {
                    let mut found = by_gpu.as_object().expect("text or object").iter();
                    match found.find(|(gpus, _)| gpus.split(' ').any(|g| g == *name)) {
                        Some((_, text)) => text.as_str().expect("text"),
                        None => continue,
                    }
                }
            };
            compared += 1;
            let got = text(&rule(op, &Args(&row[1]), dev));
            if got != want {
                wrong.push(format!(
                    "{name} {op} {}\n  want {want}\n  got  {got}",
                    row[1]
                ));
            }
        }
    }
    assert!(compared > 0, "{group}: nothing compared");
    let shown = std::env::var("SHOW")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(20);
    assert!(
        wrong.is_empty(),
        "{group}: {} of {compared} differ\n{}",
        wrong.len(),
        wrong[..wrong.len().min(shown)].join("\n")
    );
}

macro_rules! groups {
    ($($name:ident)*) => { $(#[test] fn $name() { check(stringify!($name)); })* };
}
groups!(reduce embedding norm loss sdpa gemm index conv foreach);
