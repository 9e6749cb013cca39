//! The planner: K17, the DeepSeek job on small cards, 7B on one card, agreement with `estimate`.

use tonnage_core::footprint::{self, estimate};
use tonnage_core::verdict::Outcome;
use tonnage_core::{Job, import};
use tonnage_plan::plan::{Allow, Options, Plan, Point, Sequential, Silent, plan};

fn deepseek() -> Job {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../examples/deepseek-qlora.toml"
    );
    let mut j = import::read(
        "deepseek-qlora.toml",
        &std::fs::read_to_string(path).unwrap(),
    )
    .unwrap();
    j.uncertain.clear();
    j
}

fn flags(settings: &[(&str, &str)]) -> Job {
    let mut j = Job::new("test", "flags");
    for (k, v) in settings {
        j.set_text(k, v)
            .unwrap_or_else(|e| panic!("{k} = {v}: {e}"));
    }
    j
}

fn on(job: &Job, gpu: &str, allow: &[Allow]) -> Plan {
    let o = Options {
        allow: allow.to_vec(),
        ..Options::new(gpu)
    };
    plan(job, &o, &Sequential, &Silent).unwrap()
}

/// The job as a point's flags say it.
fn applied(job: &Job, flags: &[String]) -> Job {
    let mut j = job.clone();
    for f in flags {
        let mut words = f.split(' ').peekable();
        while let Some(w) = words.next() {
            if let Some(flag) = w.strip_prefix("--") {
                j.set_text(flag, words.next().unwrap()).unwrap();
            } else {
                assert_eq!(words.next(), Some("="), "{f}");
                j.set_text(w, words.next().unwrap()).unwrap();
            }
        }
    }
    j
}

/// What `estimate` says of a job on a card.
fn estimated(job: &Job, gpu: &str) -> (Outcome, u64) {
    let o = footprint::Options {
        gpu: Some(gpu.into()),
        expected_only: true,
        ..Default::default()
    };
    let e = estimate(job, &o).unwrap().footprint;
    (e.decisive().unwrap().outcome, e.peak.reserved.expected)
}

/// A point and `estimate` of its flags agree, to the byte.
fn agrees(job: &Job, p: &Point, gpu: &str) {
    let (outcome, reserved) = estimated(&applied(job, &p.flags), gpu);
    assert_eq!(outcome.name(), p.outcome, "{gpu}: {:?}", p.flags);
    assert_eq!(reserved, p.peak_reserved_bytes, "{gpu}: {:?}", p.flags);
}

#[test]
fn the_deepseek_job_on_five_cards_has_a_plan_whose_next_step_does_not_fit() {
    let job = deepseek();
    for gpu in [
        "rtx-2060-6gb",
        "rtx-3070",
        "rtx-3080-10gb",
        "rtx-3060-12gb",
        "rtx-4090",
    ] {
        let p = on(&job, gpu, &[]);
        let r = p
            .recommended
            .as_ref()
            .unwrap_or_else(|| panic!("{gpu}: {:?}", p.searched));
        println!(
            "{gpu}: {} x {} {:?} {} of {} {:.0} tokens/s; next {:?}",
            r.micro_batch_size,
            r.gradient_accumulation_steps,
            r.changes,
            r.peak_reserved_bytes >> 20,
            p.available_bytes >> 20,
            r.time.tokens_per_s.expected,
            p.next.as_ref().map(|n| (&n.changes, n.outcome))
        );
        println!(
            "   {:?} {:?}",
            p.searched,
            p.changes
                .iter()
                .map(|c| (&c.edit, c.saves_bytes >> 20, c.costs_pct.round(), c.outcome))
                .collect::<Vec<_>>()
        );
        assert!(r.fits());
        assert_eq!(
            r.micro_batch_size * r.gradient_accumulation_steps,
            64,
            "{gpu}"
        );
        agrees(&job, r, gpu);
        let n = p
            .next
            .as_ref()
            .unwrap_or_else(|| panic!("{gpu}: no next step"));
        assert!(!n.fits());
        agrees(&job, n, gpu);
        assert!(
            n.micro_batch_size > r.micro_batch_size
                || n.time.tokens_per_s.expected > r.time.tokens_per_s.expected
        );
        for q in &p.front {
            assert!(q.fits());
            agrees(&job, q, gpu);
        }
        assert!(p.searched.ruled_out < p.searched.candidates);
    }
}

#[test]
fn k17_applying_the_list_makes_the_job_fit() {
    let job = deepseek();
    for gpu in ["rtx-2060-6gb", "rtx-3070"] {
        let p = on(&job, gpu, &[]);
        assert_ne!(p.yours.outcome, "fits");
        assert!(!p.changes.is_empty());
        let all: Vec<String> = p.changes.iter().map(|c| c.flags.clone()).collect();
        assert_eq!(
            estimated(&applied(&job, &all), gpu).0,
            Outcome::Fits,
            "{gpu}: {all:?}"
        );
        assert_eq!(p.changes.last().unwrap().outcome, "fits");
        // the shortest: no list with one change less among its own parts
        for leave in 0..all.len() {
            let mut less = all.clone();
            less.remove(leave);
            assert_ne!(
                estimated(&applied(&job, &less), gpu).0,
                Outcome::Fits,
                "{gpu}: {less:?} is enough"
            );
        }
        // each step's bytes are the difference of two full simulations
        let mut before = p.yours.peak_reserved_bytes as i64;
        for n in 1..=all.len() {
            let now = estimated(&applied(&job, &all[..n]), gpu).1 as i64;
            assert_eq!(p.changes[n - 1].saves_bytes, before - now);
            before = now;
        }
        assert!(p.changes.iter().all(|c| c.keeps_effective_batch));
    }
}

#[test]
fn k17_another_16_bit_type_and_alpha_have_no_effect() {
    let p = on(&deepseek(), "rtx-3060-12gb", &[]);
    let said: Vec<&str> = p.no_effect.iter().map(|n| n.edit.as_str()).collect();
    assert_eq!(
        said,
        ["fp16-mixed instead of bf16-mixed", "alpha 32 instead of 64"]
    );
    assert_eq!(p.no_effect[1].saves_bytes, 0);
    // without adapters there is no alpha, and fp32 is no 16-bit type
    let p = on(
        &flags(&[("model", "gpt2"), ("seq-len", "128")]),
        "rtx-3060-12gb",
        &[],
    );
    assert!(p.no_effect.is_empty());
}

/// 8 x 8 becomes 4 x 16, and 64 samples a step stay 64.
#[test]
fn k17_a_smaller_micro_batch_keeps_the_effective_batch() {
    use tonnage_plan::plan::space::{split_edit, splits};
    let job = deepseek();
    let all = splits(&job, &[]);
    assert_eq!(all[0], (8, 8));
    assert!(all.contains(&(4, 16)));
    assert!(all.iter().all(|(b, a)| b * a == 64));
    let e = split_edit(&job, (8, 8), (4, 16));
    assert!(
        e.what.contains("4 x 16") && e.what.contains("stays 64"),
        "{}",
        e.what
    );
    let mut j = job.clone();
    e.apply(&mut j).unwrap();
    assert_eq!(j.effective_batch(), 64);
    assert!(
        splits(&job, &[Allow::Batch])
            .iter()
            .any(|(b, a)| b * a == 32)
    );
}

/// Without allowance no point changes the method: optimizer states, types, adapters, lengths.
#[test]
fn the_method_is_kept_unless_allowed() {
    let job = flags(&[
        ("model", "HuggingFaceTB/SmolLM2-135M"),
        ("model.config.num_hidden_layers", "6"),
        ("seq-len", "1024"),
        ("batch-size", "16"),
        ("optimizer", "adamw_foreach"),
    ]);
    let p = on(&job, "rtx-2060-6gb", &[]);
    let points = p.front.iter().chain(&p.recommended).chain(&p.next);
    for q in points {
        for f in &q.flags {
            for word in ["8bit", "--precision", "--lora", "--quant", "--seq-len"] {
                assert!(!f.contains(word), "{f}");
            }
        }
        assert_eq!(q.micro_batch_size * q.gradient_accumulation_steps, 16);
    }
    let wide = on(&job, "rtx-2060-6gb", &[Allow::Precision, Allow::Optimizer]);
    assert!(wide.searched.candidates > p.searched.candidates);
    let fast = |p: &Plan| {
        p.recommended
            .as_ref()
            .map_or(0.0, |r| r.time.tokens_per_s.expected)
    };
    assert!(fast(&wide) >= fast(&p));
}

/// More memory never gives a slower plan, and a margin never a faster one.
#[test]
fn more_memory_never_gives_a_slower_plan() {
    let job = flags(&[
        ("model", "HuggingFaceTB/SmolLM2-135M"),
        ("model.config.num_hidden_layers", "6"),
        ("seq-len", "1024"),
        ("batch-size", "32"),
        ("precision", "bf16"),
    ]);
    let speed = |margin: u64| {
        let o = Options {
            margin: tonnage_plan::plan::Margin::Bytes(margin << 30),
            ..Options::new("rtx-4090")
        };
        let p = plan(&job, &o, &Sequential, &Silent).unwrap();
        p.recommended.map_or(0.0, |r| r.time.tokens_per_s.expected)
    };
    let all: Vec<f64> = [22, 18, 0].into_iter().map(speed).collect();
    assert!(
        all.windows(2).all(|w| w[0] <= w[1] * (1.0 + 1e-9)),
        "{all:?}"
    );
    assert!(all[2] > 0.0);
}
