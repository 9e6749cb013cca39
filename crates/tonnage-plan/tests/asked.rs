//! A run that follows from another card's is that card's own run, event by event.

mod common;
use common::*;
use tonnage_core::simulate_noting;
use tonnage_core::simulate_until_repeat;
use tonnage_sim::asked::patched;

#[test]
fn runs_that_follow_are_the_cards_own() {
    let classes = all();
    let g = gpt2();
    let mut jobs = vec![
        ("gpt2", g.clone()),
        ("llama", llama()),
        (
            "gpt2 eager, dropout, fp16",
            with(
                &g,
                &[
                    ("train.precision", "fp16-mixed"),
                    ("train.attention", "eager"),
                    ("train.seq_len", "384"),
                    ("train.micro_batch_size", "5"),
                ],
            ),
        ),
        (
            "gpt2 checkpointed",
            with(&g, &[("train.activation_checkpointing", "full")]),
        ),
    ];
    for quant in ["none", "nf4"] {
        let mut j = with(
            &llama(),
            &[
                ("lora.r", "16"),
                ("lora.targets", "all-linear"),
                ("train.precision", "bf16-mixed"),
            ],
        );
        if quant != "none" {
            j = with(&j, &[("quant.format", quant), ("model.dtype", "bf16")]);
        }
        jobs.push(("adapters", j));
    }
    let (mut follow, mut differ) = (0, 0);
    for (name, job) in jobs {
        let config = job.allocator().unwrap();
        for from in [0, classes.len() / 2, classes.len() - 1] {
            let spec = job.spec(&classes[from].cards[0].gpu).unwrap();
            let (sim, asked) = simulate_noting(&spec, &config).unwrap();
            assert!(sim.cut.is_none());
            let plain = simulate_until_repeat(&spec, &config).unwrap();
            assert_eq!(sim.timeline.events, plain.timeline.events, "{name}");
            for c in classes.iter().step_by(3) {
                let Some(patch) = asked.on(&c.kernel) else {
                    continue;
                };
                let own = job.spec(&c.cards[0].gpu).unwrap();
                let own = simulate_until_repeat(&own, &config).unwrap();
                let ours = patched(&sim.timeline.events, &patch);
                assert_eq!(ours.len(), own.timeline.events.len(), "{name}");
                for (i, (a, b)) in ours.iter().zip(&own.timeline.events).enumerate() {
                    let alike = (a.kind(), a.owner) == (b.kind(), b.owner);
                    // a free names its allocation; its bytes are a remark
                    let bytes = a.bytes == b.bytes
                        || !matches!(a.kind(), tonnage_sim::EventKind::Alloc { .. });
                    assert!(
                        alike && bytes,
                        "{name} on {}: event {i}: {a:?} is not {b:?}",
                        c.cards[0].gpu.id
                    );
                }
                if patch.is_empty() {
                    follow += 1;
                } else {
                    differ += 1;
                }
            }
        }
    }
    assert!(
        follow > 20 && differ > 100,
        "{follow} the same, {differ} in bytes"
    );
}
