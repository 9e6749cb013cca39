//! K26: a batch for every length under a budget. No step of the schedule exceeds it; AGI2's rule does, at long lengths.

mod common;
use common::*;
use tonnage_catalog::gpu;
use tonnage_core::Job;
use tonnage_core::verdict::{Device, Outcome};
use tonnage_plan::cards::{Here, Tried, of_memory};
use tonnage_plan::schedule::{Rule, schedule};

/// AGI2's decoder with explicit attention, as its trainer had it.
fn agi2() -> Job {
    let j = example("agi2-lilwill.toml");
    let mut j = with(&j, &[("model.config.n_layer", "2")]);
    j.uncertain.clear();
    j
}

fn budget(gib_tenths: u64) -> Device {
    of_memory(
        &gpu("rtx-3060-12gb").unwrap(),
        (gib_tenths << 30) / 10,
        Here::default(),
    )
    .unwrap()
}

#[test]
fn k26_no_step_of_the_schedule_exceeds_the_budget() {
    for (job, lengths) in [
        (agi2(), vec![32, 64, 128, 256, 512]),
        (
            with(&gpt2(), &[("train.precision", "fp32")]),
            vec![64, 200, 512, 1024],
        ),
    ] {
        let d = budget(25);
        let s = schedule(&job, &d, &lengths, Some(48), None, false)
            .unwrap_or_else(|b| panic!("{}", shown(&b)));
        assert!(s.complete(), "{s:?}");
        let mut last = u64::MAX;
        for (l, asked) in s.lengths.iter().zip(&lengths) {
            assert_eq!(l.seq_len, *asked);
            let most = l.largest.as_ref().unwrap();
            let b = l.batch.as_ref().unwrap();
            // accumulation keeps the samples of a step
            assert_eq!(b.value * l.accumulation, 48);
            assert!(b.value <= most.value);
            for n in [b.value, most.value] {
                let j = with(
                    &job,
                    &[
                        ("train.seq_len", &asked.to_string()),
                        ("train.micro_batch_size", &n.to_string()),
                    ],
                );
                let t = Tried::new(&j, &d.gpu).unwrap();
                assert_eq!(t.verdict(&d).outcome, Outcome::Fits, "{asked} x {n}");
                assert!(t.wanted() + d.outside().1 <= d.usable.expected);
            }
            // and the next larger batch does not fit
            if let Some(next) = &l.next {
                assert!(
                    next.value == most.value + 1 && next.outcome != Outcome::Fits,
                    "{l:?}"
                );
            }
            assert!(most.value <= last, "longer samples, no more of them: {s:?}");
            last = most.value;
        }
    }
}

#[test]
fn k26_agi2s_rule_keeps_tokens_and_exceeds_the_budget_at_long_lengths() {
    let rule = Rule::parse("agi2:24x512").unwrap();
    assert_eq!(
        rule,
        Rule::Agi2 {
            batch: 24,
            end: 512
        }
    );
    // its own figures: max(4, floor(batch * end * 1.125 / length))
    assert_eq!(
        [2, 64, 100, 512, 10_000].map(|n| rule.batch(n)),
        [6912, 216, 138, 27, 4]
    );
    let lengths = [32, 64, 128, 256, 512];
    // a budget that the rule keeps at the beginning of the ramp
    let job = agi2();
    let need = |len: u64| {
        let j = with(
            &job,
            &[
                ("train.seq_len", &(len - 1).to_string()),
                ("train.micro_batch_size", &rule.batch(len).to_string()),
            ],
        );
        let d = budget(1000);
        Tried::new(&j, &d.gpu).unwrap().wanted() + d.outside().2
    };
    let (short, long) = (need(64), need(512));
    assert!(
        long > short + short / 8,
        "tokens stay, score maps grow: {short} {long}"
    );
    let d = of_memory(
        &gpu("rtx-3060-12gb").unwrap(),
        (short + long) / 2,
        Here::default(),
    )
    .unwrap();
    let s = schedule(&job, &d, &lengths, None, Some(rule), true).unwrap();
    let violations: Vec<(u64, bool)> = s.lengths.iter().map(|l| (l.seq_len, l.violates)).collect();
    assert_eq!(violations.first(), Some(&(32, false)), "{violations:?}");
    assert_eq!(violations.last(), Some(&(512, true)), "{violations:?}");
    for l in &s.lengths {
        // the schedule itself keeps it everywhere
        assert!(
            l.batch.as_ref().is_some_and(|b| b.outcome == Outcome::Fits),
            "{l:?}"
        );
        let by_rule = l.rule.as_ref().unwrap();
        assert_eq!(by_rule.value, rule.batch(l.seq_len));
        assert_eq!(l.violates, by_rule.outcome != Outcome::Fits);
    }
}

#[test]
fn rules_are_read_strictly() {
    assert_eq!(Rule::parse("tokens:4096").unwrap().batch(1000), 4);
    for bad in ["agi2", "agi2:3", "agi2:0x5", "tokens:", "tokens:-1", "x:3"] {
        assert!(
            Rule::parse(bad)
                .unwrap_err()
                .contains("agi2:BATCHxLAST_LENGTH"),
            "{bad}"
        );
    }
}
