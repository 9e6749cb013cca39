//! K16: "I have so much memory" and "I want to train this model" agree with each other and with `estimate`.

mod common;
use common::*;
use tonnage_catalog::{Gpus, Instances, gpu};
use tonnage_core::Job;
use tonnage_core::verdict::{Device, Outcome};
use tonnage_plan::cards::sizes::{METHODS, REFERENCES, USUAL, bare, job, methods, size};
use tonnage_plan::cards::{Here, classes, have, need, of_memory};

const CARDS: [&str; 6] = [
    "gtx-1060-6gb",
    "rtx-3060-12gb",
    "rtx-4060-ti-16gb",
    "rtx-4090",
    "a100-sxm4-40gb",
    "h100-sxm",
];

fn nothing(_: &mut Job) -> Result<(), Vec<tonnage_core::Diagnostic>> {
    Ok(())
}

#[test]
fn k16_both_directions_and_estimate_agree_on_a_grid() {
    let base = made(&[
        ("train.seq_len", "512"),
        ("model.config.num_hidden_layers", "4"),
    ]);
    let gpus: Vec<_> = CARDS.iter().map(|c| gpu(c).unwrap()).collect();
    let (classes, _) = classes(gpus.clone(), Here::default());
    let mut seen = std::collections::BTreeSet::new();
    for name in ["1.1B", "7B", "Qwen/Qwen2.5-72B"] {
        let s = size(name).unwrap();
        let n = need::need(
            &base,
            &s,
            &METHODS,
            &classes,
            &Instances::default(),
            &|j| need::rows(j, &classes),
            &nothing,
        )
        .unwrap();
        for (m, plan) in METHODS.iter().zip(&n.plans) {
            assert_eq!(m.name, plan.method);
            let least = plan.picks[0].row.as_ref();
            for g in &gpus {
                let d = Device::of(g.clone()).unwrap();
                let l = have::line(&base, &s, &[*m], &d, &nothing).unwrap();
                let c = &l.cells[0];
                // K4's verdict
                let v = estimated(&job(&base, &s.model, m).unwrap(), &g.id);
                assert_eq!(
                    (c.outcome, c.margin_bytes),
                    (Some(v.outcome), Some(v.margin_bytes)),
                    "{name} {} {}",
                    m.name,
                    g.id
                );
                // the least card that is named is the least that runs
                let runs = v.outcome != Outcome::No;
                match least {
                    Some(r) if d.usable.expected < r.usable_bytes => {
                        assert!(!runs, "{name} {} {}", m.name, g.id)
                    }
                    Some(r) if g.id == r.gpu => assert!(runs),
                    Some(_) => {}
                    None => assert!(!runs, "{name} {} {}", m.name, g.id),
                }
                seen.insert(v.outcome.name());
            }
            // a recommended card has what is needed, and more
            if let Some(r) = plan.picks[1].row.as_ref() {
                assert!(
                    r.needed_bytes < r.usable_bytes
                        && r.outcome == Outcome::Fits
                        && r.margin_bytes as u64 >= r.usable_bytes / 10
                );
                assert!(r.usable_bytes >= least.unwrap().usable_bytes);
            }
        }
    }
    assert!(seen.contains("fits") && seen.contains("no"), "{seen:?}");
}

#[test]
fn k16_more_memory_trains_at_least_as_much_and_methods_keep_their_order() {
    let base = made(&[
        ("train.seq_len", "256"),
        ("model.config.num_hidden_layers", "3"),
        ("model.config.n_layer", "3"),
    ]);
    let like = gpu("a100-sxm4-80gb").unwrap();
    let mut last = [0u64; 4];
    for gib in [1u64, 2, 4, 8, 12, 24] {
        let d = of_memory(&like, gib << 30, Here::default()).unwrap();
        let lines = ["0.5B", "1.5B", "3B", "7B"]
            .iter()
            .map(|n| have::line(&base, &size(n).unwrap(), &METHODS, &d, &nothing).unwrap());
        let h = have::have(&base, &d, &METHODS, lines.collect());
        for (i, m) in METHODS.iter().enumerate() {
            let n = h.largest(m.name).map_or(0, |l| l.parameters);
            assert!(n >= last[i], "{} at {gib} GiB", m.name);
            last[i] = n;
        }
        for l in &h.lines {
            let needed: Vec<u64> = l.cells[1..]
                .iter()
                .map(|c| c.needed_bytes.unwrap())
                .collect();
            assert!(
                needed[1] < needed[2],
                "full in bf16 needs less than in mixed precision: {l:?}"
            );
        }
    }
    assert!(last[0] > 0);
}

#[test]
fn k16_bare_sizes_stand_for_named_models_of_about_that_size() {
    assert_eq!(bare("1.3B"), Some(1.3e9));
    assert_eq!(bare("774m"), Some(7.74e8));
    assert_eq!(bare("gpt2"), None);
    for (text, model) in REFERENCES {
        assert_eq!(size(text).unwrap().model, *model);
        let known = tonnage_catalog::model(model).unwrap_or_else(|e| panic!("{model}: {e}"));
        let count = tonnage_model::count::count(&serde_json::from_str(known.config()).unwrap())
            .unwrap()
            .total as f64;
        let asked = bare(text).unwrap();
        assert!(
            (count / asked - 1.0).abs() < 0.25,
            "{text} is {model} of {count}"
        );
        assert!(!known.config().is_empty());
    }
    let near = size("20B").unwrap_err().to_string();
    assert!(near.contains("14B") && near.contains("30B"), "{near}");
    assert!(USUAL.iter().all(|u| size(u).is_ok()));
    assert!(methods(&["lora".into(), "qlore".into()]).is_err());
    // every reference can be trained by every method of the table
    let g = Gpus::builtin().find("a100-sxm4-80gb").unwrap();
    for (_, model) in REFERENCES.iter().filter(|r| bare(r.0).unwrap() < 2e9) {
        for m in METHODS {
            let j = job(&made(&[("train.seq_len", "64")]), model, &m).unwrap();
            let t = tonnage_plan::cards::Tried::new(&j, &g);
            assert!(
                t.is_ok(),
                "{model} {}: {}",
                m.name,
                t.err().map_or(String::new(), |b| shown(&b))
            );
        }
    }
}
