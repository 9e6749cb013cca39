//! How many threads simulate is no part of the answer; nor is whether cards share a run.

use tonnage_core::doc::Doc;
use tonnage_core::footprint::{Options, estimate};
use tonnage_core::job::read_job;
use tonnage_core::workers::{Crew, Workers};

fn example() -> tonnage_core::Job {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../examples/deepseek-qlora.toml"
    );
    let text = std::fs::read_to_string(path).unwrap();
    read_job(&Doc::parse("deepseek-qlora.toml", &text).unwrap()).unwrap()
}

struct Four;

impl Workers for Four {
    fn each(&self, n: usize, f: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|s| {
            for k in 0..4 {
                s.spawn(move || (k..n).step_by(4).for_each(f));
            }
        });
    }
}

#[test]
fn one_thread_and_many_say_the_same() {
    let said = |workers| {
        let options = Options {
            workers,
            advice: true,
            ..Options::default()
        };
        let e = estimate(&example(), &options).unwrap();
        serde_json::to_value(&e.footprint).unwrap()
    };
    let one = said(Crew::default());
    assert!(one["uncertainties"].as_array().unwrap().len() >= 5);
    assert!(!one["advice"].as_array().unwrap().is_empty());
    assert_eq!(one, said(Crew(&Four)));
}

/// Six cards of other kernels, two cases: each verdict is that of the card asked for alone.
#[test]
fn cards_together_are_judged_as_alone() {
    let job = example();
    let together = estimate(&job, &Options::default()).unwrap().footprint;
    assert_eq!(together.verdicts.len(), 6);
    for row in &together.verdicts {
        let options = Options {
            gpu: Some(row.gpu.clone()),
            expected_only: true,
            ..Options::default()
        };
        let alone = estimate(&job, &options).unwrap().footprint;
        let mine = alone.verdicts.iter().find(|r| r.gpu == row.gpu).unwrap();
        let (a, b) = (&mine.cases[0].1, &row.cases[0].1);
        assert_eq!(
            serde_json::to_value(a).unwrap(),
            serde_json::to_value(b).unwrap()
        );
    }
}
