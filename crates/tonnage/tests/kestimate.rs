//! Acceptance: the estimate itself (K4, K5, K6, K7, K10, K22, K23).

mod common;
use common::*;
use tonnage_core::footprint::{Component, Options};
use tonnage_core::verdict::Outcome;
use tonnage_report::{Style, explain};

fn every_seed() -> Vec<&'static str> {
    let mut all = vec!["spoter.json", "deepseek-qlora.json"];
    all.extend(GPT);
    all.extend(AGI2);
    all.extend(STATESET);
    all
}

#[test]
fn k4_parts_add_up_to_the_total_to_the_byte() {
    for name in every_seed() {
        let f = expected(&job(name));
        let sum = |level: &str| {
            f.components
                .iter()
                .filter(|l| l.level == level)
                .map(|l| l.bytes)
                .sum::<u64>()
        };
        assert_eq!(sum("allocated"), f.peak.allocated.expected, "{name}");
        assert_eq!(
            sum("allocated") + sum("reserved"),
            f.peak.reserved.expected,
            "{name}"
        );
        assert_eq!(
            sum("allocated") + sum("reserved") + sum("device"),
            f.peak.device.expected,
            "{name}"
        );
        assert_eq!(
            f.modules.iter().map(|m| m.bytes).sum::<u64>(),
            f.peak.allocated.expected,
            "{name}"
        );
        assert_eq!(
            f.tensors.iter().map(|t| t.bytes).sum::<u64>(),
            f.peak.allocated.expected,
            "{name}"
        );
        for m in &f.modules {
            assert_eq!(
                m.components.iter().map(|c| c.1).sum::<u64>(),
                m.bytes,
                "{name} {}",
                m.module
            );
        }
    }
}

#[test]
fn k4_no_part_is_missing_and_each_explains_itself_with_numbers() {
    let gpt = expected(&job("gpt-configs/150M_1024.json"));
    // 16 layers x 12 heads x 1024^2 fp32 masks, two kept score maps a layer of 9 bytes a score, and the logits that no document names
    assert_eq!(gpt.component(Component::Buffers) / (1 << 20), 774);
    assert!(gpt.component(Component::Buffers) >= 16 * 12 * 1024 * 1024 * 4);
    let scores = gpt.component(Component::AttentionScores);
    let kept = 16 * 9 * 12 * 24 * 1024 * 1024u64;
    assert!((kept..kept + (64 << 20)).contains(&scores), "{scores}");
    let copies = 24 * 1024 * 50304 * 4u64;
    assert!(
        gpt.component(Component::LogitsAndLoss) >= 4 * copies,
        "log-softmax, its gradient, nll's, and the held logits"
    );
    let deepseek = expected(&job("deepseek-qlora.json"));
    for c in [
        Component::Parameters,
        Component::QuantState,
        Component::Gradients,
        Component::OptimizerState,
        Component::SavedActivations,
        Component::LogitsAndLoss,
        Component::Workspaces,
        Component::AllocatorCache,
        Component::DeviceContext,
        Component::Libraries,
    ] {
        assert!(deepseek.component(c) > 0, "{c:?}");
        let t = explain::explain(&deepseek, c.name(), &Style::default()).unwrap();
        let bytes = deepseek.component(c);
        let sum = t
            .lines()
            .any(|l| l.contains('=') && l.contains(&bytes.to_string()));
        assert!(
            sum || t.contains(&tonnage_units::Count(bytes).grouped()),
            "{t}"
        );
        assert!(t.lines().count() >= 3, "{t}");
    }
    assert!(
        explain::explain(&deepseek, "logit_and_loss", &Style::default())
            .unwrap_err()
            .contains("did you mean `logits_and_loss`?")
    );
}

#[test]
fn k5_the_peak_has_a_phase_and_the_optimizers_transient_counts() {
    let f = expected(&made(&[
        ("model", "gpt2"),
        ("seq-len", "1024"),
        ("batch-size", "4"),
    ]));
    assert_eq!(
        (f.instant.phase.as_str(), f.instant.op.as_str()),
        ("backward", "_log_softmax_backward_data")
    );
    let phases: Vec<&str> = f.phases.iter().map(|p| p.phase.as_str()).collect();
    for p in [
        "load",
        "input",
        "forward",
        "backward",
        "optimizer",
        "zero_grad",
    ] {
        assert!(phases.contains(&p), "{phases:?}");
    }
    let top = f.phases.iter().max_by_key(|p| p.allocated_bytes).unwrap();
    assert_eq!(top.phase, f.instant.phase);
    assert_eq!(top.allocated_bytes, f.peak.allocated.expected);
    // one short sequence: the foreach optimizer's temporaries are the peak
    let f = expected(&made(&[("model", "gpt2"), ("seq-len", "16")]));
    assert_eq!(f.instant.phase, "optimizer");
    assert!(
        f.component(Component::Temporaries) >= 4 * 124_439_808,
        "{:?}",
        f.components
    );
    let fused = expected(&made(&[
        ("model", "gpt2"),
        ("seq-len", "16"),
        ("optimizer", "adamw_fused"),
    ]));
    assert!(fused.peak.allocated.expected < f.peak.allocated.expected);
}

/// Evaluation (one forward call without gradients) and generation hold less than a training step of the same job.
#[test]
fn k5_evaluation_and_generation_are_below_training() {
    let base = made(&[("model", "gpt2"), ("seq-len", "512"), ("batch-size", "2")]);
    let train = expected(&base);
    let evaluate = expected(&with(&base, &[("kind", "forward")]));
    assert!(evaluate.peak.allocated.expected < train.peak.allocated.expected);
    assert!(evaluate.peak.device.expected < train.peak.device.expected);
    for c in [Component::Gradients, Component::OptimizerState] {
        assert_eq!(evaluate.component(c), 0, "{c:?}");
    }
    assert!(evaluate.peak.allocated.expected >= evaluate.model.param_bytes);
    let generate = expected(&with(&base, &[("kind", "generate"), ("new-tokens", "16")]));
    let phases: Vec<&str> = generate.phases.iter().map(|p| p.phase.as_str()).collect();
    assert!(
        phases.contains(&"prefill") && phases.contains(&"decode"),
        "{phases:?}"
    );
    assert!(generate.peak.allocated.expected < train.peak.allocated.expected);
}

#[test]
fn k6_the_loss_is_the_largest_swing_with_a_verdict_per_card_for_both() {
    let j = job("deepseek-qlora.json");
    let f = run(&j, &Options::default()).footprint;
    let first = &f.uncertainties[0];
    assert_eq!(first.key, "train.loss");
    assert!(first.width_bytes > 6 << 30, "{}", first.width_bytes);
    let shares: f64 = f.uncertainties.iter().map(|u| u.share_pct).sum();
    assert!((shares - 100.0).abs() < 1e-6);
    for u in &f.uncertainties {
        assert!(
            !u.why.is_empty()
                && u.alternatives
                    .iter()
                    .all(|a| a.reserved_bytes.is_some() || a.unsupported.is_some()),
            "{u:?}"
        );
    }
    assert!(
        f.peak.device.low < f.peak.device.expected && f.peak.device.expected < f.peak.device.high
    );
    let cards: Vec<&str> = f.verdicts.iter().map(|r| r.gpu.as_str()).collect();
    assert_eq!(
        cards,
        [
            "rtx-3060-12gb",
            "rtx-3070",
            "rtx-3080-10gb",
            "rtx-3090",
            "rtx-4090",
            "a100-sxm4-40gb"
        ]
    );
    for r in &f.verdicts {
        assert_eq!(r.cases.len(), 2, "{}", r.gpu);
        let (plain, fused) = (&r.cases[0].1, &r.cases[1].1);
        assert!(r.cases[0].0.contains("library") && r.cases[1].0.contains("fused"));
        assert!(fused.outcome <= plain.outcome);
        for v in [plain, fused] {
            // a verdict never contradicts its own numbers
            match v.outcome {
                Outcome::No => assert!(
                    v.failure
                        .as_ref()
                        .is_some_and(|x| x.message.starts_with("CUDA out of memory"))
                ),
                Outcome::Fits => assert!(v.margin_bytes >= 0 && v.retries == 0, "{v:?}"),
                Outcome::Tight => assert!(v.failure.is_none()),
            }
            assert!(v.peak_reserved_bytes <= v.available_bytes);
        }
    }
    let by = |gpu: &str, case: usize| {
        f.verdicts.iter().find(|r| r.gpu == gpu).unwrap().cases[case]
            .1
            .outcome
    };
    assert_eq!(
        (by("rtx-3070", 0), by("rtx-3070", 1)),
        (Outcome::No, Outcome::Fits)
    );
}

#[test]
fn k7_autocast_saves_nothing_of_the_model_states_and_fp16_nothing_against_bf16() {
    let base = made(&[("model", "gpt2"), ("seq-len", "1024"), ("batch-size", "4")]);
    let with_precision = |p: &str| expected(&with(&base, &[("precision", p)]));
    let (fp32, mixed) = (with_precision("fp32"), with_precision("bf16-mixed"));
    assert_eq!(fp32.model.param_bytes, mixed.model.param_bytes);
    // gradients are not there yet at this peak: weights, buffers and optimizer states are
    for c in [Component::Parameters, Component::Buffers] {
        assert_eq!(fp32.component(c), mixed.component(c), "{c:?}");
    }
    let (a, b) = (
        fp32.component(Component::OptimizerState),
        mixed.component(Component::OptimizerState),
    );
    assert!(
        a.abs_diff(b) * 100 < a,
        "block rounding alone differs: {a} {b}"
    );
    assert!(mixed.component(Component::AutocastCopies) > 0);
    let (bf16, fp16) = (with_precision("bf16"), with_precision("fp16"));
    assert_eq!(states(&bf16), states(&fp16));
    assert_eq!(bf16.peak, fp16.peak);
    assert!(bf16.peak.allocated.expected < fp32.peak.allocated.expected);
    let o = tonnage(&[
        "compare",
        "--model",
        "gpt2",
        "--seq-len",
        "256",
        "--sweep",
        "precision=fp32,bf16-mixed,bf16",
    ]);
    assert!(
        stdout(&o).contains("precision=bf16-mixed against precision=fp32"),
        "{}",
        stdout(&o)
    );
    assert!(stdout(&o).contains('%'));
}

#[test]
fn k10_methods_list_what_stays_and_respect_the_floor() {
    let f = expected(&job("deepseek-qlora.json"));
    let left = &f.model.unquantised;
    for m in [
        "model.embed_tokens",
        "lm_head",
        "model.norm",
        "model.layers.*.input_layernorm",
    ] {
        assert!(left.iter().any(|x| x == m), "{left:?}");
    }
    assert!(!left.iter().any(|x| x.ends_with("_proj")), "{left:?}");
    assert!(f.component(Component::QuantState) > 0);
    let lora = made(&[
        ("model", "meta-llama/Llama-2-13b-hf"),
        ("seq-len", "64"),
        ("precision", "bf16"),
        ("lora-r", "8"),
        ("lora-targets", "q_proj,v_proj"),
        ("checkpointing", "full"),
    ]);
    let f = expected(&lora);
    assert!(
        f.peak.allocated.expected > 26_030_000_000,
        "{}",
        f.peak.allocated.expected
    );
    assert!(f.peak.device.low > 26_030_000_000);
    // rank r on a square and a square projection of width 5120, 40 layers
    assert_eq!(f.model.trainable_count, 40 * 2 * 2 * 8 * 5120);
    let full = expected(&made(&[("model", "gpt2"), ("seq-len", "64")]));
    assert_eq!(full.model.trainable_count, 124_439_808);
}

#[test]
fn k22_checkpointing_leaves_one_input_a_layer_and_one_recomputed_layer() {
    let base = made(&[
        ("model", "meta-llama/Llama-2-7b-hf"),
        ("seq-len", "512"),
        ("batch-size", "2"),
        ("precision", "bf16"),
    ]);
    let saved = |c: &str| {
        let j = with(
            &base,
            &[
                ("checkpointing", c),
                ("optimizer", "sgd"),
                ("model.config.num_hidden_layers", "8"),
            ],
        );
        let e = run(
            &j,
            &Options {
                expected_only: true,
                ..Options::default()
            },
        );
        // what forward has left behind when backward begins
        let i = e
            .analysis
            .intervals
            .iter()
            .find(|i| i.mark.step == 1 && i.mark.phase.name() == "forward")
            .unwrap();
        (
            i.end.requested
                - e.analysis
                    .intervals
                    .iter()
                    .find(|i| i.mark.step == 1 && i.mark.phase.name() == "input")
                    .unwrap()
                    .end
                    .requested,
            e,
        )
    };
    let (none, _) = saved("none");
    let (full, e) = saved("full");
    let inputs = 8 * 2 * 512 * 4096 * 2u64;
    assert!(
        full >= inputs,
        "never below one input a layer: {full} {inputs}"
    );
    assert!(full * 4 < none, "{full} {none}");
    // one layer's recomputation is alive in backward, beside the inputs
    let back = e
        .analysis
        .intervals
        .iter()
        .find(|i| i.mark.step == 1 && i.mark.phase.name() == "backward")
        .unwrap();
    assert!(back.peak.requested > e.simulated.param_bytes + inputs + (none - inputs) / 8 / 2);
}

#[test]
fn k23_accumulation_costs_a_gradient_buffer_and_no_more() {
    let base = made(&[("model", "gpt2"), ("seq-len", "512"), ("batch-size", "2")]);
    let at = |n: &str| expected(&with(&base, &[("accumulation", n)]));
    let (one, two, eight) = (at("1"), at("2"), at("8"));
    assert_eq!(two.peak.allocated.expected, eight.peak.allocated.expected);
    let gradients = 4 * 124_439_808u64;
    let more = two.peak.allocated.expected - one.peak.allocated.expected;
    assert!(
        more >= gradients && more < gradients + gradients / 20,
        "{more}"
    );
    assert_eq!((eight.effective_batch, eight.micro_batch_size), (16, 2));
    let text = tonnage_report::text::footprint(&eight, &Style::default());
    assert!(text.contains("batch 2 x 8 = 16"), "{text}");
}
