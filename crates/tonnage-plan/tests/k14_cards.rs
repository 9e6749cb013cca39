//! K14: a verdict for every card, with margin, against what is usable and free; never one that contradicts its own numbers.

mod common;
use common::*;
use tonnage_catalog::{Gpus, gpu};
use tonnage_core::Job;
use tonnage_core::verdict::{Device, Outcome};
use tonnage_plan::cards::{Here, Tried, classes, over, row};

fn jobs() -> Vec<Job> {
    vec![
        gpt2(),
        // around 8, 16 and 24 GB
        with(
            &gpt2(),
            &[("train.micro_batch_size", "24"), ("train.seq_len", "1024")],
        ),
        with(
            &gpt2(),
            &[
                ("train.micro_batch_size", "40"),
                ("train.seq_len", "1024"),
                ("train.hold", "outputs"),
            ],
        ),
        with(
            &llama(),
            &[
                ("train.micro_batch_size", "16"),
                ("train.precision", "bf16-mixed"),
            ],
        ),
    ]
}

#[test]
fn k14_the_quick_outcome_is_the_verdicts_on_every_card() {
    let classes = all();
    assert!(classes.iter().map(|c| c.cards.len()).sum::<usize>() >= 120);
    let mut seen = std::collections::BTreeMap::new();
    for job in jobs() {
        for c in classes.iter().step_by(5) {
            let t = Tried::new(&job, &c.cards[0].gpu).unwrap();
            for d in &c.cards {
                let (r, v) = (row(&t, d), t.verdict(d));
                assert_eq!(r.outcome, v.outcome, "{}", d.gpu.id);
                assert_eq!(
                    (r.available_bytes, r.margin_bytes),
                    (v.available_bytes, v.margin_bytes),
                    "{}",
                    d.gpu.id
                );
                *seen.entry(r.outcome).or_insert(0) += 1;
                // the verdict and its numbers agree
                match r.outcome {
                    Outcome::Fits => assert!(
                        r.margin_bytes >= 0 && r.needed_bytes <= r.usable_bytes - r.taken_bytes,
                        "{r:?}"
                    ),
                    Outcome::Tight => assert!(v.peak_allocated_bytes <= r.available_bytes, "{r:?}"),
                    Outcome::No => assert!(r.margin_bytes < 0, "{r:?}"),
                }
            }
        }
    }
    assert!(
        seen[&Outcome::Fits] > 9 && seen[&Outcome::No] > 9,
        "{seen:?}"
    );
}

#[test]
fn k14_fit_and_estimate_say_the_same_of_the_documents_cards() {
    for (file, cards) in [
        ("spoter.toml", &["gtx-1050-ti", "rtx-3060-12gb"][..]),
        (
            "deepseek-qlora.toml",
            &["rtx-3070", "rtx-3080-10gb", "rtx-3060-12gb", "rtx-3090"],
        ),
        ("gpt-150m.toml", &["gtx-1070", "rtx-3090"]),
    ] {
        let mut job = example(file);
        job.uncertain.clear();
        for card in cards {
            let d = Device::of(gpu(card).unwrap()).unwrap();
            let r = row(&Tried::new(&job, &d.gpu).unwrap(), &d);
            let v = estimated(&job, card);
            assert_eq!(
                (r.outcome, r.margin_bytes, r.usable_bytes),
                (v.outcome, v.margin_bytes, v.usable_bytes),
                "{file} {card}"
            );
        }
    }
}

#[test]
fn k14_what_others_hold_counts() {
    let job = gpt2();
    let at = |here: Here| {
        let (classes, _) = classes([gpu("rtx-4090").unwrap()], here);
        over::rows(&job, &classes[..1]).unwrap().remove(0)
    };
    let idle = at(Here::default());
    assert_eq!((idle.outcome, idle.taken_bytes), (Outcome::Fits, 0));
    let display = at(Here {
        free: None,
        reserve: 1 << 30,
    });
    assert_eq!(display.taken_bytes, 1 << 30);
    assert_eq!(display.margin_bytes, idle.margin_bytes - (1 << 30));
    let busy = at(Here {
        free: Some(1 << 30),
        reserve: 0,
    });
    assert_eq!(busy.outcome, Outcome::No);
    assert_eq!(busy.taken_bytes, busy.usable_bytes - (1 << 30));
    // between what is needed in the expected and in the worst case of the device level
    let d = Device::of(gpu("rtx-4090").unwrap()).unwrap();
    let t = Tried::new(&job, &d.gpu).unwrap();
    let here = Here {
        free: Some(t.wanted() + d.outside().1 + 512),
        reserve: 0,
    };
    let tight = here.on(d);
    assert_eq!(
        (t.outcome(&tight), t.verdict(&tight).outcome),
        (Outcome::Tight, Outcome::Tight)
    );
    // exactly what is needed, less a byte: cached blocks must be given back, or it fails
    let d = Device::of(gpu("rtx-4090").unwrap()).unwrap();
    let enough = Tried::new(&job, &d.gpu).unwrap().wanted() + d.outside().2;
    assert_eq!(
        at(Here {
            free: Some(enough),
            reserve: 0
        })
        .outcome,
        Outcome::Fits
    );
    assert_ne!(
        at(Here {
            free: Some(enough - 1),
            reserve: 0
        })
        .outcome,
        Outcome::Fits
    );
}

#[test]
fn k14_cards_without_figures_are_named_and_not_guessed() {
    let (classes, none) = classes(Gpus::builtin().iter(), Here::default());
    let answered: usize = classes.iter().map(|c| c.cards.len()).sum();
    assert_eq!(answered + none.len(), Gpus::builtin().iter().count());
    assert!(none.iter().any(|u| u.gpu.starts_with("mi")) && none.iter().all(|u| !u.why.is_empty()));
}
